"""Re-exposure: how much sooner lost items are learned again than items never seen, which says what was left of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from scalemem.analyses import panel as panels
from scalemem.spec import SpecError
from scalemem.tables import RowsError

if TYPE_CHECKING:
    import pyarrow as pa


def analyse(tables: Mapping[str, pa.Table], *, table: str = "facts", value: str = "memorization_nats", score: str = "recalled",
            stage: int = 2, old: str = "stage0", new: str = "", criterion: float = 0.5) -> pa.Table:
    """A row for each run that was re-exposed (`controls.reexposed`): savings of the lost items over those never seen, in nats and in steps.

    savings_nats is the mean -log p of new items less that of lost ones, at the end of the stage, where both were met k times; before_savings_nats the
    same before its first step, what a plain probe sees. relearned_ratio is (steps to the criterion of new items) / (of lost ones): 1, and savings of
    0, if nothing was left; savings_fraction is 1 - 1 / relearned_ratio, Ebbinghaus's. The criterion is a share of items recalled, reached at a step
    that is interpolated between probes; NaN where one of the two never reaches it, and savings_fraction 1 where lost items were never below it.

    Args:
      tables: that of items (run_id, seed, n_params, stage, stage_step, exposures, source, value and score), probed at "log" or "segments".
      table, value, score: its name; nats, lower is better; a score from 0 to 1.
      stage: the stage of re-exposure, from 0.
      old, new: sources; new "" is that of the stage itself, whose items are those that no earlier stage has.
      criterion: share of items recalled, above 0 and at most 1.
    Returns:
      run_id, seed, n_params, met_exposures, before_savings_nats, savings_nats, lost_recalled_fraction and new_recalled_fraction before and
      (end_) after, lost_steps, new_steps, savings_fraction, relearned_ratio.
    Raises:
      SpecError: no such table, or a criterion out of range. RowsError: a run without rows of a source.

    Source: shared/literature/forgetting.md 9, rule 4; savings are Ebbinghaus's measure (4.8), the never-seen items at equal steps are ours.
    """
    if not 0 < criterion <= 1:
        raise SpecError(f"analysis.criterion = {criterion}: must be above 0 and at most 1, a share of items; correct it")
    found: list[dict[str, Any]] = []
    for key, part in panels.by(panels.table_of(tables, table, f"stage == {stage}"), ["run_id", "seed", "n_params"]):
        step, exposures = panels.number(part, "stage_step"), panels.number(part, "exposures")
        source = np.array(part["source"].to_pylist())
        steps = np.unique(step)
        means = {}
        for name in (old, new or f"stage{stage}"):
            members = source == name
            if any(not (members & (step == at)).any() for at in steps):
                raise RowsError(f"table {table!r}, run {key['run_id']}: not every moment of stage {stage} has rows of source {name!r}; make the "
                                "stage with scalemem.controls.reexposed, and let the probe read that many items")
            means[name] = [np.array([panels.number(part, column)[members & (step == at)].mean() for at in steps]) for column in (value, score)]
        (lost_nats, lost), (new_nats, fresh) = means.values()
        lost_steps, new_steps = (reached(steps, curve, criterion) for curve in (lost, fresh))
        found.append({**key, "met_exposures": float(exposures.max()), "before_savings_nats": new_nats[0] - lost_nats[0],
                      "savings_nats": new_nats[-1] - lost_nats[-1], "lost_recalled_fraction": lost[0], "new_recalled_fraction": fresh[0],
                      "end_lost_recalled_fraction": lost[-1], "end_new_recalled_fraction": fresh[-1], "lost_steps": lost_steps,
                      "new_steps": new_steps, "savings_fraction": 1 - lost_steps / new_steps if new_steps > 0 else math.nan,
                      "relearned_ratio": new_steps / lost_steps if lost_steps > 0 else math.nan})
    return panels.rows(found, tuple(found[0]))


def reached(steps: np.ndarray, score: np.ndarray, criterion: float) -> float:
    """The first step at which a score is at the criterion, on the line between the probes about it; NaN if it never is.

    >>> float(reached(np.array([0, 4, 8]), np.array([0.0, 0.25, 0.75]), 0.5))
    6.0
    """
    at = int(np.argmax(score >= criterion))
    if score[at] < criterion:
        return math.nan
    if at == 0:
        return float(steps[0])
    share = (criterion - score[at - 1]) / (score[at] - score[at - 1])
    return float(steps[at - 1] + share * (steps[at] - steps[at - 1]))
