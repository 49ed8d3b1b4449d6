"""Averaged gradient episodic memory: the gradient loses its part against the gradient on some stored items of all tasks."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from scalemem import trainable
from scalemem.spec import RunSpec
from scalemem.strategies import gem, reading, trees
from scalemem.strategies.context import Context, Costs

begin = gem.begin
MOST = 256  # items of a reference batch


def project(ctx: Context, trained: Any, memory: Any, grads: Any, step: Any) -> Any:
    """g' = g - min(0, <g, r>) / <r, r> r, r the mean gradient on as many stored items as the batch has, drawn with replacement at each step.

    At most MOST items. With one task, all of whose items are read, it is `gem` with margin 0. It has no number to choose: strength is not read.

    Source: Chaudhry et al. 2019, by shared/literature/forgetting.md 4.1.
    """
    pool = memory.reshape(-1, memory.shape[-1])
    drawn = jax.random.randint(jax.random.fold_in(ctx.key, step), (MOST,), 0, reading.seen(ctx) * memory.shape[1])
    reference = reading.mean_gradient(ctx, trained, pool[drawn], jnp.minimum(ctx.k["batch_size"], MOST))[1]
    return away(grads, reference)


def away(grads: Any, reference: Any) -> Any:
    """g - min(0, <g, r>) / <r, r> r.

    >>> away({"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([0.0, 1.0])})["w"].tolist()
    [1.0, 0.0]
    """
    share = jnp.minimum(trees.dot(grads, reference), 0) / jnp.maximum(trees.dot(reference, reference), 1e-30)
    return trees.plus(grads, reference, -share)


def costs(run: RunSpec) -> Costs:
    """Every step a second training step of the size of the batch; its gradient, one copy of the trained numbers; the stored tokens."""
    stage = run.stages[0]
    assert stage.strategy is not None
    steps = stage.exposures * -(-stage.data.n_items // stage.batch_size)
    stored = reading.stored(stage.strategy)
    return Costs(reading.share(run, steps * min(stage.batch_size, MOST)), trainable.n_trained(run.model, stage), stored * run.model.seq_len)
