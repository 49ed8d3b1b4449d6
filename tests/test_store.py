"""What is written to a store is read from it, once; what was asked for is known; bad calls are one line."""

import json
import math
import os
import pickle
import random
import re
import subprocess
import sys

import numpy as np
import pytest
from pyarrow import csv, parquet
from store_rows import RUNS, complete, fill, flip, pack, parts

from scalemem.spec import run_id
from scalemem.store import Store, StoreError, StoreWarning

# -- what is written is read ------------------------------------------------------------------------------------------


def test_rows_come_back(store):
    store.append_tables(pack(["b", "bad", "a"]), {"pack_size": 3})
    assert complete(store, ["a", "b", "bad"])
    assert store.finished() == {"a": "done", "b": "done", "bad": "diverged"}
    assert store.table("curves")["loss_nats"].to_pylist()[:5] == [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]
    assert store.provenance()["a"] == {"pack_size": 3}
    assert store.tables() == ["curves", "runs"]


def test_another_process_and_a_pickled_store_see_the_same(store):
    ids = fill(store)
    assert complete(Store.open(store.path), ids)
    assert complete(pickle.loads(pickle.dumps(store)), ids)


def test_columns_unite(store):
    store.append("runs", [{"run_id": "a", "status": "done", "n": 1}])
    store.append("runs", [{"run_id": "b", "status": "done", "n": 2.5, "extra": "x"}])
    store.append("runs", [{"run_id": "c", "status": "done", "n": None, "extra": None}])
    table = store.table("runs")
    assert table["n"].to_pylist() == [1.0, 2.5, None]
    assert table["extra"].to_pylist() == [None, "x", None]


def test_nan_is_not_null_and_numpy_scalars_are_numbers(store):
    store.append("runs", [{"run_id": "a", "status": "diverged", "x": math.nan, "y": np.float32(0.5)},
                          {"run_id": "b", "status": "done", "x": None, "y": np.int64(3), "z": np.array(True)}])
    table = store.table("runs")
    assert math.isnan(table["x"][0].as_py())
    assert table["x"][1].as_py() is None
    assert table["y"].to_pylist() == [0.5, 3.0]
    assert table["z"].to_pylist() == [None, True]


def test_a_column_of_two_types_stays_readable_and_is_named(store):
    store.append("runs", [{"run_id": "a", "status": "done", "x": 1}])
    store.append("runs", [{"run_id": "b", "status": "done", "x": "one"}])
    with pytest.warns(StoreWarning, match="table runs, column x: written with different types"):
        assert store.table("runs")["x"].to_pylist() == ["1", "one"]


def test_a_run_written_twice_counts_once(store):
    store.append_tables({"curves": [{"run_id": "a", "e": e} for e in (0, 1)],
                         "runs": [{"run_id": "a", "status": "done", "n": 1}]})
    store.append_tables({"curves": [{"run_id": i, "e": e} for i in "ab" for e in (7, 8, 9)],
                         "runs": [{"run_id": i, "status": "done", "n": 2} for i in "ab"]})
    assert store.table("runs")["n"].to_pylist() == [1, 2]
    assert store.table("curves")["e"].to_pylist() == [0, 1, 7, 8, 9]


def test_curves_without_a_run_are_not_there(store):
    store.append("curves", pack(["a"])["curves"])
    assert store.finished() == {}
    with pytest.raises(StoreError, match="no table 'curves'; legal: none yet"):
        store.table("curves")
    store.append("runs", pack(["a"])["runs"])
    assert complete(store, ["a"])


def test_rows_of_a_killed_attempt_do_not_mix_with_those_of_the_next(store):
    store.append("curves", pack(["a"])["curves"][:3])  # and then it was killed
    later = Store.open(store.path)
    later.append_tables(pack(["a"]))
    assert complete(store, ["a"])


def test_a_curve_in_pieces_stays_in_order(store):
    rows = pack(["a"])["curves"]
    store.append("curves", rows[:2])
    store.append("curves", rows[2:])
    store.append("runs", pack(["a"])["runs"])
    assert complete(store, ["a"])


def test_a_curve_that_was_appended_on_its_own_and_is_damaged_undoes_its_run(store):
    rows = pack(["a"])["curves"]
    store.append("curves", rows[:2])
    store.append("curves", rows[2:])
    store.append("runs", pack(["a"])["runs"])
    flip(parts(store, "curves")[0])
    with pytest.warns(StoreWarning, match="wrong checksum"):
        assert store.finished() == {}
    Store.open(store.path).append_tables(pack(["a"]))
    assert complete(store, ["a"])


