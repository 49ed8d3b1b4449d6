"""The training of one run: a golden step, what is seen how often, schedules, optimizers, and what must not matter."""

import collections
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference_gpt as reference
from conftest import MODEL, longer, make_pack, make_run, one, trained

from scalemem import data, models, objectives, optimizers, pack, train
from scalemem.spec import OptimizerSpec

GOLDEN = make_run(exposures=2, eps=1e-3, weight_decay=0.1, warmup_steps=0, final_fraction=0.1, seed=3)  # 13 items in steps of 5, 5, 3


def order(run, epoch):
    """The epoch's permutation, from its definition: items in the order of their draws."""
    n, key = run.stages[0].data.n_items, jax.random.fold_in(train.key(run.seed, "order"), epoch)
    return np.argsort([int(jax.random.bits(jax.random.fold_in(key, i))) >> 1 for i in range(n)], kind="stable")


def assert_same(a, b, **tolerance):
    a, b = reference.leaves(a), reference.leaves(b)
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_allclose(a[path], b[path], err_msg=path, **tolerance)


def norms(params):
    return {path: float(np.sqrt((np.asarray(x, np.float64) ** 2).sum())) for path, x in reference.leaves(params).items()}


def test_golden_steps_are_those_of_the_numpy_reference():
    run = GOLDEN
    state = one(trained([run], 1), 0)
    items = np.asarray(data.get("uniform").items(run, train.key(3, "data"), jnp.arange(13)))
    rows = order(run, 0)
    params, losses = reference.train(run, models.init(run.model, train.key(3, "init")), [items[rows[i : i + 5]] for i in (0, 5, 10)], 6)
    mean = (5 * losses[0] + 5 * losses[1] + 3 * losses[2]) / 13
    assert float(state.loss_nats) == pytest.approx(mean, rel=1e-5)
    assert_same(state.params, params, rtol=1e-5, atol=1e-7)
    assert int(state.segment) == 1
    assert not state.diverged


PINNED = {
    "loss_nats": 3.46268702,
    "/blocks/0/attention/out/b": 0.110307364,
    "/blocks/0/attention/out/w": 0.232875889,
    "/blocks/0/attention/qkv/b": 0.0719756971,
    "/blocks/0/attention/qkv/w": 0.356692769,
    "/blocks/0/mlp/down/b": 0.115868003,
    "/blocks/0/mlp/down/w": 0.461421062,
    "/blocks/0/mlp/up/b": 0.136558217,
    "/blocks/0/mlp/up/w": 0.476408194,
    "/blocks/0/norm_1/bias": 0.0160003675,
    "/blocks/0/norm_1/scale": 2.80721556,
    "/blocks/0/norm_2/bias": 0.020152623,
    "/blocks/0/norm_2/scale": 2.8148207,
    "/norm/bias": 0.058270811,
    "/norm/scale": 2.82720084,
    "/positions": 0.328771736,
    "/tokens": 0.684444757,
}


def test_golden_steps_have_not_changed():
    """Numbers of version 0.1: if this fails and the change was meant, every stored run means something else from now on."""
    state = one(trained([GOLDEN], 1), 0)
    got = {"loss_nats": float(state.loss_nats), **norms(state.params)}
    assert got == pytest.approx(PINNED, rel=1e-6)


@pytest.mark.parametrize("how", ["permuted", "sequential"])
def test_every_item_is_seen_once_an_epoch(monkeypatch, how):
    """Also where the batch does not divide the items, and the rows of a pass do not divide the batch.

    Items are their own number, and the objective tells which of them it is shown.
    """
    log = collections.Counter()

    def items(run, key, index):
        return jnp.broadcast_to(index[:, None], (len(index), run.model.seq_len))

    def counting(apply, params, tokens, weights):
        jax.debug.callback(lambda t, w: log.update(t[w > 0].tolist()), tokens[:, 0], weights)
        return 0 * params["tokens"].sum() + weights.sum()

    monkeypatch.setitem(data.GENERATORS, "numbers", type("numbers", (), {"items": staticmethod(items)}))
    monkeypatch.setitem(objectives.OBJECTIVES, "counting", counting)
    program = None
    for n, batch in ((13, 5), (12, 12), (13, 13), (16, 3), (1, 1), (7, 1)):
        run = make_run(n_items=n, batch_size=batch, exposures=6, objective="counting", generator="numbers", order=how)
        p = make_pack([run], rows=4, size=1)
        program, k = program or pack.Program(p.shape, "map"), pack.knobs(p)
        states = program.start(k)
        for epochs, times in ((1, 1), (1, 1), (3, 3), (9, 1), (9, 0)):  # not beyond the exposures
            log.clear()
            states = jax.block_until_ready(program.advance(states, k, epochs))
            jax.effects_barrier()
            assert log == dict.fromkeys(range(n), times) if times else not log, (n, batch)
        assert int(states.segment[0]) == 6
        assert float(states.loss_nats[0]) == pytest.approx(1 / 7)  # the counting loss is 1 a sequence, of 7 scored tokens


