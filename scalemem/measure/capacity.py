"""Bits of a random data set that a model holds: code length under the source minus code length under the model."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from scalemem import data
from scalemem.accounting import n_params
from scalemem.measure import membership
from scalemem.measure.scoring import Scores, score
from scalemem.models import Params
from scalemem.spec import RunSpec

MEMBERSHIP_SEQUENCES = 1 << 14  # members and fresh sequences that the attack uses, at most
SLICE = 1 << 14  # sequences drawn at once


def scores(run: RunSpec, params: Params, key: Any, count: int, first: int = 0) -> Scores:
    """Scores of items first .. first + count - 1 of the data set of `key`."""
    generator = data.get(run.stages[0].data.generator)
    parts = []
    for i in range(first, first + count, SLICE):
        tokens = generator.items(run, key, jnp.arange(i, min(i + SLICE, first + count)))
        parts.append(score(run.model, params, tokens))
    return Scores(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def bits(run: RunSpec, nats: np.ndarray) -> float:
    """Memorized bits, honest: sum over items of (entropy of its scored tokens - code length of them under the model).

    Not clipped: a model that knows nothing reads a little below 0, for it pays for its own errors.
    """
    entropy = data.get(run.stages[0].data.generator).entropy_bits(run)
    return run.stages[0].data.n_items * entropy - math.fsum(nats) / math.log(2)


def measure(run: RunSpec, params: Params, data_key: Any, fresh_key: Any) -> dict[str, float]:
    """Capacity and membership of one trained model.

    memorized_bits = n (S - 1) log2 V - sum_i nll_i / log 2, over the scored tokens 2..S of all n items;
    memorized_bits_paper = the same times S / (S - 1), the convention of Morris et al. (their S times the mean over S - 1 tokens).

    Args:
      run: the run that was trained.
      params: its final parameters.
      data_key: key of its training set.
      fresh_key: key of sequences of the same source that it has not seen.
    Returns:
      memorized_bits, memorized_bits_paper, bits_per_param, bits_per_param_paper, memorized_fraction, null_se_bits (standard
      error that memorized_bits would have if the model knew nothing of the data), train_loss_nats, test_loss_nats,
      exact_recall_fraction, and the columns of `membership.attack`.
    Source: Morris et al. 2025 (arXiv 2505.24832), definitions and token convention as reconstructed.
    """
    n, seq_len = run.stages[0].data.n_items, run.model.seq_len
    member = scores(run, params, data_key, n)
    fresh = scores(run, params, fresh_key, min(n, MEMBERSHIP_SEQUENCES))
    held, parameters = bits(run, member.nats), n_params(run.model)
    entropy = data.get(run.stages[0].data.generator).entropy_bits(run)
    spread = float(np.std(fresh.nats, ddof=1)) if len(fresh.nats) > 1 else math.nan
    return {
        "memorized_bits": held,
        "memorized_bits_paper": held * seq_len / (seq_len - 1),
        "bits_per_param": held / parameters,
        "bits_per_param_paper": held * seq_len / (seq_len - 1) / parameters,
        "memorized_fraction": held / (n * entropy),
        "null_se_bits": math.sqrt(n) * spread / math.log(2),
        "train_loss_nats": math.fsum(member.nats) / (n * (seq_len - 1)),
        "test_loss_nats": math.fsum(fresh.nats) / (len(fresh.nats) * (seq_len - 1)),
        "exact_recall_fraction": float(member.exact.mean()),
        **membership.attack(member.nats[: len(fresh.nats)], fresh.nats),
    }
