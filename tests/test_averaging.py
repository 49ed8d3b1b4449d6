"""The automatic forecaster: what may not change it, what it forecasts and covers, what it reports and refuses."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from scalemem import laws
from scalemem.averaging import average
from scalemem.fitting import Fit, fit
from scalemem.forecasting import backtest, forecast, predictive
from scalemem.tables import TableError, TooFewRows

X = np.geomspace(1, 100, 12)
CURVES = {"power": lambda x: 4 * x**-0.3, "power_floor": lambda x: 1 + 3 * x**-0.5, "log_linear": lambda x: 5 - 0.5 * np.log(x),
          "growth": lambda x: 2 * x**0.4, "offset": lambda x: 1 + 0.3 * np.log(x), "constant": lambda x: 3 + 0 * x}


def curve(name="power_floor", sd=0.01, seed=0, x=X):
    return pa.table({"x": x, "y": CURVES[name](x) * np.exp(sd * np.random.default_rng(seed).standard_normal(len(x)))})


def surface(n, d):
    return 1.7 + 400 * n**-0.34 + 410 * d**-0.28


def grid(sd=0.0, seed=0, drop=0.0):
    """Chinchilla's surface on 7 x 7 sizes and tokens, some of them missing."""
    rng = np.random.default_rng(seed)
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e9, 7), np.geomspace(1e9, 1e11, 7)))
    keep = rng.random(len(n)) >= drop
    return pa.table({"N": n, "D": d, "y": surface(n, d) * np.exp(sd * rng.standard_normal(len(n)))}).filter(pa.array(keep))


BOTH = {"n_params": "N", "n_tokens": "D"}


def auto(table, at=400.0, **options):
    return forecast(fit(table, "auto", y="y", x={"x": "x"}, **options), {"x": at} if not isinstance(at, dict) else at)


def inside(spread, y, level=0.9):
    return np.abs(spread.cdf(y) - 0.5) <= level / 2


# What may not change it


def test_rows_in_another_order_give_the_same():
    table = curve()
    want = auto(table)
    for seed in range(3):
        got = auto(table.take(np.random.default_rng(seed).permutation(len(X))))
        assert (got.low, got.median, got.high) == (want.low, want.median, want.high)


@pytest.mark.parametrize("name", ["power", "power_floor", "growth"])
@pytest.mark.parametrize(("unit_x", "unit_y"), [(1e6, 1.0), (1.0, 1e-3), (3e-7, 2.5e9)])
def test_units_change_only_units(name, unit_x, unit_y):
    table = curve(name)
    scaled = pa.table({"x": table["x"].to_numpy() * unit_x, "y": table["y"].to_numpy() * unit_y})
    one, two = auto(table), auto(scaled, 400 * unit_x)
    assert np.array([two.low, two.median, two.high]) / unit_y == pytest.approx([one.low, one.median, one.high], rel=1e-6)
    assert two.laws == pytest.approx(one.laws, rel=1e-4)


def test_units_and_order_of_a_surface_change_only_units():
    table = grid(0.005, drop=0.3)
    order = np.random.default_rng(4).permutation(table.num_rows)
    scaled = pa.table({"D": table["D"].to_numpy()[order] * 1e-9, "N": table["N"].to_numpy()[order] * 1e-6, "y": table["y"].to_numpy()[order] * 7})
    one, two = (forecast(fit(t, "auto", y="y", x=BOTH), {"n_params": n, "n_tokens": d})
                for t, n, d in ((table, 3e9, 3e11), (scaled, 3e3, 3e2)))
    assert np.array([two.low, two.median, two.high]) / 7 == pytest.approx([one.low, one.median, one.high], rel=1e-6)


@pytest.mark.parametrize("n", [12, 70])
def test_a_weight_is_a_repetition(n):
    table = curve(x=np.geomspace(1, 100, n))
    weights = 1 + (np.arange(n) % 3 == 1)
    one = auto(table.append_column("w", pa.array(weights)), weights="w")
    two = auto(table.take(np.repeat(np.arange(n), weights)))
    assert (one.low, one.median, one.high) == (two.low, two.median, two.high)


