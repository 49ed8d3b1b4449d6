"""Unprompted extraction: what of its training set a model says by itself, and how much more it would say if it were asked again."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from scipy import stats

from scalemem import generate
from scalemem.data import canaries
from scalemem.measure import drawing, likelihood
from scalemem.models import Params
from scalemem.spec import RunSpec

SAMPLES = 1 << 10  # sequences drawn from the model
SLICE = 1 << 12  # training sequences read at once


def match_tokens(seq_len: int, canary: int) -> int:
    """Tokens in a row that must agree: half a sequence, at most 50, and at most a canary (of so many tokens); at least 2."""
    return max(2, min(seq_len // 2, 50, canary))


def fingerprints(tokens: np.ndarray, width: int) -> np.ndarray:
    """64-bit fingerprints of all windows of `width` tokens, uint64 [N, L - width + 1]: equal windows have equal ones.

    A polynomial in an odd number modulo 2^64 over tokens mixed by splitmix64's finalizer. Two windows that differ agree with a
    probability of about 2^-64, so of a million windows against a million others a false match has one of about 5e-8.
    """
    x = np.asarray(tokens).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    x = x ^ (x >> np.uint64(31))
    windows = x.shape[1] - width + 1
    total = np.zeros((len(x), windows), np.uint64)
    for j in range(width):
        total = total * np.uint64(0xD6E8FEB86659FD93) + x[:, j : j + windows]
    return total


def unique_curve(sample: np.ndarray, item: np.ndarray, samples: int) -> np.ndarray:
    """Number of different items found in the first 1, 2, ..., `samples` samples, int [samples].

    Args:
      sample: in which sample each finding was, int [F].
      item: which item it was, int [F].

    >>> unique_curve(np.array([0, 1, 2, 2]), np.array([7, 7, 8, 9]), 3)
    array([1, 1, 3])
    """
    order = np.argsort(sample, kind="stable")
    _, first = np.unique(np.asarray(item)[order], return_index=True)
    return np.cumsum(np.bincount(np.asarray(sample)[order][first], minlength=samples))


def frequencies(sample: np.ndarray, item: np.ndarray) -> np.ndarray:
    """f with f[k] items found in exactly k samples; f[0] = 0; arguments as in `unique_curve`.

    >>> frequencies(np.array([0, 1, 1, 2]), np.array([7, 7, 7, 9]))
    array([0, 1, 1])
    """
    pairs = np.unique(np.stack([np.asarray(sample), np.asarray(item)], 1).reshape(-1, 2), axis=0)
    _, counts = np.unique(pairs[:, 1], return_counts=True)
    return np.bincount(counts, minlength=3)


def good_turing(f: np.ndarray) -> float:
    """Different items expected after as many samples again: found + w1 f1 - w2 f2 + w3 f3 - ..., Good and Toulmin's series, smoothed.

    If item i is found Poisson(r_i) times, E f_k = sum_i e^-r_i r_i^k / k!, and sum_k (-1)^(k+1) E f_k = sum_i e^-r_i (1 - e^-r_i), the
    items found in the second half and not in the first; its first term alone is Good and Turing's, a new item with probability f1 / n.
    The plain series (w = 1) adds a 1 or a -1 for every item however often it was found. So w_k = P(Binomial(9, 1/2) >= k), which leaves
    out what was found ten times or more, and is wrong by at most .02 items an item, whatever r_i.

    Args:
      f: `frequencies` of the samples so far.
    Source: weights after Efron and Thisted 1976, from memory, unverified; their error derived (tested).

    >>> round(good_turing(np.array([0, 512, 0])), 6)
    1023.0
    """
    k = np.arange(1, len(f))
    return float(f[1:].sum() + (np.where(k % 2, 1, -1) * stats.binom.sf(k - 1, 9, 0.5) * f[1:]).sum())


def chao1(f: np.ndarray, samples: int) -> tuple[float, float]:
    """Chao1's lower bound on the items that could be found, and what it expects after as many samples again.

    found + f0 with f0 = f1 (f1 - 1) / (2 (f2 + 1)); after n more samples found + f0 (1 - (1 - f1 / (n f0 + f1))^n): were the f0 unseen
    equally likely, each sample would find a new one with probability f1 / n at first.

    Args:
      f: `frequencies` of n samples.
      samples: n.
    Source: bias-corrected form and extrapolation from memory, unverified.

    >>> chao1(np.array([0, 4, 1]), 10)[0]
    8.0
    """
    found, one, two = float(f[1:].sum()), float(f[1]), float(f[2])
    unseen = one * (one - 1) / (2 * (two + 1))
    again = unseen * (1 - (1 - one / (samples * unseen + one)) ** samples) if unseen > 0 else 0.0
    return found + unseen, found + again


def measure(run: RunSpec, params: Params, data_key: Any, fresh_key: Any) -> dict[str, Any]:
    """What the model says unasked: 1024 samples at temperature 1, from first tokens of fresh items of the source.

    A training sequence is found in a sample that has `match_tokens` of its tokens in a row, anywhere; so is a canary or control.

    Args:
      run: the run that was trained, with canaries.
      params: its parameters.
      data_key: key of its training set.
      fresh_key: key of the first tokens and of the samples.
    Returns:
      a row a canary: what `Probes.columns` gives, emitted_count (samples that have part of it) and emitted_fraction (1 if any). Of the
      run: planted_ and control_ means of emitted_fraction, unprompted_match_tokens, unprompted_token_fraction (generated tokens that
      are within a match), unprompted_unique_count (different training windows found), unprompted_half_count (in the first half of the
      samples), what the first half forecasts of both, unprompted_good_turing_count and unprompted_chao1_count, and
      unprompted_total_count, Chao1's bound on all.
    Raises:
      SpecError: a run without canaries, or with canaries of one token.
    Source: Nasr et al. 2023 (arXiv 2311.17035) for the count; the estimators as in `good_turing` and `chao1`.
    """
    probes = canaries.probes(run, data_key)
    likelihood.scored(probes)  # refuses canaries of one token
    width = match_tokens(run.model.seq_len, probes.length)
    start = drawing.items(run, jax.random.fold_in(fresh_key, 0), canaries.HELD_OUT + np.arange(SAMPLES))[:, :1]
    more = generate.generate(run.model, params, start, run.model.seq_len - 1, key=jax.random.fold_in(fresh_key, 1), temperature=1.0)
    prints = fingerprints(np.concatenate([np.asarray(start), np.asarray(more)], 1), width)
    said = np.unique(prints)

    known = np.zeros(len(said), bool)  # the windows said that are in the training set
    n_items = run.stages[0].data.n_items
    for i in range(0, n_items, SLICE):
        trained = drawing.trained(run, data_key, np.arange(i, min(i + SLICE, n_items)))
        known |= np.isin(said, fingerprints(np.asarray(trained), width))
    number = np.searchsorted(said, prints)
    hit = known[number]
    sample, _ = np.nonzero(hit)
    half = sample < SAMPLES // 2
    curve = unique_curve(sample, number[hit], SAMPLES)
    f = frequencies(sample[half], number[hit][half])
    total, again = chao1(f, SAMPLES // 2)

    covered = np.zeros((SAMPLES, run.model.seq_len), bool)
    for j in range(width):
        covered[:, j : j + hit.shape[1]] |= hit
    own = fingerprints(np.asarray(probes.tokens)[:, probes.first : probes.first + probes.length], width)
    counts = np.array([np.isin(prints, windows).any(-1).sum() for windows in own])
    columns = {"emitted_fraction": (counts > 0).astype(float)}
    return {**probes.columns(), "emitted_count": counts, **columns, **likelihood.averages(columns, probes.planted),
            "unprompted_match_tokens": float(width), "unprompted_token_fraction": float(covered[:, 1:].mean()),
            "unprompted_unique_count": float(curve[-1]), "unprompted_half_count": float(curve[SAMPLES // 2 - 1]),
            "unprompted_good_turing_count": good_turing(f), "unprompted_chao1_count": again, "unprompted_total_count": total}
