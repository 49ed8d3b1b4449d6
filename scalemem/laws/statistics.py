"""Plain statistics with their intervals: the quantities of claims that are not parameters of a law."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000


class Measured(NamedTuple):
    """A value, its interval (NaN where there is none, with a reason), from how many rows, and how the interval was made."""

    value: float
    low: float
    high: float
    n: int
    method: str
    reason: str = ""


def missing(n: int, method: str, reason: str, value: float = math.nan) -> Measured:
    """A quantity without an interval, and why."""
    return Measured(value, math.nan, math.nan, n, method, reason)


def statistic(values: np.ndarray, take: str, interval: float) -> Measured:
    """mean (t interval), median (order statistics), min, max, max_abs or spread = (max - min) / mean (bootstrap over rows).

    >>> statistic(np.array([1.0, 2.0, 3.0]), "mean", 0.9)[:4]
    (2.0, 0.314..., 3.685..., 3)
    """
    values, n = np.sort(values), len(values)
    if n == 0:
        return missing(0, take, "no rows")
    if take == "mean":
        return _mean(values, interval)
    if take == "median":
        return _median(values, interval)
    of = {"min": lambda v: v.min(-1), "max": lambda v: v.max(-1), "max_abs": lambda v: np.abs(v).max(-1),
          "spread": lambda v: np.ptp(v, -1) / v.mean(-1)}[take]
    value, method = float(of(values)), f"{take}, bootstrap over {n} rows"
    if n < 3:
        return missing(n, method, f"{n} rows: a bootstrap needs at least 3", value)
    again = of(values[np.random.default_rng(0).integers(0, n, (RESAMPLES, n))])
    low, high = np.quantile(again, ((1 - interval) / 2, (1 + interval) / 2))
    return Measured(value, float(min(low, value)), float(max(high, value)), n, method)


def _mean(values: np.ndarray, interval: float) -> Measured:
    from scipy.special import stdtrit
    n, value, method = len(values), float(values.mean()), f"mean, t interval over {len(values)} rows"
    if n < 2:
        return missing(n, method, "1 row has no interval", value)
    half = float(stdtrit(n - 1, (1 + interval) / 2) * values.std(ddof=1)) / math.sqrt(n)
    return Measured(value, value - half, value + half, n, method)


def _median(values: np.ndarray, interval: float) -> Measured:
    """The narrowest symmetric pair of order statistics whose binomial coverage is at least `interval`."""
    from scipy.special import bdtr
    n, value, method = len(values), float(np.median(values)), f"median, order statistics of {len(values)} rows"
    ranks = [k for k in range((n + 1) // 2) if 1 - 2 * float(bdtr(k, n, 0.5)) >= interval]
    if not ranks:
        return missing(n, method, f"{n} rows are too few for this interval", value)
    return Measured(value, float(values[ranks[-1]]), float(values[n - 1 - ranks[-1]]), n, method)


def ratio(numerator: np.ndarray, denominator: np.ndarray, interval: float) -> Measured:
    """The geometric mean of pairwise ratios, by a t interval on their logs."""
    n, method = len(numerator), f"t interval over {len(numerator)} pairs, of the log ratio"
    if n == 0:
        return missing(0, method, "no pairs")
    logs = _mean(np.log(numerator / denominator), interval)
    value, low, high = (math.exp(v) for v in logs[:3])
    return Measured(value, low, high, n, method, logs.reason and "1 pair has no interval")


def proportion(hits: int, n: int, interval: float) -> Measured:
    """hits / n with the Clopper-Pearson interval.

    >>> [round(v, 3) for v in proportion(14, 14, 0.9)[:3]]
    [1.0, 0.807, 1.0]
    """
    from scipy.special import betaincinv
    method, tail = f"Clopper-Pearson, {hits} of {n}", (1 - interval) / 2
    if n == 0:
        return missing(0, method, "no rows")
    low = float(betaincinv(hits, n - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, n - hits, 1 - tail)) if hits < n else 1.0
    return Measured(hits / n, low, high, n, method)


def sd_ratio(first: tuple[float, int], second: tuple[float, int], interval: float) -> Measured:
    """Ratio of two residual sds from (sum of squares, degrees of freedom), by F as if independent (too wide if they are not)."""
    from scipy.special import fdtri
    (s1, v1), (s2, v2), n = first, second, max(first[1], second[1])
    method = f"residual sd ratio, F({v1}, {v2})"
    if v1 < 1 or v2 < 1 or s2 <= 0:
        return missing(n, method, "no residual degrees of freedom, or no residuals")
    value = math.sqrt(s1 / v1 / (s2 / v2))
    low, high = (value / math.sqrt(float(fdtri(v1, v2, q))) for q in ((1 + interval) / 2, (1 - interval) / 2))
    return Measured(value, low, high, n, method)
