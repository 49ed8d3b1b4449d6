"""Memorized bits after rounding the trained weights: what each stored bit of a weight was worth."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from scalemem.measure import capacity
from scalemem.models import Params
from scalemem.spec import RunSpec


def rounded(w: Float[Array, "I O"], bits: int, axis: int) -> Float[Array, "I O"]:
    """Symmetric integers with one scale a channel: s = max |w| / (2^(bits - 1) - 1) along `axis`; s round(w / s)."""
    w = jnp.asarray(w, jnp.float32)
    scale = jnp.abs(w).max(axis, keepdims=True) / (2 ** (bits - 1) - 1)
    return jnp.where(scale > 0, jnp.round(w / jnp.where(scale > 0, scale, 1)) * scale, 0.0)


def quantize(params: Params, bits: int) -> Params:
    """Matrices rounded to `bits`-bit integers: one scale an output of a linear layer, one a row of an embedding; vectors are kept."""
    def one(path, w):
        if w.ndim < 2:
            return w
        embedding = path[-1].key in ("tokens", "positions")
        return rounded(w, bits, axis=1 if embedding else 0)

    return jax.tree_util.tree_map_with_path(one, params)


def measure(run: RunSpec, params: Params, data_key: Any, fresh_key: Any) -> dict[str, float]:
    """memorized_bits_bf16, _int8, _int4: `capacity.bits` after rounding to nearest, no retraining. Arguments as in `capacity`."""
    del fresh_key
    n = run.stages[0].data.n_items
    versions = {"bf16": jax.tree.map(lambda w: jnp.asarray(w, jnp.bfloat16), params), "int8": quantize(params, 8),
                "int4": quantize(params, 4)}
    return {f"memorized_bits_{name}": capacity.bits(run, capacity.scores(run, version, data_key, n).nats)
            for name, version in versions.items()}
