"""Forgetting by fine-tuning: with parameters and steps, and with the fraction of old data that is replayed."""

from __future__ import annotations

import itertools

import numpy as np

from scalemem.laws.base import Arrays, Law, Parameter
from scalemem.laws.parts import power


def _fallen(x: Arrays, p: Arrays) -> np.ndarray:
    """What fine-tuning has still to learn, falling to 0 as parameters and steps grow."""
    return power(power(p["a"] / x["n_finetuned"], p["alpha"]) + power(x["steps"], -p["beta"]), p["rho"])


def _balanced(x: Arrays, y: np.ndarray) -> list[dict[str, float]]:
    """Exponents on a grid, and a such that both terms weigh alike in the middle of the data."""
    size, steps = (float(np.median(np.log(x[k]))) for k in ("n_finetuned", "steps"))
    return [{"alpha": alpha, "beta": beta, "rho": rho, "a": float(np.exp(size - steps * beta / alpha))}
            for alpha, beta, rho in itertools.product((0.05, 0.2, 0.8), (0.1, 0.3, 1.0), (1.0, 3.0, 8.0))]


_PARAMETERS = (Parameter("s", "{y}", low=0.0), Parameter("c", "{y} {steps}^(beta rho)", log=True),
               Parameter("a", "{n_finetuned}/{steps}^(beta/alpha)", log=True), Parameter("alpha", log=True, high=2.0),
               Parameter("beta", log=True, high=2.0), Parameter("rho", log=True, low=0.5, high=12.0))
_APART = "rho, alpha and beta apart, nearly always: curves of very different rho are alike (hence its bounds); s where no run is long"

KALAJDZIEVSKI = Law(
    name="forgetting_kalajdzievski",
    formula="y = s - c ((a/n_finetuned)^alpha + steps^-beta)^rho",
    function=lambda x, p: p["s"] - p["c"] * _fallen(x, p),
    predictors=("n_finetuned", "steps"),
    parameters=_PARAMETERS,
    linear=("s", "c"),
    guess=_balanced,
    asymptote="s as both grow",
    unidentifiable=_APART,
    source="Kalajdzievski 2024 (arXiv 2401.05605), law (c) in shared/literature/forgetting.md 1.1, whose a_f, b_f and c_fft c_ft are one "
           "more than can be seen: here b_f = 1, so c = c_fft c_ft b_f^(beta rho) and a = a_f / b_f^(beta/alpha)",
)

FINETUNING = Law(
    name="finetuning_kalajdzievski",
    formula="y = s + c ((a/n_finetuned)^alpha + steps^-beta)^rho",
    function=lambda x, p: p["s"] + p["c"] * _fallen(x, p),
    predictors=("n_finetuned", "steps"),
    parameters=_PARAMETERS,
    linear=("s", "c"),
    guess=_balanced,
    asymptote="s as both grow",
    unidentifiable=_APART,
    source="Kalajdzievski 2024 (arXiv 2401.05605), law (b), of the fine-tuning loss, in shared/literature/forgetting.md 1.1: here b_ft = 1, "
           "c = c_ft b_ft^(beta rho) and a = a_ft / b_ft^(beta/alpha)",
)

BETHUNE = Law(
    name="forgetting_bethune",
    formula="y = base_loss + A unique_tokens^beta / ((1 + B replay_fraction) n_params)^alpha",
    function=lambda x, p: x["base_loss"] + p["A"] * power(x["unique_tokens"], p["beta"]) * power(
        (1 + p["B"] * x["replay_fraction"]) * x["n_params"], -p["alpha"]),
    predictors=("base_loss", "unique_tokens", "replay_fraction", "n_params"),
    parameters=(Parameter("A", "{y} {n_params}^alpha/{unique_tokens}^beta", log=True), Parameter("B", "1/{replay_fraction}", log=True),
                Parameter("alpha", log=True, starts=(0.15, 0.4, 1.0)), Parameter("beta", log=True, starts=(0.15, 0.4, 1.0))),
    linear=("A",),
    guess=lambda x, y: {"B": [v / (float(x["replay_fraction"].max()) or 1.0) for v in (1.0, 10.0, 100.0)]},
    zero=("replay_fraction",),
    asymptote="base_loss, the loss of the same model before fine-tuning, as n_params grow",
    unidentifiable="B where no run replays, or all the same fraction; alpha and beta apart where unique_tokens goes with n_params",
    source="Bethune et al. 2025 (arXiv 2502.06042), shared/literature/forgetting.md 1.2: L_pt = L_pt0(N) + A D^beta / ((1 + B p) N)^alpha; "
           "whether the paper adds a constant is not verified",
)
