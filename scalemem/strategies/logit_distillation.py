"""Distillation of logits: squared distance between the centred logits of the model at the start of the stage and the one that is trained."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from scalemem.spec import RunSpec
from scalemem.strategies import lwf
from scalemem.strategies.context import Context, Costs

begin = lwf.begin


def batch_loss(ctx: Context, trained: Any, memory: Any, tokens: jax.Array, weights: jax.Array) -> jax.Array:
    """(strength / 2) mean_v (z_v - z_old,v)^2, summed over scored positions, z centred: less its mean over the tokens that are taught.

    This is what feature distillation is where a model is known by its logits only, as it is to a strategy: the head is linear in the last hidden
    state h, so it is a quadratic form of h - h_old, plus what the head has changed. Centred, because a constant added to all logits means nothing.
    Which tokens and positions: as in `lwf`.
    """
    support, weight = lwf.taught(ctx, tokens)
    count = jnp.maximum(support.sum(-1), 1)
    apart = jnp.where(support, ctx.apply(trained, tokens[:, :-1]) - jax.lax.stop_gradient(ctx.apply(memory, tokens[:, :-1])), 0)
    centred = jnp.where(support, apart - (apart.sum(-1) / count)[..., None], 0)
    return ctx.k["strategy_strength"] / 2 * (((centred**2).sum(-1) / count * weight).sum(-1) * weights).sum()


def costs(run: RunSpec) -> Costs:
    """As `lwf`: a third of a training step for the teacher's forward pass, and a copy of the trained numbers."""
    return lwf.costs(run)
