"""Goldfish losses: next-token cross-entropy that leaves some targets out, so that no passage is learned word for word."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt

from scalemem.objectives.next_token import token_nats

KINDS = ("static", "hashed", "random")
CONTEXT = 13  # tokens that the hash reads
_ODD = 0x9E3779B9  # 2^32 over the golden ratio


def _mix(x: UInt[Array, "*N"]) -> UInt[Array, "*N"]:
    """A bijection of 32-bit integers in which every bit of the input moves every bit of the output (MurmurHash3's finalizer)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _hash(ids: UInt[Array, "B S"], h: int) -> UInt[Array, "B S-h"]:
    """Hash of each h tokens in a row, of those before the last token: s <- mix(s + (id + 1) odd), from s = 0, in their order."""
    last = ids.shape[1] - h
    state = jnp.zeros((len(ids), last), jnp.uint32)
    for j in range(h):
        state = _mix(state + (ids[:, j : j + last] + 1) * jnp.uint32(_ODD))
    return state


def _draw(ids: UInt[Array, "B S"], salt: Any) -> UInt[Array, "B S-1"]:
    """A number for each target of a row, from the whole row and the salt."""
    place = jnp.arange(ids.shape[1], dtype=jnp.uint32)
    row = _mix((ids + 1) * jnp.uint32(_ODD) + _mix(place + 1)).sum(1, dtype=jnp.uint32)
    return _mix(_mix(row + _mix(jnp.uint32(salt)))[:, None] + place[1:] * jnp.uint32(_ODD))


def keep_mask(tokens: Int[Array, "B S"], k: int, kind: str = "hashed", h: int = CONTEXT, salt: Any = 0) -> Bool[Array, "B S-1"]:
    """Which of the targets x_2 .. x_S of each row count: G of the goldfish loss; about one in k does not.

    static: the k-th, 2k-th, ... target of a row is dropped. hashed: x_i is dropped iff hash(x_{i-h}, ..., x_{i-1}) < 2^32 / k, so the
    same h tokens always decide alike, wherever they stand. random: x_i is dropped iff hash(row, i, salt) < 2^32 / k, so a new salt
    draws anew. hashed and random keep every target that has fewer than h tokens before it; h is min(h, S - 1), so that the last
    target may be dropped in any row.

    Args:
      tokens: int32 [B, S].
      k: one target in k is dropped, 2 or more.
      kind: static, hashed or random.
      h: tokens of context that the hash reads, at least 1.
      salt: random: an integer of 32 bits, traced or not.
    Returns:
      bool [B, S - 1]: True where the target counts.
    Raises:
      ValueError: k below 2, h below 1 or another kind.

    >>> keep_mask(jnp.zeros((1, 8), jnp.int32), 3, "static")[0].astype(int).tolist()
    [1, 1, 0, 1, 1, 0, 1]

    Source: Hans et al. 2024 (arXiv 2406.10209), the formula: the hash reads what comes before the target, where the authors' code
    multiplies ids in a window that ends at it. The integer hash and the place at which static counting starts are this module's.
    """
    if kind not in KINDS:
        raise ValueError(f"kind = {kind!r}: must be one of {', '.join(KINDS)}; choose one of these")
    if k < 2 or h < 1:
        name, value, low = ("k", k, 2) if k < 2 else ("h", h, 1)
        raise ValueError(f"{name} = {value}: must be at least {low}; raise it")
    seq_len = tokens.shape[1]
    if kind == "static":
        return jnp.broadcast_to(np.arange(1, seq_len) % k != 0, (len(tokens), seq_len - 1))
    ids, h = tokens.astype(jnp.uint32), min(h, seq_len - 1)
    number = _hash(ids, h) if kind == "hashed" else _draw(ids, salt)[:, h - 1 :]
    return jnp.pad(number >= jnp.uint32((1 << 32) // k), ((0, 0), (h - 1, 0)), constant_values=True)


def _bits_of(params: Any) -> UInt[Array, ""]:
    """The bit patterns of all parameters, added up: another number after every step that moves one."""
    whole = (lax.bitcast_convert_type(lax.stop_gradient(p).astype(jnp.float32), jnp.uint32) for p in jax.tree.leaves(params))
    return functools.reduce(jnp.add, (w.sum(dtype=jnp.uint32) for w in whole), jnp.uint32(0))


@functools.cache
def objective(kind: str, k: int) -> Callable[..., Any]:
    """The loss that `goldfish_{kind}_{k}` names.

    Args:
      kind: static, hashed or random.
      k: one target in k is dropped.
    Returns:
      loss(apply, params, tokens [B, S], weights [B]) -> nats, as in `next_token`; the same function for the same arguments.

    >>> objective("hashed", 4) is objective("hashed", 4)
    True
    """

    def loss(apply, params, tokens: Int[Array, "B S"], weights: Float[Array, " B"]) -> Float[Array, ""]:
        """Sum over the batch of weights[b] (S - 1) / |G_b| times the cross-entropy of the kept targets G_b of row b, in nats.

        Training divides by rows and by S - 1: each row then has the paper's mean over its kept targets, also where rows keep unequal
        numbers. Inputs are never masked. A row that keeps no target (as one of two tokens can) adds nothing. random takes its salt
        from the bits of the parameters: a row's mask is drawn anew after every step, rows of one step that are the same share it,
        and a run's masks are those of its own arithmetic, to the last bit.
        """
        keep = keep_mask(tokens, k, kind, salt=_bits_of(params) if kind == "random" else 0)
        nats = token_nats(apply, params, tokens)
        return (jnp.where(keep, nats, 0).sum(-1) * (keep.shape[1] / jnp.maximum(keep.sum(-1), 1)) * weights).sum()

    return loss
