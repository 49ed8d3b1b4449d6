"""Strategies of one gradient or one weight: against closed forms, hand-computed numbers and slow NumPy references."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from strategy_contexts import make_context

from scalemem import spec, strategies
from scalemem.strategies import (
    centre_loss,
    collateral,
    ewc,
    fast_slow,
    fisher,
    logit_distillation,
    lwf,
    merging,
    online_ewc,
    prototypes,
    reading,
    relational,
    si,
    trees,
    weight_averaging,
)

PAIRS = jnp.array([[0, 1], [0, 2], [1, 0], [2, 2], [0, 1], [1, 2]])
W = {"w": jnp.array([[0.3, -0.2, 0.9], [1.0, 0.0, -1.0], [0.1, 0.2, 0.3]])}


def diagonal(ctx, numbers, kind, w=W):
    return jax.jit(lambda w: fisher.diagonal(ctx, w, jnp.asarray(numbers), kind)["w"])(w)


def mean_loss(ctx, table):
    return lambda w: ctx.loss_sum(ctx.apply, w, table, jnp.ones(len(table))) / (len(table) * (table.shape[1] - 1))


def probabilities(w):
    return np.asarray(jax.nn.softmax(w["w"], -1))


def test_which_items_are_read():
    ctx = make_context(strategy={"items": 6, "tasks": 2, "every": 10, "first": 5})
    assert reading.numbers(ctx).tolist() == [[5, 15, 25], [35, 45, 55]]
    ctx = make_context(strategy={"items": 7, "tasks": 3, "stride": 100})
    assert reading.numbers(ctx).tolist() == [[0, 1], [100, 101], [200, 201]]
    ctx = make_context(strategy={"items": 3, "tasks": 3, "stride": 100, "seen": 2})
    assert reading.numbers(ctx).tolist() == [[0], [100], [0]]


def test_what_is_scored():
    """Goldfish drops every second target and counts the others twice; a label is one of its task's, and counts as often as there are targets."""
    tokens = jnp.array([[0, 1, 2, 0, 1]])
    def scored(objective, vocab=3):
        return jax.jit(lambda t: reading.scored(make_context(table=t, objective=objective, vocab=vocab), t))(tokens)
    support, weight = scored("next_token")
    assert support.all()
    np.testing.assert_allclose(weight, 1, rtol=1e-6)
    support, weight = scored("goldfish_static_2")
    np.testing.assert_allclose(weight, [[2, 0, 2, 0]], atol=1e-6)
    assert support[0, :, 0].tolist() == [True, False, True, False]
    support, weight = scored("label_in_task_2", 4)
    np.testing.assert_allclose(weight, [[0, 0, 0, 4]], atol=1e-6)
    assert support[0].astype(int).tolist() == [[0, 0, 0, 0]] * 3 + [[1, 1, 0, 0]]  # classes 3 and 2 of the task of label 1


