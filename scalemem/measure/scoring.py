"""Code lengths of sequences under a model, exact to 1e-6: float32 at the highest matmul precision, compensated sums, in chunks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from scalemem import models, quick
from scalemem.accounting import n_params
from scalemem.models import Params
from scalemem.spec import ModelSpec

CHUNK_FLOATS = {"cpu": 1 << 19}  # numbers of the widest activations held at once: 2 MiB stay in the caches of a CPU (four times as fast as 32),
MOST_FLOATS = 1 << 24  # and elsewhere 64 MiB are few


Reduction = Callable[[jax.Array, jax.Array], tuple[jax.Array, ...]]


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
def _program(model: ModelSpec, reduce: Reduction, quickly: bool):
    apply = models.apply(model)

    def run(params: Params, tokens: Int[Array, "C T"]):
        with jax.default_matmul_precision("highest"):
            logits = apply(params, tokens[:, :-1])
        return reduce(logits, tokens[:, 1:])

    return jax.jit(run, compiler_options=quick.options(quickly))


def at_once(floats: int) -> int:
    """Rows of a chunk, each of which has so many numbers in its widest activations."""
    return max(1, CHUNK_FLOATS.get(jax.default_backend(), MOST_FLOATS) // floats)


def in_chunks(model: ModelSpec, params: Params, tokens: Any, reduce: Reduction) -> tuple[np.ndarray, ...]:
    """`reduce(logits, targets)` over sequences, some at a time, in float32 at the highest matmul precision.

    Args:
      model: the architecture; its compute_dtype and param_dtype are taken as float32.
      params: its parameters.
      tokens: int32 [N, T], T at most seq_len + 1; the model sees all but the last.
      reduce: (logits [C, T - 1, V], targets [C, T - 1]) -> arrays of which the first axis is C. Programs are kept by its identity.
    Returns:
      the arrays, with N in the place of C.
    """
    exact = dataclasses.replace(model, compute_dtype="float32", param_dtype="float32")
    params = jax.tree.map(lambda p: p if p.dtype == jnp.float32 else jnp.asarray(p, jnp.float32), params)
    tokens = np.asarray(tokens, np.int32)
    most = at_once(tokens.shape[1] * max(model.vocab_size, 4 * model.d_model))
    chunk = min(most, 1 << (len(tokens) - 1).bit_length())  # a power of two: few shapes to compile
    padded = np.pad(tokens, ((0, -len(tokens) % chunk), (0, 0)))
    program = _program(exact, reduce, quick.worth(2.0 * n_params(model) * padded.size))
    parts = [program(params, padded[i : i + chunk]) for i in range(0, len(padded), chunk)]
    return tuple(np.concatenate([np.asarray(p) for p in column])[: len(tokens)] for column in zip(*parts, strict=True))


def token_nats(logits: Float[Array, "C T V"], targets: Int[Array, "C T"]) -> Float[Array, "C T"]:
    """-log p of the targets, nats: never below 0, accurate where p is near 1, inf where a logit is -inf."""
    picked = jnp.take_along_axis(logits, targets[..., None], -1)
    finite = jnp.where(jnp.isneginf(picked), 0, picked)
    return jnp.where(jnp.isneginf(picked[..., 0]), jnp.inf, jax.nn.logsumexp(logits - finite, -1))


def _scores(logits: Float[Array, "C T V"], targets: Int[Array, "C T"]) -> tuple[jax.Array, ...]:
    return *compensated_sum(token_nats(logits, targets)), (logits.argmax(-1) == targets).all(-1)


def score(model: ModelSpec, params: Params, tokens: Int[Array, "N S"]) -> Scores:
    """Code length and exact recall of each sequence, whatever the precision that the model was trained in.

    Args:
      model: the architecture; its compute_dtype and param_dtype are taken as float32.
      params: its parameters.
      tokens: int32 [N, S].
    """
    high, low, recalled = in_chunks(model, params, tokens, _scores)
    return Scores(high.astype(np.float64) + low.astype(np.float64), recalled)
