"""y = a: a mean with its t interval, for ratios and statistics."""

from scalemem.laws.base import Law, Parameter

CONSTANT = Law(
    name="constant",
    formula="y = a",
    function=lambda x, p: p["a"] * x["1"],
    predictors=(),
    parameters=(Parameter("a", "{y}"),),
    scale="linear",
    linear=("a",),
    asymptote="a",
    unidentifiable="fewer than two rows",
    source="the mean and Student's t",
)
