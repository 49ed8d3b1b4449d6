"""Causal attention: softmax(q k' + mask) v, the softmax in float32; on a GPU in one kernel of cuDNN where that works.

cuDNN's takes half precision and some lengths and widths only, and differentiating it under `vmap` fails in releases of JAX before August 2026
(jax-ml/jax, pull request 39451). So it is tried once for each shape, as training uses it, against the plain one, and left where it fails or differs.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from scalemem.spec import ModelSpec

AGREES = 0.05  # of the largest gradient: a number in bfloat16 is rounded to 1/256 of itself, and a wrong mask is far off
HALF = ("bfloat16", "float16")


def causal(q: Float[Array, "B T H K"], k: Float[Array, "B T H K"], v: Float[Array, "B T H K"]) -> Float[Array, "B T H K"]:
    """What each position reads of those up to itself; queries come scaled."""
    return (_fused if _works(str(q.dtype), q.shape[1], q.shape[-1]) else _plain)(q, k, v)


def kind(model: ModelSpec) -> str:
    """Which of them a model is trained with on this process's devices: "cudnn" or "plain"."""
    return "cudnn" if model.arch == "gpt" and _works(model.compute_dtype, model.seq_len - 1, model.d_model // model.n_heads) else "plain"


def _plain(q: Array, k: Array, v: Array) -> Array:
    t = q.shape[1]
    scores = jnp.einsum("bthk,bshk->bhts", q, k).astype(jnp.float32)
    probs = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((t, t), bool)), scores, -1e30), axis=-1).astype(q.dtype)
    return jnp.einsum("bhts,bshk->bthk", probs, v)


def _fused(q: Array, k: Array, v: Array) -> Array:
    return jax.nn.dot_product_attention(q, k, v, scale=1.0, is_causal=True, implementation="cudnn")


@functools.lru_cache(maxsize=64)
def _works(dtype: str, length: int, width: int) -> bool:
    """Whether cuDNN gives the plain one's gradients, of two runs under `vmap`."""
    if jax.default_backend() != "gpu" or dtype not in HALF:
        return False
    try:
        with jax.ensure_compile_time_eval():  # a model is being traced
            qkv = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 2, length, 2, width)), dtype)  # runs, of q k v, rows, T, heads, K
            by_runs = lambda f: jax.jit(jax.vmap(jax.grad(lambda x: (f(*x).astype(jnp.float32) ** 2).sum())))(qkv)  # noqa: E731
            fused, plain = (np.asarray(by_runs(f), np.float32) for f in (_fused, _plain))
    except Exception:  # of XLA, cuDNN or JAX: what does not work is not used
        return False
    return bool(np.abs(fused - plain).max() <= AGREES * np.abs(plain).max())
