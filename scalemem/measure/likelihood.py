"""What a model says of every token of a canary: code length, rank, entropy, and the scores that membership inference thresholds."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from scalemem import data
from scalemem.data import canaries
from scalemem.data.canaries import Probes
from scalemem.measure import attacks, drawing
from scalemem.measure.scoring import in_chunks, token_nats
from scalemem.models import Params
from scalemem.spec import ModelSpec, RunSpec, SpecError


class TokenStatistics(NamedTuple):
    """What a model says of tokens 2..T of N sequences; arrays [N, T - 1]."""

    nats: np.ndarray  # float64: -log p(x_t | x_<t)
    mean_log_p: np.ndarray  # float64: mu = sum_v p_v log p_v, nats; minus it is the entropy of the prediction
    sigma: np.ndarray  # float64: standard deviation of log p_v under p, nats
    rank: np.ndarray  # int: 1 + the number of tokens that are likelier
    greedy: np.ndarray  # bool: greedy decoding takes this token


def _statistics(logits: Float[Array, "C T V"], targets: Int[Array, "C T"]) -> tuple[jax.Array, ...]:
    log_p = jax.nn.log_softmax(logits)
    p = jnp.exp(log_p)
    mean = jnp.where(p > 0, p * log_p, 0).sum(-1)
    variance = jnp.where(p > 0, p * (log_p - mean[..., None]) ** 2, 0).sum(-1)
    rank = 1 + (logits > jnp.take_along_axis(logits, targets[..., None], -1)).sum(-1)
    return token_nats(logits, targets), mean, jnp.sqrt(variance), rank, logits.argmax(-1) == targets


def token_statistics(model: ModelSpec, params: Params, tokens: Any) -> TokenStatistics:
    """Statistics of tokens 2..T of each sequence, [N, T]: arguments as in `in_chunks`."""
    nats, mean, sigma, rank, greedy = in_chunks(model, params, tokens, _statistics)
    return TokenStatistics(nats.astype(np.float64), mean.astype(np.float64), sigma.astype(np.float64), rank, greedy)


def scored(probes: Probes) -> slice:
    """Columns of [C, S - 1] arrays over tokens 2..S that are a canary's scored tokens: all but a first one at the start of a sequence.

    Raises:
      SpecError: a canary of one token, of which nothing can be said.
    """
    if probes.length < 2:
        raise SpecError(f"canaries.length = {probes.length}: must be at least 2 for a measure; the first token may be given; lengthen the canary")
    return slice(max(probes.first, 1) - 1, probes.first + probes.length - 1)


def suffix(probes: Probes) -> slice:
    """As `scored`, of a canary's second half: what is to be recalled from all that stands before it."""
    return slice(probes.first + probes.length // 2 - 1, scored(probes).stop)


def averages(columns: Mapping[str, np.ndarray], planted: np.ndarray) -> dict[str, float]:
    """planted_X and control_X of every column X: its mean over the canaries that were planted, and over the others; nan of none.

    >>> averages({"nats": np.array([1.0, 2.0, 6.0])}, np.array([True, False, False]))
    {'planted_nats': 1.0, 'control_nats': 4.0}
    """
    kinds = {"planted": planted, "control": ~planted}
    return {f"{kind}_{name}": float(x[chosen].mean()) if chosen.any() else math.nan for name, x in columns.items() for kind, chosen in kinds.items()}


def source_nats(run: RunSpec, probes: Probes) -> np.ndarray:
    """-log p of the canaries' scored tokens under what they were drawn from, nats, float64 [C].

    random: log V a token. structured: log V a token of the format, log min(words, V) a token of the filling. passphrase: log words
    for every word of which the first token is scored (exact if no two words begin alike). trap, natural: the exact likelihood under the
    background source, at temperature 1; nan if the source has none, or cannot have made the sequence.
    """
    spec, where, vocab = canaries.require(run), scored(probes), math.log(run.model.vocab_size)
    place = np.arange(where.start + 1, where.stop + 1) - probes.first  # of a scored token in its canary
    if spec.kind == "random":
        each = np.full(len(place), vocab)
    elif spec.kind == "structured":
        each = np.where(place < probes.length - spec.word_length, vocab, math.log(min(spec.words, run.model.vocab_size)))
    elif spec.kind == "passphrase":
        each = np.where(place % spec.word_length == 0, math.log(spec.words), 0.0)
    else:
        nats = drawing.nats(run, probes.tokens)
        if nats is None:
            return np.full(len(probes.tokens), math.nan)
        total = nats.astype(np.float64)[:, where].sum(-1)
        return np.where(np.isfinite(total), total, math.nan)
    return np.full(len(probes.tokens), each.sum())


def compressed_bits(run: RunSpec, probes: Probes) -> np.ndarray:
    """zlib's length of each canary, bits [C]: of its text where the source can decode tokens, else of its ids as fixed-width bytes."""
    generator, tokens = data.get(run.stages[0].data.generator), probes.tokens[:, probes.first : probes.first + probes.length]
    if hasattr(generator, "texts"):
        return attacks.zlib_bits([text.encode() for text in generator.texts(run, tokens)])
    return attacks.zlib_bits(attacks.as_bytes(np.asarray(tokens), run.model.vocab_size))


@functools.lru_cache(maxsize=16)
def _known(run: RunSpec) -> tuple[np.ndarray, np.ndarray]:
    """What no model is needed for: `source_nats` and `compressed_bits`, the same at every look at a run."""
    probes = canaries.probes(run)
    return source_nats(run, probes), compressed_bits(run, probes)


def measure(run: RunSpec, params: Params, data_key: Any, fresh_key: Any) -> dict[str, Any]:
    """Likelihood of every canary and control, and how well it tells which were planted.

    unintended_bits = max(0, source_nats - nats) / log 2: the plug-in estimate with the exact source as the reference, the larger of
    the two probabilities taken for the whole sequence. Sums and means are over the canary's `scored` tokens.

    Args:
      run: the run that was trained, with canaries.
      params: its parameters.
      data_key: key of its training set.
      fresh_key: not used.
    Returns:
      a row a canary: what `Probes.columns` gives, nats, suffix_nats (of the second half), source_nats, unintended_bits, min_k_nats
      (mean of the 20 % highest token losses), min_kpp_ratio, zlib_bits, mean_entropy_nats, mean_rank_count (1 is best) and
      top1_fraction. Of the run: planted_ and control_ means of nats and unintended_bits; canary_loss_auc, canary_min_k_auc,
      canary_min_kpp_auc, canary_zlib_auc and canary_reference_auc, planted against others; nan without either kind.
    Raises:
      SpecError: a run without canaries, or with canaries of one token.
    Source: Morris et al. 2025 (arXiv 2505.24832); the attacks as in `measure.attacks`.
    """
    del fresh_key
    probes = canaries.probes(run, data_key)
    where = scored(probes)
    all_ = token_statistics(run.model, params, probes.tokens)
    here = TokenStatistics(*(x[:, where] for x in all_))
    nats, (source, packed) = here.nats.sum(-1), _known(run)
    columns = {
        "nats": nats, "suffix_nats": all_.nats[:, suffix(probes)].sum(-1), "source_nats": source,
        "unintended_bits": np.maximum(source - nats, 0) / math.log(2), "min_k_nats": -attacks.min_k(here.nats),
        "min_kpp_ratio": attacks.min_kpp(here.nats, here.mean_log_p, here.sigma), "zlib_bits": packed,
        "mean_entropy_nats": -here.mean_log_p.mean(-1), "mean_rank_count": here.rank.mean(-1), "top1_fraction": here.greedy.mean(-1)}
    scores = {"loss": -nats, "min_k": -columns["min_k_nats"], "min_kpp": columns["min_kpp_ratio"], "zlib": attacks.zlib(here.nats, packed),
              "reference": source - nats}
    both = 0 < probes.planted.sum() < len(probes.planted)
    return {**probes.columns(), **columns, **averages({name: columns[name] for name in ("nats", "unintended_bits")}, probes.planted),
            **{f"canary_{name}_auc": attacks.evaluate(score, probes.planted)["auc"] if both else math.nan for name, score in scores.items()}}
