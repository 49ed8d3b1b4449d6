"""The average itself: weights of all curves and misfits given the rows, and the mixture that they predict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from scalemem.averaging.rows import Rows
from scalemem.averaging.search import Search, combine
from scalemem.averaging.settings import SETTINGS, Settings
from scalemem.averaging.shapes import Family, build, families
from scalemem.averaging.weighing import weigh
from scalemem.laws.base import Law
from scalemem.laws.posterior import Predictive

KEPT, MASS = 400, 0.999  # components that are kept: the heaviest, until they hold this much


def _scale(low: float) -> Law:
    """Predictions are mixtures on y itself; the law only says so, and keeps positive what was positive."""
    return Law(name="auto", formula="an average over families of curves", function=lambda x, p: x["1"], predictors=(), parameters=(),
               scale="linear", limits=(low, math.inf))


_ANY, _POSITIVE = _scale(-math.inf), _scale(0.0)


@dataclass(frozen=True)
class Average:
    """Weighted components (K): family, member, misfit, coefficients (K, q), covariances (K, q, q), noise variance,
    degrees of freedom."""

    rows: Rows
    settings: Settings
    families: tuple[Family, ...]
    weights: np.ndarray
    family: np.ndarray
    member: np.ndarray
    misfit: np.ndarray
    beta: np.ndarray
    covariance: np.ndarray
    noise: np.ndarray
    dof: np.ndarray

    def correlation(self, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
        """None: what is reported are not the parameters of one law."""
        return {}

    def shares(self) -> dict[str, float]:
        """The weight of each family, the heaviest first; none below a thousandth."""
        each = np.bincount(self.family, self.weights, len(self.families))
        return {self.families[i].name: float(each[i]) for i in np.argsort(-each, kind="stable") if each[i] >= 1e-3}

    @np.errstate(all="ignore")
    def curves(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each component at points z (m, d), its change beyond the frontier damped: mean and variance of the curve, (K, m)."""
        mean, variance = np.zeros((len(self.weights), len(z))), np.zeros((len(self.weights), len(z)))
        damping = np.array([m.damping for m in self.rows.misfits(self.settings)])[self.misfit]
        for i, f in enumerate(self.families):
            at = np.flatnonzero(self.family == i)
            if not len(at):
                continue
            picked, index = np.unique(self.member[at], return_inverse=True)
            near = build(f.name, f.points[picked], self.rows.far, self.settings)
            h = np.moveaxis(near.columns(z)[..., index], -1, 0)  # (K, q, m)
            q, doubt = h.shape[1], 0.0
            if damping[at].any():
                frontier = np.moveaxis(near.columns(np.minimum(z, 0.0))[..., index], -1, 0)
                taken = damping[at][:, None, None] * (h - frontier)
                doubt = self.settings.doubt[self.rows.rising] * np.einsum("kqm,kq->km", taken, self.beta[at, :q])
                h = h if self.rows.rising else h - taken
            mean[at] = np.einsum("kqm,kq->km", h, self.beta[at, :q])
            variance[at] = np.einsum("kqm,kqp,kpm->km", h, self.covariance[at, :q, :q], h) + doubt**2
        return mean, np.maximum(variance, 0.0)

    @np.errstate(all="ignore")
    def predict(self, x: Mapping[str, np.ndarray]) -> Predictive:
        """The distribution of a new run's y at m points {predictor: (m,)}: curve + misfit + noise; NaN where they exceed all numbers.

        Among the rows the misfit is the one that they show: a curve that runs below early rows is lifted to them.
        """
        z = self.rows.below(x)
        mean, variance = self.curves(z)
        growth = np.stack([m.beyond(z, self.settings.forward) for m in self.rows.misfits(self.settings)])[self.misfit]
        within = np.all(z <= 0, axis=1)
        if within.any():
            mean[:, within], variance[:, within], growth[:, within] = self._among(z[within], mean[:, within], variance[:, within],
                                                                                  growth[:, within])
        size = mean if self.rows.relative else self.rows.level
        sd = np.sqrt(variance + self.noise[:, None] * size**2 * (1 + growth))
        mean = np.where(np.isfinite(mean + sd).all(axis=0), mean, math.nan)
        return Predictive(_POSITIVE if self.rows.relative else _ANY, self.weights, mean, np.maximum(sd, 1e-12 * self.rows.level),
                          self.dof[:, None])

    def _among(self, z: np.ndarray, mean: np.ndarray, variance: np.ndarray, growth: np.ndarray) -> list[np.ndarray]:
        """Points among the rows under walks and drifts: the curves lifted by the misfit, and what is left of both variances.

        With r = 1 - f / y the rows' residuals, K their covariance, c that with a point and g = K^-1 c: f / (1 - g r) is the mean, c_0 - g c
        the misfit's variance, and (1 - sum g)^2 of the curve's variance is left (exact for a constant).
        """
        rows, moved = self.rows, [mean.copy(), variance.copy(), growth.copy()]
        rest = (rows.y - self.curves(rows.z)[0]) / rows.scale
        for i, m in enumerate(rows.misfits(self.settings)):
            at = np.flatnonzero(self.misfit == i)
            if not len(at) or m.kind == "memory" or m.rho == 0:
                continue
            shared = m.covariance(z, rows.z)
            gain = np.linalg.solve(m.covariance(rows.z) + np.diag(1 / rows.count), shared.T)
            lift = rest[at] @ gain
            moved[0][at] = mean[at] / (1 - np.minimum(lift, 0.9)) if rows.relative else mean[at] + rows.level * lift
            moved[1][at] = variance[at] * (1 - np.clip(gain.sum(axis=0), 0.0, 1.0)) ** 2
            moved[2][at] = np.maximum(np.diag(m.covariance(z)) - np.einsum("mn,nm->m", shared, gain), 0.0)
        return moved

    def asymptote(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights, means and variances of the asymptote over the components that have one; the weights need not sum to 1."""
        found = []
        for k, (i, m) in enumerate(zip(self.family, self.member, strict=True)):
            share = self.families[i].share
            if share is not None:
                g = np.concatenate([[1.0], -share[m]])
                found.append((self.weights[k], g @ self.beta[k, :len(g)], g @ self.covariance[k, :len(g), :len(g)] @ g))
        weights, means, variances = np.array(found).reshape(-1, 3).T
        return weights, means, variances


@np.errstate(all="ignore")
def average(x: Mapping[str, np.ndarray], y: np.ndarray, settings: Settings = SETTINGS) -> Average:
    """Weighs every curve of every family under every misfit by its evidence; shares of families are then shrunk towards their priors.

    Two more sets of members are drawn, for each family, from normal distributions about where the weight lies, and (those of one exponent)
    about where it lies with the stiffest misfit; all are weighed by prior over mixture of prior and normals, so that sharp evidence is
    resolved.

    Args:
      x: {predictor: (n,)}, positive. y: (n,), finite. At least two rows with different x.
      settings: priors.
    Returns:
      the average. Rows in another order give the same; so does another unit of x or y, up to rounding.

    >>> n = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    >>> found = average({"n": n}, 2 + 3 * n**-0.5)
    >>> abs(float(found.predict({"n": np.array([64.0])}).quantile(0.5)[0]) - 2.375) < 0.03
    True

    Bayesian model averaging: Hoeting et al. 1999, Statistical Science 14:382; mixture weights of samples: Owen and Zhou 2000, JASA 95:135
    (both from memory, unverified). The misfit and the priors are ours.
    """
    rows = Rows.of(x, y)
    known = families(rows.far, settings, rows.rising)
    searches = [Search(f.points, []) for f in known]
    blocks = weigh(rows, settings, known, range(len(known)), [0] * len(known))
    found = combine(rows, settings, searches, blocks, known)
    stiff = int(np.argmin([m.rho for m in rows.misfits(settings)]))
    for share, misfit in ((settings.zoom, None), (settings.focus, stiff)):
        added, first = {}, {}
        for i, f in enumerate(known):
            if misfit is not None and f.points.shape[1] != 1:
                continue
            mine = (found.family == i) & (misfit is None or found.misfit == misfit)
            extra = searches[i].zoom(np.bincount(found.member[mine], found.weights[mine], f.members), share)
            if len(extra):
                added[i], first[i] = build(f.name, extra, rows.far, settings), f.members
                known[i] = build(f.name, searches[i].points, rows.far, settings)
        blocks += weigh(rows, settings, list(added.values()), list(added), list(first.values()))
        found = combine(rows, settings, searches, blocks, known)
    order = np.argsort(-found.weights, kind="stable")
    order = order[:min(int(np.searchsorted(np.cumsum(found.weights[order]), MASS)) + 1, KEPT)]
    order = order[found.weights[order] > 0]
    widest = max(b.linear.beta.shape[-1] for b in blocks)

    def gather(each: list[np.ndarray]) -> np.ndarray:
        """One field of all components, coefficients padded to the widest family."""
        flat = [v.reshape(-1, *v.shape[2:]) for v in each]
        return np.concatenate([np.pad(v, [(0, 0), *((0, widest - g) for g in v.shape[1:])]) for v in flat])[order]

    linear = [b.linear for b in blocks]
    return Average(rows, settings, tuple(known), found.weights[order] / found.weights[order].sum(), found.family[order],
                   found.member[order], found.misfit[order], gather([v.beta for v in linear]), gather([v.covariance for v in linear]),
                   gather([v.noise for v in linear]), gather([np.full(v.noise.shape, v.dof) for v in linear]))
