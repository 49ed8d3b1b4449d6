"""What a fit does not know it does not say: noise, ridges, floors that may be zero, and objectives that are no sum of squares."""

import math

import numpy as np
import pyarrow as pa
import pytest

from scalemem import laws
from scalemem.fitting import Fit, fit
from scalemem.forecasting import predictive
from scalemem.laws.identified import DECADES
from scalemem.tables import TableError

BOTH = {"n_params": "N", "n_tokens": "D"}


def noise(seed):
    rng = np.random.default_rng(seed)
    n = 10 if seed % 2 else 30
    return pa.table({"N": 10 ** rng.uniform(7, 10, n), "D": 10 ** rng.uniform(9, 11, n), "y": 3 * np.exp(0.1 * rng.standard_normal(n))})


def ridge(seed):
    size = np.geomspace(1e7, 1e10, 9)
    y = (1.8 + 480 * size**-0.35 + 2100 * size**-0.37) * np.exp(1e-3 * np.random.default_rng(seed).standard_normal(9))
    return pa.table({"N": size, "D": size, "y": y})


@pytest.mark.parametrize(("make", "seed", "loss"), [
    *((noise, s, "squared") for s in range(8)), *((ridge, s, "squared") for s in range(4)), (noise, 1, "huber:1e-3"), (ridge, 2, "huber:1e-3"),
])
def test_a_digit_has_a_finite_interval_of_few_decades_and_a_start_that_agrees(make, seed, loss):
    """Chinchilla's law on noise, and on D = N, where only a combination is seen."""
    found = fit(make(seed), "chinchilla", y="y", x=BOTH, loss=loss).at()
    law = laws.get("chinchilla")
    assert any(e.status.startswith("not identified: ") for k, e in found.parameters.items() if k != "E")
    for q in law.parameters:
        e = found.parameters[q.name]
        if e.status != "ok":
            assert math.isnan(e.value)
            assert math.isnan(e.low)
            assert math.isnan(e.high)
            continue
        assert found.agreeing > 0
        assert e.low <= e.value <= e.high < math.inf
        assert not q.log or math.log10(e.high / e.low) <= DECADES


def test_a_bootstrap_keeps_the_same_rule():
    found = fit(noise(1), "chinchilla", y="y", x=BOTH, bootstrap=50).at()
    for q in laws.get("chinchilla").parameters:
        e = found.parameters[q.name]
        assert e.status != "ok" or not q.log or math.log10(e.high / e.low) <= DECADES


X, FAR = np.geomspace(10, 1e4, 10), np.array([3e4, 1e5, 1e6])


def power_floor(e, seed, sd=0.02):
    y = (e + 4 * np.append(X, FAR) ** -0.3) * np.exp(sd * np.random.default_rng(seed).standard_normal(len(X) + len(FAR)))
    return fit(pa.table({"x": X, "y": y[:len(X)]}), "power_floor", y="y", x="x").at(), y[len(X):]


def test_a_floor_that_may_be_zero_is_named():
    notes = [any("e is not distinguished from 0" in w for w in power_floor(e, seed)[0].warnings) for e in (0.0, 0.5) for seed in range(6)]
    assert sum(notes[:6]) >= 5
    assert not any(notes[6:])


@pytest.mark.parametrize("floor", [0.0, 0.15, 0.5])
def test_far_forecasts_of_a_law_with_a_floor_hold_with_and_without_one(floor):
    """At 3, 10 and 100 times the frontier; without the atom at e = 0 the pure power law is held in 79, 66 and 39 %. With 100 curves a
    coverage of 90 % is measured within 83 and 97 % (2.3 standard deviations)."""
    hits = np.zeros(3)
    for seed in range(100):
        found, y = power_floor(floor, seed)
        spread = predictive(laws.get("power_floor"), found, {"x": FAR})
        hits += (spread.quantile(0.05) < y) & (y < spread.quantile(0.95))
    assert hits.min() >= 83
    assert hits.max() <= 98


def test_the_atom_has_the_weight_of_its_evidence():
    """No mass where the floor is plain; where it is on its bound, odds of sqrt(n)."""
    def at_zero(found):
        return float(found.posterior.weights[found.posterior.points[:, 0] == 0].sum())

    assert at_zero(power_floor(0.5, 0, sd=1e-3)[0]) == 0
    on_bound = next(g for g in (power_floor(0.0, seed)[0] for seed in range(20)) if g.parameters["e"].status.startswith("on bound"))
    odds = math.sqrt(len(X))
    assert at_zero(on_bound) == pytest.approx(odds / (1 + odds), rel=0.02)
    assert on_bound.posterior is not None
    assert on_bound.posterior.weights.sum() == pytest.approx(1)


@pytest.mark.parametrize(("law", "loss"), [("power", "huber:1e-3"), ("power", "huber"), ("power", "asymmetric:0.3"), ("auto", "squared")])
def test_what_is_no_sum_of_squares_has_no_residual(law, loss):
    table = pa.table({"x": X, "y": 4 * X**-0.3 * (1 + 0.01 * np.cos(np.arange(10)))})
    found = fit(table, law, y="y", x={"x": "x"}, loss=loss)
    for each in (found, Fit.from_json(found.to_json())):
        with pytest.raises(TableError, match="must be that of one law under squared error") as error:
            each.residual()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("loss", ["squared", "log", "linear"])
def test_the_residual_is_the_sum_of_squares(loss):
    y = 4 * X**-0.3 * (1 + 0.01 * np.cos(np.arange(10)))
    found = fit(pa.table({"x": X, "y": y}), "power", y="y", x="x", loss=loss)
    p = {k: e.value for k, e in found.at().parameters.items()}
    curve = p["a"] * X ** p["b"]
    off = y - curve if loss == "linear" else np.log(y / curve)
    assert found.residual() == (pytest.approx(float(np.sum(off**2))), 8)
