"""A straight line. Residuals on y, which may pass through 0."""

from scalemem.laws.base import Law, Parameter

LINEAR = Law(
    name="linear",
    formula="y = a + b x",
    function=lambda x, p: p["a"] + p["b"] * x["x"],
    predictors=("x",),
    parameters=(Parameter("a", "{y}"), Parameter("b", "{y}/{x}")),
    scale="linear",
    linear=("a", "b"),
    zero=("x",),
    asymptote="none: it passes any bound",
    unidentifiable="one distinct x",
    source="law (a) of Kalajdzievski 2024 (arXiv 2401.05605): forgetting against fine-tuning loss, L_f = s_fft - c_fft L_ft "
           "(shared/literature/forgetting.md 1.1)",
)
