"""Power laws in one predictor: pure, with a floor, shifted, and the estimators M3 and M4; residuals on the log, so that an error is relative."""

import numpy as np

from scalemem.laws.base import Arrays, Law, Parameter
from scalemem.laws.parts import power, softplus, within

_CODE = "read in google-research/revisiting_neural_scaling_laws/methods"


def _normalized_excess(x: Arrays, p: Arrays) -> np.ndarray:
    """u in (0, 1) with u / (1 - u)^alpha = (x/d)^-c.

    With v = log(u / (1 - u)) it is h(v) = -softplus(-v) + alpha softplus(v) = -c log(x/d), where h rises and is convex or concave
    throughout, so that Newton's steps converge from any start; the last one carries the derivative of a complex step.
    """
    alpha, right = p["alpha"], -p["c"] * np.log(x["x"] / p["d"])
    real_alpha, real_right = np.real(alpha), np.real(right)
    v = np.where(real_right < 0, real_right, real_right / real_alpha)
    for _ in range(40):
        up = softplus(v)
        step = (real_alpha * up - (up - v) - real_right) / (np.exp(-up) + real_alpha * np.exp(v - up))
        v = v - step
        if not np.any(np.abs(step) > 1e-8 * (1 + np.abs(v))):
            break
    up = softplus(v)
    v = v - (alpha * up - (up - v) - right) / (np.exp(-up) + real_alpha * np.exp(v - up))
    return np.exp(v - softplus(v))


def _m4(x: Arrays, p: Arrays) -> np.ndarray:
    return p["e"] + (p["e0"] - p["e"]) * _normalized_excess(x, p)


POWER = Law(
    name="power",
    formula="y = a x^b",
    function=lambda x, p: p["a"] * power(x["x"], p["b"]),
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
    function=lambda x, p: p["e"] + p["a"] * power(x["x"], -p["b"]),
    predictors=("x",),
    parameters=(Parameter("e", "{y}", low=0.0), Parameter("a", "{y} {x}^b", log=True),
                Parameter("b", "1", log=True, starts=(0.05, 0.15, 0.4, 1.0, 2.5))),
    linear=("e", "a"),
    asymptote="e as x grows",
    unidentifiable="e where the curve has not begun to bend; a and b where it is flat already",
    source="M2 of Alabdulmohsin et al. 2022",
)

SHIFTED_POWER = Law(
    name="shifted_power",
    formula="y = e + a (1 + x/d)^-b",
    function=lambda x, p: p["e"] + p["a"] * np.exp(-p["b"] * np.log1p(x["x"] / p["d"])),
    predictors=("x",),
    parameters=(Parameter("e", "{y}", low=0.0), Parameter("a", "{y}", log=True), Parameter("d", "{x}", log=True),
                Parameter("b", "1", log=True, starts=(0.1, 0.4, 1.0, 2.5))),
    linear=("e", "a"),
    guess=lambda x, y: {"d": within(x["x"], -0.2, 0.2, 0.6, 1.1)},
    zero=("x",),
    asymptote="e as x grows; e + a at x = 0",
    unidentifiable="d where every x is far above it (then power_floor is all that is seen), b and d apart where every x is below d",
    source="a power law whose start is finite, in one more parameter than M2; the form is common, we know no first source",
)

M3 = Law(
    name="m3",
    formula="y = beta (1/x + gamma)^c",
    function=lambda x, p: p["beta"] * power(1 / x["x"] + p["gamma"], p["c"]),
    predictors=("x",),
    parameters=(Parameter("beta", "{y} {x}^c", log=True), Parameter("gamma", "1/{x}", log=True),
                Parameter("c", "1", log=True, starts=(0.05, 0.15, 0.4, 1.0))),
    linear=("beta",),
    guess=lambda x, y: {"gamma": [1 / v for v in within(x["x"], 0.3, 0.7, 1.0, 1.4)]},
    asymptote="beta gamma^c as x grows",
    unidentifiable="gamma where the curve has not begun to bend; c where it is flat already",
    source=f"M3 of Alabdulmohsin et al. 2022 (arXiv 2209.06640), {_CODE}/m3.py",
)

M4 = Law(
    name="m4",
    formula="y = e + (e0 - e) u, u / (1 - u)^alpha = (x/d)^-c",
    function=_m4,
    predictors=("x",),
    parameters=(Parameter("e", "{y}", low=0.0), Parameter("e0", "{y}", low=0.0), Parameter("d", "{x}", log=True),
                Parameter("c", "1", log=True, starts=(0.15, 0.5, 1.5)), Parameter("alpha", "1", log=True, starts=(0.5, 2.0))),
    linear=("e", "e0"),
    guess=lambda x, y: {"d": within(x["x"], -0.2, 0.4)},
    asymptote="e as x grows; e0 (a guess) as x falls",
    unidentifiable="e0, d and alpha where the curve has left its start: then it is M2; e where it has not begun to bend",
    source=f"M4 of Alabdulmohsin et al. 2022 (arXiv 2209.06640), {_CODE}/m4.py: (y - e) / (e0 - y)^alpha = beta x^-c; with "
           "beta = d^c (e0 - e)^(1 - alpha), our change of parameters, it is linear in e and e0",
)
