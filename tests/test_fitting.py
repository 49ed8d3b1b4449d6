"""Fits: planted parameters come back, intervals hold as often as they say, and nothing is invented."""

import dataclasses
import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from scipy import stats

from scalemem import laws, tables
from scalemem.fitting import Fit, fit
from scalemem.forecasting import predictive
from scalemem.laws.posterior import Posterior
from scalemem.laws.quadrature import integrate
from scalemem.laws.sample import Sample
from scalemem.tables import TableError, TooFewRows

D, P = np.tile(np.geomspace(5e3, 6e5, 10), 3), np.repeat([8e3, 2e4, 5e4], 10)
GRIDS = {
    "power": ({"x": np.geomspace(1e3, 1e6, 9)}, {"a": 2.0, "b": 0.4}),
    "power_floor": ({"x": np.geomspace(10, 1e5, 14)}, {"e": 0.5, "a": 4.0, "b": 0.5}),
    "capacity": ({"data_bits": D, "n_params": P}, {"alpha": 3.0}),
    "capacity_smooth": ({"data_bits": D, "n_params": P}, {"alpha": 3.0, "s": 4.0}),
    "bits_linear": ({"n_params": np.geomspace(1e3, 1e6, 9)}, {"alpha": 3.0}),
    "exposure": ({"exposures": np.tile([125.0, 250, 500, 1000, 4000, 16000, 64000], 3)}, {"a": 3.0, "c": 9.0, "g": 0.5}),
    "membership_sigmoid": ({"data_bits": D, "n_params": P}, {"c1": 1.3, "c2": -0.3, "c3": -6.0}),
    "constant": ({}, {"a": 1.1}),
}


def planted(name, rng, sd):
    """A table of the law's grid, y with Gaussian noise on the law's scale, and the mapping x."""
    law, (x, values) = laws.get(name), GRIDS[name]
    n = len(next(iter(x.values()))) if x else 8
    eta = law.predict({**x, "1": np.ones(n)}, law.internal(values)) + sd * rng.standard_normal(n)
    return pa.table({**x, "y": np.exp(eta) if law.scale == "log" else eta}), {k: k for k in x}


def values(found, group=None):
    return {k: e.value for k, e in found.at(group).parameters.items()}


@pytest.mark.parametrize("name", [n for n in GRIDS if n != "exposure"])
def test_noise_free_recovery(name):
    table, x = planted(name, np.random.default_rng(0), 0.0)
    found = fit(table, name, y="y", x=x).at()
    assert {k: e.value for k, e in found.parameters.items()} == pytest.approx(GRIDS[name][1], rel=1e-8)
    assert found.agreeing > 0


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("seed", range(3))
def test_noisy_recovery(name, seed):
    """Each planted value lies inside the 99.9 % interval, which is short of being trivial."""
    sd = {"membership_sigmoid": 0.005, "power_floor": 0.01}.get(name, 0.02)
    table, x = planted(name, np.random.default_rng(seed), sd)
    found = fit(table, name, y="y", x=x, interval=0.999, misfit_sd=0.0 if name == "exposure" else None).at()
    for k, e in found.parameters.items():
        assert e.status == "ok"
        assert e.low < GRIDS[name][1][k] < e.high
        assert e.high - e.low < 2.5 * abs(GRIDS[name][1][k])


def test_an_exposure_curve_with_hardly_any_noise_gives_its_exponent():
    """The data overrule the prior: g = 0.2 lies three of its standard deviations away."""
    e = np.geomspace(100, 1e5, 8)
    found = fit(pa.table({"e": e, "y": 3 - 2 * e**-0.2}), "exposure", y="y", x="e", noise_sd=1e-7, misfit_sd=0.0).at().parameters
    assert {k: v.value for k, v in found.items()} == pytest.approx({"a": 3, "c": 2, "g": 0.2}, rel=1e-4)
    assert found["a"].high - found["a"].low < 1e-4


def within_binomial_band(hits, n, p):
    """Fails once in ten thousand seeds if the coverage is p."""
    return stats.binom.ppf(5e-5, n, p) <= hits <= stats.binom.ppf(1 - 5e-5, n, p)


