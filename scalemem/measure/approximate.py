"""Nearly the right continuation: edit distance, longest common subsequence and BLEU of greedy continuations against the truth."""

from __future__ import annotations

from typing import Any

import numpy as np

from scalemem import generate
from scalemem.data import canaries
from scalemem.measure import likelihood
from scalemem.models import Params
from scalemem.spec import RunSpec

THRESHOLD = 0.75  # a continuation of a larger BLEU counts as memorized approximately
PAIRS = 1 << 10  # pairs compared at once


def _check(ours: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ours, truth = np.asarray(ours), np.asarray(truth)
    if ours.ndim != 2 or truth.ndim != 2 or len(ours) != len(truth) or 0 in (ours.shape[1], truth.shape[1]):
        raise ValueError(f"shapes {ours.shape} and {truth.shape}: must be [N, L] and [N, M] with L, M > 0; give as many sequences of each")
    return ours, truth


def edit_tokens(ours: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Levenshtein's distance of each pair: the fewest insertions, deletions and substitutions of a token.

    Args:
      ours: tokens [N, L].
      truth: tokens [N, M].
    Returns:
      distances, int [N].
    Raises:
      ValueError: other shapes.

    >>> edit_tokens(np.array([[1, 2, 3, 4]]), np.array([[2, 3, 4, 5]]))
    array([2])
    """
    ours, truth = _check(ours, truth)
    along = np.arange(truth.shape[1] + 1)
    row = np.tile(along, (len(truth), 1))
    for i in range(ours.shape[1]):
        new = np.empty_like(row)
        new[:, 0] = i + 1
        new[:, 1:] = np.minimum(row[:, 1:] + 1, row[:, :-1] + (truth != ours[:, i : i + 1]))
        row = np.minimum.accumulate(new - along, -1) + along  # insertions: the least of new[j'] + (j - j')
    return row[:, -1]


def common_tokens(ours: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Length of the longest common subsequence of each pair, int [N]; arguments as in `edit_tokens`.

    >>> common_tokens(np.array([[1, 9, 2, 3]]), np.array([[1, 2, 8, 3]]))
    array([3])
    """
    ours, truth = _check(ours, truth)
    row = np.zeros((len(truth), truth.shape[1] + 1), int)
    for i in range(ours.shape[1]):
        row[:, 1:] = np.maximum(row[:, 1:], row[:, :-1] + (truth == ours[:, i : i + 1]))
        row = np.maximum.accumulate(row, -1)
    return row[:, -1]


def rouge_l(ours: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """ROUGE-L F1: 2 LCS / (L + M) of each pair, [N] in [0, 1]; arguments as in `edit_tokens`."""
    return 2 * common_tokens(ours, truth) / (np.shape(ours)[1] + np.shape(truth)[1])


def bleu(ours: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Sentence BLEU of n-grams up to 4, [N] in [0, 1]: brevity times the geometric mean of the clipped precisions.

    p_n = (matches + s) / (n-grams + s), each n-gram of ours matching at most as often as it occurs in the truth; s = 0 for single tokens
    and 1 for longer n-grams, so that one missing kind does not make the whole 0. Brevity exp(min(0, 1 - M / L)). Sequences shorter than
    4 use the n-grams that ours has.

    Args:
      ours: tokens [N, L].
      truth: tokens [N, M].
    Source: the smoothing is that of Lin and Och 2004, from memory, unverified.

    >>> bleu(np.array([[1, 2, 3, 4]]), np.array([[1, 2, 3, 4]]))
    array([1.])
    """
    ours, truth = _check(ours, truth)
    return np.concatenate([_bleu(ours[i : i + PAIRS], truth[i : i + PAIRS]) for i in range(0, len(ours), PAIRS)] or [np.zeros(0)])


def _bleu(ours: np.ndarray, truth: np.ndarray) -> np.ndarray:
    length, logs = ours.shape[1], []
    one_within, one_across = ours[:, :, None] == ours[:, None, :], ours[:, :, None] == truth[:, None, :]
    within, across = one_within, one_across
    for n in range(1, min(4, length) + 1):
        if n > 1:  # n-grams that begin at i and j are equal where those of n - 1 are, and the next tokens
            within, across = within[:, :-1, :-1] & one_within[:, n - 1 :, n - 1 :], across[:, :-1, :-1] & one_across[:, n - 1 :, n - 1 :]
        matches = np.minimum(1, across.sum(-1) / within.sum(-1)).sum(-1)
        smooth = float(n > 1)
        with np.errstate(divide="ignore"):
            logs.append(np.log((matches + smooth) / (length - n + 1 + smooth)))
    return np.exp(np.mean(logs, 0) + min(0.0, 1 - truth.shape[1] / length))


def measure(run: RunSpec, params: Params, data_key: Any, fresh_key: Any) -> dict[str, Any]:
    """How near the greedy continuation of a canary's first half (and all before it) comes to its second half.

    Args:
      run: the run that was trained, with canaries.
      params: its parameters.
      data_key: key of its training set.
      fresh_key: not used.
    Returns:
      a row a canary: what `Probes.columns` gives, edit_tokens, edit_fraction (of the suffix's length), rouge_l_f1, bleu_ratio,
      approximate_fraction (1 where bleu_ratio > .75, else 0). Of the run: planted_ and control_ means of the last four.
    Raises:
      SpecError: a run without canaries, or with canaries of one token.
    Source: Ippolito et al. 2022 (arXiv 2210.17546) for the rule BLEU > .75.
    """
    del fresh_key
    probes = canaries.probes(run, data_key)
    where = likelihood.suffix(probes)
    truth = np.asarray(probes.tokens)[:, where.start + 1 : where.stop + 1]
    ours = np.asarray(generate.generate(run.model, params, probes.tokens[:, : where.start + 1], truth.shape[1]))
    edits, score = edit_tokens(ours, truth), bleu(ours, truth)
    columns = {"edit_fraction": edits / truth.shape[1], "rouge_l_f1": rouge_l(ours, truth), "bleu_ratio": score,
               "approximate_fraction": (score > THRESHOLD).astype(float)}
    return {**probes.columns(), "edit_tokens": edits, **columns, **likelihood.averages(columns, probes.planted)}
