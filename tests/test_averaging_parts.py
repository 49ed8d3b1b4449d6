"""The parts of the automatic forecaster: its linear algebra against brute force, its misfits against simulation, its families' promises."""

import math

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from scalemem.averaging.evidence import Linear, solve, truncate
from scalemem.averaging.misfit import Misfit
from scalemem.averaging.settings import SETTINGS
from scalemem.averaging.shapes import families

# The evidence


def test_coefficients_are_those_of_least_squares():
    rng = np.random.default_rng(0)
    designs, target = rng.standard_normal((3, 2, 9, 4)), rng.standard_normal((2, 9))  # q, k, n, m
    found = solve(designs, target, np.zeros(2), (2.0, 0.5))
    assert found.dof == 9 - 3 + 2
    for k in range(2):
        for m in range(4):
            design = designs[:, k, :, m].T
            beta, sse, _, _ = np.linalg.lstsq(design, target[k], rcond=None)
            noise = (sse[0] + 2 * 0.25) / found.dof
            assert found.beta[k, m] == pytest.approx(beta)
            assert found.noise[k, m] == pytest.approx(noise)
            assert found.covariance[k, m] == pytest.approx(noise * np.linalg.inv(design.T @ design))


@pytest.mark.parametrize("q", [1, 2])
@pytest.mark.parametrize("misfit", [None, Misfit("walk", 2.0, 1.0), Misfit("drift", 3.0, 1.0), Misfit("memory", 4.0, 1.0)])
def test_the_evidence_is_the_brute_force_marginal_likelihood(q, misfit):
    """Likelihood summed over a grid of coefficients and noise; what `solve` leaves out is the same for every design and covariance."""
    rng, n, (dof, sd) = np.random.default_rng(1), 6, (1.5, 0.3)
    z = -np.sort(rng.uniform(0, 2, n))[::-1]
    x, y = np.stack([np.ones(n), z][:q], -1), 1 + 0.2 * z + 0.3 * rng.standard_normal(n)
    k = np.eye(n) + (misfit.covariance(z[:, None]) if misfit else 0.0)
    white = np.linalg.inv(np.linalg.cholesky(k))
    half = 0.5 * np.linalg.slogdet(k)[1]
    found = solve((white @ x).T[:, None, :, None], (white @ y)[None], np.array([half]), (dof, sd))
    side = [found.beta[0, 0, j] + 9 * math.sqrt(found.covariance[0, 0, j, j]) * np.linspace(-1, 1, 161) for j in range(q)]
    beta = np.stack(np.meshgrid(*side, indexing="ij"), -1).reshape(-1, q)
    chi2 = np.sum((white @ (y - beta @ x.T).T) ** 2, axis=0)
    log_s = np.linspace(-4, 3, 281)
    noise = np.exp(2 * log_s)[:, None]
    prior = 0.5 * dof * math.log(dof * sd**2 / 2) - math.lgamma(dof / 2) - dof * log_s - dof * sd**2 / (2 * noise[:, 0]) + math.log(2)
    log = prior[:, None] - n / 2 * np.log(2 * math.pi * noise) - half - chi2 / (2 * noise)
    cell = (log_s[1] - log_s[0]) * np.prod([s[1] - s[0] for s in side])
    left_out = -n / 2 * math.log(2 * math.pi) + dof / 2 * math.log(dof * sd**2 / 2) - math.lgamma(dof / 2)
    assert found.log_evidence[0, 0] + left_out == pytest.approx(math.log(np.exp(log).sum() * cell), abs=5e-3)


def test_columns_that_depend_on_each_other_have_no_evidence():
    one = np.linspace(1, 2, 5)
    found = solve(np.stack([one, 2 * one])[:, None, :, None], one[None] ** 2, np.zeros(1), (1.0, 1.0))
    assert found.log_evidence[0, 0] == -math.inf


@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.8), (0.9, 2.5), (-9.0, 0.2), (1.5, 9.0)])
def test_truncation_has_the_mass_and_moments_of_a_truncated_normal(low, high):
    beta, covariance, g = np.array([0.5, -0.3]), np.array([[0.5, 0.2], [0.2, 0.4]]), np.array([1.0, -0.7])
    found = Linear(np.zeros((1, 3)), np.tile(beta, (1, 3, 1)), np.tile(covariance, (1, 3, 1, 1)), np.ones((1, 3)), 5.0)
    truncate(found, np.array([g, [0.0, 0.0], [math.nan, 1.0]]), low, high)
    drawn = np.random.default_rng(2).multivariate_normal(beta, covariance, 400_000)
    drawn = drawn[(drawn @ g > low) & (drawn @ g < high)]
    assert found.log_evidence[0, 0] == pytest.approx(math.log(len(drawn) / 400_000), abs=0.02)
    assert found.beta[0, 0] == pytest.approx(drawn.mean(axis=0), abs=0.01)
    assert found.covariance[0, 0] == pytest.approx(np.cov(drawn.T), abs=0.01)
    for m in (1, 2):  # no direction, no bound
        assert found.log_evidence[0, m] == 0
        assert found.beta[0, m] == pytest.approx(beta)
        assert found.covariance[0, m] == pytest.approx(covariance)


