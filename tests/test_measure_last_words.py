"""The last-words test: chance by counting, decoding against the teacher-forced pass, models that know and that guess."""

import math

import numpy as np
import pytest
from conftest import MODEL
from fake_models import constant, fake, forget, lookup, make_canaries, planted

from scalemem import generate, models, train
from scalemem.measure import last_words, likelihood
from scalemem.spec import SpecError

RUN = make_canaries(kind="passphrase", words=16, word_length=2)
KEYS = train.key(RUN.seed, "data"), train.key(RUN.seed, "probe")


@pytest.fixture(autouse=True)
def _forget():
    yield
    forget()


def test_chance():
    assert last_words.chance_probability(16, 2) == 1 / 256
    for successes in range(6):
        tail = sum(math.comb(5, j) * 0.3**j * 0.7 ** (5 - j) for j in range(successes, 6))
        assert last_words.p_value(successes, 5, 0.3) == pytest.approx(tail)


def test_a_teacher_forced_pass_tells_what_decoding_gives():
    """On sequences that a model decoded itself, half of them changed at a random place."""
    rng = np.random.default_rng(0)
    params = models.init(MODEL, train.key(1, "init"))
    start = rng.integers(0, 32, (20, 3))
    tokens = np.concatenate([start, generate.generate(MODEL, params, start, 5)], 1)
    tokens[np.arange(10), rng.integers(3, 8, 10)] += 1
    tokens %= 32
    greedy = likelihood.token_statistics(MODEL, params, tokens).greedy
    for count in (1, 2, 5):
        said = generate.generate(MODEL, params, tokens[:, :-count], count)
        np.testing.assert_array_equal(last_words.recalled(greedy, count), (said == tokens[:, -count:]).all(1))
    assert 10 <= last_words.recalled(greedy, 5).sum() < 20


def test_a_table_of_the_canaries_and_a_model_that_guesses(monkeypatch):
    probes, known = planted(RUN)
    fake(monkeypatch, lookup(known))
    m = last_words.measure(RUN, {}, *KEYS)
    np.testing.assert_array_equal(m["last_2_exact_fraction"], probes.planted)
    assert (m["planted_last_1_exact_fraction"], m["control_last_1_exact_fraction"]) == (1, 0)
    assert m["last_2_chance_probability"] == 1 / 256
    assert m["last_2_p_value_probability"] == pytest.approx(256.0**-4)
    assert "last_4_exact_fraction" not in m  # all four words: nothing to prompt with
    fake(monkeypatch, constant(np.zeros(32)))
    m = last_words.measure(RUN, {}, *KEYS)
    np.testing.assert_array_equal(m["last_1_exact_fraction"], (np.asarray(probes.tokens)[:, -2:] == 0).all(1))
    assert m["last_1_p_value_probability"] == 1
    assert math.isnan(last_words.measure(make_canaries(kind="passphrase", include=1e-9), {}, *KEYS)["last_1_p_value_probability"])


def test_other_canaries_are_refused():
    with pytest.raises(SpecError, match="must be passphrase"):
        last_words.measure(make_canaries(), {}, *KEYS)
    for length, word in ((7, 2), (2, 2), (8, 3)):
        with pytest.raises(SpecError, match="two or more whole words"):
            last_words.measure(make_canaries(kind="passphrase", length=length, word_length=word), {}, *KEYS)