def test_a_measure_taken_later_joins_its_run(store):
    ids = fill(store, 1)
    Store.open(store.path).append("quantised", [{"run_id": i, "bits": 8} for i in [*ids, "stranger"]])
    assert store.table("quantised")["run_id"].to_pylist() == ids
    assert complete(store, ids)


@pytest.mark.parametrize(("tables", "said"), [
    ({"runs": [{"status": "done"}]}, "table runs, row 0: run_id = 'None'"),
    ({"curves": [{"run_id": 3}]}, "table curves, row 0: run_id = '3'"),
    ({"runs": [{"run_id": "a", "status": "finished"}]}, "status = 'finished'; must be done or diverged"),
    ({"runs": [{"run_id": "a", "status": "done"}] * 2}, "run_id a twice"),
    ({"a/b": [{"run_id": "a"}]}, "table 'a/b': must be"),
    ({"runs": [{"run_id": "a", "status": "done", "x": 10**30}]}, "column x: values of types int"),
    ({"curves": [{"run_id": "a", "x": 1}, {"run_id": "a", "x": "b"}]}, "column x: values of types int, str"),
])
def test_malformed_rows_write_nothing(store, tables, said):
    with pytest.raises(StoreError, match=re.escape(said)) as caught:
        store.append_tables({"curves": pack(["ok"])["curves"], **tables})
    assert str(caught.value).isprintable()
    assert parts(store) == []
    assert store.finished() == {}


def test_the_finished_store_does_not_show_how_runs_were_packed(tmp_path):
    ids = [f"{i:02}" for i in range(12)]
    tables = []
    for number, size in enumerate((1, 5, 12)):
        store = Store.open(tmp_path / str(number), create=True)
        shuffled = random.Random(size).sample(ids, len(ids))
        for i in range(0, len(ids), size):
            store.append_tables(pack(shuffled[i:i + size]))
        tables.append((store.table("runs"), store.table("curves")))
    assert tables[0] == tables[1] == tables[2]


# -- opening ----------------------------------------------------------------------------------------------------------


