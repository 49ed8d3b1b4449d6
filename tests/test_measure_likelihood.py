"""Token statistics in float64 arithmetic; models that know nothing, and all; what canaries cost under their own source."""

import dataclasses
import itertools
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_gpt as reference
from conftest import MODEL
from fake_models import constant, fake, forget, lookup, make_canaries, planted

from scalemem import data, models, train
from scalemem.data import canaries
from scalemem.measure import attacks, likelihood, scoring
from scalemem.spec import SpecError

RUN = make_canaries()
KEYS = train.key(RUN.seed, "data"), train.key(RUN.seed, "probe")


@pytest.fixture(autouse=True)
def _forget():
    yield
    forget()


def test_token_statistics_are_those_of_float64(monkeypatch):
    model = dataclasses.replace(MODEL, init_std=0.5)
    params = models.init(model, train.key(1, "init"))
    tokens = np.asarray(data.items(RUN, KEYS[0], jnp.arange(13)))
    got = likelihood.token_statistics(model, params, tokens)
    logits = reference.forward(model, params, tokens[:, :-1])[0]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    right = np.take_along_axis(log_p, tokens[:, 1:, None], -1)[..., 0]
    mean = (np.exp(log_p) * log_p).sum(-1)
    np.testing.assert_allclose(got.nats, -right, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.mean_log_p, mean, rtol=1e-5)
    np.testing.assert_allclose(got.sigma, np.sqrt((np.exp(log_p) * log_p**2).sum(-1) - mean**2), rtol=1e-4)
    np.testing.assert_array_equal(got.rank, [[1 + sum(log_p[i, t, v] > right[i, t] for v in range(32)) for t in range(7)] for i in range(13)])
    np.testing.assert_array_equal(got.greedy, log_p.argmax(-1) == tokens[:, 1:])
    monkeypatch.setitem(scoring.CHUNK_FLOATS, "cpu", 4 * 8 * 32)
    for a, b in zip(likelihood.token_statistics(model, params, tokens), got, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6)


def test_a_model_of_three_tokens_by_hand(monkeypatch):
    fake(monkeypatch, constant(np.log([0.5, 0.25, 0.25])))
    got = likelihood.token_statistics(dataclasses.replace(MODEL, vocab_size=3), {}, np.array([[2, 0, 1, 2]]))
    np.testing.assert_allclose(got.nats[0], np.log([2, 4, 4]), rtol=1e-6)
    np.testing.assert_allclose(got.mean_log_p, -1.5 * math.log(2), rtol=1e-6)
    np.testing.assert_allclose(got.sigma, 0.5 * math.log(2), rtol=1e-6)  # log2 p is -1 or -2, half of the time each
    assert (got.rank.tolist(), got.greedy.tolist()) == ([[1, 2, 2]], [[True, False, False]])


def test_impossible_tokens_do_no_harm(monkeypatch):
    fake(monkeypatch, constant([0.0, -jnp.inf, 0.0]))
    got = likelihood.token_statistics(dataclasses.replace(MODEL, vocab_size=3), {}, np.array([[0, 2, 1]]))
    np.testing.assert_allclose(got.mean_log_p, -math.log(2), rtol=1e-6)
    np.testing.assert_allclose(got.sigma, 0, atol=1e-6)
    assert got.nats[0, 1] == np.inf


def test_a_model_that_guesses_knows_nothing(monkeypatch):
    fake(monkeypatch, constant(np.zeros(32)))
    m = likelihood.measure(RUN, {}, *KEYS)
    np.testing.assert_allclose(m["nats"], 7 * math.log(32), rtol=1e-6)
    np.testing.assert_allclose(m["suffix_nats"], 4 * math.log(32), rtol=1e-6)
    np.testing.assert_allclose(m["source_nats"], 7 * math.log(32), rtol=1e-12)
    np.testing.assert_allclose(m["unintended_bits"], 0, atol=1e-4)
    np.testing.assert_allclose(m["mean_entropy_nats"], math.log(32), rtol=1e-6)
    np.testing.assert_allclose(m["min_kpp_ratio"], 0, atol=1e-3)
    assert {m[f"canary_{name}_auc"] for name in ("loss", "min_k", "min_kpp", "reference")} == {0.5}
    assert (m["mean_rank_count"] == 1).all()


def test_a_table_of_the_canaries_knows_them_and_no_others(monkeypatch):
    probes, known = planted(RUN)
    assert len(np.unique(known[:, 0])) == 4  # so the first token alone says which
    fake(monkeypatch, lookup(known))
    m = likelihood.measure(RUN, {}, *KEYS)
    np.testing.assert_allclose(m["unintended_bits"][probes.planted], 35, rtol=1e-6)
    np.testing.assert_allclose(m["nats"][probes.planted], 0, atol=1e-6)
    assert (m["unintended_bits"][~probes.planted] < 1e-3).all()
    assert (m["top1_fraction"][probes.planted] == 1).all()
    assert (m["suffix_nats"] <= m["nats"]).all()
    assert {m[f"canary_{name}_auc"] for name in ("loss", "min_k", "reference", "zlib")} == {1.0}
    assert (m["planted_unintended_bits"], m["control_nats"]) == (pytest.approx(35), pytest.approx(m["nats"][~probes.planted].mean()))
    assert {len(v) for v in m.values() if isinstance(v, np.ndarray)} == {8}
    np.testing.assert_array_equal(m["copies"], [1, 1, 1, 1, 0, 0, 0, 0])


