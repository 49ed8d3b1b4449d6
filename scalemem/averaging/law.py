"""The average as a law that `fit` can use: what it reports of the rows, and the law that other code asks about."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from scalemem import laws
from scalemem.averaging.mixture import Average, average
from scalemem.laws.base import Law, Parameter
from scalemem.laws.posterior import Estimate, Predictive, Result
from scalemem.laws.sample import Sample
from scalemem.tables import TooFewRows

AUTO = "auto"


def law_of(name: str | Law, predictors: Iterable[str] = ()) -> Law:
    """The law of a name, where "auto" is the average over laws of whatever predictors it is given.

    >>> law_of("auto", ["n_params"]).formula
    'an average over laws of n_params'
    """
    if name != AUTO:
        return laws.get(name)
    names = tuple(predictors) or ("x",)
    slopes = tuple(Parameter(f"slope_{k}" if len(names) > 1 else "slope", "1") for k in names)
    return Law(name=AUTO, formula=f"an average over laws of {' and '.join(names)}", function=lambda x, p: np.full(len(x["1"]), math.nan),
               predictors=names, parameters=(Parameter("level", "{y}"), *slopes, Parameter("asymptote", "{y}")), scale="linear",
               asymptote="a mixture; not identified where half of the weight is on laws without one",
               unidentifiable="fewer than three distinct values of x", source="scalemem.averaging")


def estimate(law: Law, s: Sample, interval: float) -> Result:
    """The average of one group: its value and logarithmic slopes at the largest fitted x, and its asymptote.

    Raises TooFewRows for fewer than three distinct x.
    """
    if len(s.blocks) < 3:
        raise TooFewRows(f"law {AUTO}: {len(s)} rows with {len(s.blocks)} distinct x: needs at least 3 distinct x; add runs")
    flat = [k for k in law.predictors if len(np.unique(s.x[k])) < 2]
    if flat:
        raise TooFewRows(f"law {AUTO}: {flat[0]} has one value, {s.x[flat[0]][0]:g}: needs at least 2; leave that predictor out or add runs")
    found = average({k: s.x[k] for k in law.predictors}, s.y)
    estimates, ends = {}, ((1 - interval) / 2, 0.5, (1 + interval) / 2)
    z = np.zeros((1, len(law.predictors)))
    level, spread = found.curves(z)
    estimates["level"] = _quantiles(found, found.weights, level[:, 0], spread[:, 0], ends)
    for k, parameter in enumerate(law.parameters[1:-1]):
        step = np.zeros_like(z)
        step[0, k] = -1e-4
        before = found.curves(step)[0]
        estimates[parameter.name] = _quantiles(found, found.weights, ((level - before) / 1e-4 / level)[:, 0], np.zeros(len(level)), ends)
    weights, mean, variance = found.asymptote()
    if weights.sum() < 0.5:
        status = f"not identified: laws without an asymptote have {1 - weights.sum():.0%} of the weight"
        estimates["asymptote"] = Estimate(math.nan, math.nan, math.nan, "", status)
    else:
        estimates["asymptote"] = _quantiles(found, weights / weights.sum(), mean, variance, ends)
    curve = found.weights @ found.predict(s.x).mean
    size = s.y if found.rows.relative else found.rows.level
    notes = [f"{len(s)} rows were averaged over {len(found.rows.y)} steps of log x"] * (len(found.rows.y) < len(s) - s.copies())
    return Result(estimates, found, float(np.sum(((s.y - curve) / size) ** 2)), sum(f.members for f in found.families), len(found.weights),
                  math.nan, tuple(notes), interval_by=f"Bayesian average over {len(found.families)} families of curves")


def _quantiles(found: Average, weights: np.ndarray, mean: np.ndarray, variance: np.ndarray, ends: tuple[float, float, float]) -> Estimate:
    """Quantiles of a mixture of Student t distributions with the components' degrees of freedom."""
    dof = found.dof if len(weights) == len(found.dof) else np.full(len(weights), float(np.median(found.dof)))
    sd = np.maximum(np.sqrt(variance), 1e-9 * max(float(np.abs(mean).max()), 1e-300))
    mixture = Predictive(law_of("constant"), weights, mean[:, None], sd[:, None], dof[:, None])
    low, middle, high = (float(mixture.quantile(p)[0]) for p in ends)
    if not np.isfinite([low, middle, high]).all():
        return Estimate(math.nan, math.nan, math.nan, "", "not identified: its interval is not finite")
    return Estimate(middle, low, high, "")
