"""Plans, the work on a pack, its checkpoints, and the workers: what is interrupted, damaged or killed is gone on with."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import MODEL, SIZE, make_pack, make_run

import scalemem
from scalemem import checkpoint, data, execute, launch, measure, train, worker
from scalemem.pack import Pack
from scalemem.spec import Probe, SpecError, canonical_json, run_id
from scalemem.store import Store

RUNS = [make_run(exposures=40), make_run(exposures=25, seed=1), make_run(exposures=6, n_items=16, seed=2), make_run(exposures=40, seed=3)]


def rows(store, runs=RUNS):
    """Both tables as plain values: the runs once each, in order, and every curve row."""
    runs_, curves = store.table("runs").to_pylist(), store.table("curves").to_pylist()
    assert [r["run_id"] for r in runs_] == sorted(run_id(r) for r in runs)
    for run in runs:
        expected = [e for e in (1, 2, 4, 8, 16, 32) if e <= run.stages[0].exposures]
        assert [c["exposures"] for c in curves if c["run_id"] == run_id(run)] == expected
    return json.dumps(runs_), json.dumps(curves)  # a NaN equals itself here


def new_store(path):
    return Store.open(path, create=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    store = new_store(tmp_path_factory.mktemp("undisturbed") / "store")
    assert execute.work(make_pack(RUNS), store)
    return rows(store)


# -- plans ----------------------------------------------------------------------------------------------------------------


def test_a_plan_has_every_run_once_and_one_shape_a_model():
    wide = dataclasses.replace(MODEL, d_model=16)
    runs = [make_run(seed=i, n_items=n, exposures=e) for i in range(5) for n in (5, 13) for e in (4, 60)] + [make_run(wide), make_run()]
    packs = execute.plan(runs)
    planned = [run_id(r) for p in packs for r in p.runs]
    assert sorted(planned) == sorted({run_id(r) for r in runs})
    assert len({p.shape for p in packs}) == 2
    assert all(len(p.runs) <= p.size == SIZE for p in packs)
    assert [execute.pack_seconds(p) for p in packs] == sorted(map(execute.pack_seconds, packs), reverse=True)
    assert {p.shape for p in packs} == {p.shape for p in execute.plan(runs[::-1])}


def test_a_plan_groups_equal_lengths_for_vmap_and_fills_the_devices():
    runs = [make_run(seed=i, n_items=n) for i in range(5) for n in (5, 13)]
    packs = execute.plan(runs, how="shard", devices=3)
    assert all(p.size % 3 == 0 for p in packs)
    assert all(len({r.stages[0].data.n_items for r in p.runs}) == 1 for p in packs)
    assert {p.shape.micro_batch for p in packs} == {5}


def test_long_runs_have_packs_of_their_own():
    runs = [make_run(seed=i, exposures=1_000_000) for i in range(3)]
    assert [len(p.runs) for p in execute.plan(runs)] == [1, 1, 1]


def test_what_is_done_does_not_change_the_program_of_the_rest(store):
    """The room of a shape is that of the whole sweep, so growing or resuming a sweep compiles nothing anew."""
    runs = [make_run(seed=i, n_items=n) for i, n in enumerate((5, 13, 100))]
    first = {p.shape for p in execute.plan(runs, store)}
    store.append("runs", [{"run_id": run_id(runs[2]), "status": "done"}])
    rest = execute.plan(runs, store)
    assert {p.shape for p in rest} == first
    assert [run_id(r) for p in rest for r in p.runs] == [run_id(r) for p in execute.plan(runs[:2]) for r in p.runs]
    assert execute.plan(runs[2:], store) == []


def test_checkpointed_packs_go_on_first_and_as_they_were(store):
    p = make_pack(RUNS)
    assert not execute.work(p, store, stopping=lambda: True)
    runs = [*RUNS, make_run(seed=9, exposures=500_000)]
    packs = execute.plan(runs, store)
    assert packs[0] == p
    assert [run_id(r) for q in packs[1:] for r in q.runs] == [run_id(runs[-1])]
    assert execute.plan([runs[-1]], store)[0] != p  # not of this sweep


def test_what_is_left_counts_no_finished_runs_and_no_epochs_done(store):
    """After an interruption the plan's event says what is missing, and the progress of the rest adds up to it."""
    first = []
    assert not execute.work(make_pack(RUNS), store, report=first.append, stopping=lambda: store.finished() != {})
    packs = execute.plan(RUNS, store)
    left, total = execute.left(packs, store), sum(map(execute.accounting.train_flops, RUNS))
    assert [len(p.runs) for p in packs] == [4]
    assert left.runs == 3
    assert left.flops == pytest.approx(total - sum(e["flops"] for e in first if e["event"] == "progress"))
    events = []
    launch.run(RUNS, store, "cpu", report=events.append)
    assert (events[0]["runs"], events[0]["flops"]) == (3, left.flops)
    assert sum(e["flops"] for e in events if e["event"] == "progress") == pytest.approx(left.flops)
    assert execute.left(execute.plan(RUNS, store), store) == (0, 0, 0)