def test_without_controls_no_auc(monkeypatch):
    fake(monkeypatch, constant(np.zeros(32)))
    m = likelihood.measure(make_canaries(controls=0), {}, *KEYS)
    assert math.isnan(m["canary_loss_auc"])
    assert math.isnan(m["control_nats"])


@pytest.mark.parametrize(("offset", "length", "scored", "suffix"), [(0, 0, (0, 7), (3, 7)), (0, 5, (0, 4), (1, 4)), (1, 5, (0, 5), (2, 5)),
                                                                    (3, 4, (2, 6), (4, 6)), (0, 2, (0, 1), (0, 1))])
def test_which_tokens_count(offset, length, scored, suffix):
    probes = canaries.probes(make_canaries(offset=offset, length=length), KEYS[0])
    got = likelihood.scored(probes), likelihood.suffix(probes)
    assert [(s.start, s.stop) for s in got] == [scored, suffix]


def test_canaries_of_one_token_are_refused():
    with pytest.raises(SpecError, match=r"canaries\.length = 1: must be at least 2"):
        likelihood.measure(make_canaries(length=1), {}, *KEYS)
    with pytest.raises(SpecError, match=r"data\.canaries = None"):
        likelihood.measure(dataclasses.replace(RUN, stages=(dataclasses.replace(RUN.stages[0], data=dataclasses.replace(
            RUN.stages[0].data, canaries=None)),)), {}, *KEYS)


def source(run):
    return likelihood.source_nats(run, canaries.probes(run, KEYS[0]))


def test_what_canaries_cost_under_their_source():
    np.testing.assert_allclose(source(make_canaries(offset=2, length=5)), 5 * math.log(32))
    filled = make_canaries(kind="structured", words=8, word_length=2)
    np.testing.assert_allclose(source(filled), 5 * math.log(32) + 2 * math.log(8))
    np.testing.assert_allclose(source(make_canaries(kind="structured", words=100, word_length=7)), 7 * math.log(32))
    natural = make_canaries(kind="natural", generator="markov")
    probes = canaries.probes(natural, KEYS[0])
    expected = np.asarray(data.get("markov").nats(natural, probes.tokens), float).sum(-1)
    np.testing.assert_allclose(source(natural), expected, rtol=1e-6)


def test_what_a_passphrase_costs_by_enumeration():
    """Words of 2 tokens, 3 words in the list, 4 in a passphrase: -log of the share of passphrases that agree, of those of its first token."""
    run = make_canaries(kind="passphrase", words=3, word_length=2, length=6)
    tokens = np.asarray(canaries.probes(run, KEYS[0]).tokens)[:, :6]
    words = np.unique(tokens.reshape(-1, 2), axis=0)
    assert len(words) == len(np.unique(words[:, 0])) == 3
    every = np.array([np.concatenate(c) for c in itertools.product(words, repeat=3)])
    expected = [-math.log((every == row).all(1).sum() / (every[:, 0] == row[0]).sum()) for row in tokens]
    np.testing.assert_allclose(source(run), expected)
    np.testing.assert_allclose(source(make_canaries(kind="passphrase", words=3, word_length=2, length=6, offset=1)), 3 * math.log(3))


def test_a_source_without_likelihood_gives_none(monkeypatch):
    run = make_canaries(kind="natural", generator="markov")
    source(run)
    markov = data.get("markov")
    monkeypatch.setattr(markov, "nats", lambda run, tokens: jnp.full((len(tokens), 7), jnp.inf))
    assert np.isnan(source(run)).all()
    monkeypatch.delattr(markov, "nats")
    assert np.isnan(source(run)).all()


def test_compression_reads_text_where_there_is_text(monkeypatch):
    probes = canaries.probes(RUN, KEYS[0])
    ids = likelihood.compressed_bits(RUN, probes)
    assert ids.tolist() == [8 * len(zlib.compress(bytes(row))) for row in np.asarray(probes.tokens).tolist()]
    monkeypatch.setattr(data.get("uniform"), "texts", lambda run, tokens: ["ab" * 50] * len(tokens), raising=False)
    assert (likelihood.compressed_bits(RUN, probes) == attacks.zlib_bits([b"ab" * 50])[0]).all()


def test_a_trained_params_tree_of_bfloat16_is_read_in_float32():
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), models.init(MODEL, train.key(0, "init")))
    tokens = np.asarray(canaries.probes(RUN, KEYS[0]).tokens)
    got = likelihood.token_statistics(MODEL, params, tokens).nats
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    np.testing.assert_allclose(got, reference.nats(MODEL, exact, tokens), rtol=1e-5)
