"""Forgetting against the model's own earlier predictions: cross-entropy and divergence from the weights at the start of the stage."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scalemem import data, models
from scalemem.data import canaries
from scalemem.measure import drawing, scoring
from scalemem.measure.moment import Moment
from scalemem.models import Params
from scalemem.spec import ModelSpec, RunSpec


def contexts(run: RunSpec, moment: Moment) -> np.ndarray:
    """Item numbers on which drift is read: held-out ones of the first stage's source, as its generator has them, `moment.most` or fewer."""
    generator, old = data.get(run.stages[0].data.generator), moment.sources[0]
    if hasattr(generator, "held_out"):
        return generator.held_out(run, old.first, old.n_items, moment.most)
    return canaries.BACKGROUND + np.arange(moment.most)


@functools.lru_cache(maxsize=32)
def _program(model: ModelSpec, last: bool):
    """The jitted (old weights, new weights, tokens [C, T]) -> entropy of old and KL(old || new), each a mean over the places of a row, [C]."""
    apply = models.apply(model)

    def run(old: Params, new: Params, tokens: jax.Array):
        with jax.default_matmul_precision("highest"):
            p, q = (jax.nn.log_softmax(apply(w, tokens)[:, -1:] if last else apply(w, tokens)) for w in (old, new))
        return -(jnp.exp(p) * p).sum(-1).mean(-1), _kl(p, q).sum(-1).mean(-1)

    return jax.jit(run)


def _kl(p: jax.Array, q: jax.Array) -> jax.Array:
    """Terms of KL from log probabilities: P (d + Q / P - 1), d = log P - log Q. None is negative, and where d is small nothing cancels."""
    d = p - q
    near = jnp.exp(p) * (jnp.expm1(-jnp.clip(d, -1, 1)) + d)
    return jnp.where(jnp.abs(d) < 1, near, jnp.exp(p) * d + jnp.exp(q) - jnp.exp(p))


def divergence(model: ModelSpec, old: Params, new: Params, tokens: Any, last: bool = False) -> tuple[float, float]:
    """Mean entropy of the old model's predictions, and mean divergence KL(old || new), in nats a place; float32 at the highest precision, in chunks.

    Args:
      model: the architecture; its compute_dtype and param_dtype are taken as float32.
      old, new: weights p0 and q.
      tokens: int32 [N, T], T at most seq_len.
      last: read the last place of each sequence alone.
    """
    exact = dataclasses.replace(model, compute_dtype="float32", param_dtype="float32")
    old, new = (jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), weights) for weights in (old, new))
    tokens = np.asarray(tokens, np.int32)
    fits = scoring.at_once(2 * tokens.shape[1] * max(model.vocab_size, 4 * model.d_model))
    chunk = min(fits, 1 << (len(tokens) - 1).bit_length())
    padded = np.pad(tokens, ((0, -len(tokens) % chunk), (0, 0)))
    parts = [_program(exact, last)(old, new, padded[i : i + chunk]) for i in range(0, len(padded), chunk)]
    entropy, kl = (np.concatenate([np.asarray(p) for p in column])[: len(tokens)].astype(np.float64) for column in zip(*parts, strict=True))
    return float(entropy.mean()), float(kl.mean())


def measure(run: RunSpec, params: Params, data_key: Any, fresh_key: Any, moment: Moment) -> dict[str, Any]:
    """How far a model's predictions have moved since its stage began, on the kind of data of the first stage.

    With p0 the predictions of the weights at the start of the stage, q those now, and a mean over places of the contexts,

        base_entropy_nats  H(p0) = -sum_v p0 log p0
        kl_nats            KL(p0 || q) = sum_v p0 (log p0 - log q)
        forgetting_nats    L_f = -sum_v p0 log q = H(p0) + KL(p0 || q)

    so that forgetting before the first step is the entropy, not 0; the divergence can be compared between models, L_f cannot.

    Args:
      run: its only stage is the one at hand.
      params: parameters of its model.
      data_key: key of its data.
      fresh_key: not used: held-out contexts are items of their own.
      moment: the reference, and `most` contexts; of labelled items the place before the label is read alone.
    Returns:
      the three, each NaN in the first stage, which has no reference.
    Source: L_f of Kalajdzievski 2024 (arXiv 2401.05605), as the literature file has it.
    """
    del fresh_key
    if moment.reference is None:
        return dict.fromkeys(("base_entropy_nats", "forgetting_nats", "kl_nats"), math.nan)
    tokens = np.asarray(drawing.items(run, data_key, contexts(run, moment)))[:, :-1]
    entropy, kl = divergence(run.model, moment.reference, params, tokens, last=run.stages[0].data.generator in ("digits", "prototypes"))
    return {"base_entropy_nats": entropy, "forgetting_nats": entropy + kl, "kl_nats": kl}
