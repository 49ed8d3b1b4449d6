"""Rankings and regressions that the analyses share, against slow references and oracles."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from scalemem.analyses import logistic, roc
from scalemem.measure import membership

SCORED = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30)


def slow(score, member):
    """AUC by all pairs, best F1 and rates by all thresholds, the F1 at half by sharing the tied."""
    inside, outside = score[member], score[~member]
    auc = np.mean([(a > b) + (a == b) / 2 for a in inside for b in outside])
    called = [(score >= t) for t in (*np.unique(score), math.inf)]
    best = max(2 * np.sum(c & member) / (c.sum() + member.sum()) for c in called)
    rates = [max((c & member).sum() / member.sum() for c in called if (c & ~member).sum() <= x * len(outside)) for x in (0.01, 0.001)]
    cut = np.sort(score)[::-1][len(inside) - 1]
    above, tied = score > cut, score == cut
    half = ((above & member).sum() + (len(inside) - above.sum()) / tied.sum() * (tied & member).sum()) / len(inside)
    return auc, half, best, *rates


@settings(max_examples=200, deadline=None)
@given(SCORED)
def test_evaluate_is_the_slow_one(rows):
    score, member = np.array([s for s, _ in rows], float), np.array([m for _, m in rows])
    found = roc.evaluate(score, member)
    assert (found["n_members_count"], found["n_others_count"]) == (member.sum(), (~member).sum())
    if member.all() or not member.any():
        assert math.isnan(found["auc"])
        return
    names = ("auc", "f1", "f1_best", "tpr_at_fpr_1pct", "tpr_at_fpr_0p1pct")
    np.testing.assert_allclose([found[n] for n in names], slow(score, member), atol=1e-12)


def test_evaluate_is_the_attack_of_equal_numbers():
    rng = np.random.default_rng(0)
    member, fresh = rng.integers(0, 40, 300) / 10, rng.integers(5, 45, 300) / 10
    old, new = membership.attack(member, fresh), roc.evaluate(-np.concatenate([member, fresh]), np.arange(600) < 300)
    for before, now in (("mia_auc", "auc"), ("mia_auc_se", "auc_se"), ("mia_f1", "f1"), ("mia_f1_best", "f1_best"),
                        ("mia_tpr_at_fpr_1pct", "tpr_at_fpr_1pct")):
        assert new[now] == pytest.approx(old[before], abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(SCORED, st.floats(0, 1))
def test_prefixes_are_the_slow_ones(rows, precision):
    score, member = np.array([s for s, _ in rows], float), np.array([m for _, m in rows])
    prefixes = [score >= t for t in np.unique(score)]
    if not member.any():
        assert math.isnan(roc.recall_at(score, member, precision))
        assert math.isnan(roc.average_precision(score, member))
        return
    good = [(p & member).sum() / member.sum() for p in prefixes if (p & member).sum() / p.sum() >= precision - 1e-12]
    assert roc.recall_at(score, member, precision) == pytest.approx(max(good, default=0))
    mean = np.mean([((score >= s) & member).sum() / (score >= s).sum() for s in score[member]])
    assert roc.average_precision(score, member) == pytest.approx(mean)


def test_signs_and_edges():
    score, member = np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, True, False, False])
    assert roc.evaluate(score, member)["tpr_at_fpr_0p1pct"] == 1
    assert roc.evaluate(-score, member)["auc"] == 0
    with pytest.raises(ValueError, match="score 2 of 2 = nan: must be a number"):
        roc.evaluate(np.array([0.0, math.nan]), np.array([True, False]))
    nothing = roc.agreement(np.zeros(2, bool), np.array([True, False]))
    assert math.isnan(nothing["precision"])
    assert (nothing["recall"], nothing["f1"]) == (0, 0)
    assert math.isnan(roc.correlation(np.ones(3), np.arange(3.0)))
    assert roc.correlation(np.array([1.0, 2.0, 30.0]), np.array([3.0, 2.0, 1.0]), ranks=True) == -1


@pytest.mark.parametrize("balanced", [False, True])
def test_logistic_is_the_minimum(balanced):
    rng = np.random.default_rng(1)
    x = rng.normal(3, [1, 20, 0.1], (200, 3))
    x = np.concatenate([x, np.full((200, 1), 7.0)], 1)  # one that does not vary
    y = (rng.random(200) < 1 / (1 + np.exp(-(x[:, 0] - 4)))).astype(float)
    z, w = (x[:, :3] - x[:, :3].mean(0)) / x[:, :3].std(0), np.where(y == 1, 100 / y.sum(), 100 / (200 - y.sum())) if balanced else np.ones(200)

    def objective(b):
        linear = b[0] + z @ b[1:]
        return np.sum(w * (np.logaddexp(0, linear) - y * linear)) + 2.5 * (b[1:] ** 2).sum() / 2

    want = minimize(objective, np.zeros(4), method="BFGS", options={"gtol": 1e-8}).x
    made = logistic.fit(x, y, 2.5, balanced)
    np.testing.assert_allclose([made.intercept, *made.coefficients[:3]], want, atol=1e-5)
    assert made.coefficients[3] == 0
    np.testing.assert_allclose(made.logit(x), want[0] + z @ want[1:], atol=1e-4)


def test_logistic_of_separable_and_single_classes():
    x = np.arange(10.0)[:, None]
    p = logistic.fit(x, x[:, 0] > 4, 1e-6).probability(x)
    assert np.isfinite(p).all()
    assert ((p > 0.5) == (x[:, 0] > 4)).all()
    assert logistic.fit(x, np.ones(10)).probability(x) == pytest.approx(np.full(10, 10.5 / 11))
    with pytest.raises(ValueError, match="rows = 0"):
        logistic.fit(np.zeros((0, 2)), np.zeros(0))
