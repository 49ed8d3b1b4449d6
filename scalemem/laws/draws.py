"""What a fit leaves possible: one Student t where a law is linear in theta, else draws from the posterior that is flat in theta, and that
of the law without its floor."""

from __future__ import annotations

import functools
import math

import numpy as np

from scalemem.laws.identified import floors, identified
from scalemem.laws.problem import Problem
from scalemem.laws.profiles import curvature, straight

DRAWS, KEPT = 3000, 300  # importance draws, and how many of them a fit keeps
LEAST = 1e-3  # the probability of a floor of zero from which on it is counted
Drawn = tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]


def draws(problem: Problem, theta: np.ndarray, least: float, free: np.ndarray, covariance: np.ndarray, scale: float,
          dof: float) -> Drawn:
    """Points, weights and covariances: one Student t where the law is linear; else draws from the posterior that is flat in theta.

    The draws come from a Student t about the optimum, then from one about the first draws' mean, weighted by
    (1 + (S - S_min) / (dof s^2))^-(dof + p) / 2: the likelihood with the noise integrated out.
    """
    one = theta[None], np.ones(1), covariance[None], []
    exact = not scale > 1e-22 * float(np.mean(problem.s.eta**2))  # rows without noise
    if exact or not free.any() or straight(problem, theta, problem.jacobian(theta), covariance):
        return one
    (low, high), p = problem.law.bounds(), int(free.sum())
    z = _student(DRAWS, p, 5)
    centre, spread, weights, drawn = theta[free], 1.5**2 * covariance[np.ix_(free, free)], np.ones(1), np.zeros((1, len(theta)))
    for _ in range(3):
        try:
            ridged = spread + 1e-12 * np.diag(np.diag(spread))
            root = np.linalg.cholesky(ridged[::-1, ::-1])[::-1, ::-1]  # scales last: a unit of x moves no draw
        except np.linalg.LinAlgError:
            return *one[:3], ["predictive interval from the curvature at the optimum: draws failed"]
        drawn = np.tile(theta, (DRAWS, 1))
        drawn[:, free] = centre + z @ root.T
        rise = problem.deviance(drawn) - least
        inside = np.all((drawn >= low) & (drawn <= high), axis=1) & np.isfinite(rise)
        tail = rise / scale / 2 if math.isinf(dof) else (dof + p) / 2 * np.log1p(np.maximum(rise, 0) / (dof * scale))
        logs = np.where(inside, -tail + (5 + p) / 2 * np.log1p(np.sum(z * z, axis=1) / 5), -math.inf)
        if not inside.any():
            return *one[:3], ["predictive interval from the curvature at the optimum: draws failed"]
        weights = np.exp(logs - logs.max())
        weights /= weights.sum()
        centre = weights @ drawn[:, free]
        off = drawn[:, free] - centre
        spread = 1.2**2 * (off * weights[:, None]).T @ off
    effective = 1 / float(np.sum(weights**2))
    about = z - weights @ z  # what was drawn before units came in
    longest = np.linalg.svd(about * np.sqrt(weights)[:, None], full_matrices=False)[2][0]
    order = np.argsort(about @ longest * np.sign(longest[np.argmax(np.abs(longest))]))  # kept at even steps along it: few represent many
    picked = drawn[order][np.searchsorted(np.cumsum(weights[order]), (np.arange(KEPT) + 0.5) / KEPT).clip(max=DRAWS - 1)]
    notes = [f"predictive interval is rough: {effective:.0f} effective draws"] * (effective < 100)
    return picked, np.full(KEPT, 1 / KEPT), np.zeros((KEPT, len(theta), len(theta))), notes


def with_atom(problem: Problem, found: Drawn, theta: np.ndarray, least: float, free: np.ndarray, scale: float, dof: float,
              skip: bool = False) -> Drawn:
    """The draws mixed with those of the law whose first floor is zero, by their evidence.

    A posterior that is flat in a floor e >= 0 has no mass at e = 0, and what it says of a curve that has none is always too high, the more
    the farther ahead. With D_0 the least deviance at e = 0, n rows and even prior odds, the odds of e = 0 are

        sqrt(n) (1 + (D_0 - D) / (dof s^2))^(-(dof + p) / 2)    (BIC, Kass and Wasserman 1995; from memory, unverified).
    """
    of = [j for j in floors(problem.law) if free[j]][:1]
    if skip or not of or len(theta) < 2 or not scale > 1e-22 * float(np.mean(problem.s.eta**2)):
        return found
    other, start, bound = free.copy(), theta.copy(), of[0]
    other[bound], start[bound] = False, 0.0
    lower = problem.minimise(start[None], other[None])
    rise, p = max(2 * float(lower.cost[0]) - least, 0.0), int(free.sum())
    if not math.isfinite(rise):
        return found
    odds = math.log(len(problem.s)) / 2 - (rise / scale / 2 if math.isinf(dof) else (dof + p) / 2 * math.log1p(rise / (dof * scale)))
    share = 1 / (1 + math.exp(-min(odds, 30.0))) if odds > -30 else 0.0
    if share < LEAST:
        return found
    zero = lower.theta[0]
    seen = identified(problem, zero)[0] & other
    atom = draws(problem, zero, 2 * float(lower.cost[0]), seen, curvature(problem, zero, seen, scale), scale, dof)
    each = [tuple(part[::2] if len(d[1]) == KEPT else part for part in d[:3]) for d in (found, atom)]
    (points, weights, covariances), (points0, weights0, covariances0) = each
    return (np.concatenate([points, points0]), np.concatenate([(1 - share) * weights / weights.sum(), share * weights0 / weights0.sum()]),
            np.concatenate([covariances, covariances0]), [*found[3], *(m for m in atom[3] if m not in found[3])])


@functools.lru_cache(maxsize=16)
def _student(n: int, p: int, dof: int) -> np.ndarray:
    """n quasi-random points of a p-dimensional Student t: a Kronecker sequence, whose errors fall as 1 / n rather than 1 / sqrt(n)."""
    from scipy.special import chdtri, ndtri
    golden = 2.0
    for _ in range(60):
        golden = (1 + golden) ** (1 / (p + 2))  # the root of g^(p + 2) = 1 + g, for p + 1 dimensions
    u = (0.5 + np.arange(1, n + 1)[:, None] * golden ** -np.arange(1.0, p + 2)) % 1
    return ndtri(u[:, :p]) / np.sqrt(chdtri(dof, u[:, p:]) / dof)
