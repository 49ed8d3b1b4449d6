"""Synaptic intelligence: a quadratic penalty weighted by how much each weight's path has lowered the loss."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from scalemem import trainable
from scalemem.spec import RunSpec
from scalemem.strategies import trees
from scalemem.strategies.context import Context, Costs

XI = {"": 1e-3, "xi_0.1": 0.1, "xi_0.01": 0.01, "xi_0.001": 1e-3}  # the damping, by the name of the kind
KINDS = tuple(XI)


def begin(ctx: Context, trained: Any, before: Any) -> dict[str, Any]:
    """Path contributions from 0, the start of the path, and the importance of what was learned in the stages before:

        Omega_i <- Omega_i + relu(w_i / ((theta_i - theta_i,start)^2 + xi))

    with the path w of the stage before. At the first stage with this strategy, which may be the very first of the run, Omega = 0; so the stages
    whose knowledge counts need this strategy, too.
    """
    zero = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), trained)
    xi = XI[ctx.run.stages[0].strategy.kind]  # type: ignore[union-attr]

    def more(total, w, now, start):
        return total + jax.nn.relu(w / ((now.astype(jnp.float32) - start.astype(jnp.float32)) ** 2 + xi))

    importance = zero if before is None else jax.tree.map(more, before["importance"], before["path"], trained, before["anchor"])
    return {"importance": importance, "path": zero, "anchor": trained}


def penalty(ctx: Context, trained: Any, memory: Any) -> jax.Array:
    """strength sum_i Omega_i (theta_i - theta*_i)^2 without a factor of 1/2, nats a scored token; theta* the weights at the start."""
    return ctx.k["strategy_strength"] * trees.distance(trained, memory["anchor"], memory["importance"])


def after(ctx: Context, old: Any, new: Any, memory: Any, grads: Any, step: Any) -> tuple[Any, Any]:
    """w_i <- w_i - g_i (theta_i,new - theta_i,old), g the gradient of the loss without the penalty, at the old weights.

    Along a path of small steps sum_i w_i is the fall of the loss. Source: Zenke et al. 2017, by shared/literature/forgetting.md 4.3.
    """
    del ctx, step
    def more(w, g, a, b):
        return w - g.astype(jnp.float32) * (b.astype(jnp.float32) - a.astype(jnp.float32))
    return new, memory | {"path": jax.tree.map(more, memory["path"], grads, old, new)}


def costs(run: RunSpec) -> Costs:
    """No matrix product more, and three copies of the trained numbers: importance, path and anchor."""
    return Costs(state_floats=3 * trainable.n_trained(run.model, run.stages[0]))
