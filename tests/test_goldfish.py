"""Goldfish losses against Python integers, the formula written out, and training: what is dropped, and what that protects."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MODEL, make_run, one, trained
from hypothesis import given, settings
from hypothesis import strategies as st

from scalemem import data, measure, models, objectives, train
from scalemem.objectives import goldfish, next_token
from scalemem.spec import SpecError

WORD = (1 << 32) - 1


def mix(x):
    x = (x ^ (x >> 16)) * 0x85EBCA6B & WORD
    x = (x ^ (x >> 13)) * 0xC2B2AE35 & WORD
    return x ^ (x >> 16)


def slow(tokens, k, kind, h, salt=0):
    """The rule on Python integers, one target at a time."""
    kept = []
    for row in tokens.tolist():
        number = sum(mix(((t + 1) * 0x9E3779B9 + mix(i + 1)) & WORD) for i, t in enumerate(row)) & WORD
        number, context, mask = mix((number + mix(salt)) & WORD), min(h, len(row) - 1), []
        for i in range(1, len(row)):
            if kind == "static":
                mask.append(i % k > 0)
                continue
            drawn = mix((number + i * 0x9E3779B9) & WORD)
            if kind == "hashed":
                drawn = 0
                for t in row[max(0, i - context) : i]:
                    drawn = mix((drawn + (t + 1) * 0x9E3779B9) & WORD)
            mask.append(i < context or drawn >= 2**32 // k)
        kept.append(mask)
    return np.array(kept)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(goldfish.KINDS), st.integers(2, 128), st.sampled_from([1, 5, 13]), st.sampled_from([2, 9, 24]), st.integers(0, WORD))
def test_the_mask_is_that_of_python_integers(kind, k, h, seq_len, seed):
    tokens = np.random.default_rng(seed).integers(0, 1 << 24, (4, seq_len), dtype=np.int32)
    got = goldfish.keep_mask(jnp.asarray(tokens), k, kind, h, seed)
    assert got.shape == (4, seq_len - 1)
    np.testing.assert_array_equal(got, slow(tokens, k, kind, h, seed))


def within(kept, k, eligible):
    """The dropped share of `eligible` independent decisions is 1/k within 4 standard errors."""
    dropped = 1 - np.asarray(kept)[:, -eligible:].mean()
    n = kept.shape[0] * eligible
    assert abs(dropped - 1 / k) < 4 * math.sqrt((1 - 1 / k) / k / n), dropped


@pytest.mark.parametrize("kind", ["hashed", "random"])
@pytest.mark.parametrize("k", [2, 4, 32])
def test_one_in_k_is_dropped_where_the_context_is_whole(kind, k):
    tokens = jnp.asarray(np.random.default_rng(k).integers(0, 50_000, (500, 64), dtype=np.int32))
    kept = np.asarray(goldfish.keep_mask(tokens, k, kind))
    assert kept[:, : 13 - 1].all()  # targets x_2 .. x_13 have fewer than 13 tokens before them
    within(kept, k, 63 - 12)
    by_place = 1 - kept[:, 12:].mean(0)
    assert by_place.max() - by_place.min() < 10 * math.sqrt((1 - 1 / k) / k / 500)


def test_the_same_context_decides_alike_wherever_it_stands():
    rng = np.random.default_rng(0)
    passage, rows = rng.integers(0, 64, 40), rng.integers(0, 64, (12, 80))
    for i, row in enumerate(rows):
        row[3 * i : 3 * i + 40] = passage
    kept = np.asarray(goldfish.keep_mask(jnp.asarray(rows, jnp.int32), 4, "hashed"))
    same = np.stack([k[3 * i + 12 : 3 * i + 39] for i, k in enumerate(kept)])  # targets with 13 tokens of the passage before them
    assert (same == same[0]).all()
    assert 0 < same[0].mean() < 1
    rows[:, 3 * np.arange(12)[:, None] + 20] += 1
    assert not np.array_equal(goldfish.keep_mask(jnp.asarray(rows, jnp.int32), 4, "hashed"), kept)


def test_the_hash_sees_order_zeros_and_nothing_of_the_target():
    """Where a product of ids is one number for all orders, and 0 for every window with an id of 0."""
    windows = jnp.asarray(list(itertools.permutations(range(6))), jnp.int32)  # 720 windows of six ids, 0 among them
    row = jnp.concatenate([windows, jnp.zeros((720, 1), jnp.int32)], 1)
    kept = goldfish.keep_mask(row, 2, "hashed", 6)
    within(kept, 2, 1)
    np.testing.assert_array_equal(goldfish.keep_mask(row.at[:, -1].set(77), 2, "hashed", 6), kept)
    assert len(set(np.asarray(goldfish._hash(row.astype(jnp.uint32), 6)).ravel().tolist())) == 720
    lengths = goldfish._hash(jnp.zeros((1, 40), jnp.uint32), 5)  # zeros only: one number, and not that of four or six zeros
    assert len({*np.asarray(lengths).ravel().tolist(), int(goldfish._hash(jnp.zeros((1, 40), jnp.uint32), 6)[0, 0])}) == 2


def test_random_draws_anew_with_the_salt():
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 64, (200, 64), dtype=np.int32))
    masks = [np.asarray(goldfish.keep_mask(tokens, 4, "random", salt=s)) for s in range(6)]
    for a, b in itertools.combinations(masks, 2):
        both = ~a[:, 12:] & ~b[:, 12:]
        assert abs(both.mean() - 1 / 16) < 4 * math.sqrt(15 / 256 / both.size)


@pytest.mark.parametrize("kind", goldfish.KINDS)
def test_the_loss_and_its_gradient_are_those_of_the_formula(kind):
    """The mean over the kept targets of each row, times S - 1; against a float64 sum and a loss that is told the mask."""
    model, k = make_run().model, 3
    params, apply = models.init(model, train.key(3, "init")), models.apply(model)
    tokens = data.get("uniform").items(make_run(), train.key(0, "data"), jnp.arange(9))
    weights = jnp.asarray([1, 1, 0, 1, 1, 1, 0, 1, 1], jnp.float32)
    salt = int(goldfish._bits_of(params))
    keep = slow(np.asarray(tokens), k, kind, 13, salt)
    assert not keep.all()
    value, grads = jax.jit(jax.value_and_grad(lambda p: goldfish.objective(kind, k)(apply, p, tokens, weights)))(params)
    logits = np.asarray(apply(params, tokens[:, :-1]), np.float64)
    nats = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, np.asarray(tokens)[:, 1:, None], -1)[..., 0]
    expected = sum(w * 7 * row[g].mean() for w, row, g in zip(weights.tolist(), nats, keep, strict=True))
    assert float(value) == pytest.approx(expected, rel=1e-5)

    def told(params):
        each = next_token.cross_entropy(apply(params, tokens[:, :-1]), tokens[:, 1:])
        return (each * (keep / keep.sum(1, keepdims=True)) * 7 * weights[:, None]).sum()

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), grads, jax.jit(jax.grad(told))(params))


def test_a_dropped_target_has_no_gradient_and_its_input_has():
    """Logits that are the parameters: one row of parameters a place."""
    tokens = jnp.asarray([[3, 1, 4, 1, 5, 9, 2, 6]], jnp.int32)
    slope = jax.grad(goldfish.objective("static", 3), 1)(lambda p, t: p[None], jnp.zeros((7, 10)), tokens, jnp.ones(1))
    np.testing.assert_array_equal(np.abs(slope).sum(1) > 0, [True, True, False, True, True, False, True])
    next_only = lambda p, t: p[t]  # noqa: E731
    seen = jax.grad(lambda e: goldfish.objective("static", 3)(next_only, e, tokens, jnp.ones(1)))(jnp.eye(10))
    np.testing.assert_array_equal(np.flatnonzero(np.abs(seen).sum(1)), [1, 2, 3, 5])  # 4 and 9 are inputs of the dropped targets alone
    before = lambda p, t: jnp.cumsum(p[t], 1)  # noqa: E731
    seen = jax.grad(lambda e: goldfish.objective("static", 3)(before, e, tokens, jnp.ones(1)))(jnp.eye(10))
    np.testing.assert_array_equal(np.flatnonzero(np.abs(seen).sum(1)), [1, 2, 3, 4, 5, 9])  # and later targets read them


def test_rows_that_keep_nothing_add_nothing():
    """Of two tokens the only target may be dropped; the loss is then 0 and not nan."""
    tokens = jnp.asarray([[i, 0] for i in range(64)], jnp.int32)
    keep = np.asarray(goldfish.keep_mask(tokens, 2, "hashed"))[:, 0]
    assert 0 < keep.sum() < 64
    apply = lambda p, t: jnp.zeros((*t.shape, 64)) + p  # noqa: E731
    value, slope = jax.value_and_grad(goldfish.objective("hashed", 2), 1)(apply, jnp.float32(0), tokens, jnp.ones(64))
    assert float(value) == pytest.approx(keep.sum() * math.log(64), rel=1e-6)
    assert math.isfinite(slope)


def test_names():
    for kind, k in itertools.product(goldfish.KINDS, (2, 3, 32, 128)):
        assert objectives.get(f"goldfish_{kind}_{k}") is goldfish.objective(kind, k)
    for name in ("goldfish", "goldfish_static", "goldfish_static_1", "goldfish_static_129", "goldfish_static_04", "goldfish_hash_4",
                 "goldfish_static_4_", "goldfish_hashed_4x", "goldfish_random_1000", "xgoldfish_static_4"):
        with pytest.raises(SpecError, match=f"^stage.objective = '{name}': must be one of next_token, goldfish_static_K") as error:
            objectives.get(name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(("arguments", "says"), [
    ({"k": 1}, "k = 1: must be at least 2; raise it"), ({"k": 4, "h": 0}, "h = 0: must be at least 1; raise it"),
    ({"k": 4, "kind": "hash"}, "kind = 'hash': must be one of static, hashed, random; choose one of these")])
def test_bad_arguments(arguments, says):
    with pytest.raises(ValueError, match=says):
        goldfish.keep_mask(jnp.zeros((1, 8), jnp.int32), **arguments)


def test_what_training_learns():
    """A static mask leaves its targets at chance however long one trains; a mask drawn anew protects nothing."""
    recalled = {}
    for name in ("goldfish_static_3", "goldfish_random_3"):
        run = make_run(n_items=16, exposures=400, objective=name)
        params = one(trained([run], size=1), 0).params
        tokens = data.get("uniform").items(run, train.key(0, "data"), jnp.arange(16))
        right = np.asarray(models.apply(MODEL)(params, tokens[:, :-1]).argmax(-1) == tokens[:, 1:])
        kept = np.asarray(goldfish.keep_mask(tokens, 3, "static"))
        recalled[name] = right[kept].mean(), right[~kept].mean()
        exact = measure.get("capacity")(run, params, train.key(0, "data"), train.key(0, "probe"))["exact_recall_fraction"]
        assert exact == right.all(1).mean()
    assert recalled["goldfish_static_3"][0] > 0.9
    assert recalled["goldfish_static_3"][1] < 0.25  # chance is 1/32; 32 decisions
    assert min(recalled["goldfish_random_3"]) > 0.9