def test_permutations_differ_between_epochs_and_seeds():
    orders = {tuple(order(make_run(seed=seed), epoch)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_steps_are_taken_in_chunks_bit_for_bit():
    runs = [make_run(exposures=8, seed=1), make_run(exposures=6, n_items=16, seed=2), make_run(exposures=3, seed=3, batch_size=4)]
    at_once, in_parts = trained(runs, 8), trained(runs, 3, 5)
    jax.tree.map(np.testing.assert_array_equal, at_once, in_parts)
    assert list(at_once.segment[:4]) == [8, 6, 3, 0]
    jax.tree.map(np.testing.assert_array_equal, at_once, trained(runs, 5, 1, 2, 99))  # and not beyond the exposures


def test_room_for_more_items_and_the_way_they_are_drawn_change_nothing(monkeypatch):
    run = make_run(exposures=20)
    expected = one(trained([run]), 0)
    monkeypatch.setattr(train, "MATERIALISE_TOKENS", 0)
    roomy = one(trained([run], slots=128, program=pack.Program(make_pack([run], slots=128).shape, "map")), 0)
    assert float(roomy.loss_nats) == pytest.approx(float(expected.loss_nats), rel=1e-6)
    assert_same(roomy.params, expected.params, rtol=1e-5, atol=1e-6)


def test_the_size_of_a_pass_changes_nothing_but_rounding():
    run = dataclasses.replace(GOLDEN)
    run = longer(run, 20)
    expected = one(trained([run]), 0)
    small = one(trained([run], rows=2), 0)
    assert float(small.loss_nats) == pytest.approx(float(expected.loss_nats), rel=1e-5)
    assert_same(small.params, expected.params, rtol=1e-5, atol=1e-5)


TOTAL = 200


@pytest.mark.parametrize("schedule", ["constant", "trapezoid", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 7, 5000])  # 5000: at most a tenth of the steps is used
@pytest.mark.parametrize(("decay", "final"), [(0.7, 0.0), (1.0, 0.1), (0.0, 0.5)])
def test_schedules_against_their_closed_form(schedule, warmup, decay, final):
    o = OptimizerSpec(peak_lr=0.03, schedule=schedule, warmup_steps=warmup, decay_fraction=decay, final_fraction=final)
    steps = np.arange(TOTAL)
    got = jax.vmap(lambda s: optimizers.rate(schedule, optimizers.knobs(o), s, TOTAL))(steps)
    np.testing.assert_allclose(got, [reference.rate(o, s, TOTAL) for s in steps], rtol=2e-6, atol=1e-9)


def test_schedules_at_their_corners():
    def rates(schedule, **change):
        o = OptimizerSpec(peak_lr=1.0, schedule=schedule, **change)
        return [float(optimizers.rate(schedule, optimizers.knobs(o), s, 100)) for s in range(100)]

    held = rates("trapezoid", warmup_steps=10, decay_fraction=0.7)
    assert held[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert held[9:31] == pytest.approx([1.0] * 22)
    assert held[31] == pytest.approx(69 / 70)
    assert held[-1] == pytest.approx(1 / 70)
    assert rates("constant", warmup_steps=4) == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 97)
    cosine = rates("cosine", final_fraction=0.2)
    assert (cosine[0], cosine[50]) == pytest.approx((1.0, 0.6))
    assert cosine == sorted(cosine, reverse=True)


ORIGINALS = {
    "adam": lambda o: optax.adamw(o.peak_lr, o.b1, o.b2, o.eps, weight_decay=o.weight_decay),
    "sgd": lambda o: optax.chain(optax.trace(o.b1), optax.add_decayed_weights(o.weight_decay), optax.scale(-o.peak_lr)),
    "lion": lambda o: optax.lion(o.peak_lr, o.b1, o.b2, weight_decay=o.weight_decay),
}


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_optimizers_are_optaxs(name):
    """Two steps with traced numbers equal the Optax original with the same numbers as constants."""
    o = OptimizerSpec(name=name, peak_lr=0.02, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.3)
    rng = np.random.default_rng(0)
    params, *grads = ({"a": jnp.asarray(rng.standard_normal((3, 4)), jnp.float32), "b": jnp.asarray(rng.standard_normal(5), jnp.float32)}
                      for _ in range(3))

    @jax.jit
    def ours(k):
        p, t = params, optimizers.direction(name, k)
        state = t.init(p)
        for g in grads:
            u, state = t.update(g, state, p)
            p = jax.tree.map(lambda p, u: p - k["peak_lr"] * u, p, u)
        return p

    p, t = params, ORIGINALS[name](o)
    state = t.init(p)
    for g in grads:
        u, state = t.update(g, state, p)
        p = optax.apply_updates(p, u)
    assert_same(ours(optimizers.knobs(o)), p, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_optimizer_trains_weights_of_every_kind(name, dtype):
    """Traced, not run: the whole program keeps the types of what it carries, and moments are kept in float32."""
    run = make_run(dataclasses.replace(MODEL, param_dtype=dtype), name=name)
    p = make_pack([run])
    program, k = pack.program(p.shape, "map"), pack.knobs(p)
    states = jax.eval_shape(program.start, k)
    assert jax.eval_shape(program.advance, states, k, 1) == states
    assert {x.dtype for x in jax.tree.leaves(states.params)} == {jnp.dtype(dtype)}
    assert {x.dtype for x in jax.tree.leaves(states.optimizer)} <= {jnp.dtype("float32"), jnp.dtype("int32")}


def test_bfloat16_weights_and_products():
    run = make_run(dataclasses.replace(MODEL, param_dtype="bfloat16", compute_dtype="bfloat16"), exposures=40)
    state = one(trained([run]), 0)
    assert {np.asarray(p).dtype for p in jax.tree.leaves(state.params)} == {jnp.dtype("bfloat16")}
    assert float(state.loss_nats) < 0.9 * math.log(MODEL.vocab_size)
    assert not state.diverged
    logits = models.apply(run.model)(state.params, jnp.zeros((1, 3), jnp.int32))
    assert logits.dtype == jnp.float32


def test_a_run_of_no_exposures_stays_as_it_began():
    run = make_run(exposures=0, seed=4)
    state = one(trained([run]), 0)
    assert_same(state.params, models.init(run.model, train.key(4, "init")), rtol=1e-6, atol=0)
    assert math.isnan(state.loss_nats)
    assert (int(state.segment), bool(state.diverged)) == (0, False)
