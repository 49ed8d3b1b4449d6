"""Exposure of structured canaries: how much lower than other fillings of the same format the model finds the one that was planted."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from scalemem.data import canaries
from scalemem.measure import likelihood, scoring
from scalemem.models import Params
from scalemem.spec import ModelSpec, RunSpec, SpecError

ENUMERATED = 1 << 16  # fillings, at most, that are all ranked; of more, a sample
SAMPLED = 1 << 12  # fillings in a sample


def exposure_bits(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """log2 of the number of fillings over the rank of one among them: log2 |R| - log2 rank.

    Rank 1 is the least perplexing, so log2 |R| is the most; ties share the mean of their ranks, so a model that finds all fillings alike
    gives log2 |R| - log2 ((|R| + 1) / 2), near 1; a random rank gives 1.44 = log2 e on average, for large |R|.

    Args:
      own: nats (or any increasing function of perplexity) of the planted filling, [C].
      others: of every other filling, or of a sample of them, [C, R - 1].
    Returns:
      exposure, bits, [C].

    >>> exposure_bits(np.array([1.0, 3.0]), np.array([[2.0, 3.0, 4.0], [1.0, 2.0, 2.5]]))
    array([2., 0.])
    """
    own = np.asarray(own)[:, None]
    rank = 1 + (others < own).sum(-1) + (others == own).sum(-1) / 2
    return np.log2(others.shape[1] + 1) - np.log2(rank)


def _log_cdf(z: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """log of the standard skew-normal distribution function, also where the function itself would be 0 in floating point.

    The integral of 2 phi(x) Phi(shape x) below z: by Owen's T where it is not small, else by Gauss and Laguerre in units of the
    density's own decay.
    """
    cdf = special.ndtr(z) - 2 * special.owens_t(z, shape)
    below = np.minimum(z, -0.5)
    nodes, weights = np.polynomial.laguerre.laggauss(60)
    scale = 1 / (-below * (1 + np.maximum(shape, 0) ** 2))
    x = below - scale * nodes[:, None]
    terms = np.log(2) - x**2 / 2 - np.log(2 * np.pi) / 2 + special.log_ndtr(shape * x) + nodes[:, None]
    tail = special.logsumexp(terms + np.log(weights)[:, None], axis=0) + np.log(scale)
    return np.where((cdf > 1e-6) | (z > -0.5), np.log(np.maximum(cdf, 1e-300)), tail)


def extrapolated_bits(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """-log2 F(own) with F the skew-normal distribution of the other fillings' mean, deviation and skewness; may exceed log2 |R|.

    The three parameters by moments: with g the skewness, at most .99 in size, |delta| = sqrt(pi/2 h / (h + (2 - pi/2)^(2/3))) for
    h = |g|^(2/3); shape = delta / sqrt(1 - delta^2).

    Args:
      own: nats of the planted filling, [C].
      others: nats of other fillings, [C, R].
    Returns:
      exposure, bits, [C]; nan where the others are all alike.
    """
    mean, deviation = others.mean(-1), others.std(-1)
    sure = np.where(deviation > 1e-12 * np.abs(mean), deviation, np.nan)
    skewness = np.clip((((others - mean[:, None]) / sure[:, None]) ** 3).mean(-1), -0.99, 0.99)
    h = np.abs(skewness) ** (2 / 3)
    delta = np.sign(skewness) * np.sqrt(math.pi / 2 * h / (h + (2 - math.pi / 2) ** (2 / 3)))
    omega = sure / np.sqrt(1 - 2 * delta**2 / math.pi)
    z = (own - mean) / omega + delta * math.sqrt(2 / math.pi)
    return -_log_cdf(z, delta / np.sqrt(1 - delta**2)) / math.log(2)


@functools.lru_cache(maxsize=64)
def _last_choices(start: int, values: int):
    """Nats [C, values] of the tokens from column `start` on, with each of the first `values` tokens in the last place."""
    def reduce(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array]:
        before = scoring.token_nats(logits[:, start:-1], targets[:, start:-1]).sum(-1, keepdims=True)
        return (before - jax.nn.log_softmax(logits[:, -1])[:, :values],)

    return reduce


def filling_nats(model: ModelSpec, params: Params, tokens: np.ndarray, width: int, values: int) -> np.ndarray:
    """-log p of every filling of the last `width` tokens by the first `values` tokens of the vocabulary, given what stands before.

    Args:
      model, params: the model, as in `scoring.in_chunks`.
      tokens: int [C, T]; their own filling is not read.
      width: tokens in a filling, at most T - 1.
      values: values of a token.
    Returns:
      nats [C, values^width]; filling (a, b, ...) is number a values^(width - 1) + b values^(width - 2) + ...: one pass a prefix.
    """
    prefixes = np.stack(np.unravel_index(np.arange(values ** (width - 1)), (values,) * (width - 1)), -1) if width > 1 else np.zeros((1, 0), int)
    rows = np.repeat(np.asarray(tokens), len(prefixes), 0)
    rows[:, rows.shape[1] - width : rows.shape[1] - 1] = np.tile(prefixes, (len(tokens), 1))
    nats = scoring.in_chunks(model, params, rows, _last_choices(rows.shape[1] - width - 1, values))[0]
    return nats.reshape(len(tokens), -1).astype(np.float64)


def _total(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array]:
    return (scoring.token_nats(logits, targets),)


def sampled_nats(model: ModelSpec, params: Params, tokens: np.ndarray, fillings: np.ndarray) -> np.ndarray:
    """-log p of given fillings [R, width] in the last places of tokens [C, T], given what stands before; nats [C, R]."""
    width = fillings.shape[1]
    found = []
    for row in np.asarray(tokens):
        rows = np.concatenate([np.tile(row[:-width], (len(fillings), 1)), fillings], 1)
        found.append(scoring.in_chunks(model, params, rows, _total)[0][:, -width:].sum(-1, dtype=np.float64))
    return np.stack(found)


def measure(run: RunSpec, params: Params, data_key: Any, fresh_key: Any) -> dict[str, Any]:
    """Exposure of every canary and control among the fillings of its own format.

    Args:
      run: the run that was trained; its canaries are of the kind "structured".
      params: its parameters.
      data_key: key of its training set.
      fresh_key: key of the sample of fillings, where there are more than 65536; then exposure_bits is at most log2 4097.
    Returns:
      a row a canary: what `Probes.columns` gives, filling_nats, exposure_bits (`exposure_bits`) and exposure_skew_bits
      (`extrapolated_bits`). Of the run: their planted_ and control_ means, and exposure_limit_bits, the largest exposure_bits possible.
    Raises:
      SpecError: no canaries, canaries of another kind, or a filling with nothing before it.
    Source: Carlini et al. 2019 (arXiv 1802.08232), as reconstructed.
    """
    spec = canaries.require(run)
    if spec.kind != "structured":
        raise SpecError(f"canaries.kind = {spec.kind!r}: must be structured for exposure, which ranks all fillings of a format; change the kind")
    width, values = spec.word_length, min(spec.words, run.model.vocab_size)
    end = max(spec.offset, 0) + (spec.length or run.model.seq_len)
    if width >= end:
        raise SpecError(f"canaries.word_length = {width}: must be below {end}, the tokens up to the canary's end; shorten the filling")
    probes = canaries.probes(run, data_key)
    tokens = np.asarray(probes.tokens)[:, :end]
    if values**width <= ENUMERATED:
        number = tokens[:, -width:] @ values ** np.arange(width - 1, -1, -1)
        nats = filling_nats(run.model, params, tokens, width, values)
        own = np.take_along_axis(nats, number[:, None], 1)[:, 0]
        others = nats[np.arange(nats.shape[1]) != number[:, None]].reshape(len(nats), -1)
    else:
        own = scoring.in_chunks(run.model, params, tokens, _total)[0][:, -width:].sum(-1, dtype=np.float64)
        others = sampled_nats(run.model, params, tokens, np.asarray(jax.random.randint(fresh_key, (SAMPLED, width), 0, values, jnp.int32)))
    columns = {"filling_nats": own, "exposure_bits": exposure_bits(own, others), "exposure_skew_bits": extrapolated_bits(own, others)}
    return {**probes.columns(), **columns, "exposure_limit_bits": math.log2(others.shape[1] + 1), **likelihood.averages(columns, probes.planted)}
