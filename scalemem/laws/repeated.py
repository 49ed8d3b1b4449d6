"""Loss under repeated data: what an epoch is worth falls off exponentially, and so does what a parameter beyond the data's need is worth."""

from __future__ import annotations

import itertools

import numpy as np

from scalemem.laws.base import Arrays, Law, Parameter
from scalemem.laws.parts import power

_SOURCE = "Muennighoff et al. 2023 (arXiv 2305.16264), read in huggingface/datablations, README.md"


def _worth(times: np.ndarray, decay: np.ndarray) -> np.ndarray:
    """What `times` passes are worth in first ones: 1 + decay (1 - exp(-(times - 1) / decay)), and `times` itself below 1."""
    more = np.where(np.real(times) > 1, times - 1, 0.0)
    return np.where(np.real(times) > 1, 1.0, times) - decay * np.expm1(-more / decay)


def _repeated(x: Arrays, p: Arrays) -> np.ndarray:
    tokens = x["unique_tokens"] * _worth(x["epochs"], p["R_D"])
    return p["E"] + p["A"] * power(x["n_params"], -p["alpha"]) + p["B"] * power(tokens, -p["beta"])


def _constrained(x: Arrays, p: Arrays) -> np.ndarray:
    """With U_N, the parameters for which the unique tokens are the optimum, through its logarithm."""
    log_g = np.log(p["alpha"] * p["A"] / (p["beta"] * p["B"])) / (p["alpha"] + p["beta"])
    need = np.exp((np.log(x["unique_tokens"]) + log_g) * p["beta"] / p["alpha"] + log_g)
    spare = x["n_params"] / need
    size = np.where(np.real(spare) > 1, need, x["n_params"]) * _worth(np.where(np.real(spare) > 1, spare, 1.0), p["R_N"])
    tokens = x["unique_tokens"] * _worth(x["epochs"], p["R_D"])
    return p["E"] + p["A"] * power(size, -p["alpha"]) + p["B"] * power(tokens, -p["beta"])


def _starts(x: Arrays, y: np.ndarray) -> list[dict[str, float]]:
    """A and B by least squares as if no parameter were spare, over exponents and decays."""
    found = []
    for alpha, beta, data, size in itertools.product((0.2, 0.4, 0.7), (0.2, 0.4, 0.7), (3.0, 20.0), (2.0, 12.0)):
        tokens = x["unique_tokens"] * _worth(x["epochs"], np.array(data))
        basis = np.stack([np.ones_like(y), (x["n_params"] / x["n_params"].min()) ** -alpha, (tokens / tokens.min()) ** -beta], -1)
        line = np.linalg.lstsq(basis / y[:, None], np.ones_like(y), rcond=None)[0]
        a, b = np.maximum(line[1:], 1e-2 * np.abs(y).min())
        found.append({"alpha": alpha, "beta": beta, "R_D": data, "R_N": size, "A": float(a * x["n_params"].min() ** alpha),
                      "B": float(b * tokens.min() ** beta)})
    return found


_PARAMETERS = (Parameter("E", "{y}", low=0.0), Parameter("A", "{y} {n_params}^alpha", log=True),
               Parameter("B", "{y} {unique_tokens}^beta", log=True), Parameter("alpha", log=True, starts=(0.15, 0.4, 0.8)),
               Parameter("beta", log=True, starts=(0.15, 0.4, 0.8)), Parameter("R_D", "{epochs}", log=True, starts=(3.0, 12.0, 50.0)))

REPEATED_DATA = Law(
    name="repeated_data",
    formula="y = E + A n_params^-alpha + B (unique_tokens (1 + R_D (1 - exp((1 - epochs)/R_D))))^-beta",
    function=_repeated,
    predictors=("n_params", "unique_tokens", "epochs"),
    parameters=_PARAMETERS,
    linear=("E", "A", "B"),
    asymptote="unique_tokens are worth 1 + R_D times as many as epochs grow",
    unidentifiable="R_D where no run has more than a few epochs; what chinchilla cannot tell apart",
    source=f"data_constrained without its loss by spare parameters; below one epoch the tokens are unique_tokens epochs. {_SOURCE}",
)

DATA_CONSTRAINED = Law(
    name="data_constrained",
    formula="y = E + A (U_N W(n_params/U_N, R_N))^-alpha + B (unique_tokens W(epochs, R_D))^-beta, W(r, R) = 1 + R (1 - exp((1 - r)/R))",
    function=_constrained,
    predictors=("n_params", "unique_tokens", "epochs"),
    parameters=(*_PARAMETERS, Parameter("R_N", log=True)),
    linear=("E",),
    guess=_starts,
    asymptote="unique_tokens are worth 1 + R_D times as many as epochs grow, U_N parameters 1 + R_N times as many",
    unidentifiable="R_N where no model has more than U_N parameters, R_D where no run has more than a few epochs",
    source=f"{_SOURCE}: U_N is n_params, or what is optimal for the unique tokens if that is less, G (G unique_tokens)^(beta/alpha) with "
           "G = (alpha A / (beta B))^(1/(alpha + beta)). W(r, R) is r where r < 1",
)
