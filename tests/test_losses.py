"""Losses: each is what its formula says, finds what independent code finds, and its intervals hold."""

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from scalemem import laws
from scalemem.fitting import Fit, fit
from scalemem.forecasting import forecast, predictive
from scalemem.laws import losses
from scalemem.tables import TableError

ETA, TRIALS = np.array([0.3, -0.2, 2.0, 0.05]), np.array([5.0, 8.0, 20.0, 40.0])
EVERY = ["squared", "log", "linear", "huber:1e-2", "huber", "asymmetric:0.2"]
X = np.geomspace(10, 1e4, 24)


def curve(sd=0.02, seed=0, **more):
    rng = np.random.default_rng(seed)
    return pa.table({"x": X, "y": (0.5 + 4 * X**-0.5) * np.exp(sd * rng.standard_normal(len(X))), **more})


def counts(seed=0, concentration=math.inf, n=200):
    rng = np.random.default_rng(seed)
    p = 0.05 + 0.8 * X**-0.4
    p = p if math.isinf(concentration) else rng.beta(p * concentration, (1 - p) * concentration)
    return pa.table({"x": X, "k": rng.binomial(n, p), "n": np.full(len(X), n)})


def found(table, loss, law="power_floor", y="y", x="x", **options):
    return fit(table, law, y=y, x=x, loss=loss, **options).at()


def within_binomial_band(hits, n, p):
    return stats.binom.ppf(5e-5, n, p) <= hits <= stats.binom.ppf(1 - 5e-5, n, p)


@pytest.mark.parametrize("name", [*EVERY, "binomial", "beta_binomial"])
def test_slopes_are_those_of_the_values(name):
    loss = losses.parse(name)
    y = np.array([1.0, 0.0, 20.0, 7.0]) if loss.counts else ETA
    target, nuisance = loss.target(y, TRIALS if loss.counts else None), np.array([30.0 if loss.counts else 0.4])
    for at in (np.array([[0.2, 0.4, 0.9, 0.11]]), np.array([[0.301, 0.7, 0.6, 0.3]])):
        h = 1e-6
        up, down = (loss.terms(target, at + v, nuisance)[0] for v in (h, -h))
        assert loss.terms(target, at, nuisance)[1] == pytest.approx((up - down) / (2 * h), rel=1e-5, abs=1e-6)
        assert np.all(loss.terms(target, at, nuisance)[2] > 0)


@pytest.mark.parametrize("text", ["hubr", "huber:", "huber:0", "huber:-1", "huber:nan", "huber:x", "asymmetric", "asymmetric:1", "log:3", ""])
def test_a_loss_that_is_none(text):
    if text == "huber:":
        assert losses.parse(text).name == "huber"
        return
    with pytest.raises(TableError, match="must be squared, log, linear, huber:DELTA") as error:
        found(curve(), text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("options", "says"), [
    ({"loss": "binomial"}, "a column of trials goes with"), ({"trials": "x"}, "a column of trials goes with"),
    ({"loss": "binomial", "trials": "x", "noise_sd": 0.1}, "belong to squared error"),
    ({"starts": -1}, "starts = -1"), ({"bootstrap": 3}, "from 20 to a million"), ({"bootstrap": 2.5}, "bootstrap = 2.5"),
])
def test_options_that_cannot_be(options, says):
    with pytest.raises(TableError, match=says):
        fit(curve(), "power_floor", y="y", x="x", **options)
    with pytest.raises(TableError, match="integrates g out under squared error"):
        fit(curve(), "exposure", y="y", x="x", loss="log")


