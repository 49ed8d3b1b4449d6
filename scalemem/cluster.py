"""Runs packs as jobs of Slurm, through submitit: plans them, submits an array of jobs that take them, and watches the store and `squeue`.

The jobs go on when the launcher is killed; the same command attaches to them, and submits more where packs are left and no job is. No
accounting database is asked: what became of a pack is in the store, and which jobs there are is what `squeue` says.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scalemem import execute, locking, orders
from scalemem.durable import one_line
from scalemem.orders import Entry, Order
from scalemem.pack import Pack
from scalemem.spec import RunSpec, SpecError, run_id
from scalemem.store import Store, StoreError
from scalemem.worker import Interrupted

Report = Callable[[dict[str, Any]], None]

PREFIX = "scalemem-"  # of the names of jobs; the order's name follows
POLL_S = float(os.environ.get("SCALEMEM_POLL_S", 5.0))  # how often the store and Slurm are looked at
GRACE_S = 60.0  # how long a pack may be free while jobs start or end, before another job is submitted for it
LEAVE_S = 30.0  # after Ctrl-C, how long jobs may take to checkpoint
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True)
class Slurm:
    """What a job asks of Slurm.

    >>> Slurm(time="1-12", gpus=2).minutes, Slurm(time="90").minutes, Slurm(time="0:30:01").minutes, Slurm().minutes
    (2160, 90, 31, None)
    """

    partition: str | None = None  # the cluster's default
    time: str | None = None  # as for sbatch: minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS; the partition's default
    gpus: int = 0  # of a job
    cpus: int = 1  # cores of a job; without GPUs there is a process on each
    array_limit: int = 16  # most jobs at once
    pack_size: int = 64  # runs of a pack on a GPU: where packs are planned there may be none to try sizes on
    more: Mapping[str, str] = field(default_factory=dict)  # submitit's parameters, or long options of sbatch

    def __post_init__(self) -> None:
        for name, least in (("gpus", 0), ("cpus", 1), ("array_limit", 1), ("pack_size", 1)):
            if getattr(self, name) < least:
                raise SpecError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least {least}; raise it")
        if self.time is not None and not _TIME.fullmatch(self.time):
            raise SpecError(f"--time {self.time!r}: must be minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS; write 90, 1:30:00 or 1-12")

    @property
    def minutes(self) -> int | None:
        """The time limit, rounded up."""
        found = _TIME.fullmatch(self.time or "")
        if not found:
            return None
        days, parts = found[1], [int(part or 0) for part in found.groups()[1:]]
        if days is not None:
            seconds = int(days) * 86400 + parts[0] * 3600 + parts[1] * 60 + parts[2]
        else:  # sbatch: MINUTES, MINUTES:SECONDS or HOURS:MINUTES:SECONDS
            seconds = parts[0] * 3600 + parts[1] * 60 + parts[2] if found[4] else parts[0] * 60 + parts[1]
        return max(1, -(-seconds // 60))

    def how(self, executor: str) -> tuple[str, int]:
        """(executor of a pack, devices): on CPUs a process a core, on a GPU vmap, on several shard; "vmap" is a process a GPU."""
        if executor == "auto":
            executor = "shard" if self.gpus > 1 else "vmap" if self.gpus else "cpu"
        return ("map" if executor == "cpu" else executor, 0 if executor in ("cpu", "vmap") else max(1, self.gpus))

    def tasks(self, how: str) -> int:
        """Processes of a job, each of which takes packs."""
        return self.cpus if how == "map" else max(1, self.gpus) if how == "vmap" else 1


def check() -> None:
    """Raises SpecError in one line where jobs cannot be submitted from."""
    if not all(map(shutil.which, ("sbatch", "squeue", "scancel", "srun"))):
        raise SpecError("--launcher slurm: Slurm's sbatch, squeue, scancel and srun are not all here; run on a login node of a cluster, "
                        "or leave --launcher out")
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise SpecError("--launcher slurm: needs submitit, which is not installed; pip install 'scalemem[slurm]'") from None


def jobs(store: Store) -> list[dict[str, Any]]:
    """The jobs of a store that Slurm knows: job, order, state, reason, node, elapsed_s.

    Raises:
      StoreError: Slurm does not answer.
    """
    wanted = orders.names(store)
    if not wanted:
        return []
    try:
        text = orders.ask("squeue", "-h", "-r", "--name", ",".join(PREFIX + name for name in wanted), "-o", "%i|%j|%T|%r|%N|%M")
    except (OSError, subprocess.SubprocessError) as error:
        raise StoreError(f"squeue: {_said(error)}; wait until Slurm answers, then run the same command again") from None
    found = []
    for line in text.splitlines():
        job, name, state, reason, node, elapsed = line.split("|")
        found.append({"job": job, "order": name.removeprefix(PREFIX), "state": state, "reason": "" if reason == "None" else reason, "node": node,
                      "elapsed_s": _seconds(elapsed)})
    return found


def _seconds(text: str) -> int:
    """Of [DAYS-][HOURS:]MINUTES:SECONDS, as squeue writes it.

    >>> _seconds("1-02:03:04"), _seconds("2:03"), _seconds("INVALID")
    (93784, 123, 0)
    """
    try:
        days, _, clock = text.rpartition("-")
        total = 0
        for part in clock.split(":"):
            total = total * 60 + int(part)
        return total + 86400 * int(days or 0)
    except ValueError:
        return 0


def _said(error: Exception) -> str:
    """The last line that a command of Slurm wrote about what is wrong."""
    lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
    return next((line for line in reversed(lines) if "error" in line), lines[-1] if lines else type(error).__name__)


def submit(order: Order, slurm: Slurm, count: int) -> None:
    """Submits an array of jobs that take packs of an order.

    Raises:
      SpecError: sbatch, or submitit, refuses.
      StoreError: what jobs need cannot be written.
    """
    import submitit

    tasks, more = order.tasks, dict(slurm.more)
    asked: dict[str, Any] = {"job_name": PREFIX + order.name, "partition": slurm.partition, "time": slurm.minutes, "nodes": 1,
                             "ntasks_per_node": tasks, "cpus_per_task": 1 if order.how == "map" else max(1, slurm.cpus // tasks),
                             "gpus_per_node": slurm.gpus or None, "array_parallelism": slurm.array_limit}
    known = submitit.SlurmExecutor._valid_parameters()
    asked |= {key: _value(key, more.pop(key)) for key in list(more) if key in known}
    asked["additional_parameters"] = {"requeue": True, **{key: _value(key, value) for key, value in more.items()}}
    # the other processes of a job go on when one dies; since Slurm 22.05 srun must be told the cores of a process once more
    asked["srun_args"] = ["--kill-on-bad-exit=0", "--wait=0", f"--cpus-per-task={asked['cpus_per_task']}", *asked.get("srun_args", ())]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            executor = submitit.SlurmExecutor(order.path / "jobs")
            executor.update_parameters(**asked)
            executor.submit_array([orders.Job(str(order.store.path.resolve()), order.name)] * count)
    except OSError as error:
        with one_line(order.path):
            raise error
    except Exception as error:  # submitit raises several kinds, with what sbatch wrote among them
        why = said.getvalue() if "error" in said.getvalue() else f"{type(error).__name__}: {error}"
        raise SpecError(f"--launcher slurm: the job was refused: {' '.join(why.split())[:400]}; change what is asked of Slurm") from None


def _value(key: str, text: str) -> Any:
    if key in ("setup", "teardown", "srun_args"):
        return text.split(";") if key != "srun_args" else text.split()
    return True if text.lower() == "true" else int(text) if text.isdigit() else text


def cancel(order: Order, states: Sequence[str] = ()) -> None:
    """Cancels the jobs of an order, or those in some states."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        for state in states or ("",):
            orders.ask("scancel", "--name", PREFIX + order.name, *(["--state", state] if state else []))


