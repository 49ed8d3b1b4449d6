"""In which order an epoch sees its items, and the PRNG keys of a run's purposes."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt32

from scalemem.data import canaries
from scalemem.spec import RunSpec

SEQUENCE = 12  # bits of a rank that tell the copies of a massed canary apart


def key(seed: Any, name: str) -> jax.Array:
    """The PRNG key of a purpose (init, data, order, probe): threefry, the seed folded with the name."""
    if isinstance(seed, int):
        return _known(seed, name)
    return _made(seed, name)


@functools.lru_cache(maxsize=1024)
def _known(seed: int, name: str) -> jax.Array:
    with jax.ensure_compile_time_eval():  # a number, whoever asks
        return _made(seed, name)


def _made(seed: Any, name: str) -> jax.Array:
    fold = sum(ord(c) << (8 * i) for i, c in enumerate(name[:4]))
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), fold)


def permutation(run: RunSpec, epoch_key: jax.Array, slots: int, n_items: Any) -> Int[Array, " slots"]:
    """Item numbers in the order in which an epoch sees them: the first `n_items` places are a permutation of 0 .. n_items - 1.

    Every item draws a rank from its own fold of the key, so the order of some items does not depend on how many others there are;
    canaries draw theirs where their placement says (`rank`).

    Args:
      run: gives the order ("permuted" or "sequential") and the placement of canaries.
      epoch_key: the order's key folded with the epoch.
      slots: static room for items.
      n_items: how many there are, may be traced.
    """
    slot = jnp.arange(slots)
    if run.stages[0].order == "sequential":
        return slot
    draw = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(epoch_key, i)))(slot) >> 1
    if run.stages[0].data.canaries is not None:
        draw = rank(run, epoch_key, slot, draw)
    return jnp.argsort(jnp.where(slot < n_items, draw, jnp.uint32(0xFFFFFFFF)))


def rank(run: RunSpec, epoch_key: jax.Array, slot: Int[Array, " N"], draw: UInt32[Array, " N"]) -> UInt32[Array, " N"]:
    """Ranks in [0, 2^31) of an epoch's items, of which `draw` are independent and uniform.

    anywhere: as drawn. early, late: canaries in the first or last quarter of the epoch. massed: the copies of a canary one after
    another. spaced: evenly over the epoch, wrapping around, from a place that the canary draws.
    """
    spec = run.stages[0].data.canaries
    assert spec is not None
    layout, planted = canaries.layout(spec), slot < spec.planted_items
    at = jnp.minimum(slot, spec.planted_items - 1)
    if spec.placement == "early":
        moved = draw >> 2
    elif spec.placement == "late":
        moved = (draw >> 2) + jnp.uint32(3 << 29)
    elif spec.placement in ("massed", "spaced"):
        own = jax.vmap(lambda c: jax.random.bits(jax.random.fold_in(jax.random.fold_in(epoch_key, 0x504C4143), c)))
        start = own(jnp.asarray(layout.canary)[at]) >> 1
        copy, copies = (jnp.asarray(x, jnp.uint32)[at] for x in (layout.copy, layout.copies))
        if spec.placement == "massed":
            moved = ((start >> SEQUENCE) << SEQUENCE) + copy
        else:
            moved = (start + copy * (jnp.uint32(1 << 31) // copies)) & jnp.uint32(0x7FFFFFFF)
    else:
        return draw
    return jnp.where(planted, moved, draw)
