"""Runs packs as jobs of Slurm: plans them, submits an array of jobs that take them, and watches the store and which jobs there are.

The jobs go on when the launcher is killed; the same command attaches to them, and submits more where packs are left and no job is. What
became of a pack is in the store, and what is asked of Slurm in `sbatch.py`.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from scalemem import execute, locking, memory, orders, paths, train
from scalemem.durable import one_line
from scalemem.orders import Entry, Order
from scalemem.pack import Pack
from scalemem.paths import Passes, Path
from scalemem.sbatch import PREFIX, Slurm, cancel, jobs, submit
from scalemem.spec import RunSpec, SpecError, run_id
from scalemem.store import Store, StoreError
from scalemem.worker import Interrupted

Report = Callable[[dict[str, Any]], None]

POLL_S = float(os.environ.get("SCALEMEM_POLL_S", 5.0))  # how often the store and Slurm are looked at
GRACE_S = 60.0  # how long a pack may be free while jobs start or end, before another job is submitted for it
LEAVE_S = 30.0  # after Ctrl-C, how long jobs may take to checkpoint


def run(store: Store, way: Path, slurm: Slurm, passes: Passes, report: Report, stopping: Callable[[], int]) -> None:
    """Runs what the store lacks as jobs, and returns when none of its packs is open.

    Args:
      store, report, passes: as for `launch.run`.
      way: the runs, and how they go (`ways`).
      slurm: what jobs ask for.
      stopping: asked now and then; gives the signal that asks to stop, or 0.
    Raises:
      SpecError: jobs cannot be submitted.
      StoreError: another launcher submits jobs for this store, or Slurm does not answer at first.
      Interrupted: SIGINT, after the jobs have been cancelled, with checkpoints; or SIGTERM, and the jobs go on.
    """
    with locking.exclusive(store.path / "lock-slurm"):
        plan = functools.partial(way.plan, store, passes, functools.partial(size, slurm=slurm, devices=way.devices))
        _Watch(way.runs, store, way.how, way.devices, slurm, report, plan).until_settled(stopping)


def ways(runs: Sequence[RunSpec], slurm: Slurm, executor: str, passes: Passes) -> list[Path]:
    """Which runs take which executor in a job.

    "auto" is a process a core on CPUs, vmap on a GPU, shard on several, or fsdp for a model too large for one of them; "vmap" is a process a GPU.

    Raises:
      SpecError: a model is too large for all GPUs of a job.
    """
    chosen = executor if executor != "auto" else "shard" if slurm.gpus > 1 else "vmap" if slurm.gpus else "cpu"
    devices = 0 if chosen in ("cpu", "vmap") else max(1, slurm.gpus)
    room = slurm.gpu_memory * paths.GB or math.inf
    return paths.possible(paths.of(runs, chosen, devices, passes, slurm.gpus if executor == "auto" else 0, room))


def size(members: Sequence[RunSpec], shape: train.Shape, slurm: Slurm, devices: int) -> int:
    """The runs of a pack that is vmap on each of so many GPUs: `pack_size` on each, or as many as its memory, where it is known, has room for."""
    each, room = slurm.pack_size, memory.FILLS * slurm.gpu_memory * paths.GB
    if room:
        each = max(1, min(each, int(room / memory.of(Pack(shape, tuple(members[:1]), 1), "vmap").total)))
    return min(len(members), each * max(1, devices))


class _Watch:
    """What one launcher sees and does."""

    def __init__(self, runs: Sequence[RunSpec], store: Store, how: str, devices: int, slurm: Slurm, report: Report,
                 plan: Callable[[], list[Pack]]):
        self.plan, self.runs, self.store, self.how, self.devices, self.slurm, self.report = plan, runs, store, how, devices, slurm, report
        self.wanted = set(map(run_id, runs))
        self.finished, self.failures = store.finished(), {key: f["time"] for key, f in store.failures().items()}
        self.free_since: dict[str, float] = {}
        self.fruitless: dict[str, int] = {}
        self.tries: dict[str, int] = {}
        self.told: set[str] = set()
        self.failed, self.view = False, {}
        self.orders = self._orders(jobs(store))
        packs = [e.pack() for order in self.orders for e in order.open() if self.wanted.intersection(e.run_ids)]
        self.packs = packs
        left = execute.left(packs, store, how, devices)
        self.flops = self.left_flops = left.flops
        most = max(1, min(slurm.array_limit * slurm.tasks(how), len(packs)))
        report({"event": "plan", "packs": len(packs), "runs": left.runs, "workers": most, "shapes": len({p.shape for p in packs}),
                "flops": left.flops, "seconds": left.seconds / most, "total_runs": len(runs)})

    def _orders(self, known: list[dict[str, Any]]) -> list[Order]:
        """The orders whose jobs live and work on our runs, and a new one of the packs that none of them has; those of dead jobs are removed."""
        living, covered = [], set()
        for name in orders.names(self.store):
            try:
                order = Order(self.store, name)
            except StoreError as error:
                self._warn(f"{error}; it is set aside, and its packs are planned anew".replace("; run the same command again", ""))
                with one_line(self.store.path), contextlib.suppress(FileNotFoundError):
                    os.rename(self.store.path / "orders" / name, self.store.path / "set-aside" / f"order-{name}")
                continue
            if not any(job["order"] == name for job in known):
                order.remove()
            elif not order.cancelled:
                entries = order.open()
                covered.update(key for e in entries for key in e.run_ids)
                if any(self.wanted.intersection(e.run_ids) for e in entries):
                    living.append(order)
        left = {run_id(run) for run in self.store.missing(self.runs)} - covered
        packs = [p for p in self.plan() if left.intersection(map(run_id, p.runs))]
        if packs:
            living.append(Order.write(self.store, packs, self.how, self.devices, self.slurm.tasks(self.how)))
        return living

    def until_settled(self, stopping: Callable[[], int]) -> None:
        try:
            while True:
                known = self._known()
                self._tell()
                entries = {order: [e for e in order.open() if self.wanted.intersection(e.run_ids)] for order in self.orders}
                if not any(entries.values()):
                    break
                if known is not None:
                    for order, open_ in entries.items():
                        if open_:
                            self._staff(order, open_, [job for job in known if job["order"] == order.name])
                self._wait(stopping)
        except BaseException:
            self._tell()
            raise
        self._leave()

    def _known(self) -> list[dict[str, Any]] | None:
        try:
            found = jobs(self.store)
        except StoreError as error:
            self._warn(str(error).split(";")[0] + "; waiting until Slurm answers")
            return None
        waiting = [job for job in found if job["state"] == "PENDING"]
        reasons = ", ".join(sorted({job["reason"] for job in waiting} - {"", "JobArrayTaskLimit"}))
        view = {"event": "jobs", "running": sum(job["state"] == "RUNNING" for job in found), "pending": len(waiting), "reason": reasons}
        if view != self.view:
            self.view = view
            self.report(view)
        return found

    def _wait(self, stopping: Callable[[], int]) -> None:
        until = time.monotonic() + POLL_S
        while time.monotonic() < until:
            if stopping() == signal.SIGTERM:
                raise Interrupted("The jobs go on; the same command attaches to them.")
            if stopping():
                self._cancel()
                raise Interrupted("The jobs were cancelled; what they worked on is in checkpoints.")
            time.sleep(0.1)

    def _warn(self, text: str) -> None:
        if text not in self.told:
            self.told.add(text)
            self.report({"event": "warning", "text": text})

    def _tell(self) -> None:
        """Reports what has changed in the store."""
        finished, failures = self.store.finished(), self.store.failures()
        for key in finished.keys() - self.finished.keys():
            if key in self.wanted:
                self.report({"event": "run", "run_id": key, "status": finished[key]})
        self.finished = finished
        new: dict[tuple[str, float], list[str]] = {}
        for key, failure in failures.items():
            if key in self.wanted and failure["time"] != self.failures.get(key):
                new.setdefault((failure["reason"], failure["time"]), []).append(key)
        self.failures |= {key: time_ for (_, time_), keys in new.items() for key in keys}
        for (reason, _), keys in new.items():
            self.failed = True
            self.report({"event": "failed", "run_ids": keys, "reason": reason, "log": str(self.store.path / "orders")})
        left = execute.left(self.packs, self.store, self.how, self.devices).flops
        if left < self.left_flops:  # more than before, where work was lost
            self.report({"event": "progress", "flops": self.left_flops - left})
            self.left_flops = left

    def _staff(self, order: Order, open_: list[Entry], mine: list[dict[str, Any]]) -> None:
        """Submits jobs for packs that nobody works on, and gives packs up that no job can even start."""
        if (order.how, order.devices, order.tasks) != (self.how, self.devices, self.slurm.tasks(self.how)):
            if not mine:  # of an earlier command that asked for other jobs; these have ended
                packs = self.plan()
                self.orders[self.orders.index(order)] = Order.write(self.store, packs, self.how, self.devices, self.slurm.tasks(self.how))
                order.remove()
            return
        held = {key for lease in locking.leases(self.store.path / "leases") for key in lease["run_ids"]}
        free = [e for e in open_ if not held.intersection(e.run_ids)]
        for job in mine:
            if job["reason"] == "launch failed requeued held":  # a node did not start it: no fault of its own
                with contextlib.suppress(OSError, subprocess.SubprocessError):
                    orders.ask("scontrol", "release", job["job"])
        active = [job for job in mine if job["state"] != "COMPLETING"]
        room = min(-(-len(free) // order.tasks), self.slurm.array_limit - len(active))
        now = time.monotonic()
        since = self.free_since.setdefault(order.name, now) if free else self.free_since.pop(order.name, now)
        if room < 1 or any(job["state"] != "RUNNING" for job in active) or (mine and now - since < GRACE_S):
            return
        tried = sum(map(len, order.states().values()))
        if not active and order.name in self.tries:  # a job that ends without a try could not start
            self.fruitless[order.name] = self.fruitless.get(order.name, 0) + 1 if self.tries[order.name] == tried else 0
        if self.fruitless.get(order.name, 0) >= orders.TRIES:
            logs = sorted((order.path / "jobs").glob("*.err"), key=lambda path: path.stat().st_mtime)
            for entry in free:
                with self.store.lease(entry.run_ids) as lease:
                    if len(lease.run_ids) == len(entry.run_ids):
                        order.give_up(entry, "no job could start its work", orders.tail(str(logs[-1])) if logs else "")
            return
        first = order.name not in self.tries
        try:
            submit(order, self.slurm, room)
        except SpecError as error:
            if first:
                order.remove()
                raise
            self._warn(str(error))
        else:
            self.tries[order.name], self.free_since[order.name] = tried, now
            if not first:
                self.report({"event": "warning", "text": f"{room} more jobs are submitted for {len(free)} packs that no job works on"})

    def _cancel(self) -> None:
        """Those that wait are cancelled, those that run are asked to checkpoint first."""
        for order in self.orders:
            order.cancel()
            cancel(order, ["PENDING"])
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                orders.ask("scancel", "--signal", "TERM", "--name", PREFIX + order.name, "--state", "RUNNING")
        self._until_gone(LEAVE_S)
        for order in self.orders:
            cancel(order)

    def _leave(self) -> None:
        """Jobs that have nothing to do are cancelled; orders are removed when their jobs have gone, unless something failed: they have logs."""
        for order in self.orders:
            if not order.open():
                cancel(order)
        gone = self._until_gone(LEAVE_S)
        for order in self.orders:
            if gone and not self.failed and not order.open():
                order.remove()

    def _until_gone(self, wait_s: float) -> bool:
        """Whether the jobs of our orders have ended in time."""
        until, names = time.monotonic() + wait_s, {order.name for order in self.orders}
        while True:
            with contextlib.suppress(StoreError):
                if not any(job["order"] in names for job in jobs(self.store)):
                    return True
            if time.monotonic() > until:
                return False
            time.sleep(min(1.0, POLL_S))
