"""What is straight in log x: rising or falling by so much a decade. Residuals on y, which may pass through 0."""

import numpy as np

from scalemem.laws.base import Law, Parameter

LOG_LINEAR = Law(
    name="log_linear",
    formula="y = a + b log x",
    function=lambda x, p: p["a"] + p["b"] * np.log(x["x"]),
    predictors=("x",),
    parameters=(Parameter("a", "{y}"), Parameter("b", "{y}")),
    scale="linear",
    linear=("a", "b"),
    asymptote="none: it passes any bound",
    unidentifiable="one distinct x",
    source="a straight line in the natural logarithm; b log 10 is the slope a decade (Carlini et al. 2022, arXiv 2202.07646)",
)

LOGARITHMIC_DECAY = Law(
    name="logarithmic_decay",
    formula="y = a log(tau / x)",
    function=lambda x, p: p["a"] * (np.log(p["tau"]) - np.log(x["x"])),
    predictors=("x",),
    parameters=(Parameter("a", "{y}", log=True), Parameter("tau", "{x}", log=True)),
    scale="linear",
    linear=("a",),
    guess=lambda x, y: {"tau": [float(x["x"].max()) * v for v in (0.3, 2.0, 10.0, 1e3)]},
    asymptote="0 at x = tau, where the law ends",
    unidentifiable="tau where y hardly falls: it lies beyond any x",
    source="Chang et al. 2024 (arXiv 2406.11813): retainability R falls by a log(t2 / t1) and is 0 at tau; their a is for log10, ours for "
           "the natural logarithm (shared/literature/forgetting.md 2)",
)

EXTRACTION_LOG_LINEAR = Law(
    name="extraction_log_linear",
    formula="y = a + b log10 n_params + c log10 duplicates + d log10 context",
    function=lambda x, p: (p["a"] + p["b"] * np.log10(x["n_params"]) + p["c"] * np.log10(x["duplicates"])
                           + p["d"] * np.log10(x["context"])),
    predictors=("n_params", "duplicates", "context"),
    parameters=(Parameter("a", "{y}"), Parameter("b", "{y}"), Parameter("c", "{y}"), Parameter("d", "{y}")),
    scale="linear",
    linear=("a", "b", "c", "d"),
    limits=(0.0, np.inf),
    asymptote="none: fit it between floor and ceiling (.02 to .98 of the sequences)",
    unidentifiable="the slope of a predictor that does not vary, or varies with another",
    source="Carlini et al. 2022 (arXiv 2202.07646): extractable fraction, log-linear in each, +.19 a decade of n_params on the "
           "duplicate-normalised set (shared/literature/memorization.md 3); that the three add up is our assumption",
)
