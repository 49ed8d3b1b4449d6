"""Cumulative weight decay: what share of the weights as they were, and of each later update, is left at a later step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from scalemem import tables as columns
from scalemem.analyses import panel as panels
from scalemem.spec import OptimizerSpec, RunSpec, SpecError, from_json
from scalemem.tables import RowsError

if TYPE_CHECKING:
    import pyarrow as pa

SCHEDULES = ("constant", "linear", "cosine", "trapezoid")


def rates(schedule: str, steps: int, peak_lr: float, warmup_steps: float = 0, final_fraction: float = 0.0, decay_fraction: float = 0.7) -> np.ndarray:
    """Learning rates of all steps of a schedule, float64 [steps]: those of `scalemem.optimizers.rate` without an accelerator, and linear.

    linear falls in equal steps from the peak, after the warm-up, to final_fraction of it at the end.

    Args:
      schedule: constant, linear, cosine or trapezoid.
      steps: of the stage.
      peak_lr, warmup_steps, final_fraction, decay_fraction: as in `OptimizerSpec`; a warm-up is at most a tenth of the steps.

    >>> rates("linear", 5, 1.0).round(2).tolist()
    [1.0, 0.8, 0.6, 0.4, 0.2]
    """
    if schedule not in SCHEDULES:
        raise SpecError(f"schedule = {schedule!r}: must be one of {', '.join(SCHEDULES)}; choose one of these")
    step = np.arange(steps, dtype=float)
    warmup = min(warmup_steps, steps / 10)
    rise, t = np.minimum(1.0, (step + 1) / max(warmup, 1)), np.clip((step - warmup) / max(steps - warmup, 1), 0, 1)
    if schedule == "trapezoid":
        left = np.clip((steps - step) / max(decay_fraction * steps, 1), 0, 1)
    else:
        left = {"constant": np.ones(steps), "linear": 1 - t, "cosine": (1 + np.cos(np.pi * t)) / 2}[schedule]
    fall = 1.0 if schedule == "constant" else final_fraction + (1 - final_fraction) * left
    return peak_lr * rise * fall


def weight_left(rate: np.ndarray, weight_decay: float) -> np.ndarray:
    """w(t, T) = prod_(i = t+1..T) (1 - rate_i lambda) of decoupled decay, for t = 0..T, [T + 1]: w(0, T) first, and 1 last.

    The weights after T steps are w(0, T) theta_0 - sum_t w(t, T) rate_t (direction of step t).

    Args:
      rate: [T], of steps 1..T.
      weight_decay: lambda, which the rate multiplies, as in AdamW.

    >>> weight_left(np.array([0.5, 0.5]), 1.0).tolist()
    [0.25, 0.5, 1.0]

    Source: Bordt et al. 2025 (arXiv 2410.03249), shared/literature/forgetting.md 3. It bounds what is left of a weight, not of a loss.
    """
    if weight_decay < 0 or (len(rate) and weight_decay * float(np.max(rate)) >= 1):
        raise SpecError(f"weight_decay = {weight_decay!r}: times the largest rate must be at least 0 and below 1; lower it")
    return np.exp(np.append(np.cumsum(np.log1p(-weight_decay * np.asarray(rate, float))[::-1])[::-1], 0.0))


def steps_until(share: float, weight_decay: float, mean_rate: float) -> int:
    """Steps after which at most `share` of a weight is left: the first whole number from log(1/share) / (lambda mean_rate) on.

    That so many are enough is a proposition: log(1 - x) <= -x, whatever the schedule with this mean.

    >>> steps_until(0.01, 0.1, 6e-4)
    76753

    Source: Bordt et al. 2025 (arXiv 2410.03249), shared/literature/forgetting.md 3.
    """
    if not (0 < share < 1 and weight_decay > 0 and mean_rate > 0):
        raise SpecError(f"share, weight_decay, mean_rate = {share!r}, {weight_decay!r}, {mean_rate!r}: share must be between 0 and 1, the others "
                        "positive; correct them")
    return math.ceil(math.log(1 / share) / (weight_decay * mean_rate))


def composition(rate: np.ndarray, weight_decay: float, parts: int = 10) -> np.ndarray:
    """Shares that equal parts of training have in the sum of updates left at its end, sum of w(t, T) rate_t over each, [parts]; they add to 1.

    >>> composition(np.array([0.5, 0.5]), 1.0, 2).round(3).tolist()
    [0.333, 0.667]
    """
    left = rate * weight_left(rate, weight_decay)[1:]
    edges = np.linspace(0, len(rate), parts + 1).astype(int)
    shares = np.array([left[a:b].sum() for a, b in itertools.pairwise(edges)])
    return shares / shares.sum()


def of_run(run: RunSpec) -> tuple[np.ndarray, np.ndarray]:
    """(log w(0, t) for t = 0..T over all steps of a run, the step at which each stage begins [stages])."""
    logs, begins = [np.zeros(1)], []
    for i, stage in enumerate(run.stages):
        if stage.trains != "all":
            raise RowsError(f"stages[{i}].trains = {stage.trains!r}: cumulative decay is of runs that train all weights; choose such runs with where")
        o: OptimizerSpec = stage.optimizer
        total = stage.exposures * -(-stage.data.n_items // stage.batch_size)
        rate = rates(o.schedule, total, o.peak_lr, o.warmup_steps, o.final_fraction, o.decay_fraction)
        begins.append(sum(map(len, logs)) - 1)
        logs.append(-np.diff(np.log(weight_left(rate, o.weight_decay))))
    return np.cumsum(np.concatenate(logs)), np.array(begins)


def analyse(tables: Mapping[str, pa.Table], *, table: str = "facts", since_stage: int = 1, since: str | None = None,
            where: str | None = None) -> pa.Table:
    """The rows of a table, and beside each what share of the weights, as they were at an earlier step, decay has left.

    Adds `weight_left_fraction` = w(t1, t2), t2 the row's step and t1 the first step of stage `since_stage`, or the row's column `since`; NaN
    where t2 is before t1.

    Args:
      tables: "runs" with its specs, and the table, with run_id, stage and stage_step.
      table, where: its name, and which rows.
      since_stage: at whose beginning all is left.
      since: column of steps, counted over all stages from 0, instead.
    Raises:
      SpecError: no such table, or a stage that a run has not. RowsError: a run of which not all weights are trained, or a step beyond its end.
    """
    import pyarrow as pa

    specs = dict(zip(tables["runs"]["run_id"].to_pylist(), tables["runs"]["spec"].to_pylist(), strict=True))
    found, made = panels.table_of(tables, table, where), []
    for key, part in panels.by(found, ["run_id"]):
        if key["run_id"] not in specs:
            raise RowsError(f"table {table!r}: run {key['run_id']} is not among the runs; leave its rows out with where")
        run = from_json(specs[key["run_id"]])
        log, begins = of_run(run)
        if since is None and since_stage >= len(begins):
            raise SpecError(f"analysis.since_stage = {since_stage}: must be below {len(begins)}, the stages of run {key['run_id']}; lower it")
        now = begins[columns.column(part, "stage").astype(int)] + columns.column(part, "stage_step").astype(int)
        then = np.full(len(now), begins[since_stage]) if since is None else columns.column(part, since).astype(int)
        if max(now.max(), then.max()) >= len(log):
            raise RowsError(f"table {table!r}, run {key['run_id']}: a step of {max(now.max(), then.max())}; the run has {len(log) - 1}; correct it")
        left = np.where(now >= then, np.exp(log[now] - log[then]), math.nan)
        made.append(part.append_column("weight_left_fraction", pa.array(left)))
    return pa.concat_tables(made)
