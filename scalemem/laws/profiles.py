"""Intervals by profile: where the deviance, minimised over all other parameters, has risen by a limit; all ends of all parameters at once."""

from __future__ import annotations

import math

import numpy as np

from scalemem.laws.posterior import Estimate
from scalemem.laws.problem import Problem

DOUBLINGS, ROUNDS = 12, 12
CLOSE = 1e-3  # of the limit's square root: how near an end is found, in standard errors


def profiles(problem: Problem, theta: np.ndarray, least: float, free: np.ndarray, lost: dict[str, str], scale: float, dof: float,
             interval: float) -> tuple[dict[str, Estimate], np.ndarray, np.ndarray]:
    """Estimates with {theta_j : D_j(theta_j) - D <= t^2 scale}, the covariance of theta at its optimum, and the best theta met on the way."""
    from scipy.special import stdtrit
    law, limit = problem.law, float(stdtrit(dof, (1 + interval) / 2)) ** 2 * scale
    jacobian, covariance = problem.jacobian(theta), curvature(problem, theta, free, scale)
    low, high = law.bounds()
    se, status, best = np.sqrt(np.diag(covariance)), {k: lost.get(k, "ok") for k in law.names}, theta
    for j, k in enumerate(law.names):
        bound = next((b for b in (low[j], high[j]) if math.isfinite(b) and abs(theta[j] - b) <= 1e-3 * se[j]), None)
        if status[k] == "ok" and bound is not None:
            status[k] = f"on bound: {k} = {_natural(law.parameters[j].log, bound):g}"
    ends = np.stack([theta, theta], -1)
    wanted = [j for j, k in enumerate(law.names) if status[k] == "ok"]
    if wanted and limit > 1e-20 * float(np.sum(problem.s.eta**2)):  # else the rows are exact, and so are the values
        half = math.sqrt(limit / scale) * se
        if straight(problem, theta, jacobian, covariance):
            ends = np.stack([theta - half, theta + half], -1)
        else:
            ends[wanted], best = _ends(problem, theta, least, free, np.array(wanted), half, covariance, limit)
    estimates = {}
    for j, q in enumerate(law.parameters):
        flat = [word for word, e in zip(("below", "above"), ends[j], strict=True) if math.isnan(e)]
        if flat and status[q.name] == "ok":
            known = "" if len(flat) == 2 else f" {_natural(q.log, ends[j][0] if flat == ['above'] else ends[j][1]):.4g}"
            status[q.name] = f"not identified: any value {'fits' if len(flat) == 2 else flat[0] + known + ' fits'} as well"
        value, *both = (_natural(q.log, float(v)) if status[q.name] == "ok" else math.nan for v in (theta[j], *ends[j]))
        estimates[q.name] = Estimate(value, both[0], both[1], q.unit, status[q.name])
    return estimates, covariance, best


def curvature(problem: Problem, theta: np.ndarray, free: np.ndarray, scale: float) -> np.ndarray:
    """The covariance of theta by the curvature at its optimum, zero for what is not free."""
    covariance, jacobian = np.zeros((len(theta), len(theta))), problem.jacobian(theta)
    if free.any():
        size = np.linalg.norm(jacobian[:, free], axis=0)
        inverse = np.linalg.pinv(jacobian[:, free] / size)
        covariance[np.ix_(free, free)] = inverse @ inverse.T / np.outer(size, size) * scale
    return covariance


def _natural(log: bool, value: float) -> float:
    return math.exp(min(value, 709.0)) if log else float(value)


def straight(problem: Problem, theta: np.ndarray, jacobian: np.ndarray, covariance: np.ndarray) -> bool:
    """Whether the law is linear in theta under squared error: then the Jacobian is the same elsewhere, and Wald intervals are exact."""
    low, high = problem.law.bounds()
    if np.isfinite([*low, *high]).any() or not problem.loss.squared:
        return False
    elsewhere = problem.jacobian(np.clip(theta + 0.3 + np.sqrt(np.diag(covariance)), low, high))
    return bool(np.allclose(elsewhere, jacobian, rtol=1e-9, atol=1e-12 * np.abs(jacobian).max()))


