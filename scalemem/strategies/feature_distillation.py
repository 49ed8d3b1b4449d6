"""Distillation of features: the hidden states of the model that is trained stay near those of the model at the start of the stage."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from scalemem import trainable
from scalemem.models import parts
from scalemem.spec import ModelSpec, RunSpec
from scalemem.strategies import lwf, reading
from scalemem.strategies.context import Context, Costs

KINDS = ("last", "all")  # which hidden states: those before the final norm and head, or those after every layer

begin = lwf.begin


def layers(model: ModelSpec, kind: str) -> list[int]:
    """After which layers hidden states are compared.

    >>> layers(ModelSpec(d_model=4, n_layers=3, n_heads=1, vocab_size=8, seq_len=4), "all")
    [1, 2, 3]
    """
    return list(range(min(1, model.n_layers), model.n_layers + 1)) if kind == "all" else [model.n_layers]


def batch_loss(ctx: Context, trained: Any, memory: Any, tokens: jax.Array, weights: jax.Array) -> jax.Array:
    """(strength / 2) mean over layers of |h - h_old|^2 / |h_old|^2, summed over scored positions; 0 at the old model.

        (strength / 2) sum_t c_t (1 / K) sum_k |h_k,t - h_old_k,t|^2 / |h_old_k,t|^2

    c_t is the objective's weight of a position (`reading.scored`). The rows are those of the batch: new items, and old ones where the stage replays
    some. Relative to the size of the feature, so that a strength means the same for all widths and layers.

    Source: the hidden-state loss of row 27 of shared/literature/catalogue.tsv (features, outputs and rehearsal together); the division by |h_old|^2
    is ours.
    """
    of, chosen = ctx.run.model, layers(ctx.run.model, reading.spec(ctx).kind)
    position, far = reading.scored(ctx, tokens)[1], 0
    now, then = (ctx.weights(w) for w in (trained, memory))
    for layer in chosen:
        features = parts.lower(of, layer)
        old = jax.lax.stop_gradient(features(then, tokens[:, :-1])).astype(jnp.float32)
        apart = features(now, tokens[:, :-1]).astype(jnp.float32) - old
        far += (apart**2).sum(-1) / ((old**2).sum(-1) + 1e-12)
    return ctx.k["strategy_strength"] / 2 / len(chosen) * ((far * position).sum(-1) * weights).sum()


def costs(run: RunSpec) -> Costs:
    """As `lwf`: a third of a training step for the teacher's forward pass (with its head, which is not needed), a copy of the trained numbers.

    That the program writes the lower layers once for each layer of kind "all" is the compiler's to mend, and is not counted.
    """
    return Costs(1 / 3, trainable.n_trained(run.model, run.stages[0]))
