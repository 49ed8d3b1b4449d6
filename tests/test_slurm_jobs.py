"""Sweeps as jobs of a real Slurm, where one runs (`.ci/slurm` starts it): signalled, interrupted, killed and shared.

SCALEMEM_KILLS says how many kills (3 by default; 40 before a release), of workers, launchers and slurmd; with 20 or more a time limit is
waited for, and a launcher interrupted, too. SCALEMEM_SEED chooses the moments.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_reliability import RUNS, content, undisturbed  # noqa: F401

from scalemem import checkpoint, launch, locking, orders, sbatch
from scalemem.durable import read_lines
from scalemem.orders import Order
from scalemem.spec import run_id
from scalemem.store import Store

KILLS = int(os.environ.get("SCALEMEM_KILLS", "3"))
ROOT = Path(__file__).parents[1]


def _answers():
    try:
        told = subprocess.run(["sinfo", "-h", "-t", "idle,mix,alloc", "-o", "%D"], capture_output=True, text=True, check=True, timeout=10)
        return told.stdout != ""
    except (OSError, subprocess.SubprocessError):
        return False


real = pytest.mark.skipif(not _answers(), reason="no Slurm answers here; .ci/slurm starts one, as root on Debian")


LAUNCH = """
import json, sys
sys.path[:0] = [sys.argv[2]]
from scalemem import launch, sbatch
from scalemem.store import Store
from test_reliability import RUNS
slurm = sbatch.Slurm(array_limit=2, time=sys.argv[3] if len(sys.argv) > 3 else None, more={"signal_delay_s": "5"})
try:
    print(json.dumps(launch.run(RUNS, Store.open(sys.argv[1]), report=lambda e: print(json.dumps(e), flush=True), slurm=slurm)), flush=True)
except launch.Interrupted as stop:
    print(stop, flush=True)
"""
DONE = {"done": 12, "diverged": 0, "failed": 0}


def start(path, *more):
    env = {**os.environ, "SCALEMEM_CHECKPOINT_S": "0.05", "SCALEMEM_POLL_S": "0.3"}
    return subprocess.Popen([sys.executable, "-c", LAUNCH, str(path), str(Path(__file__).parent), *more], env=env, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.fixture
def fresh(tmp_path):
    """Makes stores; whatever jobs they have in the end are cancelled."""
    made = []

    def make():
        made.append(Store.open(tmp_path / f"store-{len(made)}", create=True))
        return made[-1]

    yield make
    for store in made:
        for name in orders.names(store):
            subprocess.run(["scancel", "--name", sbatch.PREFIX + name], check=False)


def until(what, timeout_s=240.0):
    """Waits for something to be true, and returns it."""
    end = time.monotonic() + timeout_s
    while not (found := what()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return found


def job_processes(path):
    """The processes of a store's jobs that train."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = file.read_bytes().split(b"\0")
            if b"submitit.core._submit" in words and any(word.startswith(str(path).encode()) for word in words) and b"srun" not in words[0]:
                found.append(int(file.parent.name))
    return found


def committed(store):
    """Every time that a run was written, over all manifests."""
    return [key for file in (store.path / "manifest").glob("*.jsonl") for r in read_lines(file)[0] for key in r.get("statuses", ())]


def checkpointed(store):
    return any(checkpoint.epochs(store.checkpoint_dir(name)) for name in store.checkpoints())


def whole(store, undisturbed):  # noqa: F811
    """Each run finished, was written once, and equals that of an undisturbed local launch bit for bit."""
    assert content(store) == undisturbed
    assert sorted(committed(store)) == sorted(map(run_id, RUNS))
    assert store.failures() == {}


@real
def test_two_launchers_on_one_store_share_the_work(fresh, undisturbed):  # noqa: F811
    store = fresh()
    process = start(store.path)
    until(lambda: locking.leases(store.path / "leases"))
    known = sbatch.jobs(store)
    assert {job["state"] for job in known} <= {"RUNNING", "PENDING"}
    assert known
    assert known[0]["node"]
    assert launch.run(RUNS, store, "cpu", workers=1, report=lambda event: None) == DONE
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1]) == DONE
    events = [json.loads(line) for line in out.splitlines()[:-1]]
    assert {e["run_id"] for e in events if e["event"] == "run"} == set(map(run_id, RUNS))
    assert sum(e["flops"] for e in events if e["event"] == "progress") == pytest.approx(events[0]["flops"])
    whole(store, undisturbed)
    assert sbatch.jobs(store) == []
    assert orders.names(store) == store.checkpoints() == []


def stops(order):
    """How often a pack of an order was left with a checkpoint."""
    return sum(state == "stopped" for tried in order.states().values() for state in tried.values())


