"""Forecasts of which sequences, and how many, a larger model memorizes: hand-made tables, and suites whose law is known."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import expit

from scalemem.analyses import matrix, transfer, which
from scalemem.analyses.panel import Panel
from scalemem.spec import SpecError
from scalemem.tables import RowsError, TableError


def suite(seed, sizes=(1, 2, 4, 8, 16), n=150, seeds=2, fractions=(1.0,), noise=0.3, level=-3.0):
    """A suite in which the logit of a sequence is a_i + b_i log size + 1.2 log fraction, known up to noise."""
    rng = np.random.default_rng(seed)
    parts = []
    for s in range(seeds):
        copies, last = 2 ** rng.integers(0, 4, n), rng.integers(0, 100, n)
        a, b = level + rng.normal(0, 1.5, n) + 0.8 * np.log(copies), np.abs(rng.normal(1, 0.5, n))
        for size in sizes:
            shift = rng.normal(0, 0.1)
            for f in fractions:
                logit = a + b * np.log(size) + 1.2 * np.log(f) + shift
                parts.append({"seed": np.full(n, s), "canary": np.arange(n), "n_params": np.full(n, 1000 * size), "exposures": np.full(n, 4 * f),
                              "step": np.full(n, int(400 * f)), "copies": copies, "last_step": last, "run_id": np.full(n, f"{s}-{size}"),
                              "planted": np.ones(n, bool), "score": expit(logit + rng.normal(0, noise, n)),
                              "exact": logit + rng.logistic(0, noise, n) > 0})
    runs = {"run_id": [f"{s}-{z}" for s in range(seeds) for z in sizes], "train_flops": [6.0 * z for s in range(seeds) for z in sizes]}
    return {"extraction": pa.table({k: np.concatenate([p[k] for p in parts]) for k in parts[0]}), "runs": pa.table(runs)}


COLUMNS: dict[str, Any] = {"value": "score", "memorized": "exact"}


def table_of(cells):
    """{(size, exposures): [score of each sequence]} as a table; a score of 1 is memorized."""
    rows = [{"seed": 0, "canary": i, "n_params": n, "exposures": e, "step": int(10 * e), "copies": 1, "last_step": i, "run_id": str(n),
             "planted": True, "score": x} for (n, e), scores in cells.items() for i, x in enumerate(scores)]
    return {"extraction": pa.Table.from_pylist(rows)}


def test_baseline_by_hand():
    tables = table_of({(10, 1.0): [1.0, 1.0, 0.9, 0.1], (10, 0.5): [1.0, 0.5, 0.2, 0.1], (20, 1.0): [1.0, 0.5, 1.0, 1.0]})
    rows = which.analyse(tables, value="score", memorized="score").to_pylist()
    early, small = rows
    assert [r["predictor_fraction"] for r in rows] == [0.5, 1.0]
    assert (small["precision"], small["recall"], small["f1"], small["n_count"]) == (1 / 2, 1 / 3, 2 / 5, 4)
    assert (early["precision"], early["recall"]) == (1, 1 / 3)
    assert (small["base_rate_fraction"], small["memorized_fraction"], small["learned_count"]) == (0.75, 0.5, 0)
    assert small["value_recall_matched"] == 1
    assert early["value_recall_matched"] == pytest.approx(1 / 3)
    assert small["forecast_recall_matched"] == 1  # by value: the first three are right in 2 of 3, all four in 3 of 4
    assert math.isnan(small["forecast_f1"])
    assert math.isnan(small["train_flops"])


def test_costs_and_choices():
    tables = suite(0, fractions=(0.5, 1.0))
    rows = which.analyse(tables, **COLUMNS, targets=[16000], sizes=[4000, 16000]).to_pylist()
    assert [(r["seed"], r["predictor_n_params"], r["predictor_fraction"]) for r in rows] == [
        (s, n, f) for n, f in ((4000, 0.5), (4000, 1.0), (16000, 0.5)) for s in (0, 1)]
    assert [r["train_flops"] for r in rows[::2]] == [12, 24, 48]
    assert [r["forecast_train_flops"] for r in rows[::2]] == [12 + 18, 24 + 18, 48 + 90]
    assert [r["learned_count"] for r in rows[::2]] == [1, 3, 4]  # pairs of sizes below whose end is known
    assert which.analyse(tables, **COLUMNS, targets=[8000], fractions=[1]).num_rows == 2 * 3


@pytest.mark.parametrize("options", [{"targets": [3]}, {"sizes": [1]}, {"fractions": [0.3]}, {"table": "absent"}])
def test_what_is_not_there_is_one_line(options):
    with pytest.raises(SpecError, match=r"^analysis\.\w+ = .*: must be one of .*; \w+") as error:
        which.analyse(suite(0), **COLUMNS, **options)
    assert "\n" not in str(error.value)


def test_tables_that_are_no_panel():
    tables = suite(0)
    twice = {"extraction": pa.concat_tables([tables["extraction"]] * 2)}
    with pytest.raises(RowsError, match="a second one of seed 0, sequence 0, 1000 parameters and 4 exposures"):
        which.analyse(twice, **COLUMNS)
    other = tables["extraction"].to_pylist()
    other[0]["run_id"] = "else"
    with pytest.raises(RowsError, match="seed = 0, n_params = 1000: several runs, else and 0-1 among them"):
        which.analyse({"extraction": pa.Table.from_pylist(other)}, **COLUMNS)
    with pytest.raises(RowsError, match="no row satisfies"):
        which.analyse(tables, **COLUMNS, where="not planted")
    with pytest.raises(TableError, match="column 'nothing': not in the table"):
        which.analyse(tables, value="nothing", memorized="exact")


@pytest.mark.parametrize(("k", "f"), [(3, 1), (2, 0), (4, 0)])
def test_a_forecast_never_sees_its_target(k, f):
    panel = Panel.of(suite(1, fractions=(0.5, 1.0))["extraction"], "score", "exact")
    rng, scrambled = np.random.default_rng(0), (panel.value.copy(), panel.memorized.copy())
    for x in scrambled:
        for later, when in ((k + 1, slice(None)), (k, slice(f + 1, None))):
            cells = x[:, :, later:, :] if later > k else x[:, :, k, when]
            cells[...] = rng.integers(0, 2, cells.shape)
    other = panel._replace(value=scrambled[0], memorized=scrambled[1])
    made = [m for m in (transfer.learn(p, k, f, 4) for p in (panel, other)) if m is not None]
    p, q = (m.probability(transfer.visible(x, k, f), k, f, 4) for m, x in zip(made, (panel, other), strict=True))
    assert np.array_equal(p, q)


def test_pairs_that_teach():
    panel = Panel.of(suite(0, fractions=(0.5, 1.0))["extraction"], "score", "exact")
    assert transfer.pairs(panel, 2, 1, 4) == [(0, 1), (0, 2), (1, 2)]  # ends of sizes 0, 1 and 2 are known
    assert transfer.pairs(panel, 2, 0, 4) == [(0, 1)]  # the end of size 2 is not
    assert transfer.pairs(panel, 2, 0, 2) == [(0, 0), (1, 1)]
    assert transfer.learn(panel, 0, 1, 4) is None


def test_forecasts_beat_the_baseline_and_are_calibrated():
    keys = ("f1", "forecast_f1", "value_average_precision", "forecast_average_precision", "recall", "forecast_recall_matched",
            "value_recall_matched", "forecast_brier_fraction", "base_rate_fraction")
    suites = (suite(s, n=300, noise=0.6, level=-4, fractions=(0.5, 1.0)) for s in range(8))
    rows = [r for tables in suites for r in which.analyse(tables, **COLUMNS, sizes=[8000, 16000]).to_pylist()]
    mean = {key: np.mean([r[key] for r in rows]) for key in keys}
    assert mean["forecast_f1"] > mean["f1"] + 0.1
    assert mean["forecast_average_precision"] > mean["value_average_precision"] + 0.02
    assert mean["forecast_recall_matched"] > mean["value_recall_matched"] > mean["recall"]
    assert mean["forecast_brier_fraction"] < 0.6 * mean["base_rate_fraction"] * (1 - mean["base_rate_fraction"])


def test_no_signal_no_skill():
    tables = suite(0, n=2000, seeds=1)
    rng, old = np.random.default_rng(0), tables["extraction"]
    for name, cells in (("score", rng.random(old.num_rows)), ("exact", rng.random(old.num_rows) < 0.3), ("copies", np.ones(old.num_rows))):
        old = old.set_column(old.column_names.index(name), name, pa.array(cells))
    row = which.analyse({"extraction": old}, **COLUMNS, sizes=[8000]).to_pylist()[0]
    assert abs(row["spearman"]) < 0.08
    assert row["forecast_average_precision"] == pytest.approx(0.3, abs=0.05)
    assert row["forecast_brier_fraction"] == pytest.approx(0.21, abs=0.02)


def test_matrices_mirror():
    tables = suite(3, sizes=(1, 4), seeds=1, fractions=(0.5, 1.0))
    rows = {(r["predictor_n_params"], r["target_n_params"]): r for r in matrix.analyse(tables, **COLUMNS).to_pylist()}
    assert len(rows) == 4
    assert rows[1000, 1000]["f1"] == rows[1000, 1000]["pearson"] == 1
    there, back = rows[1000, 4000], rows[4000, 1000]
    assert (there["precision"], there["pearson"]) == (back["recall"], back["pearson"])
    t = tables["extraction"].filter(pa.array(np.asarray(tables["extraction"]["exposures"]) == 4)).to_pydict()
    small, large = (np.array([v for v, n in zip(t["score"], t["n_params"], strict=True) if n == size]) for size in (1000, 4000))
    assert there["pearson"] == pytest.approx(np.corrcoef(small, large)[0, 1])
    assert matrix.analyse(tables, **COLUMNS, between="checkpoints").num_rows == 2 * 4
    assert matrix.analyse(tables, **COLUMNS, between="all").num_rows == 16
    with pytest.raises(SpecError, match=r"analysis\.between = 'nothing': must be one of sizes, checkpoints, all"):
        matrix.analyse(tables, **COLUMNS, between="nothing")