def test_mean_gradient_is_that_of_the_mean_and_counts_rows():
    ctx, table = make_context(), jnp.tile(PAIRS, (7, 1))
    mean_gradient = jax.jit(lambda w, count: reading.mean_gradient(ctx, w, table, count))
    nats, grads = mean_gradient(W, len(table))
    expected = jax.jit(jax.value_and_grad(mean_loss(ctx, table)))(W)
    np.testing.assert_allclose(nats, expected[0], rtol=1e-5)
    np.testing.assert_allclose(grads["w"], expected[1]["w"], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(mean_gradient(W, 20)[0], mean_loss(ctx, table[:20])(W), rtol=1e-5)


def test_exact_fisher_is_the_hessian_of_a_linear_model():
    """Of logits linear in the weights the Hessian does not depend on the targets; also where a sequence has several of them."""
    for table in (PAIRS, jnp.array([[0, 1, 2, 0], [2, 2, 1, 1]])):
        ctx = make_context(table=table)
        hessian = jax.jit(jax.hessian(lambda w, c=ctx, t=table: mean_loss(c, t)({"w": w})))(W["w"]).reshape(9, 9)
        exact = diagonal(ctx, range(len(table)), "exact").ravel()
        np.testing.assert_allclose(exact, jnp.diagonal(hessian), rtol=1e-5)


def test_empirical_and_batched_fisher_by_hand():
    ctx, p = make_context(table=PAIRS), probabilities(W)
    scores = np.zeros((6, 3, 3))
    for i, (x, y) in enumerate(np.asarray(PAIRS)):
        scores[i, x] = p[x] - np.eye(3)[y]
    np.testing.assert_allclose(diagonal(ctx, range(6), "empirical"), (scores**2).mean(0), rtol=1e-5)
    np.testing.assert_allclose(diagonal(ctx, range(6), "batched"), scores.mean(0) ** 2, rtol=1e-4, atol=1e-8)


def test_sampled_fisher_is_the_exact_one_on_average():
    table = jnp.tile(PAIRS, (400, 1))
    ctx = make_context(table=table)
    sampled = diagonal(ctx, range(len(table)), "sample")
    exact = diagonal(ctx, range(6), "exact")
    np.testing.assert_allclose(sampled, exact, atol=0.012)  # 4 standard errors of the noisiest entry
    assert not np.allclose(sampled, exact, atol=1e-5)


def test_fisher_of_a_goldfish_counts_kept_targets():
    """One kept target of two, with weight 2: the Fisher of that target alone."""
    table = jnp.array([[0, 1, 2]])
    f = diagonal(make_context(table=table, objective="goldfish_static_2"), range(1), "exact")
    p = probabilities(W)
    np.testing.assert_allclose(f, [p[0] * (1 - p[0]), [0, 0, 0], [0, 0, 0]], rtol=1e-5, atol=1e-9)


A, H = jnp.array([[1.0, -2.0], [0.0, 3.0], [4.0, 1.0]]), jnp.array([[2.0, 0.5], [1.0, 4.0], [3.0, 1.5]])  # minima and curvatures of three tasks


def test_ewc_is_exact_for_quadratic_losses():
    """The minimum of the last loss and the penalties is that of all three losses: sum h a / sum h."""
    ctx = make_context(strategy={"tasks": 2})
    memory = {"anchor": A[:2], "importance": H[:2]}
    joint = (H * A).sum(0) / H.sum(0)
    total = lambda w: (H[2] * (w - A[2]) ** 2).sum() / 2 + ewc.penalty(ctx, w, memory)  # noqa: E731
    slope = jax.jit(jax.grad(total))
    np.testing.assert_allclose(slope(joint), 0, atol=1e-5)
    np.testing.assert_allclose(slope(joint + 1), H.sum(0), rtol=1e-5)


def test_online_ewc_is_ewc_with_the_sum_at_the_latest_anchor():
    """Its anchor of the second stage is the optimum of the first two: then it is exact for quadratics, too."""
    ctx = make_context("online_ewc")
    latest = (H[:2] * A[:2]).sum(0) / H[:2].sum(0)
    memory = {"anchor": latest, "importance": H[:2].sum(0)}
    total = lambda w: (H[2] * (w - A[2]) ** 2).sum() / 2 + online_ewc.penalty(ctx, w, memory)  # noqa: E731
    np.testing.assert_allclose(jax.grad(total)((H * A).sum(0) / H.sum(0)), 0, atol=1e-5)


def test_ewc_keeps_the_anchors_of_the_stages_before():
    table = jnp.concatenate([PAIRS, PAIRS[::-1]])
    one = make_context(table=table, strategy={"items": 6, "tasks": 1})
    two = make_context(table=table, strategy={"items": 12, "tasks": 2})
    begin = {tasks: jax.jit(functools.partial(ewc.begin, c)) for tasks, c in ((1, one), (2, two))}
    first = begin[1](W, None)
    later = {"w": W["w"] + 1}
    both = begin[2](later, first)
    np.testing.assert_array_equal(both["anchor"]["w"], jnp.stack([W["w"], later["w"]]))
    np.testing.assert_array_equal(both["importance"]["w"][0], first["importance"]["w"][0])
    np.testing.assert_allclose(both["importance"]["w"][1], diagonal(two, range(6, 12), "exact", later), rtol=1e-6)
    again = begin[2](W, both)
    np.testing.assert_array_equal(again["anchor"]["w"], jnp.stack([later["w"], W["w"]]))


def test_ewc_fills_its_room_task_after_task():
    """Rooms for two tasks, of which one and then two were learned, are what a room for one and then for two are."""
    table = jnp.concatenate([PAIRS, PAIRS[::-1]])
    room = make_context(table=table, strategy={"items": 12, "tasks": 2, "kind": "empirical"})
    begin = jax.jit(lambda seen, w, before: ewc.begin(room._replace(k=room.k | {"strategy_seen": seen}), w, before))
    later = {"w": W["w"] + 1}
    first = begin(1, W, None)
    np.testing.assert_allclose(first["importance"]["w"][0], diagonal(room, range(6), "empirical"), rtol=1e-6)
    assert not first["importance"]["w"][1].any()
    both = begin(2, later, first)
    np.testing.assert_array_equal(both["anchor"]["w"], jnp.stack([W["w"], later["w"]]))
    np.testing.assert_array_equal(both["importance"]["w"][0], first["importance"]["w"][0])
    np.testing.assert_allclose(both["importance"]["w"][1], diagonal(room, range(6, 12), "empirical", later), rtol=1e-6)
    assert begin(0, W, None)["importance"]["w"][1].any()


def test_online_ewc_decays():
    ctx = make_context("online_ewc", PAIRS, strategy={"decay": 0.5, "strength": 3.0})
    begin = jax.jit(functools.partial(online_ewc.begin, ctx))
    first = begin(W, None)
    second = begin(W, first)
    np.testing.assert_allclose(second["importance"]["w"], 1.5 * first["importance"]["w"], rtol=1e-6)
    moved = {"w": W["w"] + 2}
    np.testing.assert_allclose(online_ewc.penalty(ctx, moved, second), 3 / 2 * 0.5 * 4 * second["importance"]["w"].sum(), rtol=1e-5)


def test_si_measures_the_fall_of_a_quadratic_loss():
    """Plain descent on sum h (w - a)^2 / 2: w_i = fall_i + sum of h_i step_i^2 / 2, exactly; the last part vanishes with the rate."""
    ctx, h, a = make_context("si"), np.array([2.0, 0.5]), np.array([1.0, -2.0])
    for rate, steps in ((0.1, 40), (1e-2, 400)):
        w, memory, curved = {"w": jnp.zeros(2)}, si.begin(ctx, {"w": jnp.zeros(2)}, None), np.zeros(2)
        one = jax.jit(lambda w, memory, grads, new: si.after(ctx, w, new, memory, grads, 0))
        for _ in range(steps):
            grads = {"w": jnp.asarray(h * (np.asarray(w["w"]) - a), jnp.float32)}
            new = {"w": w["w"] - rate * grads["w"]}
            curved += h * np.asarray(new["w"] - w["w"]) ** 2 / 2
            w, memory = one(w, memory, grads, new)
        fall = h * (a**2 - (np.asarray(w["w"]) - a) ** 2) / 2
        np.testing.assert_allclose(memory["path"]["w"], fall + curved, rtol=2e-4)
    np.testing.assert_allclose(memory["path"]["w"], fall, rtol=2e-2)


def test_si_importance_by_hand():
    ctx = make_context("si", strategy={"kind": "xi_0.1", "strength": 2.0})
    before = {"importance": {"w": jnp.array([1.0, 1.0])}, "path": {"w": jnp.array([0.6, -5.0])}, "anchor": {"w": jnp.array([0.0, 0.0])}}
    memory = si.begin(ctx, {"w": jnp.array([1.0, 3.0])}, before)
    np.testing.assert_allclose(memory["importance"]["w"], [1 + 0.6 / 1.1, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(memory["path"]["w"], 0)
    np.testing.assert_allclose(si.penalty(ctx, {"w": jnp.array([0.0, 5.0])}, memory), 2 * (1 + 0.6 / 1.1 + 4), rtol=1e-6)


@pytest.mark.parametrize("module", [lwf, logit_distillation, prototypes])
def test_distillation_is_at_rest_at_the_old_model(module):
    ctx = make_context(module.__name__.rsplit(".", 1)[1], PAIRS)
    memory, rows = jax.jit(lambda w: module.begin(ctx, w, None))(W), jnp.ones(6)
    loss = jax.jit(jax.value_and_grad(lambda w, tokens, rows: module.batch_loss(ctx, w, memory, tokens, rows)))
    (still, slope), moved = loss(W, PAIRS, rows), {"w": W["w"] + jnp.array([0.5, 0, -0.5])}
    np.testing.assert_allclose(slope["w"], 0, atol=1e-6)
    far, slope = loss(moved, PAIRS, rows)
    assert far > still + 0.01
    assert jnp.abs(slope["w"]).max() > 0.01
    half = loss(moved, PAIRS, jnp.array([1.0, 1, 1, 0, 0, 0]))[0]
    np.testing.assert_allclose(half, loss(moved, jnp.tile(PAIRS[:3], (2, 1)), rows)[0] / 2, rtol=1e-5)


def test_lwf_by_hand():
    ctx = make_context("lwf", PAIRS[:1], strategy={"strength": 3.0})
    new = {"w": jnp.zeros((3, 3))}
    loss, slope = jax.jit(jax.value_and_grad(lambda w: lwf.batch_loss(ctx, w, W, PAIRS[:1], jnp.ones(1))))(new)
    np.testing.assert_allclose(loss, 3 * np.log(3), rtol=1e-6)
    q = np.exp(np.asarray(W["w"][0]) / 2)
    np.testing.assert_allclose(slope["w"][0], 3 * (1 / 3 - q / q.sum()) / 2, rtol=1e-5)


def test_logit_distillation_does_not_mind_a_constant():
    ctx = make_context("logit_distillation", PAIRS[:1])
    moved = {"w": W["w"] + jnp.array([7.0, 8.0, 9.0])}
    np.testing.assert_allclose(jax.jit(lambda w: logit_distillation.batch_loss(ctx, w, W, PAIRS[:1], jnp.ones(1)))(moved), 0.5 * 2 / 3, rtol=1e-5)


def test_averages_by_hand():
    begin, path = {"w": jnp.array(1.0)}, [2.0, 4.0, 8.0]
    for kind, decay, strength, expected in (("final", 1, 0.5, 4.5), ("", 1, 1.5, 11.5), ("mean", 1, 1, 15 / 4),
                                            ("ema", 0.5, 1, 1 / 8 + 2 / 8 + 4 / 4 + 8 / 2), ("ema", 0.5, 0, 8.0)):
        ctx = make_context("weight_averaging", strategy={"kind": kind, "decay": decay, "strength": strength})
        now, memory = begin, weight_averaging.begin(ctx, begin, None)
        for step, w in enumerate(path):
            now, memory = weight_averaging.after(ctx, now, {"w": jnp.array(w)}, memory, None, step)
        np.testing.assert_allclose(weight_averaging.finish(ctx, now, memory)["w"], expected, rtol=1e-6)


def test_merging_is_the_mean_of_all_ends():
    merged, ends = {"w": jnp.array([3.0, 0.0])}, [jnp.array([6.0, 3.0]), jnp.array([-3.0, 9.0])]
    for tasks, end in enumerate(ends, 1):
        ctx = make_context("merging", strategy={"tasks": tasks, "items": 2})
        merged = merging.finish(ctx, {"w": end}, merging.begin(ctx, merged, None))
    np.testing.assert_allclose(merged["w"], [2.0, 4.0], rtol=1e-6)
    ctx = make_context("merging", strategy={"kind": "slerp"})
    around = merging.finish(ctx, {"w": jnp.array([0.0, 4.0])}, {"w": jnp.array([2.0, 0.0])})["w"]
    np.testing.assert_allclose(around, [3 / 2**0.5] * 2, rtol=1e-5)
    np.testing.assert_allclose(merging.slerp(jnp.array([1.0, 1.0]), jnp.array([3.0, 3.0]), 0.25), 1.5, rtol=1e-5)


def test_fast_weights_come_back_to_the_slow_ones():
    """Each step adds 1 to the fast weight; every 2 steps the slow one goes half way. 0 -> (1, 2 -> 1), (2, 3 -> 2), 3; the end is 2."""
    ctx = make_context("fast_slow", strategy={"items": 2, "strength": 0.5})
    now = {"w": jnp.array(0.0)}
    memory, seen = fast_slow.begin(ctx, now, None), []
    for step in range(5):
        now, memory = fast_slow.after(ctx, now, {"w": now["w"] + 1}, memory, None, step)
        seen.append(float(now["w"]))
    assert seen == [1, 1, 2, 2, 3]
    assert fast_slow.finish(ctx, now, memory)["w"] == 2


def test_centres_by_hand():
    """Two items of class 2 and one of class 1; the new centre of class 2 is old - .5 (2 old - sum) / 3."""
    table = jnp.array([[0, 2], [1, 2], [0, 1]])
    ctx = make_context("centre_loss", table)
    f = np.asarray(W["w"] - W["w"].mean(-1, keepdims=True))
    memory = jax.jit(lambda w: centre_loss.begin(ctx, w, None))(W)
    np.testing.assert_allclose(memory, [[0, 0, 0], f[0], (f[0] + f[1]) / 2], atol=1e-6)
    loss = jax.jit(lambda w: centre_loss.batch_loss(ctx, w, memory, table, jnp.ones(3)))(W)
    np.testing.assert_allclose(loss, ((f[0] - f[1]) ** 2).mean() / 4, rtol=1e-5)
    alone = make_context("centre_loss", table[:1])
    moved = jax.jit(lambda w: centre_loss.after(alone, w, w, jnp.zeros((3, 3)), None, 0)[1])(W)
    n = centre_loss.ROWS
    np.testing.assert_allclose(moved, [[0, 0, 0], [0, 0, 0], 0.5 * n * f[0] / (1 + n)], atol=1e-6)


def test_prototypes_by_hand():
    """Of two prototypes at a right angle, an item at one of them is of it with probability 1 / (1 + e^-5); unknown classes have none."""
    log_p = prototypes.relation(jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 0.0], [0.0, 3.0], [5.0, 5.0]]), jnp.array([True, True, False]))
    np.testing.assert_allclose(jnp.exp(log_p[0]), [1 / (1 + np.exp(-5)), 1 / (1 + np.exp(5)), 0], rtol=1e-5, atol=1e-12)


