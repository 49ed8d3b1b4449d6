"""Averages of weights: of the path of a stage, or of its two ends."""

from __future__ import annotations

from typing import Any

import jax

from scalemem import trainable
from scalemem.spec import RunSpec
from scalemem.strategies import trees
from scalemem.strategies.context import Context, Costs

KINDS = ("final", "ema", "mean")


def begin(ctx: Context, trained: Any, before: Any) -> Any:
    """The start of the stage, which is the average so far, in float32."""
    del ctx, before
    return trees.wide(trained)


def after(ctx: Context, old: Any, new: Any, memory: Any, grads: Any, step: Any) -> tuple[Any, Any]:
    """ema: a <- decay a + (1 - decay) theta after each step, so that decay = 1 stays at the start; mean: the mean of the start and all steps."""
    del old, grads
    kind = _kind(ctx.run)
    if kind == "final":
        return new, memory
    return new, trees.between(memory, new, 1 - ctx.k["strategy_decay"] if kind == "ema" else 1 / (step + 2.0))


def finish(ctx: Context, trained: Any, memory: Any) -> Any:
    """final: theta_0 + s (theta - theta_0), the straight line from the start (s = 0) to the end (1) of the stage and beyond.

    ema, mean: theta + s (a - theta), at s = 1 the average itself. s is the strength. Optimizer moments are not averaged.

    Source: shared/literature/forgetting.md 4.21 for the line; the averages are Polyak's, from memory, unverified.
    """
    s = ctx.k["strategy_strength"]
    start, end = (memory, trained) if _kind(ctx.run) == "final" else (trained, memory)
    return jax.tree.map(lambda x, like: x.astype(like.dtype), trees.between(trees.wide(start), trees.wide(end), s), trained)


def _kind(run: RunSpec) -> str:
    return run.stages[0].strategy.kind or KINDS[0]  # type: ignore[union-attr]


def costs(run: RunSpec) -> Costs:
    """No matrix product more, and one copy of the trained numbers."""
    return Costs(state_floats=trainable.n_trained(run.model, run.stages[0]))
