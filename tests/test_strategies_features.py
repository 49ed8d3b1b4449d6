"""Strategies that look inside a model: its two parts, and distances and copies of what it has in the middle."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MODEL, make_run
from strategy_contexts import make_context

from scalemem import models, objectives, strategies
from scalemem.models import parts
from scalemem.spec import SpecError
from scalemem.strategies import feature_distillation, remind

DEEP = dataclasses.replace(MODEL, n_layers=2)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, MODEL.vocab_size, (3, MODEL.seq_len)))


def fast(f):
    """A function compiled in a hurry, once: compiling is most of what these tests do."""
    made = []

    def call(*args):
        if not made:
            made.append(jax.jit(f).lower(*args).compile({"xla_backend_optimization_level": "0"}))
        return made[0](*args)

    return call


def context_of(model, name, **strategy):
    """A context of a stage of a real model, and its weights."""
    ctx = make_context(name, TOKENS, strategy=strategy)
    run = dataclasses.replace(make_run(model, n_items=3, batch_size=2), stages=ctx.run.stages)
    return ctx._replace(run=run, apply=models.apply(model)), models.init(model, jax.random.key(1))


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
def test_two_parts_are_the_model(arch):
    """At every layer; and the lower one reads its own parameters and no other."""
    model = dataclasses.replace(DEEP, arch=arch, tied=False)
    params, fed = models.init(model, jax.random.key(0)), TOKENS[:, :-1]

    @fast
    def both(p):
        whole = [parts.upper(model, i)(p, parts.lower(model, i)(p, fed)) for i in range(3)]
        return whole, models.apply(model)(p, fed), jax.grad(lambda p: (parts.lower(model, 1)(p, fed) ** 3).sum())(p)

    layers, whole, slopes = both(params)
    for logits in layers:
        np.testing.assert_allclose(logits, whole, rtol=1e-4, atol=1e-5)
    for path, g in jax.tree_util.tree_leaves_with_path(slopes):
        name = "/".join(str(k.key) for k in path)
        assert np.any(np.abs(g) > 1e-12) == parts.is_lower(name, 1), name


def test_feature_distillation_is_the_relative_distance():
    """Against a slow sum in NumPy, of the last layer and of all; 0, with no slope, at the old model."""
    ctx, old = context_of(DEEP, "feature_distillation", strength=3.0, kind="all")
    last = context_of(DEEP, "feature_distillation", strength=3.0)[0]
    new = jax.tree.map(lambda p: p + 0.1, old)
    rows = jnp.array([1.0, 0.0, 1.0])

    @fast
    def both(w):
        loss, slope = jax.value_and_grad(lambda w: feature_distillation.batch_loss(ctx, w, old, TOKENS, rows))(w)
        features = [[parts.lower(DEEP, layer)(p, TOKENS[:, :-1]) for p in (w, old)] for layer in (1, 2)]
        return loss, slope, feature_distillation.batch_loss(last, w, old, TOKENS, rows), features

    still, slope, _, _ = both(old)
    assert still < 1e-10
    assert max(np.abs(g).max() for g in jax.tree.leaves(slope)) < 1e-4
    every, _, top, features = both(new)
    far = []
    for h, then in np.asarray(features, np.float64):
        far.append(sum(((h[b, t] - then[b, t]) ** 2).sum() / (then[b, t] ** 2).sum() for b in (0, 2) for t in range(MODEL.seq_len - 1)))
    np.testing.assert_allclose([every, top], [3 / 2 * np.mean(far), 3 / 2 * far[1]], rtol=1e-4)


def slow_fit(x, entries, key):
    """k-means as it is said: assign, then average, sixteen times."""
    centres = np.asarray(x, np.float64)[np.asarray(jax.random.permutation(key, len(x)))[:entries]]
    for _ in range(16):
        of = [int(np.argmin([((row - c) ** 2).sum() for c in centres])) for row in x]
        centres = np.array([np.mean([x[i] for i in range(len(x)) if of[i] == j], 0) if j in of else centres[j] for j in range(entries)])
    return centres


def test_codes_and_codebooks_are_those_of_numpy():
    x, key = np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32), jax.random.key(3)
    books = np.stack([remind.fit(jnp.asarray(x)[:, :2], 3, key), remind.fit(jnp.asarray(x)[:, 2:], 3, key)])
    np.testing.assert_allclose(books, [slow_fit(x[:, :2], 3, key), slow_fit(x[:, 2:], 3, key)], atol=1e-5)
    codes = np.asarray(remind.encode(jnp.asarray(x), jnp.asarray(books)))
    assert codes.dtype == np.uint8
    for row, code in zip(x, codes, strict=True):
        for part in range(2):
            assert code[part] == np.argmin(((books[part] - row[2 * part : 2 * part + 2]) ** 2).sum(-1))
    decoded = remind.decode(jnp.asarray(codes), jnp.asarray(books))
    np.testing.assert_array_equal(decoded[7], np.concatenate([books[0, codes[7, 0]], books[1, codes[7, 1]]]))


def test_replayed_features_are_replayed_items():
    """Three items have few enough features: codes are exact, and their loss is that of the items; with floats always."""
    for kind, strategy in (("pq", {"codebooks": 2, "entries": 21}), ("float", {})):
        ctx, w = context_of(DEEP, "remind", kind=kind, strength=2.0, **strategy)
        rows = jnp.array([1.0, 1.0, 0.0])

        @fast
        def both(w, ctx=ctx, rows=rows):
            memory = remind.begin(ctx, w, None)
            drawn = TOKENS[remind.drawn(ctx, w, TOKENS, 3)]
            return remind.batch_loss(ctx, w, memory, TOKENS, rows), 2 * objectives.get("next_token")(models.apply(DEEP), w, drawn, rows), memory

        found, expected, memory = both(w)
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        assert ("codes" in memory) == (kind == "pq")


def test_lower_layers_stay_to_the_bit_and_draws_change_with_the_weights():
    ctx, w = context_of(DEEP, "remind")
    new = jax.tree.map(lambda p: p + 1, w)
    kept = remind.after(ctx, w, new, (), None, 0)[0]
    for path, leaf in jax.tree_util.tree_leaves_with_path(kept):
        name = "/".join(str(k.key) for k in path)
        before = w
        for k in path:
            before = before[k.key]
        assert np.array_equal(leaf, before) == (name.startswith(("tokens", "positions", "blocks/0/"))), name
    many = jnp.asarray(np.random.default_rng(2).integers(0, 32, (400, 8)))
    drawn = remind.drawn(ctx, w, many, 10)
    assert not np.array_equal(drawn, remind.drawn(ctx, new, many, 10))
    np.testing.assert_array_equal(drawn[7:20], remind.drawn(ctx, w, many[7:20], 10))  # whatever else is in the pass
    assert abs(np.bincount(drawn, minlength=10) - 40).max() < 24  # 4 standard deviations of an even choice


def test_bits_of_codes_by_hand():
    """3 items of 7 places: 4 codes of 4 bits each, 7 targets of 5 bits; 16 entries of 8 floats. As floats 7 x 8 x 32 an item."""
    ctx, _ = context_of(DEEP, "remind", items=3)
    assert remind.stored_bits(ctx.run) == 3 * (7 * 4 * 4 + 7 * 5) + 32 * 16 * 8
    ctx, _ = context_of(DEEP, "remind", items=3, kind="float")
    assert remind.stored_bits(ctx.run) == 3 * (7 * 8 * 32 + 7 * 5)
    position = lambda layers: 6 * (layers * 12 * 64 + 32 * 8) + 12 * layers * 7 * 8  # noqa: E731
    run = ctx.run
    exposures = run.stages[0].exposures
    assert strategies.costs(run).flops_ratio == pytest.approx(position(1) / position(2) + 1 / 3 / exposures)


@pytest.mark.parametrize(("change", "said"), [
    ({"codebooks": 3}, "codebooks = 3: must divide model.d_model = 8"),
    ({"entries": 16, "items": 8}, "entries = 16: must be at most the 8 old items"),
])
def test_features_that_cannot_be_cut_are_one_line(change, said):
    with pytest.raises(SpecError, match=said):
        strategies.check(context_of(DEEP, "remind", **change)[0].run)