def _ends(problem: Problem, theta: np.ndarray, least: float, free: np.ndarray, wanted: np.ndarray, half: np.ndarray,
          covariance: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends (wanted, 2): a bound if it is reached before, NaN where the profile is flat; and the best theta met.

    Steps double until the rise exceeds the limit; then false position (Illinois) on sqrt(rise), which is straight for a parabola.
    """
    low, high = problem.law.bounds()
    j = np.repeat(wanted, 2)
    sign = np.tile([-1.0, 1.0], len(wanted))
    k, bound, aim = len(j), np.where(np.tile([True, False], len(wanted)), low[j], high[j]), math.sqrt(limit)
    warm, best, at = np.tile(theta, (k, 1)), [least, theta], np.arange(k)
    tilt = covariance[:, j].T / covariance[j, j][:, None]
    others = np.tile(free, (k, 1))
    others[at, j] = False

    def above(which: np.ndarray, value: np.ndarray) -> np.ndarray:
        """sqrt(rise) - sqrt(limit) of some sides."""
        start = warm[which] + (value - warm[which, j[which]])[:, None] * tilt[which]
        start[np.arange(len(which)), j[which]] = value
        done = problem.minimise(start, others[which], 1e-4 * limit)
        usable = np.isfinite(done.cost)
        warm[which[usable]] = done.theta[usable]
        rise = 2 * done.cost - least
        if np.nanmin(rise) + least < best[0]:
            best[:] = [float(np.nanmin(rise)) + least, done.theta[np.nanargmin(rise)]]
        return np.sqrt(np.maximum(np.nan_to_num(rise, nan=math.inf), 0.0)) - aim

    near, f_near, far, f_far = theta[j].copy(), np.full(k, -aim), np.full(k, math.nan), np.full(k, math.nan)
    ends, open_, step = np.full(k, math.nan), at, 1.05 * half[j]
    for _ in range(DOUBLINGS):
        value = theta[j] + sign * step
        outside = sign * (value - bound) >= 0
        value = np.where(outside, bound, value)
        f = above(open_, value[open_])
        over = f > 0
        reached = open_[over]
        far[reached], f_far[reached] = value[reached], f[over]
        ends[open_[~over & outside[open_]]] = bound[open_[~over & outside[open_]]]
        inside = open_[~over]
        near[inside], f_near[inside] = value[inside], f[~over]
        open_ = inside[~outside[inside]]
        if not len(open_):
            break
        step = 2 * step
    left, tolerance = np.flatnonzero(np.isfinite(far)), CLOSE * half[j]
    side = np.zeros(k)
    g_near, g_far = f_near.copy(), np.minimum(f_far, 1e3 * aim)
    for turn in range(4 * ROUNDS):
        if not len(left):
            break
        a, b = near[left], far[left]
        share = g_near[left] / (g_near[left] - g_far[left]) if turn % 4 < 3 else np.full(len(left), 0.5)
        value = a + np.clip(share, 0.01, 0.99) * (b - a)
        f = above(left, value)
        ends[left] = value
        over = f > 0
        up, down = left[over], left[~over]
        g_near[up] = np.where(side[up] > 0, g_near[up] / 2, g_near[up])
        g_far[down] = np.where(side[down] < 0, g_far[down] / 2, g_far[down])
        far[up], g_far[up], side[up] = value[over], np.minimum(f[over], 1e3 * aim), 1
        near[down], g_near[down], side[down] = value[~over], f[~over], -1
        left = left[(np.abs(f) > CLOSE * aim) & (np.abs(far[left] - near[left]) > tolerance[left])]
    return ends.reshape(-1, 2), best[1]
