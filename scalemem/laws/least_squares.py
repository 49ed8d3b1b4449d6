"""The fit of one group under any loss: many starts, profile or bootstrap intervals, and no digit for what is not identified."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from scalemem.laws.base import Law
from scalemem.laws.draws import KEPT, draws, with_atom
from scalemem.laws.identified import at_zero, identified, refuse
from scalemem.laws.losses import Loss
from scalemem.laws.posterior import Estimate, Posterior, Result
from scalemem.laws.problem import Problem
from scalemem.laws.profiles import profiles
from scalemem.laws.project import scatter
from scalemem.laws.refit import refit
from scalemem.laws.sample import Sample
from scalemem.tables import TooFewRows

LACK_OF_FIT = 0.1  # below this p-value the misfit between replicate means is estimated and the means, not the runs, are counted
MOST_CONCENTRATED = 1e7  # beta-binomial counts are binomial beyond
SQUARED = Loss("squared")


def least_squares(law: Law, s: Sample, *, interval: float, noise_sd: float | None = None, misfit_sd: float | None = None,
                  loss: Loss = SQUARED, starts: int = 0, bootstrap: int = 0) -> Result:
    """The fit of one group; law and sample are on the scale of the loss. Raises TooFewRows for fewer rows than parameters + 1."""
    p, n = len(law.names), len(s)
    if n < p + 1:
        raise TooFewRows(f"law {law.name}: {n} rows for {p} parameters: needs at least {p + 1}; add rows or choose a smaller law")
    problem = Problem(law, s, loss)
    tried = law.starts(s.x, problem.level)
    if tried and starts:
        tried = [*tried, *scatter(law, s.x, problem.level, np.array(tried), starts)]
    ends = problem.search(np.array(tried).reshape(-1, p))
    if not np.isfinite(ends.cost).any():
        raise TooFewRows(f"law {law.name}: no start is finite on these rows; give x and y values of ordinary size")
    least = float(np.nanmin(ends.cost))
    near = np.flatnonzero(ends.cost <= least + 1e-6 * abs(least) + 1e-24 * float(np.sum(s.eta**2)))
    first = near[0]
    if least <= 1e-20 * float(np.sum(s.eta**2)) and loss.squared:  # all rows are exact: an end where some parameter has no effect shows that
        first = min(near, key=lambda i: int(identified(problem, ends.theta[i])[0].sum()))
    theta, problem = ends.theta[first], problem.at(float(ends.nuisance[first]))
    turns = 0
    while True:  # again where a profile meets a lower value
        turns += 1
        objective = loss.factor * float(problem.deviance(theta[None])[0]) / 2
        scale, ratio, noise, misfit, dof, p_fit, notes = _noise(problem, theta, objective, noise_sd, misfit_sd)
        if ratio > 0:
            problem = replace(problem, ratio=ratio)
            theta = problem.minimise(theta[None]).theta[0]
        deviance = float(problem.deviance(theta[None])[0])
        free, unseen, lost = identified(problem, theta)
        estimates, covariance, best = profiles(problem, theta, deviance, free, lost, scale, dof, interval)
        if turns == 3 or best is theta or float(problem.deviance(best[None])[0]) >= deviance - 1e-6 * abs(deviance):
            break
        problem = Problem(law, s, loss, 0.0, problem.nuisance)
        lower = problem.minimise(best[None])
        theta, near = lower.theta[0], np.flatnonzero(ends.cost <= lower.cost[0] + 1e-6 * abs(lower.cost[0]))
    notes += [f"only {len(near)} of {len(tried)} starts agree"] * (2 * len(near) < len(tried) and (law.guess is None or not len(near)))
    points, weights, covariances, unstable = with_atom(problem, draws(problem, theta, deviance, free, covariance, scale, dof), theta, deviance,
                                                       free, scale, dof, skip=bool(bootstrap))
    how = "profile" if loss.squared else "likelihood ratio" if loss.likelihood else "likelihood ratio, calibrated to the residuals"
    if bootstrap:
        again, failed = resample(problem, theta, bootstrap)
        estimates = {k: _percentiles(e, law, again[:, j], j, interval) for j, (k, e) in enumerate(estimates.items())}
        points = again[np.linspace(0, len(again) - 1, min(KEPT, len(again))).astype(int)]
        weights, covariances = np.full(len(points), 1 / len(points)), np.zeros((len(points), p, p))
        how, unstable = f"bootstrap of {len(again)} refits", [f"{failed} of {bootstrap} bootstrap refits failed"] * (failed > 0)
    estimates = refuse(law, estimates, len(near))
    notes += at_zero(law, estimates)
    posterior = Posterior(weights, points, covariances, noise, misfit, dof, unseen, law.scale)
    nuisance = {loss.nuisance: problem.nuisance} if loss.nuisance else {}
    if loss.counts and problem.nuisance > MOST_CONCENTRATED:
        nuisance[loss.nuisance] = math.nan
        notes.append(f"{loss.nuisance}: not identified: the counts scatter no more than a binomial's")
    return Result(estimates, posterior, objective, len(tried), len(near), p_fit, (*notes, *unstable), how, nuisance)


def resample(problem: Problem, theta: np.ndarray, n: int, seed: int = 0) -> tuple[np.ndarray, int]:
    """theta of n refits to rows drawn with replacement (blocks of equal x where they share a misfit), and how many more had no end."""
    s, rng = problem.s, np.random.default_rng(seed)
    units = len(s.blocks) if problem.ratio else len(s)
    weights = rng.multinomial(units, np.full(units, 1 / units), size=n).astype(float)
    if problem.ratio:
        weights = np.repeat(weights, np.diff(np.append(s.blocks, len(s))), axis=1)
    found = refit(problem.rows, np.tile(theta, (n, 1)), weights=weights, near=True)
    good = found.settled & np.isfinite(found.theta).all(axis=1)
    return found.theta[good], int(n - good.sum())


def _percentiles(e: Estimate, law: Law, theta: np.ndarray, j: int, interval: float) -> Estimate:
    if e.status.startswith("not identified") or len(theta) < 20:
        return e if e.status != "ok" else replace(e, low=math.nan, high=math.nan, value=math.nan, status="not identified: refits fail")
    low, high = np.quantile(np.exp(theta) if law.parameters[j].log else theta, ((1 - interval) / 2, (1 + interval) / 2))
    return replace(e, low=float(low), high=float(high)) if e.status == "ok" else e


def _noise(problem: Problem, theta: np.ndarray, objective: float, noise_sd: float | None, misfit_sd: float | None):
    """(scale of the deviance, ratio, noise, misfit, dof, p-value of lack of fit, notes) under the loss."""
    s, loss, p = problem.s, problem.loss, len(theta)
    n = len(s)
    eta = problem.law.predict(s.x, theta) * np.ones(n)
    if loss.squared:
        scale, ratio, noise, misfit, dof, p_fit = _variance(s, objective, p, noise_sd, misfit_sd)
        notes = [f"lack of fit (p = {p_fit:.2g}): replicate means scatter by {misfit:.3g} beyond run noise"] * (p_fit < LACK_OF_FIT and misfit > 0)
        return scale, ratio, noise, misfit, dof, p_fit, notes
    if not loss.counts:
        return problem.spread(theta), 0.0, math.sqrt(float(np.sum((eta - s.eta) ** 2)) / (n - p)), 0.0, float(n - p), math.nan, []
    assert s.trials is not None
    if loss.nuisance:
        return 1.0, 0.0, math.sqrt(float(np.mean(eta * (1 - eta)) / (1 + problem.nuisance))), 0.0, float(n - p), math.nan, []
    from scipy.special import chdtrc
    excess = float(np.sum((s.eta - s.trials * eta) ** 2 / np.maximum(s.trials * eta * (1 - eta), 1e-300)))
    p_fit = float(chdtrc(n - p, excess))
    notes = [f"lack of fit (p = {p_fit:.2g}): counts scatter {excess / (n - p):.3g} times as much as a binomial's; "
             "use the loss beta_binomial"] * (p_fit < 0.01)
    return 1.0, 0.0, 0.0, 0.0, math.inf, p_fit, notes


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
