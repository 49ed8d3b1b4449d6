"""Fields of specs beside the rows of tables."""

import pyarrow as pa
import pytest

from scalemem import analyses
from scalemem.analyses.fields import analyse
from scalemem.expressions import TableError
from scalemem.spec import DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, SpecError, Stage, canonical_json


def suite():
    """Four runs of two objectives and two batches, of which the second has no row in the table."""
    runs, rows = [], []
    for i, (objective, batch) in enumerate([("next_token", 2), ("goldfish_static_4", 2), ("next_token", 4), ("goldfish_static_4", 4)]):
        run = RunSpec(ModelSpec(d_model=4, n_layers=1, n_heads=1, vocab_size=8, seq_len=4),
                      (Stage(DataSpec(8), OptimizerSpec(peak_lr=0.1), 1, batch, objective),), (Probe("likelihood"),), seed=i)
        runs.append({"run_id": f"r{i}", "seed": i, "batch_size": batch, "loss_nats": float(i), "spec": canonical_json(run)})
        rows += [] if i == 1 else [{"run_id": f"r{i}", "seed": i, "canary": c, "nats": 10.0 * i + c} for c in range(3)]
    return {"runs": pa.Table.from_pylist(runs), "likelihood": pa.Table.from_pylist(rows)}


def test_each_row_has_what_its_run_was():
    found = analyses.run("fields", suite(), {"fields": ["objective", "batch_size", "seed"], "table": "likelihood"}).to_pylist()
    expected = {0: ("next_token", 2), 2: ("next_token", 4), 3: ("goldfish_static_4", 4)}
    assert sorted((r["seed"], r["canary"]) for r in found) == [(seed, c) for seed in expected for c in range(3)]
    for row in found:
        assert (row["objective"], row["batch_size"]) == expected[row["seed"]]
        assert row["nats"] == 10.0 * row["seed"] + row["canary"]


def test_runs_are_a_table_too_and_rows_are_chosen_by_a_field():
    found = analyse(suite(), fields=["objective", "peak_lr"], where="objective == 'next_token'")
    assert found["run_id"].to_pylist() == ["r0", "r2"]
    assert found["peak_lr"].to_pylist() == [0.1, 0.1]


def test_numbered_columns_become_rows():
    wide = suite()
    rows = [{**row, "rate_4": row["nats"] + 4, "rate_16": row["nats"] + 16, "size_4": 1} for row in wide["likelihood"].to_pylist()]
    tables = {**wide, "likelihood": pa.Table.from_pylist(rows)}
    found = analyse(tables, fields=["objective"], table="likelihood", number="k_tokens", where="k_tokens > 0").to_pylist()
    assert len(found) == 2 * len(rows)
    for row in found:
        assert row["rate"] == row["nats"] + row["k_tokens"]
        assert row["size"] == (1 if row["k_tokens"] == 4 else None)
        assert not {"rate_4", "rate_16"} & row.keys()


@pytest.mark.parametrize(("options", "error", "says"), [
    ({"fields": []}, SpecError, "at least one"), ({"fields": ["goal"]}, SpecError, "goal"),
    ({"fields": ["objective"], "number": "k"}, SpecError, "no column ends in a number"),
    ({"fields": ["objective"], "table": "extraction"}, SpecError, "extraction"),
    ({"fields": ["objective"], "where": "nothing > 2"}, TableError, "nothing")])
def test_what_cannot_be_is_one_line(options, error, says):
    with pytest.raises(error, match=says) as raised:
        analyse(suite(), **options)
    assert "\n" not in str(raised.value)
