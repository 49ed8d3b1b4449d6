"""Distances of continuations against slow ones, BLEU by counting, and models that recite, nearly recite and guess."""

import math
from collections import Counter

import numpy as np
import pytest
from fake_models import constant, fake, forget, lookup, make_canaries, planted
from hypothesis import given, settings
from hypothesis import strategies as st

from scalemem import train
from scalemem.measure import approximate

RUN = make_canaries()
KEYS = train.key(RUN.seed, "data"), train.key(RUN.seed, "probe")
TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=9)


@pytest.fixture(autouse=True)
def _forget():
    yield
    forget()


def slow_edit(a, b):
    table = [[max(i, j) if 0 in (i, j) else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (a[i - 1] != b[j - 1]))
    return table[-1][-1]


def slow_common(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            table[i][j] = table[i - 1][j - 1] + 1 if a[i - 1] == b[j - 1] else max(table[i - 1][j], table[i][j - 1])
    return table[-1][-1]


def slow_bleu(a, b):
    logs = []
    for n in range(1, min(4, len(a)) + 1):
        ours, truth = (Counter(tuple(x[i : i + n]) for i in range(len(x) - n + 1)) for x in (a, b))
        matches, smooth = sum((ours & truth).values()), int(n > 1)
        if matches + smooth == 0:
            return 0.0
        logs.append(math.log((matches + smooth) / (sum(ours.values()) + smooth)))
    return math.exp(sum(logs) / len(logs) + min(0, 1 - len(b) / len(a)))


@given(TOKENS, TOKENS)
@settings(max_examples=200, deadline=None)
def test_distances_against_slow_ones(a, b):
    x, y = np.array([a]), np.array([b])
    assert approximate.edit_tokens(x, y)[0] == slow_edit(a, b)
    assert approximate.common_tokens(x, y)[0] == slow_common(a, b)
    assert approximate.rouge_l(x, y)[0] == pytest.approx(2 * slow_common(a, b) / (len(a) + len(b)))
    assert approximate.bleu(x, y)[0] == pytest.approx(slow_bleu(a, b), abs=1e-12)
    assert approximate.edit_tokens(y, x)[0] == slow_edit(a, b)


def test_many_pairs_are_compared_each_with_its_own(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 3, (2, 37, 12))
    monkeypatch.setattr(approximate, "PAIRS", 8)
    np.testing.assert_array_equal(approximate.edit_tokens(a, b), [slow_edit(*p) for p in zip(a.tolist(), b.tolist(), strict=True)])
    np.testing.assert_array_equal(approximate.common_tokens(a, b), [slow_common(*p) for p in zip(a.tolist(), b.tolist(), strict=True)])
    np.testing.assert_allclose(approximate.bleu(a, b), [slow_bleu(*p) for p in zip(a.tolist(), b.tolist(), strict=True)])


def test_identities():
    x = np.random.default_rng(1).integers(0, 50, (5, 32))
    shifted = np.roll(x, 1, 1)
    shifted[:, 0] = 99
    assert (approximate.edit_tokens(x, x).max(), approximate.rouge_l(x, x).min(), approximate.bleu(x, x).min()) == (0, 1, 1)
    assert approximate.edit_tokens(x, shifted).tolist() == [2] * 5  # a shift costs an insertion and a deletion, not 32 errors
    assert approximate.common_tokens(x, shifted).tolist() == [31] * 5
    assert (approximate.bleu(x, x + 100) == 0).all()
    wrong = x.copy()
    wrong[:, 16] = 99
    assert (approximate.bleu(wrong, x) > approximate.THRESHOLD).all()


def test_nonsense():
    for a, b in ((np.zeros((2, 3)), np.zeros((3, 3))), (np.zeros((2, 0)), np.zeros((2, 3))), (np.zeros(3), np.zeros(3))):
        for distance in (approximate.edit_tokens, approximate.common_tokens, approximate.bleu):
            with pytest.raises(ValueError, match="give as many sequences of each"):
                distance(a, b)
    assert approximate.bleu(np.zeros((0, 3)), np.zeros((0, 3))).shape == (0,)


def test_a_table_of_the_canaries(monkeypatch):
    probes, known = planted(RUN)
    fake(monkeypatch, lookup(known))
    m = approximate.measure(RUN, {}, *KEYS)
    assert (m["edit_tokens"][probes.planted] == 0).all()
    assert (m["planted_approximate_fraction"], m["planted_bleu_ratio"], m["planted_rouge_l_f1"]) == pytest.approx((1, 1, 1))
    truth = np.asarray(probes.tokens)[:, 4:]
    fake(monkeypatch, constant(np.zeros(32)))  # says 0 0 0 0
    m = approximate.measure(RUN, {}, *KEYS)
    np.testing.assert_array_equal(m["edit_tokens"], (truth != 0).sum(1))
    np.testing.assert_array_equal(m["edit_fraction"], (truth != 0).mean(1))
    assert m["planted_approximate_fraction"] == 0
