"""Gradient episodic memory: the gradient is turned so that, to first order, the loss on no stored task rises."""

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

RIDGE = 2  # times the precision, on the Gram matrix of unit gradients, so that equal ones do no harm
CHANGES = 6  # of the set of tasks at which a constraint is met, for each task


def begin(ctx: Context, trained: Any, before: Any) -> Any:
    """The stored sequences: items of each task before, [tasks, M, S]."""
    del trained, before
    numbers = reading.numbers(ctx)
    return ctx.fetch(numbers.ravel()).reshape(*numbers.shape, -1)


def project(ctx: Context, trained: Any, memory: Any, grads: Any, step: Any) -> Any:
    """z = g + sum_k v_k g_k, the nearest to g with <z, g_k> >= 0 for all tasks before; v >= strength is the margin, 0 for the exact nearest.

    g_k is the mean gradient on all stored items of task k. Where no <g, g_k> is negative, z = g, whatever the margin. The margin bounds the
    multipliers, not the products: it leans towards old gradients, and the bound on the products holds with it, too.

    Source: Lopez-Paz & Ranzato 2017, by shared/literature/forgetting.md 4.1; the authors' margin is .5, and they add 1e-3 I to the Gram matrix.
    """
    del step
    old = lax.map(lambda tokens: reading.mean_gradient(ctx, trained, tokens)[1], memory)
    flat = jax.tree.map(lambda g: g.reshape(len(g), -1), old)
    gram = jnp.stack([g @ g.T for g in jax.tree.leaves(flat)]).sum(0)
    products = jnp.stack(jax.tree.leaves(jax.tree.map(lambda g, new: g @ new.astype(jnp.float32).ravel(), flat, grads))).sum(0)
    v = jnp.where(products.min() < 0, multipliers(gram, products, ctx.k["strategy_strength"]), 0)
    return jax.tree.map(lambda g, olds: (g + jnp.tensordot(v, olds, 1)).astype(g.dtype), grads, old)


def multipliers(gram: Float[Array, "T T"], products: Float[Array, " T"], margin: Any) -> Float[Array, " T"]:
    """v that minimises v' G v / 2 + p' v with v >= margin, by an active-set method that ends at the exact minimum (Lawson & Hanson's).

    In units of unit gradients, u = (v - margin) |g_k|: u >= 0 minimises u' Q u / 2 + c' u. The set of tasks with u > 0 grows by the one with the
    steepest descent and loses those that its minimum would make negative; 3 T changes are usual, and CHANGES T are made at most.

    Args:
      gram: G, inner products of the tasks' gradients.
      products: p, those with the new gradient.
      margin: 0 or more.

    >>> multipliers(jnp.eye(2), jnp.array([-1.0, 2.0]), 0.0).round(3).tolist()
    [1.0, 0.0]
    """
    size = jnp.sqrt(jnp.maximum(jnp.diagonal(gram), 1e-30))
    tasks, precision = len(size), jnp.finfo(gram.dtype).eps
    q = gram / size / size[:, None] + RIDGE * precision * jnp.eye(tasks)
    c = (products + gram @ jnp.full(tasks, margin)) / size
    least = 16 * precision * jnp.abs(c).max()

    def best(free):
        """The minimum over the free multipliers, the others at 0."""
        return jnp.linalg.solve(jnp.where(free[:, None] & free, q, jnp.eye(tasks)), jnp.where(free, -c, 0))

    def change(state):
        u, free, _, n = state
        goal = best(free)
        inside = jnp.all(~free | (goal > 0))
        reach = jnp.where(free & (goal <= 0), u / jnp.maximum(u - goal, 1e-30), 1).min()
        u = jnp.where(inside, goal, u + reach * (goal - u))
        left = free & (u > precision * jnp.abs(u).max())
        descent = jnp.where(free, -jnp.inf, -(q @ u + c))
        grown = free | ((jnp.arange(tasks) == descent.argmax()) & (descent.max() > least))
        return u, jnp.where(inside, grown, left), inside & (grown == free).all(), n + 1

    start = (jnp.zeros(tasks), jnp.zeros(tasks, bool), jnp.bool_(False), 0)
    u = lax.while_loop(lambda s: ~s[2] & (s[3] < CHANGES * tasks), change, start)[0]
    return jnp.maximum(u, 0) / size + margin


def costs(run: RunSpec) -> Costs:
    """Every step a training step on all stored items; their gradients, one copy of the trained numbers a task; the stored tokens.

    The quadratic program, of the size of the number of tasks, is not counted.
    """
    stage = run.stages[0]
    assert stage.strategy is not None
    stored = reading.stored(stage.strategy)
    steps = stage.exposures * -(-stage.data.n_items // stage.batch_size)
    kept = reading.tasks(stage.strategy) * trainable.n_trained(run.model, stage)
    return Costs(reading.share(run, steps * stored), kept, stored * run.model.seq_len)
