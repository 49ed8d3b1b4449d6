"""Numbers and identities that others have published for the laws of loss, repeated data and forgetting, and what the laws become at limits."""

import tomllib
from pathlib import Path

import numpy as np
import pytest
from law_rows import ROWS, columns

from scalemem import laws


def value(name: str, x: dict, **parameters: float) -> np.ndarray:
    """The law as y, at arrays or numbers."""
    law = laws.get(name)
    columns = dict(zip(x, np.broadcast_arrays(*(np.atleast_1d(np.asarray(v, float)) for v in x.values())), strict=True))
    columns["1"] = np.ones_like(next(iter(columns.values())))
    return law.off_scale(law.predict(columns, law.internal(parameters)))


X = np.geomspace(1, 1e6, 25)


@pytest.mark.parametrize(("n_params", "tokens", "loss"), [(6.34e9, 242e9, 2.2256440889984477), (8.67e9, 178e9, 2.2269634075087867)])
def test_data_constrained_at_the_published_constants(n_params, tokens, loss):
    """The two models of Figure 1 (right) with 25e9 unique tokens: huggingface/datablations, README.md."""
    x = {"n_params": n_params, "unique_tokens": 25e9, "epochs": tokens / 25e9}
    constants = {"A": np.exp(6.255414), "B": np.exp(7.3049974), "E": np.exp(0.6254804), "alpha": 0.3526596, "beta": 0.3526596,
                 "R_D": 15.387756, "R_N": 5.309743}
    assert value("data_constrained", x, **constants)[0] == pytest.approx(loss, rel=1e-12)


def test_repeated_data_is_chinchilla_at_one_epoch_and_below():
    shared = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}
    for epochs in (0.25, 1.0):
        plain = value("chinchilla", {"n_params": X * 1e5, "n_tokens": 1e9 * epochs}, **shared)
        for name, more in (("repeated_data", {"R_D": 15.0}), ("data_constrained", {"R_D": 15.0, "R_N": 1e9})):  # no parameter is spare
            same = value(name, {"n_params": X * 1e5, "unique_tokens": 1e9, "epochs": epochs}, **shared, **more)
            assert same == pytest.approx(plain, rel=1e-5)


def test_repeated_tokens_are_worth_one_and_r_d_times_the_unique_ones_in_the_end():
    shared = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}
    end = value("repeated_data", {"n_params": 1e9, "unique_tokens": 1e9, "epochs": 1e6}, R_D=15.0, **shared)
    assert end == pytest.approx(value("chinchilla", {"n_params": 1e9, "n_tokens": 16e9}, **shared))


def kalajdzievski():
    """(published constants, check value) of each of the latter."""
    found = tomllib.loads((Path(__file__).parents[1] / "fits/reference/kalajdzievski2024.toml").read_text())
    constants, checks = ([dict(zip(t["columns"], row, strict=True)) for row in t["rows"]] for t in found["table"])
    return [(c, check) for check in checks for c in constants if c["data"] == check["data"]]


@pytest.mark.parametrize(("c", "check"), kalajdzievski(), ids=lambda v: f"{v['rank']}-{v['steps']}" if "rank" in v else v["data"])
def test_kalajdzievski_at_the_published_constants(c, check):
    """Laws (b) and (c) with their 13 constants turned into six each. They are rounded: hence the tolerance of the literature file, .005."""
    x = {"n_finetuned": check["n_finetuned"], "steps": check["steps"]}

    def of(name, kind, scale, s):
        a, alpha, b, beta = (c[f"{k}_{kind}"] for k in ("a", "al", "b", "be"))
        found = value(name, x, alpha=alpha, beta=beta, rho=c["rho"], s=s, c=scale * b ** (beta * c["rho"]), a=a / b ** (beta / alpha))[0]
        direct = ((a / x["n_finetuned"]) ** alpha + (b / x["steps"]) ** beta) ** c["rho"]
        assert found == pytest.approx(s + direct * (scale if "finetuning" in name else -scale), rel=1e-12)
        return found

    learned = of("finetuning_kalajdzievski", "ft", c["c_ft"], c["s_ft"])
    forgotten = of("forgetting_kalajdzievski", "f", c["c_fft"] * c["c_ft"], c["s_fft"] - c["c_fft"] * c["s_ft"])
    assert learned == pytest.approx(check["finetuning_loss_nats"], abs=0.005)
    assert forgotten == pytest.approx(check["forgetting_loss_nats"], abs=0.005)
    straight = value("linear", {"x": learned}, a=c["s_fft"], b=-c["c_fft"])[0]  # law (a): the two fits agree to .01, as the literature file says
    assert straight == pytest.approx(forgotten, abs=0.01)


def test_replay_multiplies_the_parameters_of_bethunes_law():
    constants = {"A": 20.0, "B": 150.0, "alpha": 0.4, "beta": 0.3}
    x = {"base_loss": 2.5, "unique_tokens": 1e6}
    replayed = value("forgetting_bethune", x | {"n_params": 1e8, "replay_fraction": 0.01}, **constants)
    assert replayed == pytest.approx(value("forgetting_bethune", x | {"n_params": 2.5e8, "replay_fraction": 0.0}, **constants))
    assert replayed[0] == pytest.approx(2.5 + 20 * 1e6**0.3 / 2.5e8**0.4)