def test_power_intervals_hold_at_their_level():
    rng, n, hits, inside = np.random.default_rng(1), 200, 0, 0
    x = np.geomspace(1e3, 1e5, 6)
    for _ in range(n):
        noise = 0.05 * rng.standard_normal(7)
        y = 2 * np.append(x, 3e6) ** 0.4 * np.exp(noise)
        found = fit(pa.table({"x": x, "y": y[:6]}), "power", y="y", x="x", interval=0.8).at()
        hits += found.parameters["b"].low < 0.4 < found.parameters["b"].high
        spread = predictive(laws.get("power"), found, {"x": np.array([3e6])})
        inside += spread.quantile(0.1)[0] < y[6] < spread.quantile(0.9)[0]
    assert within_binomial_band(hits, n, 0.8)
    assert within_binomial_band(inside, n, 0.8)


def test_power_floor_intervals_hold_at_their_level():
    rng, n, hits, inside = np.random.default_rng(2), 40, 0, 0
    x = np.geomspace(10, 1e4, 12)
    for _ in range(n):
        y = (0.5 + 4 * np.append(x, 1e5) ** -0.5) * np.exp(0.02 * rng.standard_normal(13))
        found = fit(pa.table({"x": x, "y": y[:12]}), "power_floor", y="y", x="x").at()
        e = found.parameters["e"]
        hits += e.status == "ok" and e.low < 0.5 < e.high
        spread = predictive(laws.get("power_floor"), found, {"x": np.array([1e5])})
        inside += spread.quantile(0.05)[0] < y[12] < spread.quantile(0.95)[0]
    assert within_binomial_band(hits, n, 0.9)
    assert within_binomial_band(inside, n, 0.9)


def test_exposure_intervals_hold_at_their_level():
    """Curves drawn from what the law assumes: exponent from its prior, misfit shared by runs of equal exposures, run noise."""
    rng, n, hits, inside = np.random.default_rng(3), 200, 0, 0
    e, law = np.repeat([125.0, 250, 500, 1000], 4), laws.get("exposure")
    for _ in range(n):
        a, gap, g = rng.uniform(2.8, 3.6), rng.uniform(0.5, 0.9), math.exp(math.log(0.5) + 0.3 * rng.standard_normal())
        misfit = np.append(np.repeat(0.012 * rng.standard_normal(4), 4), 0.012 * math.sqrt(2) * rng.standard_normal())
        y = a - gap * (np.append(e, 8000) / 125) ** -g + misfit + 0.02 * rng.standard_normal(17)
        found = fit(pa.table({"e": e, "y": y[:16]}), "exposure", y="y", x="e").at()
        hits += found.parameters["a"].low < a < found.parameters["a"].high
        spread = predictive(law, found, {"exposures": np.array([8000.0])})
        inside += spread.quantile(0.05)[0] < y[16] < spread.quantile(0.95)[0]
    assert within_binomial_band(hits, n, 0.9)
    assert within_binomial_band(inside, n, 0.9)


def test_the_exposure_defaults_are_those_measured_in_bits_per_parameter():
    """Relative defaults move an interval at the level where they were measured by less than 5 %, and that of another unit not at all."""
    e = np.array([125.0, 250, 500, 1000, 4000])
    y = 3 - 9 * e**-0.5
    relative, absolute = (fit(pa.table({"e": e, "y": y}), "exposure", y="y", x="e", misfit_sd=sd).at().parameters["a"]
                          for sd in (None, 0.012))
    law = laws.get("exposure")
    assert law.noise_prior[0] * law.level(y) == pytest.approx(0.02, rel=0.05)
    assert relative.value == pytest.approx(absolute.value, rel=1e-3)
    assert relative.high - relative.low == pytest.approx(absolute.high - absolute.low, rel=0.05)