def test_the_estimate_rests_on_what_the_store_has_timed(store):
    todo = [make_run(seed=9, exposures=1000)]
    packs = execute.plan(todo, store)
    guess = execute.left(packs, store)
    assert guess.seconds == execute.seconds(todo[0])
    assert execute.work(make_pack(RUNS), store)
    made = store.provenance()[run_id(RUNS[0])]
    assert made["scalemem"] == scalemem.__version__
    assert execute.left(packs, store).seconds == pytest.approx(guess.flops / made["work_flops"] * made["work_seconds"])
    assert execute.left(packs, store, "vmap").seconds == guess.seconds  # of which nothing was timed
    assert execute.plan(todo, store) == packs


SHARD = """
    import json, sys
    sys.path[:0] = sys.argv[1:2]
    import jax
    from conftest import make_run
    from scalemem import execute, launch
    from scalemem.store import Store
    store, runs = Store.open(sys.argv[2], create=True), [make_run(seed=i, exposures=40) for i in range(10)]
    for how, devices in (("map", 1), ("shard", 3), ("shard", 2), ("vmap", 1), ("map", 1)):
        packs = execute.plan(runs, store, how, devices)
        assert all(p.size % devices == 0 for p in packs), (how, [p.size for p in packs])
        assert sorted(r.seed for p in packs for r in p.runs) == list(range(10))
        for p in packs:
            assert not execute.work(p, store, how, devices, stopping=lambda: True)
    print(json.dumps(launch.run(runs, store, "shard")), store.checkpoints())
"""


def test_a_checkpoint_is_gone_on_with_by_its_own_executor_only(tmp_path):
    env = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=3"}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(SHARD), str(Path(__file__).parent), str(tmp_path / "store")],
                          env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == '{"done": 10, "diverged": 0, "failed": 0} []'


@pytest.mark.parametrize(("change", "message"), [
    (lambda r: dataclasses.replace(r, probes=(Probe("capasity"),)), "probe.measure = 'capasity': must be one of capacity"),
    (lambda r: dataclasses.replace(r, model=dataclasses.replace(r.model, arch="gtp")), "model.arch = 'gtp': must be one of gpt"),
    (lambda r: make_run(name="adamm"), "optimizer.name = 'adamm': must be one of adam"),
    (lambda r: make_run(objective="next_tokens"), "stage.objective = 'next_tokens': must be one of next_token"),
    (lambda r: make_run(generator="unifrom"), "data.generator = 'unifrom': must be one of uniform"),
    (lambda r: make_run(exposures=1 << 40), "stage.exposures = 1099511627776: must be fewer than 2^31 steps"),
    (lambda r: make_run(exposures=1 << 30), "stage.exposures = 1073741824: must be fewer than 2^31 steps"),
])
def test_what_cannot_be_run_is_one_line_before_anything_runs(store, change, message):
    events = []
    for call in (lambda runs: execute.plan(runs), lambda runs: launch.run(runs, store, "cpu", report=events.append),
                 lambda runs: launch.run(runs, store, "vmap", report=events.append)):
        with pytest.raises(SpecError, match=re.escape(message)) as error:
            call([RUNS[0], change(RUNS[0])])
        assert len(str(error.value).splitlines()) == 1
        assert "; " in str(error.value)
    assert events == []
    assert store.finished() == {}


