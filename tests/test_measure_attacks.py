"""Attack scores against plain Python, their sign, and the separation of unequal numbers of members and others."""

import math
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scalemem.measure import attacks, membership

RNG = np.random.default_rng(0)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=9), st.lists(st.integers(0, 6), min_size=1, max_size=9))
@settings(max_examples=150, deadline=None)
def test_separation_of_unequal_numbers_against_brute_force(member, fresh):
    got = membership.separation(np.array(member, float), np.array(fresh, float))
    auc = sum((a < b) + (a == b) / 2 for a in member for b in fresh) / (len(member) * len(fresh))
    rates = [(sum(a <= t for a in member) / len(member), sum(b <= t for b in fresh) / len(fresh)) for t in (-1, *member, *fresh)]
    assert got["auc"] == pytest.approx(auc, abs=1e-12)
    assert got["f1_best"] == pytest.approx(max(2 * t / (t + f + 1) for t, f in rates), abs=1e-12)
    assert got["tpr_at_fpr_1pct"] == pytest.approx(max(t for t, f in rates if f <= 0.01), abs=1e-12)
    # half of the weight: as many copies of either kind as make their numbers equal
    equal = membership.attack(np.repeat(member, len(fresh)).astype(float), np.repeat(fresh, len(member)).astype(float))
    assert {k: got[k] for k in ("auc", "f1", "f1_best")} == pytest.approx({k: equal[f"mia_{k}"] for k in ("auc", "f1", "f1_best")}, abs=1e-12)


def test_the_standard_error_of_unequal_numbers_is_one():
    draws = [membership.separation(RNG.standard_normal(300) - 1, RNG.standard_normal(60)) for _ in range(300)]
    auc = np.array([d["auc"] for d in draws])
    assert np.mean([d["auc_se"] for d in draws]) == pytest.approx(auc.std(), rel=0.2)
    assert auc.mean() == pytest.approx(stats.norm.cdf(1 / math.sqrt(2)), abs=4 * auc.std() / math.sqrt(300))


def test_the_permille_is_finer_than_the_percent():
    got = membership.separation(np.arange(10.0), np.r_[4.5, np.arange(100.0, 299)])
    assert (got["tpr_at_fpr_1pct"], got["tpr_at_fpr_1permille"]) == (1.0, 0.5)


def test_nonsense():
    assert all(math.isnan(v) for v in membership.separation(np.array([np.inf]), np.array([1.0, 2.0])).values())
    for score, member in (([1.0], [True]), ([1.0], [False])):
        with pytest.raises(ValueError, match="must be positive"):
            attacks.evaluate(np.array(score), np.array(member))
    for fraction in (0, 1.1, math.nan):
        with pytest.raises(ValueError, match="must be above 0"):
            attacks.lowest(np.ones((1, 3)), fraction)


def plain_lowest(row, fraction):
    count = max(1, int(len(row) * fraction))
    return sum(sorted(row)[:count]) / count


def test_scores_against_plain_python():
    p = RNG.dirichlet(np.full(7, 0.3), (20, 11))
    x = RNG.integers(0, 7, (20, 11))
    nats = -np.log(np.take_along_axis(p, x[..., None], -1))[..., 0]
    mean = (p * np.log(p)).sum(-1)
    sigma = np.sqrt((p * (np.log(p) - mean[..., None]) ** 2).sum(-1))
    other = RNG.exponential(size=(20, 11))
    texts = attacks.as_bytes(x, 7)
    bits = attacks.zlib_bits(texts)
    expected = {"loss": [], "reference": [], "zlib": [], "min_k": [], "min_kpp": []}
    for i in range(20):
        logs = [math.log(p[i, t, x[i, t]]) for t in range(11)]
        z = []
        for t, log in enumerate(logs):
            mu = sum(q * math.log(q) for q in p[i, t])
            z.append((log - mu) / math.sqrt(sum(q * math.log(q) ** 2 for q in p[i, t]) - mu**2))
        expected["loss"].append(sum(logs) / 11)
        expected["reference"].append(sum(logs) / 11 + other[i].mean())
        expected["zlib"].append(sum(logs) / (8 * len(zlib.compress(bytes(x[i].tolist())))))
        expected["min_k"].append(plain_lowest(logs, 0.2))
        expected["min_kpp"].append(plain_lowest(z, 0.2))
    got = {"loss": attacks.loss(nats), "reference": attacks.reference(nats, other), "zlib": attacks.zlib(nats, bits),
           "min_k": attacks.min_k(nats), "min_kpp": attacks.min_kpp(nats, mean, sigma)}
    for name, values in expected.items():
        np.testing.assert_allclose(got[name], values, rtol=1e-9, err_msg=name)


