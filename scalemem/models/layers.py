"""Layers that the architectures share. Shapes are in the names: B sequences, T positions, D width, H heads, K head size, F hidden."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from scalemem.models.attention import causal


def weight(shape: tuple[int, ...], std: float | None = None, fill: float = 0.0) -> nnx.Param:
    """A parameter that says how it starts: normal with `std`, or filled. `scalemem.models.init` does it, by the name of its path."""
    return nnx.Param(jnp.zeros(shape, jnp.float32), std=std, fill=fill)


@jax.custom_vjp
def matmul(x: Float[Array, "N I"], w: Float[Array, "I O"]) -> Float[Array, "N O"]:
    """x w, with a backward pass that XLA's CPU compiler turns into fast products.

    Two things: a barrier keeps the producer of dy (a GELU's derivative, say) from being fused into a transposing copy, and
    dw is computed with the narrower operand on the left. On other devices both cost nothing.
    """
    return x @ w


def _matmul_fwd(x, w):
    return x @ w, (x, w)


def _matmul_bwd(saved, dy):
    x, w = saved
    dy = lax.optimization_barrier(dy)
    narrow_left = x.shape[1] <= dy.shape[1]
    dw = lax.optimization_barrier(x.T @ dy if narrow_left else dy.T @ x)
    dw = dw if narrow_left else dw.T
    return dy @ w.T, dw


matmul.defvjp(_matmul_fwd, _matmul_bwd)


class Linear(nnx.Module):
    """y = x w + b over the last axis."""

    def __init__(self, d_in: int, d_out: int, std: float):
        self.w = weight((d_in, d_out), std)
        self.b = weight((d_out,))

    def __call__(self, x: Float[Array, "*L I"]) -> Float[Array, "*L O"]:
        y = matmul(x.reshape(-1, x.shape[-1]), self.w[...].astype(x.dtype)) + self.b[...].astype(x.dtype)
        return y.reshape(*x.shape[:-1], -1)


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(var + 1e-5) * scale + bias, computed in float32."""

    def __init__(self, d: int):
        self.scale, self.bias = weight((d,), fill=1.0), weight((d,))

    def __call__(self, x: Float[Array, "*L D"]) -> Float[Array, "*L D"]:
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)
        y = centred * lax.rsqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + 1e-5) * scale, computed in float32."""

    def __init__(self, d: int):
        self.scale = weight((d,), fill=1.0)

    def __call__(self, x: Float[Array, "*L D"]) -> Float[Array, "*L D"]:
        x32 = x.astype(jnp.float32)
        y = x32 * lax.rsqrt((x32 * x32).mean(-1, keepdims=True) + 1e-5)
        return (y * self.scale[...]).astype(x.dtype)


NORMS = {"layernorm": LayerNorm, "rmsnorm": RMSNorm}


def rotate(x: Float[Array, "B T H K"], at: Int[Array, " T"] | None = None) -> Float[Array, "B T H K"]:
    """Rotary positions: pair (i, i + K/2) at position t turns by t * 10000^(-2 i / K); t from `at`, or 0, 1, ..., T - 1."""
    half = x.shape[-1] // 2
    at = jnp.arange(x.shape[1]) if at is None else at
    angle = at[:, None] * 10000.0 ** (-jnp.arange(half) / half)
    cos, sin = (f(angle)[None, :, None, :].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


Cache = tuple[Float[Array, "B H L K"], Float[Array, "B H L K"]]  # keys and values at positions 0..L-1, of which some are still 0


class Attention(nnx.Module):
    """Causal multi-head self-attention, softmax in float32."""

    def __init__(self, d: int, n_heads: int, rotary: bool, std: float, std_out: float):
        self.qkv, self.out = Linear(d, 3 * d, std), Linear(d, d, std_out)
        self.n_heads, self.rotary = n_heads, rotary

    def heads(self, x: Float[Array, "B T D"], at: Int[Array, " T"] | None = None) -> tuple[Float[Array, "B T H K"], ...]:
        """Queries (over sqrt K), keys and values of positions `at`; 0..T-1 by default."""
        b, t, d = x.shape
        qkv = self.qkv(x).reshape(b, t, 3, self.n_heads, d // self.n_heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if self.rotary:
            q, k = rotate(q, at), rotate(k, at)
        return q * (d // self.n_heads) ** -0.5, k, v

    def prefix(self, x: Float[Array, "B T D"]) -> tuple[Float[Array, "B T D"], Cache]:
        """The layer's output at positions 0..T-1, and their keys and values."""
        q, k, v = self.heads(x)
        return self.out(causal(q, k, v).reshape(x.shape)), (k.swapaxes(1, 2), v.swapaxes(1, 2))

    def step(self, x: Float[Array, "B 1 D"], position: Int[Array, ""], cache: Cache) -> tuple[Float[Array, "B 1 D"], Cache]:
        """The layer's output at one position, which joins the cache; what stands behind it there is not read."""
        q, *new = self.heads(x, position[None])
        k, v = (lax.dynamic_update_slice_in_dim(old, one.swapaxes(1, 2), position, axis=2) for old, one in zip(cache, new, strict=True))
        scores = jnp.einsum("bhk,bhsk->bhs", q[:, 0], k).astype(jnp.float32)
        seen = jnp.arange(k.shape[2]) <= position
        probs = jax.nn.softmax(jnp.where(seen, scores, -1e30), axis=-1).astype(x.dtype)
        return self.out(jnp.einsum("bhs,bhsk->bhk", probs, v).reshape(x.shape)), (k, v)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.prefix(x)[0]


class GeluMLP(nnx.Module):
    """out(gelu(up(x))), hidden width 4 D, GPT-2's tanh form of the GELU."""

    def __init__(self, d: int, std: float, std_out: float):
        self.up, self.down = Linear(d, 4 * d, std), Linear(4 * d, d, std_out)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down(jax.nn.gelu(self.up(x), approximate=True))


class SwigluMLP(nnx.Module):
    """down(silu(gate(x)) * up(x)), hidden width 8/3 D rounded up to a multiple of 4."""

    def __init__(self, d: int, std: float, std_out: float):
        hidden = 4 * -(-8 * d // 12)
        self.gate, self.up, self.down = Linear(d, hidden, std), Linear(d, hidden, std), Linear(hidden, d, std_out)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


MLPS = {"gelu": GeluMLP, "swiglu": SwigluMLP}
