"""Membership inference: F1 of the loss attack against the data set's bits per parameter."""

import numpy as np

from scalemem.laws.base import Arrays, Law, Parameter


def _f1(x: Arrays, p: Arrays) -> np.ndarray:
    z = p["c2"] * (x["data_bits"] / x["n_params"] + p["c3"])
    return 0.5 * (1 + p["c1"] * (1 + np.tanh(z / 2)) / 2)


def _guess(x: Arrays, y: np.ndarray) -> dict:
    ratio = x["data_bits"] / x["n_params"]
    width = np.ptp(ratio) or ratio.max()
    return {"c2": [-k / width for k in (2.0, 6.0, 20.0)], "c3": [-v for v in np.quantile(ratio, (0.1, 0.35, 0.6, 0.85))]}


MEMBERSHIP = Law(
    name="membership_sigmoid",
    formula="F1 = (1 + c1 sigmoid(c2 (data_bits / n_params + c3))) / 2",
    function=_f1,
    predictors=("data_bits", "n_params"),
    parameters=(Parameter("c1", low=0.0), Parameter("c2", "{n_params}/{data_bits}", high=0.0), Parameter("c3", "{data_bits}/{n_params}")),
    scale="linear",
    linear=("c1",),
    guess=_guess,
    limits=(-np.inf, 1.0),
    asymptote="1/2 (chance) as the data grow",
    unidentifiable="c1 and c3 apart where no row is small enough to saturate: then only c1 e^(c2 c3) and c2 are seen; "
                   "c2 where all rows lie on one side of the fall",
    source="Morris et al. 2025 (arXiv 2505.24832), with the ratio turned over as their own table requires: dataset bits per parameter",
)
