"""Learned weights of the blocks of the replay pool: more of a block whose gradient serves old and new data together."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from scalemem import trainable
from scalemem.spec import RunSpec
from scalemem.strategies import reading
from scalemem.strategies.context import Context, Costs


def begin(ctx: Context, trained: Any, before: Any) -> Any:
    """Logits of the weights, [tasks], all 0: equal weights."""
    del trained, before
    return jnp.zeros(reading.spec(ctx).tasks)


def after(ctx: Context, old: Any, new: Any, memory: Any, grads: Any, step: Any) -> tuple[Any, Any]:
    """logit_j <- logit_j + strength cos(g_j, g_val).

    g_j is the gradient on one item of block j, drawn at random; g_val the sum of the step's gradient and of the mean gradient on other such items,
    of unit length each. A step against g_j lowers the loss of g_val by their product, so this is the outer step of a bi-level problem in which the
    inner one is a single step of descent.

    Source: Relational Experience Replay, row 15 of shared/literature/catalogue.tsv, learns the weights of tasks and samples by a network; this
    one-step form, of tasks only, is ours.
    """
    numbers = reading.numbers(ctx)
    tasks, m = numbers.shape
    drawn = jax.random.randint(jax.random.fold_in(ctx.key, step), (2, tasks), 0, m)

    def unit(tree):
        flat = jnp.concatenate([g.astype(jnp.float32).ravel() for g in jax.tree.leaves(tree)])
        return flat * lax.rsqrt((flat * flat).sum() + 1e-30)

    def gradient(number):
        return unit(reading.mean_gradient(ctx, old, ctx.fetch(number[None]))[1])

    each, other = lax.map(lambda row: lax.map(gradient, row), numbers[jnp.arange(tasks), drawn])
    return new, memory + ctx.k["strategy_strength"] * each @ unit(unit(grads) + unit(other.mean(0)))


def replay_weights(ctx: Context, memory: Any) -> Float[Array, " tasks"]:
    """softmax(logits), times the number of blocks.

    >>> replay_weights(None, jnp.zeros(4)).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    del ctx
    return jax.nn.softmax(memory) * len(memory)


def costs(run: RunSpec) -> Costs:
    """Two training steps on an item of each block at each step; their gradients, and a number a block. The pool is the replay's."""
    stage = run.stages[0]
    assert stage.strategy is not None
    tasks, n = stage.strategy.tasks, trainable.n_trained(run.model, stage)
    steps = stage.exposures * -(-stage.data.n_items // stage.batch_size)
    return Costs(reading.share(run, 2 * tasks * steps), 2 * tasks * n + tasks, tasks * reading.per_task(stage.strategy) * run.model.seq_len)
