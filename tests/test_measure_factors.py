"""Factors of memorization: templates against a slow search, code lengths against Counter, and the table of a run."""

import collections
import math

import jax.numpy as jnp
import numpy as np
import pytest
from fake_models import constant, fake, forget, lookup, make_canaries, planted
from hypothesis import given, settings
from hypothesis import strategies as st

from scalemem import data, train
from scalemem.data import canaries
from scalemem.measure import factors


@pytest.fixture(autouse=True)
def _forget():
    yield
    forget()


def follows(row, vocab):
    for period in range(1, len(row) // 2 + 1):
        steps = {(row[t] - row[t - period]) % vocab for t in range(period, len(row))}
        if len(steps) == 1 and len(row) - period > 1:
            return True
    return False


@given(st.lists(st.integers(0, 2), min_size=1, max_size=7))
@settings(max_examples=200, deadline=None)
def test_templates_by_search(row):
    assert factors.templating(np.array([row]), 3).tolist() == [follows(row, 3)]


def test_code_length():
    rows = np.random.default_rng(0).integers(0, 5, (20, 9))
    for row, bits in zip(rows, factors.code_bits(rows), strict=True):
        shares = [n / 9 for n in collections.Counter(row.tolist()).values()]
        assert bits == pytest.approx(sum(p * math.ceil(-math.log2(p)) for p in shares))


def test_planted_templates_are_found_and_step_by_nothing_or_one():
    run = make_canaries(kind="template", generator="markov", per_group=16, n_items=16, coldest=0.5, hottest=3.0)
    tokens = np.asarray(canaries.probes(run, train.key(run.seed, "data")).tokens)
    odd = np.arange(len(tokens)) % 2 == 1
    np.testing.assert_array_equal(factors.templating(tokens, 32), odd)
    steps = (tokens[odd, 2:] - tokens[odd, :-2]) % 32
    assert set(np.unique(steps)) == {0, 1}
    assert (steps == steps[:, :1]).all()


def test_a_table_of_the_canaries_and_a_model_of_chance(monkeypatch):
    run = make_canaries(kind="template", generator="markov")
    keys = train.key(run.seed, "data"), train.key(run.seed, "probe")
    probes, known = planted(run)
    fake(monkeypatch, lookup(known))
    m = factors.measure(run, {}, *keys)
    np.testing.assert_array_equal(m["memorized_rate"], probes.planted)
    assert (m["planted_memorized_rate"], m["control_memorized_rate"]) == (1, 0)
    assert m["suffix_nats"][probes.planted].max() < 1e-6
    np.testing.assert_allclose(m["source_nats"], np.asarray(data.get("markov").nats(run, probes.tokens)).mean(1), rtol=1e-5)
    background = np.asarray(data.get("markov").items(run, keys[0], canaries.HELD_OUT + (1 << 27) + jnp.arange(1024)))
    share = [np.mean([-math.log((background == t).mean()) for t in row]) for row in np.asarray(probes.tokens)]
    np.testing.assert_allclose(m["token_log_nats"], share)
    fake(monkeypatch, constant(np.zeros(32)))
    m = factors.measure(run, {}, *keys)
    np.testing.assert_allclose([m["prompt_nats"], m["suffix_nats"]], math.log(32), rtol=1e-6)
