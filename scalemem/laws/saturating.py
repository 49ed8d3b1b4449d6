"""Curves between two levels: a power law's approach to a ceiling, the Hill curve and the sigmoid in log x. Residuals on y."""

import numpy as np

from scalemem.laws.base import Arrays, Law, Parameter
from scalemem.laws.parts import power, softplus, span, within


def _rise(x: Arrays, middle: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """1 / (1 + (x/middle)^-slope), from 0 to 1."""
    return np.exp(-softplus(-slope * np.log(x["x"] / middle)))


def _steps(x: Arrays, where: str, slope: str) -> dict:
    """Middles along x, and slopes of which one is spread over the data and one is a jump."""
    return {where: within(x["x"], 0.1, 0.4, 0.7, 1.0), slope: [v / span(x["x"])[1] for v in (2.0, 6.0, 20.0)]}


SATURATING_POWER = Law(
    name="saturating_power",
    formula="y = a - c x^-b",
    function=lambda x, p: p["a"] - p["c"] * power(x["x"], -p["b"]),
    predictors=("x",),
    parameters=(Parameter("a", "{y}"), Parameter("c", "{y} {x}^b"), Parameter("b", log=True, starts=(0.05, 0.15, 0.4, 1.0, 2.5))),
    scale="linear",
    linear=("a", "c"),
    asymptote="a as x grows",
    unidentifiable="a and b where the curve has not begun to bend: then it is log_linear; c and b where it is flat already",
    source="power_floor turned over, for accuracies; law `exposure` is the same with a prior on the exponent",
)

HILL = Law(
    name="hill",
    formula="y = a / (1 + (d/x)^b)",
    function=lambda x, p: p["a"] * _rise(x, p["d"], p["b"]),
    predictors=("x",),
    parameters=(Parameter("a", "{y}"), Parameter("d", "{x}", log=True), Parameter("b", log=True)),
    scale="linear",
    linear=("a",),
    guess=lambda x, y: _steps(x, "d", "b"),
    asymptote="a as x grows; a power law x^b far below d",
    unidentifiable="a and d apart where every x is far below d: only a power law is seen; d and b where every x is far above it",
    source="Hill's curve, a power law that saturates; NIST's Misra1d and Rat42 are of this form (StRD, nonlinear regression)",
)

SIGMOID_LOG = Law(
    name="sigmoid_log",
    formula="y = start + (end - start) / (1 + (x/x0)^-k)",
    function=lambda x, p: p["start"] + (p["end"] - p["start"]) * _rise(x, p["x0"], p["k"]),
    predictors=("x",),
    parameters=(Parameter("start", "{y}"), Parameter("end", "{y}"), Parameter("x0", "{x}", log=True), Parameter("k", log=True)),
    scale="linear",
    linear=("start", "end"),
    guess=lambda x, y: _steps(x, "x0", "k"),
    asymptote="start as x falls, end as x grows; half way at x0",
    unidentifiable="start where no row is left of the step, end where none is right of it, x0 and k where the rows jump over it",
    source="the logistic curve in log(x/x0); with start = chance it is a rise of accuracy with scale",
)