def test_the_exposure_posterior_is_the_brute_force_one():
    """Against a sum over a three-dimensional grid of curve values at both ends and the exponent, prior flat in the former."""
    law = laws.get("exposure")
    e, y = np.array([125.0, 125, 250, 500, 1000, 1000]), np.array([2.28, 2.31, 2.53, 2.66, 2.79, 2.76])
    sample = Sample.of(law, {"exposures": e}, y)
    found = integrate(law, sample, interval=0.9, noise_sd=0.02, dof=math.inf, misfit_sd=0.012).estimates["a"]
    cov = 0.02**2 * np.eye(6) + 0.012**2 * (sample.x["exposures"][:, None] == sample.x["exposures"])
    first, last, log_g = np.meshgrid(np.linspace(2.2, 2.4, 61), np.linspace(2.65, 2.9, 61), np.linspace(-1.8, 0.4, 91), indexing="ij")
    g = np.exp(log_g)
    c = (last - first) / (1 - 8.0**-g)
    a = first + c
    r = sample.y - (a[..., None] - c[..., None] * (sample.x["exposures"] / 125) ** -g[..., None])
    log_p = -0.5 * np.einsum("...i,ij,...j->...", r, np.linalg.inv(cov), r) - ((log_g - math.log(0.5)) / 0.3) ** 2 / 2
    p = np.exp(log_p - log_p.max()).ravel()
    order = np.argsort(a.ravel())
    cdf = np.cumsum(p[order]) / p.sum()
    low, middle, high = np.interp((0.05, 0.5, 0.95), cdf, a.ravel()[order])
    assert (found.low, found.value, found.high) == pytest.approx((low, middle, high), abs=0.004)


def test_a_linear_fit_is_the_textbook_one():
    rng = np.random.default_rng(4)
    x, y = np.geomspace(1, 100, 8), np.geomspace(1, 100, 8) ** 0.7 * np.exp(0.1 * rng.standard_normal(8))
    line = stats.linregress(np.log(x), np.log(y))
    b = fit(pa.table({"x": x, "y": y}), "power", y="y", x="x", interval=0.95).at().parameters["b"]
    half = stats.t.ppf(0.975, 6) * line.stderr  # type: ignore[attr-defined]
    assert (b.value, b.low, b.high) == pytest.approx((line.slope, line.slope - half, line.slope + half))  # type: ignore[attr-defined]
    mean = fit(pa.table({"y": y}), "constant", y="y").at().parameters["a"]
    assert (mean.low, mean.high) == pytest.approx(stats.t.interval(0.9, 7, y.mean(), stats.sem(y)))


@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(name=st.sampled_from(["power", "power_floor", "capacity", "capacity_smooth", "bits_linear", "exposure"]),
       unit_y=st.floats(1e-6, 1e6), unit_x=st.floats(1e-6, 1e6))
def test_units_change_only_units(name, unit_y, unit_x):
    """y' = k y and x' = m x: forecasts scale with y, exponents do not move. `capacity` has both predictors in one unit or the other."""
    table, x = planted(name, np.random.default_rng(5), 0.02)
    bits = "data_bits" in x
    unit = {k: unit_y if k == "data_bits" else unit_x for k in x}
    scaled = pa.table({"y": table["y"].to_numpy() * unit_y, **{k: table[k].to_numpy() * unit[k] for k in x}})
    one, two = (fit(t, name, y="y", x=x).at() for t in (table, scaled))
    law = laws.get(name)
    far = {k: np.array([one.ranges[k][1] * (2 if not bits else 1.5)]) for k in x}
    far2 = {k: v * unit[k] for k, v in far.items()}
    for q in (0.05, 0.5, 0.95):
        want = predictive(law, one, far).quantile(q) * unit_y
        assert predictive(law, two, far2).quantile(q) == pytest.approx(want, rel=5e-3)
    for k in ({"b", "g", "s"} & set(law.names)):
        a, b = one.parameters[k], two.parameters[k]
        assert (b.value, b.low, b.high) == pytest.approx((a.value, a.low, a.high), rel=2e-3, nan_ok=True)


@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(name=st.sampled_from(sorted(GRIDS)), seed=st.integers(0, 1000))
def test_the_order_of_rows_changes_nothing(name, seed):
    table, x = planted(name, np.random.default_rng(6), 0.02)
    shuffled = table.take(np.random.default_rng(seed).permutation(table.num_rows))
    assert fit(shuffled, name, y="y", x=x).to_json() == fit(table, name, y="y", x=x).to_json()


