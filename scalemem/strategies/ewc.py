"""Elastic weight consolidation: a quadratic penalty around the weights after each task before, weighted by Fisher information."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from scalemem import trainable
from scalemem.spec import RunSpec
from scalemem.strategies import fisher, reading, trees
from scalemem.strategies.context import Context, Costs

KINDS = fisher.KINDS


def begin(ctx: Context, trained: Any, before: Any) -> dict[str, Any]:
    """Anchors and Fisher diagonals of the tasks before, one each, [tasks, ...]: those of the stage before, and new ones at `trained`.

    The new ones are those that the stage before did not have: of the last task, or, at the first stage with this strategy, of all. A stage with
    fewer `tasks` than the one before keeps the latest.
    """
    strategy, numbers = reading.spec(ctx), reading.numbers(ctx)
    before = before or {}
    had = min(strategy.tasks - 1, jax.tree.leaves(before["importance"])[0].shape[0]) if before else 0
    new = [fisher.diagonal(ctx, trained, numbers[j], strategy.kind or KINDS[0]) for j in range(had, strategy.tasks)]
    anchors = [trained] * len(new)
    kept = lambda name: [jax.tree.map(lambda x: x[-had:], before[name])] if had else []  # noqa: E731
    join = lambda *parts: jnp.concatenate(parts)  # noqa: E731
    alone = lambda tree: jax.tree.map(lambda x: x[None], tree)  # noqa: E731
    return {"anchor": jax.tree.map(join, *kept("anchor"), *map(alone, anchors)),
            "importance": jax.tree.map(join, *kept("importance"), *map(alone, new))}


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
    return Costs(reading.share(run, read), 2 * stage.strategy.tasks * trainable.n_trained(run.model, stage))
