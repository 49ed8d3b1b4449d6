"""MEMFREE against a set of n-grams: nothing of the training set is completed, false positives are as designed, forced tokens are seen."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generate import TABLE, table

from scalemem import decoding
from scalemem.decoding import memfree
from scalemem.generate import generate
from scalemem.spec import SpecError


def grams(tokens, n):
    return {tuple(map(int, row[i : i + n])) for row in np.asarray(tokens) for i in range(len(row) - n + 1)}


def test_the_registry():
    assert decoding.get("memfree") is memfree
    with pytest.raises(SpecError, match="must be one of memfree") as error:
        decoding.get("none")
    assert len(str(error.value).splitlines()) == 1
    for thing in (decoding, *decoding.RULES.values(), *(module.build for module in decoding.RULES.values())):
        assert 10 < len((inspect.getdoc(thing) or "").splitlines()[0]) <= 140


@settings(max_examples=12, deadline=None)
@given(n=st.integers(1, 4), seed=st.integers(0, 1000))
def test_what_was_put_in_is_held_and_the_rest_hardly(n, seed):
    """Every n-gram of the data is held; at a design of 1e-6 no other of a few hundred is; the first n - 1 tokens end none."""
    rng = np.random.default_rng(seed)
    tokens, other = rng.integers(0, 7, (8, 6)), rng.integers(0, 7, (8, 6))
    rule = memfree.build(tokens, 7, n, 1e-6)
    held = grams(tokens, n)
    for some in (tokens, other):
        expected = [[i >= n - 1 and tuple(map(int, row[i - n + 1 : i + 1])) in held for i in range(6)] for row in some]
        np.testing.assert_array_equal(memfree.hits(rule, some), expected)
    np.testing.assert_array_equal(memfree.hits(rule, tokens[:, : n - 1]), np.zeros((8, n - 1), bool))


@pytest.mark.parametrize("design", [0.3, 0.03, 0.002])
def test_false_positives_are_as_designed(design):
    """Of 200,000 n-grams that were not put in: the share of set bits to the power of the hashes, within 5 errors, and not above design."""
    rng = np.random.default_rng(3)
    rule = memfree.build(rng.integers(0, 1000, (700, 40)), 1000, n=10, false_positive_rate=design)
    wrong = memfree.hits(rule, rng.integers(0, 1000, (5000, 49)))[:, 9:]  # 1000^10 n-grams: chance repeats are out of the question
    error = np.sqrt(memfree.rate(rule) / wrong.size)
    assert abs(wrong.mean() - memfree.rate(rule)) < 5 * error
    assert memfree.rate(rule) < design * 1.02  # the share of set bits has its own spread about 1 - exp(-k G / m)
    bits, count = 32 * len(rule.words), 700 * 31
    assert memfree.rate(rule) == pytest.approx((1 - np.exp(-rule.hashes * count / bits)) ** rule.hashes, rel=0.05)
    fewer = rule.hashes - 1
    assert fewer == 0 or (1 - np.exp(-fewer * count / bits)) ** fewer > design
    assert bits < 2 * max(32, -count * np.log(design) / np.log(2) ** 2) * 2


def test_candidates_are_judged_as_n_grams_are():
    """The rule, at each position of a sequence, of every token: as `hits` says of the sequence with that token there."""
    tokens = np.random.default_rng(4).integers(0, 6, (5, 8))
    rule = memfree.build(np.random.default_rng(5).integers(0, 6, (9, 8)), 6, n=3, false_positive_rate=0.2)
    everything = jnp.broadcast_to(jnp.arange(6), (5, 6))
    for position in range(8):
        got = rule(jnp.asarray(tokens), jnp.int32(position), everything)
        for v in range(6):
            with_v = tokens.copy()
            with_v[:, position] = v
            np.testing.assert_array_equal(got[:, v], memfree.hits(rule, with_v)[:, position])
    assert not rule(jnp.asarray(tokens[:, :2]), 1, everything).any()


@pytest.mark.parametrize(("n", "sampling"), [(1, {}), (2, {}), (3, {}), (3, {"temperature": 1.0}), (2, {"temperature": 2.0, "top_k": 2})])
def test_nothing_of_the_training_set_is_completed(n, sampling):
    """A table that would recite its data does, and does not under the rule; a slow decoder with a set takes the same greedy tokens."""
    cycle = np.array([[0, 1, 2, 0, 1, 2, 0]])
    rows = 6 * np.eye(5)[[1, 2, 0, 0, 0]] + np.random.default_rng(6).normal(0, 0.3, (5, 5))
    params, prompts = table(rows), np.array([[0, 1], [4, 2], [3, 3]])
    held = grams(cycle, n)
    plain = np.concatenate([prompts, generate(TABLE, params, prompts, 14)], 1)
    assert all(grams(row[None], n) & held for row in plain)
    rule = memfree.build(cycle, 5, n, 1e-6)
    added = generate(TABLE, params, prompts, 14, jax.random.key(1), ban=rule, **sampling)
    whole = np.concatenate([prompts, added], 1)
    for row in whole:
        assert not {tuple(map(int, row[i - n + 1 : i + 1])) for i in range(2, 16) if i >= n - 1} & held
    assert not memfree.hits(rule, whole)[:, 2:].any()
    if not sampling:
        for prompt, row in zip(prompts, added, strict=True):
            slow = list(map(int, prompt))
            for _ in range(14):
                best_first = np.argsort(-rows[slow[-1]], kind="stable")
                slow.append(int(next(v for v in best_first if tuple([*slow, int(v)][-n:]) not in held)))
            assert slow[2:] == row.tolist()


def test_where_every_token_is_banned_the_best_is_taken_and_counted():
    """All 25 pairs are in the data: decoding is as without the rule, and every added token is a hit."""
    pairs = np.array([(a, b) for a in range(5) for b in range(5)])
    rows = np.random.default_rng(7).normal(0, 1, (5, 5))
    rule, prompts = memfree.build(pairs, 5, 2, 1e-4), np.array([[0], [3]])
    added = generate(TABLE, table(rows), prompts, 9, ban=rule)
    np.testing.assert_array_equal(added, generate(TABLE, table(rows), prompts, 9))
    assert memfree.hits(rule, np.concatenate([prompts, added], 1))[:, 1:].mean() == 1


@pytest.mark.parametrize(("change", "message"), [
    ({"tokens": np.zeros(3, int)}, r"must be \[N, S\]"), ({"tokens": np.zeros((0, 3), int)}, r"must be \[N, S\]"),
    ({"tokens": np.array([[0, 9]])}, "must be 0..4"), ({"n": 0}, "n = 0"), ({"n": 5}, "at most the sequences' 4 tokens"),
    ({"false_positive_rate": 0.0}, "false_positive_rate = 0.0"), ({"false_positive_rate": 1.0}, "false_positive_rate = 1.0"),
])
def test_errors_are_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        memfree.build(**{"tokens": np.zeros((2, 4), int), "vocab_size": 5, "n": 2, **change})
    assert len(str(error.value).splitlines()) == 1


def test_a_filter_too_large_is_refused():
    with pytest.raises(ValueError, match=r"must be met by 2\^32 bits"):
        memfree._size(10**9, 1e-6)
    assert memfree._size(10**6, 1e-4) == (25, 5)  # 2^25 > 1.92e7; (1 - exp(-5 / 33.6))^5 = 5e-5, with four hashes 1.6e-4
