"""Learning without forgetting: the model at the start of the stage teaches the one that is trained, on the new items."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from scalemem import trainable
from scalemem.spec import RunSpec
from scalemem.strategies import reading
from scalemem.strategies.context import Context, Costs

TEMPERATURE = 2.0


def begin(ctx: Context, trained: Any, before: Any) -> Any:
    """The teacher: the weights at the start of the stage."""
    del ctx, before
    return trained


def batch_loss(ctx: Context, trained: Any, memory: Any, tokens: jax.Array, weights: jax.Array) -> jax.Array:
    """strength times the cross-entropy from the teacher's to the student's distribution, both at temperature 2, summed over scored positions.

        -sum_t c_t sum_v q_t(v) log p_t(v),    q = softmax(z_old / 2),  p = softmax(z / 2),

    over the tokens that the objective tells apart; of an objective that tells apart the classes of the item's own task only, over the others: those
    are what the teacher knows. c_t is the objective's weight of a position. There is no factor of temperature^2 and the teacher's entropy is not
    taken off, so the value is not 0 at the teacher; its slope is.

    Source: Li & Hoiem 2016, by shared/literature/forgetting.md 4.4 [M]. Their warm-up of a new head is not here: all heads are one.
    """
    support, weight = taught(ctx, tokens)
    old = jnp.exp(reading.picked(jax.lax.stop_gradient(ctx.apply(memory, tokens[:, :-1])), support, TEMPERATURE))
    new = reading.picked(ctx.apply(trained, tokens[:, :-1]), support, TEMPERATURE)
    nats = -jnp.where(support, old * new, 0).sum(-1)
    return ctx.k["strategy_strength"] * ((nats * weight).sum(-1) * weights).sum()


def taught(ctx: Context, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """On which logits of each position the teacher is heard, [B, T, V], and with which weight, [B, T]."""
    support, weight = reading.scored(ctx, tokens)
    if ctx.run.stages[0].objective.startswith("label_in_task"):
        support = ~support & (weight > 0)[..., None]
    return support, weight


def costs(run: RunSpec) -> Costs:
    """A forward pass of the teacher for each row: a third of a training step. One backward pass serves both losses, as the method needs no more
    (that the program here may make two is not counted). One copy of the trained numbers.
    """
    return Costs(1 / 3, trainable.n_trained(run.model, run.stages[0]))
