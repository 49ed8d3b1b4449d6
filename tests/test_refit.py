"""The batched engine: exact slopes, the same optimum as one fit at a time, and the published Chinchilla fits."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from law_rows import ROWS
from scipy import optimize

from scalemem import laws
from scalemem.fitting import fit
from scalemem.laws import dual, losses
from scalemem.laws.base import Law, Parameter
from scalemem.laws.problem import Problem
from scalemem.laws.project import project, scatter
from scalemem.laws.refit import refit
from scalemem.laws.sample import Sample

DATA = Path(__file__).parents[2] / "shared" / "benchmarks" / "chinchilla_extracted.csv"
CHINCHILLA = {"n_params": "N", "n_tokens": "D"}
HUBER = {"A": 477.84, "B": 2143.9, "E": 1.81724, "alpha": 0.34731, "beta": 0.36718}  # shared/benchmarks/README.md
LIKELIHOOD = {"A": 482.0, "B": 2085.0, "E": 1.8169, "alpha": 0.3478, "beta": 0.3658}


def problem(loss, law, x, y):
    loss = losses.parse(loss)
    law = loss.law(laws.get(law))
    return Problem(law, Sample.of(law, x, y), loss)


@pytest.mark.parametrize("name", laws.names())
def test_slopes_are_those_of_the_complex_step(name, monkeypatch):
    """And no law needs the complex step."""
    law, (x, values, _) = laws.get(name), ROWS[name]
    n = len(next(iter(x.values()))) if x else 8
    x, theta = {**x, "1": np.ones(n)}, np.tile(law.internal(values), (2, 1))
    want, eta = np.broadcast_to(law.gradient(x, theta), (2, n, len(law.names))), law.predict(x, theta)
    monkeypatch.setattr(Law, "gradient", lambda *a: pytest.fail("complex step"))
    got, jacobian = dual.slopes(law, x, theta)
    assert got == pytest.approx(np.broadcast_to(eta, got.shape), rel=1e-14)
    assert np.swapaxes(jacobian, 1, 2) == pytest.approx(want, rel=1e-10, abs=1e-12)


def test_a_function_that_duals_do_not_know_takes_the_complex_step():
    law = Law("odd", "y = a", lambda x, p: p["a"] * np.prod(np.stack([np.cos(p["b"] * x["x"]), x["1"] + 0 * p["b"]]), axis=0),
              ("x",), (Parameter("a", log=True), Parameter("b")), scale="linear")
    x, theta = {"x": np.linspace(0, 1, 5), "1": np.ones(5)}, np.array([[0.2, 1.5]])
    assert np.swapaxes(dual.slopes(law, x, theta)[1], 1, 2)[0] == pytest.approx(law.gradient(x, theta[0]))


def test_weights_of_a_batch_are_repetitions_and_each_ends_where_scipy_does():
    rng = np.random.default_rng(0)
    x = np.geomspace(10, 1e4, 20)
    y = (0.5 + 4 * x**-0.5) * np.exp(0.03 * rng.standard_normal(20))
    p = problem("squared", "power_floor", {"x": x}, y)
    start = np.tile(p.law.starts(p.s.x, y)[2], (6, 1))
    weights = rng.multinomial(20, np.full(20, 1 / 20), 6).astype(float)
    batch = refit(p.rows, start, weights=weights)
    assert batch.settled.all()
    for w, theta, cost in zip(weights, batch.theta, batch.cost, strict=True):
        rows = np.repeat(np.arange(20), w.astype(int))
        one = optimize.least_squares(lambda t, rows=rows: (p.law.predict(p.s.x, t) - p.s.eta)[rows], theta + 0.01, bounds=p.law.bounds(),
                                     xtol=1e-15, ftol=1e-15, gtol=1e-15)
        assert cost == pytest.approx(one.cost, rel=1e-9)
        assert theta == pytest.approx(one.x, rel=1e-4, abs=1e-4)


def test_what_is_not_free_stays_and_bounds_hold():
    x = np.geomspace(10, 1e4, 20)
    p = problem("squared", "power_floor", {"x": x}, 4 * x**-0.5 - 0.01)  # would like a negative floor
    theta = np.tile(p.law.internal({"e": 0.1, "a": 3.0, "b": 0.7}), (2, 1))
    free = np.array([[True, True, True], [True, True, False]])
    found = refit(p.rows, theta, free=free)
    assert found.theta[1, 2] == theta[1, 2]
    assert np.all(found.theta[:, 0] >= 0)
    assert found.theta[0, 0] == 0
    assert found.cost[0] < found.cost[1]


def test_linear_parameters_are_solved_for():
    x = np.geomspace(10, 1e4, 20)
    law, y = laws.get("power_floor"), 0.5 + 4 * x**-0.5
    theta = np.array([[1e6, 14.0, np.log(0.5)], [0.0, -30.0, np.log(0.5)]])
    assert project(law, {"x": x, "1": np.ones(20)}, y, theta) == pytest.approx(np.tile(law.internal({"e": 0.5, "a": 4, "b": 0.5}), (2, 1)))
    drawn = scatter(law, {"x": x, "1": np.ones(20)}, y, theta, 50)
    assert np.isfinite(law.predict({"x": x, "1": np.ones(20)}, drawn)).all()


@pytest.mark.parametrize("loss", ["squared", "huber:1e-3", "huber"])
def test_random_starts_and_bootstraps_are_said(loss):
    rng = np.random.default_rng(3)
    x = np.geomspace(10, 1e4, 30)
    table = pa.table({"x": x, "y": (0.5 + 4 * x**-0.5) * np.exp(0.02 * rng.standard_normal(30))})
    plain, boot = (fit(table, "power_floor", y="y", x="x", loss=loss, starts=20, bootstrap=b).at() for b in (0, 300))
    assert plain.tried == 25
    assert plain.agreeing >= 20
    assert boot.interval_by.startswith("bootstrap of ")
    assert plain.interval_by == ("profile" if loss == "squared" else "likelihood ratio, calibrated to the residuals")
    for k, e in boot.parameters.items():
        p = plain.parameters[k]
        assert e.value == p.value
        assert e.low <= e.value <= e.high
        assert 0.4 < (e.high - e.low) / (p.high - p.low) < 2.2
    assert fit(table, "power_floor", y="y", x="x", loss=loss, starts=20, bootstrap=300).at().parameters == boot.parameters


def test_a_bootstrap_of_replicates_draws_blocks():
    rng, x = np.random.default_rng(11), np.repeat(np.geomspace(1, 1000, 8), 5)
    y = x * np.exp(0.02 * rng.standard_normal(40) + np.repeat(0.2 * rng.standard_normal(8), 5))
    plain, boot = (fit(pa.table({"x": x, "y": y}), "power", y="y", x="x", bootstrap=b).at().parameters["b"] for b in (0, 1000))
    assert 0.5 < (boot.high - boot.low) / (plain.high - plain.low) < 1.5


def chinchilla():
    if not DATA.exists():
        pytest.skip(f"{DATA.name}: not shipped with the library, and ../shared/benchmarks is absent")
    with DATA.open() as file:
        rows = [[float(row[k]) for k in ("Model Size", "Training FLOP", "loss")] for row in csv.DictReader(file)]
    n, flop, loss = np.array(sorted(rows, key=lambda row: row[2])[:-5]).T  # without the 5 highest losses
    return pa.table({"N": n, "D": flop / (6 * n), "L": loss})


def box(n):
    """Random starts in the box of Hoffmann et al.'s grid: log A, log B in 0-25, log E in -1-1, exponents in 0-2."""
    u = np.random.default_rng(0).uniform([-1, 0, 0, 0, 0], [1, 25, 25, 2, 2], (n, 5))
    return np.column_stack([np.exp(u[:, 0]), u[:, 1:3], np.log(u[:, 3:])])


