"""Discoverable extraction: does greedy decoding from a canary's beginning give its continuation?"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from scalemem.data import canaries
from scalemem.generate import generate
from scalemem.measure import drawing, scoring
from scalemem.models import Params
from scalemem.spec import ModelSpec, RunSpec

HELD_OUT_SEQUENCES = 256  # background sequences that the held-out loss is taken on


def contexts(length: int) -> list[int]:
    """Prompt lengths, in tokens of the canary, at which extraction is measured: an eighth, a quarter, a half and three quarters of it.

    >>> contexts(32)
    [4, 8, 16, 24]
    """
    return sorted({max(1, length * part // 8) for part in (1, 2, 4, 6)})


def _judged(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    return scoring.token_nats(logits, targets), logits.argmax(-1) == targets


def teacher_forced(model: ModelSpec, params: Params, tokens: Any) -> tuple[np.ndarray, np.ndarray]:
    """-log p of each token given those before it, in nats, and whether it is the likeliest; float64 and bool [N, S - 1], for tokens 2..S."""
    nats, hits = scoring.in_chunks(model, params, tokens, _judged)
    return nats.astype(np.float64), hits


def held_out(run: RunSpec, data_key: Any) -> np.ndarray:
    """Background sequences that no run trains on and no probe stands in, int32 [HELD_OUT_SEQUENCES, S]."""
    return np.asarray(drawing.items(run, data_key, canaries.BACKGROUND + np.arange(HELD_OUT_SEQUENCES)))


def measure(run: RunSpec, params: Params, data_key: Any, fresh_key: Any) -> dict[str, Any]:
    """Which canaries greedy decoding reproduces, from how long a prompt, and how nearly.

    extractable_rate_K is 1 where greedy decoding from the canary's first K tokens gives its next m = length / 4 tokens exactly (K of
    `contexts`). With prompt and continuation of half the canary each, score_accuracy is the share of positions of the continuation at which
    the decoded token is the canary's, and memorized_rate is 1 where all are. What stands before the canary in its sequence is part of
    every prompt.

    Args:
      run: with canaries.
      params: parameters of its model.
      data_key: key of its data set.
      fresh_key: not used: the probes stand in held-out background already.
    Returns:
      a row a canary: what is known of it (`Probes.columns`), score_accuracy, memorized_rate, suffix_nats (-log p of the second half given
      what stands before it), extractable_rate_K; and of the run: memorized_fraction of the planted canaries, control_fraction of the others,
      held_out_loss_nats of background text.
    Raises:
      SpecError: the run has no canaries.
    Source: Carlini et al. 2022 (arXiv 2202.07646) for extraction with a context of K tokens; Biderman et al. 2023 (arXiv 2304.11158) for the score.
    """
    del fresh_key
    probes = canaries.probes(run, data_key)
    both = np.concatenate([np.asarray(probes.tokens), held_out(run, data_key)])  # one pass, and one program to compile
    nats, hits = teacher_forced(run.model, params, both)
    (nats, background), hits = np.split(nats, [len(probes.tokens)]), hits[: len(probes.tokens)]
    first, length = probes.first, probes.length
    half, quarter = length // 2, max(1, length // 4)
    start = first + half
    decoded = generate(run.model, params, np.asarray(probes.tokens[:, :start]), first + length - start)
    same = decoded == np.asarray(probes.tokens[:, start : first + length])
    memorized = same.all(1)
    exact = {f"extractable_rate_{k}": hits[:, first + k - 1 : first + k - 1 + quarter].all(1).astype(float)
             for k in contexts(length) if k + quarter <= length}
    mean = lambda chosen: float(memorized[chosen].mean()) if chosen.any() else math.nan  # noqa: E731
    return {**probes.columns(), "score_accuracy": same.mean(1), "memorized_rate": memorized.astype(float),
            "suffix_nats": nats[:, start - 1 : first + length - 1].sum(1), **exact, "memorized_fraction_planted": mean(probes.planted),
            "memorized_fraction_controls": mean(~probes.planted), "held_out_loss_nats": float(background.mean())}
