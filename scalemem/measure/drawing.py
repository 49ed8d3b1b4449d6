"""Items for measures, drawn by programs that are kept: one for each data set, whatever ranges of it the stages of a run read."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from scalemem import data
from scalemem.spec import RunSpec


def bare(run: RunSpec) -> RunSpec:
    """A run without what its items do not depend on: equal for all runs that read one source."""
    stage = run.stages[0]
    same = type(stage)(data=dataclasses.replace(stage.data, n_items=1, first=0), optimizer=stage.optimizer, exposures=0, batch_size=1)
    return dataclasses.replace(run, stages=(dataclasses.replace(same, optimizer=type(stage.optimizer)(peak_lr=1.0)),), seed=0)


@functools.lru_cache(maxsize=64)
def _program(run: RunSpec):
    return jax.jit(lambda key, index: data.get(run.stages[0].data.generator).items(run, key, index))


def items(run: RunSpec, key: jax.Array, index: Any) -> jax.Array:
    """Items of the source of a run by number, int32 [B, S]."""
    return _program(bare(run))(key, jnp.asarray(index, jnp.int32))
