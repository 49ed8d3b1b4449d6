"""Strategies that look inside a model: its two parts, and distances and copies of what it has in the middle."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MODEL, make_run
from strategy_contexts import make_context

from scalemem import models
from scalemem.models import parts
from scalemem.strategies import feature_distillation

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
