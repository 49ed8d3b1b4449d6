"""Many runs of one shape as one program: stack their numbers and states, and choose how the device goes through them.

map    one after another (`lax.map`): best on a CPU core, where one model fills the caches
vmap   all at once: best on a GPU or TPU, where many small models fill the chip
shard  spread over the devices along the mesh axis "runs" (`shard_map`), with map or vmap on each
fsdp   each run over several devices, its state split along the mesh axis "fsdp" (`sharding.py`): for a model too large for one of them; a pack
       has as many runs as there are such groups of devices, along the mesh axis "runs"
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from scalemem import sharding, train
from scalemem.spec import RunSpec, run_id


@dataclass(frozen=True)
class Pack:
    """Runs of one shape, padded to `size` with runs of no exposures (they cost nothing)."""

    shape: train.Shape
    runs: tuple[RunSpec, ...]
    size: int

    @property
    def id(self) -> str:
        """Identity of the pack: which runs, in which order, in how many places."""
        numbers = (self.size, self.shape.slots, *self.shape.later_slots, self.shape.micro_batch, *(["remat"] if self.shape.remat else []))
        text = ",".join([*map(str, numbers), *map(run_id, self.runs)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def knobs(pack: Pack, stage: int = 0) -> train.Knobs:
    """The traced numbers of a stage of a pack's runs, each an array [size]."""
    rows = [train.knobs(run, stage) for run in pack.runs]
    rows += [{**rows[-1], "exposures": 0}] * (pack.size - len(rows))
    return {name: jnp.asarray([row[name] for row in rows], jnp.int32 if isinstance(rows[0][name], int) else jnp.float32)
            for name in rows[0]}


class Program:
    """The compiled program of a stage: `start(knobs) -> states` and `advance(states, knobs, segments) -> states`.

    Args:
      shape: what fixes the program, of one stage.
      how: "map", "vmap", "shard" or "fsdp".
      devices: for "shard": the devices; the pack's size must be a multiple of their number. For "fsdp": the rows of a pass must be a multiple of
        those that a run has.
      size: of the pack; only "fsdp" needs it.
    """

    def __init__(self, shape: train.Shape, how: str, devices: Sequence[Any] = (), size: int = 1):
        mesh = _mesh(how, tuple(devices or jax.local_devices()), size)
        placement = sharding.placement(mesh) if how == "fsdp" and mesh else train.Placement()

        def start(k: train.Knobs) -> train.State:
            return _many(lambda one: train.start(shape, one), how, mesh)(k)

        def advance(states: train.State, k: train.Knobs, segments: jax.Array) -> train.State:
            return _many(lambda one: train.advance(shape, one[0], one[1], segments, placement), how, mesh)((states, k))

        if how == "shard":
            runs, all_ = PartitionSpec(sharding.RUNS), PartitionSpec()
            start = jax.shard_map(start, mesh=mesh, in_specs=runs, out_specs=runs, check_vma=False)
            advance = jax.shard_map(advance, mesh=mesh, in_specs=(runs, runs, all_), out_specs=runs, check_vma=False)
        self.mesh = mesh
        self.start = jax.jit(start)
        self.advance = jax.jit(advance, donate_argnums=0)


def _many(f, how: str, mesh: Mesh | None = None):
    """A function of one run as one of the pack's: on one device of the mesh, or for "fsdp" each on its row of devices."""
    if how == "fsdp" and mesh:
        alone = lambda given: jax.tree.map(lambda x: x[None], f(jax.tree.map(lambda x: x[0], given)))  # noqa: E731
        many = jax.vmap(f, spmd_axis_name=sharding.RUNS) if mesh.shape[sharding.RUNS] > 1 else alone
        return lambda given: sharding.placed(many(given), mesh, packed=True)
    at_once = how == "vmap" or (how == "shard" and jax.default_backend() != "cpu")
    return jax.vmap(f) if at_once else functools.partial(jax.lax.map, f)


def _mesh(how: str, devices: tuple[Any, ...], size: int) -> Mesh | None:
    if how == "shard":
        return Mesh(np.asarray(devices), (sharding.RUNS,))
    return sharding.mesh(devices, size) if how == "fsdp" else None


def devices(n: int) -> tuple[Any, ...]:
    """The first n devices of this process; more than it has are those of all processes, of which one computation then is."""
    own = jax.local_devices()
    return tuple(own[:n] if n <= len(own) else jax.devices()[:n])


@functools.lru_cache(maxsize=128)
def program(shape: train.Shape, how: str, n_devices: int = 0, size: int = 1) -> Program:
    """The program of a shape, built once a process; `size`, of the pack, is for "fsdp" alone."""
    return Program(shape, how, devices(n_devices), size)


@functools.lru_cache(maxsize=128)
def switch(shape: train.Shape, i: int, how: str, n_devices: int = 0, size: int = 1):
    """The compiled function (states, knobs of stage i - 1, knobs of stage i) -> states before the first step of stage i."""
    before, now = shape.run.stages[i - 1 : i + 1]
    same = before.strategy is not None and now.strategy is not None and before.strategy.name == now.strategy.name
    return _switch(shape.stage(i - 1), shape.stage(i), how, n_devices, size, now.continued, same)


@functools.lru_cache(maxsize=128)
def _switch(before: train.Shape, after: train.Shape, how: str, n_devices: int, size: int, continued: bool, same: bool):
    def one(given):
        return train.switch(before, after, *given, continued=continued, same=same)

    mesh = _mesh(how, devices(n_devices), size) if how == "fsdp" else None
    return jax.jit(lambda states, k_before, k: _many(one, how, mesh)((states, k_before, k)))


@functools.lru_cache(maxsize=128)
def _weights(shape: train.Shape, ended: bool):
    return jax.jit(lambda state, k: train.weights(shape, state, k, ended=ended))


def weights(shape: train.Shape, state: train.State, k: train.Knobs, ended: bool) -> Any:
    """The weights of one run in a stage; `shape` is the stage's, `state` and `k` are one run's."""
    stage = shape.run.stages[0]
    if stage.trains not in ("lora", "prompts") and not (ended and stage.strategy):
        return state.params
    return _weights(shape, ended)(state, k)


def unpack(states: Any, i: int) -> Any:
    """The state of run i of a pack, or its numbers."""
    return _at(states, i)


@jax.jit
def _at(states: Any, i: Any) -> Any:
    """One program for all leaves: an index of each by itself takes as long as a step of training."""
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), states)
