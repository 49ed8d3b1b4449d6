"""Least squares on a law's scale: many starts, exact gradients, profile intervals, and no digit for what is not identified."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from scalemem.laws.base import Law
from scalemem.laws.posterior import Estimate, Posterior, Result
from scalemem.laws.sample import Sample
from scalemem.tables import TooFewRows

DRAWS, KEPT = 3000, 300  # importance draws, and how many of them a fit keeps
LACK_OF_FIT = 0.1  # below this p-value the misfit between replicate means is estimated and the means, not the runs, are counted


@dataclass(frozen=True)
class _Problem:
    """Residuals of a sample under the covariance I + ratio Z Z', as a function of theta."""

    law: Law
    s: Sample
    ratio: float = 0.0

    def squares(self, theta: np.ndarray) -> np.ndarray:
        """The sum of squares at theta (..., p)."""
        with np.errstate(all="ignore"):
            return np.sum(self.s.whiten(self.law.predict(self.s.x, theta) - self.s.eta, self.ratio) ** 2, axis=-1)

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        """d residual / d theta, (n, p)."""
        return self.s.whiten(np.broadcast_to(self.law.gradient(self.s.x, theta), (len(self.s), len(theta))).T, self.ratio).T

    def minimise(self, theta: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, float]:
        """The minimum over the free parameters from a start."""
        from scipy.optimize import least_squares as optimize

        def full(part: np.ndarray) -> np.ndarray:
            whole = theta.copy()
            whole[free] = part
            return whole

        def residual(part: np.ndarray) -> np.ndarray:
            r = self.s.whiten(self.law.predict(self.s.x, full(part)) - self.s.eta, self.ratio)
            return np.nan_to_num(r, nan=1e9, posinf=1e9, neginf=-1e9)

        def slope(part: np.ndarray) -> np.ndarray:
            return self.jacobian(full(part))[:, free]

        if free.any():
            low, high = (b[free] for b in self.law.bounds())
            with np.errstate(all="ignore"):
                found = optimize(residual, theta[free], slope, (low, high), x_scale="jac",  # type: ignore[arg-type]
                                 ftol=1e-13, xtol=1e-13, gtol=1e-15, max_nfev=200)
            theta = full(found.x)
        return theta, float(self.squares(theta))


def least_squares(law: Law, s: Sample, *, interval: float, noise_sd: float | None, misfit_sd: float | None) -> Result:
    """The fit of one group. Raises TooFewRows for fewer rows than parameters + 1."""
    p, n = len(law.names), len(s)
    if n < p + 1:
        raise TooFewRows(f"law {law.name}: {n} rows for {p} parameters: needs at least {p + 1}; add rows or choose a smaller law")
    problem, every = _Problem(law, s), np.ones(p, bool)
    ends = [problem.minimise(start, every) for start in law.starts(s.x, s.y)]
    ends = [e for e in ends if math.isfinite(e[1])]
    if not ends:
        raise TooFewRows(f"law {law.name}: no start is finite on these rows; give x and y values of ordinary size")
    tiny = 1e-24 * float(np.sum(s.eta**2))
    least = min(e[1] for e in ends)
    agreeing = [e for e in ends if e[1] <= least * (1 + 1e-6) + tiny]
    theta, objective = agreeing[0]
    scale, ratio, noise, misfit, dof, p_fit = _variance(s, objective, p, noise_sd, misfit_sd)
    if ratio > 0:
        problem = _Problem(law, s, ratio)
        theta, objective_w = problem.minimise(theta, every)
    else:
        objective_w = objective
    free, unseen, lost = _identified(law, problem, theta)
    misfits = p_fit < LACK_OF_FIT and misfit > 0
    notes = [f"lack of fit (p = {p_fit:.2g}): replicate means scatter by {misfit:.3g} beyond run noise"] * misfits
    notes += [f"only {len(agreeing)} of {len(ends)} starts agree"] * (2 * len(agreeing) < len(ends) and law.guess is None)
    estimates, covariance = _profiles(law, problem, theta, objective_w, free, lost, scale, dof, interval)
    points, weights, covariances, unstable = _posterior(law, problem, theta, objective_w, free, covariance, scale, dof)
    notes += unstable
    posterior = Posterior(weights, points, covariances, noise, misfit, dof, unseen)
    return Result(estimates, posterior, objective, len(ends), len(agreeing), p_fit, tuple(notes))


