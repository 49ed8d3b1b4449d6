"""Cross-entropy in parts: the same number and gradient as of all logits at once, from far less memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scalemem import models
from scalemem.objectives import goldfish, next_token
from scalemem.spec import ModelSpec

SPEC = ModelSpec(d_model=8, n_layers=1, n_heads=2, vocab_size=40, seq_len=12)
TOKENS = jax.random.randint(jax.random.key(1), (5, 12), 0, 40)
WEIGHTS = jnp.array([1.0, 0.0, 1.0, 1.0, 1.0])


def graded(spec, monkeypatch, most, part, loss=next_token.loss, remat=False):
    """(nats, gradient) with so many logits at once, or so many a part."""
    monkeypatch.setattr(next_token, "MOST_LOGITS", most)
    monkeypatch.setattr(next_token, "A_PART", part)
    apply, params = models.apply(spec, remat=remat), models.init(spec, jax.random.key(0))
    return jax.jit(jax.value_and_grad(lambda p: loss(apply, p, TOKENS, WEIGHTS)))(params)


@pytest.mark.parametrize(("change", "loss", "remat"), [
    ({}, next_token.loss, False), ({"tied": False}, next_token.loss, True), ({}, goldfish.objective("static", 3), False)])
def test_parts_give_the_same(change, loss, remat, monkeypatch):
    """55 positions in parts of 7, of which the last is padded, against all at once."""
    spec = dataclasses.replace(SPEC, **change)
    whole, whole_grad = graded(spec, monkeypatch, 1 << 20, 1, loss)
    parts, parts_grad = graded(spec, monkeypatch, 55 * 40 - 1, 7 * 40, loss, remat)
    assert parts == pytest.approx(float(whole), rel=1e-6)
    for a, b in zip(jax.tree.leaves(whole_grad), jax.tree.leaves(parts_grad), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(whole_grad)) > 1  # so the bound says something


def test_parts_hold_few_logits():
    """2^27 logits are 512 MiB, and as many gradients: the compiled program has room for less than a fifth of that."""
    spec = dataclasses.replace(SPEC, vocab_size=1 << 16, seq_len=129)
    params = jax.eval_shape(lambda: models.init(spec, jax.random.key(0)))
    tokens, weights = jax.ShapeDtypeStruct((16, 129), jnp.int32), jax.ShapeDtypeStruct((16,), jnp.float32)
    graded_ = jax.jit(jax.grad(lambda p, t, w: next_token.loss(models.apply(spec), p, t, w)))
    used = graded_.lower(params, tokens, weights).compile().memory_analysis()
    assert used is not None
    assert used.temp_size_in_bytes < 200 << 20


def test_an_architecture_without_halves_is_taken_whole(monkeypatch):
    spec = dataclasses.replace(SPEC, arch="mlp")
    assert models.apply(spec).features is None
    assert graded(spec, monkeypatch, 1, 1)[0] == graded(spec, monkeypatch, 1 << 20, 1)[0]
