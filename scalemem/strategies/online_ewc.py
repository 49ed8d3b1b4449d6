"""Online elastic weight consolidation: one anchor, the latest, and a decaying sum of Fisher diagonals."""

from __future__ import annotations

from typing import Any

import jax

from scalemem import trainable
from scalemem.spec import RunSpec
from scalemem.strategies import ewc, fisher, reading, trees
from scalemem.strategies.context import Context, Costs

KINDS = fisher.KINDS


def begin(ctx: Context, trained: Any, before: Any) -> dict[str, Any]:
    """The anchor `trained`, and importance gamma F~_(t-1) + F_t, F_t of the items of the last of the tasks before; gamma = `decay`.

    At the first stage with this strategy, F~ = F_t.
    """
    new = fisher.diagonal(ctx, trained, reading.numbers(ctx)[reading.seen(ctx) - 1], reading.spec(ctx).kind or KINDS[0])
    if before is not None:
        new = trees.plus(new, before["importance"], ctx.k["strategy_decay"])
    return {"anchor": trained, "importance": new}


def penalty(ctx: Context, trained: Any, memory: Any) -> jax.Array:
    """(strength / 2) gamma sum_i F~_i (theta_i - theta*_i)^2, nats a scored token.

    Source: shared/literature/forgetting.md 4.2, where gamma stands before the sum, too. With gamma = 1 and one task it is `ewc`.
    """
    factor = ctx.k["strategy_strength"] * ctx.k["strategy_decay"] / 2
    return factor * trees.distance(trained, memory["anchor"], memory["importance"])


def costs(run: RunSpec) -> Costs:
    """The Fisher passes of `ewc`, and two copies of the trained numbers, whatever the number of tasks."""
    return ewc.costs(run)._replace(state_floats=2 * trainable.n_trained(run.model, run.stages[0]))
