"""Strategies beside one another: what each has kept and learned over a sequence of tasks, and what it costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scalemem.analyses import continual
from scalemem.analyses import panel as panels
from scalemem.analyses.split import parts
from scalemem.spec import SpecError

if TYPE_CHECKING:
    import pyarrow as pa

NONE, ALL = "none", "joint"


def name_of(run: Mapping[str, Any]) -> str:
    """What a run does against forgetting, from its row, by its last stage.

    The strategy, or what is trained if that is not all (lora, half, ...), or "replay", or "joint" for a replay of all items before; with a "+" where
    there are several. "none" is none of them.

    >>> name_of({"stage0_n_items": 8, "stage1_n_items": 8, "stage1_trains": "all", "stage1_strategy_name": None})
    'none'
    >>> name_of({"stage0_n_items": 8, "stage1_n_items": 8, "stage1_trains": "all", "stage1_replay_fraction": 0.5, "stage1_replay_n_items": 8})
    'joint'
    """
    last = _stages(run) - 1
    of = lambda field: run.get(f"stage{last}_{field}")  # noqa: E731
    before = sum(run[f"stage{i}_n_items"] for i in range(last))
    found = [" ".join(filter(None, (of("strategy_name"), of("strategy_kind")))), of("trains") or "all"]
    if of("replay_fraction"):
        found.append(ALL if (of("replay_n_items") or 0) >= before else "replay")
    return "+".join(part for part in found if part not in ("", "all")) or NONE


def costs(run: Mapping[str, Any]) -> dict[str, float]:
    """What a run costs beside plain training of the same stages, from its row.

    Returns:
      extra_flops_ratio: FLOPs of strategies over those of training all stages, each weighted by its steps and batch; state_floats_per_param: the most
      that is kept beside weights and moments, over the weights; stored_tokens_count: the most old tokens that are stored, those of replay pools, too.
    """
    stages = range(_stages(run))
    get = lambda i, field: run.get(f"stage{i}_{field}") or 0.0  # noqa: E731
    weight = [get(i, "n_items") * get(i, "exposures") for i in stages]
    pools = [get(i, "replay_n_items") * run["seq_len"] if get(i, "replay_fraction") else 0.0 for i in stages]
    return {"extra_flops_ratio": sum(w * get(i, "strategy_flops_ratio") for i, w in enumerate(weight)) / max(sum(weight), 1),
            "state_floats_per_param": max(get(i, "strategy_state_floats") for i in stages) / run["n_params"],
            "stored_tokens_count": max(max(get(i, "strategy_stored_tokens"), pools[i]) for i in stages)}


def _stages(run: Mapping[str, Any]) -> int:
    return next(i for i in itertools.count() if run.get(f"stage{i}_n_items") is None)


def analyse(tables: Mapping[str, pa.Table], *, table: str = "tasks", value: str = "accuracy_fraction", task: str = "task",
            by: Sequence[str] = ("stages.0.data.scenario",), where: str | None = None, first_stage: int = 0) -> pa.Table:
    """A row a run: what it does (`name_of`), what it costs (`costs`), what a sequence of tasks leaves (`continual.analyse`), and against the ends.

    gain_fraction is ACC less that of the run of the same seed that does nothing, and closed_fraction the same over what `joint` gains: 1 is as good
    as training on everything. bwt_gain_fraction is BWT less that of doing nothing.

    Args:
      tables: "runs", and that of scores.
      table, value, task, where, first_stage: as in `continual`.
      by: fields of the runs within which runs are compared, by their path or an end of it that is unique.
    Returns:
      run_id, seed, n_params, the fields of `by` under the last part of their paths, strategy, and the columns above.
    Raises:
      SpecError: no such table or field; RowsError: as `continual`.
    """
    if not by:
        raise SpecError("analysis.by = []: must name at least one field within which runs are compared; write 'generator'")
    rows: list[dict[str, Any]] = []
    for key, part in parts(tables, by):
        about = {row["run_id"]: row for row in part["runs"].to_pylist()}
        scores = continual.analyse(part, table=table, value=value, task=task, where=where, first_stage=first_stage).to_pylist()
        ends = {(name_of(about[row["run_id"]]), row["seed"], row["n_params"]): row for row in scores}
        for row in scores:
            none, joint = (ends.get((name, row["seed"], row["n_params"])) for name in (NONE, ALL))
            gain = row["acc_fraction"] - none["acc_fraction"] if none else math.nan
            room = joint["acc_fraction"] - none["acc_fraction"] if joint and none else math.nan
            run = about[row["run_id"]]
            fields = {path.rsplit(".", 1)[-1]: v for path, v in key.items()}
            rows.append({**row, **fields, "strategy": name_of(run), **costs(run), "gain_fraction": gain,
                         "bwt_gain_fraction": row["bwt_fraction"] - none["bwt_fraction"] if none else math.nan,
                         "closed_fraction": gain / room if room > 0 else math.nan})
    return panels.rows(rows, tuple(rows[0]))
