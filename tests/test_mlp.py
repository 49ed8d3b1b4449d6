"""The perceptron and the losses of labels, against NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import MODEL, make_run

from scalemem import accounting, data, generate, models, objectives, train
from scalemem.spec import ModelSpec, SpecError

KEY = train.key(0, "data")
init = jax.jit(models.init, static_argnums=0)  # one program, and not one for each shape of an array
SPEC = ModelSpec(d_model=6, n_layers=3, n_heads=1, vocab_size=9, seq_len=5, arch="mlp", init_std=0.5)


def expected(params, tokens):
    """Logits after the last token, in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    rows = p["places"].reshape(5, 9, 6)
    x = p["bias"] + sum(rows[t, tokens[:, t]] for t in range(tokens.shape[1]))
    for layer in (p["hidden"][0], p["hidden"][1]):
        x = np.maximum(x, 0) @ layer["w"] + layer["b"]
    return np.maximum(x, 0) @ p["head"]["w"] + p["head"]["b"]


def test_forward_is_that_of_numpy_at_the_last_place_and_0_before():
    params = init(SPEC, train.key(0, "init"))
    params = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.1) * np.linspace(0, 1, x.size, dtype=np.float32).reshape(x.shape), params)
    tokens = np.random.default_rng(0).integers(0, 9, (7, 5))
    for length in (5, 4):
        logits = np.asarray(jax.jit(models.apply(SPEC))(params, jnp.asarray(tokens[:, :length])))
        assert logits.shape == (7, length, 9)
        np.testing.assert_allclose(logits[:, -1], expected(params, tokens[:, :length]), rtol=1e-5, atol=1e-5)
        assert not logits[:, :-1].any()


@pytest.mark.parametrize(("layers", "by_hand"), [(0, 5 * 9 * 6 + 6 + 6 * 9 + 9), (1, 5 * 9 * 6 + 6 + 6 * 9 + 9), (3, 5 * 9 * 6 + 6 + 2 * 42 + 63)])
def test_parameters_are_counted(layers, by_hand):
    spec = dataclasses.replace(SPEC, n_layers=layers)
    assert accounting.n_params(spec) == by_hand == sum(x.size for x in jax.tree.leaves(init(spec, KEY)))


def test_an_item_costs_one_position_and_has_one_scored_token():
    run = make_run(SPEC, n_items=10, exposures=3, generator="prototypes", objective="label", data={"classes": 4})
    assert accounting.scored_tokens(SPEC, run.stages[0]) == 30
    assert accounting.train_flops(run) == 30 * 6 * (4 * 6 + 2 * 36 + 9 * 6)


def test_without_hidden_layers_it_is_linear():
    spec = dataclasses.replace(SPEC, n_layers=0)
    params = init(spec, train.key(0, "init"))
    one, two = (jnp.array([row]) for row in ([1, 2, 3, 4], [5, 6, 7, 8]))
    mixed = [jnp.array([row]) for row in ([1, 2, 7, 8], [5, 6, 3, 4])]
    apply = jax.jit(models.apply(spec))
    f = lambda tokens: np.asarray(apply(params, tokens))[0, -1]  # noqa: E731
    np.testing.assert_allclose(f(one) + f(two), f(mixed[0]) + f(mixed[1]), atol=1e-5)


def test_it_does_not_write():
    with pytest.raises(SpecError, match="token after token") as error:
        generate.generate(SPEC, init(SPEC, KEY), np.array([[1, 2]]), 2)
    assert len(str(error.value).splitlines()) == 1


def test_losses_of_labels_are_cross_entropies_of_the_last_token():
    rng = np.random.default_rng(0)
    logits, tokens = rng.normal(size=(4, 9)).astype(np.float32), rng.integers(0, 9, (4, 5))
    tokens[:, -1] = [8, 7, 5, 4]  # classes 0, 1, 3 and 4
    weights = jnp.array([1.0, 1, 0, 2])

    def apply(params, given):
        return jnp.pad(params[:, None], ((0, 0), (given.shape[1] - 1, 0), (0, 0)), constant_values=7.0)

    def by_hand(rows, allowed):
        nats = [np.log(np.exp(logits[b, allowed[b]]).sum()) - logits[b, tokens[b, -1]] for b in rows]
        return 4 * (nats[0] + nats[1] + 2 * nats[2])

    everything, pairs, halves = [range(9)] * 4, [[8, 7], [8, 7], [6, 5], [4, 3]], [[8, 7, 6], [8, 7, 6], [5, 4, 3], [5, 4, 3]]
    for name, allowed in (("label", everything), ("label_in_task_2", pairs), ("label_in_task_3", halves)):
        loss = jax.jit(jax.value_and_grad(lambda p: objectives.get(name)(apply, p, jnp.asarray(tokens), weights)))  # noqa: B023
        value, grads = loss(jnp.asarray(logits))
        assert float(value) == pytest.approx(by_hand((0, 1, 3), [list(a) for a in allowed]), rel=1e-5)
        assert np.isfinite(grads).all()
        grads = np.asarray(grads)
        assert (grads[0][[t for t in range(9) if t not in allowed[0]]] == 0).all()
        assert not grads[2].any()
    for wrong in ("label_in_task", "label_in_task_0", "label_in_task_4097"):
        with pytest.raises(SpecError, match="label_in_task_K"):
            objectives.get(wrong)


def test_it_learns_prototypes():
    spec = dataclasses.replace(MODEL, arch="mlp", d_model=16, vocab_size=16, seq_len=9)
    run = make_run(spec, generator="prototypes", objective="label", data={"classes": 4, "per_class": 40})
    generator, loss, apply = data.get("prototypes"), objectives.get("label"), models.apply(spec)
    index = jnp.concatenate([jnp.arange(160), (1 << 20) + jnp.arange(136)])
    tokens = jax.jit(lambda: generator.items(run, KEY, index))()
    optimizer = optax.adam(0.02)

    @jax.jit
    def learn(params):
        def step(_, carry):
            params, state = carry
            grads = jax.grad(lambda p: loss(apply, p, tokens[:160], jnp.ones(160)) / (160 * 8))(params)
            update, state = optimizer.update(grads, state)
            return optax.apply_updates(params, update), state

        return jax.lax.fori_loop(0, 60, step, (params, optimizer.init(params)))[0]

    params = learn(init(spec, train.key(0, "init")))
    said = np.asarray(jax.jit(apply)(params, tokens[160:, :-1]))[:, -1].argmax(-1)
    right = said == np.asarray(tokens)[160:, -1]
    assert right.mean() > 0.95  # a token of eight is another with probability 0.18: nothing is left to chance
