"""Tokens drawn independently and uniformly: the data of which every bit that a model predicts was memorized."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scalemem.spec import RunSpec


def items(run: RunSpec, key: jax.Array, index: Int[Array, " B"]) -> Int[Array, "B S"]:
    """Sequences `index` of the data set of `key`: item i depends on (key, i) alone.

    Args:
      run: gives the vocabulary and the sequence length S.
      key: the data set's PRNG key.
      index: item numbers, int32 [B].
    Returns:
      tokens, int32 [B, S], each uniform on 0..V-1.
    """
    model = run.model
    draw = lambda i: jax.random.randint(jax.random.fold_in(key, i), (model.seq_len,), 0, model.vocab_size, jnp.int32)  # noqa: E731
    return jax.vmap(draw)(index)


def tempered(run: RunSpec, key: jax.Array, index: Int[Array, " B"], temperature: Float[Array, " B"]) -> Int[Array, "B S"]:
    """As `items` at every temperature: a power of a uniform distribution is uniform."""
    return items(run, key, index)


def nats(run: RunSpec, tokens: Int[Array, "B S"]) -> Float[Array, "B S-1"]:
    """-log p(x_t) = log V nats for t = 2..S, whatever the tokens, int32 [B, S]."""
    return jnp.full((len(tokens), run.model.seq_len - 1), math.log(run.model.vocab_size), jnp.float32)


def entropy_bits(run: RunSpec) -> float:
    """Exact entropy of one item's scored tokens: (S - 1) log2 V bits; the first token is given, not scored."""
    return (run.model.seq_len - 1) * math.log2(run.model.vocab_size)
