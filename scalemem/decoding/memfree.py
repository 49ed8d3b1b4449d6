"""MEMFREE: decoding that completes no n-gram of the training set, which a Bloom filter holds."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, UInt32

LOG2_BITS = 33  # below: the largest filter has 2^32 bits, 512 MiB
SLICE = 1 << 20  # n-grams hashed at once


@functools.partial(jax.tree_util.register_dataclass, data_fields=["words"], meta_fields=["n", "hashes"])
@dataclasses.dataclass(frozen=True)
class Filter:
    """A Bloom filter of n-grams; called by `generate`, it says which of the candidates would complete one.

    An n-gram is held if all of its `hashes` bits are set. One that was put in always is; another is with `false_positive_rate`.
    """

    words: UInt32[Array, " W"]  # 32 bits each
    n: int
    hashes: int

    def __call__(self, tokens: Int[Array, "B L"], position: Int[Array, ""] | int, candidates: Int[Array, "B C"]) -> Bool[Array, "B C"]:
        """Which candidates at `position` would complete an n-gram of the filter; none while fewer than n - 1 tokens stand before it."""
        if tokens.shape[1] < self.n:
            return jnp.zeros(candidates.shape, bool)
        tail = lax.dynamic_slice_in_dim(tokens, jnp.maximum(position - self.n + 1, 0), self.n - 1, axis=1)
        one, two = (_absorb(h[:, None], candidates) for h in _fold(tail))
        return self.holds(one, two) & (position >= self.n - 1)

    def holds(self, one: UInt32[Array, "*L"], two: UInt32[Array, "*L"]) -> Bool[Array, "*L"]:
        """Whether n-grams of these two hashes are in the filter."""
        def probe(i, held):
            bit = _bit(one, two, i, len(self.words))
            return held & ((self.words[bit >> 5] >> (bit & 31)) & 1 == 1)

        return lax.fori_loop(0, self.hashes, probe, jnp.ones(one.shape, bool))


def build(tokens: Int[Array, "N S"] | np.ndarray, vocab_size: int, n: int = 10, false_positive_rate: float = 1e-4) -> Filter:
    """The filter of all n-grams inside the sequences, sized for a rate of false positives.

    With G n-grams, m bits and k hashes the rate is (1 - exp(-k G / m))^k; m is the least power of two above -G ln(rate) / (ln 2)^2
    that meets it with some k, and k the least that does, so the filter is a little better than asked for. Bit i of an n-gram is
    mix(h1 + i h2) mod m, where h1 and h2 are 32-bit hashes of it by one mixing function from two starts.

    Args:
      tokens: training sequences, int32 [N, S], tokens 0..vocab_size-1.
      vocab_size: tokens of the vocabulary.
      n: tokens of an n-gram, 1..S.
      false_positive_rate: chance that another n-gram is taken for one of these, above 0 and below 1.
    Returns:
      a Filter, to be given to `generate` as `ban`; its array is on the device.
    Raises:
      ValueError: a setting outside its range, tokens outside the vocabulary, or a filter of more than 2^32 bits.
    Source: Ippolito et al. 2022 (arXiv 2210.17546), n = 10 there; the size of a Bloom filter is derived.

    >>> held = hits(build(np.array([[1, 2, 3, 4]]), vocab_size=8, n=3), np.array([[0, 1, 2, 3]]))
    >>> held.tolist()
    [[False, False, False, True]]
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 2 or tokens.size == 0:
        raise ValueError(f"tokens of shape {list(tokens.shape)}: must be [N, S] with N and S at least 1; give the training sequences")
    if not 0 <= tokens.min() <= tokens.max() < vocab_size:
        raise ValueError(f"tokens from {tokens.min()} to {tokens.max()}: must be 0..{vocab_size - 1}; give the vocabulary they are of")
    if not 1 <= n <= tokens.shape[1]:
        raise ValueError(f"n = {n}: must be at least 1 and at most the sequences' {tokens.shape[1]} tokens; choose shorter n-grams")
    if not 0 < false_positive_rate < 1:
        raise ValueError(f"false_positive_rate = {false_positive_rate}: must be above 0 and below 1; 1e-4 is usual here")
    log2_bits, hashes = _size(tokens.shape[0] * (tokens.shape[1] - n + 1), false_positive_rate)
    held = np.zeros(1 << log2_bits, bool)
    rows = max(1, SLICE // (tokens.shape[1] - n + 1))
    for first in range(0, len(tokens), rows):
        one, two = _windows(jnp.asarray(tokens[first : first + rows], jnp.int32), n)
        for i in range(hashes):
            held[np.asarray(_bit(one, two, i, len(held) // 32))] = True
    words = np.packbits(held, bitorder="little").view("<u4").astype(np.uint32)
    return Filter(jnp.asarray(words), int(n), hashes)


def hits(rule: Filter, tokens: Int[Array, "N L"] | np.ndarray) -> np.ndarray:
    """Whether the n-gram that ends at each token is in the filter, bool [N, L]; False for the first n - 1.

    Over prompts and what `generate` added to them, those at added tokens are where every token was banned and the best was taken
    nevertheless: their mean is how often. Where it is False, no n-gram of the training set ends.
    """
    tokens = jnp.asarray(tokens, jnp.int32)
    early = np.zeros((len(tokens), min(rule.n - 1, tokens.shape[1])), bool)
    if tokens.shape[1] < rule.n:
        return early
    return np.concatenate([early, np.asarray(_ends(rule, tokens))], axis=1)


def rate(rule: Filter) -> float:
    """Chance that an n-gram that was not put in is taken for one that was: (share of the bits that are set)^hashes."""
    return (int(np.bitwise_count(np.asarray(rule.words)).sum()) / (32 * len(rule.words))) ** rule.hashes


def _size(grams: int, false_positive_rate: float) -> tuple[int, int]:
    """log2 of the bits, and the hashes, as in `build`."""
    least = -grams * math.log(false_positive_rate) / math.log(2) ** 2
    for log2_bits in range(max(5, math.ceil(math.log2(least))), LOG2_BITS):
        for hashes in range(1, 65):
            if (-math.expm1(-hashes * grams / 2**log2_bits)) ** hashes <= false_positive_rate:
                return log2_bits, hashes
    raise ValueError(f"false_positive_rate = {false_positive_rate} for {grams} n-grams: must be met by 2^{LOG2_BITS - 1} bits and 64 hashes; "
                     "raise the rate or give fewer sequences")


def _mix(h: UInt32[Array, "*L"]) -> UInt32[Array, "*L"]:
    """A bijection of 32 bits in which every bit moves every other: MurmurHash3's finalizer (constants from memory, unverified)."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def _absorb(h: UInt32[Array, "*L"], token: Int[Array, "*L"]) -> UInt32[Array, "*L"]:
    return _mix((h + jnp.uint32(0x9E3779B9)) ^ token.astype(jnp.uint32))


def _fold(tokens: Int[Array, "*L n"]) -> tuple[UInt32[Array, "*L"], UInt32[Array, "*L"]]:
    """The two hashes of a few tokens: from each start, absorb one after the other."""
    def absorb(hashes, token):  # a loop in the program: unrolled, XLA's CPU compiler takes minutes over it
        return (_absorb(hashes[0], token), _absorb(hashes[1], token)), None

    start = jnp.full(tokens.shape[:-1], 0x2545F491, jnp.uint32), jnp.full(tokens.shape[:-1], 0xD1B54A32, jnp.uint32)
    return lax.scan(absorb, start, jnp.moveaxis(tokens, -1, 0))[0]


@functools.partial(jax.jit, static_argnums=1)
def _windows(tokens: Int[Array, "N S"], n: int) -> tuple[UInt32[Array, "N G"], UInt32[Array, "N G"]]:
    """The two hashes of every n-gram inside the sequences."""
    grams = tokens.shape[1] - n + 1
    return _fold(jnp.stack([tokens[:, i : i + grams] for i in range(n)], -1))


@jax.jit
def _ends(rule: Filter, tokens: Int[Array, "N L"]) -> Bool[Array, "N G"]:
    return rule.holds(*_windows(tokens, rule.n))


def _bit(one: UInt32[Array, "*L"], two: UInt32[Array, "*L"], i: Any, words: int) -> UInt32[Array, "*L"]:
    """Which bit the i-th hash function sets."""
    return _mix(one + jnp.asarray(i, jnp.uint32) * two) & jnp.uint32(32 * words - 1)