def _variance(s: Sample, sse: float, p: int, noise_sd: float | None, misfit_sd: float | None):
    """(scale, ratio, noise, misfit, dof, p-value): the variance of a whitened residual, misfit / noise, their sds, and lack of fit.

    Known noise: dof = inf. Replicates that the law fits: all residuals are noise. Replicates that it does not: noise is their spread and
    misfit is what the means add, with as many degrees of freedom as there are means. No replicates: residuals hold both.
    """
    from scipy.special import fdtrc
    n, (within, spare) = len(s), s.pure_error()
    means = n - spare
    p_fit, between = math.nan, 0.0
    if spare and means > p:
        between = max(sse - within, 0.0) / (means - p)
        p_fit = float(fdtrc(means - p, spare, between / (within / spare)))
    if noise_sd is not None:
        noise, misfit = max(noise_sd, 1e-12 * float(np.abs(s.eta).max())), misfit_sd or 0.0
        return noise**2, (misfit / noise) ** 2, noise, misfit, math.inf, p_fit
    total = sse / (n - p)
    if misfit_sd is None and not p_fit < LACK_OF_FIT:
        return total, 0.0, math.sqrt(total), 0.0, n - p, p_fit
    if spare:
        noise2, size = within / spare, n / means
        misfit2 = max(between - noise2, 0.0) / size if misfit_sd is None else misfit_sd**2
        return noise2, misfit2 / noise2, math.sqrt(noise2), math.sqrt(misfit2), means - p if misfit_sd is None else spare, p_fit
    misfit2 = (misfit_sd or 0.0) ** 2
    noise2 = max(total - misfit2, total / 4)
    return noise2, misfit2 / noise2 if noise2 else 0.0, math.sqrt(noise2), math.sqrt(misfit2), n - p, p_fit


