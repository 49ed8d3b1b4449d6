"""The stability gap: how far old tasks fall while a new one is learned, and how soon they are back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from scalemem import tables as columns
from scalemem.analyses import panel as panels
from scalemem.spec import SpecError
from scalemem.tables import RowsError

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("run_id", "seed", "n_params", "stage", "old_count", "before_score", "lowest_score", "end_score", "depth_score", "depth_at_ends_score",
           "recovery_steps", "recovered_fraction", "min_acc_score", "wc_acc_score", "windowed_forgetting_score", "windowed_plasticity_score")


def depth(curve: np.ndarray) -> float:
    """How far a score falls below its value before the switch: curve[0] - min of what follows, 0 where it never falls; higher is better.

    >>> round(depth(np.array([0.9, 0.5, 0.7, 0.95])), 3)
    0.4
    """
    return max(0.0, float(curve[0] - np.min(curve)))


def recovery(steps: np.ndarray, curve: np.ndarray, share: float = 0.95) -> float:
    """Steps from the switch to the first one from the minimum on that has `share` of the score before it; NaN if there is none, 0 without a dip.

    Args:
      steps: [N] of the stage, ascending from 0.
      curve: [N] scores, higher is better and positive; curve[0] is before the switch.
      share: of curve[0].

    >>> recovery(np.array([0, 1, 2, 10, 20]), np.array([0.9, 0.3, 0.6, 0.86, 0.9]))
    10.0
    """
    if curve.min() >= share * curve[0]:
        return 0.0
    lowest = int(np.argmin(curve))
    back = np.flatnonzero(curve[lowest:] >= share * curve[0])
    return float(steps[lowest + back[0]]) if len(back) else math.nan


def min_acc(curves: Sequence[np.ndarray]) -> float:
    """Mean over old tasks of the lowest score since each was last trained on, min-ACC of De Lange et al.

    Args:
      curves: of each old task, its scores after the last update that trained on it, up to now.

    >>> round(min_acc([np.array([0.5, 0.7]), np.array([0.9, 0.7])]), 3)
    0.6
    """
    return float(np.mean([np.min(c) for c in curves]))


def wc_acc(current: float, lowest: float, k: int) -> float:
    """Worst-case accuracy in task k, current / k + (1 - 1/k) min-ACC.

    >>> wc_acc(0.9, 0.6, 3)
    0.7
    """
    return current / k + (1 - 1 / k) * lowest


def windowed(curve: np.ndarray, window: int) -> tuple[float, float]:
    """(forgetting, plasticity): the largest fall and the largest rise of a score within `window` consecutive evaluations.

    forgetting = max of curve[m] - curve[n], and plasticity = max of curve[n] - curve[m], over m <= n < m + window; both are at least 0.

    Args:
      curve: [N] scores of one task, higher is better, one an update.
      window: evaluations that a window has, at least 1; 1 gives (0, 0).

    >>> [round(v, 3) for v in windowed(np.array([0.9, 0.6, 0.5, 0.8]), 2)]
    [0.3, 0.3]

    Source: WF and WP of De Lange et al. 2023, from memory, unverified; shared/literature/forgetting.md 4.12 names them without a formula.
    """
    if window < 1:
        raise SpecError(f"window = {window}: must be at least 1; give the evaluations of a window")
    lags = [curve[lag:] - curve[:-lag] for lag in range(1, min(window, len(curve)))]
    return max([0.0, *(float(-d.min()) for d in lags)]), max([0.0, *(float(d.max()) for d in lags)])


def analyse(tables: Mapping[str, pa.Table], *, table: str = "tasks", value: str = "accuracy_fraction", task: str = "task", guess_loss: float = 0.0,
            share: float = 0.95, window: int = 10, first_stage: int = 0, where: str | None = None) -> pa.Table:
    """The dip of the old tasks in every stage after the first, its depth, the steps to recovery, and De Lange's worst-case measures.

    A stage begins with its row of stage_step 0, before any of its updates: that is the score before the switch. Old tasks of stage k are those
    of number below k - first_stage. What is said of the old tasks before the switch, at the lowest and at the end is of their mean.

    Args:
      tables: that of scores, with run_id, stage, stage_step, seed and n_params; its rows are every step's, or of as many as were measured.
      table, value, where: its name, the column of scores, and which rows.
      task: column that numbers tasks, in the order in which they are learned.
      guess_loss: 0 where a higher value is better. For a loss that of a guess: the score is then guess_loss - value, 0 of a guess.
      share: of the score before the switch at which it counts as recovered.
      window: evaluations of a window of the windowed measures.
      first_stage: stage that learns the first task.
    Returns:
      a row for each run and stage, scores in the unit of `value`: old_count tasks; before_score, lowest_score, end_score;
      depth_score = before - lowest, and depth_at_ends_score = before - end, but at least 0: what is seen by who evaluates at the ends of
      tasks; recovery_steps, NaN where recovered_fraction is 0; min_acc_score and wc_acc_score at the end of the stage;
      windowed_forgetting_score, mean over old tasks within this stage, and windowed_plasticity_score of the task that it learns.
    Raises:
      RowsError: no stage after the first, a stage without stage_step 0, or a task that is not measured at all steps of a stage.

    Source: De Lange et al. 2023, from memory, unverified (shared/literature/forgetting.md 4.12); depth and recovery: the same section.
    """
    rows = []
    for key, part in panels.by(panels.table_of(tables, table, where), ["run_id", "seed", "n_params"]):
        stage, step, ids, raw = (columns.column(part, c) for c in ("stage", "stage_step", task, value))
        score = guess_loss - raw if guess_loss else raw
        for s in np.unique(stage[stage > first_stage]):
            steps, curves = _curves(f"table {table!r}, run {key['run_id']}, stage {s:g}", step, ids, score, stage == s)
            old = [i for i in curves if i < s - first_stage]
            if not old:
                raise RowsError(f"table {table!r}, run {key['run_id']}, stage {s:g}: no task below {s - first_stage:g} was measured; "
                                f"number the tasks in {task} from 0, or set first_stage")
            mean, current = np.mean([curves[i] for i in old], 0), curves.get(s - first_stage)
            since = [_since(stage, step, ids, score, i, first_stage, s) for i in old]
            lowest = min_acc(since)
            back = recovery(steps, mean, share)
            rows.append({**key, "stage": int(s), "old_count": len(old), "before_score": float(mean[0]), "lowest_score": float(mean.min()),
                         "end_score": float(mean[-1]), "depth_score": depth(mean), "depth_at_ends_score": max(0.0, float(mean[0] - mean[-1])),
                         "recovery_steps": back, "recovered_fraction": float(not math.isnan(back)), "min_acc_score": lowest,
                         "wc_acc_score": math.nan if current is None else wc_acc(float(current[-1]), lowest, len(old) + 1),
                         "windowed_forgetting_score": float(np.mean([windowed(curves[i], window)[0] for i in old])),
                         "windowed_plasticity_score": math.nan if current is None else windowed(current, window)[1]})
    if not rows:
        raise RowsError(f"table {table!r}: has no stage after stage {first_stage}; a gap needs a second task")
    return panels.rows(rows, COLUMNS)


def _curves(name: str, step: np.ndarray, ids: np.ndarray, score: np.ndarray, of: np.ndarray) -> tuple[np.ndarray, dict[float, np.ndarray]]:
    """(steps [N], {task: scores [N]}) of one stage."""
    steps, curves = np.unique(step[of]), {}
    for i in np.unique(ids[of]):
        at = of & (ids == i)
        order = np.argsort(step[at])
        if not np.array_equal(step[at][order], steps):
            raise RowsError(f"{name}: task {i:g} has not one score at each of its {len(steps)} steps; measure all tasks at the same steps")
        curves[float(i)] = score[at][order]
    if steps[0] != 0 or len(steps) < 2:
        raise RowsError(f"{name}: has {len(steps)} steps from {steps[0]:g}; must begin at stage_step 0, before the switch, and go on; probe at log")
    return steps, curves


def _since(stage: np.ndarray, step: np.ndarray, ids: np.ndarray, score: np.ndarray, i: float, first_stage: int, now: float) -> np.ndarray:
    """Scores of task i after its own stage, through stage `now`; a stage's step 0 is the end of the one before, which does not count."""
    return score[(ids == i) & (stage > i + first_stage) & (stage <= now) & (step > 0)]
