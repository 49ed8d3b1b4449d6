"""What several laws are made of: powers and softplus, analytic and safe from overflow, and places along x for starts."""

import numpy as np


def power(x: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """x^exponent for positive x."""
    return np.exp(exponent * np.log(x))


def softplus(v: np.ndarray) -> np.ndarray:
    """log(1 + e^v).

    >>> float(softplus(np.array(-800.0))), float(softplus(np.array(800.0)))
    (0.0, 800.0)
    """
    large = np.real(v) > 0
    return np.where(large, v, 0.0) + np.log1p(np.exp(np.where(large, -v, v)))


def span(x: np.ndarray) -> tuple[float, float]:
    """The least positive x, as a logarithm, and the width of the positive x in log x (1 where they are all the same)."""
    log = np.log(x[x > 0]) if np.any(x > 0) else np.zeros(1)
    return float(log.min()), float(np.ptp(log)) or 1.0


def within(x: np.ndarray, *fractions: float) -> list[float]:
    """Places at fractions of the range of log x; below 0 and above 1 they lie outside of the data.

    >>> [round(v) for v in within(np.array([1.0, 10, 10000]), 0, 0.5, 1.25)]
    [1, 100, 100000]
    """
    low, width = span(x)
    return [float(np.exp(low + f * width)) for f in fractions]