@pytest.mark.parametrize(("k", "n", "says"), [
    ([1, 2, 9], [5, 5, 5], "column 'k', row 3 = 9: must be a whole number from 0 to the trials in 'n'"),
    ([1, -2, 3], [5, 5, 5], "row 2 = -2"), ([1, 2.5, 3], [5, 5, 5], "row 2 = 2.5"), ([1, 2, 3], [5, 5.5, 5], "column 'n', row 2 = 5.5"),
    ([1, 2, 0], [5, 5, 0], "column 'n', row 3 = 0"),
])
def test_counts_that_are_none(k, n, says):
    with pytest.raises(TableError, match=says):
        fit(pa.table({"k": k, "n": n}), "constant", y="k", loss="binomial", trials="n")


def test_squared_error_is_chosen_against_the_laws_scale():
    table = curve(0.1)
    own, log, linear = (found(table, name) for name in ("squared", "log", "linear"))
    assert own.parameters == log.parameters
    x, y = (table[k].to_numpy() for k in ("x", "y"))
    other = optimize.least_squares(lambda p: p[0] + p[1] * x ** -p[2] - y, [0.5, 4, 0.5], xtol=1e-15, ftol=1e-15, gtol=1e-15)
    assert [e.value for e in linear.parameters.values()] == pytest.approx(other.x, rel=1e-6)
    assert linear.objective == pytest.approx(2 * other.cost)
    spread = predictive(laws.get("power_floor"), linear, {"x": np.array([10.0, 1e4])})
    width = spread.quantile(0.9) - spread.quantile(0.1)
    assert width[0] < 2 * width[1]  # noise of one size in y, though y is six times as large; on the log it is 6 times as wide
    wide = fit(pa.table({"y": [1.0, 2, 4], "i": [1, 1, 1]}), "constant", y="y", loss="log").at().parameters["a"]
    assert wide.value == pytest.approx(2.0)


def test_hubers_loss_is_squared_error_where_delta_is_large_and_resists_where_it_is_small():
    table = curve()
    large, squared = found(table, "huber:50"), found(table, "squared")
    for k, e in large.parameters.items():
        s = squared.parameters[k]
        assert (e.value, e.low, e.high) == pytest.approx((s.value, s.low, s.high), rel=5e-3)
    assert 2 * large.objective == pytest.approx(squared.objective)
    y = curve(0.0)["y"].to_numpy().copy()
    y[5] *= 3
    for loss in ("huber:1e-4", "huber"):
        robust = found(pa.table({"x": X, "y": y}), loss)
        assert {k: e.value for k, e in robust.parameters.items()} == pytest.approx({"e": 0.5, "a": 4.0, "b": 0.5}, rel=1e-3)


def test_the_free_huber_scale_is_its_maximum_likelihood():
    table, law = curve(), laws.get("power_floor")
    one = found(table, "huber")
    theta = law.internal({k: e.value for k, e in one.parameters.items()})
    r = law.predict({"x": X, "1": np.ones(len(X))}, theta) - np.log(table["y"].to_numpy())

    def cost(log_scale):
        s, d = math.exp(log_scale), losses.FREE_DELTA
        area = math.sqrt(2 * math.pi) * (1 - 2 * stats.norm.sf(d)) + 2 * math.exp(-d * d / 2) / d
        size = np.abs(r / s)
        return float(np.sum(np.where(size <= d, size**2 / 2, d * (size - d / 2)) + math.log(area * s)))

    best: Any = optimize.minimize_scalar(cost, bounds=(-20, 0), method="bounded", options={"xatol": 1e-10})
    assert one.nuisance["scale"] == pytest.approx(math.exp(best.x), rel=1e-5)
    assert one.objective == pytest.approx(best.fun, rel=1e-9)


