"""Unintended memorization against a reference: by hand, by a slow reference, chance alone, and references that cannot be one."""

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalemem import analyses
from scalemem.analyses import roc
from scalemem.spec import CanarySpec, DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, SpecError, Stage, canonical_json
from scalemem.tables import RowsError, TableError


def spec(n_items=100, vocab=8, **canaries):
    canary = CanarySpec(**{"per_group": 2, "kind": "natural", "shared": True, **canaries})
    return RunSpec(ModelSpec(d_model=4, n_layers=1, n_heads=1, vocab_size=vocab, seq_len=4),
                   (Stage(DataSpec(n_items, canaries=canary), OptimizerSpec(peak_lr=0.1), 1, 1),), (Probe("likelihood"),))


def suite(*runs):
    """Tables of runs (name, {column: value}, spec, planted, bits), a sequence for each of the bits."""
    rows, cells = [], []
    for name, extra, run, planted, bits in runs:
        own = {"run_id": name, "seed": 0, "n_params": 50, "n_items": run.stages[0].data.n_items, "d_model": 4, **extra}
        rows.append({**own, "spec": canonical_json(run)})
        for i, (there, b) in enumerate(zip(planted, bits, strict=True)):
            cells.append({"run_id": name, "exposures": 1.0, "canary": i, "planted": there, "nats": b * math.log(2)})
    return {"runs": pa.Table.from_pylist(rows), "likelihood": pa.Table.from_pylist(cells)}


NEVER, TWO = [False] * 4, [True, True, False, False]
REFERENCE = ("ref", {"n_items": 900}, spec(900, include=1e-9), NEVER, [10.0, 10, 10, 10])


def analyse(tables, **options):
    return analyses.run("unintended", tables, {"reference": "n_items > 500", **options}).to_pylist()


def test_by_hand():
    row, = analyse(suite(("run", {}, spec(), TWO, [2.0, 12, 9, 14]), REFERENCE), carry=["d_model"])
    assert list(row)[:6] == ["run_id", "seed", "n_params", "n_items", "exposures", "d_model"]
    expected = {"n_count": 2, "controls_count": 2, "references_count": 1, "reference_bits": 10, "memorized_bits": 4, "control_bits": 0.5,
                "signed_bits": 3, "memorized_fraction": 0.4, "total_bits": 400, "excess_total_bits": 350, "data_bits": 1000,
                "data_bits_per_param": 20, "held_out_nats": 11.5 * math.log(2), "loss_auc": 0.75, "reference_auc": 0.75}
    assert {k: row[k] for k in expected} == pytest.approx(expected)


def test_it_is_the_slow_one():
    rng = np.random.default_rng(0)
    refs, bits, planted = rng.normal(30, 5, (3, 40)), rng.normal(28, 6, 40), rng.random(40) < 0.5
    tables = suite(("run", {}, spec(), planted, bits), *((f"ref{k}", {}, spec(900), [False] * 40, refs[k]) for k in range(3)))
    row, = analyse(tables)
    q = [math.log2(sum(2.0 ** -refs[k, i] for k in range(3)) / 3) for i in range(40)]
    gain = [max(0.0, -bits[i] - q[i]) for i in range(40)]
    assert row["memorized_bits"] == pytest.approx(sum(g for g, p in zip(gain, planted, strict=True) if p) / planted.sum())
    assert row["control_bits"] == pytest.approx(sum(g for g, p in zip(gain, planted, strict=True) if not p) / (~planted).sum())
    assert row["reference_auc"] == pytest.approx(roc.evaluate(-bits - np.array(q), planted)["auc"])
    assert row["references_count"] == 3


@given(st.lists(st.floats(0, 1e4), min_size=4, max_size=4), st.lists(st.floats(0, 1e4), min_size=4, max_size=4))
def test_what_must_always_hold(own, reference):
    row, = analyse(suite(("run", {}, spec(), TWO, own), (*REFERENCE[:4], reference)))
    assert row["memorized_bits"] >= max(0, row["signed_bits"])
    assert row["memorized_bits"] <= row["reference_bits"] * (1 + 1e-12)  # no more than the reference needs
    if own == reference:
        assert row["memorized_bits"] == 0


def test_chance_is_taken_off():
    """A run that memorizes nothing, but differs from its reference by noise: the maximum reads sd / sqrt(2 pi), the excess nothing."""
    rng = np.random.default_rng(1)
    planted = np.arange(4000) < 2000
    row, = analyse(suite(("run", {}, spec(), planted, 50 + 3 * rng.normal(size=4000)), ("ref", {}, spec(900), planted & False, [50.0] * 4000)))
    assert row["memorized_bits"] == pytest.approx(3 / math.sqrt(2 * math.pi), rel=0.1)
    assert abs(row["excess_total_bits"]) < 0.2 * row["total_bits"]