@pytest.mark.parametrize("name", GRIDS)
def test_a_weight_is_a_repetition(name):
    table, x = planted(name, np.random.default_rng(7), 0.02)
    weights = np.arange(table.num_rows) % 3
    repeated = table.take(np.repeat(np.arange(table.num_rows), weights))
    weighted = table.append_column("w", pa.array(weights))
    one, two = fit(repeated, name, y="y", x=x), fit(weighted, name, y="y", x=x, weights="w")
    assert two.at().parameters == one.at().parameters
    assert two.at().objective == one.at().objective
    assert any("repeat another one exactly" in w for w in two.warnings)


def test_doubling_all_rows_moves_no_value():
    table, x = planted("power", np.random.default_rng(8), 0.05)
    assert values(fit(pa.concat_tables([table, table]), "power", y="y", x=x)) == pytest.approx(values(fit(table, "power", y="y", x=x)))


@pytest.mark.parametrize(("law", "columns", "lost"), [
    ("power", {"x": [4.0] * 5, "y": [1.0, 2, 3, 4, 5]}, {"a", "b"}),
    ("power_floor", {"x": [4.0] * 5, "y": [1.0, 2, 3, 4, 5]}, {"e", "a", "b"}),
    ("power_floor", {"x": np.geomspace(1, 100, 8), "y": np.geomspace(1, 100, 8) ** 0.5}, {"e", "a", "b"}),
    ("capacity", {"data_bits": np.geomspace(100, 900, 6), "n_params": [1e4] * 6, "y": np.geomspace(100, 900, 6)}, {"alpha"}),
    ("capacity_smooth", {"data_bits": np.geomspace(1e6, 9e6, 6), "n_params": np.geomspace(1, 6, 6) * 1e3,
                         "y": np.geomspace(1, 6, 6) * 3e3 * np.exp([0.01, -0.02, 0.01, 0.02, -0.01, 0])}, {"s"}),
    ("membership_sigmoid", {"data_bits": np.geomspace(5e6, 9e6, 8), "n_params": [1e4] * 8,
                            "y": 0.5 + 0.01 * np.array([1, -1, 1, 1, -1, 1, -1, -1])}, {"c1", "c2", "c3"}),
])
def test_what_is_not_identified_has_no_digits(law, columns, lost):
    table = pa.table(columns)
    found = fit(table, law, y="y", x={k: k for k in columns if k != "y"})
    for k, e in found.at().parameters.items():
        if e.status == "ok":
            assert np.isfinite([e.value, e.low, e.high]).all()
        else:
            assert math.isnan(e.value)
            assert math.isnan(e.low)
            assert math.isnan(e.high)
            assert e.status.startswith(("not identified: ", "on bound: "))
            assert any(w.startswith(f"{k}: ") for w in found.warnings)
    bad = {k for k, e in found.at().parameters.items() if e.status != "ok"}
    assert bad & lost
    assert law == "membership_sigmoid" or bad <= lost


@pytest.mark.parametrize("name", GRIDS)
def test_fewer_rows_than_parameters_is_refused(name):
    table, x = planted(name, np.random.default_rng(9), 0.02)
    few = table.slice(0, 2 if name == "exposure" else len(laws.get(name).names))
    with pytest.raises(TooFewRows, match=f"law {name}: .*needs at least"):
        fit(few, name, y="y", x=x)


def test_groups_are_fitted_apart_and_a_short_one_has_a_reason():
    x = np.tile([1.0, 2, 4, 8], 2)
    y = np.where(np.arange(8) < 4, x, x**2) * 3.0
    table = pa.table({"x": np.append(x, 1.0), "y": np.append(y, 5.0), "d": [8] * 4 + [16] * 4 + [32]})
    found = fit(table, "power", y="y", x="x", group="d")
    assert values(found, 8)["b"] == pytest.approx(1)
    assert values(found, {"d": 16})["b"] == pytest.approx(2)
    assert math.isnan(values(found, 32)["b"])
    assert "needs at least 3" in found.at(32).parameters["b"].status
    assert found.to_json()["n_groups"] == 3
    assert found.to_json()["parameters"]["b"]["status"] == "one value a group: see groups"
    with pytest.raises(TableError, match="must be one of"):
        found.at(64)
    assert found.table().column("d").to_pylist() == [8, 16, 32]


