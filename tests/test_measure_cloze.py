"""Name cloze: candidates, their likelihoods against a slow reference, a model that knows the passage and one that guesses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_gpt as reference
from conftest import MODEL
from fake_models import constant, fake, forget, lookup, make_canaries, planted

from scalemem import models, train
from scalemem.measure import cloze

RUN = make_canaries()
KEYS = train.key(RUN.seed, "data"), train.key(RUN.seed, "probe")


@pytest.fixture(autouse=True)
def _forget():
    yield
    forget()


def test_candidates_are_the_right_one_and_distinct_others():
    truth = np.arange(600) % 10
    got = cloze.candidates(truth, 10, 4, jax.random.key(0))
    np.testing.assert_array_equal(got[:, 0], truth)
    assert all(len(set(row)) == 4 for row in got.tolist())
    assert (got.min(), got.max()) == (0, 9)
    others = np.bincount((got[:, 1:] - got[:, :1]).ravel() % 10, minlength=10)
    assert others[0] == 0
    assert (np.abs(others[1:] - 200) < 4 * np.sqrt(200 * 2 / 3)).all()
    np.testing.assert_array_equal(np.sort(cloze.candidates(truth, 10, 10, jax.random.key(1))), np.tile(np.arange(10), (600, 1)))
    for count in (1, 11):
        with pytest.raises(ValueError, match="at most the vocabulary, 10"):
            cloze.candidates(truth, 10, count, jax.random.key(0))


def test_likelihoods_of_candidates_against_a_slow_reference():
    model = dataclasses.replace(MODEL, init_std=0.5)
    params = models.init(model, train.key(1, "init"))
    tokens = np.random.default_rng(0).integers(0, 32, (3, 7))
    before = tokens.copy()
    choices = cloze.candidates(tokens[:, 3], 32, 5, jax.random.key(0))
    got, alone = cloze.candidate_nats(model, params, tokens, 3, choices)
    np.testing.assert_array_equal(tokens, before)
    for c in range(3):
        for k in range(5):
            row = tokens[c].copy()
            row[3] = choices[c, k]
            nats = reference.nats(model, params, row[None])[0]
            assert (got[c, k], alone[c, k]) == pytest.approx((nats[2:].sum(), nats[2]), rel=1e-5)


def test_a_model_that_guesses_scores_exactly_chance(monkeypatch):
    fake(monkeypatch, constant(np.zeros(32)))
    m = cloze.measure(RUN, {}, *KEYS)
    np.testing.assert_allclose(m["cloze_exact_fraction"], 1 / 32)
    np.testing.assert_allclose(m["cloze_rank_count"], 16.5)
    assert m["cloze_chance_probability"] == 1 / 32


def test_a_table_of_the_canaries(monkeypatch):
    probes, known = planted(RUN)
    fake(monkeypatch, lookup(known))
    m = cloze.measure(RUN, {}, *KEYS)
    assert (m["planted_cloze_exact_fraction"], m["planted_cloze_left_exact_fraction"], m["planted_cloze_rank_count"]) == (1, 1, 1)
    np.testing.assert_allclose(m["cloze_exact_fraction"][~probes.planted], 1 / 32)


def test_what_follows_the_name_tells_it(monkeypatch):
    """A model that repeats every token but cannot foresee any: only the whole passage tells the name, and it does."""
    run = make_canaries(dataclasses.replace(MODEL, vocab_size=64))
    probes, _ = planted(run)
    tokens = np.asarray(probes.tokens)
    pairs = jnp.asarray(np.stack([tokens[:, 4], tokens[:, 5]]))  # after the name of each canary comes its next token

    def logits(seen):
        follows = (seen[:, :, None] == pairs[0]).astype(jnp.float32)
        return 5 * jnp.einsum("btn,nv->btv", follows, jax.nn.one_hot(pairs[1], 64)) * (jnp.arange(seen.shape[1]) == 4)[None, :, None]

    fake(monkeypatch, logits)
    m = cloze.measure(run, {}, *KEYS)
    assert m["cloze_chance_probability"] == 1 / 32
    np.testing.assert_allclose(m["cloze_left_exact_fraction"], 1 / 32)
    assert m["cloze_exact_fraction"].mean() > 0.8
