"""Exposure: known ranks, every filling against a slow reference, tails of the skew-normal, a table that knows its canaries."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import reference_gpt as reference
from conftest import MODEL
from fake_models import constant, fake, forget, lookup, make_canaries, planted
from scipy import integrate, special, stats

from scalemem import models, train
from scalemem.measure import exposure
from scalemem.spec import SpecError

RUN = make_canaries(kind="structured", words=5, word_length=2)
KEYS = train.key(RUN.seed, "data"), train.key(RUN.seed, "probe")


@pytest.fixture(autouse=True)
def _forget():
    yield
    forget()


def test_ranks():
    others = np.arange(1.0, 2000)
    own = np.arange(2000) + 0.5
    got = exposure.exposure_bits(own, np.broadcast_to(others, (2000, 1999)))
    np.testing.assert_allclose(got, math.log2(2000) - np.log2(np.arange(1, 2001)), atol=1e-12)
    assert got[0] == math.log2(2000)
    assert got.mean() == pytest.approx(math.log2(math.e), abs=0.005)  # Stirling: less log2(2 pi 2000) / 4000 = .0034
    assert exposure.exposure_bits(np.zeros(1), np.zeros((1, 255)))[0] == pytest.approx(8 - math.log2(128.5))


def test_the_skew_normal_against_scipy():
    z, shape = (x.ravel() for x in np.meshgrid(np.linspace(-4, 4, 17), [-3.0, -0.5, 0.0, 0.7, 5.0]))
    pdf = stats.skewnorm.pdf
    areas = [integrate.quad(pdf, -np.inf, x, (a,), epsabs=0, epsrel=1e-10)[0] for x, a in zip(z, shape, strict=True)]
    np.testing.assert_allclose(exposure._log_cdf(z, shape), np.log(areas), rtol=1e-6, atol=1e-7)


def test_the_tail_of_the_skew_normal():
    far = np.array([-6.0, -12.0, -40.0])
    np.testing.assert_allclose(exposure._log_cdf(far, np.zeros(3)), special.log_ndtr(far), rtol=1e-9)
    for z, a in ((-8.0, 1.0), (-20.0, 3.0), (-15.0, -2.0)):  # the integral over the density relative to its value at z
        log_pdf = lambda x, a=a: math.log(2) + stats.norm.logpdf(x) + special.log_ndtr(a * x)  # noqa: E731
        integral = integrate.quad(lambda u, z=z, f=log_pdf: math.exp(f(z - u) - f(z)), 0, 30 / abs(z), epsrel=1e-11)[0]
        assert exposure._log_cdf(np.array([z]), np.array([a]))[0] == pytest.approx(math.log(integral) + log_pdf(z), rel=1e-8)


def test_extrapolation_finds_the_distribution():
    law = stats.skewnorm(3.0, loc=20, scale=2)
    others = law.ppf((np.arange(40000) + 0.5) / 40000)[None]
    own = law.ppf([1e-1, 1e-3, 0.5])
    np.testing.assert_allclose(exposure.extrapolated_bits(own, np.repeat(others, 3, 0)), -np.log2([1e-1, 1e-3, 0.5]), rtol=0.02)
    gap = np.array([-7.0])
    normal = stats.norm.ppf((np.arange(40000) + 0.5) / 40000)[None]
    assert exposure.extrapolated_bits(gap, normal)[0] == pytest.approx(-special.log_ndtr(-7.0) / math.log(2), rel=0.01)
    assert math.isnan(exposure.extrapolated_bits(np.ones(1), np.ones((1, 9)))[0])


@pytest.mark.parametrize("width", [1, 2, 3])
def test_every_filling_against_a_slow_reference(width):
    model = dataclasses.replace(MODEL, init_std=0.5)
    params = models.init(model, train.key(1, "init"))
    tokens = np.random.default_rng(0).integers(0, 32, (2, 6))
    got = exposure.filling_nats(model, params, tokens, width, 3)
    assert got.shape == (2, 3**width)
    fillings = list(itertools.product(range(3), repeat=width))
    for c in range(2):
        rows = np.array([[*tokens[c, :-width], *f] for f in fillings])
        np.testing.assert_allclose(got[c], reference.nats(model, params, rows)[:, -width:].sum(-1), rtol=1e-5)
    np.testing.assert_allclose(exposure.sampled_nats(model, params, tokens, np.array(fillings)), got, rtol=1e-5)


def test_a_model_that_guesses(monkeypatch):
    fake(monkeypatch, constant(np.zeros(32)))
    m = exposure.measure(RUN, {}, *KEYS)
    np.testing.assert_allclose(m["exposure_bits"], math.log2(25) - math.log2(13))
    np.testing.assert_allclose(m["filling_nats"], 2 * math.log(32), rtol=1e-6)
    assert m["exposure_limit_bits"] == math.log2(25)


def test_a_table_of_the_canaries(monkeypatch):
    probes, known = planted(RUN)
    fake(monkeypatch, lookup(known))
    m = exposure.measure(RUN, {}, *KEYS)
    np.testing.assert_allclose(m["exposure_bits"][probes.planted], math.log2(25))
    np.testing.assert_allclose(m["exposure_bits"][~probes.planted], math.log2(25 / 13))
    assert m["planted_exposure_bits"] == pytest.approx(m["exposure_limit_bits"])
    monkeypatch.setattr(exposure, "ENUMERATED", 24)
    monkeypatch.setattr(exposure, "SAMPLED", 64)
    sampled = exposure.measure(RUN, {}, *KEYS)
    assert sampled["exposure_limit_bits"] == math.log2(65)
    assert (sampled["exposure_bits"][probes.planted] > 3).all()  # of the 64 drawn, some are the canary's own filling
    np.testing.assert_allclose(sampled["exposure_bits"][~probes.planted], math.log2(65 / 33))


def test_other_canaries_are_refused():
    with pytest.raises(SpecError, match="must be structured"):
        exposure.measure(make_canaries(), {}, *KEYS)
    with pytest.raises(SpecError, match=r"word_length = 8: must be below 8"):
        exposure.measure(make_canaries(kind="structured", words=2, word_length=8), {}, *KEYS)
