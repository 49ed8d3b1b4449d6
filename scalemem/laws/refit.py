"""Many fits of one law as one program: starts, bootstrap resamples, profiles. Exact slopes, float64, Levenberg-Marquardt steps.

For fit b with weights w_b it minimises F_b(theta) = sum_i w_bi rho(y_i, f_i(theta)) within the law's bounds. A step solves

    (H + lambda diag H) step = -g,    g = J' W rho',    H = J' W rho'' J

with rho' and rho'' from `losses` and J from `dual`; a parameter on a bound that g pushes outwards is held there. All fits advance together
in arrays (fit, parameter, row), those that have ended drop out, and a block of fits is as large as the cache likes. NumPy, not JAX: a step of
4,000 fits of 240 rows takes 20-40 ms on one core, and there is nothing to compile (`benchmarks/chinchilla.py` has both).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scalemem.laws.base import Arrays, Law
from scalemem.laws.dual import slopes
from scalemem.laws.losses import Loss, Target

CACHE = 100_000  # numbers in the Jacobians of a block
MOST, FEW = 200, 60  # steps, and where a rough end is enough
LEAP = 1.0  # how far the logarithm of a parameter moves in a step
ROUNDS, STILL = 12, 1e-7  # of a nuisance parameter, and when it has stopped, relative
NATS = 1e-10  # of a likelihood with such a parameter, that a last step may still promise
Whiten = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Rows:
    """The rows that all fits share: the law on the scale of the loss, its predictors, the target, the loss, and a whitening (squared error)."""

    law: Law
    x: Arrays
    target: Target
    loss: Loss
    whiten: Whiten | None = None

    def evaluate(self, theta: np.ndarray, weights: np.ndarray, nuisance: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """F (B,), gradient (B, p) and curvature matrix (B, p, p) at theta (B, p) with weights (B, n)."""
        with np.errstate(all="ignore"):
            eta, jacobian = slopes(self.law, self.x, theta)
            if self.whiten is not None:
                eta, jacobian = self.whiten(eta - self.target.eta) + self.target.eta, self.whiten(jacobian)
            rho, slope, curve = self.loss.terms(self.target, eta, nuisance)
            cost = np.sum(weights * rho, axis=1)
            cost[~np.isfinite(cost)] = math.inf
            slope, curve = np.nan_to_num(weights * slope), np.nan_to_num(weights * curve)
            gradient = np.matmul(jacobian, slope[:, :, None])[:, :, 0]
            hessian = np.matmul(jacobian * curve[:, None, :], np.swapaxes(jacobian, 1, 2))
            cost[~np.isfinite(hessian).all(axis=(1, 2)) | ~np.isfinite(gradient).all(axis=1)] = math.inf
            return cost, gradient, hessian

    def cost(self, theta: np.ndarray, nuisance: float) -> np.ndarray:
        """F at theta (B, p), every row once."""
        with np.errstate(all="ignore"):
            eta = np.broadcast_to(self.law.predict(self.x, theta), (*theta.shape[:-1], len(self.target.eta)))
            if self.whiten is not None:
                eta = self.whiten(eta - self.target.eta) + self.target.eta
            return np.sum(self.loss.terms(self.target, eta, np.full(len(eta), nuisance))[0], axis=1)


@dataclass(frozen=True)
class Refits:
    """What B fits ended at: theta (B, p), F (B,), the nuisance number (B,), and whether they had stopped moving."""

    theta: np.ndarray
    cost: np.ndarray
    nuisance: np.ndarray
    settled: np.ndarray


def refit(rows: Rows, theta: np.ndarray, *, weights: np.ndarray | None = None, free: np.ndarray | None = None, near: bool = False,
          nuisance: np.ndarray | None = None, enough: float = 0.0) -> Refits:
    """Minimises from theta (B, p) for weights (B, n) over the free parameters (B, p).

    `near`: the starts are optima of like problems. `nuisance` (B,) holds the loss's own number. A fit ends when a step promises less than
    1e-14 F, or than `enough`.
    """
    batch, (n, p) = len(theta), (len(rows.target.eta), theta.shape[1])
    free = np.ones(theta.shape, bool) if free is None else free
    size = max(1, CACHE // (n * max(p, 1)))

    def part(at: int) -> Refits:  # threads do not pay: Python between the steps holds them up
        cut = slice(at, at + size)
        some = np.ones((len(theta[cut]), n)) if weights is None else weights[cut]
        return _block(rows, theta[cut], some, free[cut], near, None if nuisance is None else nuisance[cut], enough)

    parts = [part(at) for at in range(0, batch, size)]
    return Refits(*(np.concatenate([getattr(q, k) for q in parts]) for k in ("theta", "cost", "nuisance", "settled")))


def _block(rows: Rows, theta: np.ndarray, weights: np.ndarray, free: np.ndarray, near: bool, known: np.ndarray | None,
           enough: float) -> Refits:
    loss, none = rows.loss, np.zeros(len(theta))
    if not loss.nuisance:
        return _stages(rows, theta, weights, free, near, none, enough)
    if known is not None:
        return _descend(rows, theta, weights, free, known, 1e-14, enough)
    nuisance = none
    if near and not loss.counts:  # resamples of `huber`: rounded off by a thousandth of a residual, far below what resampling moves
        size = float(np.mean(np.abs(rows.law.predict(rows.x, theta[:1]) - rows.target.eta)))
        delta = max(1e-3 * size, 1e-12)
        found = _stages(Rows(rows.law, rows.x, rows.target, Loss("huber", delta)), theta, weights, free, near, none, 0.02 * delta**2)
        nuisance = _nuisance(rows, found.theta, weights)
        return Refits(found.theta, rows.evaluate(found.theta, weights, nuisance)[0], nuisance, found.settled)
    easy = Loss("binomial") if loss.counts else Loss("huber", 1e-8)
    found = _stages(Rows(rows.law, rows.x, rows.target, easy, rows.whiten), theta, weights, free, near, none, 0.0 if loss.counts else 1e-17)
    theta, cost, settled, left = found.theta, found.cost, found.settled, np.arange(len(theta))
    for _ in range(ROUNDS):
        new = _nuisance(rows, theta[left], weights[left])
        moved = np.abs(new - nuisance[left]) > STILL * new
        nuisance[left] = new
        left = left[moved]
        if not len(left):
            break
        found = _descend(rows, theta[left], weights[left], free[left], nuisance[left], 1e-14, max(enough, NATS))
        theta[left], cost[left], settled[left] = found.theta, found.cost, found.settled
    return Refits(theta, cost, nuisance, settled)


def _nuisance(rows: Rows, theta: np.ndarray, weights: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        eta = np.broadcast_to(rows.law.predict(rows.x, theta), weights.shape)
        return rows.loss.estimate(rows.target, eta, weights)


def _stages(rows: Rows, theta: np.ndarray, weights: np.ndarray, free: np.ndarray, near: bool, nuisance: np.ndarray,
            enough: float) -> Refits:
    for loss in rows.loss.stages(0.003 if near else 1.0)[:-1]:
        theta = _descend(Rows(rows.law, rows.x, rows.target, loss, rows.whiten), theta, weights, free, nuisance, 1e-14,
                         0.1 * loss.number**2).theta  # a tenth of what delta rounds off
    return _descend(rows, theta, weights, free, nuisance, 1e-14, enough)


def _descend(rows: Rows, theta: np.ndarray, weights: np.ndarray, free: np.ndarray, nuisance: np.ndarray, tolerance: float,
             enough: float = 0.0) -> Refits:
    low, high = rows.law.bounds()
    logs = np.array([q.log for q in rows.law.parameters])
    theta = np.clip(theta, low, high)
    cost, gradient, curve = rows.evaluate(theta, weights, nuisance)
    theta, cost = theta.copy(), cost.copy()
    floor = 1e-31 * np.sum(weights * rows.target.eta**2, axis=1) + 1e-300 + enough
    damp, grow, settled = np.full(len(theta), 1e-3), np.full(len(theta), 2.0), np.zeros(len(theta), bool)
    at = np.flatnonzero(np.isfinite(cost))
    gradient, curve, w, eye = gradient[at], curve[at], weights[at], np.eye(theta.shape[1])
    for _ in range(FEW if enough else MOST):
        if not len(at):
            break
        t, g = theta[at], gradient
        open_ = free[at] & ~((t <= low) & (g > 0)) & ~((t >= high) & (g < 0))
        size = np.sqrt(np.einsum("bpp->bp", curve))
        size = np.where(open_ & (size > 0), size, 1.0)
        g = np.where(open_, g, 0.0) / size
        h = curve / (size[:, :, None] * size[:, None, :]) * (open_[:, :, None] & open_[:, None, :])
        step = -np.linalg.solve(h + (damp[at, None] + np.where(open_, 1e-13, 1.0))[:, :, None] * eye, g[:, :, None])[:, :, 0]
        drop = -np.sum(g * step, axis=1) / 2
        step = step / size
        step *= np.minimum(1.0, LEAP / np.maximum(np.abs(step[:, logs]).max(axis=1, initial=0.0), 1e-300))[:, None]
        new = np.clip(t + step, low, high)
        cost_new, gradient_new, curve_new = rows.evaluate(new, w, nuisance[at])
        better = cost_new < cost[at]
        gain = (cost[at] - cost_new) / np.maximum(drop, 1e-300)
        ended = drop <= tolerance * np.abs(cost[at]) + floor[at]
        theta[at[better]], cost[at[better]] = new[better], cost_new[better]
        gradient, curve = np.where(better[:, None], gradient_new, gradient), np.where(better[:, None, None], curve_new, curve)
        good = np.clip(1 - (2 * np.clip(gain, -1, 2) - 1) ** 3, 1 / 5, 2.0)
        damp[at] = np.where(better, np.maximum(damp[at] * good, 1e-12), damp[at] * grow[at])
        grow[at] = np.where(better, 2.0, grow[at] * 2)
        settled[at[ended]] = True
        stay = ~ended & (damp[at] < 1e12)
        if not stay.all():
            at, gradient, curve, w = at[stay], gradient[stay], curve[stay], w[stay]
    return Refits(theta, cost, nuisance.copy(), settled)
