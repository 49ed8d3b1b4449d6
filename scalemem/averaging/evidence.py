"""Linear models with the noise integrated out, for many designs at once; and a linear combination kept within bounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Linear:
    """The posteriors of many linear models: log evidence (...), coefficients (..., q), their covariances (..., q, q), the variance of
    the noise (...), and degrees of freedom."""

    log_evidence: np.ndarray
    beta: np.ndarray
    covariance: np.ndarray
    noise: np.ndarray
    dof: float


def solve(designs: np.ndarray, target: np.ndarray, log_det: np.ndarray, prior: tuple[float, float]) -> Linear:
    """Regression of a whitened target on each of many designs, by modified Gram-Schmidt.

    With a flat prior on beta and nu0 s0^2 / s^2 ~ chi^2(nu0), nu = n - q + nu0 and S the residual sum of squares plus nu0 s0^2,

        log evidence = log Gamma(nu / 2) - nu / 2 log(S / 2) - 1/2 log det X'X + q / 2 log 2 pi - 1/2 log det K.

    Args:
      designs: (q, k, n, m): the q whitened columns of m designs under k covariances.
      target: (k, n), whitened.
      log_det: (k,), half the log determinant of the covariances.
      prior: nu0 and s0.
    Returns:
      a Linear with leading axes (k, m). A design whose columns are not independent has evidence -inf.
    """
    from scipy.special import gammaln
    q, k, n, m = designs.shape
    columns, rest = list(designs), np.broadcast_to(target[:, :, None], (k, n, m))
    upper, projected = np.zeros((k, m, q, q)), np.zeros((k, m, q))
    dependent = np.zeros((k, m), bool)
    for j in range(q):
        whole = np.sqrt(np.einsum("knm,knm->km", designs[j], designs[j]))
        size = np.sqrt(np.einsum("knm,knm->km", columns[j], columns[j]))
        dependent |= ~(size > 1e-7 * whole)
        upper[..., j, j] = size = np.where(dependent, 1.0, size)
        unit = columns[j] / size[:, None]
        for later in range(j + 1, q):
            upper[..., j, later] = along = np.einsum("knm,knm->km", unit, columns[later])
            columns[later] = columns[later] - unit * along[:, None]
        projected[..., j] = along = np.einsum("knm,knm->km", unit, rest)
        rest = rest - unit * along[:, None]
    inverse = np.zeros_like(upper)
    for j in range(q):  # the inverse of a triangle, column by column
        inverse[..., j, j] = 1 / upper[..., j, j]
        for i in range(j - 1, -1, -1):
            inverse[..., i, j] = -np.einsum("kmc,kmc->km", upper[..., i, i + 1:j + 1], inverse[..., i + 1:j + 1, j]) / upper[..., i, i]
    dof = n - q + prior[0]
    sse = np.einsum("knm,knm->km", rest, rest) + prior[0] * prior[1] ** 2
    noise = sse / dof
    beta = np.einsum("kmij,kmj->kmi", inverse, projected)
    covariance = np.einsum("kmij,kmlj->kmil", inverse, inverse) * noise[..., None, None]
    logs = np.log(np.abs(np.einsum("kmjj->kmj", upper))).sum(-1)
    evidence = gammaln(dof / 2) - dof / 2 * np.log(sse / 2) - logs + q / 2 * np.log(2 * np.pi) - log_det[:, None]
    return Linear(np.where(dependent | ~np.isfinite(evidence), -np.inf, evidence), beta, covariance, noise, dof)


def truncate(found: Linear, direction: np.ndarray, low: float, high: float) -> None:
    """Keeps direction . beta within bounds, in place: the evidence times the probability of the bounds, the first two moments matched.

    Args:
      found: k covariances x m designs.
      direction: (m, q); a row of zeros or NaN is not bounded.
      low, high: bounds.
    """
    from scipy.special import ndtr
    bounded = np.any(direction != 0, axis=1) & np.all(np.isfinite(direction), axis=1)
    g = np.where(bounded[:, None], direction, 1.0)
    u = np.einsum("kmi,mi->km", found.beta, g)
    shared = np.einsum("kmij,mj->kmi", found.covariance, g)
    variance = np.maximum(np.einsum("kmi,mi->km", shared, g), 1e-300)
    sd = np.sqrt(variance)
    a, b = np.clip((low - u) / sd, -1e6, 1e6), np.clip((high - u) / sd, -1e6, 1e6)
    mass = np.where(a > 0, ndtr(-a) - ndtr(-b), ndtr(b) - ndtr(a))
    known = mass > 1e-12
    mass = np.maximum(mass, 1e-300)
    heights = [np.exp(-0.5 * np.minimum(v * v, 1400.0)) / np.sqrt(2 * np.pi) for v in (a, b)]
    shift = (heights[0] - heights[1]) / mass
    spread = 1 + (np.clip(a, -38, 38) * heights[0] - np.clip(b, -38, 38) * heights[1]) / mass - shift**2
    shift = np.where(bounded & known, shift, 0.0)
    spread = np.where(bounded & known, np.clip(spread, 1e-4, 1.0), 1.0)
    gain = shared / variance[..., None]
    found.beta = found.beta + gain * (shift * sd)[..., None]
    found.covariance = found.covariance - gain[..., :, None] * gain[..., None, :] * ((1 - spread) * variance)[..., None, None]
    found.log_evidence = found.log_evidence + np.where(bounded, np.where(known, np.log(mass), -np.inf), 0.0)
