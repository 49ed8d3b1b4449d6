"""What a strategy sees of the run that it serves, and what it is said to cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from scalemem.spec import RunSpec


class Context(NamedTuple):
    """One stage of one run, as its strategy sees it; everything in `k` may be traced."""

    run: RunSpec  # static, with the stage at hand as its only one
    apply: Callable[..., Any]  # (trained, tokens [B, T]) -> logits [B, T, V]
    loss_sum: Callable[..., Any]  # (apply, trained, tokens [B, S], weights [B]) -> nats
    fetch: Callable[..., Any]  # item numbers [B] -> tokens [B, S]
    k: dict[str, Any]  # strategy_ strength, first, items, decay and seen; stage, first, n_items, batch_size, seed, exposures
    key: jax.Array  # of this stage's strategy
    weights: Callable[..., Any] = lambda trained: trained  # trained -> the weights of the whole model, for those that look inside it


class Costs(NamedTuple):
    """What a strategy costs beside plain training of its stage."""

    flops_ratio: float = 0.0  # extra FLOPs over those of the stage's plain training
    state_floats: float = 0.0  # numbers kept beside weights and moments: copies, importances, gradients
    stored_tokens: float = 0.0  # of old items that it keeps
    stored_bits: float = 0.0  # of old items that it keeps in another form