def run(runs: Sequence[RunSpec], store: Store, how: str, devices: int, slurm: Slurm, report: Report, stopping: Callable[[], int],
        micro_batch: int = 0, remat: bool = False) -> None:
    """Runs what the store lacks as jobs, and returns when none of its packs is open.

    Args:
      runs, store, report: as for `launch.run`.
      how, devices, micro_batch, remat: as for `execute.plan`.
      slurm: what jobs ask for.
      stopping: asked now and then; gives the signal that asks to stop, or 0.
    Raises:
      SpecError: jobs cannot be submitted.
      StoreError: another launcher submits jobs for this store, or Slurm does not answer at first.
      Interrupted: SIGINT, after the jobs have been cancelled, with checkpoints; or SIGTERM, and the jobs go on.
    """
    with locking.exclusive(store.path / "lock-slurm"):
        sizes = None if how == "map" else lambda members, _: min(len(members), slurm.pack_size * max(1, devices))
        plan = functools.partial(execute.plan, runs, store, how, max(1, devices), micro_batch, remat, sizes)
        _Watch(runs, store, how, devices, slurm, report, plan).until_settled(stopping)


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
                "flops": left.flops, "seconds": left.seconds / most})

    def _orders(self, known: list[dict[str, Any]]) -> list[Order]:
        """The orders whose jobs live and work on our runs, and a new one of the packs that none of them has; those of dead jobs are removed."""
        living, covered = [], set()
        for name in orders.names(self.store):
            order = Order(self.store, name)
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
        """Jobs that have not started are cancelled; orders are removed when their jobs have gone, unless something failed: they have logs."""
        for order in self.orders:
            if not order.open():
                cancel(order, ["PENDING"])
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
