"""Several processes of one command: packs of one plan on each one's devices, or one model split over the devices of all."""

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from conftest import longer, make_run, one, trained
from test_sharding import RUN, flags

from scalemem import execute, hosts, launch
from scalemem.spec import SpecError, run_id
from scalemem.store import Store

SIM = """
    from conftest import make_run
    from scalemem import Sweep, grid, repeat
    SWEEP = Sweep(make_run(exposures=40), {"n_items": grid(13, 16), "seed": repeat(2)})
"""
ACROSS = """
    import sys
    sys.path[:0] = [sys.argv[1]]
    from scalemem import hosts
    team = hosts.team(f"localhost:{sys.argv[3]}", 2, int(sys.argv[4]))
    team.join()
    import jax
    from conftest import longer
    from test_sharding import RUN
    from scalemem import execute, launch
    from scalemem.store import Store
    assert (len(jax.devices()), len(jax.local_devices())) == (4, 2)
    store, run = Store.open(sys.argv[2], create=True), longer(RUN, 20)
    if team.index == 0:
        with hosts.leading(team):
            (p,) = execute.plan([run], store, "fsdp", 4)
            assert not execute.work(p, store, "fsdp", 4, stopping=lambda: True)
            assert store.checkpoints() == [p.id]
    else:
        hosts.follow(execute.from_json)
    assert launch.run([run], store, team=team, across=True) == {"done": 1, "diverged": 0, "failed": 0}
"""


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def together(sim, store, *argv, devices=1, count=2):
    """A command as so many processes, each with some devices; what each printed as JSON."""
    env = {**os.environ, "XLA_FLAGS": flags(devices), "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ["PYTHONPATH"]])}
    port = free_port()
    started = [subprocess.Popen([sys.executable, "-m", "scalemem", "run", str(sim), "--store", str(store), "--json", "--coordinator",
                                 f"localhost:{port}", "--processes", str(count), "--process-id", str(i), *argv], env=env, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True) for i in range(count)]
    said = [p.communicate(timeout=400) for p in started]
    assert [p.returncode for p in started] == [0] * count, "\n".join(err[-3000:] for _, err in said)
    return [json.loads(out) for out, _ in said]


def sim_of(path, text):
    path.write_text(textwrap.dedent(text))
    return path


def test_two_processes_take_packs_of_one_plan(tmp_path):
    """vmap here: a pack is one computation on a process's own device. Every run once, with the numbers of one process."""
    said = together(sim_of(tmp_path / "four.py", SIM), tmp_path / "store", "--executor", "vmap", "--micro-batch", "4", "--remat")
    store, runs = Store.open(tmp_path / "store"), [make_run(exposures=40, n_items=n, seed=i) for n in (13, 16) for i in (0, 1)]
    assert [{k: s[k] for k in ("done", "diverged", "failed")} for s in said] == [{"done": 4, "diverged": 0, "failed": 0}] * 2
    rows = {row["run_id"]: row for row in store.table("runs").to_pylist()}
    assert sorted(rows) == sorted(map(run_id, runs))
    expected = trained(runs)
    for i, run in enumerate(runs):
        assert rows[run_id(run)]["loss_nats"] == pytest.approx(float(expected.loss_nats[i]), rel=1e-5)


@pytest.mark.skipif("SCALEMEM_SLOW" not in os.environ, reason="each of 4 workers compiles, 90 s of a core; set SCALEMEM_SLOW=1 to run it")
def test_four_processes_give_the_numbers_of_one(store, monkeypatch):
    """A pack each, here, and a worker each."""
    monkeypatch.setattr(execute, "SHORT_RUN_S", 0.0)
    runs, events = [make_run(exposures=20, seed=i) for i in range(4)], []
    assert launch.run(runs, store, "cpu", workers=4, report=events.append) == {"done": 4, "diverged": 0, "failed": 0}
    assert (events[0]["packs"], events[0]["workers"]) == (4, 4)
    rows, expected = {row["run_id"]: row for row in store.table("runs").to_pylist()}, trained(runs)
    for i, run in enumerate(runs):
        assert rows[run_id(run)]["loss_nats"] == pytest.approx(float(expected.loss_nats[i]), rel=1e-5)


def test_one_model_across_two_processes(tmp_path):
    """Two devices in each: four hold a quarter each. The first measures and writes; it leaves a checkpoint, and both go on from it."""
    port, env = free_port(), {**os.environ, "XLA_FLAGS": flags(2)}
    argv = [sys.executable, "-c", textwrap.dedent(ACROSS), str(Path(__file__).parent), str(tmp_path / "store"), str(port)]
    started = [subprocess.Popen([*argv, str(i)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for i in range(2)]
    said = [p.communicate(timeout=400) for p in started]
    assert [p.returncode for p in started] == [0, 0], "\n".join(err[-3000:] for _, err in said)
    run = longer(RUN, 20)
    (row,) = Store.open(tmp_path / "store").table("runs").to_pylist()
    made = Store.open(tmp_path / "store").provenance()[run_id(run)]
    assert (made["executor"], made["devices"]) == ("fsdp", 4)
    alone = one(trained([run], size=1, slots=32, rows=13), 0)
    assert row["loss_nats"] == pytest.approx(float(alone.loss_nats), rel=1e-5)
    assert np.isfinite(row["memorized_bits"])


@pytest.mark.parametrize(("given", "message"), [
    ({"coordinator": "a:1"}, "--processes: missing"),
    ({"coordinator": "a:1", "processes": 2, "process_id": 2}, "--process-id 2: must be 0 to --processes - 1 = 1"),
    ({"coordinator": "a", "processes": 2, "process_id": 0}, "--coordinator 'a': must be HOST:PORT"),
])
def test_what_cannot_be_is_one_line(given, message):
    with pytest.raises(SpecError, match=message) as caught:
        hosts.team(**given)
    assert "\n" not in str(caught.value)


def test_who_started_this_process():
    assert hosts.started_by({}) == ("", 1, 0)
    assert hosts.started_by({"SLURM_JOB_ID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3"}) == ("slurm", 4, 3)
    assert hosts.started_by({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) == ("", 1, 0)  # the batch script, one process
    assert hosts.started_by({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}) == ("openmpi", 2, 1)
    assert hosts.started_by({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}) == ("", 1, 0)
    assert hosts.started_by({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}) == ("tpu", 2, 1)
    assert hosts.started_by({"TPU_WORKER_HOSTNAMES": "a", "TPU_WORKER_ID": "0"}) == ("", 1, 0)
    assert hosts.team() == hosts.Team()
