"""Packs as jobs of Slurm: what is asked of it, its view of a store, orders and tries. Commands are scripts; `test_slurm_jobs.py` has a real one."""

import dataclasses
import functools
import json
import math
import os
import re
import signal
import stat
import sys
import threading

import pytest
from conftest import MODEL, make_pack, make_run
from test_reliability import RUNS, content, undisturbed  # noqa: F401

from scalemem import checkpoint, cli, cluster, execute, launch, locking, memory, orders, pack, paths, sbatch, train, worker
from scalemem.durable import DiskError
from scalemem.orders import Order
from scalemem.spec import SpecError, run_id
from scalemem.store import StoreError

FEW = [make_run(seed=i) for i in range(3)]


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Makes commands of Slurm that are shell scripts; each notes how it was called in CALLS."""
    folder, calls = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(cluster, "POLL_S", 0.02)

    def make(**commands):
        for name, script in {**dict.fromkeys(("sbatch", "squeue", "scancel", "srun", "scontrol"), ""), **commands}.items():
            path = folder / name
            path.write_text(f'#!/bin/bash\necho {name} "$@" >> {calls}\n{script}\n')
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return lambda name: [line for line in (calls.read_text().splitlines() if calls.exists() else []) if line.split()[0] == name]

    return make


def new_order(store, runs=FEW, how="map", tasks=1):
    return Order.write(store, [make_pack([run], size=1) for run in runs], how, 0, tasks)


# -- what is asked of Slurm -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "message"), [
    ({"cpus": 0}, "--cpus 0: must be at least 1"), ({"gpus": -1}, "--gpus -1: must be at least 0"),
    ({"gpu_memory": 8.0}, "--gpu-memory 8: must be above 0, and go with --gpus"),
    ({"array_limit": 0}, "--array-limit 0: must be at least 1"), ({"time": "soon"}, "--time 'soon': must be minutes, HOURS"),
])
def test_options_that_cannot_be_are_one_line(option, message):
    with pytest.raises(SpecError) as error:
        sbatch.Slurm(**option)
    assert str(error.value).startswith(message)
    assert "; " in str(error.value)


@pytest.mark.parametrize(("text", "minutes"), [("90", 90), ("0:30", 1), ("1:30:00", 90), ("2-0", 2880), ("1-1:30", 1530), ("0:00:01", 1)])
def test_times_are_those_of_sbatch(text, minutes):
    assert sbatch.Slurm(time=text).minutes == minutes


@pytest.mark.parametrize(("slurm", "executor", "how", "tasks"), [
    (sbatch.Slurm(cpus=4), "auto", ("map", 0, 0), 4), (sbatch.Slurm(gpus=1, cpus=4), "auto", ("vmap", 0, 0), 1),
    (sbatch.Slurm(gpus=8), "auto", ("shard", 8, 0), 1), (sbatch.Slurm(gpus=8), "vmap", ("vmap", 0, 0), 8),
    (sbatch.Slurm(), "vmap", ("vmap", 0, 0), 1), (sbatch.Slurm(gpus=8), "fsdp", ("fsdp", 8, 8), 1),
    (sbatch.Slurm(gpus=8, cpus=2), "cpu", ("map", 0, 0), 2),
])
def test_the_executor_is_that_of_the_jobs_node(slurm, executor, how, tasks):
    (way,) = cluster.ways(FEW, slurm, executor, paths.Passes())
    assert (way.how, way.devices, way.split) == how
    assert slurm.tasks(how[0]) == tasks


def test_a_model_too_large_for_a_gpu_of_a_job_is_split_over_few_of_them_and_packs_are_no_larger_than_fit():
    large = [make_run(dataclasses.replace(MODEL, d_model=128, n_layers=4, vocab_size=512), seed=i) for i in range(4)]
    need = paths.of(large, "vmap", 0, room=math.inf)[0].memory.total / paths.GB
    slurm = sbatch.Slurm(gpus=8, gpu_memory=0.9 * need)
    ways = cluster.ways([*FEW, *large], slurm, "auto", paths.Passes())
    assert [(way.how, way.devices, way.split, len(way.runs)) for way in ways] == [("shard", 8, 0, len(FEW)), ("fsdp", 8, 2, 4)]
    with pytest.raises(SpecError, match=r"a model of .* parameters needs about .* of each of 4 devices"):
        cluster.ways(large, sbatch.Slurm(gpus=4, gpu_memory=1e-6), "auto", paths.Passes())
    assert [way.how for way in cluster.ways(large, sbatch.Slurm(gpus=8), "auto", paths.Passes())] == ["shard"]  # memory not known
    shape = train.Shape.of(large[0])
    each = memory.of(pack.Pack(shape, tuple(large[:1]), 1), "vmap").total / paths.GB
    sizes = [cluster.size(large * 100, shape, sbatch.Slurm(gpus=2, gpu_memory=gb), 2) for gb in (0, each, 10.1 * each / 0.9)]
    assert sizes == [128, 2, 20]


def test_the_script_of_a_job_asks_for_what_was_asked(store, fake):
    called = fake(sbatch='cp "$1" ' + str(store.path / "script") + "; echo Submitted batch job 7")
    more = {"mem": "4GB", "nice": "100", "signal_delay_s": "30"}
    sbatch.submit(new_order(store, tasks=2), sbatch.Slurm("debug", "1:00:00", cpus=2, array_limit=2, more=more), 3)
    script = (store.path / "script").read_text()
    for line in ("partition=debug", "time=60", "array=0-2%2", "ntasks-per-node=2", "cpus-per-task=1", "mem=4GB", "nice=100", "requeue",
                 "signal=USR2@30", f"job-name=scalemem-{orders.names(store)[0]}"):
        assert f"#SBATCH --{line}\n" in script
    assert "--kill-on-bad-exit=0" in script
    assert len(called("sbatch")) == 1


def test_without_a_time_the_partitions_is_used_and_gpus_are_asked_for(store, fake):
    fake(sbatch='cp "$1" ' + str(store.path / "script") + "; echo Submitted batch job 7")
    sbatch.submit(new_order(store, how="shard"), sbatch.Slurm(gpus=4, cpus=8), 1)
    script = (store.path / "script").read_text()
    assert "--time" not in script
    assert "#SBATCH --gpus-per-node=4\n" in script
    assert "#SBATCH --cpus-per-task=8\n" in script
    assert "--array" not in script


def test_what_sbatch_refuses_is_one_line_and_leaves_no_order(store, fake, capfd):
    fake(sbatch="echo 'sbatch: error: invalid partition specified: nowhere' >&2; exit 1")
    with pytest.raises(SpecError, match=r"^--launcher slurm: the job was refused: .*invalid partition specified: nowhere.*; change what .*$"):
        launch.run(FEW, store, report=lambda event: None, slurm=sbatch.Slurm("nowhere"))
    assert capfd.readouterr() == ("", "")
    assert orders.names(store) == []


def test_without_slurm_or_submitit_there_is_one_line(tmp_path, monkeypatch, fake, capsys):
    sim = tmp_path / "sim.py"
    sim.write_text("raise SystemExit('not reached')")
    command = ["run", "capacity", "--scale", "smoke", "--store", str(tmp_path / "store"), "--launcher", "slurm"]
    fake()
    with monkeypatch.context() as m:
        m.setitem(sys.modules, "submitit", None)
        assert cli.main(command) == 2
        assert capsys.readouterr().err == ("scalemem: error: --launcher slurm: needs submitit, which is not installed; "
                                           "pip install 'scalemem[slurm]'\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(command) == 2
    assert capsys.readouterr().err.startswith("scalemem: error: --launcher slurm: Slurm's sbatch, squeue, scancel and srun are not all here; run ")
    assert cli.main([*command[:-2], "--partition", "debug"]) == 2
    assert capsys.readouterr().err == "scalemem: error: --partition: is of --launcher slurm; add that, or leave it out\n"
    assert cli.main([*command, "--workers", "3"]) == 2
    assert "--workers 3: is of --launcher local; use --array-limit" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


# -- the cluster's view ---------------------------------------------------------------------------------------------------

SQUEUE = "echo '7_1|scalemem-{0}|PENDING|Resources||0:00'; echo '7_0|scalemem-{0}|RUNNING|None|node-3|1-02:03:04'"


def test_status_shows_the_clusters_view(store, fake, capsys):
    called = fake()
    assert cli.main(["status", str(store.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["jobs"] == []
    assert called("squeue") == []  # nobody is asked about a store without orders
    order = new_order(store)
    fake(squeue=SQUEUE.format(order.name))
    assert cli.main(["status", str(store.path), "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["cluster"] == ""
    assert body["jobs"] == [
        {"job": "7_1", "order": order.name, "state": "PENDING", "reason": "Resources", "node": "", "elapsed_s": 0},
        {"job": "7_0", "order": order.name, "state": "RUNNING", "reason": "", "node": "node-3", "elapsed_s": 93784}]
    assert cli.main(["status", str(store.path)]) == 0
    out = capsys.readouterr().out
    assert "job 7_1: pending (Resources)\n" in out
    assert "job 7_0: running on node-3 for " in out


def test_a_slurm_that_does_not_answer_is_no_slurm_without_jobs(store, fake, capsys):
    new_order(store)
    fake(squeue="echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(StoreError, match=r"^squeue: slurm_load_jobs error: Unable to contact slurm controller; wait until"):
        sbatch.jobs(store)
    assert cli.main(["status", str(store.path)]) == 0
    assert "the cluster's view is not known: squeue: slurm_load_jobs error" in capsys.readouterr().out
    assert len(orders.names(store)) == 1


# -- orders and tries -----------------------------------------------------------------------------------------------------


def test_a_pack_that_dies_is_tried_again_then_failed_with_the_end_of_its_log(store, tmp_path, monkeypatch):
    order, log = new_order(store), tmp_path / "log"
    log.write_text("the roof fell in")
    monkeypatch.setattr(orders, "_who", lambda: {"job": "7_0", "host": "node-3", "log": str(log)})
    entry = order.open()[0]
    assert [order.begin(entry) for _ in range(orders.TRIES)] == [1, 2, 3]
    assert order.begin(entry) is None  # three deaths without a word
    failure = store.failures()[entry.run_ids[0]]
    assert (failure["reason"], failure["log_tail"]) == (
        "job 7_0 on node-3 ended without a word: it was killed, or out of memory", "the roof fell in")
    assert [e.id for e in order.open()] == [e.id for e in order.entries[1:]]  # the rest go on
    assert order.begin(entry) is None


def test_tries_that_get_further_or_were_stopped_do_not_count(store, monkeypatch):
    order, further = new_order(store), iter(range(100))
    entry = order.open()[0]
    for _ in range(2 * orders.TRIES):  # preempted
        number = order.begin(entry)
        assert number is not None
        order.end(entry, number, {"event": "stopped"})
    monkeypatch.setattr(checkpoint, "epochs", lambda folder: [next(further)])
    for _ in range(2 * orders.TRIES):  # each dies, but the checkpoint is later
        assert order.begin(entry) is not None
    assert store.failures() == {}
    monkeypatch.setattr(checkpoint, "epochs", lambda folder: [200])
    for _ in range(orders.TRIES):
        number = order.begin(entry)
        assert number is not None
        order.end(entry, number, {"event": "raised", "reason": "ValueError: no", "log_tail": "Traceback"})
    assert order.begin(entry) is None
    assert store.failures()[entry.run_ids[0]]["reason"] == "ValueError: no"


def test_a_job_takes_every_pack_that_is_free_and_is_queued_again_only_after_a_signal(store, fake, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    order, called, asked = new_order(store), fake(squeue="echo RUNNING"), []

    def work(p, store, how, devices, report, stopping):
        """Trains nothing."""
        for which in asked:
            os.kill(os.getpid(), which)
        if not stopping():
            store.append("runs", [{"run_id": run_id(run), "status": "done"} for run in p.runs])
        return not stopping()

    monkeypatch.setattr(execute, "work", work)
    before = {which: signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)}
    try:
        with store.lease(order.entries[0].run_ids):
            orders.serve(order)
        assert sorted(store.finished()) == sorted(key for e in order.entries[1:] for key in e.run_ids)
        assert called("scontrol") == []
        asked.append(signal.SIGUSR1)
        orders.serve(order)
        assert called("scontrol") == ["scontrol requeue 7"]
        assert order.states()[order.entries[0].id] == {1: "stopped"}
        fake(squeue="echo COMPLETING")  # scancel: it is not to come back
        orders.serve(order)
        order.cancel()
        fake(squeue="echo RUNNING")
        orders.serve(order)
        assert called("scontrol") == ["scontrol requeue 7"]
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
    assert len(store.finished()) == 2


def test_a_full_disk_ends_the_job_and_is_not_the_packs_fault(store, monkeypatch):
    def work(*_):
        raise DiskError("store: the disk is full; free some space")

    monkeypatch.setattr(execute, "work", work)
    monkeypatch.setattr(orders.signal, "signal", lambda *_: None)
    order = new_order(store)
    for _ in range(orders.TRIES + 1):
        with pytest.raises(StoreError, match="the disk is full"):
            orders.serve(order)
    assert set(order.states()[order.entries[0].id].values()) == {"stopped"}
    assert store.failures() == {}


def test_jobs_that_cannot_start_are_not_submitted_for_ever(store, fake):
    called = fake(sbatch="echo Submitted batch job 7; echo 'no python here' > $(dirname $1)/7_0_log.err")
    events = []
    counts = launch.run(FEW, store, report=events.append, slurm=sbatch.Slurm())
    assert counts == {"done": 0, "diverged": 0, "failed": 3}
    assert len(called("sbatch")) == orders.TRIES
    assert {(f["reason"], f["log_tail"]) for f in store.failures().values()} == {("no job could start its work", "no python here\n")}
    assert events[-1]["event"] == "failed"
    assert len(orders.names(store)) == 1  # with its logs
    launch.run(FEW, store, report=events.append, slurm=sbatch.Slurm())  # the same command tries again
    assert len(called("sbatch")) == 2 * orders.TRIES


def test_a_damaged_order_is_set_aside_and_planned_anew(store, fake):
    order = new_order(store)
    (order.path / "order.json").write_bytes((order.path / "order.json").read_bytes()[:-9])
    called = fake(squeue=f"echo '7_0|{sbatch.PREFIX}{order.name}|RUNNING|None|node-3|0:01'", sbatch="exit 1")
    events = []
    with pytest.raises(SpecError, match="the job was refused"):
        launch.run(FEW, store, report=events.append, slurm=sbatch.Slurm())
    assert [e["text"] for e in events if e["event"] == "warning"] == [
        f"{order.path}: no order that can be read (JSONDecodeError); it is set aside, and its packs are planned anew"]
    assert (store.path / "set-aside" / f"order-{order.name}" / "order.json").exists()
    assert len(called("sbatch")) == 1


def test_a_local_launch_does_the_rest_and_waits_for_runs_that_jobs_hold(store, monkeypatch):
    runs, events, done = [make_run(n_items=n) for n in (13, 5, 6)], [], []

    def work(p, store, *_):
        done.extend(p.runs)
        store.append("runs", [{"run_id": run_id(run), "status": "done"} for run in p.runs])
        return True

    monkeypatch.setattr(execute, "work", work)
    monkeypatch.setattr(worker, "attempt", functools.partial(worker.attempt, wait_s=0.2))
    held = store.lease([run_id(runs[0])])
    held.__enter__()
    threading.Timer(1.5, held.__exit__, (None, None, None)).start()
    assert launch.run(runs, store, "vmap", report=events.append) == {"done": 3, "diverged": 0, "failed": 0}
    told = [e["text"] for e in events if e["event"] == "warning"]
    assert len(told) == 1
    assert re.fullmatch(rf"1 runs are held by process {os.getpid()} on \S+; waiting for it, or until it ends", told[0])
    assert len(done) == 3
    assert done[2] == runs[0]


def test_half_written_checkpoints_stay_while_somebody_works(store):
    folder = store.checkpoint_dir("abc")
    folder.mkdir()
    with store.lease(["x"]):
        execute.tidy(store)
    assert folder.exists()
    execute.tidy(store)
    assert not folder.exists()


def test_processes_of_jobs_that_see_every_core_choose_different_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(orders.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(orders, "_locks", [])
    monkeypatch.setattr(orders.os, "sched_getaffinity", lambda _: {2, 3, 5}, raising=False)
    monkeypatch.setenv("SLURM_LOCALID", "1")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "3")
    assert orders.core() == 3  # all are this job's: by number of the process
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "1")
    assert [orders.core() for _ in range(4)] == [2, 3, 5, 3]  # the fourth shares one
    for lock in orders._locks:
        lock.__exit__(None, None, None)
    assert orders.core() == 2


def test_a_job_that_is_queued_again_on_another_node_does_not_wait_for_itself(store, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with store.lease(["x"]):
        monkeypatch.setattr(locking.socket, "gethostname", lambda: "node-3")
        for job, restarts, granted in (("7", "0", ()), ("8", "1", ()), ("7", "1", ("x",))):  # its other node, another job, its next life
            monkeypatch.setenv("SLURM_JOB_ID", job)
            monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
            with store.lease(["x"]) as lease:
                assert lease.run_ids == granted
