"""Extraction behind a filter: canaries continued by MEMFREE decoding, exactly and nearly."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int

from scalemem import generate
from scalemem.data import canaries
from scalemem.decoding import memfree
from scalemem.measure import approximate, drawing, likelihood
from scalemem.models import Params
from scalemem.spec import RunSpec

AT_ONCE = 1 << 22  # tokens of the training set that are made at once
FALSE_POSITIVE_RATE = 1e-4


def n_grams(suffix_tokens: int) -> list[int]:
    """Lengths of the n-grams that are forbidden, in tokens: an eighth, a quarter, a half and all of the suffix, at least 2; 0 forbids none.

    >>> n_grams(32)
    [0, 4, 8, 16, 32]
    """
    return [0, *sorted({max(2, suffix_tokens * part // 8) for part in (1, 2, 4, 8)})]


def training_set(run: RunSpec, data_key: Any) -> Int[np.ndarray, "N S"]:
    """All items of a run's data set, canaries planted, int32 [n_items, S]."""
    count, rows = run.stages[0].data.n_items, max(1, AT_ONCE // run.model.seq_len)
    index = [np.arange(first, min(first + rows, count)) for first in range(0, count, rows)]
    return np.concatenate([np.asarray(drawing.trained(run, data_key, i)) for i in index])


def measure(run: RunSpec, params: Params, data_key: Any, fresh_key: Any) -> dict[str, Any]:
    """How often the second half of a canary comes back, exactly and nearly, when no n-gram of the training set may be completed.

    Greedy decoding goes on from a canary's first half and all before it; a token that would complete one of the n-grams of the training
    set, which a Bloom filter holds, gives way to the next best. The prompt counts: its last n - 1 tokens are the beginning of the first
    n-gram. So no planted suffix can come back exactly with n at most the canary's length, unless every token was forbidden.

    Args:
      run: the run that was trained, with canaries.
      params: its parameters.
      data_key: key of its training set.
      fresh_key: not used.
    Returns:
      a row a canary: what `Probes.columns` gives and, for each n of `n_grams` (of the suffix's tokens; 0 is no filter),
      exact_fraction_n (1 where the suffix is right, else 0), bleu_ratio_n, approximate_fraction_n (1 where BLEU is above .75),
      changed_fraction_n (of the suffix's tokens, those that differ) and forced_fraction_n (those that complete a forbidden n-gram, as all
      tokens would). Of the run: planted_ and control_ means over all filters, of memfree_exact_fraction, memfree_approximate_fraction
      and memfree_forced_fraction.
    Raises:
      SpecError: a run without canaries, or with canaries of one token.
    Source: Ippolito et al. 2022 (arXiv 2210.17546), n = 10 for suffixes of 50 tokens, BLEU > .75.
    """
    del fresh_key
    probes = canaries.probes(run, data_key)
    where = likelihood.suffix(probes)
    tokens = np.asarray(probes.tokens)
    prompts, truth = tokens[:, : where.start + 1], tokens[:, where.start + 1 : where.stop + 1]
    trained, table = training_set(run, data_key), {}
    for n in n_grams(truth.shape[1]):
        rule = memfree.build(trained, run.model.vocab_size, n, FALSE_POSITIVE_RATE) if n else None
        ours = generate.generate(run.model, params, prompts, truth.shape[1], ban=rule)
        forced = memfree.hits(rule, np.concatenate([prompts, ours], 1))[:, prompts.shape[1] :] if rule else np.zeros(ours.shape, bool)
        score = approximate.bleu(ours, truth)
        columns = {"exact_fraction": (ours == truth).all(1).astype(float), "bleu_ratio": score,
                   "approximate_fraction": (score > approximate.THRESHOLD).astype(float),
                   "changed_fraction": (ours != truth).mean(1), "forced_fraction": forced.mean(1)}
        table |= {f"{name}_{n}": column for name, column in columns.items()}
    means = {f"memfree_{name}": np.mean([table[f"{name}_{n}"] for n in n_grams(truth.shape[1]) if n], axis=0)
             for name in ("exact_fraction", "approximate_fraction", "forced_fraction")}
    return {**probes.columns(), **table, **likelihood.averages(means, probes.planted)}