@real
@pytest.mark.parametrize("limit", [None, pytest.param("1", marks=pytest.mark.skipif(KILLS < 20, reason="waits for a time limit of a minute"))])
def test_signalled_jobs_are_queued_again_and_finish_without_a_launcher(fresh, undisturbed, limit, tmp_path, monkeypatch):  # noqa: F811
    """The launcher is killed; a job that is signalled, or near its time limit, checkpoints, is queued again and goes on."""
    if limit:  # Slurm sends the signal 25 to 55 seconds after the start: each step of a pack is to take its time
        (tmp_path / "sitecustomize.py").write_text("import time\nfrom scalemem.locking import Lease\nplain = Lease.beat\n"
                                                   "Lease.beat = lambda lease: time.sleep(1.5) or plain(lease)\n")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    store = fresh()
    process = start(store.path, *([limit] if limit else []))
    until(lambda: checkpointed(store))
    process.kill()
    process.communicate()
    order = Order(store, orders.names(store)[0])
    for which in () if limit else ("USR1", "TERM") if KILLS >= 20 else ("USR1",):
        before = stops(order)
        running = [job["job"] for job in sbatch.jobs(store) if job["state"] == "RUNNING"]
        if running:
            subprocess.run(["scancel", "--signal", which, running[0]], check=True)
            until(lambda: stops(order) > before or not order.open())  # noqa: B023
    until(lambda: not order.open(), 600)
    assert stops(order)
    whole(store, undisturbed)
    last = start(store.path)  # the same command: nothing is left to do
    out, err = last.communicate()
    assert last.returncode == 0, err
    assert json.loads(out.splitlines()[-1]) == DONE
    assert json.loads(out.splitlines()[0])["runs"] == 0


@real
@pytest.mark.skipif(KILLS < 20, reason="half a minute: before a release, with SCALEMEM_KILLS=40")
def test_an_interrupt_cancels_the_jobs_and_leaves_checkpoints(fresh, undisturbed):  # noqa: F811
    store = fresh()
    process = start(store.path)
    until(lambda: checkpointed(store))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == "The jobs were cancelled; what they worked on is in checkpoints."
    assert until(lambda: not job_processes(store.path), 30)
    assert sbatch.jobs(store) == []
    assert checkpointed(store) or len(store.finished()) == len(RUNS)
    process = start(store.path)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[-1]) == DONE
    whole(store, undisturbed)


@real
@pytest.mark.skipif(shutil.which("slurmd") is None or os.geteuid() != 0, reason="slurmd is killed, too: needs root")
def test_kills_at_random_moments_lose_nothing(fresh, undisturbed):  # noqa: F811
    """`kill -9` of a process of a job, of the launcher, or of slurmd, in turn and at random moments; what is killed is started again."""
    draw, store, killed = random.Random(int(os.environ.get("SCALEMEM_SEED", "0"))), fresh(), {"worker": 0, "launcher": 0, "slurmd": 0}
    process, ends = start(store.path), []
    while sum(killed.values()) < KILLS:
        target = min(killed, key=lambda name: killed[name])
        moment = draw.choice(["start", "lease", "checkpoint", "checkpoint", "run"])
        seen = len(store.finished())
        until(lambda: process.poll() is not None or {"start": job_processes(store.path), "lease": locking.leases(store.path / "leases"),  # noqa: B023
                                                     "checkpoint": checkpointed(store), "run": len(store.finished()) > seen}[moment])  # noqa: B023
        time.sleep(draw.random() * 0.5)
        if process.poll() is not None:  # this sweep is through
            ends.append((process.communicate(), process.returncode))
            whole(store, undisturbed)
            store = fresh()
            process = start(store.path)
            continue
        if target == "launcher":
            process.kill()
            process.communicate()
            time.sleep(draw.random())
            process = start(store.path)
        elif target == "slurmd":
            os.kill(int(Path("/run/slurmd.pid").read_text()), signal.SIGKILL)
            time.sleep(draw.random())
            subprocess.run([ROOT / ".ci" / "slurm", "slurmd"], check=True)
        else:
            pids = job_processes(store.path)
            if not pids:
                continue
            os.kill(draw.choice(pids), signal.SIGKILL)
        killed[target] += 1
    out, err = process.communicate()
    assert process.returncode == 0, err
    for _ in range(3):  # a pack that was killed too often without getting further has failed: the same command tries it again
        if json.loads(out.splitlines()[-1]) == DONE:
            break
        process = start(store.path)
        out, err = process.communicate()
    assert json.loads(out.splitlines()[-1]) == DONE, out[-2000:]
    whole(store, undisturbed)
    assert all(code == 0 for _, code in ends)
    until(lambda: not job_processes(store.path), 60)
    print(f"{killed} over {len(ends) + 1} stores")
