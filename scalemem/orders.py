"""Packs that the jobs of a cluster take, kept in a folder of the store, and what a job does: it takes them one after another.

    <store>/orders/<order>/order.json                   the packs, longest first, and their executor
    <store>/orders/<order>/tries/PACK.N.STATE           who tried a pack for the N-th time, from which progress on, and how that ended
    <store>/orders/<order>/cancelled                    there when the order was cancelled: jobs leave and are not queued again
    <store>/orders/<order>/jobs/                        what submitit writes: scripts and logs

A job holds the lease of the runs that it works on (`worker.attempt`), writes to the store and returns nothing. No JAX is imported here
before the process is settled on its core.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalemem import locking, worker
from scalemem.durable import StoreError, one_line, write_whole
from scalemem.store import Store

if TYPE_CHECKING:
    from scalemem.pack import Pack

TRIES = 3  # of a pack that gets no further than the last time: nodes fail more often than cores
STATES = ("began", "stopped", "raised", "done", "failed")
SETTLED = {"done", "failed"}
LEASE_WAIT_S = 1.0  # another process may hold a lease for a moment, to see what is free
ASK_S = 60.0  # the longest that a command of Slurm may take
_TRY = re.compile(rf"([0-9a-f]+)\.([0-9]+)\.({'|'.join(STATES)})")


@dataclass(frozen=True)
class Entry:
    """One pack of an order."""

    id: str
    run_ids: tuple[str, ...]
    content: dict[str, Any]  # of execute.to_json

    def pack(self) -> Pack:
        from scalemem import execute

        return execute.from_json(self.content)


class Order:
    """The packs of an order and what has become of them; any process may look, and those that hold a pack's lease write."""

    def __init__(self, store: Store, name: str):
        self.store, self.name, self.path = store, name, store.path.resolve() / "orders" / name
        try:
            found = json.loads((self.path / "order.json").read_bytes())
            self.how, self.devices, self.tasks = found["how"], found["devices"], found["tasks"]
            self.entries = tuple(Entry(e["id"], tuple(e["run_ids"]), e["pack"]) for e in found["packs"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self.path}: no order that can be read ({type(error).__name__}); run the same command again") from None

    @classmethod
    def write(cls, store: Store, packs: Sequence[Pack], how: str, devices: int, tasks: int) -> Order:
        """A new order of packs, for jobs of so many processes each."""
        from scalemem import execute

        name = secrets.token_hex(4)
        path = store.path.resolve() / "orders" / name
        entries = [{"id": p.id, "run_ids": list(map(execute.run_id, p.runs)), "pack": execute.to_json(p)} for p in packs]
        body = {"how": how, "devices": devices, "tasks": tasks, "packs": entries}
        with one_line(path):
            (path / "tries").mkdir(parents=True)
            (path / "jobs").mkdir()
            write_whole(path / "order.json", json.dumps(body).encode())
        return cls(store, name)

    def states(self) -> dict[str, dict[int, str]]:
        """pack id to {number of a try: how it ended, or "began"}."""
        found: dict[str, dict[int, str]] = {}
        with one_line(self.path):
            for name in os.listdir(self.path / "tries"):
                match = _TRY.fullmatch(name)
                if match:
                    tried, number, state = found.setdefault(match[1], {}), int(match[2]), match[3]
                    tried[number] = state if tried.get(number, "began") == "began" else tried[number]
        return found

    def open(self) -> list[Entry]:
        """The packs that have not been settled and have runs that have not finished, longest first."""
        states, finished = self.states(), self.store.finished()
        return [e for e in self.entries
                if not SETTLED & set(states.get(e.id, {}).values()) and any(key not in finished for key in e.run_ids)]

    @property
    def cancelled(self) -> bool:
        return not self.path.exists() or (self.path / "cancelled").exists()

    def cancel(self) -> None:
        """Jobs that stop from now on are not queued again."""
        with one_line(self.path):
            write_whole(self.path / "cancelled", b"")

    def remove(self) -> None:
        """Removes the order, and the logs of its jobs."""
        shutil.rmtree(self.path, ignore_errors=True)

    # -- tries: by whoever holds the lease of the pack ----------------------------------------------------------------

    def begin(self, entry: Entry) -> int | None:
        """The number of a new try; None if the pack is settled, also because it has just been given up."""
        tried = self.states().get(entry.id, {})
        if SETTLED & set(tried.values()):
            return None
        mark, lost = self._mark(entry), []
        for number in sorted(tried, reverse=True):
            record = self._read(entry, number, tried[number])
            if tried[number] != "stopped":
                if record.get("mark") != mark:
                    break
                lost.append(record)
        number = max(tried, default=0) + 1
        if len(lost) >= TRIES:
            self.give_up(entry, lost[0].get("reason") or f"job {lost[0]['job']} on {lost[0]['host']} ended without a word: it was killed, "
                         "or out of memory", lost[0].get("log_tail") or tail(lost[0]["log"]))
            return None
        self._write(entry, number, "began", {"mark": mark, **_who()})
        return number

    def end(self, entry: Entry, number: int, event: dict[str, Any]) -> None:
        """Notes how a try ended: an event of `worker.attempt`."""
        began = self._read(entry, number, "began")
        with contextlib.suppress(StoreError):  # such as a full disk: then it counts as one that ended without a word
            self._write(entry, number, event["event"], {**began, **{k: event[k] for k in ("reason", "log_tail") if k in event}})
            (self.path / "tries" / f"{entry.id}.{number}.began").unlink(missing_ok=True)

    def give_up(self, entry: Entry, reason: str, log_tail: str) -> None:
        """Records the unfinished runs of a pack as failed."""
        finished = self.store.finished()
        self.store.fail([key for key in entry.run_ids if key not in finished], reason, log_tail[-4000:])
        self._write(entry, max(self.states().get(entry.id, {}), default=0) + 1, "failed", {})

    def _mark(self, entry: Entry) -> list[int]:
        """How far a pack is: a try that dies after another mark than its predecessor has got further."""
        from scalemem import checkpoint

        finished = self.store.finished()
        return [max(checkpoint.epochs(self.store.checkpoint_dir(entry.id)), default=0), sum(key in finished for key in entry.run_ids)]

    def _read(self, entry: Entry, number: int, state: str) -> dict[str, Any]:
        try:
            return json.loads((self.path / "tries" / f"{entry.id}.{number}.{state}").read_bytes())
        except (OSError, ValueError):
            return {}

    def _write(self, entry: Entry, number: int, state: str, record: dict[str, Any]) -> None:
        with one_line(self.path):
            write_whole(self.path / "tries" / f"{entry.id}.{number}.{state}", json.dumps(record).encode())


def names(store: Store) -> list[str]:
    """The orders of a store."""
    folder = store.path / "orders"
    return sorted(p.parent.name for p in folder.glob("*/order.json")) if folder.is_dir() else []


def tail(log: str) -> str:
    """The end of a log file; empty if it cannot be read."""
    try:
        return Path(log).read_text(errors="replace")[-4000:]
    except OSError:
        return ""


def _who() -> dict[str, Any]:
    try:
        log = os.readlink("/proc/self/fd/2")
    except OSError:
        log = ""
    job, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return {"job": f"{job}_{task}" if job else os.environ.get("SLURM_JOB_ID", "?"), "host": socket.gethostname(), "pid": os.getpid(),
            "since": time.time(), "log": log}


# -- what a job does --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What submitit runs in every process of a job."""

    store: str
    order: str

    def __call__(self) -> None:
        order = Order(Store.open(self.store), self.order)
        if order.how == "map":
            worker.settle(core())
        elif order.how == "vmap":  # one device a process
            shown = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            if len(shown) > 1:
                os.environ["CUDA_VISIBLE_DEVICES"] = shown[int(os.environ.get("SLURM_LOCALID", 0)) % len(shown)]
        serve(order)


def core() -> int | None:
    """The core that this process of a job is pinned to, since the last digits depend on how many a program sees.

    Where Slurm shows a job the cores of others, too, it is one that no other process of ours has, on which a lock is held to the end.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    shown, given = sorted(os.sched_getaffinity(0)), int(os.environ.get("SLURM_CPUS_ON_NODE") or 1)
    mine = int(os.environ.get("SLURM_LOCALID") or 0) % len(shown)
    if len(shown) > given:
        for number in shown:
            lock = locking.exclusive(Path(tempfile.gettempdir()) / f"scalemem-{os.getuid()}-core-{number}.lock")
            with contextlib.suppress(StoreError):
                lock.__enter__()
                _locks.append(lock)
                return number
    return shown[mine]


_locks: list[contextlib.AbstractContextManager[None]] = []  # to the end of this process


def serve(order: Order) -> None:
    """Takes packs until none is free, or until a signal asks to stop; after a signal the job is queued again."""
    asked: list[int] = []
    for which in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        signal.signal(which, lambda number, _: asked.append(number))
    worker.compilation_cache()
    while not asked and _take_one(order, asked):
        pass
    if asked and not order.cancelled and order.open():
        print(f"stopped by {signal.Signals(asked[0]).name}; what was going on is in a checkpoint", flush=True)
        requeue()


def _take_one(order: Order, asked: list[int]) -> bool:
    """Works on the first pack that is free; False if there is none."""
    held = {key for lease in locking.leases(order.store.path / "leases") for key in lease["run_ids"]}
    for entry in order.open():
        if asked or order.cancelled:
            return False
        if held.intersection(entry.run_ids):
            continue
        number: list[int | None] = []

        def begin(entry: Entry = entry, number: list[int | None] = number) -> bool:
            number.append(order.begin(entry))
            return number[0] is not None

        event = worker.attempt(entry.pack(), order.store, order.how, order.devices, _tell, lambda: bool(asked), LEASE_WAIT_S, begin)
        if event["event"] in ("raised", "stopped"):
            print(event.get("log_tail", ""), flush=True)
        tried, disk = number and number[0] is not None, bool(event.get("disk"))
        if tried:
            order.end(entry, number[0], {"event": "stopped"} if disk else event)  # type: ignore[arg-type]
        if disk or (event["event"] == "raised" and not tried):  # the store itself cannot be used: that is not the pack's fault
            raise StoreError(event["reason"])
        if event["event"] != "held":
            return True
    return False


def _tell(event: dict[str, Any]) -> None:
    if event["event"] != "progress":
        print(json.dumps(event), flush=True)


def requeue() -> None:
    """Queues this job again, if it runs and has not been cancelled; where Slurm does not answer, the launcher submits another."""
    job = os.environ.get("SLURM_JOB_ID")
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if job and ask("squeue", "-h", "-j", job, "-o", "%T").strip() == "RUNNING":
            ask("scontrol", "requeue", job)


def ask(*command: str) -> str:
    """What a command of Slurm prints.

    Raises:
      OSError, subprocess.SubprocessError: it is not there, fails, or does not answer.
    """
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=ASK_S).stdout
