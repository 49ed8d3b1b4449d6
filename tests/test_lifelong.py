"""Forgetting of what was known, and its forecast for larger models after more steps: by hand, planted, blind to the target, and from a CSV."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from scalemem import analyses, cli
from scalemem.analyses import lifelong, surface
from scalemem.spec import SpecError
from scalemem.tables import RowsError, TableError

STEPS = np.unique(np.round(2 ** (np.arange(45) / 4)))
SMALL, LARGE = (1000, 2000, 4000), 40_000


def facts():
    """Two facts and two controls at three moments of stage 1 of one run, and one row of stage 0."""
    rows = [(0, 0, "stage0", 9.0), *((1, t, "stage0", v) for t, v in ((0, 1.0), (0, 2.0), (10, 2.0), (10, 4.0), (20, 3.5), (20, 3.5))),
            *((1, t, "control", v) for t, v in ((0, 4.0), (0, 5.0), (10, 4.0), (10, 5.0), (20, 4.0), (20, 3.0)))]
    stage, step, source, nats = zip(*rows, strict=True)
    return pa.table({"seed": [0] * len(rows), "n_params": [100] * len(rows), "stage": stage, "stage_step": step, "source": source,
                     "memorization_nats": nats})


def planted(kind, seeds, rng, offset=0.05):
    """Curves of three small sizes and a large one: Hill or stretched exponential, half-lives that grow as a power of the size."""
    rows = []
    for seed in range(seeds):
        half, b, power = 400 * np.exp(0.2 * rng.normal()), 1.3 + 0.15 * rng.normal(), 0.1 + 0.05 * rng.normal()
        for n in (*SMALL, LARGE):
            tau = half * (n / 2000) ** power * np.exp(offset * rng.normal())
            odds = (STEPS / tau) ** b
            fraction = odds / (1 + odds) if kind == "hill" else 1 - np.exp(-odds * np.log(2))
            rows += [{"seed": seed, "n_params": n, "steps": t, "forgotten_fraction": f + 0.002 * rng.normal()}
                     for t, f in zip(STEPS, fraction, strict=True)]
    return pa.Table.from_pylist(rows)


OPTIONS: dict[str, Any] = {"fit_where": "n_params < 5000 and steps >= 8 and steps <= 128", "at_where": f"n_params == {LARGE} and steps == 1218"}


def test_forgotten_by_hand():
    found = analyses.run("forgotten", {"facts": facts()}, {}).to_pydict()
    assert found["steps"] == [0, 10, 20]
    assert found["learned_nats"] == [3.0, 1.5, 0.0]
    assert found["forgotten_fraction"] == [0.0, 0.5, 1.0]
    assert found["facts_count"] == [2, 2, 2]


@pytest.mark.parametrize("kind", ["hill", "weibull"])
def test_planted_curves_are_forecast_as_often_as_the_interval_says(kind):
    table = planted(kind, 16, np.random.default_rng(1))
    found = lifelong.forecast({"forgotten": table}, **OPTIONS).to_pydict()
    assert len(found["inside"]) == 16
    assert np.mean(found["inside"]) >= 0.8
    assert np.mean(found["width_fraction"]) < 0.7
    assert np.mean(found["error_fraction"]) < 0.5 * np.mean(found["same_error_fraction"])
    assert np.allclose([*found["size_ratio"], *found["steps_ratio"]], [10.0] * 16 + [1218 / 128] * 16)


def test_the_target_is_never_read():
    table = planted("hill", 3, np.random.default_rng(2))
    held = np.array(table["n_params"].to_pylist()) == LARGE
    value = np.where(held, np.random.default_rng(3).uniform(size=len(held)), table["forgotten_fraction"].to_numpy())
    scrambled = table.set_column(3, "forgotten_fraction", pa.array(value))
    a, b = (lifelong.forecast({"forgotten": t}, **OPTIONS).to_pydict() for t in (table, scrambled))
    assert a["low_fraction"] == b["low_fraction"]
    assert a["high_fraction"] == b["high_fraction"]
    assert a["actual_fraction"] != b["actual_fraction"]


def test_doubt_grows_with_the_distance_and_shrinks_at_the_data():
    table = planted("hill", 1, np.random.default_rng(4))
    found = lifelong.forecast({"forgotten": table}, fit_where=OPTIONS["fit_where"], at_where="n_params >= 4000 and steps >= 128").to_pylist()
    width = {(row["n_params"], row["steps"]): row["width_fraction"] for row in found}
    assert width[4000, 128] < 0.03 < width[4000, 512]
    assert width[4000, 128] < width[40_000, 128]


def test_strengths_of_what_was_planted():
    """Runs that differ by 5 % in half-life times the slope, against ones that differ by 40 %: the learned offset tells them apart."""
    learned = [lifelong.strengths({"forgotten": planted("hill", 8, np.random.default_rng(5), offset)}, fit_where=OPTIONS["fit_where"]).to_pylist()
               for offset in (0.05, 0.4)]
    little, much = ({(r["link"], r["strength"]): r["value"] for r in rows}["logit", "offset"] for rows in learned)
    assert 0.02 < little < 0.15 < 0.3 < much < 1.0


def test_links_agree_for_small_fractions_and_quantiles_are_those_of_the_mixture():
    small = np.array([0.002, 0.01])
    np.testing.assert_allclose(surface.logit(small), surface.cloglog(small), atol=0.01)
    made = surface.Forecast(np.array([[0.3], [-0.2]]), np.array([[0.5], [0.8]]))
    rng = np.random.default_rng(6)
    logit, clog = rng.normal(0.3, 0.5, 200_000), rng.normal(-0.2, 0.8, 200_000)
    drawn = np.concatenate([1 / (1 + np.exp(-logit)), 1 - np.exp(-np.exp(clog))])
    for q in (0.05, 0.5, 0.95):
        assert made.at(q)[0] == pytest.approx(np.quantile(drawn, q), abs=0.005)


def test_a_table_of_ones_own(tmp_path, capsys):
    table = planted("weibull", 1, np.random.default_rng(7)).to_pylist()
    path = tmp_path / "curves.csv"
    kept = [row for row in table if row["n_params"] < 5000 and 8 <= row["steps"] <= 128]
    path.write_text("model_size,tokens,lost\n" + "".join(f"{r['n_params']},{r['steps']},{r['forgotten_fraction']}\n" for r in kept))
    command = ["lifelong", str(path), "--y", "lost", "--size", "model_size", "--steps", "tokens", "--at", "model_size=40000", "--at", "tokens=128",
               "--at", "tokens=1218", "--json"]
    assert cli.main(command) == 0
    rows = json.loads(capsys.readouterr().out)["forecasts"]
    assert [row["tokens"] for row in rows] == [128, 1218]
    for row in rows:
        truth = next(r["forgotten_fraction"] for r in table if r["n_params"] == LARGE and r["steps"] == row["tokens"])
        assert row["low_fraction"] <= truth <= row["high_fraction"]
    assert cli.main([*command[:-5], "--json"]) == 2
    assert "must give model_size and tokens" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"at_where": "n_params == 3"}, RowsError, "no place to forecast"),
    ({"fit_where": "steps == 64 and n_params == 1000", "at_where": "steps == 64"}, RowsError, "fewer than 4 rows"),
    ({"table": "nothing"}, SpecError, "must be one of"),
    ({"value": "nothing"}, TableError, "nothing"),
])
def test_what_cannot_be_forecast_is_one_line(options, error, message):
    table = planted("hill", 1, np.random.default_rng(8))
    with pytest.raises(error, match=message) as raised:
        lifelong.forecast({"forgotten": table}, **options)
    assert len(str(raised.value).splitlines()) == 1


def test_a_run_without_controls_is_named():
    rows = facts().filter(pa.array([s != "control" for s in facts()["source"].to_pylist()]))
    with pytest.raises((TableError, SpecError, RowsError), match="control"):
        lifelong.forgotten({"facts": rows})
