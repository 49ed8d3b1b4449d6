"""Several processes of one command, on one host or many: each takes packs of one plan, or all train one model that is split over their devices.

Independent (the default): the first process plans, all get its plan, and each takes packs of it under the store's leases, on its own devices. They
meet once, in a process of its own beside each (`python -m scalemem.hosts`), so that one that dies later costs the others nothing.
Across: one computation over all devices. The first process leads: it alone decides, measures and writes; what it computes with the states of the
run it tells the others, which do the same (`follow`), for a computation over all devices begins in every process.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from scalemem import pack, sharding, train
from scalemem.pack import Pack
from scalemem.spec import SpecError
from scalemem.stages import Stages

HEARTBEAT_S = 60  # of a computation across processes: one that has died is noticed after so long
OPEN, START, ADVANCE, SWITCH, RESTORE, KEPT, RUN, REFERENCE, WEIGHTS, END = range(10)
_RANKS = {  # who starts processes -> where it says how many there are, and which one this is
    "slurm": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),  # of srun; a batch script is one process
    "openmpi": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "tpu": ("TPU_WORKER_HOSTNAMES", "TPU_WORKER_ID"),
}


@dataclass(frozen=True)
class Team:
    """The processes of a command, and which of them this one is."""

    count: int = 1
    index: int = 0
    coordinator: str = ""  # HOST:PORT; "": JAX learns it from what has started them

    def share(self, content: bytes = b"") -> bytes:
        """The first process's bytes, in all; each waits for the others here. SpecError if they do not come."""
        if self.count == 1:
            return content
        argv = [self.coordinator, str(self.count), str(self.index)] if self.coordinator else []
        done = subprocess.run([sys.executable, "-m", "scalemem.hosts", *argv], input=content, capture_output=True, check=False,
                              env={**os.environ, "JAX_PLATFORMS": "cpu"})
        if done.returncode:
            raise _not_met(done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [""])
        return done.stdout

    def join(self) -> None:
        """Makes the devices of all processes those of one computation; before JAX computes anything."""
        if self.count > 1 and not jax.distributed.is_initialized():
            given: Any = (self.coordinator, self.count, self.index) if self.coordinator else ()
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
            try:
                jax.distributed.initialize(*given, heartbeat_timeout_seconds=HEARTBEAT_S)
            except Exception as error:
                raise _not_met(str(error).splitlines()) from None


def started_by(environ: Mapping[str, str] = os.environ) -> tuple[str, int, int]:
    """Who has started this process as one of several: ("slurm", "openmpi" or "tpu", how many, which one); ("", 1, 0) if nobody.

    >>> started_by({"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}), started_by({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"})
    (('slurm', 2, 1), ('', 1, 0))
    """
    for who, (many, which) in _RANKS.items():
        said = environ.get(many, "")
        count = len(said.split(",")) if who == "tpu" else int(said or 1)
        if count > 1 and which in environ:
            return who, count, int(environ[which])
    return "", 1, 0


def team(coordinator: str | None = None, processes: int | None = None, process_id: int | None = None) -> Team:
    """The processes of this command: as given, or as Slurm, Open MPI or a TPU slice says; alone where nothing says that there are others.

    Args:
      coordinator: HOST:PORT on which the first process listens.
      processes, process_id: how many there are, and which this one is, from 0.
    Raises:
      SpecError: some of these are given and others not, or are out of range.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process-id": process_id}
    lacking = [name for name, value in given.items() if value is None]
    if len(lacking) == 3:
        return Team(*started_by()[1:])
    if lacking or coordinator is None or processes is None or process_id is None:
        raise SpecError(f"{lacking[0]}: missing; --coordinator, --processes and --process-id go together; add it, or leave out all")
    if processes < 1 or not 0 <= process_id < processes:
        raise SpecError(f"--process-id {process_id}: must be 0 to --processes - 1 = {processes - 1}; number the processes from 0")
    if not coordinator.rpartition(":")[2].isdigit():
        raise SpecError(f"--coordinator {coordinator!r}: must be HOST:PORT of the first process; write it so")
    return Team(processes, process_id, coordinator)


def _not_met(why: list[str]) -> SpecError:
    return SpecError(f"the processes of this command do not meet ({' '.join(why)[:200]}); must all be started, with one coordinator that they reach; "
                     "start them again")


def _meet(argv: list[str]) -> None:
    """The process beside one of several: standard input of the first goes to standard output of all."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what XLA prints
    (team(argv[0], int(argv[1]), int(argv[2])) if argv else team()).join()
    out.write(_broadcast(sys.stdin.buffer.read()))
    out.close()


def _broadcast(content: bytes) -> bytes:
    """The first process's bytes, in all; the others need not know how many they are."""
    from jax.experimental import multihost_utils

    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    return _of_first(np.frombuffer(content.ljust(size)[:size], np.uint8)).tobytes() if size else b""


def _of_first(values: np.ndarray) -> np.ndarray:
    """The first process's array, in all; the others give one of its shape and type."""
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(values))


# -- one model across processes ------------------------------------------------------------------------------------------------


def stages(p: Pack, how: str, devices: int, content: Mapping[str, Any]) -> Stages:
    """The programs of a pack on the devices of this process, or, if it has fewer, of all; `content` is the pack as JSON."""
    return Leader(p, how, devices, content) if devices > jax.local_device_count() else Stages(p, how, devices)