def test_groups_of_an_exposure_fit_share_their_noise():
    rng, e = np.random.default_rng(10), np.tile(np.repeat([125.0, 250, 500, 1000], 3), 2)
    sd = np.repeat([0.01, 0.05], 12)
    table = pa.table({"e": e, "y": 3 - 9 * e**-0.5 + sd * rng.standard_normal(24), "d": np.repeat([8, 16], 12)})
    found = fit(table, "exposure", y="y", x="e", group="d")
    one, two = (g.posterior for g in found.groups)
    assert isinstance(one, Posterior)
    assert isinstance(two, Posterior)
    assert one.noise_sd == two.noise_sd
    assert 0.02 < one.noise_sd < 0.05
    assert one.dof == 16 + 4


def test_lack_of_fit_is_seen_and_widens_the_interval():
    rng, x = np.random.default_rng(11), np.repeat(np.geomspace(1, 1000, 6), 5)
    shared = np.repeat(0.2 * rng.standard_normal(6), 5)
    y = x * np.exp(0.02 * rng.standard_normal(30))
    good, bad = (fit(pa.table({"x": x, "y": y * np.exp(m)}), "power", y="y", x="x") for m in (0 * shared, shared))
    assert good.at().lack_of_fit > 0.05
    assert good.warnings == ()
    assert bad.at().lack_of_fit < 1e-6
    assert "lack of fit" in bad.warnings[0]
    means = fit(pa.table({"x": x[::5], "y": np.exp(np.log(y * np.exp(shared)).reshape(6, 5).mean(1))}), "power", y="y", x="x")
    one, two = bad.at().parameters["b"], means.at().parameters["b"]  # with misfit, the replicate means are what counts
    assert (one.low, one.high) == pytest.approx((two.low, two.high), abs=0.02 * (two.high - two.low))


def test_misfit_is_shared_by_equal_x_even_between_sets_of_replicates():
    table = pa.table({"e": np.repeat([125.0, 250, 500, 1000], 4), "n": np.tile([1, 1, 2, 2], 4),
                      "y": 3 - 9 * np.repeat([125.0, 250, 500, 1000], 4) ** -0.5 + np.tile([0.01, -0.01, 0.21, 0.19], 4)})
    pooled, apart = (fit(table, "exposure", y="y", x="e", replicates=r).at().posterior for r in ((), ("n",)))
    assert isinstance(pooled, Posterior)
    assert isinstance(apart, Posterior)
    assert pooled.noise_sd > 3 * apart.noise_sd


@pytest.mark.parametrize("name", GRIDS)
def test_json_there_and_back_forecasts_the_same(name):
    table, x = planted(name, np.random.default_rng(12), 0.02)
    found = fit(table, name, y="y", x=x)
    text = json.dumps(found.to_json(), allow_nan=False)
    again = Fit.from_json(json.loads(text))
    assert again.to_json() == found.to_json()
    law, point = laws.get(name), {k: np.array([2 * found.at().ranges[k][1]]) for k in x}
    for q in (0.05, 0.95):
        assert predictive(law, again.at(), point).quantile(q) == pytest.approx(predictive(law, found.at(), point).quantile(q), rel=1e-6)
    assert {"law", "parameters", "objective", "n_rows", "n_groups", "starts", "warnings", "fingerprint"} <= set(found.to_json())
    assert set(found.to_json()["starts"]) == {"tried", "agreeing"}
    assert all(set(p) == {"value", "low", "high", "unit", "status"} for p in found.to_json()["parameters"].values())


@pytest.mark.parametrize("broken", [{}, {"groups": 3}, {"groups": [{}]}, {"groups": [], "law": "power"}])
def test_a_broken_fit_file_is_one_line(broken):
    with pytest.raises(TableError, match="fit again"):
        Fit.from_json(broken)


def test_the_fingerprint_is_of_data_law_and_settings():
    table, x = planted("power", np.random.default_rng(13), 0.02)
    base = fit(table, "power", y="y", x=x).fingerprint
    assert fit(table.append_column("other", table["y"]), "power", y="y", x=x).fingerprint == base
    settings = fit(table, "power", y="y", x=x, interval=0.5)
    rows, law = fit(table.slice(1), "power", y="y", x=x), fit(table, "power_floor", y="y", x=x)
    assert len({base, settings.fingerprint, rows.fingerprint, law.fingerprint}) == 4