def test_json_there_and_back_forecasts_the_same():
    for table, x, at in ((curve(), {"x": "x"}, {"x": 400.0}), (grid(0.01, drop=0.5), BOTH, {"n_params": 3e9, "n_tokens": 3e11})):
        found = fit(table, "auto", y="y", x=x)
        again = Fit.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))
        one, two = forecast(found, at), forecast(again, at)
        assert (two.low, two.median, two.high) == pytest.approx((one.low, one.median, one.high), rel=1e-6)
        assert two.laws == pytest.approx(one.laws, rel=1e-5)
        assert again.at().parameters["level"].value == pytest.approx(found.at().parameters["level"].value, rel=1e-8)


# What it forecasts


@pytest.mark.parametrize("name", ["power", "power_floor", "log_linear", "growth", "offset", "constant"])
@pytest.mark.parametrize("n", [8, 12, 24])
def test_noise_free_curves_are_forecast(name, n):
    f = auto(curve(name, 0.0, x=np.geomspace(1, 100, n)))
    truth = float(CURVES[name](400.0))
    assert f.median == pytest.approx(truth, rel=0.02)
    assert f.low <= truth <= f.high
    assert sum(f.laws.values()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_a_planted_chinchilla_surface_is_forecast_at_ten_times_the_compute(drop):
    f = forecast(fit(grid(drop=drop), "auto", y="y", x=BOTH), {"n_params": 1e9 * 10**0.5, "n_tokens": 1e11 * 10**0.5})
    truth = surface(1e9 * 10**0.5, 1e11 * 10**0.5)
    assert f.median == pytest.approx(truth, rel=0.02)
    assert f.low < truth < f.high


@pytest.mark.parametrize("sign", ["negative", "both"])
def test_values_that_are_not_positive_have_absolute_noise(sign):
    shift = -6.0 if sign == "negative" else -1.5
    table = curve(sd=0.0)
    moved = pa.table({"x": table["x"], "y": table["y"].to_numpy() + shift + 0.003 * np.random.default_rng(5).standard_normal(len(X))})
    f = auto(moved)
    assert f.median == pytest.approx(CURVES["power_floor"](400.0) + shift, abs=0.1)
    assert f.low < f.median < f.high
    assert f.high - f.low < 1.0


def width(table, at):
    f = auto(table, at)
    return math.log(f.high / f.low)


def test_intervals_widen_with_extrapolation():
    for seed in range(4):
        widths = [width(curve(seed=seed), at) for at in (100, 200, 800, 6400)]
        assert widths == sorted(widths)
        assert widths[3] > 1.5 * widths[0]


def test_intervals_narrow_with_more_data_and_less_noise():
    def typical(n, sd):
        return np.median([width(curve("power", sd, seed, np.geomspace(1, 100, n)), 400) for seed in range(12)])

    few = typical(7, 0.01)
    assert typical(28, 0.01) < few
    assert typical(7, 0.001) < few < typical(7, 0.05)


def noisy(seed):
    """A curve of one of four laws with noise of 0.1 to 2 %: 9 to 15 rows over 1.5 to 3 decades, and rows at 1.5, 2 and 4 times that."""
    rng = np.random.default_rng(seed)
    x = np.geomspace(1, 10 ** rng.uniform(1.5, 3), int(rng.integers(9, 16)))
    b, floor, x = rng.uniform(0.1, 0.7), float(rng.choice([0, 0.2, 0.6])), np.append(x, x[-1] * np.array([1.5, 2, 4]))
    y = [floor + 3 * x**-b, 4 - 0.3 * np.log(x), 2 * x ** (b / 3), floor + 0.3 + 2 * x**-0.5][seed % 4]
    return x, y * np.exp(10 ** rng.uniform(-3, -1.7) * rng.standard_normal(len(x)))


def test_intervals_of_noisy_curves_hold():
    """40 curves of 3 rows that share a curve's errors: a coverage of 90 % is measured within some 10 points."""
    held = [inside(average({"x": x[:-3]}, y[:-3]).predict({"x": x[-3:]}), y[-3:]) for x, y in map(noisy, range(40))]
    assert 0.8 <= np.mean(held) <= 0.99


def hidden(seed):
    """x^-c1 (c1 0.5 to 0.9) with a second, slower power of 10 to 30 % at the first row (c2 0.05 to 0.2), 0.2 % noise: 12 rows over two
    decades, and rows at 2 and 4 times that."""
    rng = np.random.default_rng(seed)
    x, fast, slow, share = np.append(X, [200.0, 400.0]), rng.uniform(0.5, 0.9), rng.uniform(0.05, 0.2), rng.uniform(0.1, 0.3)
    return x, ((1 - share) * x**-fast + share * x**-slow) * np.exp(0.002 * rng.standard_normal(len(x)))


def test_a_hidden_second_component_is_covered_where_a_bootstrap_is_not():
    auto_held, bootstrap_held = [], []
    for seed in range(30):
        x, y = hidden(seed)
        auto_held.append(inside(average({"x": x[:-2]}, y[:-2]).predict({"x": x[-2:]}), y[-2:]))
        if seed < 10:
            found = fit(pa.table({"x": x[:-2], "y": y[:-2]}), "power_floor", y="y", x="x", bootstrap=100).at()
            bootstrap_held.append(inside(predictive(laws.get("power_floor"), found, {"x": x[-2:]}), y[-2:]))
    assert np.mean(auto_held) >= 0.8
    assert np.mean(bootstrap_held) <= 0.2


# What it reports, and what it refuses


@pytest.mark.parametrize(("x", "y"), [
    ({"x": [3.0, 7, 12.7]}, [-1.0, 1e-59, 5]), ({"x": [1.0, 1e59, 1e16, 5, 3], "z": [1e16, 1e59, 7, 2, 1]}, [1.0, -1e59, 1e16, 1e59, 7]),
    ({"x": [1.6, 1.6e59, 5.0, 3.2, 1.6e-59]}, [2.0, 2, 0, -1e59, 1]),
])
def test_sizes_of_many_orders_overflow_into_no_number(x, y):
    """Three rows leave components whose spreads differ by 1e88: the median lies between the ends, or there is none of the three."""
    found = fit(pa.table({**x, "y": y}), "auto", y="y", x={k: k for k in x})
    for e in found.at().parameters.values():
        assert np.isfinite([e.value, e.low, e.high]).all() == (e.status == "ok")
    for factor in (2.0, 1e200):
        at = {k: factor * max(v) for k, v in x.items()}
        f = forecast(found, at)
        assert f.low <= f.median <= f.high or np.isnan([f.low, f.median, f.high]).all()
        if math.isfinite(f.median):
            spread = predictive(laws.get("constant"), found.at(), {k: np.array([v]) for k, v in at.items()})
            assert spread.cdf(np.array([f.low, f.median, f.high])[:1])[0] == pytest.approx(0.05, abs=1e-6)


def test_it_reports_level_slope_and_asymptote():
    p = fit(curve(sd=1e-3, x=np.geomspace(1, 1e4, 40)), "auto", y="y", x={"x": "x"}).at().parameters
    assert set(p) == {"level", "slope", "asymptote"}
    assert p["level"].value == pytest.approx(1.03, rel=0.01)
    assert p["slope"].value == pytest.approx(-0.5 * 0.03 / 1.03, abs=0.01)
    assert p["level"].low < p["level"].value < p["level"].high
    a = p["asymptote"]
    assert a.low < 1.0 < a.high if a.status == "ok" else math.isnan(a.value)
    assert set(fit(grid(), "auto", y="y", x=BOTH).at().parameters) == {"level", "slope_n_params", "slope_n_tokens", "asymptote"}
    rising = fit(curve("growth"), "auto", y="y", x={"x": "x"}).at().parameters["slope"]
    assert rising.low < 0.4 < rising.high


@pytest.mark.parametrize(("columns", "says"), [
    ({"x": [1.0, 2], "y": [1.0, 2]}, "2 rows with 2 distinct x: needs at least 3"),
    ({"x": [1.0, 1, 1, 2], "y": [1.0, 2, 3, 4]}, "4 rows with 2 distinct x"), ({"x": [3.0] * 5, "y": [1.0, 2, 3, 4, 5]}, "1 distinct x"),
    ({"x": [1.0, 2, 3, 4], "y": [4.0, 3, 2, 1], "z": [5.0] * 4}, "z has one value, 5: needs at least 2"),
])
def test_too_few_rows_are_one_line(columns, says):
    with pytest.raises(TooFewRows, match=says) as error:
        fit(pa.table(columns), "auto", y="y", x={k: k for k in columns if k != "y"})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"loss": "huber:1e-3"}, {"noise_sd": 0.1}, {"misfit_sd": 0.1}, {"starts": 5}, {"bootstrap": 50}])
