"""Forecasts: predictive intervals, how far they reach, what they refuse, and back-tests."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from scalemem.fitting import Fit, fit
from scalemem.forecasting import backtest, coverage, forecast, growth, with_backtest
from scalemem.laws.posterior import Posterior
from scalemem.tables import TableError, TooFewRows

# capacity-recipe.md, exposure ladder of L1 d16 V128 S32: means of seeds
FITTED = {125: 2.29, 250: 2.53, 500: 2.67, 1000: 2.77}
LONGER = {2000: (2.88, 2.88), 4000: (2.89, 2.96), 8000: (2.97, 2.97), 16000: (3.01, 3.01), 64000: (3.10, 3.10)}
LADDER = pa.table({"exposures": [float(e) for e in FITTED], "bits": list(FITTED.values())})
LINE = pa.table({"n": [1.0, 2, 4, 8, 16], "bits": [3.1, 5.9, 12.2, 23.9, 48.5]})


def power(table=LINE, **options):
    return fit(table, "power", y="bits", x="n", **options)


def test_the_measured_ladder_lies_in_the_interval_of_its_short_runs():
    found = fit(LADDER, "exposure", y="bits", x="exposures", noise_sd=0.022)
    for e, (low, high) in LONGER.items():
        f = forecast(found, {"exposures": e})
        assert f.low < low <= high < f.high
        assert f.extrapolation == e / 1000
        assert f.high - f.low < 0.12 * f.median
    a = found.at().parameters["a"]
    assert 0.93 * a.value < a.low < a.high < 1.12 * a.value


def test_a_longer_ladder_narrows_the_asymptote():
    rows = FITTED | {4000: 2.925, 16000: 3.01}
    longer = pa.table({"exposures": [float(e) for e in rows], "bits": list(rows.values())})
    short, long = (fit(t, "exposure", y="bits", x="exposures", noise_sd=0.022).at().parameters["a"] for t in (LADDER, longer))
    assert long.high - long.low < 0.6 * (short.high - short.low)


def test_forecast_json():
    f = forecast(with_backtest(power(), LINE), {"n": 592}, interval=0.8)
    value = json.loads(json.dumps(f.to_json(), allow_nan=False))
    assert {"at", "median", "low", "high", "interval", "extrapolation", "laws", "backtest", "warnings"} <= set(value)
    assert value["at"] == {"x": 592.0}
    assert value["interval"] == 0.8
    assert value["extrapolation"] == 37.0
    assert f.far == "37x"
    assert value["laws"] == {"power": 1.0}
    assert value["backtest"]["held_out"] == "largest predictor value of each group"
    assert value["backtest"]["n_test"] == 1
    assert value["backtest"]["extrapolation"] == 2.0
    assert any("37 times beyond" in w for w in f.warnings)


@pytest.mark.parametrize(("n", "factor", "text"), [(4, 1, "none"), (16, 1, "none"), (24, 1.5, "1.5x"), (0.25, 4, "4x"), (160, 10, "10x")])
def test_extrapolation_counts_both_ways(n, factor, text):
    f = forecast(power(), {"x": n})
    assert (f.extrapolation, f.far) == (factor, text)
    assert any("beyond the fitted rows" in w for w in f.warnings) == (factor > 1)


def test_a_fit_that_was_not_back_tested_says_so():
    assert "not back-tested" in forecast(power(), {"n": 4}).warnings
    assert "not back-tested" not in forecast(with_backtest(power(), LINE), {"n": 4}).warnings


def test_the_interval_is_predictive_and_grows():
    found = power()
    widths = [math.log(f.high / f.low) for f in (forecast(found, {"n": n}) for n in (4, 32, 1024))]
    assert widths == sorted(widths)
    posterior = found.at().posterior
    assert isinstance(posterior, Posterior)
    assert widths[0] > 2 * 1.6 * posterior.noise_sd  # wider than run noise alone


def test_misfit_grows_by_one_variance_a_fitted_range():
    found = fit(LADDER, "exposure", y="bits", x="exposures").at()
    assert growth(found, {"exposures": np.array([125.0, 1000.0, 8000.0, 64000.0])}) == pytest.approx([1, 1, 2, 3])


def test_a_forecast_that_depends_on_what_is_not_identified_is_refused():
    bits = np.geomspace(100, 900, 6)
    table = pa.table({"data_bits": bits, "n_params": [1e4] * 6, "y": bits * np.exp([0.01, -0.01, 0.02, 0, -0.02, 0.01])})
    found = fit(table, "capacity", y="y", x={"data_bits": "data_bits", "n_params": "n_params"})
    inside, beyond = (forecast(found, {"data_bits": d, "n_params": 1e4}) for d in (500, 1e6))
    assert inside.median == pytest.approx(500)
    assert math.isnan(beyond.median)
    assert math.isnan(beyond.low)
    assert beyond.to_json()["median"] is None
    assert any("depends on alpha" in w for w in beyond.warnings)


def test_predictions_are_clipped():
    ratio = np.geomspace(1, 60, 12)
    table = pa.table({"d": ratio, "p": np.ones(12), "f1": 0.5 * (1 + 1.34 / (1 + np.exp(0.034 * (ratio - 33.14))))
                      + 0.003 * np.random.default_rng(0).standard_normal(12)})
    f = forecast(fit(table, "membership_sigmoid", y="f1", x={"data_bits": "d", "n_params": "p"}), {"data_bits": 0.01, "n_params": 1})
    assert f.high <= 1.0


@pytest.mark.parametrize(("at", "says"), [
    ({}, "must give a value for each of x"), ({"m": 3}, "must give"), ({"n": 3, "m": 3}, "must give"), ({"n": -1}, "positive finite"),
    ({"n": 0}, "positive finite"), ({"n": math.nan}, "positive finite"), ({"n": math.inf}, "positive finite"),
    ({"n": "3"}, "positive finite"), ({"n": True}, "positive finite"), ({"n": None}, "positive finite"),
])
def test_points_that_cannot_be(at, says):
    with pytest.raises(TableError, match=says) as error:
        forecast(power(), at)
    assert "\n" not in str(error.value)


def test_groups_and_levels_that_cannot_be():
    table = pa.table({"n": [1.0, 2, 4, 8] * 2, "bits": [3.1, 5.9, 12.2, 23.9] * 2, "d": [8] * 4 + [16] * 4})
    found = power(table, group="d")
    assert forecast(found, {"n": 3}, group=16) == forecast(found, {"n": 3}, group={"d": 16})
    for group in (None, 32, {"d": 32}, {"e": 8}):
        with pytest.raises(TableError, match="must be one of"):
            forecast(found, {"n": 3}, group=group)
    for interval in (0, 1, 90, math.nan):
        with pytest.raises(TableError, match="between 0 and 1"):
            forecast(found, {"n": 3}, group=8, interval=interval)


def curves(rng, groups=12, noise=0.03):
    x = np.tile(np.geomspace(1, 300, 10), groups)
    d = np.repeat(np.arange(groups), 10)
    y = np.exp(rng.standard_normal(groups))[d] * x ** rng.uniform(-1, 1, groups)[d] * np.exp(noise * rng.standard_normal(len(x)))
    return pa.table({"x": x, "y": y, "d": d, "fit": (x < 60).astype(int)})


def test_backtest_reports_what_issue_3_asks_for():
    table = curves(np.random.default_rng(0))
    result = backtest(table, "power", y="y", x="x", group="d", holdout="x > 60")
    value = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert len(value["rows"]) == 12
    assert {"group", "law", "n_fit", "n_test", "rmse_log", "bias_log", "log_likelihood", "coverage", "seconds"} == set(value["rows"][0])
    assert value["rows"][0]["n_fit"] + value["rows"][0]["n_test"] == 10
    assert set(value["summary"]["coverage"]) == {"0.5", "0.8", "0.9", "0.95"}
    assert {"rmse_log_mean", "msce"} <= set(value["summary"])
    by_split = backtest(table, "power", y="y", x="x", group="d", split="fit")
    for one, two in zip(by_split.rows, result.rows, strict=True):
        assert one | {"seconds": 0} == two | {"seconds": 0}


def test_backtest_is_calibrated_on_curves_that_obey_the_law():
    summary = backtest(curves(np.random.default_rng(1), groups=60), "power", y="y", x="x", group="d", holdout="x > 60").summary
    assert summary["n_test"] == 180
    for level in (0.5, 0.8, 0.9):  # 60 independent curves of 3 points: at most 3 sd of a binomial over 60
        assert abs(summary["coverage"][str(level)] - level) < 3 * math.sqrt(level * (1 - level) / 60)
    assert summary["msce"] < 0.01
    assert 0.03 < summary["rmse_log_mean"] < 0.09


def test_backtest_numbers_against_a_direct_computation():
    table = pa.table({"y": [1.0, 1.2, 0.9, 1.1, 1.4], "out": [1, 1, 1, 1, 0]})
    row = backtest(table, "constant", y="y", split="out").rows[0]
    y = np.array([1.0, 1.2, 0.9, 1.1])
    t = {"df": 3, "loc": y.mean(), "scale": y.std(ddof=1) * math.sqrt(1.25)}
    assert row["rmse_log"] == pytest.approx(abs(math.log(1.05 / 1.4)))
    assert row["bias_log"] == pytest.approx(math.log(1.05 / 1.4))
    assert row["log_likelihood"] == pytest.approx(stats.t.logpdf(1.4, **t))
    p = abs(stats.t.cdf(1.4, **t) - 0.5) * 2
    assert row["coverage"] == {str(v): float(p <= v) for v in (0.5, 0.8, 0.9, 0.95)}


def test_a_group_that_cannot_be_tested_has_a_reason_and_does_not_count():
    short = pa.table({"x": [1.0, 99, 99], "y": [1.0, 2, 2], "d": [7, 7, 8], "fit": [1, 0, 0]})
    table = pa.concat_tables([curves(np.random.default_rng(2), groups=2), short])
    result = backtest(table, "power", y="y", x="x", group="d", split="fit")
    assert ["reason" in r for r in result.rows] == [False, False, True, True]
    assert "needs at least 3" in result.rows[2]["reason"]
    assert result.rows[3]["n_fit"] == 0
    assert (result.summary["n_groups"], result.summary["n_failed"]) == (2, 2)


@pytest.mark.parametrize(("arguments", "says"), [
    ({}, "one of holdout and split"), ({"holdout": "n > 4", "split": "n"}, "one of holdout and split"), ({"holdout": "n > 99"}, "0 rows"),
    ({"holdout": "n"}, "true or false"), ({"split": "m"}, "not in the table"), ({"holdout": "eval('1')"}, "not part of the language"),
])
def test_backtests_that_cannot_be(arguments, says):
    with pytest.raises(TableError, match=says):
        backtest(LINE, "power", y="bits", x="n", **arguments)


def test_with_backtest_says_why_there_is_none():
    assert "no predictor" in with_backtest(fit(LINE, "constant", y="bits"), LINE).backtest["reason"]  # type: ignore[index]
    three = LINE.slice(0, 3)
    assert "needs at least 3" in with_backtest(power(three), three).backtest["reason"]  # type: ignore[index]


def test_a_forecast_from_json_is_the_same():
    found = with_backtest(power(), LINE)
    again = Fit.from_json(json.loads(json.dumps(found.to_json())))
    a, b = forecast(found, {"n": 100}), forecast(again, {"n": 100})
    assert (b.low, b.median, b.high) == pytest.approx((a.low, a.median, a.high), rel=1e-6)
    assert b.backtest == a.backtest


def test_coverage_counts_rows_inside():
    rng, e = np.random.default_rng(3), np.tile([125.0, 250, 500, 1000, 4000, 16000], 4)
    table = pa.table({"e": e, "y": 3 - 9 * e**-0.5 + 0.02 * rng.standard_normal(24), "d": np.repeat([8, 16], 12)})
    found = fit(table, "exposure", y="y", x="e", group="d", where="e <= 1000 and d == 8")
    measured = coverage(found, table, table["e"].to_numpy() > 1000)
    assert measured.n == 1
    assert measured.value == 1.0
    assert measured.method == "Clopper-Pearson over curves: 4 of 4 rows, 1 of 1 curves; 4 rows left out"
    shifted = table.set_column(1, "y", pa.array(table["y"].to_numpy() + 1.0))
    assert coverage(found, shifted, table["e"].to_numpy() > 1000).value == 0.0
    assert coverage(found, table, np.zeros(24, bool)).reason == "no rows"


def test_coverage_counts_curves_not_their_rows():
    """Eight readings far out on one curve are one piece of evidence: all hang on the same asymptote."""
    e = np.concatenate([[125.0, 250, 500, 1000], np.full(8, 16000.0)])
    y = 3 - 9 * e**-0.5
    table = pa.table({"e": np.tile(e, 5), "y": np.tile(y, 5) + 0.5 * (np.arange(60) == 59), "d": np.repeat(np.arange(5), 12)})
    found = fit(table, "exposure", y="y", x="e", group="d", where="e <= 1000", noise_sd=0.02)
    far = table["e"].to_numpy() > 1000
    measured, first = coverage(found, table, far), coverage(found, table, far & (table["d"].to_numpy() == 0))
    assert measured.value == 39 / 40
    assert measured.method == "Clopper-Pearson over curves: 39 of 40 rows, 4 of 5 curves"
    exact = stats.binomtest(4, 5).proportion_ci(0.9, "exact")
    assert (measured.low, measured.high, measured.n) == (pytest.approx(exact.low), pytest.approx(exact.high), 5)
    assert (first.value, first.low, first.n) == (1.0, pytest.approx(0.05), 1)
    alone = fit(table, "exposure", y="y", x="e", where="e <= 1000 and d == 0", noise_sd=0.02)
    assert coverage(alone, table, far & (table["d"].to_numpy() == 0)).n == 8  # without groups the rows are counted
    nowhere = table.set_column(1, "y", pa.array(table["y"].to_numpy() + 0.5 * (np.arange(60) % 12 == 11)))
    half = coverage(found, nowhere, far)
    assert half.low <= half.value == 35 / 40 <= half.high  # no curve is inside as a whole, most rows are


def test_too_few_rows_is_an_error_of_its_own():
    with pytest.raises(TooFewRows):
        power(LINE.slice(0, 2))


def test_a_predictor_of_which_nothing_is_a_value_is_forecast_and_back_tested():
    """Replay fractions from 0 on: no ratio to the smallest one, and none of the errors that such a ratio would be."""
    from scalemem.laws import get

    x = {"base_loss": [2.0] * 24, "unique_tokens": [1e3, 4e3] * 12, "replay_fraction": [0.0] * 6 + [0.01] * 6 + [0.05] * 6 + [0.2] * 6,
         "n_params": [1e3, 1e3, 4e3, 4e3, 16e3, 16e3] * 4}
    columns = {name: np.array(values) for name, values in x.items()}
    y = get("forgetting_bethune").function(columns, {name: np.array(v) for name, v in {"A": 2.0, "B": 30.0, "alpha": 0.3, "beta": 0.2}.items()})
    table = pa.table({**columns, "y": y * np.exp(0.002 * np.random.default_rng(0).normal(size=24))})
    names = {name: name for name in x}
    tested = backtest(table, "forgetting_bethune", y="y", x=names, holdout="n_params > 10000")
    assert tested.summary["rmse_log_mean"] < 0.01
    found = fit(table, "forgetting_bethune", y="y", x=names)
    made = forecast(found, {"base_loss": 2.0, "unique_tokens": 4e3, "replay_fraction": 0.0, "n_params": 64e3})
    truth = 2.0 + 2.0 * 4e3**0.2 * 64e3**-0.3
    assert made.low <= truth <= made.high
    assert made.extrapolation == pytest.approx(4.0)
