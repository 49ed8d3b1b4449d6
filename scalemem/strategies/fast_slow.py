"""Fast and slow weights: the fast ones are trained, the slow ones follow them every few steps, and the fast ones go back to the slow."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from scalemem import trainable
from scalemem.spec import RunSpec
from scalemem.strategies import trees
from scalemem.strategies.context import Context, Costs


def begin(ctx: Context, trained: Any, before: Any) -> Any:
    """The slow weights: those at the start."""
    del ctx, before
    return trained


def after(ctx: Context, old: Any, new: Any, memory: Any, grads: Any, step: Any) -> tuple[Any, Any]:
    """Every `items` steps: slow <- slow + strength (fast - slow), and fast <- slow.

    This is the Lookahead optimizer's rule (Zhang et al. 2019, from memory, unverified), and not a brain-inspired consolidation of two networks. The
    optimizer's moments go on.
    """
    del old, grads
    due = jnp.float32((step + 1) % ctx.k["strategy_items"] == 0)
    slow = trees.between(memory, new, due * ctx.k["strategy_strength"])
    return trees.between(new, slow, due), slow


def finish(ctx: Context, trained: Any, memory: Any) -> Any:
    """The slow weights: what the fast ones did since they last came together is not kept."""
    del ctx, trained
    return memory


def costs(run: RunSpec) -> Costs:
    """No matrix product more, and one copy of the trained numbers."""
    return Costs(state_floats=trainable.n_trained(run.model, run.stages[0]))
