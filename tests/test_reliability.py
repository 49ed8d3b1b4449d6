"""`kill -9` at random moments, of launchers and workers of a local sweep and of a sharded run: the store in the end equals an undisturbed one.

Bit for bit. SCALEMEM_KILLS says how many kills in all (5 by default; 40 before a release): half of a local sweep, a quarter of its workers
alone, a quarter of a run that is spread over 8 devices.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import make_run

from scalemem import launch
from scalemem.spec import run_id
from scalemem.store import Store

KILLS = int(os.environ.get("SCALEMEM_KILLS", "5"))
LOCAL, OF_WORKERS, SHARDED = KILLS - 2 * (KILLS // 4), KILLS // 4, KILLS // 4
RUNS = [make_run(seed=i, n_items=13 + i % 3, exposures=(1500, 1000, 600)[i % 3]) for i in range(12)]

LAUNCH = """
import json, sys
sys.path[:0] = [sys.argv[2]]
from scalemem import launch
from scalemem.store import Store
from test_reliability import RUNS
print("started", flush=True)
result = launch.run(RUNS, Store.open(sys.argv[1]), sys.argv[3], workers=2, report=lambda e: print(e["event"], flush=True))
print(json.dumps(result), flush=True)
"""


def start(path, executor="cpu"):
    flags = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"} if executor == "shard" else {}
    env = {**os.environ, "SCALEMEM_CHECKPOINT_S": "0.05", **flags}
    return subprocess.Popen([sys.executable, "-c", LAUNCH, str(path), str(Path(__file__).parent), executor], env=env, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, start_new_session=True)


def content(store):
    """Both tables as they are, each run once and its curve whole."""
    runs, curves = store.table("runs").to_pylist(), store.table("curves").to_pylist()
    assert [r["run_id"] for r in runs] == sorted(map(run_id, RUNS))
    for run in RUNS:
        powers = [1 << i for i in range(12) if 1 << i <= run.stages[0].exposures]
        assert [c["exposures"] for c in curves if c["run_id"] == run_id(run)] == powers
    return {"runs": json.dumps(runs), "curves": json.dumps(curves)}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    store = Store.open(tmp_path_factory.mktemp("undisturbed") / "store", create=True)
    assert launch.run(RUNS, store, "cpu", workers=2) == {"done": 12, "diverged": 0, "failed": 0}
    return content(store)


def processes(path):
    """Living processes that were started for a store, workers without work among them: their command lines name it."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(path).encode() in file.read_bytes().split(b"\0"):
                found.append(int(file.parent.name))
    return found


def leaves_no_worker(path):
    """Workers die with their launcher, also those that start or wait: none is there for long, and nobody holds a lease."""
    for _ in range(200):
        if not processes(path) and not Store.open(path).status()["workers"]:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_a_worker_is_seen_from_its_start_to_its_end(tmp_path):
    path = tmp_path / "store"
    Store.open(path, create=True)
    command = [sys.executable, "-m", "scalemem.worker", str(path), "-", str(os.getpid())]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert worker.stdin is not None
    assert worker.stdout is not None
    while not processes(path):  # Popen returns a moment before the kernel shows the command line
        assert worker.poll() is None
    assert processes(path) == [worker.pid]
    assert json.loads(worker.stdout.readline()) == {"event": "ready"}
    assert processes(path) == [worker.pid]
    worker.stdin.close()
    assert worker.wait(30) == 0
    worker.stdout.close()
    assert leaves_no_worker(path)


def test_a_worker_whose_launcher_died_while_it_started_leaves(tmp_path):
    path = tmp_path / "store"
    Store.open(path, create=True)
    command = [sys.executable, "-m", "scalemem.worker", str(path), "-", "1"]
    done = subprocess.run(command, input="", capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "process 1, which started this worker, has ended\n")


