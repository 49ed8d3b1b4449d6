"""What a fit knows, as a mixture: one Student t (a linear law), draws (a nonlinear law), or one t per exponent (a law with a prior)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from scalemem.laws.base import Arrays, Law


@dataclass(frozen=True)
class Estimate:
    """A parameter: natural value and interval, unit, and "ok", "on bound: ..." or "not identified: ..." (then all three are NaN)."""

    value: float
    low: float
    high: float
    unit: str
    status: str = "ok"


@dataclass(frozen=True)
class Posterior:
    """Weights (K,), points (K, p) and covariances (K, p, p) of theta; noise of a run, misfit shared by runs of equal x, and their dof.

    `unseen` (u, p) are directions in theta about which the data say nothing: a prediction that depends on one is refused. `scale` is that of
    the loss, on which noise and misfit live; "": the law's own.
    """

    weights: np.ndarray
    points: np.ndarray
    covariances: np.ndarray
    noise_sd: float
    misfit_sd: float
    dof: float
    unseen: np.ndarray
    scale: str = ""

    def predict(self, law: Law, x: Arrays, growth: float | np.ndarray = 1.0) -> Predictive:
        """The distribution of a new run's y at m points: parameters + noise + misfit, whose variance is multiplied by `growth`."""
        law = replace(law, scale=self.scale) if self.scale not in ("", law.scale) else law
        x = {**x, "1": np.ones(len(next(iter(x.values()))) if x else 1)}
        mean = np.broadcast_to(law.predict(x, self.points), (len(self.points), len(x["1"])))
        slope = np.broadcast_to(law.gradient(x, self.points), (*mean.shape, len(law.names)))
        spread = np.einsum("kmp,kpq,kmq->km", slope, self.covariances, slope)
        sd = np.sqrt(np.maximum(spread, 0) + self.noise_sd**2 + self.misfit_sd**2 * growth)
        blind = np.abs(np.einsum("kmp,up->kmu", slope, self.unseen)).max(axis=(0, 2), initial=0) > 1e-9 * np.abs(mean).max(initial=1)
        return Predictive(law, self.weights, np.where(blind, math.nan, mean), np.maximum(sd, 1e-12 * (1 + np.abs(mean))), self.dof)

    def correlation(self, names: Sequence[str]) -> dict[str, dict[str, float]]:
        """The correlation matrix of theta, {parameter: {parameter: value}}; NaN for one that is not free to move."""
        off = self.points - self.weights @ self.points
        covariance = np.einsum("k,kpq->pq", self.weights, self.covariances) + (off * self.weights[:, None]).T @ off
        sd = np.sqrt(np.diag(covariance))
        still = sd <= 1e-14 * np.maximum(np.abs(self.weights @ self.points), 1e-300)
        with np.errstate(all="ignore"):
            matrix = np.clip(covariance / np.outer(sd, sd), -1, 1)
        matrix[still], matrix[:, still] = math.nan, math.nan
        return {k: dict(zip(names, map(float, row), strict=True)) for k, row in zip(names, matrix, strict=True)}


@dataclass(frozen=True)
class Predictive:
    """A mixture of Student t distributions on a law's scale at m points: weights (K,), mean and sd (K, m), dof one number or (K, 1)."""

    law: Law
    weights: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    dof: float | np.ndarray

    def cdf(self, y: np.ndarray) -> np.ndarray:
        """P(new y <= y)."""
        return self._cdf(self.law.on_scale(np.asarray(y, float)))

    @np.errstate(all="ignore")
    def _cdf(self, eta: np.ndarray) -> np.ndarray:
        from scipy.special import stdtr
        return self.weights @ stdtr(self.dof, (eta - self.mean) / self.sd)

    @np.errstate(all="ignore")
    def quantile(self, p: float) -> np.ndarray:
        """The p-quantile of y at each point: Newton's steps on the distribution, kept between the smallest and largest of a component."""
        from scipy.special import stdtrit
        each = self.mean + self.sd * stdtrit(self.dof, p)
        low, high = each.min(axis=0), each.max(axis=0)
        order = np.argsort(each, axis=0)
        middle = np.argmax(np.cumsum(self.weights[order], axis=0) >= 0.5, axis=0)
        found = np.take_along_axis(each, np.take_along_axis(order, middle[None], 0), 0)[0]
        before = np.full(found.shape, math.inf)
        for _ in range(400 if len(each) > 1 else 0):  # 5 to 10; more where components are points or differ by many orders of magnitude
            excess = self._cdf(found) - p
            low, high = np.where(excess < 0, found, low), np.where(excess < 0, high, found)
            if not np.any((np.abs(excess) > 1e-11) & (high - low > 1e-15 * np.maximum(np.abs(low), np.abs(high)))):
                break
            step = found - excess / np.exp(self._log_density(found))
            newton = (step >= low) & (step <= high) & (np.abs(excess) < before / 2)  # else on a stair: halve
            before = np.where(newton | ~np.isfinite(before), np.abs(excess), before)
            found = np.where(np.abs(excess) <= 1e-11, found, np.where(newton, step, low + (high - low) / 2))
        return self.law.off_scale(found)

    @np.errstate(all="ignore")
    def _log_density(self, eta: np.ndarray) -> np.ndarray:
        """The log density on the law's scale. A component that is a point adds to it there alone, and one that lies nowhere not at all."""
        from scipy.special import gammaln, logsumexp
        z = np.where(eta == self.mean, 0.0, (eta - self.mean) / self.sd)
        if np.isinf(self.dof).all():
            each = -z * z / 2 - 0.5 * math.log(2 * math.pi)
        else:
            half = self.dof / 2
            each = -(half + 0.5) * np.log1p(z * z / self.dof) + gammaln(half + 0.5) - gammaln(half) - 0.5 * np.log(self.dof * math.pi)
        each = each - np.log(self.sd) + np.log(self.weights)[:, None]
        return np.asarray(logsumexp(np.where(np.isnan(each), -math.inf, each), axis=0))

    def log_density(self, y: np.ndarray) -> np.ndarray:
        """log p(y) in y's own units (nats), at each point."""
        y = np.asarray(y, float)
        density = self._log_density(self.law.on_scale(y))
        return density - np.log(y) if self.law.scale == "log" else density


@dataclass(frozen=True)
class Result:
    """One group's fit: estimates, posterior, objective, starts, p-value of lack of fit (NaN: no replicates), how the intervals were made,
    and what the loss estimated beside the law."""

    estimates: dict[str, Estimate]
    posterior: Any
    objective: float
    tried: int
    agreeing: int
    lack_of_fit: float
    warnings: tuple[str, ...]
    interval_by: str = "posterior"
    nuisance: dict[str, float] = field(default_factory=dict)
