"""Figures of forecasts and back-tests: what is drawn is what was fitted and forecast, and the caption says what a reader must know."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pytest

from scalemem import cli, picture, plot
from scalemem.fitting import Fit, fit
from scalemem.forecasting import Forecast, backtest, forecast, with_backtest
from scalemem.tables import TableError

N = np.array([1e6, 3e6, 1e7, 3e7, 1e8, 3e8])
WOBBLE = 1 + 0.01 * np.array([1, -1, 0, 1, -1, 0])
ONE = pa.table({"n": N, "loss": (2 + 300 * N**-0.4) * WOBBLE, "old": [True] * 4 + [False] * 2})
GRID = pa.Table.from_pylist([{"n": float(n), "d": d, "loss": float((1.7 + 400 * n**-0.35 + 400 * d**-0.3) * (1 + 0.002 * (i % 3 - 1)))}
                             for i, (n, d) in enumerate((n, d) for n in N for d in (1e8, 1e9, 1e10))])


def drawn(table, law, x, made, **options) -> tuple[Any, Fit, list[Forecast]]:
    found = with_backtest(fit(table, law, y="loss", x=x, **options), table, **options)
    found = Fit.from_json(json.loads(json.dumps(found.to_json())))  # as from the fit file
    asked = [forecast(found, at) for at in made]
    with plot.style():
        return picture.forecast(found, asked), found, asked


def labelled(ax) -> dict[str, Any]:
    return dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))


def said(figure):
    return " ".join(" ".join(t.get_text() for t in figure.texts).split())


@pytest.mark.parametrize("law", ["auto", "power_floor", "log_linear"])
def test_a_forecast_shows_rows_laws_bands_and_residuals(law):
    figure, found, (near, far) = drawn(ONE, law, {"x": "n"}, [{"x": 1e9}, {"x": 3e9}])
    top, low = figure.axes
    assert figure.get_size_inches().tolist() == [7.0, 4.5]
    names = labelled(top)
    rows, out = names["rows"].get_xydata(), names["rows held out in the back-test"].get_xydata()
    np.testing.assert_allclose(np.concatenate([rows, out])[:, 0], N)
    np.testing.assert_allclose(np.concatenate([rows, out])[:, 1], ONE["loss"].to_numpy(), rtol=1e-8)
    assert len(out) == 1  # the largest
    bars = [c for c in top.containers if c.get_label() != "_nolegend_" or len(c.lines[0].get_xdata()) == 1]
    for bar, f in zip(bars, (near, far), strict=True):
        (x, y), ((_, low_end), (_, high_end)) = bar.lines[0].get_xydata()[0], bar.lines[2][0].get_segments()[0]
        assert (x, y, low_end, high_end) == pytest.approx((f.at["x"], f.median, f.low, f.high))
    line = names["median"].axes.lines
    dashed = next(c for c in line if c.get_linestyle() == "--" and len(c.get_xdata()) == 200)
    assert np.interp(np.log(1e9), np.log(dashed.get_xdata()), dashed.get_ydata()) == pytest.approx(near.median, rel=1e-3)
    assert np.nanmax(names["median"].get_xdata()[np.isfinite(names["median"].get_ydata())]) <= 1.001 * N.max()  # solid where rows are
    assert {"50 % of new runs", "90 % of new runs"} <= names.keys()
    wide, narrow = (names[f"{p} % of new runs"].get_paths()[0].get_extents().height for p in (90, 50))
    assert wide > narrow > 0
    residuals = np.concatenate([c.get_ydata() for c in low.lines[1:]])
    medians = np.array([forecast(found, {"x": n}).median for n in N])
    np.testing.assert_allclose(residuals, 100 * (ONE["loss"].to_numpy() / medians - 1), atol=1e-6)
    assert low.get_ylabel() == "residual (%)"
    if law == "auto":
        weights = {k: v for k, v in near.laws.items() if v >= picture.LEAST}
        assert {f"{k} {v:.0%}".replace("%", " %") for k, v in weights.items()} == names.keys() & {
            f"{k} {v:.0%}".replace("%", " %") for k, v in near.laws.items()}
    else:
        assert sum(len(c.get_xdata()) == 200 and c.get_color() == picture.GREY for c in top.lines) == picture.DRAWS
    text = said(figure)
    for part in ("n = 1e09", "3.3x beyond the rows", "10x beyond the rows", "90 % intervals", "Back-test, largest predictor value",
                 f"fitted to {len(N)} rows"):
        assert part in text
    assert ("no misfit was given or seen" in text) == (law != "auto")
    assert top.get_xscale() == "log"
    assert (top.get_yscale(), top.get_ylabel(), low.get_xlabel()) == ("linear", "loss", "n")


def test_the_median_of_an_average_follows_rows_that_its_laws_do_not():
    n = np.geomspace(1, 1e4, 15)
    table = pa.table({"n": n, "loss": np.where(n < 50, 1.0, 0.2) + n**-0.3})
    figure, _, _ = drawn(table, "auto", {"x": "n"}, [{"x": 3e4}])
    band = labelled(figure.axes[0])["90 % of new runs"].get_paths()[0].vertices[:, 0]
    assert band.min() < n.min() < n.max() < band.max()
    residuals = np.concatenate([c.get_ydata() for c in figure.axes[1].lines[1:]])
    assert np.abs(residuals).max() < 15  # per cent, where the step is of a factor of 2 or more


def test_several_predictors_are_drawn_along_the_one_extrapolated_furthest():
    figure, _, (f,) = drawn(GRID, "auto", {"size": "n", "tokens": "d"}, [{"size": 6e8, "tokens": 1e12}])
    top, low, bar = figure.axes
    assert (low.get_xlabel(), bar.get_ylabel()) == ("d", "n")
    assert "Curves are at n = 6e08; the rows have their own values" in said(figure)
    assert f.extrapolation == pytest.approx(100)
    assert sorted(len(c.get_offsets()) for c in top.collections if hasattr(c, "get_sizes") and len(c.get_sizes())) == [3, 15]
    figure, _, _ = drawn(GRID, "chinchilla", {"n_params": "n", "n_tokens": "d"}, [{"n_params": v, "n_tokens": 1e12} for v in (1e9, 2e9)])
    assert figure.axes[1].get_xlabel() == "n"  # the one that the points differ in


def test_units_counts_and_a_wide_y_have_their_axes():
    table = pa.table({"n": N, "loss": np.round(1e-3 * N**0.9), "of": np.full(6, 10**6)})
    figure, _, _ = drawn(table, "power", {"x": "n"}, [{"x": 1e9}], loss="beta_binomial", trials="of")
    assert (figure.axes[0].get_ylabel(), figure.axes[0].get_yscale()) == ("loss / of", "log")
    assert labelled(figure.axes[0])["rows"].get_ydata().max() < 1
    field = pa.field("loss", pa.float64(), metadata={b"unit": b"nats"})
    figure, _, _ = drawn(ONE.set_column(1, field, ONE["loss"]), "auto", {"x": "n"}, [{"x": 1e9}])
    assert figure.axes[0].get_ylabel() == "loss (nats)"


def test_a_fit_that_cannot_forecast_draws_its_rows_and_says_why():
    table = pa.table({"n": [*N, 1.0, 2.0], "loss": [*ONE["loss"].to_pylist(), 3.0, 2.0], "g": ["a"] * 6 + ["b"] * 2})
    found = fit(table, "power_floor", y="loss", x="n", group="g")
    with plot.style():
        figure = picture.forecast(found, [forecast(found, {"x": 8.0}, group="b")], "b")
    assert len(figure.axes[0].lines) == 2  # rows, and rows that a back-test would hold out
    assert "2 rows for 3 parameters" in said(figure)


def test_a_backtest_has_a_panel_for_each_group():
    table = pa.Table.from_pylist([{"n": float(n), "loss": float(a * n**-0.1), "g": g} for g in range(30) for a in [3 + g] for n in N])
    result = backtest(table, "power", y="loss", x="n", group="g", holdout="n > 5e7")
    with plot.style():
        figure: Any = picture.backtest(result)
    panels = [ax for ax in figure.axes if ax.lines]
    assert len(panels) == 24
    fitted, held = panels[3].lines[0].get_xdata(), panels[3].lines[1]
    assert (sorted(fitted), sorted(held.get_xdata())) == (N[:4].tolist(), N[4:].tolist())
    np.testing.assert_allclose(np.sort(held.get_ydata()), np.sort(6 * N[4:]**-0.1))
    assert "The first 24 of 30 groups are drawn." in said(figure)
    assert "100 % of 60 held-out rows" in said(figure)
    assert figure.get_size_inches()[0] == 7
    several = backtest(GRID, "chinchilla", y="loss", x={"n_params": "n", "n_tokens": "d"}, holdout="n > 2e8")
    with plot.style():
        figure: Any = picture.backtest(several)
    bars = figure.axes[0].collections
    assert [len(b.get_segments()) for b in bars] == [3, 3]  # 90 % and 50 % at each held-out row
    assert all(wide[1, 1] - wide[0, 1] > thin[1, 1] - thin[0, 1] for wide, thin in zip(*(b.get_segments() for b in bars), strict=True))


@pytest.mark.parametrize(("values", "wide", "scale"), [([1, 2, 100], 1, "log"), ([1, 2, 2.5], 3, "linear"), ([0, 1, 100], 1, "linear"),
                                                        ([1, 4], 3, "log"), ([5, 5], 1, "linear"), ([], 1, "linear"), ([1e-9, 1e9], 1, "log")])
def test_an_axis_is_logarithmic_where_that_is_honest(values, wide, scale):
    import matplotlib.figure
    ax = matplotlib.figure.Figure().subplots()
    ax.plot(values, values)
    plot.axis(ax.xaxis, values, wide=wide)
    assert ax.get_xscale() == scale
    low, high = ax.get_xlim()
    shown = [t for t in ax.get_xticks() if low <= t <= high]
    assert 1 <= len(shown) <= 8


def test_the_commands_write_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    csv.write_csv(ONE, "runs.csv")
    assert cli.main(["fit", "runs.csv", "--y", "loss", "--x", "n", "--out", "f.json"]) == 0
    assert cli.main(["forecast", "f.json", "--at", "n=1e9", "--figure", "a.png"]) == 0
    assert cli.main(["backtest", "runs.csv", "--law", "power", "--y", "loss", "--x", "n", "--holdout", "n > 5e7", "--figure", "b.svg"]) == 0
    assert "figure in a.png" in capsys.readouterr().out
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert b"<svg" in (tmp_path / "b.svg").read_bytes()
    for argv in (["forecast", "f.json", "--at", "n=1e9", "--figure", "a.foo"], ["forecast", "f.json", "--at", "n=1e9", "--figure", "no/a.png"],
                 ["backtest", "runs.csv", "--y", "loss", "--x", "n", "--holdout", "n > 1.5e6", "--figure", "c.png"]):
        status, (out, err) = cli.main([*argv, "--json"]), capsys.readouterr()
        assert (status, out, err.count("\n")) == (2, "", 1), (argv, err)
    with pytest.raises(TableError, match="no predictor"):
        picture.forecast(found := fit(ONE, "constant", y="loss"), [forecast(found, {})])
