"""Laws: what every one promises, and the published numbers that they reproduce."""

import math
import warnings

import numpy as np
import pytest
from law_rows import ROWS, columns
from scipy import stats

from scalemem import laws
from scalemem.laws.base import Law, Parameter
from scalemem.laws.posterior import Posterior, Predictive
from scalemem.laws.sample import Sample
from scalemem.tables import TableError

X = {"data_bits": np.array([1e3, 2e4, 5e4, 4e5]), "n_params": np.array([5e3, 5e3, 2e4, 2e4]), "1": np.ones(4)}
PLANTED = {name: values for name, (_, values, _) in ROWS.items()}


def test_every_law_is_planted_here():
    assert set(PLANTED) == set(laws.names())


@pytest.mark.parametrize("name", laws.names())
def test_what_every_law_promises(name):
    law = laws.get(name)
    assert law.name == name
    assert law.scale in ("log", "linear")
    assert law.formula.startswith(("y = ", "F1 = "))
    assert law.source
    assert law.unidentifiable
    assert law.asymptote
    theta = law.internal(PLANTED[name])
    assert {k: float(v) for k, v in law.natural(theta).items()} == pytest.approx(PLANTED[name])
    for p in law.parameters:  # units are made of columns
        assert p.unit.format_map({"y": "bits", **{k: k for k in law.predictors}})


