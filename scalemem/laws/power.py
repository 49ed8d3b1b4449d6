"""Power laws in one predictor, with and without a floor; residuals on the log, so that an error is a relative one."""

import numpy as np

from scalemem.laws.base import Law, Parameter

POWER = Law(
    name="power",
    formula="y = a x^b",
    function=lambda x, p: p["a"] * np.exp(p["b"] * np.log(x["x"])),
    predictors=("x",),
    parameters=(Parameter("a", "{y}/{x}^b", log=True), Parameter("b", "1", starts=(-1.0, 0.0, 1.0))),
    linear=("a",),
    asymptote="0 or infinity: none",
    unidentifiable="one distinct x",
    source="M1 of Alabdulmohsin et al. 2022; a straight line in log-log coordinates",
)

POWER_FLOOR = Law(
    name="power_floor",
    formula="y = e + a x^-b",
    function=lambda x, p: p["e"] + p["a"] * np.exp(-p["b"] * np.log(x["x"])),
    predictors=("x",),
    parameters=(Parameter("e", "{y}", low=0.0), Parameter("a", "{y} {x}^b", log=True),
                Parameter("b", "1", log=True, starts=(0.05, 0.15, 0.4, 1.0, 2.5))),
    linear=("e", "a"),
    asymptote="e as x grows",
    unidentifiable="e where the curve has not begun to bend; a and b where it is flat already",
    source="M2 of Alabdulmohsin et al. 2022",
)
