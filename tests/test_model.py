"""The model against an independent implementation, and what its parameters are before training."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_gpt as reference
from test_accounting import PUBLISHED

from scalemem import accounting, models, objectives, train
from scalemem.models.layers import matmul
from scalemem.spec import ModelSpec

SMALL = ModelSpec(d_model=12, n_layers=1, n_heads=2, vocab_size=19, seq_len=6)
SWITCHES = {
    "gpt2": {}, "deep": {"n_layers": 2}, "no_blocks": {"n_layers": 0}, "rmsnorm": {"norm": "rmsnorm"},
    "rotary": {"position": "rotary"}, "swiglu": {"mlp": "swiglu"}, "untied": {"tied": False},
    "all": {"n_layers": 2, "norm": "rmsnorm", "position": "rotary", "mlp": "swiglu", "tied": False},
}


def perturbed(spec, seed=1):
    """Parameters with nothing at a special value: biases are not 0, scales are not 1, attention is not flat."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32),
                        models.init(spec, train.key(0, "init")))


def batch(spec, rows=5, seed=2):
    return np.random.default_rng(seed).integers(0, spec.vocab_size, (rows, spec.seq_len))


@pytest.mark.parametrize("name", SWITCHES)
def test_loss_and_gradients_are_those_of_the_numpy_reference(name):
    spec = dataclasses.replace(SMALL, **SWITCHES[name])
    params, tokens, weights = perturbed(spec), batch(spec), np.array([1.0, 1, 0, 1, 1])
    objective, apply, w = objectives.get("next_token"), models.apply(spec), jnp.asarray(weights, jnp.float32)
    value, grads = jax.jit(jax.value_and_grad(lambda p: objective(apply, p, tokens, w)))(params)
    expected, expected_grads = reference.loss_and_grads(spec, params, tokens, weights)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    got, wanted = reference.leaves(grads), reference.leaves(expected_grads)
    assert got.keys() == wanted.keys()
    largest = max(np.abs(g).max() for g in wanted.values())
    for path, g in wanted.items():
        np.testing.assert_allclose(got[path], g, rtol=1e-5, atol=1e-5 * max(np.abs(g).max(), 1e-2 * largest), err_msg=path)


@pytest.mark.parametrize("name", ["gpt2", "all"])
def test_the_reference_gradient_is_the_slope_of_the_reference_loss(name):
    spec = dataclasses.replace(SMALL, **SWITCHES[name])
    params, tokens = reference.float64(perturbed(spec)), batch(spec)
    _, grads = reference.loss_and_grads(spec, params, tokens)
    rng = np.random.default_rng(3)
    way = reference.tree_map(lambda x: rng.standard_normal(x.shape), params)
    ahead, behind = (reference.loss_and_grads(spec, reference.tree_map(lambda x, w, s=s: x + s * w, params, way), tokens)[0]
                     for s in (1e-6, -1e-6))
    direction = reference.leaves(way)
    slope = sum((g * direction[path]).sum() for path, g in reference.leaves(grads).items())
    assert (ahead - behind) / 2e-6 == pytest.approx(slope, rel=1e-7)


