"""A store under what happens to stores: kills, torn and flipped bytes, full disks, two writers."""

import errno
import json
import math
import multiprocessing
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from pyarrow import csv, parquet

from scalemem import durable, locking
from scalemem.spec import DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, run_id
from scalemem.store import Store, StoreError, StoreWarning
from scalemem.sweep import Sweep, grid

BASE = RunSpec(
    model=ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=128, seq_len=32),
    stages=(Stage(data=DataSpec(n_items=128), optimizer=OptimizerSpec(peak_lr=0.02), exposures=125, batch_size=16),),
    probes=(Probe("capacity"),))
RUNS = Sweep(BASE, {"exposures": grid(*range(1, 13))}).runs()


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store", create=True)


def pack(ids, n_rows=5):
    """What a pack of runs writes: a pure function of the run's id."""
    return {
        "curves": [{"run_id": i, "exposures": e, "loss_nats": 1 / (1 + e)} for i in ids for e in range(n_rows)],
        "runs": [{"run_id": i, "status": "diverged" if i == "bad" else "done", "loss_nats": len(i) / 7} for i in ids],
    }


def fill(store, n_packs=4):
    ids = [[f"{p}{k}" for k in range(3)] for p in range(n_packs)]
    for names in ids:
        store.append_tables(pack(names), {"pack_size": 3})
    return [i for names in ids for i in names]


def parts(store, table="*"):
    return sorted((store.path / "parts").glob(f"{table}-*.parquet"))


def complete(store, ids):
    """The store has each run once, with all rows of its curve in order."""
    runs, curves = store.table("runs"), store.table("curves")
    assert runs["run_id"].to_pylist() == sorted(ids)
    assert curves["run_id"].to_pylist() == [i for i in sorted(ids) for _ in range(5)]
    assert curves["exposures"].to_pylist() == list(range(5)) * len(ids)
    assert sorted(store.finished()) == sorted(ids)
    return True


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
    numpy = pytest.importorskip("numpy")
    store.append("runs", [{"run_id": "a", "status": "diverged", "x": math.nan, "y": numpy.float32(0.5)},
                          {"run_id": "b", "status": "done", "x": None, "y": numpy.int64(3), "z": numpy.array(True)}])
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


# -- damage -----------------------------------------------------------------------------------------------------------


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [truncate, flip, Path.unlink, lambda path: path.write_bytes(b"")],
                         ids=["truncated", "flipped", "missing", "empty"])
@pytest.mark.parametrize("table", ["runs", "curves"])
@pytest.mark.parametrize("seen_before", [True, False])
def test_a_damaged_part_is_named_set_aside_and_redone(store, harm, table, seen_before):
    ids = fill(store)
    if seen_before:
        assert complete(store, ids)
    victim = parts(store, table)[1]
    lost = parquet.read_table(victim)["run_id"].unique().to_pylist()
    harm(victim)
    reader = store if seen_before else Store.open(store.path)
    with pytest.warns(StoreWarning, match=victim.name) as caught:
        finished = reader.finished()
    assert all(str(w.message).isprintable() for w in caught)
    assert sorted(finished) == sorted(set(ids) - set(lost))
    assert not victim.exists()
    assert (store.path / "set-aside" / victim.name).exists() == (harm is not Path.unlink)
    with pytest.warns(StoreWarning, match=f"{victim.name}: missing"):  # said until it is redone
        assert reader.status()["counts"]["done"] == len(finished)
    Store.open(store.path).append_tables(pack(lost))
    assert complete(reader, ids)  # and warns no more


