"""Exponential approach and decay, towards a level or from 0. Residuals on y, which may pass through 0."""

import itertools

import numpy as np

from scalemem.laws.base import Arrays, Law, Parameter
from scalemem.laws.parts import within


def _pairs(x: Arrays, y: np.ndarray) -> list[dict[str, float]]:
    """A fast and a slow time, of all pairs of places along x."""
    return [{"t1": fast, "t2": slow} for fast, slow in itertools.combinations(within(x["x"], 0.1, 0.4, 0.65, 0.85, 1.1), 2)]


SATURATING_EXPONENTIAL = Law(
    name="saturating_exponential",
    formula="y = a (1 - exp(-x/t))",
    function=lambda x, p: -p["a"] * np.expm1(-x["x"] / p["t"]),
    predictors=("x",),
    parameters=(Parameter("a", "{y}"), Parameter("t", "{x}", log=True)),
    scale="linear",
    linear=("a",),
    guess=lambda x, y: {"t": within(x["x"], 0.2, 0.5, 0.8, 1.0, 1.5)},
    zero=("x",),
    asymptote="a as x grows; 0 at x = 0",
    unidentifiable="a and t apart where x stays far below t: only a/t, the slope, is seen; t where every x is far above it",
    source="first-order approach to a ceiling from 0; NIST calls it Misra1a and BoxBOD (StRD, nonlinear regression)",
)

EXPONENTIAL = Law(
    name="exponential",
    formula="y = a exp(-x/t)",
    function=lambda x, p: p["a"] * np.exp(-x["x"] / p["t"]),
    predictors=("x",),
    parameters=(Parameter("a", "{y}"), Parameter("t", "{x}", log=True)),
    scale="linear",
    linear=("a",),
    guess=lambda x, y: {"t": within(x["x"], 0.2, 0.5, 0.8, 1.0, 1.5)},
    zero=("x",),
    asymptote="0 as x grows; a at x = 0",
    unidentifiable="t where every x is far below it: the curve is flat; a and t where every x is far above it: it is 0",
    source="first-order decay to 0; its half-life is t log 2. A popular, simplified forgetting curve (shared/literature/forgetting.md 4.8)",
)

EXPONENTIAL_DECAY = Law(
    name="exponential_decay",
    formula="y = e + a exp(-x/t)",
    function=lambda x, p: p["e"] + p["a"] * np.exp(-x["x"] / p["t"]),
    predictors=("x",),
    parameters=(Parameter("e", "{y}"), Parameter("a", "{y}"), Parameter("t", "{x}", log=True)),
    scale="linear",
    linear=("e", "a"),
    guess=lambda x, y: {"t": within(x["x"], 0.2, 0.5, 0.8, 1.0, 1.5)},
    zero=("x",),
    asymptote="e as x grows; e + a at x = 0; a below 0 rises",
    unidentifiable="e and t where the curve has not begun to bend; a and t where it is flat already",
    source="first-order decay to a level; its half-life is t log 2. The null against log-linear and power laws of forgetting "
           "(shared/literature/forgetting.md 2)",
)

EXPONENTIAL_DECAY_DOUBLE = Law(
    name="exponential_decay_double",
    formula="y = e + a1 exp(-x/t1) + a2 exp(-x/t2)",
    function=lambda x, p: p["e"] + p["a1"] * np.exp(-x["x"] / p["t1"]) + p["a2"] * np.exp(-x["x"] / p["t2"]),
    predictors=("x",),
    parameters=(Parameter("e", "{y}"), Parameter("a1", "{y}"), Parameter("t1", "{x}", log=True), Parameter("a2", "{y}"),
                Parameter("t2", "{x}", log=True)),
    scale="linear",
    linear=("e", "a1", "a2"),
    guess=_pairs,
    zero=("x",),
    asymptote="e as x grows; e + a1 + a2 at x = 0",
    unidentifiable="a1, a2, t1 and t2 apart where t1 and t2 differ by less than a factor of about 3 and noise hides it; the two terms may "
                   "be named the other way round",
    source="a fast and a slow first-order decay to a level; NIST calls it MGH17 (StRD, nonlinear regression)",
)
