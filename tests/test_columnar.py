"""Columns of NumPy arrays, constants and pieces: what is written is what is read, without a Python object a value; curves of checkpoints."""

import json
import math
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest

from scalemem import checkpoint, columnar
from scalemem.columnar import Block, Pieces, repeated
from scalemem.store import Store, StoreError

COLUMNS = {
    "run_id": [repeated("a", 3), ["a", "b"], repeated("b", 1)],
    "step": [repeated(7, 3), [8, 9], np.array([10])],
    "nats": [np.array([0.5, math.nan, math.inf], np.float32), [None, 1.5], jnp.array([2.5])],
    "hit": [np.array([True, False, True]), [None, True], np.array([False])],
    "word": [np.array(["x", "yy", ""]), ["z", None], repeated(None, 1)],
    "mixed": [np.array([1, 2, 3]), [0.5, None], repeated(None, 1)],
    "half": [np.array([0.5, 1, 2], ml_dtypes.bfloat16), [1.0, 2.0], repeated(3, 1)],
}


def plain(values):
    """NaN has a name of its own, so that it equals itself and no null."""
    return ["nan" if isinstance(v, float) and math.isnan(v) else v for v in values]


def listed(parts):
    return [v for part in parts for v in (part if isinstance(part, list) else np.asarray(part).tolist())]


def blocks():
    return [{name: parts[i] for name, parts in COLUMNS.items()} for i in range(3)]


@pytest.mark.parametrize("rows", [1, 2, 1 << 20])
def test_pieces_of_every_kind_are_written_as_lists_would_be(monkeypatch, rows):
    monkeypatch.setattr(columnar, "GROUP_ROWS", rows)
    united = columnar.unite_blocks(blocks())
    assert len(united) == 6
    table = columnar.decode(columnar.encode("t", united))
    other = columnar.decode(columnar.encode("t", Block({name: listed(parts) for name, parts in COLUMNS.items()})))
    for name, parts in COLUMNS.items():
        assert plain(table[name].to_pylist()) == plain(other[name].to_pylist()) == plain(listed(parts)), name
    assert (table.schema.field("nats").type, table.schema.field("run_id").type) == (pa.float64(), pa.string())  # lists have doubles
    assert list(united["run_id"]) == ["a", "a", "a", "a", "b", "b"]
    assert columnar.distinct(united["run_id"]) == ["a", "b"]


def test_a_block_that_lacks_a_column_has_nulls_there():
    united = columnar.unite_blocks([{"run_id": repeated("a", 2), "x": np.arange(2)}, {"run_id": repeated("a", 1), "y": np.array([1.5])}])
    table = columnar.decode(columnar.encode("t", united))
    assert table.to_pydict() == {"run_id": ["a"] * 3, "x": [0, 1, None], "y": [None, None, 1.5]}
    narrow = columnar.decode(columnar.encode("t", Block(x=Pieces([np.ones(1, np.float32), repeated(None, 1)]), n=np.ones(2, np.int16))))
    assert [field.type for field in narrow.schema] == [pa.float32(), pa.int16()]


def test_what_was_read_can_be_written_again_with_more():
    first = columnar.decode(columnar.encode("t", columnar.unite_blocks(blocks())))
    block = Block(zip(first.column_names, first.columns, strict=True))
    more = columnar.unite_blocks([block, {"run_id": ["c"], "nats": [0.25]}])
    table = columnar.decode(columnar.encode("t", more))
    assert table.slice(0, 6).to_pydict().keys() == first.to_pydict().keys()
    assert plain(table["nats"].to_pylist()) == [*plain(first["nats"].to_pylist()), 0.25]
    assert table["word"].to_pylist() == [*first["word"].to_pylist(), None]


@pytest.mark.parametrize("parts", [[np.arange(2), ["x"]], [repeated("x", 1), np.ones(1)], [np.ones(1, bool), np.arange(1)]])
def test_types_that_do_not_go_together_are_refused(parts):
    with pytest.raises(StoreError, match=r"table t, column x: values of types .* make no column .*; give it numbers, strings or booleans"):
        columnar.encode("t", Block(x=Pieces(parts)))


def test_a_constant_takes_no_memory_and_hardly_any_room():
    million = 1 << 20
    small = columnar.encode("t", Block(run_id=repeated("a", million), step=repeated(3, million), nats=repeated(0.5, million)))
    assert len(small) < million // 64
    assert columnar.decode(small).slice(million - 1).to_pylist() == [{"run_id": "a", "step": 3, "nats": 0.5}]