def test_a_part_damaged_without_a_trace_in_its_dates_is_found_when_it_is_read(store):
    ids = fill(store)
    assert complete(store, ids)
    victim = parts(store, "curves")[0]
    state = victim.stat()
    flip(victim)
    os.utime(victim, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.warns(StoreWarning, match=f"{victim.name}: wrong checksum, moved to set-aside"):
        assert store.table("curves").num_rows == 5 * 9


def test_damage_to_a_measure_taken_later_does_not_undo_the_run(store):
    ids = fill(store, 1)
    other = Store.open(store.path)
    other.append("quantised", [{"run_id": i, "bits": 8} for i in ids])
    flip(parts(store, "quantised")[0])
    with pytest.warns(StoreWarning, match="3 runs whose quantised it held"):
        assert sorted(store.finished()) == ids


def manifest(store):
    (path,) = (store.path / "manifest").iterdir()
    return path


@pytest.mark.parametrize("cut", [1, 2, 30, 200])
def test_a_torn_last_line_is_ignored(store, cut):
    ids = fill(store)
    os.truncate(manifest(store), manifest(store).stat().st_size - cut)
    assert complete(Store.open(store.path), ids[:9])
    other = Store.open(store.path)
    other.append_tables(pack(ids[9:]))
    assert complete(store, ids)


def test_a_corrupted_manifest_line_is_named_and_its_runs_redone(store):
    ids = fill(store)
    lines = manifest(store).read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"11"', b'"99"')
    lines[2] = b"\x00" * 40 + b"\n"
    manifest(store).write_bytes(b"".join(lines))
    damaged = manifest(store).read_bytes()
    reader = Store.open(store.path)
    with pytest.warns(StoreWarning) as caught:
        assert sorted(reader.finished()) == ids[:3] + ids[9:]
    assert [re.findall(r"line (\d): corrupted", str(w.message)) for w in caught] == [["2"], ["3"]]
    with pytest.warns(StoreWarning), Store.open(store.path).writer() as writer:
        writer.append_tables(pack(ids[3:9]))
    (aside,) = (store.path / "set-aside").iterdir()
    assert aside.read_bytes() == damaged
    assert complete(Store.open(store.path), ids)  # repaired: warns no more


def test_every_flipped_bit_of_a_manifest_is_noticed(store):
    fill(store, 2)
    path, rng = manifest(store), random.Random(0)
    content = path.read_bytes()
    good = durable.read_lines(path)[0]
    for _ in range(200):
        harmed = bytearray(content)
        harmed[rng.randrange(len(content) - 1)] ^= 1 << rng.randrange(8)
        path.write_bytes(harmed)
        records, corrupted = durable.read_lines(path)
        assert corrupted
        assert len(records) < len(good) == 2
        assert all(record in good for record in records)


# -- errors of the disk -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "said"), [
    (errno.ENOSPC, "the disk is full; free some space, then run the same command again"),
    (errno.EROFS, "the file system is read-only"), (errno.EACCES, "permission denied"), (errno.EIO, "the disk fails"),
    (errno.ENOENT, "the path has vanished"), (errno.ELOOP, "Too many levels")])
@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename"])
def test_disk_errors_are_one_line_and_lose_nothing(store, monkeypatch, number, said, call):
    ids = fill(store, 2)

    def content():
        return {path: path.read_bytes() for path in store.path.rglob("*") if path.is_file() and path.stat().st_size}

    before = content()
    real = getattr(os, call)
    for after in range(12):  # the error comes at the first such call, at the second, ...
        calls = iter(range(1000))

        def failing(*args, after=after, calls=calls, **kwargs):
            if next(calls) >= after:
                raise OSError(number, os.strerror(number))
            return real(*args, **kwargs)

        monkeypatch.setattr(os, call, failing)
        message = ""
        try:
            store.append_tables(pack(["x", "y"]))
        except StoreError as error:
            message = str(error)
        monkeypatch.undo()
        if not message:
            break
        assert said in message
        assert message.isprintable()
        assert content() == before
    assert 2 <= after < 11  # several such calls, and the error was tried at each
    assert complete(store, [*ids, "x", "y"])


