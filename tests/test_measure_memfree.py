"""Extraction behind a filter: a model that recites cannot, a model that recovers comes near, and the training set is all of it."""

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_run
from fake_models import MODEL, constant, fake, forget, lookup, make_canaries, planted

from scalemem import data, train
from scalemem.measure import memfree
from scalemem.spec import SpecError

RUN = make_canaries(n_items=24, copies=2)
KEYS = train.key(RUN.seed, "data"), train.key(RUN.seed, "probe")


@pytest.fixture(autouse=True)
def _forget():
    yield
    forget()


def by_place(known, sure=9.0):
    """Logits `sure` for the token that stands at the next place of the known sequence of the same first token, whatever was said since; the
    token after it, in the vocabulary's order, is second."""
    known = jnp.asarray(known)

    def logits(tokens):
        own = known[(tokens[:, :1] == known[None, :, 0]).argmax(-1)]
        places = jnp.minimum(jnp.arange(tokens.shape[1]) + 1, known.shape[1] - 1)
        best = own[:, places]
        one_hot = lambda t: (t[..., None] == jnp.arange(MODEL.vocab_size)).astype(jnp.float32)  # noqa: E731
        return sure * one_hot(best) + 0.5 * sure * one_hot((best + 1) % MODEL.vocab_size)

    return logits


def slow(trained, prompt, truth, n):
    """What `by_place` says behind a filter that is a set."""
    grams = {tuple(row[i : i + n]) for row in trained.tolist() for i in range(len(row) - n + 1)}
    said = list(prompt)
    for token in truth:
        for choice in [token, (token + 1) % MODEL.vocab_size, *range(MODEL.vocab_size)]:
            if n == 0 or tuple([*said, choice][-n:]) not in grams:
                said.append(choice)
                break
    return said[len(prompt) :]


def test_the_training_set_is_what_the_run_sees(monkeypatch):
    whole = np.asarray(data.items(RUN, KEYS[0], jnp.arange(24)))
    monkeypatch.setattr(memfree, "AT_ONCE", 5 * MODEL.seq_len)
    np.testing.assert_array_equal(memfree.training_set(RUN, KEYS[0]), whole)
    probes, known = planted(RUN)
    np.testing.assert_array_equal(whole[:8], np.repeat(known, 2, axis=0))
    assert not (whole[:, None] == np.asarray(probes.tokens)[~probes.planted][None]).all(-1).any()


@pytest.mark.parametrize("recites", [lookup, by_place])
def test_who_recites_is_stopped_and_who_was_not_planted_is_not(monkeypatch, recites):
    probes, _ = planted(RUN)
    fake(monkeypatch, recites(np.asarray(probes.tokens)))
    m = memfree.measure(RUN, {}, *KEYS)
    own = m["planted"]
    assert m["exact_fraction_0"].tolist() == [1.0] * 8
    assert [m[f"exact_fraction_{n}"][own].tolist() for n in (2, 4)] == [[0.0] * 4] * 2
    assert m["exact_fraction_4"][~own].all()
    assert (m["planted_memfree_exact_fraction"], m["planted_memfree_forced_fraction"]) == (0, 0)
    assert m["control_memfree_exact_fraction"] == (m["exact_fraction_2"] + m["exact_fraction_4"])[~own].mean() / 2
    for n in (0, 2, 4):
        np.testing.assert_array_equal(m[f"exact_fraction_{n}"], m[f"changed_fraction_{n}"] == 0)


def test_against_a_set(monkeypatch):
    """A model that goes on in spite of a changed token: each continuation as a filter without false positives has it, n by n."""
    probes, _ = planted(RUN)
    tokens = np.asarray(probes.tokens)
    fake(monkeypatch, by_place(tokens))
    m = memfree.measure(RUN, {}, *KEYS)
    assert memfree.n_grams(4) == [0, 2, 4]
    assert m["canary"].tolist() == list(range(8))
    trained = memfree.training_set(RUN, KEYS[0])
    for n in (0, 2, 4):
        expected = np.array([slow(trained, row[:4], row[4:], n) for row in tokens])
        np.testing.assert_allclose(m[f"changed_fraction_{n}"], (expected != tokens[:, 4:]).mean(1))
        np.testing.assert_array_equal(m[f"approximate_fraction_{n}"], m[f"bleu_ratio_{n}"] > 0.75)


def test_where_everything_is_forbidden_it_is_said(monkeypatch):
    """All pairs of tokens are trained on: every token completes one, the best comes nevertheless, and each is counted."""
    pairs = np.array([[a, b] for a in range(MODEL.vocab_size) for b in range(MODEL.vocab_size)])
    fake(monkeypatch, constant(np.zeros(MODEL.vocab_size)))
    monkeypatch.setattr(memfree, "training_set", lambda run, key: np.tile(pairs, (1, 4)))
    monkeypatch.setattr(memfree, "n_grams", lambda tokens: [0, 2])
    m = memfree.measure(RUN, {}, *KEYS)
    assert (m["forced_fraction_0"].tolist(), m["forced_fraction_2"].tolist()) == ([0.0] * 8, [1.0] * 8)
    assert (m["planted_memfree_forced_fraction"], m["control_memfree_forced_fraction"]) == (1.0, 1.0)


@pytest.mark.parametrize(("suffix", "expected"), [(1, [0, 2]), (8, [0, 2, 4, 8]), (16, [0, 2, 4, 8, 16]), (50, [0, 6, 12, 25, 50])])
def test_the_sizes(suffix, expected):
    assert memfree.n_grams(suffix) == expected


def test_a_run_without_canaries_is_one_line():
    with pytest.raises(SpecError, match=r"^data.canaries = None: must be"):
        memfree.measure(make_run(), {}, *KEYS)
