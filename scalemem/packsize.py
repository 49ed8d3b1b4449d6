"""How many runs share a program on a GPU or TPU: sizes are tried, and what each takes is remembered.

One small model does not fill such a chip: many at once do, until its arithmetic, its memory traffic or its memory binds. Where, depends on the
model and on the device, so it is measured: packs of 1, 4, 16, ... times the devices train for a moment, as long as a trial pays for itself. What
was measured is kept in the user's cache folder, by device, program and versions, so that a shape is tried once on a machine.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scalemem import accounting, execute, memory, pack, train
from scalemem.durable import write_whole
from scalemem.spec import RunSpec
from scalemem.worker import cache_folder

GROWTH = 4  # from one size tried to the next
ENOUGH = 0.95  # the smallest pack that trains at this share of the best rate is taken: it resumes and checkpoints sooner
PAYS = 10.0  # a trial must save, at most, this many times what the one before it took
FILLS = 0.8  # of a device's memory that a pack may fill
TRIAL_S = 0.5  # of training, after compiling
FEW_BATCHES = 4  # an epoch of a trial
WORTH_FLOPS = 1e13  # a sweep of less work than this is over before trials would be
UNTRIED = 64  # most runs of a pack of such a sweep; on a CPU as many as `execute` takes


class Trial(NamedTuple):
    """What a pack of some size takes."""

    flops_per_second: float
    device_bytes: float  # of one device: arguments, results and temporaries of the program
    trial_seconds: float  # that trying it took, compiling included; 0 if it is remembered


def choose(members: Sequence[RunSpec], shape: train.Shape, how: str, devices: int = 1, trial: Callable[..., Trial] | None = None) -> int:
    """The number of runs of a pack: the smallest that trains at 95 % of the best rate of the sizes tried.

    Of less than 1e13 FLOPs nothing is tried: 64 runs, on a CPU 8. Sizes are devices times 1, 4, 16, ... up to the number of runs. Trials end where
    a size is slower than the one before, where the next would fill more than 80 % of a device's memory, or where even twice the rate would not
    save ten times what the last trial took.

    Args:
      members: the runs that are to be packed.
      shape: of their program.
      how: "vmap" or "shard".
      devices: on how many the runs are spread.
      trial: of (shape, size, run, how, devices) gives a `Trial`; by default measures, or remembers.
    Returns:
      a multiple of `devices`.
    """
    work = sum(map(accounting.train_flops, members))
    if work < WORTH_FLOPS:
        size = execute.PACK_SIZE if jax.default_backend() == "cpu" else min(len(members), UNTRIED)
        return -(-size // devices) * devices
    trial = trial or remembered
    limit, found, size = memory.capacity(), {}, devices
    while True:
        found[size] = tried = trial(shape, size, members[0], how, devices)
        best = max(t.flops_per_second for t in found.values())
        left_s = work / best
        following = size * GROWTH
        if size >= len(members) or tried.flops_per_second < best or following / size * tried.device_bytes > FILLS * limit:
            break
        if left_s / 2 < PAYS * tried.trial_seconds:
            break
        size = min(following, -(-len(members) // devices) * devices)
    return next(n for n, t in sorted(found.items()) if t.flops_per_second >= ENOUGH * best)


def measured(shape: train.Shape, size: int, run: RunSpec, how: str, devices: int) -> Trial:
    """Compiles the first stage's program for a pack of some size, and trains for half a second on a few batches a run."""
    began, stage = time.perf_counter(), run.stages[0]
    n_items = min(stage.data.n_items, FEW_BATCHES * stage.batch_size)
    program, first = pack.program(shape.stage(0), how, devices if how == "shard" else 0), pack.Pack(shape, (run,) * size, size)
    k = pack.knobs(first) | {"n_items": jnp.full(size, n_items, jnp.int32), "exposures": jnp.full(size, 1 << 20, jnp.int32)}
    states = program.start(k)
    compiled = program.advance.lower(states, k, 1).compile()
    used = compiled.memory_analysis()
    held = sum(getattr(used, f"{kind}_size_in_bytes", 0) for kind in ("argument", "output", "temp")) if used else 0.0
    states, segments = jax.block_until_ready(compiled(states, k, 1)), 1
    while True:
        tick = time.perf_counter()
        states = jax.block_until_ready(compiled(states, k, segments))
        took = time.perf_counter() - tick
        if took >= TRIAL_S / 2 or segments >= 1 << 16:
            break
        segments = max(2 * segments, int(segments * TRIAL_S / max(took, 1e-4)))
    flops = accounting.stage_flops(run.model, stage) / stage.exposures * n_items / stage.data.n_items / stage.segments
    return Trial(flops * size * segments / took, float(held), time.perf_counter() - began)


def remembered(shape: train.Shape, size: int, run: RunSpec, how: str, devices: int) -> Trial:
    """As `measured`, or what it gave on this device before, with these versions."""
    batch = run.stages[0].batch_size
    about = (shape, size, batch, how, devices, jax.local_devices()[0].device_kind, jax.__version__, memory.capacity())
    path = cache_folder("packs") / f"{hashlib.sha256(repr(about).encode()).hexdigest()[:24]}.json"
    try:
        return Trial(**json.loads(path.read_bytes()), trial_seconds=0.0)
    except (OSError, ValueError, TypeError):
        found = measured(shape, size, run, how, devices)
    kept = {k: v for k, v in found._asdict().items() if k != "trial_seconds"}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(kept).encode())
    except OSError:  # a cache that cannot be written is none
        pass
    return found
