"""Loss as a function of model size and data: Chinchilla's law, its forms with one exponent, Kaplan's, and over-training."""

from __future__ import annotations

import itertools

import numpy as np

from scalemem.laws.base import Arrays, Law, Parameter
from scalemem.laws.parts import power

_EXPONENTS = (0.1, 0.25, 0.5, 1.0)


def _chinchilla(x: Arrays, p: Arrays) -> np.ndarray:
    return p["E"] + p["A"] * power(x["n_params"], -p["alpha"]) + p["B"] * power(x["n_tokens"], -p.get("beta", p["alpha"]))


def _kaplan(x: Arrays, p: Arrays) -> np.ndarray:
    size, data = (p[k] * (np.log(p[c]) - np.log(x[n])) for k, c, n in (("alpha_N", "N_c", "n_params"), ("alpha_D", "D_c", "n_tokens")))
    return power(np.exp(size / p["alpha_D"]) + np.exp(data / p["alpha_D"]), p["alpha_D"])


def _kaplan_starts(x: Arrays, y: np.ndarray) -> list[dict[str, float]]:
    """Given the exponents, y^(1/alpha_D) is linear in N_c^(alpha_N/alpha_D) and D_c; each is kept positive."""
    found = []
    for an, ad in itertools.product((0.04, 0.08, 0.16, 0.32, 0.64), repeat=2):
        ratio, target = an / ad, np.abs(y / np.median(np.abs(y))) ** (1 / ad)
        basis = np.stack([(x["n_params"] / x["n_params"].min()) ** -ratio, x["n_tokens"].min() / x["n_tokens"]], -1) / target[:, None]
        size, data = np.maximum(np.linalg.lstsq(basis, np.ones_like(y), rcond=None)[0], 1e-3 / np.abs(basis).max(0))
        level = np.log(np.median(np.abs(y)))
        found.append({"alpha_N": an, "alpha_D": ad, "N_c": float(np.exp(np.log(size) / ratio + level / an) * x["n_params"].min()),
                      "D_c": float(np.exp(np.log(data) + level / ad) * x["n_tokens"].min())})
    return found


CHINCHILLA = Law(
    name="chinchilla",
    formula="y = E + A n_params^-alpha + B n_tokens^-beta",
    function=_chinchilla,
    predictors=("n_params", "n_tokens"),
    parameters=(Parameter("E", "{y}", low=0.0), Parameter("A", "{y} {n_params}^alpha", log=True),
                Parameter("B", "{y} {n_tokens}^beta", log=True), Parameter("alpha", log=True, starts=_EXPONENTS),
                Parameter("beta", log=True, starts=_EXPONENTS)),
    linear=("E", "A", "B"),
    asymptote="E as both grow; E + B n_tokens^-beta as n_params grows alone",
    unidentifiable="alpha and beta apart where n_tokens is a fixed multiple of n_params; E where neither term has begun to bend",
    source="Hoffmann et al. 2022 (arXiv 2203.15556), Approach 3; Besiroglu et al. 2024 for its fit (shared/benchmarks/README.md)",
)

CHINCHILLA_SHARED = Law(
    name="chinchilla_shared",
    formula="y = E + A n_params^-alpha + B n_tokens^-alpha",
    function=_chinchilla,
    predictors=("n_params", "n_tokens"),
    parameters=(Parameter("E", "{y}", low=0.0), Parameter("A", "{y} {n_params}^alpha", log=True),
                Parameter("B", "{y} {n_tokens}^alpha", log=True), Parameter("alpha", log=True, starts=_EXPONENTS)),
    linear=("E", "A", "B"),
    asymptote="E as both grow",
    unidentifiable="A and B apart where n_tokens is a fixed multiple of n_params; E where neither term has begun to bend",
    source="chinchilla with beta = alpha: n_tokens / n_params of the optimum is then the same at every budget",
)

KAPLAN = Law(
    name="kaplan",
    formula="y = ((N_c/n_params)^(alpha_N/alpha_D) + D_c/n_tokens)^alpha_D",
    function=_kaplan,
    predictors=("n_params", "n_tokens"),
    parameters=(Parameter("N_c", "{n_params} {y}^(1/alpha_N)", log=True), Parameter("D_c", "{n_tokens} {y}^(1/alpha_D)", log=True),
                Parameter("alpha_N", log=True), Parameter("alpha_D", log=True)),
    guess=_kaplan_starts,
    asymptote="0 as both grow; (N_c/n_params)^alpha_N as n_tokens grows alone",
    unidentifiable="N_c and alpha_N where the data always limit, D_c and alpha_D where the size does",
    source="Kaplan et al. 2020 (arXiv 2001.08361), L(N, D); the form as in the project's issue 3, equation number not checked",
)

GADRE = Law(
    name="gadre",
    formula="y = E + (a tokens_per_param^eta + b tokens_per_param^-eta) train_flops^-eta",
    function=lambda x, p: (p["E"] + p["a"] * power(x["tokens_per_param"] / x["train_flops"], p["eta"])
                           + p["b"] * power(x["tokens_per_param"] * x["train_flops"], -p["eta"])),
    predictors=("train_flops", "tokens_per_param"),
    parameters=(Parameter("E", "{y}", low=0.0), Parameter("a", "{y} ({train_flops}/{tokens_per_param})^eta", log=True),
                Parameter("b", "{y} ({train_flops} {tokens_per_param})^eta", log=True), Parameter("eta", log=True, starts=(0.05, 0.12, 0.25, 0.5))),
    linear=("E", "a", "b"),
    asymptote="E as train_flops grow",
    unidentifiable="a and b apart where tokens_per_param is the same in all rows; E where the curve has not begun to bend",
    source="Gadre et al. 2024 (arXiv 2403.08540), checked against mlfoundations/scaling, scaling/laws.py: chinchilla_shared with C = 6 N D, "
           "M = D / N, eta = alpha / 2, a = A 6^eta, b = B 6^eta",
)
