"""GPT: a pre-norm decoder-only transformer; the defaults of `ModelSpec` are GPT-2's architecture."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from scalemem.models.layers import MLPS, NORMS, Attention, Cache, matmul, weight
from scalemem.spec import ModelSpec


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). Output projections start smaller by sqrt(2 L)."""

    def __init__(self, m: ModelSpec):
        norm, std, std_out = NORMS[m.norm], m.init_std, m.init_std / (2 * m.n_layers) ** 0.5
        self.norm_1, self.norm_2 = norm(m.d_model), norm(m.d_model)
        self.attention = Attention(m.d_model, m.n_heads, m.position == "rotary", std, std_out)
        self.mlp = MLPS[m.mlp](m.d_model, std, std_out)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.prefix(x)[0]

    def prefix(self, x: Float[Array, "B T D"]) -> tuple[Float[Array, "B T D"], Cache]:
        y, cache = self.attention.prefix(self.norm_1(x))
        x = x + y
        return x + self.mlp(self.norm_2(x)), cache

    def step(self, x: Float[Array, "B 1 D"], position: Int[Array, ""], cache: Cache) -> tuple[Float[Array, "B 1 D"], Cache]:
        y, cache = self.attention.step(self.norm_1(x), position, cache)
        x = x + y
        return x + self.mlp(self.norm_2(x)), cache


class GPT(nnx.Module):
    """Token (and position) embeddings, L blocks, final norm, head. P = V D + S D + L (12 D^2 + 13 D) + 2 D by default."""

    remat = False  # see `scalemem.models.apply`

    def __init__(self, m: ModelSpec):
        self.dtype = jnp.dtype(m.compute_dtype)
        self.tokens = weight((m.vocab_size, m.d_model), m.init_std)
        self.positions = weight((m.seq_len, m.d_model), m.init_std) if m.position == "learned" else None
        self.blocks = nnx.List([Block(m) for _ in range(m.n_layers)])
        self.norm = NORMS[m.norm](m.d_model)
        self.head = None if m.tied else weight((m.d_model, m.vocab_size), m.init_std)

    def embed(self, tokens: Int[Array, "B T"], at: Int[Array, " T"] | None = None) -> Float[Array, "B T D"]:
        """Embeddings of tokens at positions `at`; 0..T-1 by default."""
        x = self.tokens[...][tokens]
        if self.positions is not None:
            x = x + self.positions[...][slice(tokens.shape[1]) if at is None else at]
        return x.astype(self.dtype)

    def logits(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """The final norm and the head, float32."""
        x = self.norm(x)
        head = self.tokens[...].T if self.head is None else self.head[...]
        logits = matmul(x.reshape(-1, x.shape[-1]), head.astype(self.dtype))
        return logits.reshape(*x.shape[:-1], -1).astype(jnp.float32)

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
        """Next-token logits, float32, from T <= seq_len tokens."""
        return self.logits(self.features(tokens))

    def features(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """What enters the final norm: `logits` of it are next-token logits."""
        x = self.embed(tokens)
        if self.remat and len(self.blocks):
            return self.scanned(x)
        for block in self.blocks:
            x = block(x)
        return x

    def scanned(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """The blocks one after another as a loop, each computed again in the backward pass.

        A loop, for XLA's CPU compiler drops the barriers of a chain and keeps every activation after all; it costs a copy of the blocks' weights.
        """
        (graph, *_), states = zip(*map(nnx.split, self.blocks), strict=True)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        again = jax.checkpoint(lambda x, state: nnx.merge(graph, state)(x), prevent_cse=False)  # within a loop nothing is merged
        return jax.lax.scan(lambda x, state: (again(x, state), None), x, stacked)[0]

    def prefill(self, tokens: Int[Array, "B P"], length: int) -> tuple[Float[Array, "B V"], tuple[Cache, ...]]:
        """Logits after the last of P tokens, and each block's cache, with room for `length` positions."""
        x, caches = self.embed(tokens), []
        room = ((0, 0), (0, 0), (0, length - tokens.shape[1]), (0, 0))
        for block in self.blocks:
            x, (k, v) = block.prefix(x)
            caches.append((jnp.pad(k, room), jnp.pad(v, room)))
        return self.logits(x[:, -1:])[:, 0], tuple(caches)

    def step(self, token: Int[Array, " B"], position: Int[Array, ""],
             caches: tuple[Cache, ...]) -> tuple[Float[Array, "B V"], tuple[Cache, ...]]:
        """Logits after `token` at `position`, the first that is not yet in the caches, and the caches with it."""
        x, after = self.embed(token[:, None], position[None]), []
        for block, cache in zip(self.blocks, caches, strict=True):
            x, cache = block.step(x, position, cache)
            after.append(cache)
        return self.logits(x)[:, 0], tuple(after)
