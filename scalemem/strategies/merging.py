"""Merging of models: at the end of each stage, the mean of what all stages have ended at."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from scalemem import trainable
from scalemem.spec import RunSpec
from scalemem.strategies import reading, trees
from scalemem.strategies.context import Context, Costs

KINDS = ("linear", "slerp")


def begin(ctx: Context, trained: Any, before: Any) -> Any:
    """What is merged so far: the weights at the start."""
    del ctx, before
    return trained


def finish(ctx: Context, trained: Any, memory: Any) -> Any:
    """The point at strength / (tasks + 1) from what is merged so far to the end of this stage; `tasks` is how many stages that is.

    linear: with strength 1 the mean, with equal weights, of the ends of all stages, each of which began at the mean before it. slerp: on the great
    circle between the directions of each array, and the length in between; the same where two arrays point one way.

    Source: shared/literature/forgetting.md 4.21, which names both and no weights.
    """
    share = ctx.k["strategy_strength"] / (reading.seen(ctx) + 1)
    if (reading.spec(ctx).kind or KINDS[0]) == "linear":
        return trees.between(memory, trained, share)
    return jax.tree.map(lambda a, b: slerp(a, b, share), memory, trained)


def slerp(a: jax.Array, b: jax.Array, share: Any) -> jax.Array:
    """From array a to b: directions on a great circle at an even speed, lengths in between linearly. Linear where they are (nearly) parallel.

    >>> [round(x, 3) for x in slerp(jnp.array([1.0, 0.0]), jnp.array([0.0, 3.0]), 0.5).tolist()]
    [1.414, 1.414]
    """
    x, y = a.astype(jnp.float32), b.astype(jnp.float32)
    size = jnp.maximum(jnp.sqrt((x * x).sum()), 1e-30), jnp.maximum(jnp.sqrt((y * y).sum()), 1e-30)
    angle = jnp.arccos(jnp.clip((x * y).sum() / size[0] / size[1], -1, 1))
    flat = (angle < 1e-3) | (angle > 3.14)
    sine = jnp.where(flat, 1, jnp.sin(angle))
    turned = (jnp.sin((1 - share) * angle) * x / size[0] + jnp.sin(share * angle) * y / size[1]) / sine
    return jnp.where(flat, (1 - share) * x + share * y, turned * ((1 - share) * size[0] + share * size[1])).astype(a.dtype)


def costs(run: RunSpec) -> Costs:
    """No matrix product more, and one copy of the trained numbers."""
    return Costs(state_floats=trainable.n_trained(run.model, run.stages[0]))
