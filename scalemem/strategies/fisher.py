"""The diagonal of the Fisher information of a model on some items, in the four ways that are in use."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from scalemem.spec import RunSpec
from scalemem.strategies import reading
from scalemem.strategies.context import Context

KINDS = ("exact", "sample", "empirical", "batched")
BATCH = 16  # items of a batch of "batched"


def diagonal(ctx: Context, trained: Any, numbers: Int[Array, " M"], kind: str) -> Any:
    """Diagonal of the Fisher information at `trained`, a scored token, in nats per squared weight.

    With s(y) = d log p(y | x) / d theta, over the tokens that the objective tells apart, averaged over the items:

        exact      E_{y ~ p} s(y)^2: no noise, one backward pass for each token of the vocabulary and position
        sample     s(y)^2 with one y ~ p for each position
        empirical  s(y)^2 with the true y
        batched    square of the mean of the true s(y) over BATCH items: biased; where s is noise it is BATCH times smaller than empirical

    A sequence is one item with the scores of its positions added up; the sum is divided by its scored tokens, so that the penalty
    1/2 sum F (theta - theta*)^2 stands beside a mean loss a scored token, and is Laplace's approximation of the old loss where old and new
    data are of one size. Not the true Hessian: equal to it where the model is calibrated, and exactly for quadratic losses of unit variance.

    Args:
      ctx: the stage; its objective says which positions are scored (`reading.scored`).
      trained: the weights.
      numbers: items, int32 [M].
      kind: one of KINDS.
    Returns:
      float32, in the structure of `trained`.
    Source: shared/literature/forgetting.md 4.2; van de Ven 2025 (arXiv 2502.11756) compares them.
    """
    rows = min(BATCH, len(numbers)) if kind == "batched" else 1
    count = len(numbers) // rows

    def one(total, i):
        tokens = ctx.fetch(lax.dynamic_slice_in_dim(numbers, i * rows, rows))
        support, weight = reading.scored(ctx, tokens)
        logits, pull = jax.vjp(lambda w: ctx.apply(w, tokens[:, :-1]), trained)
        log_p = reading.picked(logits, support)
        p, share = jnp.exp(log_p), jnp.sqrt(weight / (tokens.shape[1] - 1))[..., None] / rows

        def squared(y):  # y [B, S - 1]
            return jax.tree.map(lambda g: g.astype(jnp.float32) ** 2, pull(share * (p - support * jax.nn.one_hot(y, p.shape[-1])))[0])

        if kind == "exact":
            return jax.tree.map(jnp.add, total, _exact(ctx, p, share, pull)), None
        y = jax.random.categorical(jax.random.fold_in(ctx.key, i), log_p) if kind == "sample" else tokens[:, 1:]
        return jax.tree.map(jnp.add, total, squared(y)), None

    zero = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), trained)
    return jax.tree.map(lambda f: f / count, lax.scan(one, zero, jnp.arange(count))[0])


def _exact(ctx, p, share, pull):
    """sum_t sum_y p_t(y) s_t(y)^2 of one item, a position at a time, all y at once."""
    vocab, places = p.shape[-1], positions(ctx.run)

    def at(total, t):
        scores = jnp.sqrt(p[0, t])[:, None] * (p[0, t] - jnp.eye(vocab)) * share[0, t]  # [y, V]
        grads = jax.vmap(lambda s: pull(jnp.zeros_like(p).at[0, t].set(s))[0])(scores)
        return jax.tree.map(lambda a, g: a + (g.astype(jnp.float32) ** 2).sum(0), total, grads), None

    shapes = jax.eval_shape(lambda: pull(jnp.zeros_like(p))[0])
    return lax.scan(at, jax.tree.map(lambda g: jnp.zeros(g.shape, jnp.float32), shapes), jnp.asarray(places))[0]


def positions(run: RunSpec) -> list[int]:
    """Positions that the objective may score: the last of a labelled sequence, all of another."""
    last = run.model.seq_len - 2
    return [last] if run.stages[0].objective.startswith("label") else list(range(last + 1))


def passes(run: RunSpec, kind: str) -> float:
    """Cost of the Fisher of one item over that of a training step on it, with a backward pass at twice a forward pass."""
    return (1 + 2 * len(positions(run)) * run.model.vocab_size) / 3 if kind == "exact" else 1.0
