"""Where packs run: pinned worker processes, one a CPU core, or this process with its accelerators."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scalemem import execute
from scalemem.pack import Pack
from scalemem.spec import RunSpec, SpecError, run_id
from scalemem.store import Store
from scalemem.sweep import Sweep

Report = Callable[[dict[str, Any]], None]

EXECUTORS = ("auto", "cpu", "vmap", "shard")
TRIES = 2  # of a pack whose worker died or raised
LEAVE_S = 30.0  # after an interrupt, how long a worker may take to checkpoint


class Interrupted(Exception):
    """The work was stopped from outside; what was finished is in the store, and the rest in checkpoints."""


def cores() -> list[int | None]:
    """The CPU cores that this process may use."""
    return list(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None] * (os.cpu_count() or 1)


def choose(executor: str) -> tuple[str, int]:
    """(executor, devices): "auto" is workers on the cores of a CPU, vmap on one accelerator, shard on several."""
    if executor not in EXECUTORS:
        raise SpecError(f"executor = {executor!r}: must be one of {', '.join(EXECUTORS)}; choose one of these")
    if executor == "cpu":
        return "cpu", 0
    import jax

    devices = jax.devices()
    if executor == "auto":
        executor = "cpu" if devices[0].platform == "cpu" else "vmap" if len(devices) == 1 else "shard"
    return executor, len(devices) if executor == "shard" else 0


def run(sweep: Sweep | Sequence[RunSpec], store: Store, executor: str = "auto", workers: int | None = None,
        report: Report = lambda event: None) -> dict[str, int]:
    """Runs what `sweep` has and the store lacks, and returns how many runs ended how; the same call goes on after a stop.

    Args:
      sweep: a Sweep, or its runs.
      store: opened for writing; this call holds it.
      executor: "cpu" (one pinned process a core), "vmap", "shard", or "auto".
      workers: processes of the "cpu" executor; the cores that may be used, by default.
      report: called with events: {"event": "plan", "packs", "seconds", "flops"}, "progress", "run", "failed", "warning".
    Returns:
      {"done", "diverged", "failed"} of these runs.
    Raises:
      SpecError: a run that cannot be run, before anything is spent.
      StoreError: the store is held by another process, or cannot be written.
      Interrupted: SIGINT or SIGTERM.
    """
    how, devices = choose(executor)
    runs = sweep.runs() if isinstance(sweep, Sweep) else sweep
    with store.writer(), _sigterm_as_interrupt():
        packs = execute.plan(runs, store, "map" if how == "cpu" else how, max(1, devices))
        workers = max(1, min(workers or len(cores()), len(packs)))
        report({"event": "plan", "packs": len(packs), "runs": sum(len(p.runs) for p in packs), "workers": workers if how == "cpu" else 1,
                "shapes": len({p.shape for p in packs}), "flops": sum(execute.accounting.train_flops(r) for p in packs for r in p.runs),
                "seconds": sum(map(execute.pack_seconds, packs)) / (workers if how == "cpu" else 1)})
        if not packs:
            pass
        elif how == "cpu":
            _processes(packs, store, workers, report)
        else:
            from scalemem.worker import compilation_cache

            compilation_cache()
            for p in packs:
                execute.work(p, store, how, devices, report)
    finished, wanted = store.finished(), [run_id(r) for r in runs]
    ended = [finished.get(key, "failed") for key in dict.fromkeys(wanted)]
    return {state: ended.count(state) for state in ("done", "diverged", "failed")}


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread: the caller deals with signals
        yield
        return
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted from None
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass
class _Worker:
    process: subprocess.Popen
    log: Path
    pack: Pack | None = None
    unread: bytes = field(default=b"")
    served: bool = False  # it has started well

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
    logs.mkdir(exist_ok=True)
    log = logs / f"worker-{i}.log"
    with log.open("ab") as sink:
        process = subprocess.Popen([sys.executable, "-m", "scalemem.worker", str(store.path), "-" if core is None else str(core)],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sink, start_new_session=True)
    return _Worker(process, log)


def _processes(packs: list[Pack], store: Store, workers: int, report: Report) -> None:
    """Longest packs first, each worker taking the next when it is free; a pack whose worker dies is tried once more."""
    queue, tries = list(packs), dict.fromkeys((p.id for p in packs), 0)
    places = cores()
    team = [_start(store, i, places[i % len(places)]) for i in range(workers)]
    selector = selectors.DefaultSelector()
    for i, w in enumerate(team):
        selector.register(w.process.stdout, selectors.EVENT_READ, i)  # type: ignore[arg-type]

    def again(p: Pack, reason: str, log: Path) -> None:
        tries[p.id] += 1
        left = [run_id(r) for r in p.runs if run_id(r) not in store.finished()]
        if tries[p.id] < TRIES and left:
            report({"event": "warning", "text": f"{reason}; its pack of {len(left)} runs is tried once more"})
            queue.insert(0, p)
        elif left:
            store.fail(left, reason, log.read_text(errors="replace")[-4000:])
            report({"event": "failed", "run_ids": left, "reason": reason, "log": str(log)})

    def next_pack(w: _Worker) -> None:
        w.pack = None
        if queue:
            w.give(queue.pop(0))
        else:
            w.process.stdin.close()  # type: ignore[union-attr]

    try:
        while selector.get_map():
            for key, _ in selector.select():
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
                    if event["event"] == "failed" and w.pack:
                        again(w.pack, event["reason"], w.log)
                    if event["event"] in ("ready", "done", "failed"):
                        next_pack(w)
                    elif event["event"] != "stopped":  # it leaves: the end of its stream says so
                        report(event)
        for p in queue:
            left = [run_id(r) for r in p.runs]
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