def test_a_reference_knows_nothing_of_what_it_was_trained_on():
    rows = analyse(suite(("run", {}, spec(), TWO, [1.0, 1, 1, 1]), (*REFERENCE[:3], [True, False, False, False], [0.0, 10, 10, 10])))
    assert (rows[0]["n_count"], rows[0]["controls_count"], rows[0]["memorized_bits"]) == (1, 2, pytest.approx(9))


def test_references_are_matched_and_rows_sorted():
    small, large = {"n_params": 50}, {"n_params": 70}
    tables = suite(("b", large, spec(), TWO, [5.0] * 4), ("a", small, spec(200), TWO, [5.0] * 4), ("c", small, spec(), TWO, [5.0] * 4),
                   ("r", small, spec(900), NEVER, [9.0] * 4), ("R", large, spec(900), NEVER, [7.0] * 4))
    rows = analyse(tables, match=["n_params"])
    assert [(r["run_id"], round(r["memorized_bits"], 9)) for r in rows] == [("c", 4), ("a", 4), ("b", 2)]
    with pytest.raises(RowsError, match=r"run b: no reference \(seed == 5 or n_params == 50 and n_items > 500\) has its n_params = 70; run one"):
        analyse({**tables, "likelihood": tables["likelihood"].filter([v != "R" for v in tables["likelihood"]["run_id"].to_pylist()])},
                reference="seed == 5 or n_params == 50 and n_items > 500", match=["n_params"])


def test_the_last_checkpoint_of_a_reference_and_all_of_a_run():
    tables = suite(("run", {}, spec(), TWO, [2.0] * 4), REFERENCE)
    assert analyse(suite(("run", {}, spec(), NEVER, [2.0] * 4), REFERENCE)) == []  # nothing planted, nothing to be memorized
    early = pa.Table.from_pylist([{**row, "exposures": 0.5, "nats": 99.0} for row in tables["likelihood"].to_pylist()])
    rows = analyse({**tables, "likelihood": pa.concat_tables([early, tables["likelihood"]])})
    assert [(r["exposures"], r["reference_bits"], round(r["memorized_bits"], 9)) for r in rows] == [(0.5, 10, 0), (1.0, 10, 8)]


@pytest.mark.parametrize(("other", "message"), [
    ({"vocab": 9}, r"run run: tracks other sequences than its reference: vocab_size = 8 and 9; make them equal"),
    ({"kind": "random"}, r"canaries\.kind = 'natural' and 'random'"),
    ({"length": 3}, r"canaries\.length = 0 and 3"),
])
def test_other_sequences_are_refused(other, message):
    with pytest.raises(RowsError, match=message) as error:
        analyse(suite(("run", {}, spec(), TWO, [2.0] * 4), ("ref", {}, spec(900, **other), NEVER, [2.0] * 4)))
    assert "\n" not in str(error.value)


def test_temperatures_are_laid_over_groups():
    tables = suite(("run", {}, spec(kind="trap"), TWO, [2.0] * 4), ("ref", {}, spec(900, kind="trap", per_group=3), NEVER, [2.0] * 4))
    with pytest.raises(RowsError, match=r"canaries\.per_group = 2 and 3"):
        analyse(tables)
    assert analyse(suite(("run", {}, spec(), TWO, [2.0] * 4), ("ref", {}, spec(900, per_group=3, controls=5), NEVER, [2.0] * 4)))


def test_what_cannot_be_asked():
    run = ("run", {}, spec(), TWO, [2.0] * 4)
    for canaries in ({"shared": False}, {"offset": 1, "length": 2}):
        with pytest.raises(SpecError, match=r"data\.canaries: must be shared by all runs and begin their sequences"):
            analyse(suite(run, (*REFERENCE[:2], spec(900, **canaries), *REFERENCE[3:])))
    bare = dataclasses.replace(spec(900), stages=(dataclasses.replace(spec().stages[0], data=DataSpec(900)),))
    with pytest.raises(SpecError, match=r"data\.canaries: must be shared"):
        analyse(suite(run, (*REFERENCE[:2], bare, *REFERENCE[3:])))
    with pytest.raises(RowsError, match=r"runs: no reference: none satisfies 'n_items > 500' and has rows in 'likelihood'"):
        analyse(suite(run))
    with pytest.raises(RowsError, match=r"run \w+: another reference tracks other sequences: vocab_size"):
        analyse(suite(run, REFERENCE, ("more", {}, spec(900, vocab=9), NEVER, [2.0] * 4)))
    with pytest.raises(TableError, match="'colour': not in the table"):
        analyse(suite(run, REFERENCE), carry=["colour"])
