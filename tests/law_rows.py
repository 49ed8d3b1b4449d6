"""A row for every law: where it is looked at, its planted values, and the noise under which they come back.

`ROWS[name]` is (x = {predictor: values}, {parameter: value}, sd of the noise on the law's scale). Rows are where the law is identified.
"""

import numpy as np
import pyarrow as pa

from scalemem import laws


def _grid(**sides: np.ndarray) -> dict[str, np.ndarray]:
    """All combinations of the sides."""
    return {k: v.ravel() for k, v in zip(sides, np.meshgrid(*sides.values(), indexing="ij"), strict=True)}


X = {"x": np.geomspace(10, 1e7, 40)}
STEPS = {"x": np.geomspace(1, 3e3, 40)}
SIZES = _grid(n_params=np.geomspace(5e7, 1e10, 7), n_tokens=np.geomspace(1e9, 3e11, 7))
OVER = {"train_flops": 6 * SIZES["n_params"] * SIZES["n_tokens"], "tokens_per_param": SIZES["n_tokens"] / SIZES["n_params"]}
BITS = _grid(n_params=np.array([8e3, 2e4, 5e4]), data_bits=np.geomspace(5e3, 6e5, 10))
REPEATED = _grid(n_params=np.geomspace(2e7, 3e10, 7), unique_tokens=np.geomspace(1e8, 1e11, 4), epochs=np.array([0.5, 1.0, 4, 16, 60]))

