"""What is asked of Slurm, through submitit and its own commands: jobs of an order, which there are, and their end.

Any command of Slurm may fail or not answer; no accounting database is asked.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scalemem import orders
from scalemem.durable import StoreError, one_line
from scalemem.orders import Order
from scalemem.spec import SpecError
from scalemem.store import Store

PREFIX = "scalemem-"  # of the names of jobs; the order's name follows
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
    gpu_memory: float = 0.0  # GB of a GPU; 0: not known, and nothing is taken to be too large
    cpus: int = 1  # cores of a job; without GPUs there is a process on each
    array_limit: int = 16  # most jobs at once
    pack_size: int = 64  # runs of a pack on a GPU: where packs are planned there may be none to try sizes on
    more: Mapping[str, str] = field(default_factory=dict)  # submitit's parameters, or long options of sbatch

    def __post_init__(self) -> None:
        for name, least in (("gpus", 0), ("cpus", 1), ("array_limit", 1), ("pack_size", 1)):
            if getattr(self, name) < least:
                raise SpecError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least {least}; raise it")
        if self.gpu_memory < 0 or (self.gpu_memory and not self.gpus):
            raise SpecError(f"--gpu-memory {self.gpu_memory:g}: must be above 0, and go with --gpus; say the GB of one GPU, or leave it out")
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

    def tasks(self, how: str) -> int:
        """Processes of a job, each of which takes packs."""
        return self.cpus if how == "map" else max(1, self.gpus) if how == "vmap" else 1


def check() -> None:
    """Raises SpecError in one line where jobs cannot be submitted from."""
    if not all(map(shutil.which, ("sbatch", "squeue", "scancel", "srun"))):
        raise SpecError("--launcher slurm: Slurm's sbatch, squeue, scancel and srun are not all here; run on a login node of a cluster, "
                        "or leave --launcher out")
    _submitit()


def _submitit() -> Any:
    """The package, imported without its setting up of logging, which closes the handlers that others have."""
    before = os.environ.get("SUBMITIT_LOG_LEVEL")
    os.environ["SUBMITIT_LOG_LEVEL"] = "NOCONFIG"
    try:
        import submitit

        return submitit
    except ImportError:
        raise SpecError("--launcher slurm: needs submitit, which is not installed; pip install 'scalemem[slurm]'") from None
    finally:
        del os.environ["SUBMITIT_LOG_LEVEL"]
        if before is not None:
            os.environ["SUBMITIT_LOG_LEVEL"] = before


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
    submitit, tasks, more = _submitit(), order.tasks, dict(slurm.more)
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
