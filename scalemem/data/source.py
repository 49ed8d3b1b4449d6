"""What the synthetic sources share: the hash that makes a language, and choices of Zipf's law, drawn with exactly the stated probabilities."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, UInt32

AT_ONCE = 1 << 22  # numbers of a table of one item that are held for many items at once: 16 MiB


def hashed(language: int, *parts: Any) -> Any:
    """An integer hash of a language and of what it is asked about, the same on every machine.

    h_0 = m(language + c), h_k = m(h_(k-1) xor part_k); m is a bijection of the 32-bit integers in which each bit of the argument
    moves each bit of the result.

    Args:
      language: which language, 0 .. 2^31 - 1.
      parts: Python integers, or uint32 arrays of NumPy or JAX that broadcast.
    Returns:
      uint32, of the parts' shape ([1] if they are all Python integers).

    >>> int(hashed(0, 1)[0]) != int(hashed(1, 0)[0])
    True

    Source: m is the finalizer of Appleby's MurmurHash3 (from memory, unverified; any mixing bijection would do).
    """
    state: Any = _mix(np.array([(language + 0x9E3779B9) % 2**32], np.uint32))
    for part in parts:
        state = _mix(state ^ part)
    return state


def _mix(x):
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


class Choice(NamedTuple):
    """A choice among n of Zipf's law, in whole multiples of 2^-32: rank r = 0..n-1 is the (r + 1)-th likeliest."""

    ends: np.ndarray  # uint32 [n - 1]: rank r is chosen by the 32-bit draws from ends[r - 1] to ends[r] - 1
    probability: np.ndarray  # float64 [n]
    nats: np.ndarray  # float64 [n]: -log probability
    entropy_bits: float


@functools.lru_cache(maxsize=256)
def choice(n: int, zipf: float) -> Choice:
    """A choice among n with p(r) proportional to (r + 1)^-zipf, rounded so that every rank has at least one of the 2^32 draws.

    count(r) = 1 + floor((2^32 - n) p(r)), and what is then missing from 2^32 goes one by one to the first ranks. Likelihoods and
    entropies are those of the counts, thus exact for what is drawn; from Zipf's they differ by at most 2^-31 + n 2^-32 p(r).

    Args:
      n: choices, at least 1.
      zipf: the exponent; 0 is uniform.

    >>> choice(2, 1.0).probability.round(6), choice(8, 0.0).entropy_bits
    (array([0.666667, 0.333333]), 3.0)
    """
    weight = np.arange(1, n + 1, dtype=np.float64) ** -zipf
    count = 1 + np.floor(weight / math.fsum(weight) * (2**32 - n)).astype(np.int64)
    count[: 2**32 - int(count.sum())] += 1
    probability = count / 2**32
    nats = -np.log(probability)
    return Choice(np.cumsum(count)[:-1].astype(np.uint32), probability, nats, math.fsum(probability * nats) / math.log(2))


def draws(key: jax.Array, index: Int[Array, " B"], count: int) -> UInt32[Array, "B K"]:
    """`count` draws of 32 bits for each item: those of item i depend on (key, i) alone."""
    return jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i), (count,), jnp.uint32))(index)


def chosen(n: int, zipf: float, bits: UInt32[Array, "B K"], temperature: Float[Array, " B"] | None = None) -> Int[Array, "B K"]:
    """Ranks that draws choose, by inverting the cumulative probability; at a temperature T, of Zipf's law to the power 1 / T.

    Args:
      n: choices.
      zipf: the exponent.
      bits: one draw for each choice.
      temperature: above 0, one for each item, or None: 1 for all. At 1 the ranks are those of None; elsewhere p^(1/T), which is
        Zipf's law of exponent zipf / T, is taken in float32, from the upper 24 bits of a draw.
    Returns:
      int32 [B, K], each 0..n-1.

    >>> chosen(4, 1.0, jnp.array([[0, 1 << 31, (1 << 32) - 1]], jnp.uint32)).tolist()
    [[0, 1, 3]]
    """
    ranks = jnp.searchsorted(jnp.asarray(choice(n, zipf).ends), bits, side="right").astype(jnp.int32)
    if temperature is None:
        return ranks
    log_weight = jnp.asarray(-zipf * np.log(np.arange(1, n + 1)), jnp.float32)

    def at(item):
        bits, temperature = item
        cumulative = jnp.cumsum(jnp.exp(log_weight * jnp.minimum(1 / temperature, 1e30)))  # 1e30: the coldest that stays finite
        share = (bits >> 8).astype(jnp.float32) * 2.0**-24  # below 1, also after rounding
        return jnp.searchsorted(cumulative, share * cumulative[-1], side="right").astype(jnp.int32)

    temperature = jnp.asarray(temperature, jnp.float32)
    tempered = lax.map(at, (bits, temperature), batch_size=max(1, AT_ONCE // n))
    return jnp.where(temperature[:, None] == 1, ranks, tempered)