def test_an_asymmetric_half_is_squared_error_and_a_tenth_hugs_the_lowest_rows():
    table, law = curve(0.05), laws.get("power_floor")
    assert found(table, "asymmetric:0.5").objective == pytest.approx(found(table, "squared").objective)
    low = found(table, "asymmetric:0.1")
    theta = law.internal({k: e.value for k, e in low.parameters.items()})
    r = np.log(table["y"].to_numpy()) - law.predict({"x": X, "1": np.ones(len(X))}, theta)
    side = 2 * np.where(r > 0, 0.1, 0.9)
    assert low.objective == pytest.approx(float(np.sum(side * r * r)))
    assert np.mean(r < 0) < 0.35
    mean = fit(pa.table({"y": np.exp([0.0, 1.0])}), "constant", y="y", loss="asymmetric:0.2").at().parameters["a"].value
    assert math.log(mean) == pytest.approx(0.2)  # 0.8 m = 0.2 (1 - m)


def test_a_binomial_constant_is_the_pooled_share_with_its_likelihood_ratio_interval():
    k, n = np.array([3, 5, 4]), np.array([50, 60, 40])
    one = fit(pa.table({"k": k, "n": n}), "constant", y="k", loss="binomial", trials="n").at()
    a, share = one.parameters["a"], k.sum() / n.sum()

    def rise(p):
        return stats.binom.logpmf(k, n, share).sum() - stats.binom.logpmf(k, n, p).sum() - stats.chi2.ppf(0.9, 1) / 2

    ends = optimize.brentq(rise, 1e-6, share), optimize.brentq(rise, share, 0.9)
    assert (a.value, a.low, a.high) == pytest.approx((share, *ends), rel=2e-3)
    assert a.value == pytest.approx(share, rel=1e-8)
    assert one.objective == pytest.approx(-stats.binom.logpmf(k, n, share).sum())
    assert one.interval_by == "likelihood ratio"


def test_a_beta_binomial_is_that_of_scipy_and_a_binomial_says_when_it_is_needed():
    table = counts(concentration=20.0)
    k, n = table["k"].to_numpy(), table["n"].to_numpy()
    plain, wide = (found(table, name, y="k", trials="n") for name in ("binomial", "beta_binomial"))
    assert any("use the loss beta_binomial" in w for w in plain.warnings)

    def cost(z):
        p, c = z[0] + z[1] * X ** -z[2], math.exp(z[3])
        return -stats.betabinom.logpmf(k, n, p * c, (1 - p) * c).sum() if np.all((p > 0) & (p < 1)) else 1e9

    best = optimize.minimize(cost, [0.05, 0.8, 0.4, 3.0], method="Nelder-Mead",
                             options={"xatol": 1e-9, "fatol": 1e-11, "maxiter": 9000, "maxfev": 9000})
    assert wide.objective == pytest.approx(best.fun, abs=1e-6)
    assert [e.value for e in wide.parameters.values()] == pytest.approx(best.x[:3], rel=1e-3, abs=1e-3)
    assert wide.nuisance["concentration"] == pytest.approx(math.exp(best.x[3]), rel=1e-2)
    for name, e in wide.parameters.items():
        assert not (plain.parameters[name].low < e.low)
    one = fit(counts(n=50), "power_floor", y="k", x="x", loss="beta_binomial", trials="n")
    assert math.isnan(one.at().nuisance["concentration"]) or one.at().nuisance["concentration"] > 100
    json.dumps(one.to_json(), allow_nan=False)


@pytest.mark.parametrize(("loss", "draw"), [
    ("huber:1e-3", lambda r: 0.02 * r.standard_t(2.5, len(X))), ("huber:1e-2", lambda r: 0.02 * r.standard_normal(len(X))),
    ("huber", lambda r: r.laplace(0, 0.02, len(X))), ("asymmetric:0.5", lambda r: 0.02 * r.standard_normal(len(X))),
])
def test_intervals_of_robust_losses_hold(loss, draw):
    rng, n, hits = np.random.default_rng(5), 60, 0
    for _ in range(n):
        e = fit(pa.table({"x": X, "y": 3 * X**-0.3 * np.exp(draw(rng))}), "power", y="y", x="x", loss=loss).at().parameters["b"]
        hits += e.low < -0.3 < e.high
    assert within_binomial_band(hits, n, 0.9)