def test_gadre_is_chinchilla_with_one_exponent_in_other_variables():
    """As in mlfoundations/scaling, scaling/laws.py: alpha N^b + beta 6^(b/2) (M N)^b + E with b = -2 eta."""
    n, m, eta = X * 1e5, 20 * X[::-1] ** 0.2, 0.17
    plain = value("chinchilla_shared", {"n_params": n, "n_tokens": m * n}, E=1.8, A=480.0, B=2100.0, alpha=2 * eta)
    other = value("gadre", {"train_flops": 6 * n * m * n, "tokens_per_param": m}, E=1.8, a=480 * 6**eta, b=2100 * 6**eta, eta=eta)
    assert other == pytest.approx(plain, rel=1e-12)
    beta = 2100.0 * 6**eta  # theirs, for our B
    assert plain == pytest.approx(480 * n ** (-2 * eta) + beta * 6**-eta * (m * n) ** (-2 * eta) + 1.8, rel=1e-12)


def test_kaplan_is_a_power_law_in_what_limits():
    constants = {"N_c": 8.8e13, "D_c": 5.4e13, "alpha_N": 0.076, "alpha_D": 0.095}
    assert value("kaplan", {"n_params": 1e9, "n_tokens": 1e40}, **constants) == pytest.approx((8.8e13 / 1e9) ** 0.076)
    assert value("kaplan", {"n_params": 1e40, "n_tokens": 1e9}, **constants) == pytest.approx((5.4e13 / 1e9) ** 0.095)


@pytest.mark.parametrize("alpha", [0.01, 0.6, 1.0, 1.7, 12.0])
def test_m4_solves_its_equation(alpha):
    """Both sides of (y - e) / (e0 - y)^alpha = beta x^-c with beta = d^c (e0 - e)^(1 - alpha), over u from 1e-5 to nearly 1."""
    e, e0, d, c = 0.4, 2.5, 500.0, 1.6
    y = value("m4", {"x": X}, e=e, e0=e0, d=d, c=c, alpha=alpha)
    assert np.all(np.diff(y) <= 0)
    inside = e0 - y > 1e-6  # above, e0 - y has lost its digits
    assert inside.sum() > 10
    y, x = y[inside], X[inside]
    assert (y - e) / (e0 - y) ** alpha == pytest.approx(d**c * (e0 - e) ** (1 - alpha) * x**-c, rel=1e-7 * max(1.0, alpha))


def test_m4_without_alpha_is_a_power_law_with_a_floor():
    far = X[X > 1e4]
    assert value("m4", {"x": far}, e=0.4, e0=2.5, d=50.0, c=0.5, alpha=1e-9) == pytest.approx(0.4 + 2.1 * (far / 50) ** -0.5, rel=1e-8)


def test_m3_is_a_power_law_that_ends_at_a_level():
    y = value("m3", {"x": X}, beta=8.0, gamma=1e-3, c=0.3)
    assert y == pytest.approx(8 * (1 / X + 1e-3) ** 0.3)
    assert value("m3", {"x": 1e30}, beta=8.0, gamma=1e-3, c=0.3)[0] == pytest.approx(8e-3 ** 0.3 * 8**0.7)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_broken_power_laws_are_the_published_product(n):
    """The form of ethancaballero/broken_neural_scaling_laws; far from breaks its exponent is c0 and the sum of those passed."""
    breaks = [(0.5, 1e2, 0.3), (-0.2, 1e4, 0.4), (0.3, 1e5, 0.2)][:n]
    named = {f"{k}{i}": v for i, row in enumerate(breaks, 1) for k, v in zip("cdf", row, strict=True)}
    y = value(f"broken_{n}", {"x": X}, a=0.3, b=5.0, c0=0.1, **named)
    product = np.prod([(1 + (X / d) ** (1 / f)) ** (-c * f) for c, d, f in breaks], axis=0)
    assert y == pytest.approx(0.3 + 5 * X**-0.1 * product, rel=1e-12)
    ends = value(f"broken_{n}", {"x": np.array([1e-9, 1e-8, 1e15, 1e16])}, a=0.0, b=5.0, c0=0.1, **named)
    assert np.log10(ends[0] / ends[1]) == pytest.approx(0.1)
    assert np.log10(ends[2] / ends[3]) == pytest.approx(0.1 + sum(c for c, _, _ in breaks))


def test_a_sharp_break_does_not_overflow():
    y = value("broken_1", {"x": X}, a=0.0, b=1.0, c0=0.0, c1=1.0, d1=1e3, f1=1e-3)
    assert y == pytest.approx(np.minimum(1.0, 1e3 / X), rel=1e-3)


def test_extraction_rises_by_its_slope_a_decade():
    """+19 points per 10 x parameters (Carlini et al.; shared/literature/memorization.md 3)."""
    one, ten = value("extraction_log_linear", {"n_params": np.array([1e8, 1e9]), "duplicates": 10.0, "context": 50.0},
                     a=-1.4, b=0.19, c=0.1, d=0.05)
    assert ten - one == pytest.approx(0.19)
    assert value("extraction_log_linear", {"n_params": 1.0, "duplicates": 1.0, "context": 50.0}, a=-1.4, b=0.19, c=0.1, d=0.05)[0] == 0.0


@pytest.mark.parametrize("name", [n for n in laws.names() if laws.get(n).zero])
def test_a_law_is_finite_where_it_says_a_predictor_may_be_zero(name):
    law = laws.get(name)
    x = columns(name) | {k: np.zeros_like(columns(name)[k]) for k in law.zero}
    assert np.isfinite(law.predict(x, law.internal(ROWS[name][1]))).all()
    assert all(np.isfinite(law.predict(x, s)).all() for s in law.starts(columns(name), np.ones_like(x["1"])))
