"""Items for measures, drawn by programs that are kept: one for each data set, whatever ranges of it the stages of a run read."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scalemem import data, quick
from scalemem.data.canaries import exact
from scalemem.spec import ModelSpec, OptimizerSpec, Probe, RunSpec, Stage


@functools.lru_cache(maxsize=256)
def bare(run: RunSpec, canaries: bool = False) -> RunSpec:
    """A run without what its items do not depend on: equal for all runs that read one source; with its canaries, if asked for."""
    source, model = run.stages[0].data, run.model
    planted = source.canaries if canaries else None
    same = dataclasses.replace(source, n_items=max(1, planted.planted_items if planted else 1), first=0, canaries=planted)
    least = ModelSpec(d_model=1, n_layers=0, n_heads=1, vocab_size=model.vocab_size, seq_len=model.seq_len)
    return RunSpec(least, (Stage(data=same, optimizer=OptimizerSpec(peak_lr=1.0), exposures=0, batch_size=1),), (Probe("none"),))


@functools.lru_cache(maxsize=64)
def _program(run: RunSpec, function: Any, quickly: bool = False):
    """function(run, ...) compiled, kept for this run and function."""
    return jax.jit(functools.partial(function, run), compiler_options=quick.options(quickly))


def _drawn(run: RunSpec, function: Any, key: jax.Array, index: Any) -> jax.Array:
    """Of a text, whose items are looked up, at once; of others by a kept program, for a power of two of items: few shapes to compile."""
    index = jnp.asarray(index, jnp.int32)
    if run.stages[0].data.generator == "text":
        return function(run, key, index)
    room = (1 << max(len(index) - 1, 0).bit_length()) - len(index)
    return _program(run, function, quick.worth(0.0) and exact(run))(key, jnp.pad(index, (0, room)))[: len(index)]


def items(run: RunSpec, key: jax.Array, index: Any) -> jax.Array:
    """Items of the source of a run by number, int32 [B, S], without canaries."""
    return _drawn(bare(run), data.get(run.stages[0].data.generator).items, key, index)


def trained(run: RunSpec, key: jax.Array, index: Any) -> jax.Array:
    """Items of the data set of a run by number, int32 [B, S], its canaries planted."""
    return _drawn(bare(run, canaries=True), data.items, key, index)


def nats(run: RunSpec, tokens: jax.Array) -> np.ndarray | None:
    """-log p of tokens 2..S under the source, nats [B, S - 1]; None if the source cannot tell."""
    found = getattr(data.get(run.stages[0].data.generator), "nats", None)
    if found is None:
        return None
    return np.asarray(found(run, tokens) if run.stages[0].data.generator == "text" else _program(bare(run), found)(tokens))
