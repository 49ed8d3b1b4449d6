"""Where packs run: pinned worker processes, one a CPU core, or this process with its accelerators, or jobs of a cluster."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import selectors
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scalemem import cluster, execute, export_model, hosts, keeping, packsize, paths, train
from scalemem.durable import DiskError, one_line
from scalemem.keeping import Keep
from scalemem.pack import Pack
from scalemem.spec import RunSpec, SpecError, run_id
from scalemem.store import Store
from scalemem.sweep import Sweep
from scalemem.worker import Interrupted

Report = Callable[[dict[str, Any]], None]

EXECUTORS = ("auto", "cpu", "vmap", "shard", "fsdp")
TRIES = 2  # of a pack whose worker died or raised
POLL_S = 0.2  # how soon a signal is noticed while nothing happens
NEARLY = 0.5  # of the longest pack's time, in which a worker may choose: what it has compiled saves seconds, a long pack left for last costs them
LEAVE_S = 30.0  # after an interrupt, how long a worker may take to checkpoint


class FailedRunsWarning(UserWarning):
    """Runs failed in a call of `run` that nobody reported to."""


def cores() -> list[int | None]:
    """The CPU cores that this process may use."""
    return list(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None] * (os.cpu_count() or 1)


def _legal(executor: str) -> str:
    if executor not in EXECUTORS:
        raise SpecError(f"executor = {executor!r}: must be one of {', '.join(EXECUTORS)}; choose one of these")
    return executor


def choose(executor: str) -> tuple[str, int]:
    """(executor, devices): "auto" is workers on the cores of a CPU, vmap on one accelerator, shard on several."""
    if _legal(executor) == "cpu":
        return "cpu", 0
    import jax

    devices = jax.local_devices()
    if executor == "auto":
        executor = "cpu" if devices[0].platform == "cpu" else "vmap" if len(devices) == 1 else "shard"
    return executor, len(devices) if executor in ("shard", "fsdp") else 0


def ways(runs: Sequence[RunSpec], executor: str = "auto", passes: paths.Passes = paths.Passes(), across: bool = False) -> list[paths.Path]:  # noqa: B008
    """Which runs take which executor on these devices, and whether they fit (`scalemem.paths`); `across`: the devices of all processes are one."""
    import jax

    if across:
        if _legal(executor) not in ("auto", "fsdp"):
            raise SpecError(f"--executor {executor}: must be fsdp, or left out, with --across-hosts; only one model is split over hosts")
        if passes.split:
            raise SpecError(f"--split {passes.split}: cannot be with --across-hosts, which splits a model over all devices; leave one of them out")
        return paths.of(runs, "fsdp", len(jax.devices()), passes)
    return paths.of(runs, *choose(executor), passes, auto=len(jax.local_devices()) if executor == "auto" else 0)


def run(sweep: Sweep | Sequence[RunSpec], store: Store, executor: str = "auto", workers: int | None = None,
        report: Report | None = None, slurm: cluster.Slurm | None = None, keep: Keep | None = None,
        passes: paths.Passes = paths.Passes(), team: hosts.Team = hosts.Team(), across: bool = False) -> dict[str, int]:  # noqa: B008
    """Runs what `sweep` has and the store lacks, and returns how many runs ended how; the same call goes on after a stop.

    Args:
      sweep: a Sweep, or its runs.
      store: opened for writing; this call holds it.
      executor: "cpu" (one pinned process a core), "vmap", "shard", "fsdp" (each model over several devices), or "auto".
      workers: processes of the "cpu" executor; the cores that may be used, by default.
      report: called with events: {"event": "plan", "packs", "runs", "workers", "shapes", "flops", "seconds"} of what is left to do,
        {"event": "progress", "flops"}, {"event": "run", "run_id", "status"}, {"event": "failed", "run_ids", "reason", "log"} and
        {"event": "warning", "text"}, with `slurm` also {"event": "jobs", "running", "pending", "reason"}. The flops of the progress add up
        to those of the plan, unless work is done twice.
      slurm: what jobs ask for; with it packs run as jobs of Slurm (`cluster.run`), and this call submits and watches them.
      keep: what is kept of runs that finish from now on, beside their rows (`scalemem.keeping`).
      passes: the rows of a forward pass, whether blocks are computed again in the backward pass, and over how many devices fsdp splits a model.
      team: the processes that make this same call (`hosts.team`), each on its own devices; all return the same.
      across: they train each model together, split over the devices of all.
    Returns:
      {"done", "diverged", "failed"} of these runs; `store.failures()` has the reason and the log of each failed one.
    Raises:
      SpecError: a run that cannot be run, before anything is spent.
      StoreError: the store is held by another process, or cannot be written. Jobs and a local call may work on one store at once.
      Interrupted: SIGINT or SIGTERM; what was going on is in checkpoints. A second signal does not wait for these.
    Warns:
      FailedRunsWarning: runs failed, and there is no `report` that was told.
    """
    runs, tell = sweep.runs() if isinstance(sweep, Sweep) else sweep, report or (lambda event: None)
    keep = keep or Keep()
    if keep.models:
        export_model.check()
    if slurm:
        keeping.ask(store.path, keep)
        with _signals() as stopping:
            for way in cluster.ways(runs, slurm, _legal(executor), passes):
                if complaint := way.complaint():
                    tell({"event": "warning", "text": complaint})
                cluster.run(store, way, slurm, passes, tell, stopping)
        execute.tidy(store)
        return _counts(runs, store, report)
    if across:
        team.join()
        if team.index:
            with _signals():
                hosts.follow(execute.from_json)
            return _counts(runs, store, report)
    with hosts.leading(team, across), store.writer() if team.index == 0 else contextlib.nullcontext(), _signals() as stopping:
        taken = paths.possible(ways(runs, executor, passes, across))
        planned = [(way, _planned(way, store, passes, team, across)) for way in taken]
        keeping.ask(store.path, keep)
        if lacking := keeping.note(store, keep, runs):
            tell({"event": "warning", "text": lacking})
        most = min([workers or len(cores()), *(max(1, int(way.capacity // way.memory.total)) for way in taken)])
        teams = [max(1, min(most, len(packs))) if way.executor == "cpu" else 1 for way, packs in planned]
        lefts = [execute.left(packs, store, way.how, way.devices) for way, packs in planned]
        tell({"event": "plan", "packs": sum(len(packs) for _, packs in planned), "runs": sum(left.runs for left in lefts),
              "workers": max(teams, default=1), "shapes": len({p.shape for _, packs in planned for p in packs}),
              "flops": sum(left.flops for left in lefts), "seconds": sum(left.seconds / n for left, n in zip(lefts, teams, strict=True)),
              "paths": [way.row() for way in taken]})
        for way in taken:
            if complaint := way.complaint():
                tell({"event": "warning", "text": complaint})
        for (way, packs), n in zip(planned, teams, strict=True):
            if packs and way.executor == "cpu":
                _processes(packs, store, n, tell, stopping)
            elif packs:
                _here(packs, store, way.how, way.devices, tell, stopping)
        execute.tidy(store)
    return _counts(runs, store, report)


def _planned(way: paths.Path, store: Store, passes: paths.Passes, team: hosts.Team, across: bool) -> list[Pack]:
    """The packs of a path, in the order in which this process takes them: of several, each has others first."""
    packs = []
    if team.index == 0:
        sizes = functools.partial(packsize.choose, how=way.how, devices=max(1, way.devices)) if way.how in ("vmap", "shard") else None
        packs = way.plan(store, passes, sizes)
    if team.count == 1 or across:
        return packs
    packs = [execute.from_json(each) for each in json.loads(team.share(json.dumps([execute.to_json(p) for p in packs]).encode()))]
    own = packs[team.index :: team.count]
    return own + [p for i, p in enumerate(packs) if i % team.count != team.index]


def _counts(runs: Sequence[RunSpec], store: Store, report: Report | None) -> dict[str, int]:
    """How many runs ended how."""
    finished, wanted = store.finished(), list(dict.fromkeys(map(run_id, runs)))
    ended = [finished.get(key, "failed") for key in wanted]
    if report is None and "failed" in ended:
        failures = store.failures()
        first = next((failures[key]["reason"] for key in wanted if key in failures), "unknown")
        warnings.warn(f"{ended.count('failed')} of {len(wanted)} runs failed; the first: {first}; store.failures() has them all",
                      FailedRunsWarning, stacklevel=3)
    return {state: ended.count(state) for state in ("done", "diverged", "failed")}


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[], int]]:
    """Gives a function that says whether SIGINT or SIGTERM has asked to stop, and which; a second signal interrupts at once."""
    stopped = 0

    def stop(which: int, _: Any) -> None:
        nonlocal stopped
        if stopped:
            raise KeyboardInterrupt
        stopped = which

    before = {}
    try:
        for which in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # not the main thread: the caller deals with signals
                before[which] = signal.signal(which, stop)
        yield lambda: stopped
    except KeyboardInterrupt:
        raise Interrupted from None
    finally:
        for which, handler in before.items():
            signal.signal(which, signal.SIG_DFL if handler is None else handler)


def _again(p: Pack, store: Store, tried: int, why: str, log_tail: str, log: Path | None, report: Report) -> bool:
    """Whether a pack that raised or whose worker died is to be tried again; if not, its unfinished runs are recorded as failed."""
    left = [run_id(r) for r in store.missing(p.runs)]
    if tried < TRIES and left:
        report({"event": "warning", "text": f"{why}; its pack of {len(left)} runs is tried once more"})
        return True
    if left:
        store.fail(left, why, log_tail[-4000:])
        report({"event": "failed", "run_ids": left, "reason": why, "log": str(log or "store.failures()")})
    return False


def _disk(event: dict[str, Any]) -> None:
    """Ends the launch where a worker could not write to the store: no other pack could be kept either."""
    if event.get("disk"):
        raise DiskError(event["reason"])


def _later(p: Pack, queue: list[Pack], waits: set[str], why: str, report: Report) -> None:
    """Puts a pack whose runs another process works on behind the others; in the end it is waited for."""
    queue.append(p)
    if p.id not in waits:
        waits.add(p.id)
        report({"event": "warning", "text": f"{why}; waiting for it, or until it ends"})


def _here(packs: list[Pack], store: Store, how: str, devices: int, report: Report, stopping: Callable[[], int]) -> None:
    """Longest packs first, in this process, on its devices."""
    from scalemem.worker import attempt, compilation_cache

    queue, tries, waits = list(packs), dict.fromkeys((p.id for p in packs), 0), set()

    def told(event: dict[str, Any]) -> None:
        report({"log": "store.failures()", **event} if event["event"] == "failed" else event)

    compilation_cache()
    while queue:
        p = queue.pop(0)
        if stopping():
            raise Interrupted
        event = attempt(p, store, how, devices, told, lambda: bool(stopping()))
        _disk(event)
        if event["event"] == "stopped":
            raise Interrupted
        if event["event"] == "held":
            _later(p, queue, waits, event["reason"], report)
        elif event["event"] == "raised":
            tries[p.id] += 1
            if _again(p, store, tries[p.id], event["reason"], event["log_tail"], None, report):
                queue.insert(0, p)


@dataclass
class _Worker:
    process: subprocess.Popen
    log: Path
    pack: Pack | None = None
    unread: bytes = field(default=b"")
    served: bool = False  # it has started well
    shapes: set[int] = field(default_factory=set)  # whose programs it has compiled, by number

    def lines(self) -> list[dict[str, Any]]:
        """Whole lines that have arrived; empty at the end of the stream."""
        chunk = os.read(self.process.stdout.fileno(), 1 << 16)  # type: ignore[union-attr]
        *whole, self.unread = (self.unread + chunk).split(b"\n") if chunk else (b"",)  # a line cut short by a kill is nobody's
        return [json.loads(line) for line in whole]

    def give(self, p: Pack) -> None:
        self.pack = p
        with contextlib.suppress(BrokenPipeError):  # it has just died: the end of its stream will say so
            self.process.stdin.write(json.dumps(execute.to_json(p)).encode() + b"\n")  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]


def _start(store: Store, i: int, core: int | None) -> _Worker:
    logs = store.path / "logs"
    log = logs / f"worker-{i}.log"
    command = [sys.executable, "-m", "scalemem.worker", str(store.path), "-" if core is None else str(core), str(os.getpid())]
    with one_line(store.path):
        logs.mkdir(exist_ok=True)
        sink = log.open("ab")
    with sink:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sink, start_new_session=True)
    return _Worker(process, log)


def suited(waiting: Sequence[tuple[float, int]], own: Set[int], begun: Set[int]) -> int:
    """Which pack a worker takes: one whose programs it has, or else that nobody has, if it is nearly as long as the first.

    Args:
      waiting: of each pack, longest first, the seconds it takes and the number of its shape; at least one.
      own: shapes whose programs the worker has compiled.
      begun: those that any worker has.

    >>> suited([(9, 0), (8, 0), (7, 1), (2, 2)], {1}, {0, 1}), suited([(9, 0), (8, 0), (7, 1)], set(), {0}), suited([(9, 0), (2, 1)], {1}, {0, 1})
    (2, 2, 0)
    """
    least, new = NEARLY * waiting[0][0], 0
    for i, (seconds, shape) in enumerate(waiting):
        if seconds < least:
            break
        if shape in own:
            return i
        if waiting[new][1] in begun and shape not in begun:
            new = i
    return new


def _processes(packs: list[Pack], store: Store, workers: int, report: Report, stopping: Callable[[], int]) -> None:
    """Longest packs first, each worker taking one when it is free (`suited`); a pack whose worker dies is tried once more."""
    queue, tries, waits = list(packs), dict.fromkeys((p.id for p in packs), 0), set()
    shapes: dict[train.Shape, int] = {}
    about = {id(p): (execute.pack_seconds(p), shapes.setdefault(p.shape, len(shapes))) for p in packs}
    places = cores()
    team = [_start(store, i, places[i % len(places)]) for i in range(workers)]
    selector = selectors.DefaultSelector()
    for i, w in enumerate(team):
        selector.register(w.process.stdout, selectors.EVENT_READ, i)  # type: ignore[arg-type]

    def again(p: Pack, reason: str, log: Path) -> None:
        tries[p.id] += 1
        with one_line(store.path):
            said = log.read_text(errors="replace")
        if _again(p, store, tries[p.id], reason, said, log, report):
            queue.insert(0, p)

    def next_pack(w: _Worker) -> None:
        w.pack = None
        if queue:
            free = [i for i, p in enumerate(queue) if not waits or p.id not in waits] or range(len(queue))  # what another works on comes last
            i = free[suited([about[id(queue[i])] for i in free], w.shapes, set().union(*(other.shapes for other in team)))]
            w.shapes.add(about[id(queue[i])][1])
            w.give(queue.pop(i))
        else:
            w.process.stdin.close()  # type: ignore[union-attr]

    try:
        while selector.get_map():
            if stopping():
                raise Interrupted
            for key, _ in selector.select(POLL_S):
                w = team[key.data]
                events = w.lines()
                if not events and not w.unread:  # the stream ended
                    selector.unregister(w.process.stdout)  # type: ignore[arg-type]
                    code = w.process.wait()
                    w.process.stdout.close()  # type: ignore[union-attr]
                    if w.pack:
                        again(w.pack, f"worker {key.data} ended with status {code}", w.log)
                    if queue and w.served:
                        with contextlib.suppress(OSError):
                            w.process.stdin.close()  # type: ignore[union-attr]
                        team[key.data] = w = _start(store, key.data, places[key.data % len(places)])
                        selector.register(w.process.stdout, selectors.EVENT_READ, key.data)  # type: ignore[arg-type]
                for event in events:
                    w.served = True
                    _disk(event)
                    if event["event"] == "raised" and w.pack:
                        again(w.pack, event["reason"], w.log)
                    if event["event"] == "held" and w.pack:
                        _later(w.pack, queue, waits, event["reason"], report)
                    if event["event"] in ("ready", "done", "raised", "held"):
                        next_pack(w)
                    elif event["event"] != "stopped":  # it leaves: the end of its stream says so
                        report({**event, "log": str(w.log)} if event["event"] == "failed" else event)
        for p in queue:
            left = [run_id(r) for r in store.missing(p.runs)]
            store.fail(left, "no worker could be started", team[0].log.read_text(errors="replace")[-4000:])
            report({"event": "failed", "run_ids": left, "reason": "no worker could be started", "log": str(team[0].log)})
    finally:
        for w in team:
            if w.process.poll() is None:
                w.process.send_signal(signal.SIGINT)
            with contextlib.suppress(OSError):
                w.process.stdin.close()  # type: ignore[union-attr]
        deadline = time.monotonic() + LEAVE_S
        for w in team:
            try:
                w.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                w.process.kill()
                w.process.wait()
            w.process.stdout.close()  # type: ignore[union-attr]