@pytest.mark.parametrize(("loss", "concentration"), [("binomial", math.inf), ("beta_binomial", 30.0)])
def test_intervals_of_counts_hold(loss, concentration):
    n, hits = 60, 0
    for seed in range(n):
        e = found(counts(seed, concentration), loss, y="k", trials="n").parameters["b"]
        hits += e.low < 0.4 < e.high
    assert within_binomial_band(hits, n, 0.9)


@pytest.mark.parametrize("loss", [*EVERY, "binomial", "beta_binomial"])
def test_rows_in_any_order_and_weights_and_json(loss):
    counted = losses.parse(loss).counts
    table = counts() if counted else curve()
    options = {"law": "power_floor", "y": "k" if counted else "y", "x": "x", "loss": loss, "trials": "n" if counted else None}
    one = fit(table, **options)
    assert fit(table.take(np.random.default_rng(1).permutation(len(X))), **options).to_json() == one.to_json()
    weights = np.arange(len(X)) % 3
    weighted = fit(table.append_column("w", pa.array(weights)), weights="w", **options)
    assert fit(table.take(np.repeat(np.arange(len(X)), weights)), **options).at().parameters == weighted.at().parameters
    value = one.to_json()
    again = Fit.from_json(json.loads(json.dumps(value, allow_nan=False)))
    assert again.to_json() == value
    assert value["loss"] == losses.parse(loss).name
    assert value["interval_by"]
    assert value["correlation"]["e"]["e"] == 1.0
    assert forecast(again, {"x": 3e4}).median == pytest.approx(forecast(one, {"x": 3e4}).median, rel=1e-3)  # a binomial's draws are steps
    assert (one.fingerprint == fit(table, **{**options, "loss": "squared", "trials": None}).fingerprint) == (loss == "squared")


def test_correlations_are_those_of_the_textbook():
    """Of log a and b in a straight line: - mean(log x) / rms(log x)."""
    c = fit(curve(), "power", y="y", x="x").at().correlation
    want = -np.log(X).mean() / math.sqrt(np.mean(np.log(X) ** 2))
    assert c["a"]["b"] == pytest.approx(want)
    assert c["b"]["a"] == pytest.approx(want)
    lost = fit(pa.table({"x": [4.0] * 5, "y": [1.0, 2, 3, 4, 5]}), "power", y="y", x="x").at()
    assert any(math.isnan(v) for row in lost.correlation.values() for v in row.values())


