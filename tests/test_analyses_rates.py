"""Extraction rates: the melt against a slow loop, straight lines that are planted, and the jackknife against its definition."""

import math

import numpy as np
import pyarrow as pa
import pytest

from scalemem import analyses
from scalemem.analyses import rates
from scalemem.spec import SpecError
from scalemem.tables import RowsError, TableError

CONTEXTS, COPIES, SIZES = (2, 4, 8), (4, 8, 16), (1000, 10_000, 100_000)


def suite(chance, per=3, seeds=3, sizes=SIZES, checkpoints=(0.5, 1.0), controls=2, planted=True):
    """Canaries whose rate is chance(seed, size, copies, context), at both checkpoints but that nothing is known at the first."""
    rows = []
    for seed in range(seeds):
        for size in sizes:
            for exposures in checkpoints:
                for copies in (*np.repeat(COPIES, per), *[0] * controls):
                    rows.append({"run_id": f"{seed}-{size}-{planted}", "seed": seed, "n_params": size, "exposures": exposures,
                                 "planted": bool(copies) and planted, "copies": int(copies) * planted,
                                 **{f"extractable_rate_{k}": float(chance(seed, size, copies, k)) * (exposures == 1) for k in CONTEXTS}})
    return rows


def tables(*rows):
    return {"extraction": pa.Table.from_pylist([row for part in rows for row in part])}


def test_rates_are_the_means_of_a_slow_loop():
    rng = np.random.default_rng(0)
    rows = suite(lambda *_: rng.random() < 0.4)
    found = rates.analyse(tables(rows)).to_pylist()
    assert len(found) == 3 * 3 * 4 * 3
    assert list(found[0]) == list(rates.COLUMNS)
    for row in found:
        same = [r[f"extractable_rate_{row['context_tokens']}"] for r in rows
                if all(r[k] == row[k] for k in ("seed", "n_params", "copies", "exposures"))]
        assert row["exposures"] == 1
        assert (row["n_count"], row["planted_count"]) == (len(same), 9)
        assert row["extractable_rate"] == pytest.approx(np.mean(same))


def test_a_model_trained_without_canaries_stands_apart_from_controls():
    with_, without = suite(lambda *_: 1), suite(lambda *_: 0, planted=False)
    found = rates.analyse(tables(with_, without), where="not planted").to_pylist()
    assert {(r["planted_count"], r["n_count"], r["extractable_rate"]) for r in found} == {(9, 2, 1.0), (0, 11, 0.0)}


def test_prompts_that_a_sequence_does_not_have_are_no_rows():
    rows = suite(lambda *_: 1, seeds=1)
    for r in rows:
        if r["copies"] == 4:
            r["extractable_rate_8"] = None
    found = rates.analyse(tables(rows)).to_pylist()
    assert {r["context_tokens"] for r in found if r["copies"] == 4} == {2, 4}
    assert {r["context_tokens"] for r in found if r["copies"] == 8} == {2, 4, 8}


@pytest.mark.parametrize(("x", "slope"), [("n_params", 0.19), ("copies", 0.3), ("context_tokens", 0.335)])
def test_planted_slopes_are_found(x, slope):
    def chance(seed, size, copies, context):
        return 0.3 + slope * math.log10({"n_params": size / 1e4, "copies": (copies or 1) / 8, "context_tokens": context / 4}[x])

    for row in rates.lines(tables(suite(chance)), x=x).to_pylist():
        assert row["points_count"] == 3
        assert row["slope_fraction_per_decade"] == pytest.approx(slope)
        assert row["explained_fraction"] == pytest.approx(1)
        assert row["explained_pseudo_fraction"] == pytest.approx(1)


def test_saturated_points_are_left_out():
    """Two sizes at the floor and two at the ceiling of a straight part."""
    sizes = (10, 100, *SIZES, 1_000_000, 10_000_000)

    def chance(seed, size, copies, context):
        return min(1, max(0, 0.5 + 0.3 * math.log10(size / 1e4)))

    rows = suite(chance, sizes=sizes)
    assert [r["points_count"] for r in rates.lines(tables(rows), x="n_params").to_pylist()] == [3, 3, 3]
    assert rates.lines(tables(rows), x="n_params").to_pylist()[0]["explained_fraction"] == pytest.approx(1)
    assert rates.lines(tables(rows), x="n_params", low=-1, high=2).to_pylist()[0]["explained_fraction"] < 0.97


def test_the_jackknife_is_that_of_the_mean_curve():
    rng = np.random.default_rng(1)
    noise = {(s, n): rng.uniform(0.1, 0.9) for s in range(4) for n in (*SIZES, 1_000_000)}
    found = rates.lines(tables(suite(lambda s, n, *_: noise[s, n], seeds=4, sizes=(*SIZES, 1_000_000))), x="n_params").to_pylist()
    curve, at = np.array([[noise[s, n] for n in (*SIZES, 1_000_000)] for s in range(4)]), np.array([3, 4, 5, 6])

    def explained(y):
        return np.corrcoef(at, y)[0, 1] ** 2

    for s, row in enumerate(found):
        assert row["slope_fraction_per_decade"] == pytest.approx(np.polyfit(at, curve[s], 1)[0])
        assert row["explained_fraction"] == pytest.approx(explained(curve[s]))
        rest = explained(np.delete(curve, s, 0).mean(0))
        assert row["explained_pseudo_fraction"] == pytest.approx(4 * explained(curve.mean(0)) - 3 * rest)


def test_too_little_to_say_is_nan():
    one = rates.lines(tables(suite(lambda s, n, *_: 0.1 + 0.1 * math.log10(n / 100), seeds=1)), x="n_params").to_pylist()[0]
    assert one["explained_fraction"] == pytest.approx(1)
    assert math.isnan(one["explained_pseudo_fraction"])
    two = rates.lines(tables(suite(lambda s, n, *_: 0.1 * math.log10(n / 1000))), x="n_params").to_pylist()[0]
    assert two["points_count"] == 2
    assert math.isnan(two["slope_fraction_per_decade"])
    flat = rates.straight(np.arange(3.0), np.ones(3))
    assert flat[0] == 0
    assert math.isnan(flat[1])


def test_errors_name_what_is_wrong():
    good = tables(suite(lambda *_: 0.5))
    with pytest.raises(TableError, match="no column extractable_rate_K"):
        rates.analyse({"extraction": good["extraction"].drop_columns([f"extractable_rate_{k}" for k in CONTEXTS])})
    with pytest.raises(SpecError, match=r"analysis\.table = 'other'"):
        rates.analyse(good, table="other")
    with pytest.raises(RowsError, match="no row satisfies"):
        rates.analyse(good, where="copies > 99")
    with pytest.raises(SpecError, match=r"analysis\.x = 'depth': must be one of n_params, copies, context_tokens"):
        analyses.run("rate_lines", good, {"x": "depth"})
    with pytest.raises(SpecError, match=r"analysis\.low = 1\.0: must be below high"):
        rates.lines(good, x="copies", low=1.0)
    with pytest.raises(RowsError, match="rates: no row satisfies"):
        rates.lines(good, x="copies", where="copies > 99")
    with pytest.raises(RowsError, match="seed 1 has no row of n_params = 100000"):
        rates.lines(tables([r for r in suite(lambda *_: 0.5) if not (r["seed"] == 1 and r["n_params"] == 100_000)]), x="n_params")
    assert analyses.run("rates", good, {}).num_rows == 3 * 3 * 4 * 3
