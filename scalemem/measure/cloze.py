"""Name cloze: which of some candidates does the model put in a masked place of a passage, with what stands before and after it?"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from scalemem.data import canaries
from scalemem.measure import likelihood, scoring
from scalemem.models import Params
from scalemem.spec import ModelSpec, RunSpec

CANDIDATES = 32  # tokens that compete for the masked place, the right one among them; all of a smaller vocabulary


def candidates(truth: np.ndarray, vocab_size: int, count: int, key: jax.Array) -> np.ndarray:
    """For each place, its token and `count` - 1 distinct others drawn from the vocabulary, int [C, count]; the right one is first.

    Args:
      truth: the right tokens, int [C].
      vocab_size: V.
      count: at most V.
      key: a PRNG key.

    >>> sorted(candidates(np.array([2]), 4, 4, jax.random.key(0))[0].tolist())
    [0, 1, 2, 3]
    """
    if not 2 <= count <= vocab_size:
        raise ValueError(f"count = {count}: must be at least 2 and at most the vocabulary, {vocab_size}; choose fewer candidates")
    shift = jax.vmap(lambda k: jax.random.permutation(k, vocab_size - 1))(jax.random.split(key, len(truth)))
    return np.concatenate([truth[:, None], (truth[:, None] + 1 + np.asarray(shift)[:, : count - 1]) % vocab_size], 1)


def candidate_nats(model: ModelSpec, params: Params, tokens: np.ndarray, place: int, choices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """-log p of token `place` and all after it, and of that token alone, with each candidate in that place.

    A causal model cannot look ahead, but the likelihood of the whole passage does: what does not depend on the candidate, the part
    before it, is left out.

    Args:
      model, params: the model, as in `scoring.in_chunks`.
      tokens: passages, int [C, T].
      place: position of the masked token, from 0; at least 1.
      choices: candidates, int [C, K].
    Returns:
      nats, float64 [C, K] both.
    """
    rows = np.repeat(np.asarray(tokens), choices.shape[1], 0)
    rows[:, place] = choices.ravel()
    nats = scoring.in_chunks(model, params, rows, _nats)[0]
    return nats[:, place - 1 :].sum(-1, dtype=np.float64).reshape(choices.shape), nats[:, place - 1].astype(np.float64).reshape(choices.shape)


def _nats(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array]:
    return (scoring.token_nats(logits, targets),)


def accuracy(nats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether candidate 0 is the likeliest, and its rank, both [C]: ties share the place, so a model that guesses scores 1 / K.

    >>> accuracy(np.array([[1.0, 2.0, 3.0], [2.0, 2.0, 3.0], [3.0, 1.0, 2.0]]))
    (array([1. , 0.5, 0. ]), array([1. , 1.5, 3. ]))
    """
    better, equal = (nats < nats[:, :1]).sum(-1), (nats == nats[:, :1]).sum(-1)
    return np.where(better == 0, 1 / equal, 0.0), 1 + better + (equal - 1) / 2


def measure(run: RunSpec, params: Params, data_key: Any, fresh_key: Any) -> dict[str, Any]:
    """Name cloze on the middle token of each canary: it competes with 31 others (or all of a smaller vocabulary).

    Args:
      run: the run that was trained, with canaries.
      params: its parameters.
      data_key: key of its training set.
      fresh_key: key of the candidates.
    Returns:
      a row a canary: what `Probes.columns` gives, cloze_exact_fraction and cloze_rank_count by the likelihood of the canary up to its
      end, and cloze_left_exact_fraction by what stands before alone. Of the run: the planted_ and control_ means of the three, and
      cloze_chance_probability, 1 / candidates.
    Raises:
      SpecError: a run without canaries, or with canaries of one token.
    Source: Chang et al. 2023 ("Speak, memory") for the task; ranking candidates by the likelihood of the passage is our own form of it.
    """
    probes = canaries.probes(run, data_key)
    place = likelihood.suffix(probes).start + 1
    tokens = np.asarray(probes.tokens)[:, : probes.first + probes.length]
    count = min(CANDIDATES, run.model.vocab_size)
    choices = candidates(tokens[:, place], run.model.vocab_size, count, fresh_key)
    whole, alone = candidate_nats(run.model, params, tokens, place, choices)
    (exact, rank), (left, _) = accuracy(whole), accuracy(alone)
    columns = {"cloze_exact_fraction": exact, "cloze_rank_count": rank, "cloze_left_exact_fraction": left}
    return {**probes.columns(), **columns, "cloze_chance_probability": 1 / count, **likelihood.averages(columns, probes.planted)}
