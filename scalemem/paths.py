"""Which executor a run takes, and whether it fits: decided by the memory of a device, before anything runs.

"auto" is a process a core on CPUs, vmap on one accelerator, shard on several; a model too large for one device of several is split (fsdp) over as few
of them as have room for it, and as many runs train at once as there are such groups of devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax

from scalemem import accounting, execute, memory
from scalemem.memory import Memory
from scalemem.pack import Pack
from scalemem.spec import RunSpec, SpecError
from scalemem.store import Store
from scalemem.train import Shape

GB = 1e9


@dataclass(frozen=True)
class Passes:
    """How a step goes through its batch and over devices: options of a call, which change no number beyond rounding."""

    micro_batch: int = 0  # most rows a forward pass; 0: as suits the executor
    remat: bool = False  # each block's activations are computed again in the backward pass
    split: int = 0  # devices that a model is split over with fsdp; 0: all, or where auto has chosen it as few as have the memory

    def __post_init__(self) -> None:
        if self.micro_batch < 0:
            raise SpecError(f"--micro-batch {self.micro_batch}: must be at least 1 row; leave it out for what suits the executor")
        if self.split < 0:
            raise SpecError(f"--split {self.split}: must be at least 1 device; leave it out for all of them")


@dataclass(frozen=True)
class Path:
    """The way of some runs, of which the largest needs `memory` on each device."""

    executor: str  # cpu, vmap, shard, fsdp
    devices: int  # over which a pack is spread; 0: on one
    runs: tuple[RunSpec, ...]
    memory: Memory
    capacity: float  # bytes of a device; of the executor cpu, of the machine
    n_params: int  # of the largest
    split: int = 0  # of fsdp: devices that each run is split over

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

    def plan(self, store: Store | None, passes: Passes, sizes: Callable[[Sequence[RunSpec], Shape], int] | None = None) -> list[Pack]:
        """The packs of its runs that a store lacks: `execute.plan`."""
        return execute.plan(self.runs, store, self.how, max(1, self.devices), passes.micro_batch, passes.remat, sizes, self.split)

    def row(self) -> dict[str, object]:
        """For a plan: path, devices, runs and bytes on each device."""
        return {"path": self.executor, "devices": max(1, self.devices), "split": max(1, self.split), "runs": len(self.runs),
                "largest_n_params": self.n_params, **{f"{name}_bytes": value for name, value in self.memory._asdict().items()},
                "memory_bytes": self.memory.total, "capacity_bytes": self.capacity, "fits": self.fits}

    def complaint(self) -> str:
        """One line on a model that does not fit; empty if it does."""
        if self.fits:
            return ""
        m, n = self.memory, self.split or self.devices
        where = "the machine" if self.executor == "cpu" else f"each of {n} devices" if n > 1 else "the device"
        parts = ", ".join(f"{name} {value / GB:.2g}" for name, value in m._asdict().items())
        mend = "lower --micro-batch, add --remat, or take more devices" if m.activations > m.total / 3 else "take more devices, or a smaller model"
        return (f"a model of {self.n_params:.3g} parameters needs about {m.total / GB:.3g} GB of {where} ({parts}): must be at most "
                f"{memory.FILLS:.0%} of the {self.capacity / GB:.3g} GB that it has; {mend}")


def of(runs: Sequence[RunSpec], executor: str, devices: int, passes: Passes = Passes(), auto: int = 0,
       room: float = 0.0) -> list[Path]:
    """The paths of a sweep's runs: one of all those that take the same way.

    Args:
      runs: the sweep.
      executor, devices: as `launch.choose` gives them.
      passes: options of the call.
      auto: over how many devices a model too large for one of them may be split; 0: over none.
      room: bytes of a device; of this process's by default.
    Raises:
      SpecError: a number of devices to split over that cannot be.
    """
    total = devices if executor == "fsdp" else auto
    if passes.split and not total:
        raise SpecError(f"--split {passes.split}: is of --executor fsdp or auto, not {executor}; choose one of these, or leave it out")
    if passes.split and total % passes.split:
        raise SpecError(f"--split {passes.split}: must divide the number of devices, {total}; choose one of {', '.join(map(str, _divisors(total)))}")
    found: dict[tuple[str, int, int], list[Path]] = {}
    groups: dict[object, list[RunSpec]] = {}
    for run in runs:
        groups.setdefault(execute.pack_key(run), []).append(run)
    for members in groups.values():
        path = _path(members, executor, devices, passes, room)
        if auto > 1 and executor != "fsdp" and not path.fits:
            able = [k for k in _divisors(auto) if k == auto or (k > 1 and auto // k <= len(members))]  # no group of devices without a run
            splits = [passes.split] if passes.split else able
            tried = (_path(members, "fsdp", auto, replace(passes, split=k), room) for k in splits)
            path = next(p for p in tried if p.fits or p.split == splits[-1])
        found.setdefault((path.executor, path.devices, path.split), []).append(path)
    return [_largest(paths) for paths in found.values()]


def possible(found: list[Path]) -> list[Path]:
    """Them; SpecError in one line if a model of one of them cannot fit."""
    if lost := next((path for path in found if path.never_fits), None):
        raise SpecError(lost.complaint())
    return found


def _divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]


def _path(members: Sequence[RunSpec], executor: str, devices: int, passes: Passes, room: float) -> Path:
    """Of runs of one shape, of which the one with most rows a pass and most items counts."""
    how = "map" if executor == "cpu" else executor
    heavy = [max(members, key=lambda r: max(s.data.n_items for s in r.stages)), max(members, key=lambda r: max(s.batch_size for s in r.stages))]
    split = (passes.split or devices) if how == "fsdp" else 0
    packs = execute.plan(heavy, None, how, max(1, devices), passes.micro_batch, passes.remat, split=split)
    first = max(packs, key=lambda p: (p.shape.micro_batch, p.shape.slots))
    size = first.size if how in ("map", "fsdp") else max(1, devices)  # what must fit is a run a device; more are packed as far as they do
    first = Pack(first.shape, first.runs[:size], size)
    room = room or memory.capacity() * (len(jax.local_devices()) if executor == "cpu" else 1)
    return Path(executor, devices, tuple(members), memory.of(first, how, devices), room, accounting.n_params(members[0].model), split)


def _largest(paths: Sequence[Path]) -> Path:
    most = max(paths, key=lambda p: p.memory.total / p.capacity)
    return replace(most, runs=tuple(run for p in paths for run in p.runs))