def test_chinchilla_reaches_the_stated_optimum_from_every_random_start():
    table = chinchilla()
    p = problem("huber:1e-3", "chinchilla", {k: table[c].to_numpy() for k, c in CHINCHILLA.items()}, table["L"].to_numpy())
    found = refit(p.rows, project(p.law, p.s.x, p.level, box(1000)))
    assert found.cost == pytest.approx(0.00101827402, rel=1e-8)
    for theta in (found.theta[0], found.theta[-1]):
        assert {k: float(v) for k, v in p.law.natural(theta).items()} == pytest.approx(HUBER, rel=1e-3)


@pytest.mark.parametrize(("loss", "want"), [("huber:1e-3", HUBER), ("huber", LIKELIHOOD)])
def test_chinchilla_has_both_parameter_sets(loss, want):
    found = fit(chinchilla(), "chinchilla", y="L", x=CHINCHILLA, loss=loss).at()
    assert {k: e.value for k, e in found.parameters.items()} == pytest.approx(want, rel=1e-3)
    assert found.agreeing == found.tried
    assert all(e.status == "ok" for e in found.parameters.values())


@pytest.mark.parametrize("loss", ["squared", "linear", "huber:1e-3", "asymmetric:0.3"])
def test_chinchilla_without_noise_comes_back(loss):
    table = chinchilla()
    law = laws.get("chinchilla")
    x = {k: table[c].to_numpy() for k, c in CHINCHILLA.items()}
    y = np.exp(law.predict({**x, "1": np.ones(table.num_rows)}, law.internal(HUBER)))
    found = fit(table.append_column("clean", pa.array(y)), "chinchilla", y="clean", x=CHINCHILLA, loss=loss).at()
    assert {k: e.value for k, e in found.parameters.items()} == pytest.approx(HUBER, rel=1e-8)


def test_chinchilla_bootstrap_intervals_are_near_the_stated():
    found = fit(chinchilla(), "chinchilla", y="L", x=CHINCHILLA, loss="huber:1e-3", interval=0.95, bootstrap=1000).at().parameters
    stated = {"A": (285, 744), "B": (1042, 5810), "E": (1.769, 1.871), "alpha": (0.317, 0.373), "beta": (0.331, 0.415)}
    for k, (low, high) in stated.items():
        assert abs(found[k].low - low) < 0.12 * (high - low)
        assert abs(found[k].high - high) < 0.12 * (high - low)
