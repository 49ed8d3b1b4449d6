"""(n, p)-extraction: the probability that one sample of the model, under a decoding scheme, is the rest of a training sequence."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scalemem import generate
from scalemem.data import canaries
from scalemem.measure import likelihood, scoring
from scalemem.models import Params
from scalemem.spec import ModelSpec, RunSpec


class Scheme(NamedTuple):
    """A decoding scheme: temperature, then the top_k likeliest tokens (0: all), then the smallest set of probability top_p."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def schemes(vocab_size: int) -> dict[str, Scheme]:
    """The schemes that are measured: samples of the model itself, and of its 40 likeliest tokens, or its V / 4 if they are fewer.

    >>> schemes(64)["top_k"].top_k
    16
    """
    return {"plain": Scheme(), "top_k": Scheme(top_k=max(1, min(40, vocab_size // 4)))}


@functools.lru_cache(maxsize=64)
def _picked(start: int, scheme: Scheme):
    def reduce(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array]:
        log_p = generate.processed_log_probs(logits[:, start:], scheme.temperature, scheme.top_k, scheme.top_p)
        return (jnp.take_along_axis(log_p, targets[:, start:, None], -1)[..., 0],)

    return reduce


def log_p_z(model: ModelSpec, params: Params, tokens: Any, start: int, scheme: Scheme) -> np.ndarray:
    """log of the probability that one sample, given tokens 1..start+1, continues with the others: one teacher-forced pass.

    log p_z = sum over t > start of log q(x_t | x_<t), with q the processed conditional distribution; -inf where the scheme never takes a
    token. Exact for tiny p_z, of which the logarithm alone is a number.

    Args:
      model, params: the model, as in `scoring.in_chunks`.
      tokens: int32 [N, T].
      start: column of the first token that counts, in arrays over tokens 2..T.
      scheme: how samples are drawn.
    Returns:
      nats, float64 [N], at most 0.
    """
    return scoring.in_chunks(model, params, tokens, _picked(start, scheme))[0].sum(-1, dtype=np.float64)


def samples_needed(log_p: np.ndarray, p: float) -> np.ndarray:
    """Fewest samples of which one is right with probability p: n = log(1 - p) / log(1 - p_z), rounded up, at least 1.

    Args:
      log_p: log p_z, nats, at most 0, any shape.
      p: in (0, 1).
    Returns:
      counts, as floats; inf where p_z is 0 or below e^-708.
    Raises:
      ValueError: p outside (0, 1).
    Source: Hayes et al. 2024 (arXiv 2410.19482).

    >>> samples_needed(np.log([0.162, 1.0]), 0.9), samples_needed(np.array([-np.inf]), 0.9)
    (array([14.,  1.]), array([inf]))
    """
    if not 0 < p < 1:
        raise ValueError(f"p = {p}: must be above 0 and below 1; 0.9 and 0.999 are usual")
    log_p = np.asarray(log_p, float)
    with np.errstate(divide="ignore"):
        n = np.log1p(-p) / np.where(log_p > -708, np.log1p(-np.exp(log_p)), -0.0)
    return np.maximum(1.0, np.ceil(n * (1 - 1e-12)))


def rate(log_p: np.ndarray, n: int, p: float) -> float:
    """Share of the sequences that are (n, p)-extractable, 1 - (1 - p_z)^n >= p: rises with n and falls with p.

    >>> rate(np.log([0.5, 0.1]), 4, 0.9)
    0.5
    """
    return float((samples_needed(log_p, p) <= n).mean())


def measure(run: RunSpec, params: Params, data_key: Any, fresh_key: Any) -> dict[str, Any]:
    """log p_z of each canary's second half, given its first half and all before it.

    Args:
      run: the run that was trained, with canaries.
      params: its parameters.
      data_key: key of its training set.
      fresh_key: not used.
    Returns:
      a row a canary: what `Probes.columns` gives, suffix_log_probability_plain and suffix_log_probability_top_k (nats; `schemes`),
      greedy_exact_fraction (1 where greedy decoding gives the suffix, else 0), greedy_suffix_fraction (its leading tokens that greedy
      decoding gives). Of the run: planted_ and control_ means of the last two and of extractable_fraction, the rate of
      (n, p) = (100, .5) under top_k.
    Raises:
      SpecError: a run without canaries, or with canaries of one token.
    Source: Hayes et al. 2024 (arXiv 2410.19482).
    """
    del fresh_key
    probes = canaries.probes(run, data_key)
    where = likelihood.suffix(probes)
    tokens = probes.tokens[:, : where.stop + 1]
    logs = {name: log_p_z(run.model, params, tokens, where.start, scheme) for name, scheme in schemes(run.model.vocab_size).items()}
    greedy = likelihood.token_statistics(run.model, params, tokens).greedy[:, where]
    columns = {"greedy_exact_fraction": greedy.all(-1).astype(float), "greedy_suffix_fraction": np.cumprod(greedy, -1).mean(-1)}
    extractable = (samples_needed(logs["top_k"], 0.5) <= 100).astype(float)
    return {**probes.columns(), **{f"suffix_log_probability_{name}": value for name, value in logs.items()}, **columns,
            **likelihood.averages({**columns, "extractable_fraction": extractable}, probes.planted)}
