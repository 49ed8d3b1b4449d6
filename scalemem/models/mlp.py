"""A perceptron for labelled sequences: all tokens at once, one-hot in their places, ReLU layers, and one answer, at the last place."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from scalemem.models.layers import Linear, matmul, weight
from scalemem.spec import ModelSpec


class MLP(nnx.Module):
    """A linear layer on one-hot tokens, L layers of ReLU and d_model units, a head with a bias. P = S V d + d + max(L - 1, 0) (d^2 + d) + d V + V.

    Its logits are those after the last token that it is given, and 0 at the places before: it suits objectives and measures that read the label
    alone. With n_layers 0 it is linear. Weights start with std `init_std`, those between hidden layers with sqrt(2 / d), biases at 0. n_heads, norm,
    position, mlp and tied mean nothing here.
    """

    def __init__(self, m: ModelSpec):
        self.dtype, self.vocab_size, self.active = jnp.dtype(m.compute_dtype), m.vocab_size, m.n_layers > 0
        self.places = weight((m.seq_len * m.vocab_size, m.d_model), m.init_std)
        self.bias = weight((m.d_model,))
        self.hidden = nnx.List([Linear(m.d_model, m.d_model, (2 / m.d_model) ** 0.5) for _ in range(m.n_layers - 1)])
        self.head = Linear(m.d_model, m.vocab_size, m.init_std)

    def first(self, tokens: Int[Array, "B T"]) -> Float[Array, "B D"]:
        """The linear layer on one-hot tokens."""
        b, t = tokens.shape
        one_hot = jax.nn.one_hot(tokens, self.vocab_size, dtype=self.dtype).reshape(b, t * self.vocab_size)
        return matmul(one_hot, self.places[...][: t * self.vocab_size].astype(self.dtype)) + self.bias[...].astype(self.dtype)

    def answer(self, x: Float[Array, "B D"], length: int) -> Float[Array, "B T V"]:
        """The head at the last of `length` places, float32, and 0 at the others."""
        return jnp.pad(self.head(x).astype(jnp.float32)[:, None], ((0, 0), (length - 1, 0), (0, 0)))

    def __call__(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
        """Logits, float32, from T <= seq_len tokens; 0 but at the last place."""
        x = self.first(tokens)
        x = jax.nn.relu(x) if self.active else x
        for layer in self.hidden:
            x = jax.nn.relu(layer(x))
        return self.answer(x, tokens.shape[1])