@settings(max_examples=120, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(law=st.sampled_from(["power", "power_floor", "constant", "chinchilla", "membership_sigmoid"]), data=st.data(),
       loss=st.sampled_from(["log", "linear", "huber:1e-3", "huber", "asymmetric:0.2", "binomial", "beta_binomial"]))
def test_no_numbers_escape_as_another_error(law, data, loss):
    """Huge, tiny, equal and few values under every loss: a fit, or one line; and never a digit without an interval."""
    n, counted = data.draw(st.integers(0, 9)), losses.parse(loss).counts
    number = st.one_of(st.sampled_from([1.0, 2.0, 1e-300, 1e300, 1e59, 1e-59, 1e16, 0.0]), st.floats(1e-3, 1e3))
    whole = st.one_of(st.sampled_from([0.0, 1.0, 5.0, 1e9, 1e15]), st.integers(0, 9).map(float))
    cells = {k: number for k in laws.get(law).predictors} | {"y": whole if counted else number}
    table = pa.table({k: pa.array([data.draw(v) for _ in range(n)], pa.float64()) for k, v in cells.items()}
                     | ({"n": pa.array([data.draw(st.sampled_from([9.0, 1.0, 1e15])) for _ in range(n)], pa.float64())} if counted else {}))
    text = ""
    try:
        one = fit(table, law, y="y", x={k: k for k in laws.get(law).predictors}, loss=loss, trials="n" if counted else None)
    except TableError as caught:
        text = str(caught)
        assert "\n" not in text
    if not text:
        json.dumps(one.to_json(), allow_nan=False)
        for e in one.at().parameters.values():
            assert not math.isnan(e.value) or e.status != "ok"
            assert e.status != "ok" or np.isfinite([e.low, e.high]).all()


@pytest.mark.parametrize("law", ["power", "power_floor"])
@pytest.mark.parametrize("loss", [*EVERY, "binomial", "beta_binomial"])
@pytest.mark.parametrize(("unit_x", "unit_y"), [(1e6, 1.0), (1e-4, 1e3), (30.0, 1e-5)])
def test_units_change_only_units(law, loss, unit_x, unit_y):
    """y' = k y and x' = m x: exponents, their intervals and forecasts stay; the objective is that of the rows in their unit."""
    counted = losses.parse(loss).counts
    unit_y = 1.0 if counted else unit_y
    table, y = (counts(), "k") if counted else (curve(), "y")
    scaled = pa.table({"x": X * unit_x, y: table[y].to_numpy() * unit_y} | ({"n": table["n"]} if counted else {}))
    options = {"loss": loss, "law": law, "y": y, "trials": "n" if counted else None}
    one, two = found(table, **options), found(scaled, **options)
    a, b = one.parameters["b"], two.parameters["b"]
    assert (b.value, b.low, b.high) == pytest.approx((a.value, a.low, a.high), rel=2e-3)
    factor = unit_y**2 if loss == "linear" else 1.0
    assert two.objective == pytest.approx(factor * one.objective, rel=1e-6)
    for k in {"e"} & set(one.parameters):
        assert two.parameters[k].value == pytest.approx(unit_y * one.parameters[k].value, rel=1e-4)
    spreads = [predictive(laws.get(law), g, {"x": np.array([1e5 * m])}) for g, m in ((one, 1.0), (two, unit_x))]
    width = unit_y * (spreads[0].quantile(0.95) - spreads[0].quantile(0.05))[0]
    for q in (0.05, 0.5, 0.95):  # 300 of 3,000 draws are kept, not the same ones in another unit
        assert abs(spreads[1].quantile(q) - unit_y * spreads[0].quantile(q))[0] < 0.12 * width


@pytest.mark.parametrize("loss", [*EVERY, "binomial", "beta_binomial"])
def test_a_duplicate_row_counts_twice_in_the_objective(loss):
    """The objective of a doubled row is the sum with that row twice, at the optimum of that sum."""
    counted = losses.parse(loss).counts
    table, y = (counts(), "k") if counted else (curve(), "y")
    options = {"loss": loss, "y": y, "trials": "n" if counted else None}
    twice = found(pa.concat_tables([table, table.slice(3, 1)]), **options)
    weighted = found(table.append_column("w", pa.array(1 + (np.arange(len(X)) == 3))), weights="w", **options)
    assert weighted.parameters == twice.parameters
    assert (weighted.objective, weighted.n_rows) == (twice.objective, len(X) + 1)
    assert twice.objective != found(table, **options).objective
    law, chosen = laws.get("power_floor"), losses.parse(loss)
    law = chosen.law(law)
    theta = law.internal({k: e.value for k, e in twice.parameters.items()})
    rows = np.append(np.arange(len(X)), 3)
    target = chosen.target(law.on_scale(table[y].to_numpy().astype(float))[rows], table["n"].to_numpy().astype(float)[rows] if counted else None)
    nuisance = np.array([twice.nuisance.get(chosen.nuisance, 0.0)])
    if math.isnan(nuisance[0]):  # the counts scatter no more than a binomial's
        chosen, nuisance = losses.parse("binomial"), np.zeros(1)
    rho = chosen.terms(target, law.predict({"x": X[rows], "1": np.ones(len(rows))}, theta)[None], nuisance)[0]
    assert twice.objective == pytest.approx(chosen.factor * float(rho.sum()), rel=1e-6)
