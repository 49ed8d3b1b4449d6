"""GPT: a pre-norm decoder-only transformer; the defaults of `ModelSpec` are GPT-2's architecture."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from scalemem.models.layers import MLPS, NORMS, Attention, matmul, weight
from scalemem.spec import ModelSpec


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). Output projections start smaller by sqrt(2 L)."""

    def __init__(self, m: ModelSpec):
        norm, std, std_out = NORMS[m.norm], m.init_std, m.init_std / (2 * m.n_layers) ** 0.5
        self.norm_1, self.norm_2 = norm(m.d_model), norm(m.d_model)
        self.attention = Attention(m.d_model, m.n_heads, m.position == "rotary", std, std_out)
        self.mlp = MLPS[m.mlp](m.d_model, std, std_out)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class GPT(nnx.Module):
    """Token (and position) embeddings, L blocks, final norm, head. P = V D + S D + L (12 D^2 + 13 D) + 2 D by default."""

    def __init__(self, m: ModelSpec):
        self.dtype = jnp.dtype(m.compute_dtype)
        self.tokens = weight((m.vocab_size, m.d_model), m.init_std)
        self.positions = weight((m.seq_len, m.d_model), m.init_std) if m.position == "learned" else None
        self.blocks = nnx.List([Block(m) for _ in range(m.n_layers)])
        self.norm = NORMS[m.norm](m.d_model)
        self.head = None if m.tied else weight((m.d_model, m.vocab_size), m.init_std)

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
        """Next-token logits, float32, from T <= seq_len tokens."""
        x = self.tokens[...][tokens]
        if self.positions is not None:
            x = x + self.positions[...][: tokens.shape[1]]
        x = x.astype(self.dtype)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        head = self.tokens[...].T if self.head is None else self.head[...]
        logits = matmul(x.reshape(-1, x.shape[-1]), head.astype(self.dtype))
        return logits.reshape(*tokens.shape, -1).astype(jnp.float32)
