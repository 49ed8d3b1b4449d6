"""What a sequence of tasks leaves of each: ACC, BWT, FWT, LCA, and forgetting in each of the conventions in use, named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from scalemem import tables as columns
from scalemem.analyses import panel as panels
from scalemem.spec import SpecError
from scalemem.tables import RowsError

if TYPE_CHECKING:
    import pyarrow as pa

# A convention, and the sign that a loss has in it.
FORGETTING = {"gem_bwt": -1, "gem_repo": -1, "last_minus_first": -1, "chaudhry": 1, "max_incl_last": 1}
COLUMNS = ("run_id", "seed", "n_params", "tasks_count", "acc_fraction", "bwt_fraction", "bwt_repo_fraction", "fwt_fraction", "fwt_repo_fraction",
           "last_minus_first_fraction", "chaudhry_forgetting_fraction", "max_incl_last_forgetting_fraction", "lca_fraction")


def acc(scores: np.ndarray) -> float:
    """Average score at the end, (1/T) sum_i R[T, i], of scores R [T, T]: row t after task t, column i of task i."""
    return float(_square(scores)[-1].mean())


def bwt(scores: np.ndarray, divisor: str = "paper") -> float:
    """Backward transfer: sum over i < T of R[T, i] - R[i, i], divided by T - 1 (`paper`) or by T (`repo`, as the authors' program does).

    >>> R = np.array([[0.9, 0.1, 0.1], [0.7, 0.8, 0.1], [0.5, 0.6, 0.9]])
    >>> round(bwt(R), 3), round(bwt(R, "repo"), 3)
    (-0.3, -0.2)

    Source: Lopez-Paz and Ranzato 2017 (GEM), from memory, unverified; the divisor of the program: read, shared/literature/forgetting.md 4.1.
    """
    scores = _square(scores)
    return float(np.sum(scores[-1, :-1] - np.diag(scores)[:-1])) / _divisor(len(scores), divisor)


def fwt(scores: np.ndarray, start: np.ndarray, divisor: str = "paper") -> float:
    """Forward transfer: sum over i >= 2 of R[i - 1, i] - b[i], divided by T - 1 (`paper`) or by T (`repo`).

    Args:
      scores: R [T, T].
      start: b [T], scores before the first task, which is at initialisation unless a run begins with another stage.
      divisor: paper or repo.

    >>> round(fwt(np.array([[0.9, 0.3, 0.1], [0.7, 0.8, 0.2], [0.5, 0.6, 0.9]]), np.array([0.1, 0.1, 0.1])), 3)
    0.15
    """
    scores = _square(scores)
    if np.shape(start) != (len(scores),):
        raise SpecError(f"start: has the shape {np.shape(start)}; must be a score for each of the {len(scores)} tasks; give b[i]")
    return float(np.sum(np.diag(scores, 1) - np.asarray(start, float)[1:])) / _divisor(len(scores), divisor)


def forgetting(scores: np.ndarray, kind: str) -> float:
    """Forgetting by a named convention; they differ in sign, in what is compared with the end, and in the divisor.

    | kind | what | a loss is |
    |---|---|---|
    | gem_bwt | sum_(i<T) (R[T, i] - R[i, i]) / (T - 1): BWT of the paper | negative |
    | gem_repo | the same sum / T: BWT of its program | negative |
    | last_minus_first | R[T, i] - R[i, i], mean over the tasks i < T: Avalanche's first - last, turned over | negative |
    | chaudhry | mean over i < T of max_(l < T) R[l, i] - R[T, i]; it is negative where the end is the best | positive |
    | max_incl_last | mean over i < T of max_l R[l, i] - R[T, i], over all rows l, as Mammoth has it: never negative | positive |

    In both of the last two l also runs over rows before task i was learned, as the formulas are written.

    Args:
      scores: R [T, T], T >= 2.
      kind: of the table.
    Raises:
      SpecError: another kind, or a matrix that is not square.

    >>> R = np.array([[0.9, 0.1, 0.1], [0.7, 0.8, 0.1], [0.5, 0.95, 0.9]])
    >>> [round(forgetting(R, kind), 3) for kind in FORGETTING]
    [-0.125, -0.083, -0.125, 0.125, 0.2]

    Source: shared/literature/forgetting.md 4.1 and 8: Chaudhry et al. 2019 (A-GEM) for chaudhry; the sums of Avalanche 0.6.0 and Mammoth were
    read there. That the last one divides by T - 1 is our choice.
    """
    if kind not in FORGETTING:
        raise SpecError(f"kind = {kind!r}: must be one of {', '.join(FORGETTING)}; forgetting has no definition without one: choose one of these")
    scores = _square(scores)
    if kind in ("gem_bwt", "last_minus_first"):
        return bwt(scores)
    if kind == "gem_repo":
        return bwt(scores, "repo")
    best = scores[:-1].max(0) if kind == "chaudhry" else scores.max(0)
    return float(np.mean((best - scores[-1])[:-1]))


def lca(curves: np.ndarray) -> float:
    """Learning curve area: mean over b = 0..beta of Z_b, Z_b the mean over tasks k of the score on k after b batches of task k.

    Args:
      curves: [T, beta + 1].

    >>> lca(np.array([[0.0, 0.5, 1.0], [0.0, 0.5, 0.5]]))
    0.416...

    Source: Chaudhry et al. 2019 (A-GEM), beta = 10; shared/literature/forgetting.md 4.1.
    """
    return float(np.mean(curves))


def analyse(tables: Mapping[str, pa.Table], *, table: str = "tasks", value: str = "accuracy_fraction", task: str = "task", first_stage: int = 0,
            beta: int = 10, where: str | None = None) -> pa.Table:
    """ACC, BWT, FWT, LCA and each convention of forgetting, of every run that learned T tasks one after another.

    R[t, i] is the score on task i at the last step measured of stage first_stage + t, and b[i] that before the first step of stage
    first_stage; task i must be the one that stage first_stage + i learned.

    Args:
      tables: that of scores, with run_id, stage, stage_step, seed and n_params.
      table, where: its name, and which of its rows.
      value: column of scores, higher is better.
      task: column that numbers tasks, in the order in which they are learned.
      first_stage: stage that learns task 0; those before it are another kind of training.
      beta: batches of LCA.
    Returns:
      a row a run: tasks_count, acc_fraction, bwt_fraction and bwt_repo_fraction, fwt_fraction and fwt_repo_fraction, last_minus_first_fraction,
      chaudhry_forgetting_fraction and max_incl_last_forgetting_fraction (`forgetting` says what each is), and lca_fraction, NaN where not
      every one of the first beta steps of each task was measured.
    Raises:
      SpecError: no such table. RowsError: a run without a score of each task after each stage, or with two.
    """
    rows = []
    for key, part in panels.by(panels.table_of(tables, table, where), ["run_id", "seed", "n_params"]):
        stage, step, ids, score = (columns.column(part, c) for c in ("stage", "stage_step", task, value))
        scores, start, curves = matrix(stage, step, ids, score, first_stage, beta, f"table {table!r}, run {key['run_id']}")
        rows.append({**key, "tasks_count": len(scores), "acc_fraction": acc(scores), "bwt_fraction": bwt(scores), "bwt_repo_fraction":
                     bwt(scores, "repo"), "fwt_fraction": fwt(scores, start), "fwt_repo_fraction": fwt(scores, start, "repo"),
                     "last_minus_first_fraction": forgetting(scores, "last_minus_first"),
                     "chaudhry_forgetting_fraction": forgetting(scores, "chaudhry"),
                     "max_incl_last_forgetting_fraction": forgetting(scores, "max_incl_last"), "lca_fraction": lca(curves)})
    return panels.rows(rows, COLUMNS)


def matrix(stage: np.ndarray, step: np.ndarray, task: np.ndarray, value: np.ndarray, first_stage: int = 0, beta: int = 10,
           name: str = "scores") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(R [T, T], b [T], learning curves [T, beta + 1]) of the rows of one run, each argument [N]; NaN in a curve that was not measured.

    Raises:
      RowsError: fewer than two tasks, a score that is missing, or two of one task, stage and step.
    """
    ids = np.unique(task)
    if len(ids) < 2:
        raise RowsError(f"{name}: has {len(ids)} task; transfer needs at least two; measure each task after each stage")
    stages = [float(first_stage + i) for i in range(len(ids))]
    last = {s: step[stage == s].max(initial=-1) for s in stages}

    def cell(s: float, at: float, i: float, must: bool = True) -> float:
        found = value[(stage == s) & (step == at) & (task == i)]
        if len(found) > 1 or (must and len(found) == 0):
            raise RowsError(f"{name}: {len(found)} scores of task {i:g} in stage {s:g} at step {at:g}; must be one; measure every task at "
                            "stages, or say which rows with where")
        return float(found[0]) if len(found) else math.nan

    scores = np.array([[cell(s, last[s], i) for i in ids] for s in stages])
    start = np.array([cell(first_stage, 0, i) for i in ids])
    curves = np.array([[cell(s, b, i, must=False) for b in range(beta + 1)] for s, i in zip(stages, ids, strict=True)])
    return scores, start, curves


def _square(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, float)
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or len(scores) < 2:
        raise SpecError(f"scores: have the shape {scores.shape}; must be [T, T] with T of at least 2; give R[t, i], task i after task t")
    return scores


def _divisor(tasks: int, divisor: str) -> int:
    if divisor not in ("paper", "repo"):
        raise SpecError(f"divisor = {divisor!r}: must be paper (T - 1) or repo (T); choose one of these")
    return tasks - 1 if divisor == "paper" else tasks
