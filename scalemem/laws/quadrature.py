"""A law that is linear in all parameters but one, which has a prior: the linear ones are Gaussian given it, and it is integrated out.

With y = o(g) + B(g) beta + run noise + misfit (shared by runs of equal x), V their covariance and r = y - o(g) - B beta_hat,

    weight(g) ~ prior(g) exp(-r' V^-1 r / 2) |B' V^-1 B|^-1/2 |B_ref(g)|

B_ref is the basis at the ends of the data: the last factor makes the prior flat in the curve's values there, so that units and
parametrisation do not matter. The posterior is the mixture over g of beta ~ N(beta_hat, (B' V^-1 B)^-1); exact given noise and misfit.
"""

from __future__ import annotations

import math

import numpy as np

from scalemem.laws.base import Law
from scalemem.laws.posterior import Estimate, Posterior, Predictive, Result
from scalemem.laws.sample import Sample
from scalemem.tables import TooFewRows

GRID = 41  # points, at first over the prior's mean +- 4 sd


def pooled_noise(law: Law, samples: list[Sample], known: float | None, level: float) -> tuple[float, float]:
    """Run noise and its degrees of freedom: known (inf), or replicates of all groups with the law's weak prior, times `level`."""
    if known is not None:
        return known, math.inf
    sd, prior_dof = law.noise_prior[0] * level, law.noise_prior[1]
    errors = [s.pure_error() for s in samples]
    dof = prior_dof + sum(d for _, d in errors)
    return (math.sqrt((prior_dof * sd**2 + sum(ss for ss, _ in errors)) / dof) if dof else 0.0), dof


def integrate(law: Law, s: Sample, *, interval: float, noise_sd: float, dof: float, misfit_sd: float) -> Result:
    """The fit of one group. Raises TooFewRows for fewer rows or distinct x than there are parameters to be found from them."""
    j, linear = law.shape, [law.names.index(k) for k in law.linear]
    assert j is not None
    if len(s) < len(linear) + 1 or len(s.blocks) < len(linear):
        raise TooFewRows(f"law {law.name}: {len(s)} rows with {len(s.blocks)} distinct x: needs at least {len(linear) + 1} rows "
                         f"with {len(linear)} distinct x; add runs")
    noise_sd = max(noise_sd, 1e-9 * float(np.abs(s.y).max()))
    mean, sd = law.parameters[j].prior or (0.0, 1.0)
    grid = np.linspace(mean - 4 * sd, mean + 4 * sd, GRID)
    for _ in range(12):  # the grid closes in until the posterior is wider than its steps
        points, covariances, log_weight, chi2, sse = _on_grid(law, s, grid, j, linear, (mean, sd), noise_sd, misfit_sd)
        weights = np.exp(log_weight - log_weight.max())
        weights /= weights.sum()
        middle = float(weights @ grid)
        spread, step = math.sqrt(float(weights @ (grid - middle) ** 2)), grid[1] - grid[0]
        if spread > 1.5 * step:
            break
        grid = np.linspace(middle - max(6 * spread, 3 * step), middle + max(6 * spread, 3 * step), GRID)
    best, moved, keep = int(np.argmin(chi2)), spread / sd, weights > 1e-7
    posterior = Posterior(weights[keep] / weights[keep].sum(), points[keep], covariances[keep], noise_sd, misfit_sd, dof,
                          np.zeros((0, len(law.names))))
    from scipy.special import chdtrc
    spare = len(s) - len(linear)
    p_fit = float(chdtrc(spare, chi2[best]))
    notes = [f"{law.names[j]} is set by its prior: the data leave {100 * moved:.0f} % of its spread"] * (moved > 0.8)
    notes += [f"lack of fit (p = {p_fit:.2g}): residuals exceed run noise {noise_sd:.3g} and misfit {misfit_sd:.3g}"] * (p_fit < 0.01)
    estimates = {p.name: _estimate(posterior, k, p.log, p.unit, interval) for k, p in enumerate(law.parameters)}
    return Result(estimates, posterior, float(sse[best]), 1, 1, p_fit, tuple(notes))


def _on_grid(law: Law, s: Sample, grid: np.ndarray, j: int, linear: list[int], prior: tuple[float, float], noise_sd: float,
             misfit_sd: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """theta, the covariance of its linear part, the log weight, chi^2 and the sum of squares at each value of parameter j."""
    ratio, ends = (misfit_sd / noise_sd) ** 2, s.blocks[np.linspace(0, len(s.blocks) - 1, len(linear)).round().astype(int)]
    points, covariances = np.zeros((GRID, len(law.names))), np.zeros((GRID, len(law.names), len(law.names)))
    points[:, j] = grid
    log_weight, chi2, sse = np.zeros(GRID), np.zeros(GRID), np.zeros(GRID)
    for k, theta in enumerate(points):
        offset, basis = law.basis(s.x, theta)
        size = np.abs(basis).max(axis=0)
        q, r = np.linalg.qr(s.whiten((basis / size).T, ratio).T / noise_sd)
        beta = np.linalg.solve(r, q.T @ s.whiten(s.y - offset, ratio) / noise_sd)
        rest = s.y - offset - basis / size @ beta
        half = np.linalg.inv(r) / size[:, None]
        theta[linear] = beta / size
        covariances[k][np.ix_(linear, linear)] = half @ half.T
        chi2[k], sse[k] = np.sum((s.whiten(rest, ratio) / noise_sd) ** 2), np.sum(rest**2)
        log_weight[k] = (-((theta[j] - prior[0]) / prior[1]) ** 2 / 2 - chi2[k] / 2 - np.log(np.abs(np.diag(r))).sum()
                         + np.linalg.slogdet((basis / size)[ends])[1])
    return points, covariances, log_weight, chi2, sse


def _estimate(posterior: Posterior, k: int, log: bool, unit: str, interval: float) -> Estimate:
    """Median and central interval of one parameter: the mixture's quantiles."""
    from scalemem.laws.constant import CONSTANT
    sd = np.sqrt(posterior.covariances[:, k, k])
    if not sd.any():  # the integrated parameter itself: quantiles of the grid
        order = np.cumsum(posterior.weights) - posterior.weights / 2
        middle, low, high = np.interp((0.5, (1 - interval) / 2, (1 + interval) / 2), order, posterior.points[:, k])
    else:
        mixture = Predictive(CONSTANT, posterior.weights, posterior.points[:, k:k + 1], sd[:, None], posterior.dof)
        middle, low, high = (float(mixture.quantile(q)[0]) for q in (0.5, (1 - interval) / 2, (1 + interval) / 2))
    middle, low, high = (math.exp(v) if log else float(v) for v in (middle, low, high))
    return Estimate(middle, low, high, unit)
