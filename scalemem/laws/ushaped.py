"""Inverse scaling: a quantity that falls with x and then rises, or the other way about. Residuals on the log."""

from scalemem.laws.base import Law, Parameter
from scalemem.laws.parts import power

_STARTS = (0.1, 0.4, 1.2)

U_SHAPED = Law(
    name="u_shaped",
    formula="y = e + a x^-b + c x^d",
    function=lambda x, p: p["e"] + p["a"] * power(x["x"], -p["b"]) + p["c"] * power(x["x"], p["d"]),
    predictors=("x",),
    parameters=(Parameter("e", "{y}", low=0.0), Parameter("a", "{y} {x}^b", log=True), Parameter("b", log=True, starts=_STARTS),
                Parameter("c", "{y}/{x}^d", log=True), Parameter("d", log=True, starts=_STARTS)),
    linear=("e", "a", "c"),
    asymptote="none: it rises as c x^d; it is least at x = (a b / (c d))^(1/(b + d))",
    unidentifiable="c and d where the rise has not begun; e, b and d apart where the bottom is not sampled",
    source="ours: two power laws and a level, the least that falls, rises and is a power law at either end",
)
