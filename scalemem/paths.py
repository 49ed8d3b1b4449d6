"""Which executor a run takes, and whether it fits: decided by the memory of a device, before anything runs.

"auto" is a process a core on CPUs, vmap on one accelerator, shard on several; a model too large for one device of several is split over them (fsdp).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax

from scalemem import accounting, execute, memory
from scalemem.memory import Memory
from scalemem.pack import Pack
from scalemem.spec import RunSpec, SpecError

GB = 1e9


@dataclass(frozen=True)
class Passes:
    """How a step goes through its batch: options of a call, which change no number beyond rounding."""

    micro_batch: int = 0  # most rows a forward pass; 0: as suits the executor
    remat: bool = False  # each block's activations are computed again in the backward pass

    def __post_init__(self) -> None:
        if self.micro_batch < 0:
            raise SpecError(f"--micro-batch {self.micro_batch}: must be at least 1 row; leave it out for what suits the executor")


@dataclass(frozen=True)
class Path:
    """The way of some runs, of which the largest needs `memory` on each device."""

    executor: str  # cpu, vmap, shard, fsdp
    devices: int  # over which a pack is spread; 0: on one
    runs: tuple[RunSpec, ...]
    memory: Memory
    capacity: float  # bytes of a device; of the executor cpu, of the machine
    n_params: int  # of the largest

    @property
    def how(self) -> str:
        """As `execute.plan` and `execute.work` name it."""
        return "map" if self.executor == "cpu" else self.executor

    @property
    def fits(self) -> bool:
        return self.memory.total <= memory.FILLS * self.capacity

    @property
    def never_fits(self) -> bool:
        """Not even what is counted exactly: weights, moments and gradients."""
        return self.memory.total - self.memory.activations - self.memory.data > self.capacity

    def row(self) -> dict[str, object]:
        """For a plan: path, devices, runs and bytes on each device."""
        return {"path": self.executor, "devices": max(1, self.devices), "runs": len(self.runs), "largest_n_params": self.n_params,
                **{f"{name}_bytes": value for name, value in self.memory._asdict().items()}, "memory_bytes": self.memory.total,
                "capacity_bytes": self.capacity, "fits": self.fits}

    def complaint(self) -> str:
        """One line on a model that does not fit; empty if it does."""
        if self.fits:
            return ""
        m, where = self.memory, "the machine" if self.executor == "cpu" else f"each of {self.devices} devices" if self.devices > 1 else "the device"
        parts = ", ".join(f"{name} {value / GB:.2g}" for name, value in m._asdict().items())
        mend = "lower --micro-batch, add --remat, or take more devices" if m.activations > m.total / 3 else "take more devices, or a smaller model"
        return (f"a model of {self.n_params:.3g} parameters needs about {m.total / GB:.3g} GB of {where} ({parts}): must be at most "
                f"{memory.FILLS:.0%} of the {self.capacity / GB:.3g} GB that it has; {mend}")


def of(runs: Sequence[RunSpec], executor: str, devices: int, passes: Passes = Passes(), auto: bool = False) -> list[Path]:
    """The paths of a sweep's runs: one of all those that take the same way.

    Args:
      runs: the sweep.
      executor, devices: as `launch.choose` gives them.
      passes: options of the call.
      auto: a model too large for one device may be sent to fsdp.
    """
    found: dict[tuple[str, int], list[Path]] = {}
    groups: dict[object, list[RunSpec]] = {}
    for run in runs:
        groups.setdefault(execute.pack_key(run), []).append(run)
    for members in groups.values():
        path = _path(members, executor, devices, passes)
        if auto and executor != "fsdp" and not path.fits and len(jax.local_devices()) > 1:
            path = _path(members, "fsdp", len(jax.local_devices()), passes)
        found.setdefault((path.executor, path.devices), []).append(path)
    return [_largest(paths) for paths in found.values()]


def _path(members: Sequence[RunSpec], executor: str, devices: int, passes: Passes) -> Path:
    """Of runs of one shape, of which the one with most rows a pass and most items counts."""
    how = "map" if executor == "cpu" else executor
    heavy = [max(members, key=lambda r: max(s.data.n_items for s in r.stages)), max(members, key=lambda r: max(s.batch_size for s in r.stages))]
    first = max(execute.plan(heavy, None, how, max(1, devices), passes.micro_batch, passes.remat), key=lambda p: (p.shape.micro_batch, p.shape.slots))
    size = first.size if how in ("map", "fsdp") else max(1, devices)  # what must fit is a run a device; more are packed as far as they do
    first = Pack(first.shape, first.runs[:size], size)
    room = memory.capacity() * (len(jax.local_devices()) if executor == "cpu" else 1)
    return Path(executor, devices, tuple(members), memory.of(first, how, devices), room, accounting.n_params(members[0].model))


def _largest(paths: Sequence[Path]) -> Path:
    most = max(paths, key=lambda p: p.memory.total / p.capacity)
    return Path(most.executor, most.devices, tuple(run for p in paths for run in p.runs), most.memory, most.capacity, most.n_params)
