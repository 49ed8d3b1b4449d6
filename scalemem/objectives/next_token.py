"""Next-token cross-entropy: -log p(x_t | x_<t) over tokens 2..S."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

MOST_LOGITS = 1 << 26  # of a batch, that are computed at once
A_PART = 1 << 23  # about as many logits are there at a time otherwise: 32 MiB


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


def token_nats(apply, params, tokens: Int[Array, "B S"]) -> Float[Array, "B T"]:
    """Cross-entropy of tokens 2..S given those before them, in nats; T = S - 1.

    Where a batch has more than 2^26 logits (256 MiB), only a part of them is there at a time: the head is applied to some positions after others,
    and to them once more in the backward pass. The sum of the head's gradient then has another order, and nothing else differs.

    Args:
      apply: (params, tokens [B, T]) -> logits [B, T, V]; it is taken in parts if it has `features` and `head` (`models.Forward`).
      params: the model's parameters.
      tokens: int32 [B, S].
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    if getattr(apply, "features", None) is None:
        return cross_entropy(apply(params, inputs), targets)
    x = apply.features(params, inputs)
    width = jax.eval_shape(apply.head, params, x).shape[-1]
    if targets.size * width <= MOST_LOGITS:
        return cross_entropy(apply.head(params, x), targets)
    each = max(1, A_PART // width)
    parts = -(-targets.size // each)
    padded = [jnp.pad(v, [(0, parts * each - targets.size)] + [(0, 0)] * (v.ndim - 1)).reshape(parts, each, *v.shape[1:])
              for v in (x.reshape(-1, x.shape[-1]), targets.reshape(-1))]
    nats = jax.lax.map(jax.checkpoint(lambda part: cross_entropy(apply.head(params, part[0]), part[1]), prevent_cse=False), tuple(padded))
    return nats.reshape(-1)[: targets.size].reshape(targets.shape)


def loss(apply, params, tokens: Int[Array, "B S"], weights: Float[Array, " B"]) -> Float[Array, ""]:
    """Sum over the batch of weights[b] times the sequence's summed cross-entropy, in nats.

    Args:
      apply: (params, tokens [B, T]) -> logits [B, T, V].
      params: the model's parameters.
      tokens: int32 [B, S].
      weights: 1 for a row that counts, 0 for padding.
    """
    return (token_nats(apply, params, tokens).sum(-1) * weights).sum()
