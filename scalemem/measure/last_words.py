"""The last-words test of passphrases: the model is given all but the last k words, and must say those exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from scalemem.data import canaries
from scalemem.measure import likelihood
from scalemem.models import Params
from scalemem.spec import RunSpec, SpecError

LAST = (1, 2, 4, 8)  # words; those for which a word is left to prompt with


def chance_probability(words: int, k: int) -> float:
    """Probability that k words said at random are those of a passphrase: words^-k.

    >>> chance_probability(10, 2)
    0.01
    """
    return float(words) ** -k


def p_value(successes: int, trials: int, chance: float) -> float:
    """Probability that guessing succeeds at least this often: the upper tail of a binomial distribution; 1 for no successes.

    >>> p_value(1, 2, 0.5)
    0.75
    """
    return float(stats.binom.sf(successes - 1, trials, chance))


def recalled(greedy: np.ndarray, tokens: int) -> np.ndarray:
    """Whether greedy decoding gives the last `tokens` tokens, given all before them; bool [C].

    Args:
      greedy: whether greedy decoding takes each token, given those before it, bool [C, L]. Until its first error, decoding sees what the
        teacher-forced pass sees, so all are right in the one if and only if they are in the other.
      tokens: how many count.

    >>> recalled(np.array([[True, True], [True, False]]), 2)
    array([ True, False])
    """
    return np.all(greedy[:, greedy.shape[1] - tokens :], axis=-1)


def measure(run: RunSpec, params: Params, data_key: Any, fresh_key: Any) -> dict[str, Any]:
    """Whether the last k words of each passphrase follow from the others, for k = 1, 2, 4 and 8 where a word is left to prompt with.

    Args:
      run: the run that was trained; its canaries are of the kind "passphrase".
      params: its parameters.
      data_key: key of its training set.
      fresh_key: not used.
    Returns:
      a row a canary: what `Probes.columns` gives, and last_k_exact_fraction, 1 or 0. Of the run, for every k: the planted_ and control_
      means of it, last_k_chance_probability of one success, and last_k_p_value_probability, that guesses succeed as often as it was with
      the planted ones (nan if none was planted).
    Raises:
      SpecError: no canaries, canaries of another kind, of one word, or that end in part of a word.
    Source: Zhao et al. 2024 (arXiv 2403.15740) for the test.
    """
    del fresh_key
    spec = canaries.require(run)
    length = spec.length or run.model.seq_len
    if spec.kind != "passphrase":
        raise SpecError(f"canaries.kind = {spec.kind!r}: must be passphrase for the last-words test; change the kind")
    words, rest = divmod(length, spec.word_length)
    if rest or words < 2:
        raise SpecError(f"canaries.length = {length}: must be two or more whole words of canaries.word_length = {spec.word_length} tokens; "
                        "change the length")
    probes = canaries.probes(run, data_key)
    greedy = likelihood.token_statistics(run.model, params, probes.tokens[:, : probes.first + probes.length]).greedy
    columns, chances = {}, {}
    for k in LAST:
        if k < words:
            columns[f"last_{k}_exact_fraction"] = exact = recalled(greedy, k * spec.word_length).astype(float)
            chance, planted = chance_probability(spec.words, k), exact[probes.planted]
            chances[f"last_{k}_chance_probability"] = chance
            chances[f"last_{k}_p_value_probability"] = p_value(int(planted.sum()), len(planted), chance) if len(planted) else float("nan")
    return {**probes.columns(), **columns, **chances, **likelihood.averages(columns, probes.planted)}