def test_units_come_from_the_columns():
    table = tables.derive(pa.table({"m": [3e4, 6e4], "n_params": [1e4, 2e4]}), "bits_per_param", "m / n_params", unit="bits/parameter")
    assert fit(table, "constant", y="bits_per_param").at().parameters["a"].unit == "bits/parameter"
    assert fit(table, "bits_linear", y="m", x="n_params").at().parameters["alpha"].unit == "m/n_params"


@pytest.mark.parametrize(("change", "says"), [
    ({"y": [1.0, -2, 3, 4]}, "column 'y', row 2 = -2: must be above 0"), ({"y": [1.0, 0, 3, 4]}, "row 2 = 0"),
    ({"y": [1.0, None, 3, 4]}, "row 2 = missing"), ({"y": ["1", "2", "3", "x"]}, "row 4 = 'x'"), ({"x": [0.0, 1, 2, 3]}, "row 1 = 0"),
    ({"x": [-1.0, 1, 2, 3]}, "column 'x', row 1 = -1"), ({"x": [1.0, float("inf"), 2, 3]}, "row 2 = inf"),
    ({"y": [1.0, float("nan"), 3, 4]}, "row 2 = missing"), ({"y": [b"a"] * 4}, "holds binary"),
])
def test_cells_that_cannot_be_fitted(change, says):
    table = pa.table({"x": [1.0, 2, 3, 4], "y": [1.0, 2, 3, 4], **change})
    with pytest.raises(TableError, match=says) as error:
        fit(table, "power", y="y", x="x")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("arguments", "says"), [
    ({"law": "powre"}, r"power \(x\), .* capacity \(data_bits, n_params\), .*NAME=COLUMN"),
    ({"y": "z"}, "its columns are: x, y"), ({"x": "z"}, "'z': not in the table"),
    ({"x": {"n": "x"}}, r"each predictor \(x\) of y = a x\^b; NAME=COLUMN: write x=COLUMN"), ({"x": None}, "must name a column"),
    ({"law": "capacity"}, "write data_bits=COLUMN and n_params=COLUMN"), ({"where": "x > 9"}, "0 of 4 rows are left"),
    ({"where": "x"}, "true or false"),
    ({"interval": 1.0}, "between 0 and 1"), ({"interval": math.nan}, "between 0 and 1"), ({"misfit_sd": -1.0}, "misfit_sd"),
    ({"noise_sd": math.nan}, "noise_sd"), ({"group": "z"}, "'z': not in the table"), ({"weights": "y"}, "whole number"),
    ({"replicates": "z"}, "'z': not in the table"),
])
def test_arguments_that_cannot_be(arguments, says):
    table = pa.table({"x": [1.0, 2, 3, 4], "y": [1.5, 2.5, 3, 4]})
    with pytest.raises(TableError, match=says) as error:
        fit(table, **{"law": "power", "y": "y", "x": "x", **arguments})
    assert "\n" not in str(error.value)


@settings(max_examples=80, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(name=st.sampled_from(sorted(GRIDS)), data=st.data())
def test_no_numbers_escape_as_another_error(name, data):
    """Huge, tiny, equal and few values: a fit, or one line; and never a digit without an interval."""
    n = data.draw(st.integers(0, 9))
    number = st.one_of(st.sampled_from([1.0, 2.0, 1e-300, 1e300, 5e-324, 1e59, 1e-59, 1e16]), st.floats())
    columns = {k: pa.array([data.draw(number) for _ in range(n)], pa.float64()) for k in ("y", *laws.get(name).predictors)}
    try:
        found = fit(pa.table(columns), name, y="y", x={k: k for k in columns if k != "y"})
    except TableError as caught:
        text = str(caught)
    else:
        text = ""
    assert "\n" not in text
    if text:
        return
    json.dumps(found.to_json(), allow_nan=False)
    for e in found.at().parameters.values():
        assert not math.isnan(e.value) or e.status != "ok"


def test_a_fit_cannot_be_changed():
    table, x = planted("power", np.random.default_rng(14), 0.02)
    with pytest.raises(dataclasses.FrozenInstanceError):
        fit(table, "power", y="y", x=x).law = "capacity"  # type: ignore[misc]