def test_a_worker_takes_what_it_has_compiled_unless_something_is_far_longer():
    """Otherwise what nobody has compiled, and else the longest."""
    waiting = [(10.0, 0), (9.0, 0), (8.0, 1), (6.0, 1), (4.0, 2)]
    assert launch.suited(waiting, set(), set()) == 0
    assert launch.suited(waiting, set(), {0}) == 2
    assert launch.suited(waiting, {1}, {0, 1}) == 2
    assert launch.suited(waiting, set(), {0, 1}) == 0
    assert launch.suited(waiting, {2}, {0, 1, 2}) == 0  # what it has compiled is far shorter
    assert launch.suited(waiting[:1], {5}, {5}) == 0


def test_an_unknown_executor_is_one_line(store):
    with pytest.raises(SpecError, match="executor = 'gpu': must be one of auto, cpu, vmap, shard"):
        launch.run(RUNS, store, "gpu")


# -- the work on a pack ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [2, 5])
def test_what_is_interrupted_goes_on_bit_for_bit(store, undisturbed, every):
    """Stopped after every so many calls of the program, each time going on in a new call."""
    calls, sessions = 0, 0

    def stopping():
        nonlocal calls
        calls += 1
        return calls % every == 0

    while not execute.work(execute.plan(RUNS, store)[0] if sessions else make_pack(RUNS), store, stopping=stopping):
        sessions += 1
        assert checkpoint.load_pack(store.checkpoint_dir(make_pack(RUNS).id))
        assert sessions < 50
    assert sessions >= 1
    assert rows(store) == undisturbed
    assert store.checkpoints() == []


def test_checkpoints_of_every_moment_change_nothing(store, undisturbed):
    assert execute.work(make_pack(RUNS), store, checkpoint_s=0)
    assert rows(store) == undisturbed
    assert execute.work(make_pack(RUNS), store)  # nothing is left to do
    assert rows(store) == undisturbed