def test_collateral_damage_is_counted_where_the_old_model_was_right():
    """Block 0: the old model knew 0 -> 2 and the new one does not; block 1: both know 1 -> 0."""
    table = jnp.array([[0, 2], [0, 2], [1, 0], [1, 0]])
    ctx = make_context("collateral", table, strategy={"tasks": 2, "decay": 0.5})
    begin = jax.jit(lambda w: collateral.begin(ctx, w, None))
    after = jax.jit(lambda w, memory, step: collateral.after(ctx, w, w, memory, None, step)[1])
    memory = begin(W)
    assert memory["right"].all()
    worse = {"w": W["w"].at[0, 1].set(9.0)}
    for step in range(2):
        memory = after(worse, memory, step)
    np.testing.assert_allclose(memory["damaged"], [1.5, 0])
    np.testing.assert_allclose(collateral.replay_weights(ctx, memory), [2.5 / 3.5, 1 / 3.5], rtol=1e-6)
    assert after(worse, begin(worse), 0)["damaged"].tolist() == [0, 0]  # what was wrong before is no damage


def test_relational_weights_prefer_what_serves_old_and_new():
    """Blocks 0 and 1 ask for 0 -> 1, as the new data do, block 2 for 0 -> 2."""
    ctx = make_context("relational", jnp.array([[0, 1], [0, 1], [0, 2]]), strategy={"tasks": 3})
    gradient = jax.jit(lambda pair: reading.mean_gradient(ctx, W, pair)[1])
    grads = gradient(jnp.array([[0, 1]]))
    memory = jax.jit(lambda w: relational.after(ctx, w, w, relational.begin(ctx, w, None), grads, 0)[1])(W)
    weights = relational.replay_weights(ctx, memory)
    assert weights[0] == weights[1] > 1 > weights[2]
    g = {y: np.asarray(gradient(jnp.array([[0, y]]))["w"]).ravel() for y in (1, 2)}
    unit = {y: v / np.linalg.norm(v) for y, v in g.items()}
    old = (2 * unit[1] + unit[2]) / 3
    np.testing.assert_allclose(memory, [unit[y] @ (val := unit[1] + old / np.linalg.norm(old)) / np.linalg.norm(val) for y in (1, 1, 2)], rtol=1e-4)


def test_arithmetic_keeps_types():
    a = {"w": jnp.ones(2, jnp.bfloat16)}
    assert trees.plus(a, trees.wide(a))["w"].dtype == trees.between(a, trees.wide(a), 0.5)["w"].dtype == jnp.bfloat16
    assert trees.between({"w": jnp.float32(0.1)}, {"w": jnp.float32(1e9)}, 0.0)["w"] == jnp.float32(0.1)


def test_unknown_names_and_kinds_are_one_line():
    with pytest.raises(spec.SpecError, match="must be one of ewc"):
        strategies.get("nothing")
    for wrong, said in (({"name": "ewc", "kind": "true"}, r"stages\[0\].strategy.kind = 'true': must be one of 'exact'"),
                        ({"name": "lwf", "kind": "warm"}, "must be one of ''"),
                        ({"name": "gem", "items": 1, "tasks": 2}, "at least strategy.tasks = 2")):
        ctx = make_context(wrong.pop("name"), strategy=wrong)
        with pytest.raises(spec.SpecError, match=said):
            strategies.check(ctx.run)