def test_a_store_takes_blocks_of_arrays_and_gives_chosen_columns(tmp_path):
    store = Store.open(tmp_path / "store", create=True)
    for name in "ba":
        block = columnar.unite_blocks([{"run_id": repeated(name, 3), "fact": np.arange(3), "nats": np.full(3, ord(name) + 0.5)}] * 2)
        store.append_tables({"runs": [{"run_id": name, "status": "done"}], "facts": block})
    table = store.table("facts")
    assert table["run_id"].to_pylist() == ["a"] * 6 + ["b"] * 6
    assert table["fact"].to_pylist() == [0, 1, 2] * 4
    assert store.table("facts", ["nats"]).to_pydict() == {"run_id": ["a"] * 6 + ["b"] * 6, "nats": [97.5] * 6 + [98.5] * 6}
    with pytest.raises(StoreError, match=r"table facts: no column 'bits'; legal: those of the whole table"):
        store.table("facts", ["bits"])
    with pytest.raises(StoreError, match=r"table facts, row 3: run_id = '7'"):
        store.append("facts", Block(run_id=Pieces([repeated("a", 3), [7]])))
    with pytest.raises(StoreError, match=r"table facts, row 0: run_id = 'None'"):
        store.append("facts", Block(fact=np.arange(3)))


# -- checkpoints ----------------------------------------------------------------------------------------------------------

CURVES = {"a": {"facts": blocks(), "curves": [{"run_id": ["a"], "loss_nats": [0.1]}, {"run_id": ["a"], "loss_nats": [math.nan], "n": [1]}]},
          "b": {"curves": [{"run_id": ["b"], "loss_nats": [2]}]}, "c": {}}
STATES = {"x": jnp.arange(3.0)}


def as_lists(curves):
    """The values of each run, table and column."""
    return {run: {name: {column: plain(getattr(v, "as_py", lambda v=v: v)() for v in values) for column, values in
                         columnar.unite_blocks(part).items()} for name, part in tables.items()} for run, tables in curves.items() if tables}


def loaded(folder):
    found = checkpoint.load(folder, lambda epoch: STATES)
    assert found is not None
    return found


def test_curves_of_a_checkpoint_come_back_and_go_on(tmp_path):
    for epoch in (3, 5):
        checkpoint.save(tmp_path, epoch, STATES, CURVES, {"runs": []})
    assert checkpoint.epochs(tmp_path) == [5]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["5", "5.curves", "5.json", "pack.json"]
    epoch, states, curves = loaded(tmp_path)
    assert (epoch, states["x"].tolist()) == (5, [0, 1, 2])
    assert as_lists(curves) == as_lists(CURVES)
    checkpoint.save(tmp_path, 6, states, curves, {"runs": []})
    assert as_lists(loaded(tmp_path)[2]) == as_lists(CURVES)


@pytest.mark.parametrize("harm", [Path.unlink, lambda p: p.write_bytes(p.read_bytes()[:-1]), lambda p: p.write_bytes(b"\0" + p.read_bytes()[1:])])
def test_damaged_curves_make_a_checkpoint_none(tmp_path, harm, caplog):
    checkpoint.save(tmp_path, 2, STATES, CURVES, {"runs": []})
    harm(tmp_path / "2.curves")
    assert checkpoint.load(tmp_path, lambda epoch: STATES) is None
    assert "damaged" in caplog.text
    assert checkpoint.epochs(tmp_path) == []


def test_a_checkpoint_of_an_earlier_version_has_no_checksum_and_is_not_gone_on_from(tmp_path, caplog):
    checkpoint.save(tmp_path / "pack", 2, STATES, {}, {"runs": []})
    (tmp_path / "pack" / "2.json").write_text(json.dumps({"a": {"curves": [{"run_id": ["a"], "loss_nats": [0.5]}]}}))
    assert checkpoint.load(tmp_path / "pack", lambda epoch: STATES, aside=tmp_path / "set-aside") is None
    assert "2.json is damaged; moved to set-aside/checkpoint-pack-" in caplog.text
    (moved,) = (tmp_path / "set-aside").iterdir()
    assert sorted(p.name for p in moved.iterdir()) == ["2", "2.curves", "2.json"]