def test_a_damaged_checkpoint_is_named_set_aside_and_its_work_done_again(store, undisturbed):
    p = make_pack(RUNS)
    calls = iter([False] * 3 + [True])
    assert not execute.work(p, store, stopping=lambda: next(calls))
    folder = store.checkpoint_dir(p.id)
    damaged = 0
    for file in sorted(Path(folder).rglob("*")):
        if file.is_file() and file.suffix != ".json" and file.stat().st_size > 100:
            content = bytearray(file.read_bytes())
            content[: len(content) // 2] = bytes(len(content) // 2)
            file.write_bytes(content)
            damaged += 1
    assert damaged
    events = []
    assert execute.work(execute.plan(RUNS, store)[0], store, report=events.append)
    told = [e["text"] for e in events if e["event"] == "warning"]
    assert "is damaged; moved to set-aside/checkpoint-" in told[0]
    assert len(told) == len(list((store.path / "set-aside").iterdir())) == 1
    assert rows(store) == undisturbed


def test_a_checkpoint_without_its_states_is_done_again(store, undisturbed):
    p = make_pack(RUNS)
    assert not execute.work(p, store, stopping=lambda: True)
    for file in Path(store.checkpoint_dir(p.id)).glob("*.json"):
        file.write_text("{")
    assert [run_id(r) for q in execute.plan(RUNS, store) for r in q.runs]
    assert execute.work(p, store)
    assert rows(store) == undisturbed


@pytest.mark.filterwarnings("ignore::scalemem.durable.StoreWarning")
def test_a_run_lost_from_the_store_while_its_pack_goes_on_keeps_its_curve(store, undisturbed):
    """The short run finished, its part was damaged, and the checkpoint is from later: the pack still knows its curve."""
    assert not execute.work(make_pack(RUNS), store, stopping=lambda: store.finished() != {})
    assert store.finished() == {run_id(RUNS[2]): "done"}
    for part in (store.path / "parts").glob("*.parquet"):
        part.write_bytes(part.read_bytes()[:-9])
    store = Store.open(store.path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert store.finished() == {}
    assert {run_id(RUNS[2]) in str(w.message) for w in told} == {True}
    assert execute.work(execute.plan(RUNS, store)[0], store)
    assert rows(store) == undisturbed


def test_probes_on_the_way_are_in_the_curves(store):
    run = dataclasses.replace(make_run(exposures=5), probes=(Probe("capacity", at="powers_of_two"),))
    execute.work(make_pack([run]), store)
    curve = store.table("curves").to_pylist()
    assert [c["exposures"] for c in curve] == [1, 2, 4]
    assert all(abs(c["memorized_bits"]) < 13 * 35 for c in curve)
    assert store.table("runs").to_pylist()[0]["exposures_done"] == 5


def test_a_row_says_what_was_run(store, undisturbed):
    row = next(r for r in json.loads(undisturbed[0]) if r["run_id"] == run_id(RUNS[1]))
    assert (row["status"], row["exposures_done"], row["exposures"], row["seed"], row["n_items"]) == ("done", 25, 25, 1, 13)
    assert row["steps"] == 75
    assert row["memorized_bits"] <= row["data_bits"] == 13 * 35
    assert row["spec"] == canonical_json(RUNS[1])


def test_the_bits_of_a_new_generator_are_what_it_says(store, monkeypatch):
    """`accounting` knows the uniform one; the row has what the generator of the run says."""
    monkeypatch.setitem(data.GENERATORS, "dull", SimpleNamespace(items=data.get("uniform").items, entropy_bits=lambda run: 7.0))
    run = make_run(generator="dull", exposures=1)
    assert execute.work(make_pack([run]), store)
    row = store.table("runs").to_pylist()[0]
    assert (row["status"], row["data_bits"], row["data_bits_per_param"]) == ("done", 91.0, 91.0 / row["n_params"])
    assert math.isnan(row["data_bits_all_tokens"])


# -- executors and workers ------------------------------------------------------------------------------------------------


def close(a, b):
    """Rows of two stores agree: numbers to 1e-4, everything else exactly."""
    for one, other in zip(json.loads(a[0]), json.loads(b[0]), strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert value == (pytest.approx(other[name], rel=1e-4, abs=1e-3, nan_ok=True) if isinstance(value, float) else other[name]), name


def test_workers_give_the_bits_of_this_process(store, undisturbed):
    events = []
    assert launch.run(RUNS, store, "cpu", workers=2, report=events.append) == {"done": 4, "diverged": 0, "failed": 0}
    assert rows(store) == undisturbed
    assert events[0] == {**events[0], "event": "plan", "runs": 4, "packs": 1, "shapes": 1}
    assert {e["run_id"] for e in events if e["event"] == "run"} == {run_id(r) for r in RUNS}
    flops = sum(e["flops"] for e in events if e["event"] == "progress")
    assert flops == pytest.approx(events[0]["flops"])
    assert launch.run(RUNS, store, "cpu") == {"done": 4, "diverged": 0, "failed": 0}  # nothing is missing: nothing is started
    assert not any(store.status()["workers"])


def test_this_process_gives_the_numbers_of_workers(store, undisturbed):
    assert launch.run(RUNS, store, "vmap") == {"done": 4, "diverged": 0, "failed": 0}
    close(rows(store), undisturbed)


def test_a_killed_worker_is_started_again_and_every_run_finishes_once(store):
    """Killed in the middle of its pack by `kill -9`."""
    runs = [make_run(exposures=8000, seed=i) for i in range(2)]
    killed, events = [], []

    def report(event):
        events.append(event)
        if event["event"] == "progress" and not killed:
            killed.extend(w["pid"] for w in store.status()["workers"])
            os.kill(killed[0], signal.SIGKILL)

    assert launch.run(runs, store, "cpu", workers=1, report=report) == {"done": 2, "diverged": 0, "failed": 0}
    assert len(killed) == 1
    told = [e["text"] for e in events if e["event"] == "warning"]
    assert len(told) == 1
    assert re.fullmatch(r"worker 0 ended with status -9; its pack of [12] runs is tried once more", told[0])
    assert store.table("runs").num_rows == 2
    assert store.table("curves").num_rows == 2 * 13
    assert store.failures() == {}


@pytest.fixture
def raising(tmp_path, monkeypatch):
    """Workers in which the work of the run of 30 exposures raises as soon as it is counted: the whole pack is lost."""
    (tmp_path / "sitecustomize.py").write_text(
        "import scalemem.accounting as a\nplain = a.stage_flops\n"
        "def stage_flops(model, stage):\n    if stage.exposures == 30: raise RuntimeError('the roof\\nfell in')\n    return plain(model, stage)\n"
        "a.stage_flops = stage_flops\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))


def test_a_pack_whose_worker_raises_twice_has_failed_with_its_log(store, raising):
    bad, good, events = make_run(seed=66, exposures=30), [make_run(exposures=2, seed=i) for i in range(SIZE)], []
    counts = launch.run([bad, *good], store, "cpu", workers=1, report=events.append)
    assert counts == {"done": 1, "diverged": 0, "failed": SIZE}  # two packs; the shortest run is in that without the bad one
    failure = store.failures()[run_id(bad)]
    assert failure["reason"] == "RuntimeError: the roof"
    assert "fell in" in failure["log_tail"]
    assert "Traceback" in failure["log_tail"]
    assert [e["event"] for e in events if e["event"] in ("warning", "failed")] == ["warning", "failed"]
    assert store.status()["counts"]["failed"] == SIZE


@pytest.mark.parametrize("executor", ["cpu", "vmap"])
def test_a_failure_that_nobody_is_told_of_warns(store, monkeypatch, executor):
    monkeypatch.setattr(launch.sys, "executable", "/bin/false")
    monkeypatch.setattr(execute, "work", lambda *_: [][0])
    with pytest.warns(launch.FailedRunsWarning, match=r"4 of 4 runs failed; the first: .*; store\.failures\(\) has them all"):
        assert launch.run(RUNS, store, executor, workers=2) == {"done": 0, "diverged": 0, "failed": 4}
    why = {"cpu": "no worker could be started", "vmap": "IndexError: list index out of range"}[executor]
    assert {f["reason"] for f in store.failures().values()} == {why}


def broken(monkeypatch, seed=66):
    """The measure of the run of a seed raises."""
    capacity = measure.get("capacity")

    def raises(run, *args):
        if run.seed == seed:
            raise ZeroDivisionError("no\nitems")
        return capacity(run, *args)

    monkeypatch.setitem(measure.MEASURES, "capacity", raises)


@pytest.mark.parametrize("at", ["end", "powers_of_two"])
def test_a_run_whose_measure_raises_fails_alone(store, monkeypatch, at):
    broken(monkeypatch)
    bad, events = dataclasses.replace(make_run(seed=66, exposures=5), probes=(Probe("capacity", at=at),)), []
    assert execute.work(make_pack([RUNS[2], bad]), store, report=events.append)
    assert store.finished() == {run_id(RUNS[2]): "done"}
    assert list(store.failures()) == [run_id(bad)]
    failure = store.failures()[run_id(bad)]
    assert failure["reason"] == "ZeroDivisionError: no"
    assert "Traceback" in failure["log_tail"]
    told = {"event": "failed", "run_ids": [run_id(bad)], "reason": "ZeroDivisionError: no"}
    assert [e for e in events if e["event"] == "failed"] == [told]
    assert store.checkpoints() == []


def test_in_this_process_a_pack_that_raises_costs_no_other_and_runs_are_leased(store, monkeypatch):
    work, events, leased = execute.work, [], set()

    def sometimes(p, *args):
        if p.runs[0].stages[0].data.n_items == 16:
            raise MemoryError("16 items")
        return work(p, *args)

    def report(event):
        events.append(event)
        leased.update(key for w in store.status()["workers"] for key in w["run_ids"])

    monkeypatch.setattr(execute, "work", sometimes)
    assert launch.run(RUNS, store, "vmap", report=report) == {"done": 3, "diverged": 0, "failed": 1}
    assert store.failures()[run_id(RUNS[2])]["reason"] == "MemoryError: 16 items"
    assert [e for e in events if e["event"] in ("warning", "failed")] == [
        {"event": "warning", "text": "MemoryError: 16 items; its pack of 1 runs is tried once more"},
        {"event": "failed", "run_ids": [run_id(RUNS[2])], "reason": "MemoryError: 16 items", "log": "store.failures()"}]
    assert leased == {run_id(r) for r in RUNS} - {run_id(RUNS[2])}


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGINT])
def test_in_this_process_a_signal_leaves_a_checkpoint(store, which):
    runs, before, sent = [make_run(exposures=3000, seed=i) for i in range(2)], signal.getsignal(which), []

    def report(event):
        if event["event"] == "progress" and not sent:
            sent.append(event)
            os.kill(os.getpid(), which)

    with pytest.raises(launch.Interrupted):
        launch.run(runs, store, "vmap", report=report)
    assert signal.getsignal(which) is before
    assert [execute.checkpoint.epochs(store.checkpoint_dir(name)) for name in store.checkpoints()] == [[1]]
    events = []
    assert launch.run(runs, store, "vmap", report=events.append) == {"done": 2, "diverged": 0, "failed": 0}
    assert sent[0]["flops"] + sum(e["flops"] for e in events if e["event"] == "progress") == pytest.approx(
        2 * execute.accounting.train_flops(runs[0]))
    assert store.checkpoints() == []
    assert store.table("curves").num_rows == 2 * 12


def test_an_order_waits_for_runs_that_another_process_holds(store):
    p = make_pack(RUNS)
    with store.lease([run_id(RUNS[1])]):
        event = worker.attempt(p, store, wait_s=0.3)
        assert re.fullmatch(rf"1 runs are held by process {os.getpid()} on \S+", event["reason"])
        assert event["event"] == "held"
        assert worker.attempt(p, store, stopping=lambda: True) == {"event": "stopped"}
        assert store.finished() == {}
    held = store.lease([run_id(RUNS[1])])
    held.__enter__()
    threading.Timer(0.5, held.__exit__, (None, None, None)).start()
    assert worker.attempt(p, store) == {"event": "done"}
    assert len(store.finished()) == 4


def test_a_worker_that_cannot_be_pinned_tells_xla():
    code = "import os, scalemem.worker as w; w.settle(None, os.getppid()); print(os.environ['XLA_FLAGS']); import jax; jax.devices()"
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "--xla_cpu_multi_thread_eigen=false\n"), done.stderr


def test_a_terminated_launch_leaves_checkpoints_and_goes_on(store):
    """SIGTERM, as a scheduler sends it: the workers checkpoint and leave; the same call goes on."""
    runs = [make_run(exposures=8000, seed=i) for i in range(2)]
    sent = []

    def report(event):
        if event["event"] == "progress" and not sent:
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGTERM)

    assert threading.current_thread() is threading.main_thread()
    with pytest.raises(launch.Interrupted):
        launch.run(runs, store, "cpu", workers=1, report=report)
    assert len(store.checkpoints()) == 1
    assert launch.run(runs, store, "cpu", workers=1) == {"done": 2, "diverged": 0, "failed": 0}
    assert store.checkpoints() == []
    assert store.table("curves").num_rows == 2 * 13


def test_a_second_launcher_is_refused(store):
    from scalemem.store import StoreError

    with Store.open(store.path).writer(), pytest.raises(StoreError, match="is writing to this store"):
        launch.run(RUNS, store, "cpu")


def test_the_order_to_a_worker_is_the_pack():
    p = Pack(train.Shape.of(RUNS[0], 100, 3), tuple(RUNS), 12)
    assert execute.from_json(json.loads(json.dumps(execute.to_json(p)))) == p
