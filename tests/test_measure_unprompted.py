"""Unprompted extraction: windows and counts against slow ones, what estimators expect, and a table that says only what it knows."""

import math

import numpy as np
import pytest
from fake_models import constant, fake, forget, lookup, make_canaries, planted
from scipy import stats

from scalemem import train
from scalemem.measure import unprompted

RUN = make_canaries()
KEYS = train.key(RUN.seed, "data"), train.key(RUN.seed, "probe")


@pytest.fixture(autouse=True)
def _forget():
    yield
    forget()


@pytest.mark.parametrize("width", [1, 3, 7])
def test_fingerprints_are_equal_where_windows_are(width):
    tokens = np.random.default_rng(0).integers(0, 3, (40, 7))
    prints = unprompted.fingerprints(tokens, width)
    assert prints.shape == (40, 8 - width)
    windows = [tuple(row[i : i + width]) for row in tokens.tolist() for i in range(8 - width)]
    classes = {}
    for window, value in zip(windows, prints.ravel().tolist(), strict=True):
        assert classes.setdefault(window, value) == value
    assert len(set(classes.values())) == len(classes)


def test_fingerprints_do_not_mistake_an_order_for_another():
    a = unprompted.fingerprints(np.array([[1, 2, 3], [3, 2, 1], [2, 1, 3], [0, 0, 0], [1 << 30, 0, 0]]), 3)
    assert len(np.unique(a)) == 5


def test_the_curve_and_frequencies_against_slow_counting():
    rng = np.random.default_rng(1)
    sample, item = rng.integers(0, 30, 200), rng.zipf(1.5, 200) % 50
    curve = unprompted.unique_curve(sample, item, 30)
    assert curve.tolist() == [len({i for s, i in zip(sample, item, strict=True) if s <= n}) for n in range(30)]
    found = {i: len({s for s, j in zip(sample, item, strict=True) if j == i}) for i in set(item.tolist())}
    f = unprompted.frequencies(sample, item)
    assert f.tolist() == [0] + [sum(c == k for c in found.values()) for k in range(1, max(found.values()) + 1)]
    none = np.zeros(0, int)
    assert unprompted.unique_curve(none, none, 4).tolist() == [0, 0, 0, 0]
    assert unprompted.frequencies(none, none).tolist() == [0, 0, 0]


def test_estimators_of_nothing_and_of_all():
    assert unprompted.good_turing(np.zeros(3, int)) == 0
    assert unprompted.chao1(np.zeros(3, int), 5) == (0, 0)
    f = np.array([0, 0, 0, 0, 9])  # every item was found four times
    assert unprompted.chao1(f, 10) == (9, 9)
    assert unprompted.chao1(np.array([0, 4, 1]), 10) == pytest.approx((8, 5 + 3 * (1 - (1 - 4 / 34) ** 10)))


def test_the_first_half_forecasts_the_second():
    """Items of Zipf frequencies: both forecasts within a fifth of the truth; their means within a twentieth (Chao1: below, as a bound)."""
    rng = np.random.default_rng(2)
    p = 1 / np.arange(1, 401)
    p /= p.sum()
    turing, chao = [], []
    for _ in range(40):
        item, sample = rng.choice(400, 600, p=p), np.arange(600)
        curve = unprompted.unique_curve(sample, item, 600)
        f = unprompted.frequencies(sample[:300], item[:300])
        turing.append(unprompted.good_turing(f) / curve[-1])
        chao.append(unprompted.chao1(f, 300)[1] / curve[-1])
        assert unprompted.chao1(f, 300)[0] >= unprompted.chao1(f, 300)[1] >= curve[299]
    for ratios in (turing, chao):
        assert np.mean(np.abs(np.array(ratios) - 1) < 0.2) > 0.9
        assert np.mean(ratios) == pytest.approx(1, abs=0.1)


def test_good_turing_is_right_on_average():
    """Poisson counts of known rates: an item is wrong by at most .02, whatever its rate, and rates cancel."""
    for rate in np.geomspace(1e-3, 100, 60):
        expected = unprompted.good_turing(np.r_[0, stats.poisson.pmf(np.arange(1, 400), rate)])
        assert expected == pytest.approx(1 - math.exp(-2 * rate), abs=0.02)
    rng = np.random.default_rng(3)
    rates = rng.exponential(0.8, 300)
    values = []
    for _ in range(400):
        f = np.bincount(rng.poisson(rates), minlength=3)
        f[0] = 0
        values.append(unprompted.good_turing(f))
    assert np.mean(values) == pytest.approx((1 - np.exp(-2 * rates)).sum(), abs=float(4 * np.std(values) / 20 + 1))


def test_how_many_tokens_must_match():
    assert [unprompted.match_tokens(*x) for x in ((64, 64), (64, 20), (8, 8), (200, 200), (3, 3))] == [32, 20, 4, 50, 2]


def test_a_table_of_the_canaries_says_them(monkeypatch):
    probes, known = planted(RUN)
    fake(monkeypatch, lookup(known))
    m = unprompted.measure(RUN, {}, *KEYS)
    # each first token is drawn 32 times of 1024, and then the canary follows; 1e-6 a window for the others
    assert (np.abs(m["emitted_count"][probes.planted] - 32) < 4 * math.sqrt(32)).all()
    assert m["planted_emitted_fraction"] == 1
    assert m["emitted_count"][~probes.planted].max() <= 1
    assert m["unprompted_unique_count"] >= 4 * 5
    assert m["unprompted_half_count"] <= m["unprompted_unique_count"]
    share = m["emitted_count"][probes.planted].sum() / 1024
    assert m["unprompted_token_fraction"] == pytest.approx(share, abs=0.01)
    assert m["unprompted_good_turing_count"] == pytest.approx(m["unprompted_unique_count"], abs=1)
    assert m["unprompted_match_tokens"] == 4


def test_a_model_that_says_one_thing_finds_nothing(monkeypatch):
    fake(monkeypatch, constant(np.where(np.arange(32) == 5, 100.0, 0)))
    m = unprompted.measure(RUN, {}, *KEYS)
    assert (m["emitted_count"] == 0).all()
    assert (m["unprompted_unique_count"], m["unprompted_token_fraction"], m["unprompted_total_count"]) == (0, 0, 0)
