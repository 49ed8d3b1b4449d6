"""A fraction as a smooth surface over size and steps, continued beyond the data with a doubt that grows with the distance.

g(F(N, t)) = a + b u + c v + d u v + bends,   u = log t, v = log N, with two links g, each believed as much as the other:
logit, log F / (1 - F), under which a straight line is a Hill curve, whose tail is a power of t; and
cloglog, log(-log(1 - F)), under which it is a stretched exponential, 1 - F = exp(-(t / tau)^b).
For small F both are log F: which tail follows cannot be seen from the beginning of a curve, so the forecast is an even mixture.

A bend is an integrated Wiener process: slopes drift by a random walk, so a continuation by a factor e^h from where the data end is doubtful by
q^2 h^3 / 3 in variance. Every curve (a run) has its own offset and tilt, and every value an error of the same size in F. How strong each is, is
learned from all groups (seeds) together, under weak priors; the forecast of a group reads its own rows alone. Under either link it is a Gaussian
process, so its mean and variance are exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

EDGE = 1e-3  # fractions are cut there, and at 1 less it
# name: (median, spread in log) of the prior; sd of the slopes' drift over an e-fold of u and of v, of a curve's offset and tilt, of an error in F
PRIOR = {"bend_steps": (0.25, 0.7), "bend_size": (0.10, 0.7), "offset": (0.10, 1.0), "tilt": (0.05, 1.0), "error": (0.005, 1.0)}
INTERCEPT, SLOPE_STEPS, SLOPE_SIZE, TWIST = (0.0, 10.0), (1.0, 1.0), (0.0, 0.5), (0.0, 0.1)  # mean and sd


class Rows(NamedTuple):
    """Values of one group, or places to forecast."""

    size: np.ndarray  # float64 [n]
    steps: np.ndarray  # float64 [n]
    fraction: np.ndarray  # float64 [n]; NaN where it is asked for


@dataclass(frozen=True)
class Forecast:
    """Forecasts of n places, of what a new run would measure there: under each link, a normal of g(F)."""

    mean: np.ndarray  # [links, n]
    sd: np.ndarray  # [links, n]

    def at(self, quantile: float) -> np.ndarray:
        """A quantile of the fraction, [n], to 1e-6.

        >>> Forecast(np.array([[0.0], [0.0]]), np.array([[1.0], [1.0]])).at(0.5).round(3)  # between 1/2, of logit 0, and 1 - 1/e, of cloglog 0
        array([0.554])
        """
        from scipy.special import ndtr

        low, high = np.zeros(self.mean.shape[1]), np.ones(self.mean.shape[1])
        for _ in range(20):
            middle = (low + high) / 2
            below = np.mean([ndtr((g(middle) - m) / s) for g, m, s in zip(LINKS.values(), self.mean, self.sd, strict=True)], axis=0)
            low, high = np.where(below < quantile, middle, low), np.where(below < quantile, high, middle)
        return (low + high) / 2


def _cut(fraction: np.ndarray) -> np.ndarray:
    return np.clip(fraction, EDGE, 1 - EDGE)


def logit(fraction: np.ndarray) -> np.ndarray:
    """log F / (1 - F), F cut at EDGE and 1 - EDGE."""
    return np.log(_cut(fraction)) - np.log1p(-_cut(fraction))


def cloglog(fraction: np.ndarray) -> np.ndarray:
    """log(-log(1 - F)), F cut at EDGE and 1 - EDGE."""
    return np.log(-np.log1p(-_cut(fraction)))


LINKS = {"logit": logit, "cloglog": cloglog}


def _slope(link: str, fraction: np.ndarray) -> np.ndarray:
    """dg / dF."""
    f = _cut(fraction)
    return 1 / (f * (1 - f)) if link == "logit" else -1 / ((1 - f) * np.log1p(-f))


def _inverse(link: str, value: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return expit(value) if link == "logit" else -np.expm1(-np.exp(np.minimum(value, 30.0)))


def learn(groups: Sequence[Rows]) -> dict[str, dict[str, float]]:
    """Under each link, the strengths of bends, offsets, tilts and errors that make the rows of all groups likeliest, times their prior.

    Args:
      groups: each of some rows, in none of which the fraction is missing.
    """
    from scipy.optimize import minimize

    middle = np.array([math.log(median) for median, _ in PRIOR.values()])
    spread = np.array([width for _, width in PRIOR.values()])

    def named(z: np.ndarray) -> dict[str, float]:
        return dict(zip(PRIOR, np.exp(middle + spread * z).tolist(), strict=True))

    def best(link: str) -> dict[str, float]:
        found = minimize(lambda z: 0.5 * float(z @ z) - sum(_log_likelihood(link, rows, named(z)) for rows in groups), np.zeros(len(middle)),
                         method="L-BFGS-B", bounds=[(-4.0, 4.0)] * len(middle))
        return named(found.x)

    return {link: best(link) for link in LINKS}


def forecast(rows: Rows, places: Rows, strengths: dict[str, dict[str, float]]) -> Forecast:
    """What runs at other sizes and steps would measure, given the rows of a group.

    Args:
      rows: what is known; places: where to forecast (its fractions are not read); strengths: from `learn`.
    """
    found = [_one(link, rows, places, strengths[link]) for link in LINKS]
    return Forecast(*(np.stack(part) for part in zip(*found, strict=True)))


def _one(link: str, rows: Rows, places: Rows, s: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of g at the places, under one link."""
    centre = _centre(rows)
    factor, residual = _known(link, rows, centre, s)
    gain = np.linalg.solve(factor, _covariance(places, rows, centre, s).T)
    mean = _mean(places, centre) + gain.T @ np.linalg.solve(factor, residual)
    variance = np.maximum(np.diag(_covariance(places, places, centre, s)) - (gain**2).sum(0), 0)
    error = s["error"] * _slope(link, _inverse(link, mean))
    return mean, np.sqrt(variance + np.minimum(error, 1.0) ** 2)


