"""Rehearsal of what was damaged (mix-cd): blocks of the replay pool in proportion to how many of their tokens were right and are now wrong."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from scalemem.spec import RunSpec
from scalemem.strategies import reading
from scalemem.strategies.context import Context, Costs


def right(ctx: Context, trained: Any, tokens: Int[Array, "B S"]) -> tuple[Bool[Array, "B T"], Bool[Array, "B T"]]:
    """Which targets are the likeliest among the tokens that the objective tells apart; and which positions are scored."""
    support, weight = reading.scored(ctx, tokens)
    likeliest = jnp.where(support, ctx.apply(trained, tokens[:, :-1]), -jnp.inf).argmax(-1)
    return (likeliest == tokens[:, 1:]) & (weight > 0), weight > 0


def begin(ctx: Context, trained: Any, before: Any) -> dict[str, Any]:
    """What the old model gets right of the old items, [tasks, M, T], and counts of damaged and of scored tokens a block, from 0."""
    del before
    base = lax.map(lambda number: right(ctx, trained, ctx.fetch(number))[0], reading.numbers(ctx))
    return {"right": base, "damaged": jnp.zeros(len(base)), "scored": jnp.zeros(len(base))}


def after(ctx: Context, old: Any, new: Any, memory: Any, grads: Any, step: Any) -> tuple[Any, Any]:
    """Count one item of each block, drawn at random; what was counted before keeps `decay` of its weight.

    The source counts the rows that are rehearsed anyway. A strategy does not see them after the step, and draws its own: a forward pass more.
    """
    del old, grads
    numbers = reading.numbers(ctx)
    tasks, m = numbers.shape
    drawn = jax.random.randint(jax.random.fold_in(ctx.key, step), (tasks,), 0, m)
    now, scored = right(ctx, new, ctx.fetch(numbers[jnp.arange(tasks), drawn]))
    was, keep = memory["right"][jnp.arange(tasks), drawn], ctx.k["strategy_decay"]
    return new, memory | {"damaged": keep * memory["damaged"] + (was & ~now).sum(-1), "scored": keep * memory["scored"] + scored.sum(-1)}


def replay_weights(ctx: Context, memory: Any) -> Float[Array, " tasks"]:
    """The weights of the blocks, of one size: (damaged + 1) / (scored + 2), the share that is damaged, by Laplace's rule.

    Source: arXiv 2402.08096, by shared/literature/forgetting.md 4.10.
    """
    del ctx
    return (memory["damaged"] + 1) / (memory["scored"] + 2)


def costs(run: RunSpec) -> Costs:
    """A forward pass of the old items once and of one item a block and step; a number for each of their tokens. The pool is the replay's."""
    stage = run.stages[0]
    assert stage.strategy is not None
    pool = reading.stored(stage.strategy)
    steps = stage.exposures * -(-stage.data.n_items // stage.batch_size)
    return Costs(reading.share(run, (pool + steps * stage.strategy.tasks) / 3), pool * (run.model.seq_len - 1), pool * run.model.seq_len)
