"""What a loss is minimised on: one group's rows under one loss, its optimum from many starts, and how far a rise of it counts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from scalemem.laws.base import Law
from scalemem.laws.dual import slopes
from scalemem.laws.losses import Loss
from scalemem.laws.refit import Refits, Rows, refit
from scalemem.laws.sample import Sample


@dataclass(frozen=True)
class Problem:
    """The deviance D(theta) = 2 sum rho / factor of a sample; squared error may have covariance I + ratio Z Z'."""

    law: Law
    s: Sample
    loss: Loss
    ratio: float = 0.0
    nuisance: float = 0.0

    @property
    def rows(self) -> Rows:
        """What `refit` needs."""
        whiten = (lambda r: self.s.whiten(r, self.ratio)) if self.ratio else None
        return Rows(self.law, self.s.x, self.loss.target(self.s.eta, self.s.trials), self.loss, whiten)

    @property
    def level(self) -> np.ndarray:
        """y (n,), or the share of successes drawn a little towards a half: what starts are made from."""
        return self.s.y if self.s.trials is None else (self.s.y + 0.5) / (self.s.trials + 1)

    def deviance(self, theta: np.ndarray) -> np.ndarray:
        """D at theta (B, p), the nuisance number held."""
        return 2 * self.rows.cost(theta, self.nuisance)

    def curvature(self, theta: np.ndarray) -> np.ndarray:
        """The curvature of rho in the law's value on each row (n,); of Huber's loss its mean, smoothed, as it is all or nothing."""
        rows, eta = self.rows, self.law.predict(self.s.x, theta[None])
        nuisance, n = np.array([self.nuisance]), len(self.s)
        eta = np.broadcast_to(eta, (1, n))
        with np.errstate(all="ignore"):
            if self.loss.kind != "huber":
                return self.loss.terms(rows.target, eta, nuisance)[2][0]
            h = max(1.4826 * float(np.median(np.abs(eta - self.s.eta))) * n**-0.2, 1e-9 * float(np.abs(self.s.eta).max()), 1e-12)
            up, down = (float(np.mean(self.loss.terms(rows.target, eta + v, nuisance)[1])) for v in (h, -h))
        return np.full(n, max((up - down) / (2 * h), 1e-300))

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        """Rows of sqrt(curvature) d f / d theta, (n, p), whitened: J'J is the curvature of D / 2."""
        with np.errstate(all="ignore"):
            jacobian = slopes(self.law, self.s.x, theta[None])[1][0]
        if self.ratio:
            jacobian = self.s.whiten(jacobian, self.ratio)
        return np.nan_to_num((jacobian * np.sqrt(self.curvature(theta))).T)

    def spread(self, theta: np.ndarray) -> float:
        """What D is measured in: 1 for a likelihood, else n / (n - p) sum rho'^2 / sum rho'' (squared error: the residual variance)."""
        if self.loss.likelihood:
            return 1.0
        n, p = len(self.s), len(theta)
        eta = np.broadcast_to(self.law.predict(self.s.x, theta[None]), (1, n))
        slope = self.loss.terms(self.rows.target, eta, np.array([self.nuisance]))[1][0]
        return float(n / (n - p) * np.sum(slope**2) / np.sum(self.curvature(theta)))

    def minimise(self, theta: np.ndarray, free: np.ndarray | None = None, enough: float = 0.0) -> Refits:
        """From theta (B, p), near an optimum, over the free parameters (B, p), the nuisance number held; D is good to about `enough`."""
        known = np.full(len(theta), self.nuisance) if self.loss.nuisance else None
        return refit(self.rows, theta, free=free, near=True, nuisance=known, enough=enough / 2)

    def search(self, starts: np.ndarray) -> Refits:
        """From starts (B, p) anywhere, the nuisance number estimated along."""
        return refit(self.rows, starts)

    def at(self, nuisance: float) -> Problem:
        """The same with another nuisance number."""
        return replace(self, nuisance=nuisance)
