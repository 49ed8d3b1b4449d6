"""Bits per parameter against exposures: the approach to convergence, whose exponent is too uncertain to be fitted and is integrated out."""

import math

import numpy as np

from scalemem.laws.base import Law, Parameter

EXPOSURE = Law(
    name="exposure",
    formula="y = a - c exposures^-g",
    function=lambda x, p: p["a"] - p["c"] * np.exp(-p["g"] * np.log(x["exposures"])),
    predictors=("exposures",),
    parameters=(Parameter("a", "{y}"), Parameter("c", "{y} {exposures}^g"),
                Parameter("g", "1", log=True, prior=(math.log(0.5), 0.3))),
    scale="linear",
    linear=("a", "c"),
    noise_prior=(0.0074, 4.0),  # .02 and .012 bits per parameter, measured at 2.7
    misfit_sd=0.0044,
    asymptote="a as exposures grow",
    unidentifiable="g, nearly always: its prior carries the tail. Noise and misfit defaults are relative to the median of |y|",
    source="shared/capacity-recipe.md: g between .37 and .77; run noise .02-.025 and shared misfit .012, at 2.7 bits per "
           "parameter, covered 14 of 14 longer readings",
)
