"""The forecast by copies: thresholds that were planted are found, parabolas are continued, and intervals hold what they say."""

import math

import numpy as np
import pyarrow as pa
import pytest

from scalemem.analyses import dose
from scalemem.tables import RowsError

SIZES = (1000, 2000, 4000, 8000, 32000)
COPIES = np.repeat(np.round(4 * 1.5 ** np.arange(11)).astype(int), 40)


def suite(rng, middle, width=0.2, sizes=SIZES, copies=COPIES, seeds=3, checkpoint=True):
    """Canaries memorized with probability sigmoid((log copies - middle(size)) / width), and an earlier checkpoint that says nothing."""
    rows = []
    for seed in range(seeds):
        for size in sizes:
            p = 1 / (1 + np.exp(-(np.log(copies) - middle(size)) / width))
            had = rng.random(len(copies)) < p
            for exposures in (0.5, 1.0) if checkpoint else (1.0,):
                rows += [{"run_id": f"{seed}-{size}", "seed": seed, "n_params": size, "canary": c, "planted": True, "copies": int(k), "last_step": 1,
                          "step": 2, "exposures": exposures, "memorized": float(h) if exposures == 1 else float(rng.random() < 0.5)}
                         for c, (k, h) in enumerate(zip(copies, had, strict=True))]
    return {"extraction": pa.Table.from_pylist(rows)}


def falling(bend=0.0, slope=-0.6):
    return lambda n: 5.0 + slope * math.log(n / 1000) + bend * math.log(n / 1000) ** 2


def test_thresholds_are_found_and_said_to_be_unknown_outside_the_ladder():
    rng = np.random.default_rng(0)
    found = dose.thresholds(suite(rng, falling(0.05), sizes=(10, 1000, 4000)), memorized="memorized").to_pylist()
    assert math.isnan(found[0]["threshold_copies_count"])
    for row, size in zip(found[1:], (1000, 4000), strict=True):
        truth = math.exp(falling(0.05)(size))
        assert row["threshold_copies_count"] == pytest.approx(truth, rel=0.1)
        assert row["width_ratio"] == pytest.approx(0.2, rel=0.25)
    held = [low <= math.exp(falling()(1000)) <= high for low, high in (
        (row["low_threshold_count"], row["high_threshold_count"])
        for row in (dose.thresholds(suite(np.random.default_rng(i), falling(), sizes=(1000,), checkpoint=False), memorized="memorized").to_pylist()[0]
                    for i in range(30)))]
    assert np.mean(held) >= 0.75


@pytest.mark.parametrize("bend", [0.0, 0.1])
def test_a_parabola_is_continued(bend):
    """With many canaries the sizes show the bend, and the forecast is the truth within a few per cent."""
    rng, many = np.random.default_rng(1), np.repeat(COPIES, 30)
    rows = dose.analyse(suite(rng, falling(bend), copies=many, seeds=1, checkpoint=False), memorized="memorized", sizes=[8000]).to_pylist()
    truth = math.exp(falling(bend)(32000))
    assert rows[0]["low_threshold_count"] < truth < rows[0]["high_threshold_count"]
    assert rows[0]["threshold_copies_count"] == pytest.approx(truth, rel=0.15)
    assert rows[0]["sizes_count"] == 4
    assert rows[0]["extrapolation_ratio"] == 4


def test_intervals_hold_what_they_say():
    """On suites whose bend is drawn from the prior; 90 % of them, within the error of so few."""
    inside, widths = [], []
    for i in range(60):
        rng = np.random.default_rng(i)
        bend = rng.normal(*dose.BEND)
        rows = dose.analyse(suite(rng, falling(bend), seeds=1, checkpoint=False), memorized="memorized", sizes=[8000]).to_pylist()
        inside += [r["inside"] for r in rows]
        widths += [(r["high_count"] - r["low_count"]) / r["n_count"] for r in rows]
    assert len(inside) == 60
    assert np.mean(inside) >= 0.82
    assert np.median(widths) < 0.5


def test_the_target_is_never_read():
    tables = suite(np.random.default_rng(3), falling())
    table = tables["extraction"]
    forged = np.where(np.array(table["n_params"]) == SIZES[-1], 1.0, np.array(table["memorized"]))
    other = {"extraction": table.set_column(table.column_names.index("memorized"), "memorized", pa.array(forged))}
    first, second = (dose.analyse(t, memorized="memorized", sizes=[8000]).to_pylist() for t in (tables, other))
    for a, b in zip(first, second, strict=True):
        assert a["memorized_count"] != b["memorized_count"]
        assert {k: v for k, v in a.items() if k not in ("memorized_count", "inside")} == {
            k: v for k, v in b.items() if k not in ("memorized_count", "inside")}


def test_one_number_of_copies_has_no_threshold():
    with pytest.raises(RowsError, match="a threshold needs a ladder"):
        dose.analyse(suite(np.random.default_rng(0), falling(), copies=np.full(20, 8)), memorized="memorized")
