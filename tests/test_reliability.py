"""`kill -9` of a whole launch at random moments: the finished store equals an undisturbed one bit for bit.

SCALEMEM_KILLS says how many kills (6 by default; 20 before a release).
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

KILLS = int(os.environ.get("SCALEMEM_KILLS", "6"))
RUNS = [make_run(seed=i, n_items=13 + i % 3, exposures=(1500, 1000, 600)[i % 3]) for i in range(12)]

LAUNCH = """
import json, sys
sys.path[:0] = [sys.argv[2]]
from scalemem import launch
from scalemem.store import Store
from test_reliability import RUNS
print("started", flush=True)
result = launch.run(RUNS, Store.open(sys.argv[1]), "cpu", workers=2, report=lambda e: print(e["event"], flush=True))
print(json.dumps(result), flush=True)
"""


def start(path):
    env = {**os.environ, "SCALEMEM_CHECKPOINT_S": "0.05"}
    return subprocess.Popen([sys.executable, "-c", LAUNCH, str(path), str(Path(__file__).parent)], env=env, stdout=subprocess.PIPE,
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
    while kills < KILLS:
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