def test_loss_and_gradients_are_those_of_pytorch():
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    params, tokens = perturbed(SMALL), batch(SMALL)
    value, grads = jax.value_and_grad(lambda p: objectives.get("next_token")(models.apply(SMALL), p, tokens, jnp.ones(5)))(params)
    p = {k: torch.tensor(np.array(v), dtype=torch.float64, requires_grad=True) for k, v in reference.leaves(params).items()}
    t = torch.tensor(tokens)
    d = SMALL.d_model

    def norm(name, x):
        return F.layer_norm(x, (d,), p[f"{name}/scale"], p[f"{name}/bias"])

    def linear(name, x):
        return F.linear(x, p[f"{name}/w"].T, p[f"{name}/b"])

    x = p["/tokens"][t[:, :-1]] + p["/positions"][: t.shape[1] - 1]
    qkv = linear("/blocks/0/attention/qkv", norm("/blocks/0/norm_1", x))
    q, k, v = (a.unflatten(-1, (2, d // 2)).transpose(1, 2) for a in qkv.split(d, -1))
    x = x + linear("/blocks/0/attention/out", F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
    x = x + linear("/blocks/0/mlp/down", F.gelu(linear("/blocks/0/mlp/up", norm("/blocks/0/norm_2", x)), approximate="tanh"))
    loss = F.cross_entropy((norm("/norm", x) @ p["/tokens"].T).flatten(0, 1), t[:, 1:].flatten(), reduction="sum")
    loss.backward()
    assert float(value) == pytest.approx(loss.item(), rel=1e-5)
    for path, g in reference.leaves(grads).items():
        np.testing.assert_allclose(g, p[path].grad.numpy(), rtol=1e-5, atol=2e-5 * max(1.0, np.abs(g).max()), err_msg=path)


def test_a_later_token_changes_no_earlier_logit():
    for change in ({}, {"position": "rotary", "norm": "rmsnorm"}):
        spec = dataclasses.replace(SMALL, n_layers=2, **change)
        apply, params, tokens = jax.jit(models.apply(spec)), perturbed(spec), batch(spec)
        before = np.asarray(apply(params, tokens))
        for t in range(1, spec.seq_len):
            other = tokens.copy()
            other[:, t] = (other[:, t] + 1) % spec.vocab_size
            after = np.asarray(apply(params, other))
            np.testing.assert_array_equal(after[:, :t], before[:, :t])
            assert np.abs(after[:, t:] - before[:, t:]).min(axis=-1).max() > 0


def test_rotary_attention_sees_distances_only():
    spec = dataclasses.replace(SMALL, position="rotary", seq_len=12)
    apply, params = models.apply(spec), perturbed(spec)
    same = jnp.full((1, 8), 3)  # constant tokens: without positions every place is alike
    logits = np.asarray(apply(params, same))
    np.testing.assert_allclose(logits, np.broadcast_to(logits[:, :1], logits.shape), rtol=0, atol=2e-6 * np.abs(logits).max())


def test_the_custom_gradient_of_a_product_is_autodiffs():
    rng = np.random.default_rng(4)
    for n, i, o in ((7, 3, 11), (7, 11, 3), (1, 5, 5)):
        x, w, weight = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((n, i), (i, o), (n, o)))
        ours = jax.grad(lambda x, w, weight=weight: (jnp.sin(matmul(x, w)) * weight).sum(), (0, 1))(x, w)
        plain = jax.grad(lambda x, w, weight=weight: (jnp.sin(x @ w) * weight).sum(), (0, 1))(x, w)
        assert ours[1].shape == (i, o)
        for a, b in zip(ours, plain, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)


def test_the_custom_gradient_of_cross_entropy_is_autodiffs():
    rng = np.random.default_rng(5)
    logits = jnp.asarray(20 * rng.standard_normal((3, 4, 9)), jnp.float32)
    targets, weight = jnp.asarray(rng.integers(0, 9, (3, 4))), jnp.asarray(rng.standard_normal((3, 4)), jnp.float32)

    def plain(x):
        return -jnp.take_along_axis(jax.nn.log_softmax(x), targets[..., None], -1)[..., 0]

    from scalemem.objectives.next_token import cross_entropy

    np.testing.assert_allclose(cross_entropy(logits, targets), plain(logits), rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(jax.grad(lambda x: (cross_entropy(x, targets) * weight).sum())(logits),
                               jax.grad(lambda x: (plain(x) * weight).sum())(logits), rtol=2e-6, atol=2e-6)


def count(spec):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(models.shape(spec)))


@pytest.mark.parametrize("cell", PUBLISHED)
def test_the_tree_has_the_published_number_of_parameters(cell):
    layers, d = cell
    spec = ModelSpec(d_model=d, n_layers=layers, n_heads=4, vocab_size=2048, seq_len=64)
    assert count(spec) == accounting.n_params(spec) == PUBLISHED[cell]


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("position", ["learned", "rotary"])
@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_tree_has_as_many_parameters_as_are_counted(norm, position, mlp, tied):
    for n_layers, d in ((0, 24), (2, 40)):
        spec = ModelSpec(d_model=d, n_layers=n_layers, n_heads=2, vocab_size=37, seq_len=9, norm=norm, position=position, mlp=mlp,
                         tied=tied)
        assert count(spec) == accounting.n_params(spec)


def test_initial_values():
    """Normal with std .02, residual projections smaller by sqrt(2 L), biases 0, scales 1; each array's mean and std within 5 errors."""
    spec = ModelSpec(d_model=48, n_layers=3, n_heads=4, vocab_size=200, seq_len=32, tied=False)
    for path, x in reference.leaves(models.init(spec, train.key(0, "init"))).items():
        if path.endswith(("/b", "/bias")):
            assert not x.any(), path
        elif path.endswith("/scale"):
            assert (x == 1).all(), path
        else:
            std = 0.02 / math.sqrt(6) if path.endswith(("out/w", "down/w")) else 0.02
            assert abs(x.std() / std - 1) < 5 / math.sqrt(2 * x.size), path
            assert abs(x.mean()) < 5 * std / math.sqrt(x.size), path
    for name, dtype in (("float32", jnp.float32), ("bfloat16", jnp.bfloat16)):
        made = models.init(dataclasses.replace(SMALL, param_dtype=name), train.key(0, "init"))
        assert {x.dtype for x in jax.tree.leaves(made)} == {jnp.dtype(dtype)}


def test_an_arrays_initial_values_do_not_depend_on_the_others():
    """Arrays of one path are the same whatever else the model has; with other depth residual projections only change their scale."""
    key = train.key(0, "init")
    small = reference.leaves(models.init(SMALL, key))
    for change in ({"n_layers": 3}, {"tied": False}, {"position": "rotary"}, {"mlp": "swiglu"}, {"norm": "rmsnorm"}):
        spec = dataclasses.replace(SMALL, **change)
        other = reference.leaves(models.init(spec, key))
        shared = [path for path in small if path in other and small[path].shape == other[path].shape]
        assert len(shared) >= 10
        for path in shared:
            scale = math.sqrt(spec.n_layers) if path.endswith(("out/w", "down/w")) else 1
            np.testing.assert_allclose(other[path] * scale, small[path], rtol=0 if scale == 1 else 1e-6, err_msg=path)
    arrays = [x.ravel()[:8] for path, x in small.items() if path.endswith("w")] + [small["/tokens"].ravel()[:8]]
    assert len({tuple(np.sign(a)) + tuple(np.round(a / np.abs(a).max(), 5)) for a in arrays}) == len(arrays)
    other_seed = models.init(SMALL, train.key(1, "init"))
    assert not np.array_equal(np.asarray(other_seed["tokens"]), small["/tokens"])


def test_keys_of_different_purposes_and_seeds_differ():
    names = ("init", "data", "order", "probe")
    keys = {tuple(np.asarray(jax.random.key_data(train.key(seed, name)))) for seed in range(3) for name in names}
    assert len(keys) == 12