def test_kills_at_random_moments_lose_nothing(tmp_path, undisturbed):
    """Half of the kills are of the launcher alone, half of its process group too; some while it starts, most while it trains."""
    draw, path, kills, finished = random.Random(0), tmp_path / "store", 0, 0
    store = Store.open(path, create=True)
    while kills < LOCAL:
        process = start(path)
        assert process.stdout is not None
        if draw.random() < 0.8:
            wanted, seen = draw.choice([2, 2, 3, 4, 6]), 0
            for line in process.stdout:
                seen += line.strip() in ("progress", "run")
                if seen == wanted:
                    break
            time.sleep(draw.random() * 0.3)
        else:
            time.sleep(draw.random() * 4)
        ended = process.poll() is not None
        with contextlib.suppress(ProcessLookupError):
            if draw.random() < 0.5:
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert ended or process.returncode == -signal.SIGKILL
        kills += not ended
        assert leaves_no_worker(path)
        if len(store.finished()) == len(RUNS):  # the sweep was through before the kills were
            assert content(store) == undisturbed
            path = tmp_path / f"store-{kills}"
            store, finished = Store.open(path, create=True), finished + 1
    last = start(path)
    out, err = last.communicate()
    assert last.returncode == 0, err
    assert json.loads(out.splitlines()[-1]) == {"done": 12, "diverged": 0, "failed": 0}
    got = content(store)
    assert got == undisturbed
    assert store.failures() == {}
    assert store.checkpoints() == []
    print(f"{kills} kills over {finished + 1} stores")


def finish(process):
    """What a launch printed when it was through."""
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1]) == {"done": 12, "diverged": 0, "failed": 0}, out + err
    return out


def wait_for(process, wanted):
    """Until a launch has told of so many events."""
    seen = 0
    for line in process.stdout:
        seen += line.strip() in ("progress", "run")
        if seen == wanted:
            return True
    return False


def test_a_sharded_run_that_is_killed_goes_on(tmp_path):
    """One process over 8 devices."""
    undisturbed, path, draw = tmp_path / "undisturbed", tmp_path / "killed", random.Random(1)
    Store.open(undisturbed, create=True)
    finish(start(undisturbed, "shard"))
    store, kills = Store.open(path, create=True), 0
    while kills < SHARDED:
        process = start(path, "shard")
        if wait_for(process, draw.choice([1, 2, 3])):
            time.sleep(draw.random() * 0.3)
        kills += process.poll() is None
        process.kill()
        process.communicate()
        assert leaves_no_worker(path)
        if len(store.finished()) == len(RUNS):
            path = tmp_path / f"killed-{kills}"
            store = Store.open(path, create=True)
    finish(start(path, "shard"))
    assert content(store) == content(Store.open(undisturbed))
    assert store.failures() == {}
    assert store.checkpoints() == []


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
@pytest.mark.skipif(KILLS < 20, reason="a minute and a half: before a release, with SCALEMEM_KILLS=40; test_execute.py kills one worker")
def test_workers_that_are_killed_are_replaced(tmp_path, undisturbed):
    """A pack may lose its worker once in a launch; more often, its runs have failed, and the next launch goes on with them."""
    path, draw, kills = tmp_path / "killed", random.Random(2), 0
    store = Store.open(path, create=True)
    while kills < OF_WORKERS:
        process = start(path)
        if wait_for(process, draw.choice([2, 3])):
            time.sleep(draw.random() * 0.3)
        victims = [pid for pid in processes(path) if pid != process.pid]
        for pid in victims[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                kills += 1
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert leaves_no_worker(path)
        if json.loads(out.splitlines()[-1])["failed"] == 0:
            assert content(store) == undisturbed
            path = tmp_path / f"killed-{kills}"
            store = Store.open(path, create=True)
    finish(start(path))
    assert content(store) == undisturbed


def test_two_launchers_on_one_store_do_no_run_twice(tmp_path, undisturbed):
    """Whichever comes second is refused while the first works, and finds nothing to do afterwards."""
    path = tmp_path / "store"
    store = Store.open(path, create=True)
    both = [start(path), start(path)]
    ended = [process.communicate() for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes in ([0, 0], [0, 1])
    for (out, err), process in zip(ended, both, strict=True):
        if process.returncode:
            assert "is writing to this store" in err.splitlines()[-1]
            assert "plan" not in out
    assert sum(out.splitlines().count("run") for out, _ in ended) == len(RUNS)
    assert content(store) == undisturbed
    lines = [line for file in (path / "manifest").iterdir() for line in file.read_text().splitlines()]
    written = [key for line in lines for key in json.loads(line).get("statuses", {})]
    assert sorted(written) == sorted(map(run_id, RUNS))
