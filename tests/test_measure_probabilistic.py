"""(n, p)-extraction: published arithmetic, products of conditionals, tiny probabilities, and the frequency in real samples."""

import dataclasses
import math

import jax
import numpy as np
import pytest
import reference_gpt as reference
from conftest import MODEL
from fake_models import constant, fake, forget, lookup, make_canaries, planted

from scalemem import generate, models, train
from scalemem.measure import probabilistic
from scalemem.measure.probabilistic import Scheme

RUN = make_canaries()
KEYS = train.key(RUN.seed, "data"), train.key(RUN.seed, "probe")


@pytest.fixture(autouse=True)
def _forget():
    yield
    forget()


def test_samples_needed():
    got = probabilistic.samples_needed(np.log([0.162, 1.0, 0.5, 0.75]), 0.9)
    assert got.tolist() == [14, 1, 4, 2]
    assert probabilistic.samples_needed(np.log([0.5]), 0.75).tolist() == [2]  # exactly: not 3 by rounding
    assert probabilistic.samples_needed(np.array([-np.inf, -1e5]), 0.5).tolist() == [math.inf, math.inf]
    tiny = probabilistic.samples_needed(np.array([-500.0]), 0.5)[0]
    assert math.log(tiny) == pytest.approx(500 + math.log(math.log(2)), rel=1e-12)
    for p in (0, 1, -1, math.nan):
        with pytest.raises(ValueError, match="must be above 0 and below 1"):
            probabilistic.samples_needed(np.zeros(1), p)


def test_the_rate_is_that_of_the_definition_and_monotone():
    p_z = np.random.default_rng(0).beta(0.3, 2, 500)
    rates = {}
    for n in (1, 3, 10, 100, 1000):
        for p in (0.1, 0.5, 0.9, 0.999):
            rates[n, p] = probabilistic.rate(np.log(p_z), n, p)
            assert rates[n, p] == (1 - (1 - p_z) ** n >= p).mean()
            assert rates[n, p] >= max((r for (m, q), r in rates.items() if m <= n and q >= p), default=0)
            assert rates[n, p] <= min((r for (m, q), r in rates.items() if m >= n and q <= p), default=1)


def slow_log_p(logits, targets, scheme):
    total = 0.0
    for row, target in zip(logits, targets, strict=True):
        p = np.exp(row / scheme.temperature - (row / scheme.temperature).max())
        if scheme.top_k:
            p = np.where(p >= np.sort(p)[-scheme.top_k], p, 0)
        p /= p.sum()
        order = np.argsort(-p)
        kept = order[: 1 + np.searchsorted(np.cumsum(p[order]), scheme.top_p)] if scheme.top_p < 1 else order
        total += math.log(p[target] / p[kept].sum()) if target in kept and p[target] > 0 else -math.inf
    return total


@pytest.mark.parametrize("scheme", [Scheme(), Scheme(temperature=0.7), Scheme(top_k=12), Scheme(top_p=0.8), Scheme(1.3, 20, 0.9)])
def test_log_p_z_is_a_product_of_conditionals(scheme):
    model = dataclasses.replace(MODEL, init_std=0.5)
    params = models.init(model, train.key(1, "init"))
    tokens = np.random.default_rng(0).integers(0, 32, (9, 6))
    logits = reference.forward(model, params, tokens[:, :-1])[0]
    for start in (0, 3):
        got = probabilistic.log_p_z(model, params, tokens, start, scheme)
        np.testing.assert_allclose(got, [slow_log_p(logits[i, start:], tokens[i, start + 1 :], scheme) for i in range(9)], rtol=1e-4)


def test_tiny_probabilities_are_numbers(monkeypatch):
    fake(monkeypatch, constant([0.0, -300.0, -300.0]))
    model = dataclasses.replace(MODEL, vocab_size=3)
    assert probabilistic.log_p_z(model, {}, np.array([[0, 1, 2, 1, 2]]), 0, Scheme())[0] == pytest.approx(-1200, rel=1e-6)
    assert probabilistic.log_p_z(model, {}, np.array([[0, 1, 2, 0]]), 0, Scheme(top_k=1))[0] == -math.inf
    assert probabilistic.log_p_z(model, {}, np.array([[0, 0, 0, 0]]), 0, Scheme(top_k=1))[0] == 0


@pytest.mark.parametrize("scheme", [Scheme(), Scheme(top_k=2), Scheme(temperature=2.0)])
def test_samples_are_right_as_often_as_it_says(monkeypatch, scheme):
    fake(monkeypatch, constant(np.log([0.5, 0.3, 0.2])))
    model = dataclasses.replace(MODEL, vocab_size=3)
    p = math.exp(probabilistic.log_p_z(model, {}, np.array([[2, 0, 1]]), 0, scheme)[0])
    assert scheme != Scheme() or p == pytest.approx(0.15)
    assert scheme != Scheme(top_k=2) or p == pytest.approx(0.15 / 0.64)
    samples = generate.generate(model, {}, np.full((4000, 1), 2), 2, key=jax.random.key(0), **scheme._asdict())
    assert (samples == [0, 1]).all(1).mean() == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 4000))


def test_a_table_of_the_canaries_and_a_model_that_guesses(monkeypatch):
    probes, known = planted(RUN)
    fake(monkeypatch, lookup(known))
    m = probabilistic.measure(RUN, {}, *KEYS)
    for name in ("plain", "top_k"):
        np.testing.assert_allclose(m[f"suffix_log_probability_{name}"][probes.planted], 0, atol=1e-6)
        assert (m[f"suffix_log_probability_{name}"][~probes.planted] < -10).all()
    assert (m["planted_greedy_exact_fraction"], m["planted_extractable_fraction"]) == (1, 1)
    assert (m["control_greedy_exact_fraction"], m["control_extractable_fraction"]) == (0, 0)
    fake(monkeypatch, constant(np.zeros(32)))
    m = probabilistic.measure(RUN, {}, *KEYS)
    np.testing.assert_allclose(m["suffix_log_probability_plain"], -4 * math.log(32), rtol=1e-6)
    inside = (np.asarray(probes.tokens)[:, 4:] < 8).all(1)  # of equal tokens the first 8 are kept
    np.testing.assert_allclose(m["suffix_log_probability_top_k"], np.where(inside, -4 * math.log(8), -np.inf), rtol=1e-6)
    assert m["planted_extractable_fraction"] == 0  # 8^-4 is too rare for 100 samples
