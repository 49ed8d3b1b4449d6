"""The closed forms of linear forgetting against simulation, against each other and at limits; the ideal learner against joint least squares."""

import math

import jax
import numpy as np
import pyarrow as pa
import pytest
from conftest import make_run

from scalemem import analyses, train
from scalemem.analyses import linear_tasks as theory
from scalemem.measure import linear_tasks as sim
from scalemem.measure.moment import Moment
from scalemem.spec import ModelSpec, SpecError


def instance(tasks=5, p=30, n=10, seed=0, size=4.0):
    """True weights of different sizes and directions, with their norms and distances."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(tasks, p)) * size / math.sqrt(p) * rng.uniform(0.5, 1.5, (tasks, 1))
    return w, np.sum(w**2, 1), np.sum((w[:, None] - w[None]) ** 2, 2)


def test_golden_simulation():
    """F_T and G_T within 1 % of 4,000 sequences, tasks of any direction (shared/literature/forgetting.md 4.6 has 0.4 % for p = 60)."""
    w, norms, distances = instance()
    forgotten, overall = sim.simulate(np.random.default_rng(1), w, 10, 0.5, 4000)
    assert forgotten.mean() == pytest.approx(theory.expected_forgetting(30, 10, 0.5, norms, distances).sum(), rel=0.01)
    assert overall.mean() == pytest.approx(theory.expected_generalisation(30, 10, 0.5, norms, distances), rel=0.01)


@pytest.mark.parametrize("tasks", [2, 3, 6])
def test_forgetting_is_the_difference_of_losses(tasks):
    """The coefficients c_ij against E L_i(w_T) - E L_i(w_i) of the other formula; and that one against its recursion."""
    _, norms, distances = instance(tasks)
    loss = theory.expected_loss(30, 12, 0.7, norms, distances)
    assert theory.expected_forgetting(30, 12, 0.7, norms, distances).sum() == pytest.approx(
        np.mean([loss[-1, i] - loss[i, i] for i in range(tasks - 1)]))
    r, floor = 1 - 12 / 30, 12 * 0.49 / (30 - 12 - 1)
    slow = norms.copy()
    for t in range(tasks):
        slow = r * slow + (1 - r) * distances[t] + floor  # E of a step from w - w*_i, of the projection, and of the noise
        assert loss[t] == pytest.approx(slow)


def test_what_a_step_does_by_hand():
    """One task, p = 3, n = 1: a third of w* is seen; noise adds E z^2 / ||x||^2 = noise^2 / (p - 2)."""
    assert theory.expected_loss(3, 1, 2.0, np.ones(1), np.zeros((1, 1)))[0, 0] == pytest.approx(2 / 3 + 4.0)


def test_limits():
    same, apart = (theory.expected_forgetting(30, 10, 0.0, np.ones(4), theory.shared(4, s)).sum() for s in (1.0, 0.0))
    assert same < 0 < apart  # what is common is learned on
    noisy = [theory.expected_forgetting(p, 10, 1.0, np.ones(2), theory.shared(2, 1.0))[2] for p in (200, 40, 13, 12)]
    assert noisy == sorted(noisy)
    assert noisy[-1] == pytest.approx(12 / 1 * (1 / 6 - 1 / 36))
    with pytest.raises(SpecError, match="must have 1 <= n < p - 1"):
        theory.expected_forgetting(11, 10, 1.0, np.ones(2), theory.shared(2, 1.0))
    with pytest.raises(SpecError, match="at least two"):
        theory.expected_forgetting(30, 10, 0.0, np.ones(1), np.zeros((1, 1)))


def test_fitted_is_the_nearest_point():
    rng = np.random.default_rng(0)
    w, x, y = rng.normal(size=(2, 7)), rng.normal(size=(2, 7, 3)), rng.normal(size=(2, 3))
    found = sim.fitted(w, x, y)
    for i in range(2):
        np.testing.assert_allclose(x[i].T @ found[i], y[i], atol=1e-12)
        np.testing.assert_allclose(found[i] - w[i], np.linalg.pinv(x[i].T) @ (y[i] - x[i].T @ w[i]), atol=1e-12)


def test_targets_are_as_similar_as_asked():
    w = sim.targets(9, 4, 0.3)
    np.testing.assert_allclose(w @ w.T, 0.3 + 0.7 * np.eye(4), atol=1e-12)
    np.testing.assert_allclose(np.sum((w[:, None] - w[None]) ** 2, 2), theory.shared(4, 0.3), atol=1e-12)


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_ideal_learner_is_joint_least_squares_until_no_direction_is_left(noise):
    rng, p, n = np.random.default_rng(3), 24, 5
    w, ideal, xs, ys = rng.normal(size=p), sim.Ideal(p), [], []
    for t in range(6):
        xs.append(rng.normal(size=(p, n)))
        ys.append(xs[-1].T @ w + noise * rng.normal(size=n))
        ideal.learn(xs[-1], ys[-1])
        assert ideal.free.shape == (p, max(0, p - n * (t + 1)))
        np.testing.assert_allclose(ideal.free.T @ ideal.free, np.eye(ideal.free.shape[1]), atol=1e-10)
        x, y = np.concatenate(xs, 1), np.concatenate(ys)
        joint = np.linalg.lstsq(x.T, y, rcond=None)[0]
        if ideal.free.shape[1] or not noise:
            np.testing.assert_allclose(ideal.w, joint, atol=1e-8)
        if t:
            assert np.abs(y[:-n] - x[:, :-n].T @ ideal.w).max() < 1e-8 or ideal.free.shape[1] == 0
    kept = [np.abs(y - x.T @ ideal.w).max() for x, y in zip(xs, ys, strict=True)]
    assert max(kept[:4]) < 1e-8  # never forgets
    assert (kept[5] > 0.1) == bool(noise)  # but cannot learn what does not fit


def test_learners():
    found = sim.learners(np.random.default_rng(0), sim.targets(20, 6, 0.5), 5, 0.0, 3)
    assert found["task_count"].tolist() == [1, 2, 3, 4, 5, 6]
    assert found["samples_per_param_ratio"] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.25, 1.5])
    assert max(found["ideal_old_loss_ratio"][:4]) < 1e-12
    assert max(found["joint_loss_ratio"][:4]) < 1e-12
    assert min(found["joint_loss_ratio"][4:]) > 0.01
    assert min(found["ideal_new_loss_ratio"][4:]) > 0.1
    assert min(found["sequential_old_loss_ratio"][1:]) > 0.01


AT = Moment(0, None, (), 4000)
KEYS = train.key(0, "data"), train.key(0, "probe")


def run(p=12, n=4, tasks=3, seed=0, **data):
    return make_run(ModelSpec(d_model=p, n_layers=0, n_heads=1, vocab_size=2, seq_len=2), n_items=n, batch_size=1, exposures=0, seed=seed,
                    data={"domains": tasks, **data}, probes=("linear_tasks",))


def test_measure_and_analysis():
    """A run's simulation lies within five of its standard errors of the closed form, and its differences are as defined."""
    measured = []
    for i, spec in enumerate((run(noise=0.5, similarity=0.3), run(n=6, noise=0.0, similarity=1.0))):
        found = sim.measure(spec, {}, *KEYS, AT)
        assert sim.measure(spec, {}, *KEYS, AT)["forgetting_simulated_ratio"] == found["forgetting_simulated_ratio"]
        numbers = {k: v for k, v in found.items() if not np.ndim(v)}
        measured.append({"run_id": str(i), "d_model": 12, "n_items": spec.stages[0].data.n_items, **numbers})
    first, second = analyses.run("linear_tasks", {"runs": pa.Table.from_pylist(measured)}, {}).to_pylist()
    assert first["params_per_item_ratio"] == 3
    terms = theory.expected_forgetting(12, 4, 0.5, np.ones(3), theory.shared(3, 0.3))
    assert first["forgetting_theory_ratio"] == pytest.approx(terms.sum())
    assert first["forgetting_noise_ratio"] == pytest.approx(terms[2])
    gap = first["forgetting_simulated_ratio"] - terms.sum()
    assert first["forgetting_difference_fraction"] == pytest.approx(gap / np.abs(terms).sum())
    assert first["forgetting_difference_errors_ratio"] == pytest.approx(gap / first["forgetting_error_ratio"])
    for row in (first, second):
        z = [abs(row[f"{name}_difference_errors_ratio"]) for name in ("forgetting", "generalisation")]
        assert max(z) < 5
        assert row["inside_error"] == (max(z) < 1.96)
        assert abs(row["generalisation_difference_fraction"]) < 0.02
    assert second["forgetting_theory_ratio"] < 0
    one, other = (sim.measure(run(), {}, KEYS[0], jax.random.key(i), AT)["forgetting_simulated_ratio"] for i in (3, 4))
    assert one != other


def test_too_many_items_are_one_line():
    with pytest.raises(SpecError, match="must be below 11 and 12") as error:
        sim.measure(run(n=11), {}, *KEYS, AT)
    assert "\n" not in str(error.value)