def test_a_manifest_line_is_written_after_its_parts_and_their_names_are_durable(store, monkeypatch):
    real, synced = os.fsync, []

    def recording(fd):
        synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")))
        real(fd)

    monkeypatch.setattr(os, "fsync", recording)
    store.append_tables(pack(["a"]))
    kinds = [path.parent.name if path.is_file() or path.name.startswith(".tmp") else f"{path.name}/" for path in synced]
    assert kinds == ["parts", "parts", "parts/", "manifest", "manifest/"]


def test_half_a_write_on_a_full_disk_leaves_the_manifest_usable(store, monkeypatch):
    ids, real = fill(store, 1), os.write

    def full(fd, content):
        if b'"kind"' in bytes(content):
            real(fd, bytes(content)[:20])
            raise OSError(errno.ENOSPC, "full")
        return real(fd, content)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreError, match="disk is full"):
        store.append_tables(pack(["x"]))
    monkeypatch.undo()
    store.append_tables(pack(["y"]))
    assert complete(store, [*ids, "y"])


@pytest.mark.parametrize("act", [
    lambda s: s.append_tables(pack(["a"])), lambda s: s.finished(), lambda s: s.table("runs"), lambda s: s.status(),
    lambda s: s.register("sweep", RUNS), lambda s: s.fail(["a"], "why"), lambda s: s.writer().__enter__(),
    lambda s: s.lease(["a"]).__enter__(), lambda s: s.checkpoints(), lambda s: s.failures(),
    lambda s: Store.open(s.path)])
def test_a_store_whose_path_vanishes(store, act):
    store.path.rename(store.path.with_name("elsewhere"))
    with pytest.raises(StoreError, match=r"vanished|no such store") as caught:
        act(store)
    assert str(caught.value).isprintable()
    assert not store.path.exists()


def test_a_read_only_store_is_read(store, monkeypatch):
    ids = fill(store)
    real = os.open

    def read_only(path, flags, *args, **kwargs):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "read-only")
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr(os, "rename", lambda *a: read_only("", os.O_WRONLY))
    reader = Store.open(store.path)
    assert complete(reader, ids)
    assert reader.status()["counts"]["done"] == len(ids)
    for write in (lambda: reader.append_tables(pack(["x"])), lambda: reader.writer().__enter__(),
                  lambda: reader.register("s", RUNS), lambda: reader.fail(["x"], "why")):
        with pytest.raises(StoreError, match="read-only"):
            write()
    flip(parts(store, "runs")[0])
    with pytest.warns(StoreWarning, match="wrong checksum; 3 runs"):
        assert len(reader.finished()) == len(ids) - 3


# -- several processes ------------------------------------------------------------------------------------------------

WRITER = """
    import sys, time
    sys.path[:0] = {paths!r}
    from scalemem.store import Store
    from test_store import pack
    store = Store.open({store!r}, create=True)
    with store.writer():
        print("ready", flush=True)
        finished = store.finished()
        for i in range({n}):
            ids = [f"{{i:03}}{{k}}" for k in range(3)]
            with store.lease(ids):
                if not finished.keys() >= set(ids):
                    store.append_tables(pack(ids))
        time.sleep({rest})
"""


def spawn(path, n=0, rest=0.0):
    code = textwrap.dedent(WRITER).format(paths=[str(Path(__file__).parents[1]), str(Path(__file__).parent)],
                                          store=str(path), n=n, rest=rest)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ready(process):
    """Waits until the process holds the store."""
    assert process.stdout.readline() == "ready\n"


