"""Cross-entropy of the label alone: the last token of a sequence, among all tokens or among the labels of its own task."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from scalemem.objectives.next_token import cross_entropy


def allowed(labels: Int[Array, "*B"], vocab_size: int, task_classes: int) -> Bool[Array, "*B V"]:
    """The labels of the task of each label: the token of class c is V - 1 - c, and its task c // task_classes.

    >>> allowed(jnp.array([6]), 8, 2)[0].astype(int).tolist()
    [0, 0, 0, 0, 0, 0, 1, 1]
    """
    task = lambda token: (vocab_size - 1 - token) // task_classes  # noqa: E731
    return task(jnp.arange(vocab_size)) == task(labels)[..., None]


def _loss(apply, params, tokens, weights, task_classes):
    logits, label = apply(params, tokens[:, :-1])[:, -1], tokens[:, -1]
    if task_classes:
        logits = jnp.where(allowed(label, logits.shape[-1], task_classes), logits, -jnp.inf)
    return (tokens.shape[1] - 1) * (cross_entropy(logits, label) * weights).sum()


def loss(apply, params, tokens: Int[Array, "B S"], weights: Float[Array, " B"]) -> Float[Array, ""]:
    """(S - 1) times the sum over the batch of weights[b] times -log p(last token | those before), in nats.

    Training divides by rows and by S - 1: the loss that is trained on, and written down, is then the mean over rows of the label's cross-entropy,
    as a classifier has it. A softmax over all tokens.

    Args:
      apply: (params, tokens [B, T]) -> logits [B, T, V], of which the last place is read.
      params: the model's parameters.
      tokens: int32 [B, S]; the last is the label.
      weights: 1 for a row that counts, 0 for padding.
    """
    return _loss(apply, params, tokens, weights, 0)


@functools.cache
def in_task(task_classes: int) -> Callable[..., Any]:
    """The loss that `label_in_task_{task_classes}` names.

    Args:
      task_classes: classes of a task.
    Returns:
      loss(apply, params, tokens [B, S], weights [B]) -> nats, as in `loss`; the same function for the same argument.

    >>> in_task(2) is in_task(2)
    True
    """
    def loss(apply, params, tokens: Int[Array, "B S"], weights: Float[Array, " B"]) -> Float[Array, ""]:
        """As the cross-entropy of the label, with a softmax over the labels of the item's own task alone: the task is known.

        The task is that of the label, and the model is not told: labels of other tasks have neither probability nor gradient.
        """
        return _loss(apply, params, tokens, weights, task_classes)

    return loss
