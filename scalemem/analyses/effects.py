"""What a memorization profile comes to: its effects in one row, how they follow the learning rate, and a larger model's from smaller ones'."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from scalemem.analyses import panel as panels
from scalemem.analyses import profile, roc
from scalemem.spec import OptimizerSpec, SpecError, from_json

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("n_params", "cohorts_count", "pre", "instantaneous", "instantaneous_late", "persistent", "residual", "recency", "quiet_fraction",
           "rate_pearson")
FORECAST = ("target_n_params", "predictor_n_params", "cells_count", "pearson", "scale_ratio", "copy_skill_fraction", "skill_fraction")


def analyse(tables: Mapping[str, pa.Table], *, outcome: str, table: str = "likelihood", where: str | None = None, sign: int = 1) -> pa.Table:
    """Mean effects of the profile of each size, in the outcome's unit.

    pre, instantaneous, persistent and residual: the mean of the cells (c < g - 1), (c = g), (c > g) and (c = the last > g);
    instantaneous_late: of the last quarter of the cohorts. recency: the mean residual of the last quarter less that of the first half.
    quiet_fraction: the pre cells with |t| < 2. rate_pearson: the correlation, over cohorts, of the instantaneous effect with the mean
    learning rate of the steps since the checkpoint before.

    Args:
      tables, outcome, table, where: as in `profile.analyse`; "runs" has the specs.
      sign: 1, or -1 for an outcome that is smaller where a sequence is better known.
    Returns:
      a row for each size; NaN for what has no cell, and for rate_pearson of a rate that does not vary.
    Raises:
      SpecError: runs of several schedules or numbers of steps, or another sign. What `profile.analyse` raises.

    Source: Lesci et al. 2024 (arXiv 2406.04327) for the kinds of effect.
    """
    if sign not in (-1, 1):
        raise SpecError(f"analysis.sign = {sign!r}: must be 1 or -1; write -1 where smaller is better known")
    optimizer, total = _schedule(tables["runs"])
    rows = []
    for key, part in panels.by(profile.analyse(tables, outcome=outcome, table=table, where=where), ["n_params"]):
        g, c, did, t = (panels.number(part, name) for name in ("cohort_step", "checkpoint_step", "did", "did_t_ratio"))
        did, kind = sign * did, np.array(part["kind"].to_pylist())
        now, end, before = kind == "instantaneous", kind == "residual", kind == "pre"
        looked, cohorts = [0, *sorted({int(x) for x in c} - {0})], np.unique(g)
        rates = [rate_fraction(optimizer, np.arange(max(x for x in looked if x < s), s), total).mean() for s in map(int, g[now])]
        late, early = g > np.quantile(cohorts, 0.75), g <= np.median(cohorts)
        rows.append({**key, "cohorts_count": len(cohorts), "pre": _mean(did[before]), "instantaneous": _mean(did[now]),
                     "instantaneous_late": _mean(did[now & late]), "persistent": _mean(did[c > g]), "residual": _mean(did[end]),
                     "recency": _mean(did[end & late]) - _mean(did[end & early]),
                     "quiet_fraction": _mean(np.abs(t[before & np.isfinite(t)]) < 2), "rate_pearson": roc.correlation(did[now], np.array(rates))})
    return panels.rows(rows, COLUMNS)


def _mean(x: np.ndarray) -> float:
    return float(np.mean(x)) if len(x) else math.nan


def _schedule(runs: pa.Table) -> tuple[OptimizerSpec, int]:
    """The optimizer, whose peak rate may differ, and the steps that all runs share."""
    found: dict[tuple[Any, ...], tuple[OptimizerSpec, int]] = {}
    for spec, steps in zip(runs["spec"].to_pylist(), runs["steps"].to_pylist(), strict=True):
        o = from_json(spec).stages[0].optimizer
        found[o.schedule, o.warmup_steps, o.decay_fraction, o.final_fraction, steps] = o, int(steps)
    if len(found) != 1:
        raise SpecError(f"runs: {len(found)} kinds of schedule and number of steps; must be 1 for effects; split them (analysis split, by schedule)")
    return next(iter(found.values()))


def rate_fraction(optimizer: OptimizerSpec, step: np.ndarray, total: int) -> np.ndarray:
    """The learning rate at steps 0 .. total - 1 over its peak: `optimizers.rate` without an accelerator.

    >>> rate_fraction(OptimizerSpec(peak_lr=1, decay_fraction=1.0), np.array([0, 5]), 10)
    array([1. , 0.5])
    """
    step, final, warmup = np.asarray(step, float), optimizer.final_fraction, min(optimizer.warmup_steps, total / 10)
    rise = np.minimum(1, (step + 1) / max(warmup, 1))
    if optimizer.schedule == "trapezoid":
        return rise * (final + (1 - final) * np.clip((total - step) / max(optimizer.decay_fraction * total, 1), 0, 1))
    if optimizer.schedule == "cosine":
        t = np.clip((step - warmup) / max(total - warmup, 1), 0, 1)
        return rise * (final + (1 - final) * (1 + np.cos(np.pi * t)) / 2)
    return rise


def forecast(tables: Mapping[str, pa.Table], *, outcome: str, table: str = "likelihood", where: str | None = None) -> pa.Table:
    """The profile of a larger size from those of two smaller ones, over their common cells from treatment on.

    With x the profile of the predictor (n parameters) and w that of the next smaller size (m), both measured on the same sequences,

        s = sum w x / sum w^2,    forecast = s^(log(N / n) / log(n / m)) x,

    so that the gain of a factor in size is taken to go on. skill = 1 - sum (y - forecast)^2 / sum (y - mean y)^2 with y the target's profile:
    above 0 is better than the target's own mean, known in hindsight. copy_skill: the same of x itself as the forecast.

    Args:
      tables, outcome, table, where: as in `profile.analyse`.
    Returns:
      a row for each target and each smaller size that has a smaller one; scale_ratio is s, pearson that of x and y. NaN skill where s is
      not positive, or the target's profile does not vary.
    Raises:
      as `profile.analyse`.

    Source: the question of prediction across sizes: Lesci et al. 2024 (arXiv 2406.04327); the forecast: derived.
    """
    made = profile.analyse(tables, outcome=outcome, table=table, where=where).to_pylist()
    cells: dict[int, dict[tuple[int, int], float]] = {}
    for row in made:
        if row["kind"] != "pre":
            cells.setdefault(row["n_params"], {})[row["cohort_step"], row["checkpoint_step"]] = row["did"]
    sizes, rows = sorted(cells), []
    for j in range(2, len(sizes)):
        for i in range(1, j):
            m, n, target = sizes[i - 1], sizes[i], sizes[j]
            common = sorted(cells[m].keys() & cells[n].keys() & cells[target].keys())
            w, x, y = (np.array([cells[size][cell] for cell in common]) for size in (m, n, target))
            s = float(w @ x / (w @ w)) if w @ w > 0 else math.nan
            grown = s ** (math.log(target / n) / math.log(n / m)) if s > 0 else math.nan
            rows.append({"target_n_params": target, "predictor_n_params": n, "cells_count": len(common), "pearson": roc.correlation(x, y),
                         "scale_ratio": s, "copy_skill_fraction": _skill(y, x), "skill_fraction": _skill(y, grown * x)})
    return panels.rows(rows, FORECAST)


def _skill(y: np.ndarray, guess: np.ndarray) -> float:
    around = float(np.sum((y - y.mean()) ** 2)) if len(y) else 0.0
    return 1 - float(np.sum((y - guess) ** 2)) / around if around > 0 else math.nan