def test_bounds_that_cannot_be_met_have_no_evidence():
    found = Linear(np.zeros((1, 1)), np.zeros((1, 1, 1)), np.full((1, 1, 1, 1), 1e-4), np.ones((1, 1)), 5.0)
    truncate(found, np.ones((1, 1)), 5.0, 6.0)
    assert found.log_evidence[0, 0] == -math.inf
    assert np.isfinite(found.beta).all()


# Misfits and families


@pytest.mark.parametrize("misfit", [Misfit("walk", 2.0, 1.0), Misfit("drift", 3.0, 1.0), Misfit("memory", 4.0, 1.0, 0.0, 0.7)])
def test_a_misfit_has_the_covariance_of_its_process(misfit):
    """Paths simulated on fine steps backwards from the frontier: a walk, the integral of one, and a stationary process that forgets."""
    rng, steps, far, paths = np.random.default_rng(3), 400, 2.0, 10_000
    dt = far / steps
    if misfit.kind == "memory":
        keep = math.exp(-dt / misfit.length)
        u = np.zeros((steps + 1, paths))
        u[0] = rng.standard_normal(paths)
        for i in range(steps):
            u[i + 1] = keep * u[i] + math.sqrt(1 - keep**2) * rng.standard_normal(paths)
    else:
        walk = np.cumsum(math.sqrt(dt) * rng.standard_normal((steps, paths)), axis=0)
        u = np.concatenate([np.zeros((1, paths)), walk if misfit.kind == "walk" else dt * np.cumsum(walk, axis=0)])
    at = np.array([0, 50, 120, 250, 400])
    want = misfit.rho * u[at] @ u[at].T / paths
    z = -(dt * at)[:, None]
    got = misfit.covariance(z)
    assert got == pytest.approx(want, abs=0.05 * got.max())
    ahead = misfit.beyond(-z, 1.0)  # the same process forwards
    assert ahead == pytest.approx(np.diag(got))
    if misfit.kind != "memory":
        assert misfit.beyond(-z, 0.3) == pytest.approx(0.3 * ahead)
        assert ahead[0] == 0


@settings(max_examples=30, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(z=st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0)), min_size=2, max_size=12), d=st.sampled_from([1, 2]))
def test_every_misfit_of_the_settings_is_a_covariance(z, d):
    points = np.array(z)[:, :d]
    for misfit in (*SETTINGS.one, *SETTINGS.many):
        k = misfit.covariance(points)
        assert np.allclose(k, k.T)
        assert np.linalg.eigvalsh(k).min() >= -1e-9 * max(np.abs(k).max(), 1.0)


@pytest.mark.parametrize("far", [np.array([-4.0]), np.array([-0.3]), np.array([-5.0, -3.0]), np.array([-2.0, -4.0, -1.0])])
@pytest.mark.parametrize("rising", [False, True])
def test_curves_are_written_by_their_value_at_the_frontier_and_their_changes(far, rising):
    for f in families(far, SETTINGS, rising):
        ends = f.columns(np.stack([0 * far, far]))
        assert ends.shape[1:] == (2, f.members)
        assert ends[0, 0] == pytest.approx(np.ones(f.members), abs=1e-9)
        assert ends[1:, 0] == pytest.approx(np.zeros((len(ends) - 1, f.members)), abs=1e-9)
        assert ends[1:, 1] == pytest.approx(np.ones((len(ends) - 1, f.members)), rel=1e-9)


@pytest.mark.parametrize("far", [np.array([-4.0]), np.array([-5.0, -3.0])])
def test_the_asymptote_is_what_curves_come_to(far):
    """A - sum of share_k B_k, in those members that have arrived at log x = 1e4."""
    seen = 0
    for f in families(far, SETTINGS, rising=False):
        if f.share is None or f.name == "turn":  # it turns up again: e is no limit
            continue
        h = f.columns(np.array([5e3 + 0 * far, 1e4 + 0 * far]))
        there = np.abs(h[1:, 1] - h[1:, 0]).max(axis=0) < 1e-9
        assert np.allclose(h[1:, 1][:, there].T, -f.share[there], rtol=1e-6, atol=1e-9)
        seen += int(there.sum())
    assert seen > 50