def test_killed_at_random_moments_the_finished_store_equals_the_undisturbed_one(tmp_path):
    n, rng = 100, random.Random(int(os.environ.get("SEED", "0")))
    undisturbed = Store.open(tmp_path / "undisturbed", create=True)
    for i in range(n):
        undisturbed.append_tables(pack([f"{i:03}{k}" for k in range(3)]))
    path, seen = tmp_path / "killed", 0
    for _ in range(10):
        process = spawn(path, n)
        ready(process)
        time.sleep(rng.uniform(0, 0.15))
        process.kill()
        process.communicate()
        found = Store.open(path)
        assert len(found.finished()) >= seen  # what was once there stays
        seen = len(found.finished())
        if seen:
            assert found.table("curves").num_rows == 5 * seen == 5 * found.table("runs").num_rows
        assert found.status()["counts"]["running"] == 0
    process = spawn(path, n)
    assert process.communicate()[1] == ""
    finished = Store.open(path)
    assert finished.table("runs") == undisturbed.table("runs")
    assert finished.table("curves") == undisturbed.table("curves")


def test_a_second_writer_is_refused_and_a_killed_one_is_not_waited_for(store):
    process = spawn(store.path, rest=60)
    ready(process)
    with pytest.raises(StoreError) as caught, store.writer():
        pass
    said = rf"{store.path}: process {process.pid} on \S+ is writing to this store since 20\S+ \S+; wait for it"
    assert re.match(said, str(caught.value))
    assert str(caught.value).isprintable()
    store.append_tables(pack(["a"]))  # appending is safe all the same
    second = spawn(store.path)
    assert "StoreError" in second.communicate()[1]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with store.writer() as writer:
        assert complete(writer, ["a"])
    with store.writer(), pytest.raises(StoreError, match=f"process {os.getpid()} on"), store.writer():
        pass


def test_errors_of_the_work_under_a_lock_are_not_taken_for_errors_of_the_store(store):
    with pytest.raises(FileNotFoundError), store.writer(), store.lease(["a"]):
        Path("/no/such/file").read_bytes()
    with store.writer():
        assert store.status()["counts"]["running"] == 0


def _hold(ready, rest):
    ready.set()
    time.sleep(rest)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_do_not_keep_the_lock(store, method):
    context = multiprocessing.get_context(method)
    ready = context.Event()
    with store.writer(), store.lease(["a"]):
        child = context.Process(target=_hold, args=(ready, 60))
        child.start()
        assert ready.wait(30)
        popen = subprocess.Popen(["sleep", "60"])
        with pytest.raises(StoreError):  # the child that closed its copy has not freed ours
            store.writer().__enter__()
        assert store.status()["counts"]["running"] == 1
    try:
        with store.writer():
            assert store.status()["counts"]["running"] == 0
    finally:
        child.kill()
        child.join()
        popen.kill()
        popen.wait()


def test_a_fork_appends_to_a_manifest_of_its_own(store):
    store.append_tables(pack(["a"]))
    pid = os.fork()
    if not pid:
        store.append_tables(pack(["b"]))
        os._exit(0)
    os.waitpid(pid, 0)
    store.append_tables(pack(["c"]))
    assert complete(store, ["a", "b", "c"])
    assert len(list((store.path / "manifest").iterdir())) == 2


def test_leases_grant_no_run_twice(store):
    with store.lease(["a", "b", "a"]) as first, Store.open(store.path).lease(["b", "c"]) as second:
        assert (first.run_ids, second.run_ids) == (("a", "b"), ("c",))
        assert store.status()["run_ids"]["running"] == ["a", "b", "c"]
        assert {w["pid"] for w in store.status()["workers"]} == {os.getpid()}
        first.beat()
    with store.lease(["a", "b", "c"]) as third:
        assert third.run_ids == ("a", "b", "c")
    assert store.status()["workers"] == []


def test_a_lease_of_another_host_lives_by_its_heartbeat(store, monkeypatch):
    with store.lease(["a"]) as lease:
        monkeypatch.setattr(locking.socket, "gethostname", lambda: "another")
        assert store.status()["counts"]["running"] == 1
        os.utime(lease.path, (0, 0))
        assert store.status()["counts"]["running"] == 0
        lease.beat()
        assert store.status()["counts"]["running"] == 1


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
