"""Elastic weight consolidation: a quadratic penalty around the weights after each task before, weighted by Fisher information."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from scalemem import trainable
from scalemem.spec import RunSpec
from scalemem.strategies import fisher, reading, trees
from scalemem.strategies.context import Context, Costs

KINDS = fisher.KINDS


def begin(ctx: Context, trained: Any, before: Any) -> dict[str, Any]:
    """Anchors and Fisher diagonals of the tasks before, one each, [tasks, ...]: those of the stage before, and one of the last task at `trained`.

    At the first stage with this strategy there are none before: all are of `trained`. The latest `tasks` are kept. Where fewer were learned (`seen`)
    the places that are left have no importance.
    """
    strategy, numbers, last = reading.spec(ctx), reading.numbers(ctx), reading.seen(ctx) - 1
    made = lambda some: fisher.diagonal(ctx, trained, some, strategy.kind or KINDS[0])  # noqa: E731
    if before is None:
        nothing = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), trained)
        return {"anchor": jax.tree.map(lambda w: jnp.broadcast_to(w, (strategy.tasks, *w.shape)), trained),
                "importance": lax.map(lambda j: lax.cond(j <= last, made, lambda _: nothing, numbers[j]), jnp.arange(strategy.tasks))}
    kept = jax.tree.map(lambda old: jnp.pad(old[-strategy.tasks:], ((0, max(0, strategy.tasks - len(old))), *((0, 0),) * (old.ndim - 1))), before)
    full = jnp.stack([f[last].sum() for f in jax.tree.leaves(kept["importance"])]).sum() > 0

    def put(old, new):
        """The new one in the last place, those before it in theirs, or, where that is taken, one place back."""
        return jnp.where(full, jnp.roll(old, -1, 0), old).at[last].set(new.astype(old.dtype))

    return {"anchor": jax.tree.map(put, kept["anchor"], trained), "importance": jax.tree.map(put, kept["importance"], made(numbers[last]))}


def penalty(ctx: Context, trained: Any, memory: Any) -> jax.Array:
    """(strength / 2) sum_k sum_i F_k,i (theta_i - theta*_k,i)^2, nats a scored token.

    With strength 1 and tasks of the size of the stage it is Laplace's approximation of the old losses. Not portable: others leave out the 1/2,
    or have another Fisher.

    Source: Kirkpatrick et al. 2017, by shared/literature/forgetting.md 4.2.
    """
    return ctx.k["strategy_strength"] / 2 * trees.distance(trained, memory["anchor"], memory["importance"])


def costs(run: RunSpec) -> Costs:
    """The Fisher of the last task's items, once: `fisher.passes` training steps an item; two copies of the trained numbers a task. No tokens.

    Of FLOPs, matrix products only, as everywhere: the penalty and its slope, a few operations a weight and step, are not counted.
    """
    stage = run.stages[0]
    assert stage.strategy is not None
    read = reading.per_task(stage.strategy) * fisher.passes(run, stage.strategy.kind or KINDS[0])
    return Costs(reading.share(run, read), 2 * reading.tasks(stage.strategy) * trainable.n_trained(run.model, stage))
