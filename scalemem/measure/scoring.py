"""Code lengths of sequences under a model, exact to 1e-6: float32 at the highest matmul precision, compensated sums, in chunks."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from scalemem import models
from scalemem.models import Params
from scalemem.spec import ModelSpec

CHUNK_LOGITS = 1 << 22  # logits held at once: 16 MiB


class Scores(NamedTuple):
    """What a model says of N sequences, scored tokens only (2..S)."""

    nats: np.ndarray  # float64 [N]: -log p of the scored tokens, given the first
    exact: np.ndarray  # bool [N]: greedy decoding from the first token reproduces the sequence


def compensated_sum(x: Float[Array, "N T"]) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """Sum over T by Neumaier's algorithm: (sum, what its rounding lost), to be added in float64.

    >>> high, low = compensated_sum(jnp.array([[1.0, 1e-8, 1e-8, 1e-8]]))
    >>> float(high[0]) + float(low[0]) > 1.00000002
    True
    """
    def add(carry, term):
        total, lost = carry
        new = total + term
        larger, smaller = jnp.where(jnp.abs(total) >= jnp.abs(term), total, term), jnp.where(
            jnp.abs(total) >= jnp.abs(term), term, total)
        return (new, lost + ((larger - new) + smaller)), None

    zero = jnp.zeros(x.shape[0], x.dtype)
    return lax.scan(add, (zero, zero), x.T)[0]


@functools.lru_cache(maxsize=64)
def _scorer(model: ModelSpec):
    apply = models.apply(model)

    def score(params: Params, tokens: Int[Array, "C S"]):
        with jax.default_matmul_precision("highest"):
            logits = apply(params, tokens[:, :-1])
        target = tokens[:, 1:]
        picked = jnp.take_along_axis(logits, target[..., None], -1)
        nats = jax.nn.logsumexp(logits - picked, -1)  # never below 0, and accurate where p is near 1
        return *compensated_sum(nats), (logits.argmax(-1) == target).all(-1)

    return jax.jit(score)


def score(model: ModelSpec, params: Params, tokens: Int[Array, "N S"]) -> Scores:
    """Code length and exact recall of each sequence, whatever the precision that the model was trained in.

    Args:
      model: the architecture; its compute_dtype and param_dtype are taken as float32.
      params: its parameters.
      tokens: int32 [N, S].
    """
    exact = dataclasses.replace(model, compute_dtype="float32", param_dtype="float32")
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    fits = max(1, CHUNK_LOGITS // (model.seq_len * model.vocab_size))
    chunk = min(fits, 1 << (len(tokens) - 1).bit_length())  # a power of two: few shapes to compile
    padded = jnp.pad(tokens, ((0, -len(tokens) % chunk), (0, 0)))
    parts = [_scorer(exact)(params, padded[i : i + chunk]) for i in range(0, len(padded), chunk)]
    high, low, recalled = (np.concatenate([np.asarray(p[j]) for p in parts])[: len(tokens)] for j in range(3))
    return Scores(high.astype(np.float64) + low.astype(np.float64), recalled)