class _Across(Stages):
    """The programs of a pack over the devices of several processes. Each method is one computation that all of them begin."""

    def __init__(self, p: Pack, how: str, devices: int):
        super().__init__(p, how, devices)
        self.knobs = [{name: np.asarray(values) for name, values in k.items()} for k in self.knobs]  # the same in all, and nobody's device's

    def restored(self, states: train.State) -> train.State:
        """The first process's states (others give any of their shapes), in parts on all devices."""
        def spread(x: Any, place: Any) -> Any:
            own = np.ascontiguousarray(x)
            whole = _of_first(own.reshape(-1).view(np.uint8)).view(own.dtype).reshape(own.shape)  # as bytes, whatever their type
            return jax.make_array_from_callback(whole.shape, place, lambda index: whole[index])

        return jax.tree.map(spread, states, sharding.of(states, self.mesh, packed=True))

    def gathered(self, tree: Any) -> Any:
        """Whole arrays in the memory of every process, one after another: a device holds one of them whole for a moment."""
        from jax.experimental import multihost_utils

        return jax.tree.map(lambda x: np.asarray(multihost_utils.process_allgather(x, tiled=True)), tree)

    def weights_of(self, states: train.State, stage: int, ended: bool) -> Any:
        """The weights of the pack's one run, in parts on all devices."""
        k = {name: values[0] for name, values in self.knobs[stage].items()}
        return pack.weights(self.shape.stage(stage), pack.unpack(states, 0), k, ended)


class Leader(_Across):
    """Of the first process: tells the others what it computes, and gives whole arrays in the memory of the host, which it measures and writes."""

    def __init__(self, p: Pack, how: str, devices: int, content: Mapping[str, Any]):
        _tell(OPEN, payload=json.dumps({"pack": content, "how": how, "devices": devices}).encode())
        super().__init__(p, how, devices)

    def start(self) -> train.State:
        _tell(START)
        return super().start()

    def advance(self, states: train.State, stage: int, segments: int) -> train.State:
        _tell(ADVANCE, stage, segments)
        return super().advance(states, stage, segments)

    def switch(self, states: train.State, stage: int) -> train.State:
        _tell(SWITCH, stage)
        return super().switch(states, stage)

    def like(self, segment: int) -> train.State:
        self.segment = segment  # of the checkpoint that is read last, and then restored
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), super().like(segment))

    def restored(self, states: train.State) -> train.State:
        _tell(RESTORE, self.segment)
        return super().restored(states)

    def kept(self, states: train.State) -> train.State:
        _tell(KEPT)
        return self.gathered(states)

    def run(self, states: train.State, i: int) -> train.State:
        _tell(RUN)
        return jax.tree.map(lambda x: x[i], self.gathered(_bare(states)))

    def reference(self, states: train.State, i: int) -> Any:
        _tell(REFERENCE)
        return self.local(jax.tree.map(lambda x: x[i], self.gathered(states.reference)))

    def weights(self, states: train.State, i: int, stage: int, segment: int) -> Any:
        ended = segment >= self.begins[stage + 1] - self.begins[stage]
        _tell(WEIGHTS, stage, int(ended))
        return self.local(self.gathered(self.weights_of(states, stage, ended)))

    def local(self, tree: Any) -> Any:
        """Whole arrays on this process's devices, over which they are split if there are several: what a measure reads."""
        return jax.device_put(tree, sharding.of(tree, sharding.mesh(jax.local_devices())))


def _bare(states: train.State) -> train.State:
    return states._replace(optimizer=(), rest=(), memory=())


def follow(decode: Callable[[dict[str, Any]], Pack]) -> None:
    """What every process but the first does in a computation across them: what the first tells, until it says that this is the end.

    Args:
      decode: gives a pack of its JSON.
    """
    across: Any = None
    states: Any = None
    while True:
        (kind, a, b), payload = _hear()
        if kind == END:
            return
        if kind == OPEN:
            told = json.loads(payload)
            across, states = _Across(decode(told["pack"]), told["how"], told["devices"]), None
        if kind == START:
            states = across.start()
        elif kind == RESTORE:
            states = across.restored(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), across.like(a)))
        elif kind == ADVANCE:
            states = jax.block_until_ready(across.advance(states, a, b))
        elif kind == SWITCH:
            states = across.switch(states, a)
        elif kind == KEPT:
            across.gathered(states)
        elif kind == RUN:
            across.gathered(_bare(states))
        elif kind == REFERENCE:
            across.gathered(states.reference)
        elif kind == WEIGHTS:
            across.gathered(across.weights_of(states, a, bool(b)))


@contextlib.contextmanager
def leading(team: Team, across: bool = True) -> Iterator[None]:
    """Of the first process: when this is left, however it is, the others need not wait for more."""
    try:
        yield
    finally:
        if across and team.count > 1:
            _tell(END)


def _tell(kind: int, a: int = 0, b: int = 0, payload: bytes = b"") -> None:
    _broadcast(json.dumps([kind, a, b]).encode() + b"\n" + payload)


def _hear() -> tuple[list[int], bytes]:
    head, _, payload = _broadcast(b"").partition(b"\n")
    return json.loads(head), payload


if __name__ == "__main__":
    _meet(sys.argv[1:])
