"""GEM and A-GEM against quadratic programs that SciPy solves; what each strategy is said to cost, by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize, nnls
from strategy_contexts import make_context

from scalemem import strategies
from scalemem.strategies import agem, gem

MULTIPLIERS = jax.jit(gem.multipliers)


def primal(g, old):
    """The z nearest to g with old z >= 0, by sequential quadratic programming."""
    found = minimize(lambda z: ((z - g) ** 2).sum() / 2, g * 0, jac=lambda z: z - g, method="SLSQP", options={"ftol": 1e-15, "maxiter": 500},
                     constraints={"type": "ineq", "fun": lambda z: old @ z, "jac": lambda z: old})
    return found.x


@pytest.mark.parametrize("seed", range(6))
def test_gem_is_the_reference_quadratic_program(seed):
    """To 1e-6 in double precision; constraints hold to 1e-6 of the lengths in single precision, too. Gradients differ by a factor of 100."""
    rng, tasks = np.random.default_rng(seed), 6
    old = (rng.normal(size=(tasks, 12)) + rng.normal(size=12)) * 10 ** rng.uniform(-1, 1, (tasks, 1))
    g = rng.normal(size=12) - 0.1 * old.sum(0)
    for margin in (0.0, 0.5):
        with jax.enable_x64(True):
            v = np.asarray(MULTIPLIERS(jnp.asarray(old @ old.T), jnp.asarray(old @ g), margin))
        expected = nnls(old.T, -(g + margin * old.sum(0)))[0] + margin
        np.testing.assert_allclose(v, expected, atol=1e-6)
        if margin == 0:
            np.testing.assert_allclose(g + v @ old, primal(g, old), atol=1e-6)
        single = MULTIPLIERS(jnp.asarray(old @ old.T, jnp.float32), jnp.asarray(old @ g, jnp.float32), margin)
        z = g + np.asarray(single, float) @ old
        assert (old @ z / np.linalg.norm(old, axis=1) / np.linalg.norm(g)).min() > -1e-6


def test_equal_gradients_do_no_harm():
    old = np.array([[1.0, 0, 0], [1.0, 0, 0], [2.0, 0, 0]] * 2)
    v = MULTIPLIERS(jnp.asarray(old @ old.T, jnp.float32), jnp.asarray(old @ np.array([-3.0, 1, 0]), jnp.float32), 0.0)
    np.testing.assert_allclose(np.array([-3.0, 1, 0]) + np.asarray(v) @ old, [0, 1, 0], atol=1e-4)


# A linear loss of weights w [2]: item (a, b) has loss_sum w[a] (b - 1), so its gradient is (b - 1) at place a.
def linear(apply, w, tokens, weights):
    return (w["w"][tokens[:, 0]] * (tokens[:, 1] - 1) * weights).sum()


W0 = {"w": jnp.zeros(3)}


def test_gem_projects_only_where_a_task_would_lose():
    table = jnp.array([[0, 2], [0, 2], [1, 2], [1, 2]])  # tasks with gradients (1, 0, 0) and (0, 1, 0)
    ctx = make_context("gem", table, loss_sum=linear, strategy={"tasks": 2, "strength": 0.5})
    memory = gem.begin(ctx, W0, None)
    assert memory.shape == (2, 2, 2)
    project = jax.jit(lambda grads, margin: gem.project(ctx._replace(k=ctx.k | {"strategy_strength": margin}), W0, memory, grads, 0)["w"])
    fine = {"w": jnp.array([0.1, 0.2, -5.0])}
    np.testing.assert_array_equal(project(fine, 0.5), fine["w"])
    clash = {"w": jnp.array([-2.0, 3.0, 1.0])}
    np.testing.assert_allclose(project(clash, 0.5), [0.0, 3.5, 1.0], atol=1e-5)
    np.testing.assert_allclose(project(clash, 0.0), [0.0, 3.0, 1.0], atol=1e-5)


def test_agem_is_gem_of_one_task_without_margin():
    table = jnp.array([[0, 2], [1, 0]])
    rng = np.random.default_rng(0)
    one = make_context("gem", table[:1], loss_sum=linear, strategy={"strength": 0.0})
    averaged = make_context("agem", table[:1], loss_sum=linear)
    both = jax.jit(lambda grads: [m.project(c, W0, m.begin(c, W0, None), grads, 0)["w"] for m, c in ((gem, one), (agem, averaged))])
    for _ in range(4):
        a, b = both({"w": jnp.asarray(rng.normal(size=3), jnp.float32)})
        np.testing.assert_allclose(a, b, atol=1e-6)
    away = agem.away({"w": jnp.array([1.0, -2.0, 0.5])}, {"w": jnp.array([0.3, 1.0, -1.0])})["w"]
    assert abs(float(away @ jnp.array([0.3, 1.0, -1.0]))) < 1e-6


def test_agem_draws_a_batch_of_all_tasks():
    """Over many steps the reference is the mean gradient on the whole pool; of one step it is that of a batch of 2."""
    table = jnp.array([[0, 2], [0, 2], [1, 2], [1, 2]])
    ctx = make_context("agem", table, loss_sum=linear, strategy={"tasks": 2})
    memory, seen = agem.begin(ctx, W0, None), []
    against = {"w": jnp.array([-1.0, -1.0, 0.0])}
    one = jax.jit(lambda step: agem.project(ctx, W0, memory, against, step)["w"] - against["w"])
    for step in range(64):
        seen.append(np.asarray(one(step)))  # r / |r|^2, r one of (1, 0), (1/2, 1/2), (0, 1)
    found = {tuple(np.round(x, 3).tolist()) for x in seen}
    assert found == {(1.0, 0.0, 0.0), (1.0, 1.0, 0.0), (0.0, 1.0, 0.0)}
    assert 20 < sum(tuple(np.round(x, 3).tolist()) == (1.0, 1.0, 0.0) for x in seen) < 44


def costs(name, **strategy):
    """Of a stage of 6 items, 4 exposures, batches of 2 (12 steps), on a model of 4 * 3 + 2 * 4 + 2 * 4 = 28 weights, 3 tokens, sequences of 2."""
    ctx = make_context(name, jnp.zeros((6, 2), jnp.int32), strategy={"tasks": 2, "items": 4, **strategy})
    run = dataclasses.replace(ctx.run, stages=(dataclasses.replace(ctx.run.stages[0], exposures=4),))
    return tuple(strategies.get(name).costs(run))


@pytest.mark.parametrize(("name", "strategy", "expected"), [
    ("ewc", {"kind": "exact"}, (2 * (1 + 2 * 3) / 3 / 24, 2 * 2 * 28, 0)),
    ("ewc", {"kind": "sample"}, (2 / 24, 2 * 2 * 28, 0)),
    ("online_ewc", {"kind": "empirical"}, (2 / 24, 2 * 28, 0)),
    ("si", {}, (0, 3 * 28, 0)),
    ("lwf", {}, (1 / 3, 28, 0)),
    ("logit_distillation", {}, (1 / 3, 28, 0)),
    ("gem", {}, (12 * 4 / 24, 2 * 28, 4 * 2)),
    ("agem", {}, (1, 28, 4 * 2)),
    ("weight_averaging", {}, (0, 28, 0)),
    ("merging", {}, (0, 28, 0)),
    ("fast_slow", {}, (0, 28, 0)),
    ("collateral", {}, ((4 + 12 * 2) / 3 / 24, 4 * 1, 4 * 2)),
    ("relational", {}, (2 * 2 * 12 / 24, 2 * 2 * 28 + 2, 4 * 2)),
    ("centre_loss", {}, ((4 + 12 * 16) / 3 / 24, 9, 0)),
    ("prototypes", {}, (1 / 3 + 4 / 3 / 24, 28 + 9, 0)),
])
def test_costs_by_hand(name, strategy, expected):
    np.testing.assert_allclose(costs(name, **strategy), (*expected, 0), rtol=1e-6)  # none of these keeps items in another form


def test_every_strategy_has_costs_and_says_what_it_is():
    for name in strategies.STRATEGIES:
        module = strategies.get(name)
        assert module.__doc__
        assert len(module.__doc__.splitlines()[0]) <= 140
        assert costs(name)[0] >= 0