def _known(link: str, rows: Rows, centre: tuple[float, float], s: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """The Cholesky factor of the covariance of known values, and these less their prior mean."""
    error = s["error"] * _slope(link, rows.fraction)
    return np.linalg.cholesky(_covariance(rows, rows, centre, s) + np.diag(error**2)), LINKS[link](rows.fraction) - _mean(rows, centre)


def _centre(rows: Rows) -> tuple[float, float]:
    return float(np.log(rows.steps).mean()), float(np.log(rows.size).mean())


def _mean(rows: Rows, centre: tuple[float, float]) -> np.ndarray:
    return SLOPE_STEPS[0] * (np.log(rows.steps) - centre[0])


def _bend(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Covariance of an integrated Wiener process of intensity 1 that runs both ways from 0."""
    a, b = a[:, None], b[None]
    low = np.minimum(np.abs(a), np.abs(b))
    return np.where(a * b > 0, low**3 / 3 + low**2 * np.abs(np.abs(a) - np.abs(b)) / 2, 0.0)


def _covariance(a: Rows, b: Rows, centre: tuple[float, float], s: dict[str, float]) -> np.ndarray:
    """Of the surface and of a curve's own deviation; a row of `a` and one of `b` of the same size are of the same run."""
    (u, v), (x, y) = ((np.log(r.steps) - centre[0], np.log(r.size) - centre[1]) for r in (a, b))
    uu, vv = np.outer(u, x), np.outer(v, y)
    same = np.equal.outer(a.size, b.size)
    return (INTERCEPT[1] ** 2 + SLOPE_STEPS[1] ** 2 * uu + SLOPE_SIZE[1] ** 2 * vv + TWIST[1] ** 2 * uu * vv
            + s["bend_steps"] ** 2 * _bend(u, x) + s["bend_size"] ** 2 * _bend(v, y) + same * (s["offset"] ** 2 + s["tilt"] ** 2 * uu))


def _log_likelihood(link: str, rows: Rows, s: dict[str, float]) -> float:
    factor, residual = _known(link, rows, _centre(rows), s)
    white = np.linalg.solve(factor, residual)
    return -0.5 * float(white @ white) - float(np.log(np.diag(factor)).sum())
