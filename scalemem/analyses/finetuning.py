"""What fine-tuning learns and what it forgets, step by step: lines between the two, their order in steps and rank, and Kalajdzievski's law."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scalemem import laws
from scalemem import tables as columns
from scalemem.analyses import panel as panels
from scalemem.analyses.rates import straight
from scalemem.laws.least_squares import SQUARED
from scalemem.laws.problem import Problem
from scalemem.laws.sample import Sample
from scalemem.spec import SpecError, from_json
from scalemem.tables import RowsError

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("run_id", "seed", "n_params", "trains", "rank", "trained_params", "stage_step", "finetuning_loss_nats", "old_loss_nats",
           "base_entropy_nats", "forgetting_nats", "kl_nats")


def analyse(tables: Mapping[str, pa.Table], *, stage: int = 1, new: str = "stage1", old: str = "stage0", after: int = 0, below_nats: float = 0.0,
            where: str | None = None) -> pa.Table:
    """Fine-tuning loss and forgetting at every step of a stage at which the measures `facts` and `drift` were taken.

    Args:
      tables: "runs" with their specs, "curves" with what drift measured, and "facts".
      stage: that fine-tunes.
      new, old: sources of the facts that it learns, and of those learned before.
      after: steps that are left out at the start of the stage, such as its warm-up; step 0 always is.
      below_nats: rows of a larger fine-tuning loss are left out, such as those above the loss of a guess; 0: none.
      where: which of the rows that are left.
    Returns:
      a row for each run and step: trains, rank and trained_params of the stage; finetuning_loss_nats and old_loss_nats, mean -log p of the new and
      the old facts' objects, a token; base_entropy_nats, forgetting_nats and kl_nats as `measure.drift` defines them.
    Raises:
      RowsError: no such step. SpecError: no such table.

    Source: L_ft and L_f of Kalajdzievski 2024 (arXiv 2401.05605), shared/literature/forgetting.md 1.1, with its advice on what to leave out.
    """
    runs = panels.runs(tables)
    steps = f"stage == {stage} and stage_step > {after}"
    drift = {(row["run_id"], row["stage_step"]): row for row in panels.table_of(tables, "curves", steps).to_pylist()}
    facts = panels.table_of(tables, "facts", f"{steps} and source in ['{new}', '{old}']")
    means = _means(facts)
    rows = []
    for (run_id, step), found in sorted(drift.items()):
        if run_id not in runs or (run_id, step, new) not in means or found.get("forgetting_nats") is None:
            continue
        spec = from_json(runs[run_id]["spec"])
        of = spec.stages[stage]
        learned, kept = (means.get((run_id, step, source), math.nan) / of.data.object_tokens for source in (new, old))
        if below_nats and learned > below_nats:
            continue
        rows.append({"run_id": run_id, "seed": spec.seed, "n_params": runs[run_id]["n_params"], "trains": of.trains, "rank": of.rank,
                     "trained_params": runs[run_id][f"stage{stage}_trained_params"], "stage_step": int(step), "finetuning_loss_nats": learned,
                     "old_loss_nats": kept, **{name: found[name] for name in ("base_entropy_nats", "forgetting_nats", "kl_nats")}})
    if not rows:
        raise RowsError(f"finetuning: no step of stage {stage} after step {after} has both facts of {new!r} and drift; probe both at log")
    found = columns.where(panels.rows(rows, COLUMNS), where)[0]
    if found.num_rows == 0:
        raise RowsError(f"finetuning: no row satisfies where = {where!r}; loosen it")
    return found


def _means(facts: pa.Table) -> dict[tuple[str, int, str], float]:
    """Mean -log p by run, step and source."""
    grouped = facts.group_by(["run_id", "stage_step", "source"]).aggregate([("memorization_nats", "mean")])
    return {(row["run_id"], row["stage_step"], row["source"]): row["memorization_nats_mean"] for row in grouped.to_pylist()}


def lines(tables: Mapping[str, pa.Table], *, y: str = "forgetting_nats", by: Sequence[str] = ("seed",), options: Mapping[str, Any]) -> pa.Table:
    """Law (a), a straight line of forgetting against fine-tuning loss: its slope and R^2, of the rows of each combination of `by`.

    Args:
      tables, options: of `analyse`.
      y: forgetting_nats or kl_nats, which differ by the base's entropy.
      by: columns of `analyse`; what they leave together is pooled.
    Returns:
      a row a combination: points_count, slope_ratio and explained_fraction, NaN of fewer than three points.
    """
    found = analyse(tables, **options)
    rows = []
    for key, part in panels.by(found, list(by)):
        slope, explained = straight(columns.column(part, "finetuning_loss_nats"), columns.column(part, y))
        rows.append({**key, "points_count": part.num_rows, "slope_ratio": slope, "explained_fraction": explained})
    return panels.rows(rows, [*by, "points_count", "slope_ratio", "explained_fraction"])


def order(tables: Mapping[str, pa.Table], *, y: str = "forgetting_nats", options: Mapping[str, Any]) -> pa.Table:
    """Whether forgetting rises with steps and with rank.

    Args:
      tables, options: of `analyse`, which must leave one run a seed and rank.
      y: forgetting_nats or kl_nats.
    Returns:
      a row for each seed and rank: steps_spearman_ratio, Spearman's correlation of y with the step; and rises_fraction, at which share of the steps
      y is at least that of the next lower rank, NaN for the lowest.
    """
    rows = []
    for seed, runs in _runs(analyse(tables, **options), y):
        below: dict[int, float] | None = None
        for run in runs:
            now = dict(zip(run["step"], run["y"], strict=True))
            same = [now[s] >= below[s] for s in now if s in below] if below is not None else []
            rows.append({"seed": seed, "rank": run["rank"], "trained_params": run["trained_params"], "steps_count": len(now),
                         "steps_spearman_ratio": spearman(np.array(run["step"]), np.array(run["y"])),
                         "rises_fraction": float(np.mean(same)) if same else math.nan})
            below = now
    return panels.rows(rows, ("seed", "rank", "trained_params", "steps_count", "steps_spearman_ratio", "rises_fraction"))


def matched(tables: Mapping[str, pa.Table], *, y: str = "forgetting_nats", levels: int = 5, options: Mapping[str, Any]) -> pa.Table:
    """Forgetting of all ranks at the same fine-tuning loss, which is where each would be if it had been stopped early.

    Each run's y is taken where its fine-tuning loss first reaches a level, on the line between two measurements. Levels are evenly spaced within what
    all runs of a seed have passed.

    Args:
      tables, options: of `analyse`, which must leave one run a seed and rank.
      y: forgetting_nats or kl_nats.
      levels: how many.
    Returns:
      a row for each seed and level: level_nats; mean_nats, lowest_nats and highest_nats of y over ranks, spread_fraction = (highest - lowest) / mean;
      and ranks_count. A seed whose runs share no level has none.
    Raises:
      RowsError: no seed has any.
    """
    rows = []
    for seed, runs in _runs(analyse(tables, **options), y):
        paths = [(np.minimum.accumulate(np.array(run["x"])), np.array(run["y"])) for run in runs]
        top, bottom = min(x[0] for x, _ in paths), max(x[-1] for x, _ in paths)
        for level in np.linspace(top, bottom, levels + 2)[1:-1] if top > bottom and len(paths) > 1 else ():
            at = np.array([reached(x, v, level) for x, v in paths])
            rows.append({"seed": seed, "level_nats": float(level), "mean_nats": float(at.mean()), "lowest_nats": float(at.min()),
                         "highest_nats": float(at.max()), "spread_fraction": float(np.ptp(at) / at.mean()), "ranks_count": len(at)})
    if not rows:
        raise RowsError("finetuning: no seed has two ranks that pass the same fine-tuning loss; train longer, or measure more steps")
    return panels.rows(rows, ("seed", "level_nats", "mean_nats", "lowest_nats", "highest_nats", "spread_fraction", "ranks_count"))


def forecast(tables: Mapping[str, pa.Table], *, y: str = "forgetting_nats", largest: int = 8, fraction: float = 0.6,
             options: Mapping[str, Any]) -> pa.Table:
    """Law (c), fitted to low ranks and early steps of each seed, against the ranks above and the steps beyond.

    Args:
      tables, options: of `analyse`, which must leave one run a seed and rank.
      y: forgetting_nats, or another positive column of it.
      largest: rank up to which runs are known.
      fraction: share of the steps up to which they are known.
    Returns:
      a row for each seed and unknown point: rank, trained_params, stage_step, actual_nats, forecast_nats, error_fraction =
      |forecast / actual - 1|, and persistence_error_fraction, that of the last value known of the same rank, or of the largest known rank.
    Raises:
      SpecError: fraction outside (0, 1). RowsError: too few points are known, or none is left to forecast.

    Source: law (c) of Kalajdzievski 2024 (arXiv 2401.05605); what is held out: shared/literature/forgetting.md 1.1. Its parameters are not identified
    (`laws.forgetting`), its curve is.
    """
    if not 0 < fraction < 1:
        raise SpecError(f"analysis.fraction = {fraction!r}: must be between 0 and 1; write 0.6")
    rows, law = [], laws.get("forgetting_kalajdzievski")
    for seed, runs in _runs(analyse(tables, **options), y):
        size, step, rank, value = (np.array([v for run in runs for v in run_values(run)], float) for run_values in (
            lambda r: [r["trained_params"]] * len(r["step"]), lambda r: r["step"], lambda r: [r["rank"]] * len(r["step"]), lambda r: r["y"]))
        known = (rank <= largest) & (step <= fraction * step.max())
        if known.sum() <= len(law.names) or known.all():
            raise RowsError(f"finetuning: seed {seed} has {int(known.sum())} points of rank {largest} and below in the first {fraction:.0%} of its "
                            f"steps, and {int((~known).sum())} others; the law needs {len(law.names) + 1} and one to forecast; measure more steps")
        made = law.off_scale(law.predict({"n_finetuned": size, "steps": step, "1": np.ones_like(step)},
                                         best_theta(law, {"n_finetuned": size[known], "steps": step[known]}, value[known])))
        for i in np.flatnonzero(~known):
            like = known & (rank == min(rank[i], rank[known].max()))
            last = value[like][np.argmax(step[like])]
            rows.append({"seed": seed, "rank": int(rank[i]), "trained_params": int(size[i]), "stage_step": int(step[i]),
                         "actual_nats": float(value[i]), "forecast_nats": float(made[i]), "error_fraction": float(abs(made[i] / value[i] - 1)),
                         "persistence_error_fraction": float(abs(last / value[i] - 1))})
    return panels.rows(rows, ("seed", "rank", "trained_params", "stage_step", "actual_nats", "forecast_nats", "error_fraction",
                              "persistence_error_fraction"))


def best_theta(law: laws.Law, x: Mapping[str, np.ndarray], y: np.ndarray) -> np.ndarray:
    """The least-squares parameters of a law, also where they are not identified: what its curve needs."""
    problem = Problem(law, Sample.of(law, x, y), SQUARED)
    ends = problem.search(np.array(law.starts(problem.s.x, problem.s.y)).reshape(-1, len(law.names)))
    return ends.theta[int(np.nanargmin(ends.cost))]


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation, equal values sharing their mean rank; NaN where one does not vary.

    >>> round(spearman(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 4.0])), 3)
    0.8
    """
    a, b = (_ranks(v) for v in (x, y))
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else math.nan