def test_opening_what_is_no_store(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    (tmp_path / "empty").mkdir()
    for path, create, said in [("absent", False, "no such store"), ("empty", False, r"not a store \(no store.json"),
                               ("file", True, "a file, not a store"), ("file", False, "a file, not a store"),
                               ("other", True, r"holds thesis.tex and no store.json"),
                               ("file/below", True, "vanished|not a dir")]:
        with pytest.raises(StoreError, match=said) as caught:
            Store.open(tmp_path / path, create=create)
        assert str(caught.value).isprintable()
    assert (tmp_path / "other").exists()
    assert list((tmp_path / "other").iterdir()) == [tmp_path / "other" / "thesis.tex"]
    Store.open(tmp_path / "empty", create=True)
    Store.open(tmp_path / "empty", create=True)
    Store.open(tmp_path / "deep" / "er", create=True)


@pytest.mark.parametrize(("content", "said"), [
    ('{"scalemem_store": 99}', "store format 99, this version reads up to 1; upgrade scalemem"),
    ('{"scalemem_sto', "damaged; restore it"), ("[]", "damaged; restore it"), ("", "damaged; restore it")])
def test_newer_and_damaged_stores_are_refused(store, content, said):
    (store.path / "store.json").write_text(content)
    for create in (False, True):
        with pytest.raises(StoreError, match=said):
            Store.open(store.path, create=create)


# -- what was asked for -----------------------------------------------------------------------------------------------


def test_status_sorts_every_run_into_one_state(store):
    ids = [run_id(run) for run in RUNS]
    store.register("capacity", RUNS[:8])
    store.register("shape", RUNS[6:])
    store.append_tables(pack(ids[:3]))
    store.append("runs", [{"run_id": ids[3], "status": "diverged"}])
    store.fail(ids[2:6], "out of memory", "the\nlast lines")
    with store.lease(ids[5:7]):
        status = json.loads(json.dumps(store.status()))
    assert status["counts"] == {"done": 3, "diverged": 1, "running": 2, "failed": 1, "missing": 5, "total": 12}
    assert status["run_ids"]["failed"] == [ids[4]]
    assert status["run_ids"]["running"] == sorted(ids[5:7])
    assert status["sweeps"]["shape"] == {"done": 0, "diverged": 0, "running": 1, "failed": 0, "missing": 5, "total": 6}
    assert sorted(status["failures"]) == sorted(ids[4:6])
    assert status["failures"][ids[4]]["log_tail"] == "the\nlast lines"
    assert store.missing(RUNS) == RUNS[4:]


def test_the_last_failure_counts_until_the_run_finishes(store):
    store.fail(["a"], "first")
    store.fail(["a", "b"], "second")
    assert {k: v["reason"] for k, v in store.failures().items()} == {"a": "second", "b": "second"}
    store.append_tables(pack(["a"]))
    assert list(store.failures()) == ["b"]


def test_registering_is_idempotent_and_the_last_word_counts(store):
    store.register("s", RUNS)
    (path,) = (store.path / "sweeps").iterdir()
    state = path.stat()
    store.register("s", RUNS)
    assert path.stat().st_ino == state.st_ino
    assert list(store.registered()["s"].values()) == RUNS
    store.register("s", RUNS[:2])
    assert store.status()["counts"]["missing"] == 2
    with pytest.raises(StoreError, match=r"sweep '\.\./s': must be"):
        store.register("../s", RUNS)


def test_a_damaged_registration_is_named(store):
    store.register("s", RUNS)
    flip(store.path / "sweeps" / "s.json")
    with pytest.warns(StoreWarning, match=r"sweeps/s.json: damaged, moved to set-aside/; run the sweep s again"):
        assert store.status()["counts"]["total"] == 0
    store.register("s", RUNS)
    assert store.status()["counts"]["missing"] == len(RUNS)


def test_checkpoints(store):
    assert store.checkpoints() == []
    path = store.checkpoint_dir("pack-1")
    (path / "5").mkdir(parents=True)
    (path / "5" / "weights").write_bytes(b"x")
    assert store.checkpoints() == ["pack-1"]
    store.remove_checkpoints("pack-1")
    store.remove_checkpoints("pack-1")
    assert store.checkpoints() == []
    assert list((store.path / "checkpoints").iterdir()) == []
    with pytest.raises(StoreError, match=r"pack '\.\./up'"):
        store.checkpoint_dir("../up")


def test_a_writer_tidies_what_was_left_an_hour_ago(store):
    old, new = store.path / "parts" / ".tmp-old", store.path / "parts" / ".tmp-new"
    gone = store.path / "checkpoints" / ".removed-old"
    gone.mkdir()
    for path in (old, new):
        path.write_bytes(b"x")
    for path in (old, gone):
        os.utime(path, (0, 0))
    with store.writer():
        assert not old.exists()
        assert not gone.exists()
        assert new.exists()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_export_round_trip(store, tmp_path, suffix):
    store.append("runs", [{"run_id": "a", "status": "done", "spec": '{"a":"b,c"}', "n": 3, "x": 0.1 + 0.2, "ok": True},
                          {"run_id": "b", "status": "diverged", "spec": "{}", "n": 4, "x": math.inf, "ok": False}])
    out = tmp_path / f"runs{suffix}"
    store.export(out)
    read = csv.read_csv(out) if suffix == ".csv" else parquet.read_table(out)
    assert read.to_pylist() == store.table("runs").to_pylist()
    store.append("curves", [{"run_id": "a", "e": 1}])
    store.export(out, "runs")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_exports_that_cannot_be_written(store, tmp_path):
    fill(store, 1)
    for out, said in [("x.xlsx", "cannot write .xlsx; legal: .csv, .parquet"), ("x", "a file without suffix"),
                      ("no/x.csv", "vanished")]:
        with pytest.raises(StoreError, match=said):
            store.export(tmp_path / out)
    with pytest.raises(StoreError, match="no table 'runz'; legal: curves, runs"):
        store.export(tmp_path / "x.csv", "runz")


def test_without_file_locks_a_store_is_read_but_not_written(store):
    """As on Windows: no fcntl, no fork."""
    ids = fill(store)
    code = f"""
import os, sys
import random  # itself in want of a fork
sys.modules["fcntl"] = None
del os.register_at_fork
import scalemem, scalemem.tables, scalemem.fitting
from scalemem.store import Store, StoreError
store = Store.open({str(store.path)!r})
print(len(store.finished()), store.table("runs").num_rows)
for held in (store.writer, lambda: store.lease(["a"])):
    try:
        with held():
            pass
    except StoreError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts, *errors = done.stdout.splitlines()
    assert counts == f"{len(ids)} {len(ids)}"
    assert errors == ["writing to a store needs file locks, which are there on Linux and macOS; run there, analyse anywhere"] * 2
