"""A Markov chain of any order without a table: a hash of the context says which token is likeliest, Zipf's law how likely each is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from scalemem.data import source
from scalemem.spec import RunSpec


def items(run: RunSpec, key: jax.Array, index: Int[Array, " B"]) -> Int[Array, "B S"]:
    """Sequences `index` of the data set of `key`: x_t = (r_t + h(x_(t-k) .. x_(t-1))) mod V with r_t independent, of Zipf's law.

    p(r_t = r) is proportional to (r + 1)^-zipf. h is an integer hash of the language and the last k = data.context tokens; where
    fewer are there, of those. The first token, whose context is empty, is drawn by the same rule.

    Args:
      run: gives the vocabulary V, the sequence length S, data.context, data.zipf and data.language.
      key: the data set's PRNG key; the language does not depend on it.
      index: item numbers, int32 [B].
    Returns:
      tokens, int32 [B, S]; item i depends on (key, i) alone.
    """
    return _items(run, key, index, None)


def tempered(run: RunSpec, key: jax.Array, index: Int[Array, " B"], temperature: Float[Array, " B"]) -> Int[Array, "B S"]:
    """As `items`, item b with ranks of p^(1 / temperature[b]), renormalised; at temperature 1 exactly `items`."""
    return _items(run, key, index, temperature)


def _items(run, key, index, temperature):
    return chain(run, key, index, temperature, lambda context: _shift(run, context))


def chain(run: RunSpec, key: jax.Array, index: Int[Array, " B"], temperature: Float[Array, " B"] | None, shift: Callable[[tuple], Any]) -> Any:
    """Sequences x_t = (r_t + shift(context)) mod V, int32 [B, S]: of this source, and of others that differ in the shift alone.

    Args:
      run, key, index, temperature: as of `items` and `tempered`; None is 1 for all.
      shift: (the last data.context tokens, uint32 [B] each, the oldest first, from 1, and 0 where there is none) -> int32 [B].
    """
    data, vocab = run.stages[0].data, run.model.vocab_size
    ranks = source.chosen(vocab, data.zipf, source.draws(key, index, run.model.seq_len), temperature)

    def step(context, rank):
        token = (rank + shift(context)) % vocab
        return (*context[1:], _heard(token)), token

    nothing = jnp.zeros(len(index), jnp.uint32)
    return lax.scan(step, (nothing,) * data.context, ranks.T)[1].T


def chain_nats(run: RunSpec, tokens: Int[Array, "B S"], shift: Callable[[tuple], Any]) -> Float[Array, "B S-1"]:
    """-log p(x_t | x_<t) in nats for t = 2..S of a `chain`: the log probability of the rank (x_t - shift) mod V; contexts are [B, S - 1] here."""
    data, (vocab, seq_len) = run.stages[0].data, (run.model.vocab_size, run.model.seq_len)
    heard = jnp.pad(_heard(tokens), ((0, 0), (data.context, 0)))
    moved = shift(tuple(heard[:, 1 + j : seq_len + j] for j in range(data.context)))
    return jnp.asarray(source.choice(vocab, data.zipf).nats, jnp.float32)[(tokens[:, 1:] - moved) % vocab]


def _heard(tokens):
    """Tokens as a shift takes them: from 1, for 0 is a token that is not there."""
    return tokens.astype(jnp.uint32) + 1


def _shift(run, context):
    """h, 0..V-1, of contexts: a tuple of `data.context` arrays, the oldest token first."""
    return (source.hashed(run.stages[0].data.language, *context) % run.model.vocab_size).astype(jnp.int32)


def nats(run: RunSpec, tokens: Int[Array, "B S"]) -> Float[Array, "B S-1"]:
    """-log p(x_t | x_<t) in nats for t = 2..S, exact: the log probability of the rank (x_t - h) mod V.

    Args:
      run: gives the vocabulary, data.context, data.zipf and data.language.
      tokens: int32 [B, S].
    """
    return chain_nats(run, tokens, lambda context: _shift(run, context))


def entropy_bits(run: RunSpec) -> float:
    """Exact entropy of one item's scored tokens given the first: (S - 1) H bits, H that of a rank, whatever the order."""
    return (run.model.seq_len - 1) * source.choice(run.model.vocab_size, run.stages[0].data.zipf).entropy_bits
