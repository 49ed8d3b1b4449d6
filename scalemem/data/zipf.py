"""Tokens drawn independently from Zipf's law: of a few tokens much can be guessed, of their order nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from scalemem.data import source
from scalemem.spec import RunSpec


def _token(run: RunSpec) -> np.ndarray:
    """The token of each rank, [V]: the language's order of the vocabulary."""
    return np.argsort(source.hashed(run.stages[0].data.language, np.arange(run.model.vocab_size, dtype=np.uint32)))


def items(run: RunSpec, key: jax.Array, index: Int[Array, " B"]) -> Int[Array, "B S"]:
    """Sequences `index` of the data set of `key`: independent tokens, the r-th likeliest of probability proportional to r^-zipf.

    Args:
      run: gives the vocabulary, the sequence length S, data.zipf, and data.language, which says what token has what rank.
      key: the data set's PRNG key; the language does not depend on it.
      index: item numbers, int32 [B].
    Returns:
      tokens, int32 [B, S]; item i depends on (key, i) alone.
    """
    return _items(run, key, index, None)


def tempered(run: RunSpec, key: jax.Array, index: Int[Array, " B"], temperature: Float[Array, " B"]) -> Int[Array, "B S"]:
    """As `items`, item b with tokens of p^(1 / temperature[b]), renormalised; at temperature 1 exactly `items`."""
    return _items(run, key, index, temperature)


def _items(run, key, index, temperature):
    draws = source.draws(key, index, run.model.seq_len)
    ranks = source.chosen(run.model.vocab_size, run.stages[0].data.zipf, draws, temperature)
    return jnp.asarray(_token(run), jnp.int32)[ranks]


def nats(run: RunSpec, tokens: Int[Array, "B S"]) -> Float[Array, "B S-1"]:
    """-log p(x_t) in nats for t = 2..S, exact: the log probability of the token's rank.

    Args:
      run: gives the vocabulary, data.zipf and data.language.
      tokens: int32 [B, S].
    """
    law = source.choice(run.model.vocab_size, run.stages[0].data.zipf)
    return jnp.asarray(law.nats[np.argsort(_token(run))], jnp.float32)[tokens[:, 1:]]


def entropy_bits(run: RunSpec) -> float:
    """Exact entropy of one item's scored tokens: (S - 1) H bits, H = -sum_r p(r) log2 p(r)."""
    return (run.model.seq_len - 1) * source.choice(run.model.vocab_size, run.stages[0].data.zipf).entropy_bits