def _identified(law: Law, problem: _Problem, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Which parameters can be estimated, the directions that the data do not see, and the reason for each parameter that is lost."""
    jacobian, free = problem.jacobian(theta), np.ones(len(theta), bool)
    size = np.linalg.norm(jacobian, axis=0)
    unseen, lost = [], {}
    for j in np.flatnonzero(size <= 1e-9 * max(size.max(), 1e-300)):
        free[j], lost[law.names[j]] = False, f"not identified: {law.names[j]} has no effect on any row"
        unseen.append(np.eye(len(theta))[j])
    while free.any():
        _, singular, axes = np.linalg.svd(jacobian[:, free] / size[free])
        if singular[-1] > 1e-7:
            break
        mixed = np.flatnonzero(free)[np.abs(axes[-1]) > 0.1]
        direction = np.zeros(len(theta))
        direction[free] = axes[-1] / size[free]
        unseen.append(direction)
        together = ", ".join(law.names[j] for j in mixed)
        lost |= {law.names[j]: f"not identified: only a combination of {together} is seen" for j in mixed}
        free[mixed[-1]] = False
    return free, np.array(unseen).reshape(-1, len(theta)), lost


def _profiles(law: Law, problem: _Problem, theta: np.ndarray, least: float, free: np.ndarray, lost: dict[str, str], scale: float,
              dof: float, interval: float) -> tuple[dict[str, Estimate], np.ndarray]:
    """Estimates with profile intervals {theta_j : S_j(theta_j) - S <= t^2 s^2}, and the covariance of theta about its optimum."""
    from scipy.special import stdtrit
    p, limit = len(theta), float(stdtrit(dof, (1 + interval) / 2)) ** 2 * scale
    covariance = np.zeros((p, p))
    jacobian = problem.jacobian(theta)
    if free.any():
        size = np.linalg.norm(jacobian[:, free], axis=0)
        inverse = np.linalg.pinv(jacobian[:, free] / size)
        covariance[np.ix_(free, free)] = inverse @ inverse.T / np.outer(size, size) * scale
    low, high = law.bounds()
    estimates = {}
    for j, parameter in enumerate(law.parameters):
        se, status = math.sqrt(covariance[j, j]), lost.get(parameter.name, "ok")
        bound = next((b for b in (low[j], high[j]) if math.isfinite(b) and abs(theta[j] - b) <= 1e-3 * se), None)
        if status == "ok" and bound is not None:
            status = f"on bound: {parameter.name} = {bound:g}"
        ends = [theta[j], theta[j]]
        if status == "ok" and limit > 1e-20 * float(np.sum(problem.s.eta**2)):  # else the rows are exact, and so is the value
            if _straight(law, problem, theta, jacobian, covariance):
                ends = [theta[j] - math.sqrt(limit / scale) * se, theta[j] + math.sqrt(limit / scale) * se]
            else:
                ends = [_crossing(problem, theta, least, free, j, sign, se, limit, b) for sign, b in ((-1, low[j]), (1, high[j]))]
            flat = [word for word, e in zip(("below", "above"), ends, strict=True) if math.isnan(e)]
            if flat:
                known = "" if len(flat) == 2 else _show(parameter.log, ends[0] if flat == ["above"] else ends[1])
                status = f"not identified: any value {'fits' if len(flat) == 2 else flat[0] + known + ' fits'} as well"
        to_natural = math.exp if parameter.log else float
        value, *ends = (to_natural(float(v)) if status == "ok" else math.nan for v in (theta[j], *ends))
        estimates[parameter.name] = Estimate(value, ends[0], ends[1], parameter.unit, status)
    return estimates, covariance


def _show(log: bool, end: float) -> str:
    return f" {math.exp(end) if log else end:.4g}"


def _straight(law: Law, problem: _Problem, theta: np.ndarray, jacobian: np.ndarray, covariance: np.ndarray) -> bool:
    """Whether the law is linear in theta on its scale: then the Jacobian is the same elsewhere, and Wald intervals are exact."""
    low, high = law.bounds()
    elsewhere = problem.jacobian(np.clip(theta + 0.3 + np.sqrt(np.diag(covariance)), low, high))
    return not np.isfinite([*low, *high]).any() and bool(np.allclose(elsewhere, jacobian, rtol=1e-9, atol=1e-12 * np.abs(jacobian).max()))


def _crossing(problem: _Problem, theta: np.ndarray, least: float, free: np.ndarray, j: int, sign: int, se: float, limit: float,
              bound: float) -> float:
    """Where the profile of theta_j rises by `limit`: the bound if it is reached before, NaN if the profile is flat."""
    from scipy.optimize import brentq
    others = free.copy()
    others[j] = False
    warm = [theta]

    def rise(value: float) -> float:
        start = warm[0].copy()
        start[j] = value
        end, squares = problem.minimise(start, others)
        warm[0] = end
        return squares - least - limit

    near, step = theta[j], 1.5 * se
    for _ in range(12):
        far = theta[j] + sign * step
        if sign * (far - bound) >= 0:
            if rise(bound) <= 0:
                return bound
            far = bound
        if rise(far) > 0:
            if rise(near) > 0:
                return float(near)
            return float(brentq(rise, near, far, xtol=1e-3 * se, maxiter=60))  # type: ignore[arg-type]
        near, step = far, 2 * step
    return math.nan


def _posterior(law: Law, problem: _Problem, theta: np.ndarray, least: float, free: np.ndarray, covariance: np.ndarray, scale: float,
               dof: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Points, weights and covariances: one Student t where the law is linear; else draws from the posterior that is flat in theta.

    The draws come from a Student t about the optimum, then from one about the first draws' mean, weighted by
    (1 + (S - S_min) / (dof s^2))^-(dof + p) / 2: the likelihood with the noise integrated out.
    """
    one = theta[None], np.ones(1), covariance[None], []
    if scale <= 0 or not free.any() or _straight(law, problem, theta, problem.jacobian(theta), covariance):
        return one
    (low, high), p = law.bounds(), int(free.sum())
    z = _student(DRAWS, p, 5)
    centre, spread, weights, draws = theta[free], 1.5**2 * covariance[np.ix_(free, free)], np.ones(1), np.zeros((1, len(theta)))
    for _ in range(3):
        try:
            ridged = spread + 1e-12 * np.diag(np.diag(spread))
            root = np.linalg.cholesky(ridged[::-1, ::-1])[::-1, ::-1]  # scales last: a unit of x moves no draw
        except np.linalg.LinAlgError:
            return *one[:3], ["predictive interval from the curvature at the optimum: draws failed"]
        draws = np.tile(theta, (DRAWS, 1))
        draws[:, free] = centre + z @ root.T
        rise = problem.squares(draws) - least
        inside = np.all((draws >= low) & (draws <= high), axis=1) & np.isfinite(rise)
        tail = rise / scale / 2 if math.isinf(dof) else (dof + p) / 2 * np.log1p(np.maximum(rise, 0) / (dof * scale))
        logs = np.where(inside, -tail + (5 + p) / 2 * np.log1p(np.sum(z * z, axis=1) / 5), -math.inf)
        if not inside.any():
            return *one[:3], ["predictive interval from the curvature at the optimum: draws failed"]
        weights = np.exp(logs - logs.max())
        weights /= weights.sum()
        centre = weights @ draws[:, free]
        off = draws[:, free] - centre
        spread = 1.2**2 * (off * weights[:, None]).T @ off
    effective = 1 / float(np.sum(weights**2))
    scaled = (draws[:, free] - centre) / np.sqrt(np.diag(spread))
    longest = np.linalg.svd(scaled * np.sqrt(weights)[:, None], full_matrices=False)[2][0]
    order = np.argsort(scaled @ longest)  # kept at even steps along the longest axis, so that few represent many
    picked = draws[order][np.searchsorted(np.cumsum(weights[order]), (np.arange(KEPT) + 0.5) / KEPT).clip(max=DRAWS - 1)]
    notes = [f"predictive interval is rough: {effective:.0f} effective draws"] * (effective < 100)
    return picked, np.full(KEPT, 1 / KEPT), np.zeros((KEPT, len(theta), len(theta))), notes


def _student(n: int, p: int, dof: int) -> np.ndarray:
    """n quasi-random points of a p-dimensional Student t: a Kronecker sequence, whose errors fall as 1 / n rather than 1 / sqrt(n)."""
    from scipy.special import chdtri, ndtri
    golden = 2.0
    for _ in range(60):
        golden = (1 + golden) ** (1 / (p + 2))  # the root of g^(p + 2) = 1 + g, for p + 1 dimensions
    u = (0.5 + np.arange(1, n + 1)[:, None] * golden ** -np.arange(1.0, p + 2)) % 1
    return ndtri(u[:, :p]) / np.sqrt(chdtri(dof, u[:, p:]) / dof)