ROWS: dict[str, tuple[dict[str, np.ndarray], dict[str, float], float]] = {
    "power": ({"x": np.geomspace(1e3, 1e6, 9)}, {"a": 2.0, "b": -0.4}, 0.02),
    "power_floor": (X, {"e": 0.5, "a": 4.0, "b": 0.5}, 0.01),
    "shifted_power": (X, {"e": 1.5, "a": 3.0, "d": 300.0, "b": 0.4}, 0.005),
    "m3": (X, {"beta": 8.0, "gamma": 1e-5, "c": 0.3}, 0.01),
    "m4": (X, {"e": 0.4, "e0": 2.5, "d": 500.0, "c": 0.6, "alpha": 1.7}, 0.005),
    "broken_1": (X, {"a": 0.3, "b": 5.0, "c0": 0.1, "c1": 0.5, "d1": 5e3, "f1": 0.4}, 0.005),
    "broken_2": ({"x": np.geomspace(10, 1e9, 60)},
                 {"a": 0.1, "b": 5.0, "c0": 0.05, "c1": 0.5, "d1": 5e3, "f1": 0.3, "c2": -0.35, "d2": 1e6, "f2": 0.3}, 0.003),
    "broken_3": ({"x": np.geomspace(10, 1e11, 90)}, {"a": 0.1, "b": 5.0, "c0": 0.05, "c1": 0.4, "d1": 2e3, "f1": 0.3, "c2": -0.4, "d2": 3e5,
                                                     "f2": 0.3, "c3": 0.3, "d3": 1e8, "f3": 0.3}, 0.003),
    "u_shaped": (X, {"e": 0.8, "a": 6.0, "b": 0.5, "c": 0.001, "d": 0.4}, 0.003),
    "linear": ({"x": np.linspace(0.5, 4.0, 20)}, {"a": 3.0, "b": -0.6}, 0.02),
    "log_linear": (X, {"a": 5.0, "b": -0.2}, 0.02),
    "logarithmic_decay": (STEPS, {"a": 0.2, "tau": 1e4}, 0.02),
    "saturating_power": (X, {"a": 0.9, "c": 1.5, "b": 0.4}, 0.005),
    "hill": (X, {"a": 0.9, "d": 2e3, "b": 0.7}, 0.005),
    "sigmoid_log": (X, {"start": 0.25, "end": 0.9, "x0": 4e3, "k": 0.9}, 0.005),
    "saturating_exponential": (STEPS, {"a": 0.8, "t": 300.0}, 0.01),
    "exponential": (STEPS, {"a": 0.9, "t": 300.0}, 0.01),
    "exponential_decay": (STEPS, {"e": 0.3, "a": 0.6, "t": 200.0}, 0.01),
    "exponential_decay_double": (STEPS, {"e": 0.2, "a1": 0.5, "t1": 12.0, "a2": 0.4, "t2": 500.0}, 0.002),
    "chinchilla": (SIZES, {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.347, "beta": 0.367}, 0.003),
    "chinchilla_shared": (SIZES, {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35}, 0.003),
    "kaplan": (SIZES, {"N_c": 8e13, "D_c": 5e13, "alpha_N": 0.076, "alpha_D": 0.095}, 0.003),
    "gadre": (OVER, {"E": 1.8, "a": 200.0, "b": 700.0, "eta": 0.17}, 0.003),
    "repeated_data": (REPEATED, {"E": 1.8, "A": 520.0, "B": 1500.0, "alpha": 0.35, "beta": 0.36, "R_D": 15.0}, 0.003),
    "data_constrained": (REPEATED, {"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.35, "beta": 0.36, "R_D": 15.4, "R_N": 5.3}, 0.002),
    "forgetting_kalajdzievski": (_grid(n_finetuned=np.geomspace(1e5, 1e9, 8), steps=np.geomspace(30, 1e5, 12)),
                                 {"s": 3.0, "c": 6.0, "a": 2e3, "alpha": 0.4, "beta": 0.3, "rho": 1.4}, 0.0005),
    "finetuning_kalajdzievski": (_grid(n_finetuned=np.geomspace(1e5, 1e9, 8), steps=np.geomspace(30, 1e5, 12)),
                                 {"s": 0.6, "c": 6.0, "a": 2e3, "alpha": 0.4, "beta": 0.3, "rho": 1.4}, 0.0005),
    "forgetting_bethune": (_grid(n_params=np.geomspace(4e7, 1.3e9, 5), unique_tokens=np.geomspace(3e5, 3e7, 4),
                                 replay_fraction=np.array([0.0005, 0.001, 0.005, 0.01, 0.05])),
                           {"A": 20.0, "B": 150.0, "alpha": 0.4, "beta": 0.3}, 0.003),
    "extraction_log_linear": (_grid(n_params=np.geomspace(1e8, 6e9, 4), duplicates=np.array([1.0, 4, 30, 200]),
                                    context=np.array([50.0, 100, 450])), {"a": -1.4, "b": 0.19, "c": 0.1, "d": 0.12}, 0.02),
    "capacity": (BITS, {"alpha": 3.0}, 0.02),
    "capacity_smooth": (BITS, {"alpha": 3.0, "s": 4.0}, 0.02),
    "bits_linear": ({"n_params": np.geomspace(1e3, 1e6, 9)}, {"alpha": 3.0}, 0.02),
    "exposure": ({"exposures": np.geomspace(100, 1e5, 20)}, {"a": 3.0, "c": 2.0, "g": 0.3}, 1e-4),
    "membership_sigmoid": (BITS, {"c1": 1.3, "c2": -0.3, "c3": -6.0}, 0.005),
    "constant": ({}, {"a": 1.1}, 0.02),
}
ROWS["forgetting_bethune"][0]["base_loss"] = 2 + 40 * ROWS["forgetting_bethune"][0]["n_params"] ** -0.2


def columns(name: str) -> dict[str, np.ndarray]:
    """The predictors of a law's row, and the ones that its function may use."""
    x = ROWS[name][0]
    return {**x, "1": np.ones(len(next(iter(x.values()))) if x else 8)}


def planted(name: str, sd: float = 0.0, seed: int = 0) -> pa.Table:
    """A table of x and y, with Gaussian noise of sd on the law's scale."""
    law, x = laws.get(name), columns(name)
    eta = law.predict(x, law.internal(ROWS[name][1])) + sd * np.random.default_rng(seed).standard_normal(len(x["1"]))
    return pa.table({**ROWS[name][0], "y": np.exp(eta) if law.scale == "log" else eta})