@pytest.mark.parametrize("name", laws.names())
def test_gradients_are_exact(name):
    law = laws.get(name)
    theta = law.internal(PLANTED[name])
    step = 1e-6 * np.maximum(np.abs(theta), 1e-3)
    x = columns(name)
    slopes = np.stack([(law.predict(x, theta + h) - law.predict(x, theta - h)) / (2 * h.sum()) for h in np.diag(step)], -1)
    assert np.allclose(law.gradient(x, theta), slopes, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", [n for n in laws.names() if laws.get(n).linear])
def test_a_law_is_linear_where_it_says_so(name):
    law = laws.get(name)
    offset, basis = law.basis(columns(name), law.internal(PLANTED[name]))
    eta = law.predict(columns(name), law.internal(PLANTED[name]))
    y = np.exp(eta) if law.scale == "log" else eta
    assert np.allclose(offset + basis @ [PLANTED[name][k] for k in law.linear], y)


@pytest.mark.parametrize("name", [n for n in laws.names() if laws.get(n).shape is None])
def test_starts_are_legal_and_finite(name):
    law = laws.get(name)
    x = columns(name)
    starts = law.starts(x, law.off_scale(law.predict(x, law.internal(PLANTED[name]))))
    low, high = law.bounds()
    assert starts
    assert all(np.all((s >= low) & (s <= high)) and np.isfinite(law.predict(x, s)).all() for s in starts)


@pytest.mark.parametrize(("n_sequences", "n_params", "f1"), [  # literature/memorization.md 1.6, column "formula"
    (170_654_583, 1557.6e6, 0.546), (76_795_021, 1557.6e6, 0.745), (18_851_574, 1557.6e6, 0.950),
    (13_566_442, 124.4e6, 0.547), (6_104_935, 124.4e6, 0.747), (1_498_634, 124.4e6, 0.950),
])
def test_membership_law_at_the_published_constants(n_sequences, n_params, f1):
    law = laws.get("membership_sigmoid")
    x = {"data_bits": np.array([n_sequences * 64 * math.log2(50257)]), "n_params": np.array([n_params]), "1": np.ones(1)}
    theta = law.internal({"c1": 1.34, "c2": -0.034, "c3": -33.14})
    assert law.off_scale(law.predict(x, theta))[0] == pytest.approx(f1, abs=1e-3)


def test_membership_predictions_are_clipped_but_the_fit_is_not():
    law = laws.get("membership_sigmoid")
    x = {"data_bits": np.array([1e-9]), "n_params": np.array([1.0]), "1": np.ones(1)}
    raw = law.predict(x, law.internal({"c1": 1.34, "c2": -0.034, "c3": -33.14}))
    assert raw[0] == pytest.approx(1.006, abs=1e-3)
    assert law.off_scale(raw)[0] == 1.0


@pytest.mark.parametrize(("items", "seq_len", "vocab", "n_params", "bits"), [  # 1.4: expected bits at alpha = 3.54
    (4096, 16, 2048, 6.59e5, 7.21e5), (4096, 32, 2048, 6.63e5, 1.44e6), (4096, 64, 2048, 667_136, 2.36e6),
    (4096, 64, 128, 4.21e5, 1.49e6), (4096, 64, 512, 4.71e5, 1.67e6), (4096, 64, 4096, 9.29e5, 3.15e6),
])
def test_capacity_reproduces_the_published_expectations(items, seq_len, vocab, n_params, bits):
    x = {"data_bits": np.array([items * seq_len * math.log2(vocab)]), "n_params": np.array([n_params]), "1": np.ones(1)}
    for name, values in (("capacity", {"alpha": 3.54}), ("capacity_smooth", {"alpha": 3.54, "s": 500.0})):
        law = laws.get(name)
        assert law.off_scale(law.predict(x, law.internal(values)))[0] == pytest.approx(bits, rel=5e-3)


def test_the_smooth_minimum_lies_below_the_hard_one_and_meets_it():
    hard, smooth = laws.get("capacity"), laws.get("capacity_smooth")
    top = hard.predict(X, hard.internal({"alpha": 3.0}))
    gaps = [top - smooth.predict(X, smooth.internal({"alpha": 3.0, "s": s})) for s in (2.0, 8.0, 4000.0)]
    assert np.all(gaps[0] > gaps[1])
    assert np.all(gaps[1] >= gaps[2])
    assert np.all(np.abs(gaps[2]) < 1e-3)


def test_an_unknown_law_names_the_legal_ones():
    with pytest.raises(TableError, match=r"power \(x\), power_floor \(x\), .*, capacity \(data_bits, n_params\)"):
        laws.get("powre")


def test_laws_describe_themselves():
    found = {d["name"]: d for d in laws.describe()}
    assert tuple(found) == laws.names()
    assert found["capacity"] == {"name": "capacity", "formula": "y = min(data_bits, alpha n_params)", "predictors": "data_bits, n_params"}
    assert found["constant"]["predictors"] == "none"


def test_a_law_that_cannot_be_fitted_is_not_built():
    for low, high in ((0.0, math.inf), (-math.inf, 0.0), (-1.0, 2.0)):
        with pytest.raises(ValueError, match="remove low and high"):
            Parameter("b", log=True, low=low, high=high)
    with pytest.raises(ValueError, match="a prior needs"):
        Law("bad", "y = a^b", lambda x, p: p["a"] ** p["b"], (), (Parameter("a"), Parameter("b", prior=(0.0, 1.0))))


def test_bounds_of_a_logarithm_are_logarithms():
    law = Law("bounded", "y = a + b + c", lambda x, p: p["a"] + p["b"] + p["c"], (),
              (Parameter("a", low=0.0, high=3.0), Parameter("b", log=True, low=0.5, high=12.0), Parameter("c", log=True)))
    low, high = law.bounds()
    assert low.tolist() == [0.0, math.log(0.5), -math.inf]
    assert high.tolist() == [3.0, math.log(12.0), math.inf]


def test_a_guess_may_be_a_grid_or_a_list_of_starts():
    x, y = {"x": np.array([1.0, 2, 3]), "1": np.ones(3)}, np.array([2.0, 3, 4])
    parameters = (Parameter("a", "{y}"), Parameter("b", log=True), Parameter("c", starts=(5.0, 6.0)))
    found = {}
    for kind, guess in (("grid", {"b": [1.0, 2.0]}), ("list", [{"b": 1.0, "c": 5.0}, {"b": 2.0, "c": 6.0}])):
        law = Law(kind, "y = a b c x", lambda x, p: p["a"] * p["b"] * p["c"] * x["x"], ("x",), parameters, linear=("a",),
                  guess=lambda x, y, guess=guess: guess)
        found[kind] = [{k: float(v) for k, v in law.natural(t).items() if k != "a"} for t in law.starts(x, y)]
    assert found["list"] == [{"b": 1.0, "c": 5.0}, {"b": pytest.approx(2.0), "c": 6.0}]
    assert len(found["grid"]) == 4


def test_whitening_inverts_the_shared_covariance():
    law = laws.get("exposure")
    e = np.array([125.0, 250, 125, 500, 250, 125])
    sample = Sample.of(law, {"exposures": e}, np.arange(6.0))
    same = sample.x["exposures"][:, None] == sample.x["exposures"]
    w = sample.whiten(np.eye(6), 0.7)
    assert np.allclose(w @ w, np.linalg.inv(np.eye(6) + 0.7 * same))


def test_pure_error_is_the_scatter_of_replicates_and_copies_are_none():
    law = laws.get("exposure")
    e, y = np.array([1.0, 1, 1, 2, 2, 3]), np.array([1.0, 2, 3, 5, 7, 9])
    assert Sample.of(law, {"exposures": e}, y).pure_error() == (pytest.approx(4.0), 3)
    assert Sample.of(law, {"exposures": e}, y, [np.array([0, 0, 1, 0, 0, 0])]).pure_error() == (pytest.approx(2.5), 2)
    copies = Sample.of(law, {"exposures": np.repeat(e[2:], 2)}, np.repeat(y[2:], 2))
    assert copies.copies() == 4
    assert Sample.of(law, {"exposures": np.array([1.0, 1, 2, 2])}, np.array([1.0, 1, 2, 2])).pure_error() == (0.0, 0)


def test_a_mixture_of_one_is_students_t():
    law = laws.get("power")
    theta = law.internal({"a": 2.0, "b": 0.5})
    posterior = Posterior(np.ones(1), theta[None], np.diag([0.01, 0.0])[None], 0.2, 0.1, 5.0, np.zeros((0, 2)))
    spread, x = posterior.predict(law, {"x": np.array([4.0])}, growth=3.0), 4.0
    t = {"df": 5, "loc": math.log(2 * x**0.5), "scale": math.sqrt(0.01 + 0.04 + 0.03)}
    y = np.array([3.0])
    assert spread.cdf(y) == pytest.approx(stats.t.cdf(math.log(3.0), **t))
    assert spread.quantile(0.05) == pytest.approx(math.exp(stats.t.ppf(0.05, **t)))
    assert spread.log_density(y) == pytest.approx(stats.t.logpdf(math.log(3.0), **t) - math.log(3.0))


def test_a_mixture_has_the_quantiles_of_its_cdf_and_a_density_that_is_its_slope():
    law = laws.get("constant")
    posterior = Posterior(np.array([0.3, 0.7]), np.array([[0.0], [4.0]]), np.zeros((2, 1, 1)), 0.5, 0.0, math.inf, np.zeros((0, 1)))
    spread = posterior.predict(law, {})
    for p in (0.05, 0.3, 0.5, 0.95):
        assert spread.cdf(spread.quantile(p)) == pytest.approx(p, abs=1e-9)
    slope = (spread.cdf(np.array([1.001])) - spread.cdf(np.array([0.999]))) / 0.002
    assert np.exp(spread.log_density(np.array([1.0]))) == pytest.approx(slope, rel=1e-4)


def test_the_density_of_a_component_that_is_a_point_or_lies_nowhere():
    spread = Predictive(laws.get("linear"), np.full(3, 1 / 3), np.array([[1.0], [2.0], [math.inf]]), np.array([[0.5], [0.0], [math.inf]]), math.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        elsewhere, there = spread.log_density(np.array([1.5])), spread.log_density(np.array([2.0]))
    assert elsewhere == pytest.approx(stats.norm.logpdf(1.5, 1.0, 0.5) - math.log(3))
    assert there == math.inf


@pytest.mark.parametrize("sd", [1e-12, 1e-3, 1.0])
def test_quantiles_of_draws_without_noise_are_those_of_the_draws(sd):
    """A distribution that is a staircase, beside one component that is 1e30 times as wide."""
    points, law = np.random.default_rng(0).standard_normal((300, 1)), laws.get("constant")
    stairs = Posterior(np.full(300, 1 / 300), points, np.zeros((300, 1, 1)), sd, 0.0, 9.0, np.zeros((0, 1))).predict(law, {})
    for p in (0.05, 0.5, 0.951):
        assert stairs.cdf(stairs.quantile(p)) == pytest.approx(p, abs=0.5 / 300)
        if sd < 1e-6:
            assert stairs.quantile(p)[0] == pytest.approx(np.quantile(points, p), abs=0.05)
    wide = np.append(np.zeros((300, 1, 1)), [[[1e60]]], axis=0)
    both = Posterior(np.full(301, 1 / 301), np.append(points, [[0.0]], axis=0), wide, sd, 0.0, 9.0, np.zeros((0, 1))).predict(law, {})
    for p in (0.05, 0.5, 0.951):
        assert both.cdf(both.quantile(p)) == pytest.approx(p, abs=0.5 / 300)
