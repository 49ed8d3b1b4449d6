"""A store under what happens to stores: kills, torn and flipped bytes, full disks, two writers."""

import errno
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from pyarrow import parquet
from store_rows import RUNS, complete, fill, flip, pack, parts, truncate

from scalemem import durable, locking
from scalemem.store import Store, StoreError, StoreWarning

# -- damage -----------------------------------------------------------------------------------------------------------


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

# Python 3.12 and JAX, where other tests of the session have loaded it, warn of any fork
FORKS = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning", "ignore:os.fork:RuntimeWarning")

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


@FORKS
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


@FORKS
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
