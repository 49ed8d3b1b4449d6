"""Memorized bits: a data set's bits until the model is full, alpha bits a parameter from there on."""

import numpy as np

from scalemem.laws.base import Arrays, Law, Parameter

_ALPHA = Parameter("alpha", "{y}/{n_params}", log=True)
_SOURCE = "Morris et al. 2025 (arXiv 2505.24832): mem(N) = min(capacity, N S log2 V), capacity = alpha P"


def _hard(x: Arrays, p: Arrays) -> np.ndarray:
    full = p["alpha"] * x["n_params"]
    return np.where(np.real(full) < x["data_bits"], full, x["data_bits"])


def _smooth(x: Arrays, p: Arrays) -> np.ndarray:
    """(data^-s + full^-s)^(-1/s) through logarithms, so that a large s does not overflow."""
    full, data = np.log(p["alpha"] * x["n_params"]), np.log(x["data_bits"])
    first = np.real(full) < data
    low, high = np.where(first, full, data), np.where(first, data, full)
    return np.exp(low - np.log1p(np.exp(-p["s"] * (high - low))) / p["s"])


def _guess(x: Arrays, y: np.ndarray) -> dict:
    """Candidates for alpha: bits per parameter as read, from the median to the largest, and a third above."""
    read = np.quantile(y / x["n_params"], (0.5, 0.75, 1.0))
    return {"alpha": (*read, 1.3 * read[-1])}


HARD = Law(
    name="capacity",
    formula="y = min(data_bits, alpha n_params)",
    function=_hard,
    predictors=("data_bits", "n_params"),
    parameters=(_ALPHA,),
    guess=_guess,
    asymptote="alpha n_params as the data grow",
    unidentifiable="alpha where no model is full",
    source=_SOURCE,
)

SMOOTH = Law(
    name="capacity_smooth",
    formula="y = (data_bits^-s + (alpha n_params)^-s)^(-1/s)",
    function=_smooth,
    predictors=("data_bits", "n_params"),
    parameters=(_ALPHA, Parameter("s", "1", log=True, starts=(1.5, 6.0, 25.0))),
    guess=_guess,
    asymptote="alpha n_params as the data grow; the hard minimum as s grows",
    unidentifiable="alpha where no model is full; s where no row is near the knee",
    source=_SOURCE + "; the smooth minimum is ours",
)

BITS_LINEAR = Law(
    name="bits_linear",
    formula="y = alpha n_params",
    function=lambda x, p: p["alpha"] * x["n_params"],
    predictors=("n_params",),
    parameters=(_ALPHA,),
    linear=("alpha",),
    asymptote="none",
    unidentifiable="nothing, given two rows",
    source=_SOURCE,
)
