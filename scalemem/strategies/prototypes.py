"""Distillation of prototype relations: how an item lies among the old classes' prototypes stays as it was for the old model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scalemem import trainable
from scalemem.spec import RunSpec
from scalemem.strategies import centre_loss, reading
from scalemem.strategies.context import Context, Costs

TEMPERATURE = 0.2  # of the cosines


def begin(ctx: Context, trained: Any, before: Any) -> dict[str, Any]:
    """The old model, and the prototype of each class among the old items: the mean of its features (`centre_loss.features`) under it."""
    del before
    mean, count = centre_loss.centres(ctx, trained, ctx.fetch(reading.numbers(ctx).ravel()))
    return {"teacher": trained, "prototypes": mean, "known": count > 0}


def relation(features: Float[Array, "B V"], prototypes: Float[Array, "C V"], known: Float[Array, " C"]) -> Float[Array, "B C"]:
    """Log-softmax over the known classes of the cosine between features and prototypes over TEMPERATURE; -1e30 for the others."""
    unit = lambda x: x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + 1e-12)  # noqa: E731
    return reading.picked(unit(features) @ unit(prototypes).T / TEMPERATURE, jnp.broadcast_to(known, (len(features), len(known))))


def batch_loss(ctx: Context, trained: Any, memory: Any, tokens: jax.Array, weights: jax.Array) -> jax.Array:
    """strength times KL(old relation || new relation) of each new item, as often as a row has scored tokens. It is 0 at the old model.

    No old item is kept. The source's contrastive head and moving prototypes are not here.
    Source: the idea of prototype-sample relation distillation, row 69 of shared/literature/catalogue.tsv; the formula is ours.
    """
    old = relation(jax.lax.stop_gradient(centre_loss.features(ctx, memory["teacher"], tokens)), memory["prototypes"], memory["known"])
    new = relation(centre_loss.features(ctx, trained, tokens), memory["prototypes"], memory["known"])
    nats = jnp.where(memory["known"], jnp.exp(old) * (old - new), 0).sum(-1)
    return ctx.k["strategy_strength"] * (nats * weights).sum() * (tokens.shape[1] - 1)


def costs(run: RunSpec) -> Costs:
    """A forward pass of the old items once, and of the old model for each row; a copy of the trained numbers and V^2 numbers, the prototypes."""
    stage = run.stages[0]
    assert stage.strategy is not None
    old = reading.stored(stage.strategy)
    return Costs(1 / 3 + reading.share(run, old / 3), trainable.n_trained(run.model, stage) + run.model.vocab_size**2)