def test_options_that_are_its_own(options):
    with pytest.raises(TableError, match=r"law auto: .* are its own"):
        fit(curve(), "auto", y="y", x={"x": "x"}, **options)


def test_a_backtest_gives_what_issue_3_asks_for():
    parts = [curve(name, seed=i, x=np.geomspace(1, 400, 14)) for i, name in enumerate(CURVES)]
    table = pa.concat_tables([p.append_column("d", pa.array([i] * 14)) for i, p in enumerate(parts)])
    short = pa.table({"x": [1.0, 2, 300], "y": [1.0, 2, 3], "d": [99] * 3})
    value = json.loads(json.dumps(backtest(pa.concat_tables([table, short]), "auto", y="y", x={"x": "x"}, group="d", holdout="x > 100").to_json(),
                                  allow_nan=False))
    assert len(value["rows"]) == len(CURVES) + 1
    for row in value["rows"][:-1]:
        assert set(row) == {"group", "law", "n_fit", "n_test", "rmse_log", "bias_log", "log_likelihood", "coverage", "seconds"}
        assert row["law"] == "auto"
        assert row["n_fit"] + row["n_test"] == 14
        assert set(row["coverage"]) == {"0.5", "0.8", "0.9", "0.95"}
        assert 0 <= row["rmse_log"] < 0.1
    assert "needs at least 3" in value["rows"][-1]["reason"]
    assert {"rmse_log_mean", "coverage", "msce"} <= set(value["summary"])
    assert (value["summary"]["n_groups"], value["summary"]["n_failed"]) == (len(CURVES), 1)


@settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(data=st.data(), several=st.booleans())
def test_no_numbers_escape_as_another_error(data, several):
    """Huge, tiny, equal and few values: a fit and a forecast with finite, ordered ends, or one line."""
    n = data.draw(st.integers(0, 9))
    number = st.one_of(st.sampled_from([1.0, 2.0, 1e59, 1e-59, 1e16, -1e59, 1e300, 0.0, -1.0]), st.floats(1e-3, 1e3))
    columns = {k: pa.array([data.draw(number) for _ in range(n)], pa.float64()) for k in (["x", "z", "y"] if several else ["x", "y"])}
    x = {k: k for k in columns if k != "y"}
    text = ""
    try:
        found = fit(pa.table(columns), "auto", y="y", x=x)
    except TableError as caught:
        text = str(caught)
    assert "\n" not in text
    if text:
        return
    json.dumps(found.to_json(), allow_nan=False)
    for e in found.at().parameters.values():
        assert e.status != "ok" or np.isfinite([e.value, e.low, e.high]).all()
    for factor in (2.0, 1e200):
        f = forecast(found, {k: factor * v[1] for k, v in found.at().ranges.items()})
        slack = 1e-6 * (f.high - f.low) + 1e-12 * abs(f.median)
        assert f.low <= f.median + slack <= f.high + 2 * slack or np.isnan([f.low, f.median, f.high]).all()
        assert math.isfinite(f.median) or any("no forecast" in w for w in f.warnings)
