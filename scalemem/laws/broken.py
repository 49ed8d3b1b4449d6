"""Smoothly broken power laws with one to three breaks: a power law whose exponent changes by c_i about x = d_i, gently where f_i is large."""

from __future__ import annotations

import itertools

import numpy as np

from scalemem.laws.base import Arrays, Law, Parameter
from scalemem.laws.parts import softplus, span

STARTS = {1: 12, 2: 16, 3: 24}  # how many of the candidates a search starts from


def _function(x: Arrays, p: Arrays) -> np.ndarray:
    log_x, n = np.log(x["x"]), (len(p) - 3) // 3
    eta = -p["c0"] * log_x
    for i in range(1, n + 1):
        eta = eta - p[f"c{i}"] * p[f"f{i}"] * softplus((log_x - np.log(p[f"d{i}"])) / p[f"f{i}"])
    return p["a"] + p["b"] * np.exp(eta)


def _candidates(n: int):
    """Starts from the best piecewise straight lines in log-log coordinates, over floors and positions of the breaks."""
    def guess(x: Arrays, y: np.ndarray) -> list[dict[str, float]]:
        log_x, least = np.log(x["x"]), float(np.abs(y).min())
        low, width = span(x["x"])
        middle, ranked = low + width / 2, []
        places = low + width * np.linspace(0.0, 1.0, 10)[1:-1]
        for floor in (0.0, 0.6, 0.95):
            target = np.log(np.maximum(y - floor * least, 1e-3 * least))
            for d in itertools.combinations(places, n):
                basis = np.stack([np.ones_like(log_x), log_x - middle, *(np.maximum(log_x - v, 0.0) for v in d)], -1)
                line = np.linalg.lstsq(basis, target, rcond=1e-9)[0]
                missed = (floor * least + np.exp(basis @ line) - y) / y if least > 0 else basis @ line - target
                ranked.append((float(np.sum(missed**2)), len(ranked), -line[1:], d))
        best = sorted(ranked)[:STARTS[n] // 2]
        return [{"c0": float(c[0])} | {k: v for i in range(n) for k, v in ((f"c{i + 1}", float(c[i + 1])),
                                       (f"d{i + 1}", float(np.exp(d[i]))), (f"f{i + 1}", soft * width / (n + 1)))}
                for _, _, c, d in best for soft in (0.08, 0.4)]
    return guess


def _law(n: int) -> Law:
    each = range(1, n + 1)
    product = " ".join(f"B(c{i}, d{i}, f{i})" for i in each)
    return Law(
        name=f"broken_{n}",
        formula="y = a + b x^-c0 (1 + (x/d1)^(1/f1))^(-c1 f1)" if n == 1 else
                f"y = a + b x^-c0 {product}, B(c, d, f) = (1 + (x/d)^(1/f))^(-c f)",
        function=_function,
        predictors=("x",),
        parameters=(Parameter("a", "{y}", low=0.0), Parameter("b", "{y} {x}^c0", log=True), Parameter("c0"),
                    *(q for i in each for q in (Parameter(f"c{i}"), Parameter(f"d{i}", "{x}", log=True),
                                                Parameter(f"f{i}", log=True)))),
        linear=("a", "b"),
        guess=_candidates(n),
        asymptote="a as x grows, if the sum of c0 and all c_i is positive",
        unidentifiable="c_i, d_i and f_i where no row is near x = d_i, and f_i where the rows are too sparse to show how sharp a break is; "
                       "a where the last segment has not begun to bend",
        source="Caballero et al. 2022 (arXiv 2210.14891), Broken Neural Scaling Laws; the form with one break as in their code, "
               "ethancaballero/broken_neural_scaling_laws; the starts are ours",
    )


ONE, TWO, THREE = (_law(n) for n in (1, 2, 3))
