"""CODA-Prompt: a prompt is the sum of all components, weighted by attention to their keys, and components are kept at right angles."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from scalemem.models import prompts
from scalemem.spec import RunSpec
from scalemem.strategies.context import Context, Costs
from scalemem.strategies.l2p import extra


def penalty(ctx: Context, trained: Any, memory: Any) -> jax.Array:
    """strength times |P P' - I|^2 + |K K' - I|^2 + |A A' - I|^2, of the components P (each as one long row), their keys K and attention A.

    It is 0 at the start, where the rows are orthonormal, if a pool is no larger than the width. The pool is cut into `tasks` equal parts: a stage
    trains the next one, reads those up to it, and leaves those before it as they are; rows that are still to come are in no product. tasks = 1 trains
    all of them in every stage.

    Source: Smith et al. 2023, by shared/literature/forgetting.md 4.22 (brief) and row 84 of catalogue.tsv; the penalty from memory, unverified.
    """
    del memory
    read = prompts.parts(ctx.weights(trained)["prompts"])[1]
    return ctx.k["strategy_strength"] * sum(orthogonality(trained[name], read) for name in ("components", "keys", "attention"))


def orthogonality(rows: jax.Array, read: Any) -> jax.Array:
    """|B B' - I|^2, the squared Frobenius norm, of the first `read` rows (which may be traced) of an array.

    >>> float(orthogonality(jnp.array([[1.0, 0.0], [1.0, 0.0], [9.0, 9.0]]), 2))
    2.0
    """
    on = jnp.arange(len(rows)) < read
    flat = jnp.where(on[:, None], rows.reshape(len(rows), -1), 0)
    return ((flat @ flat.T - jnp.diag(on)) ** 2).sum()


def after(ctx: Context, old: Any, new: Any, memory: Any, grads: Any, step: Any) -> tuple[Any, Any]:
    """Components of other tasks stay as they are, also where decay would move them."""
    del grads, step
    first, last = prompts.parts(ctx.weights(new)["prompts"])

    def keep(before, now):
        rows = jnp.arange(len(now)).reshape(-1, *(1,) * (now.ndim - 1))
        return jnp.where((rows >= first) & (rows < last), now, before)

    return jax.tree.map(keep, old, new), memory


def costs(run: RunSpec) -> Costs:
    """As `l2p.extra`, for the whole pool in every block: keys of all components meet the query before they are summed."""
    stage = run.stages[0]
    assert stage.strategy is not None
    return extra(run, stage.strategy.pool * stage.strategy.length, run.model.n_layers)