def test_tokens_as_bytes():
    assert [len(attacks.as_bytes(np.zeros((1, 3), int), v)[0]) for v in (2, 256, 257, 65536, 65537)] == [3, 3, 6, 6, 12]
    assert np.frombuffer(attacks.as_bytes(np.array([[70000, 3]]), 70001)[0], "<u4").tolist() == [70000, 3]


def test_a_uniform_prediction_has_no_spread():
    nats = np.full((2, 5), math.log(4))
    np.testing.assert_array_equal(attacks.min_kpp(nats, -nats, np.zeros((2, 5))), 0)


def test_every_score_is_higher_for_members():
    """Members are sequences of which each token is twice as likely as before training; the rest is the same for both kinds."""
    member = np.arange(60) < 25
    logits = RNG.standard_normal((60, 12, 9))
    x = RNG.integers(0, 9, (60, 12, 1))
    np.put_along_axis(logits, x, np.take_along_axis(logits, x, -1) + 2 * member[:, None, None], -1)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nats, p = -np.take_along_axis(log_p, x, -1)[..., 0], np.exp(log_p)
    mean = (p * log_p).sum(-1)
    sigma = np.sqrt((p * (log_p - mean[..., None]) ** 2).sum(-1))
    shadow_member = RNG.random((16, 60)) < 0.5
    shadow = -2 + RNG.standard_normal((16, 60)) * 0.3 + shadow_member
    phi = -2 + member + RNG.standard_normal(60) * 0.3
    scores = {"loss": attacks.loss(nats), "reference": attacks.reference(nats, np.full((60, 12), 2.2)),
              "zlib": attacks.zlib(nats, attacks.zlib_bits(attacks.as_bytes(x[..., 0], 9))), "min_k": attacks.min_k(nats),
              "min_kpp": attacks.min_kpp(nats, mean, sigma), "online": attacks.lira_online(phi, shadow, shadow_member),
              "pooled": attacks.lira_online(phi, shadow, shadow_member, pooled=True),
              "offline": attacks.lira_offline(phi, np.where(shadow_member, shadow - 1, shadow))}
    for name, score in scores.items():
        assert attacks.evaluate(score, member)["auc"] > 0.8, name
        assert attacks.evaluate(-score, member)["auc"] < 0.2, name


def test_lira_against_normal_densities():
    shadow, member = RNG.standard_normal((12, 7)), RNG.random((12, 7)) < 0.5
    member[:, 5], member[:, 6] = True, np.arange(12) == 0  # no shadow model left it out; one trained on it
    phi = RNG.standard_normal(7)
    got = attacks.lira_online(phi, shadow, member)
    pooled = attacks.lira_online(phi, shadow, member, pooled=True)
    spread = [math.sqrt(sum(((shadow[m[:, i], i] - shadow[m[:, i], i].mean()) ** 2).sum() for i in range(7) if m[:, i].any())
                        / sum(max(m[:, i].sum() - 1, 0) for i in range(7))) for m in (member, ~member)]
    for i in range(7):
        inside, outside = shadow[member[:, i], i], shadow[~member[:, i], i]
        if min(len(inside), len(outside)) > 1:
            expected = stats.norm.logpdf(phi[i], inside.mean(), inside.std(ddof=1)) - stats.norm.logpdf(phi[i], outside.mean(), outside.std(ddof=1))
            assert got[i] == pytest.approx(expected, rel=1e-9)
        else:
            assert math.isnan(got[i])
        if len(outside):
            expected = stats.norm.logpdf(phi[i], inside.mean(), spread[0]) - stats.norm.logpdf(phi[i], outside.mean(), spread[1])
            assert pooled[i] == pytest.approx(expected, rel=1e-9)
    assert math.isnan(pooled[5])
    assert not math.isnan(pooled[6])
    np.testing.assert_allclose(attacks.lira_offline(phi, shadow), (phi - shadow.mean(0)) / shadow.std(0, ddof=1), rtol=1e-12)
    assert np.isnan(attacks.lira_offline(phi, shadow[:1])).all()
    assert np.isnan(attacks.lira_offline(phi, shadow[:1], pooled=True)).all()
