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


class Noise(NamedTuple):
    """What is known of the noise of n values: the sd of each, (n,) or a number, and the degrees of freedom of that estimate."""

    sd: np.ndarray | float
    dof: int


def noise_of_means(sds: np.ndarray, sizes: np.ndarray) -> Noise | None:
    """The noise of cell means (n,) from the sds and sizes of their cells, pooled: s_i^2 = s^2 / n_i. None where no cell has two rows."""
    dof = np.maximum(sizes - 1, 0)
    if not dof.sum():
        return None
    pooled = float(np.sum(np.where(dof > 0, sds, 0.0) ** 2 * dof)) / dof.sum()
    return Noise(np.sqrt(pooled / sizes), int(dof.sum()))


def noise_of_rows(values: np.ndarray, cells: np.ndarray) -> Noise | None:
    """The noise of single rows (n,): their pooled sd about the means of cells (n,), which number them. None without replicates."""
    sizes = np.bincount(cells)
    dof = len(values) - int(np.sum(sizes > 0))
    means = np.bincount(cells, values) / np.maximum(sizes, 1)
    return Noise(math.sqrt(float(np.sum((values - means[cells]) ** 2)) / dof), dof) if dof else None


def statistic(values: np.ndarray, take: str, interval: float, noise: Noise | None = None) -> Measured:
    """A statistic of n values, with its interval.

    mean has a t interval, median order statistics, share (of values that are 0 or 1) Clopper and Pearson's. An extreme T, which is min, max,
    max_abs = max |v| or spread = (max - min) / mean, has

        T +- |q - T|,  q the outer quantile of T(v_i + s_i t_i),  t_i = z_i sqrt(dof / chi^2_dof), z_i normal, chi^2 one for all

    where the noise s_i of the values is known: noise pushes an extreme outwards, redrawing it does so once more, and what that adds
    is allowed on both sides. min, max and max_abs also reach as far inwards as the bootstrap over the values does. Where the noise is not
    known there is the bootstrap alone, which reaches hardly further out than the value seen, and `method` says so. Draws are the same in
    each call.

    Args:
      values: (n,).
      take: mean, median, min, max, max_abs, spread or share.
      interval: probability of the interval.
      noise: of the values, in their unit.

    >>> statistic(np.array([1.0, 2.0, 3.0]), "mean", 0.9)[:4]
    (2.0, 0.314..., 3.685..., 3)
    """
    order, n = np.argsort(values), len(values)
    values = values[order]
    if n == 0:
        return missing(0, take, "no rows")
    if take == "mean":
        return _mean(values, interval)
    if take == "median":
        return _median(values, interval)
    if take == "share":
        odd = values[(values != 0) & (values != 1)]
        return proportion(int(values.sum()), n, interval) if not len(odd) else missing(n, take, f"a value of {odd[0]:g} is neither 0 nor 1")
    of = {"min": lambda v: v.min(-1), "max": lambda v: v.max(-1), "max_abs": lambda v: np.abs(v).max(-1),
          "spread": lambda v: np.ptp(v, -1) / v.mean(-1)}[take]
    value, rng, ends = float(of(values)), np.random.default_rng(0), ((1 - interval) / 2, (1 + interval) / 2)
    if noise is not None:
        sd = np.broadcast_to(noise.sd, n)[order] * np.sqrt(noise.dof / rng.chisquare(noise.dof, (RESAMPLES, 1)))
        reach = abs(float(np.quantile(of(values + sd * rng.standard_normal((RESAMPLES, n))), ends[take != "min"])) - value)
        method = f"{take} of {n} rows, redrawn with noise of {noise.dof} degrees of freedom"
        low, high = value - reach, value + reach
    else:
        method = f"{take}, bootstrap over {n} rows; their noise is unknown and not allowed for"
        low = high = value
    if n < 3 and (noise is None or n < 2):
        return missing(n, method, f"{n} rows: a bootstrap needs at least 3", value)
    if noise is None or (take != "spread" and n > 2):
        again = np.quantile(of(values[rng.integers(0, n, (RESAMPLES, n))]), ends)
        low, high = min(low, float(again[0])), max(high, float(again[1]))
    return Measured(value, max(low, 0.0) if take in ("max_abs", "spread") and value >= 0 else low, high, n, method)


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