def reached(x: np.ndarray, y: np.ndarray, level: float) -> float:
    """y where the falling x [N] first is at `level`, on the line between two points.

    >>> reached(np.array([3.0, 2.0, 2.0, 1.0]), np.array([0.0, 1.0, 5.0, 7.0]), 2.5)
    0.5
    """
    i = int(np.argmax(x <= level))
    if i == 0 or x[i - 1] == x[i]:
        return float(y[i])
    share = (x[i - 1] - level) / (x[i - 1] - x[i])
    return float(y[i - 1] + share * (y[i] - y[i - 1]))


def _ranks(v: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(v, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _runs(found: pa.Table, y: str) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(seed, its runs by number of trained parameters: rank, trained_params, step, x = fine-tuning loss, y)."""
    for key, part in panels.by(found, ["seed"]):
        runs = []
        for of, rows in panels.by(part, ["trained_params", "rank", "run_id"]):
            at = np.argsort(columns.column(rows, "stage_step"))
            step, x, value = (columns.column(rows, name)[at].tolist() for name in ("stage_step", "finetuning_loss_nats", y))
            if runs and runs[-1]["trained_params"] == of["trained_params"]:
                raise RowsError(f"finetuning: seed {key['seed']} has two runs of {of['trained_params']} trained parameters; say which with where")
            runs.append({"rank": of["rank"], "trained_params": of["trained_params"], "step": step, "x": x, "y": value})
        yield key["seed"], runs
