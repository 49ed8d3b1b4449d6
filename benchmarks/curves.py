"""Curves to test forecasts on: the public ones, and synthetic ones from every law of one predictor, with noise.

Public files lie in ../shared/benchmarks, which is not shipped. A curve is (domain, name, x, y, fitted), `fitted` true for the rows to fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scalemem import tables

TARGETS = {"NMT": 0.009, "LM": 0.0007, "BIG-Bench": 0.0075, "nanoGPT": 0.015}  # RMSE of the log, by domain
DATA = Path(__file__).parents[2] / "shared" / "benchmarks"


class Curve(NamedTuple):
    """Rows of one curve, in order of x, and which of them are fitted."""

    domain: str
    name: str
    x: np.ndarray
    y: np.ndarray
    fitted: np.ndarray


def public(folder: Path = DATA) -> list[Curve]:
    """The 20 learning curves of Alabdulmohsin et al. (rows of equal x counted once) and the 24 of nanoGPT, with their own splits."""
    found = []
    for name, group, x, y, split in (("benchmark.lang.csv", ("Domain", "Task", "Model"), "Seen Examples", "Loss", "Training"),
                                     ("nanogpt.csv", ("kind", "hyp"), "n_embd", "loss", "training")):
        table = tables.read(folder / name)
        for key, rows in tables.groups(table, group, np.ones(table.num_rows, bool)):
            xs, first = np.unique(tables.column(table, x)[rows], return_index=True)
            at = rows[first]
            domain = "nanoGPT" if "Domain" not in key else {"NMT": "NMT", "LM": "LM"}.get(key["Domain"], "BIG-Bench")
            found.append(Curve(domain, tables.key_text(key), xs, tables.column(table, y)[at], tables.column(table, split)[at] == 1))
    return found


def synthetic(law: str, rng: np.random.Generator) -> Curve:
    """One curve from a law with parameters drawn at random.

    Fitted are 8 to 40 points over 1.5 to 3.5 decades, held out 4 more, up to 2, 4 or 8 times further. Noise is relative, log-uniform
    between .1 and 3 %. With z = log(x / the last fitted x): exponents are log-normal about .35 (spread .5), floors uniform between 0 and .9
    of the last value, breaks uniform over the fitted range, widths uniform between .2 and 1.
    """
    reach, n, ahead = np.log(10) * rng.uniform(1.5, 3.5), int(rng.integers(8, 41)), np.log(rng.choice([2.0, 4.0, 8.0]))
    z = np.concatenate([np.linspace(-reach, 0, n), np.linspace(0, ahead, 5)[1:]])
    y = _shape(law, z, reach, rng)
    noise = np.exp(rng.uniform(np.log(0.001), np.log(0.03)))
    return Curve("synthetic", law, 1e6 * np.exp(z + reach), y * np.exp(noise * rng.standard_normal(len(z))), np.arange(len(z)) < n)


def _shape(law: str, z: np.ndarray, reach: float, rng: np.random.Generator) -> np.ndarray:
    def exponent(median: float = 0.35) -> float:
        return float(np.exp(rng.normal(np.log(median), 0.5)))

    def bend(at: float, width: float) -> np.ndarray:
        return width * np.logaddexp(0, (z - at) / width)

    c, floor, x = exponent(), rng.uniform(0, 0.9), np.exp(z)
    within = -rng.uniform(0, 1) * reach
    if law == "power":
        return np.exp(-c * z)
    if law == "power_floor":
        return floor + (1 - floor) * np.exp(-c * z)
    if law == "shifted_power":
        return 0.7 * floor + 2 * np.exp(-2 * c * np.logaddexp(0, z - within))
    if law == "m3":
        return (1 / x + rng.uniform(0, 1)) ** c
    if law == "m4":
        e, e0, alpha, power = 0.5 * floor, rng.uniform(1.2, 3), rng.uniform(0, 1.2), exponent(0.6)
        u = _m4(np.exp(-power * (z - within)), alpha)
        return e + (e0 - e) * u
    if law in ("broken_1", "broken_2", "broken_3"):
        log, last = -c * z, c
        for at in np.sort(-rng.uniform(0.1, 1, int(law[-1])) * reach):
            new = exponent(0.4)
            log, last = log - (new - last) * bend(at, rng.uniform(0.2, 1)), new
        return 0.6 * floor + np.exp(log)
    if law == "log_linear":
        return 1 + rng.choice([-1, 1]) * rng.uniform(0.02, 0.8 / (reach + 2.1)) * z
    if law == "logarithmic_decay":
        return 1 - rng.uniform(0.02, 0.9 / (reach + 2.1)) * (z + reach)
    if law == "u_shaped":
        return floor + 0.3 + 0.5 * np.exp(-c * z) + rng.uniform(0.02, 0.2) * np.exp(rng.uniform(0.3, 0.8) * z)
    if law == "saturating_power":
        return 1 - rng.uniform(0.2, 0.9) * np.exp(-c * (z + reach))
    if law == "hill":
        return 1 / (1 + np.exp(-exponent(0.7) * (z - within)))
    if law == "sigmoid_log":
        return 0.3 + rng.uniform(0.2, 0.7) / (1 + np.exp(rng.choice([-1, 1]) * rng.uniform(0.6, 2) * (z - within)))
    rate = np.exp(rng.uniform(np.log(0.5), np.log(6)))
    if law == "saturating_exponential":
        return 1 - np.exp(-rate * x)
    if law == "exponential_decay":
        return floor + 0.1 + rng.uniform(0.5, 3) * np.exp(-rate * x)
    if law == "exponential_decay_double":
        return 0.2 + rng.uniform(0.2, 0.6) * np.exp(-10 * rate * x) + rng.uniform(0.3, 0.8) * np.exp(-0.5 * rate * x)
    raise KeyError(law)


def _m4(v: np.ndarray, alpha: float) -> np.ndarray:
    """u in (0, 1) with u / (1 - u)^alpha = v, by bisection."""
    low, high = np.zeros_like(v), np.ones_like(v)
    for _ in range(80):
        u = (low + high) / 2
        above = u > v * (1 - u) ** alpha
        low, high = np.where(above, low, u), np.where(above, u, high)
    return (low + high) / 2


LAWS = ("power", "power_floor", "shifted_power", "m3", "m4", "broken_1", "broken_2", "broken_3", "log_linear", "logarithmic_decay", "u_shaped",
        "saturating_power", "hill", "sigmoid_log", "saturating_exponential", "exponential_decay", "exponential_decay_double")


def hidden(rng: np.random.Generator) -> Curve:
    """A power law with a floor, and a slower second one that is 5 to 30 % of the last fitted value: what a single law cannot see coming."""
    reach, n, ahead = np.log(10) * rng.uniform(1.5, 3), int(rng.integers(8, 31)), np.log(rng.choice([2.0, 4.0, 8.0]))
    z = np.concatenate([np.linspace(-reach, 0, n), np.linspace(0, ahead, 5)[1:]])
    c, floor, share = np.exp(rng.normal(np.log(0.4), 0.4)), rng.uniform(0.2, 0.6), rng.uniform(0.05, 0.3)
    y = floor + (1 - floor - share) * np.exp(-c * z) + share * np.exp(-c * rng.uniform(0.05, 0.4) * z)
    noise = np.exp(rng.uniform(np.log(0.001), np.log(0.01)))
    return Curve("hidden", "second component", 1e6 * np.exp(z + reach), y * np.exp(noise * rng.standard_normal(len(z))), np.arange(len(z)) < n)


def many(per_law: int, seed: int) -> Iterator[Curve]:
    """`per_law` curves from each law, then as many with a hidden component as there are laws times two."""
    rng = np.random.default_rng(seed)
    for law in LAWS:
        for _ in range(per_law):
            yield synthetic(law, rng)
    for _ in range(2 * per_law):
        yield hidden(rng)
