"""Next-token cross-entropy: -log p(x_t | x_<t) over tokens 2..S."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@jax.custom_vjp
def cross_entropy(logits: Float[Array, "*L V"], targets: Int[Array, "*L"]) -> Float[Array, "*L"]:
    """logsumexp(logits) - logits[target], in nats; its gradient, softmax - one-hot, is one fused pass (no scatter)."""
    return _cross_entropy_fwd(logits, targets)[0]


def _cross_entropy_fwd(logits, targets):
    top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    lse = jnp.log(jnp.exp(logits - top).sum(-1)) + top[..., 0]
    picked = jnp.where(jnp.arange(logits.shape[-1]) == targets[..., None], logits, 0).sum(-1)
    return lse - picked, (logits, lse, targets)


def _cross_entropy_bwd(saved, g):
    logits, lse, targets = saved
    one_hot = (jnp.arange(logits.shape[-1]) == targets[..., None]).astype(logits.dtype)
    return (jnp.exp(logits - lse[..., None]) - one_hot) * g[..., None], None


cross_entropy.defvjp(_cross_entropy_fwd, _cross_entropy_bwd)


def loss(apply, params, tokens: Int[Array, "B S"], weights: Float[Array, " B"]) -> Float[Array, ""]:
    """Sum over the batch of weights[b] times the sequence's summed cross-entropy, in nats.

    Args:
      apply: (params, tokens [B, T]) -> logits [B, T, V].
      params: the model's parameters.
      tokens: int32 [B, S].
      weights: 1 for a row that counts, 0 for padding.
    """
    logits = apply(params, tokens[:, :-1])
    return (cross_entropy(logits, tokens[:, 1:]).sum(-1) * weights).sum()
