"""What may decide whether a sequence is memorized: copies, templates, how likely and how varied it is; and whether it is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scalemem.data import canaries
from scalemem.measure import drawing, likelihood
from scalemem.models import Params
from scalemem.spec import RunSpec

BACKGROUND = 1024  # held-out background sequences that tokens are counted in


def templating(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """Whether sequences follow a template: x_t = x_(t-p) + s (mod V) for all t, with one period p of at most half the length and one step s.

    s = 0 is a repetition, any other s an increment. A sequence of fewer than 3 tokens follows none.

    Args:
      tokens: [N, L].
      vocab_size: V.
    Returns:
      bool [N].

    >>> templating(np.array([[1, 5, 2, 6, 3, 7], [1, 5, 1, 5, 1, 5], [1, 5, 2, 7, 3, 7]]), 8).tolist()
    [True, True, False]

    Source: after Prashanth et al. 2024 (arXiv 2406.17746), whose detector works on numbers and words of text; ours on token numbers.
    """
    found = np.zeros(len(tokens), bool)
    for period in range(1, tokens.shape[1] // 2 + 1):
        steps = (tokens[:, period:] - tokens[:, :-period]) % vocab_size
        if steps.shape[1] > 1:
            found |= (steps == steps[:, :1]).all(1)
    return found


def code_bits(tokens: np.ndarray) -> np.ndarray:
    """Mean length of a token in a prefix code for the sequence's own tokens, bits: sum_c p_c ceil(-log2 p_c), p_c the share of token c.

    Args:
      tokens: [N, L].
    Returns:
      [N]; 0 for a single token again and again, log2 L for tokens that all differ, rounded up.

    >>> code_bits(np.array([[3, 3, 3, 3], [0, 1, 2, 2]])).tolist()
    [0.0, 1.5]

    Source: Prashanth et al. 2024 (arXiv 2406.17746), over characters there.
    """
    share = (tokens[:, :, None] == tokens[:, None, :]).mean(-1)  # of each place's token
    return np.ceil(-np.log2(share) - 1e-9).mean(-1)


def measure(run: RunSpec, params: Params, data_key: Any, fresh_key: Any) -> dict[str, Any]:
    """Factors of memorization of every canary and control, from its tokens, the background and the model; and whether it is memorized.

    Args:
      run: the run that was trained, with canaries.
      params: its parameters.
      data_key: key of its training set.
      fresh_key: not used.
    Returns:
      a row a canary: what `Probes.columns` gives; templating_rate, 1 where it follows a template; code_bits; token_log_nats, the mean over its
      tokens of -log of their share of background tokens (a count of 1/2 at least); source_nats and prompt_nats, a token: -log p of all its
      scored tokens under the source, and of its first half under the model; suffix_nats, a token: of its second half under the model;
      memorized_rate, 1 where greedy decoding from the first half gives the second. Of the run: the planted_ and control_ means of
      memorized_rate.
    Raises:
      SpecError: a run without canaries, or with canaries of one token.
    Source: Prashanth et al. 2024 (arXiv 2406.17746) for the factors; of theirs, those that need text or a search of the corpus are left out.
    """
    del fresh_key
    probes = canaries.probes(run, data_key)
    everything, second = likelihood.scored(probes), likelihood.suffix(probes)
    said = likelihood.token_statistics(run.model, params, probes.tokens)
    tokens = np.asarray(probes.tokens)[:, probes.first : probes.first + probes.length]
    background = np.asarray(drawing.items(run, data_key, canaries.BACKGROUND + np.arange(BACKGROUND)))
    count = np.maximum(np.bincount(background.ravel(), minlength=run.model.vocab_size), 0.5)
    memorized = said.greedy[:, second].all(1).astype(float)
    return {**probes.columns(), "templating_rate": templating(tokens, run.model.vocab_size).astype(float), "code_bits": code_bits(tokens),
            "token_log_nats": (math.log(background.size) - np.log(count[tokens])).mean(1),
            "source_nats": likelihood.source_nats(run, probes) / (everything.stop - everything.start),
            "prompt_nats": said.nats[:, everything.start : second.start].mean(1), "suffix_nats": said.nats[:, second].mean(1),
            "memorized_rate": memorized, **likelihood.averages({"memorized_rate": memorized}, probes.planted)}
