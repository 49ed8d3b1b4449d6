"""Logistic regression with a ridge, by Newton's method with a line search: convex, so that there is one answer."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

STEPS = 100  # Newton steps at most; a dozen are taken


class Logistic(NamedTuple):
    """logit p = intercept + sum_j coefficients_j (x_j - mean_j) / scale_j."""

    intercept: float
    coefficients: np.ndarray  # [d], of the standardised features
    mean: np.ndarray  # [d]
    scale: np.ndarray  # [d]; infinite where a feature did not vary, so that it counts for nothing

    def logit(self, x: np.ndarray) -> np.ndarray:
        """Logit of the probability, x [..., d] -> [...]."""
        return self.intercept + ((x - self.mean) / self.scale) @ self.coefficients

    def probability(self, x: np.ndarray) -> np.ndarray:
        """Probability, x [..., d] -> [...]."""
        from scipy.special import expit

        return expit(self.logit(x))


def fit(x: np.ndarray, y: np.ndarray, penalty: float = 1.0, balanced: bool = False) -> Logistic:
    """Minimises sum_i w_i [log(1 + e^l_i) - y_i l_i] + penalty |coefficients|^2 / 2 over standardised features; the intercept is free.

    Args:
      x: features [n, d], any units.
      y: 0 or 1, [n].
      penalty: of standardised coefficients, above 0.
      balanced: w_i = n / (2 n of the class of i) in place of 1.
    Raises:
      ValueError: no rows.

    With one class alone the free intercept has no finite best value; it is then the logit of (successes + 1/2) / (n + 1), and nothing else.

    >>> m = fit(np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 1, 0, 1]))
    >>> bool(m.probability(np.array([3.0])) > m.probability(np.array([0.0])))
    True
    """
    from scipy.special import expit

    y = np.asarray(y, float)
    n, d = x.shape
    if n == 0:
        raise ValueError("rows = 0: a regression must have some; measure more sequences")
    mean, sd = x.mean(0), x.std(0)
    scale = np.where(sd > 1e-12 * (1 + np.abs(mean)), sd, math.inf)
    if y.min() == y.max():
        return Logistic(math.log((y.sum() + 0.5) / (n - y.sum() + 0.5)), np.zeros(d), mean, scale)
    weight = np.where(y == 1, n / (2 * y.sum()), n / (2 * (n - y.sum()))) if balanced else np.ones(n)
    design = np.concatenate([np.ones((n, 1)), (x - mean) / scale], 1)
    ridge = np.append(0.0, np.full(d, penalty))

    def objective(beta: np.ndarray) -> float:
        linear = design @ beta
        return float(np.sum(weight * (np.logaddexp(0, linear) - y * linear)) + (ridge * beta**2).sum() / 2)

    beta = np.zeros(d + 1)
    best = objective(beta)
    for _ in range(STEPS):
        p = expit(design @ beta)
        gradient = design.T @ (weight * (p - y)) + ridge * beta
        curvature = (design * (weight * p * (1 - p))[:, None]).T @ design + np.diag(ridge + 1e-10)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while (new := objective(beta - size * step)) > best and size > 1e-8:
            size /= 2
        if not new < best - 1e-12 * (1 + abs(best)):
            break
        beta, best = beta - size * step, new
    return Logistic(float(beta[0]), beta[1:], mean, scale)
