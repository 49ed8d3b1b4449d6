"""Which attention a model is trained with: cuDNN's where a trial gives the plain one's gradients. No GPU is here: XLA stands in for it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MODEL, make_run

from scalemem import models
from scalemem.models import attention
from scalemem.store import Store

HALF = dataclasses.replace(MODEL, compute_dtype="bfloat16")


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Gives a function that sets what is tried in cuDNN's place; counts its calls."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    attention._works.cache_clear()
    calls = []

    def stand_in(f):
        def counted(q, k, v):
            calls.append(q.dtype)
            return f(q, k, v)

        monkeypatch.setattr(attention, "_fused", counted)
        return calls

    yield stand_in
    attention._works.cache_clear()


def library(q, k, v, causal=True):
    """What jax.nn says attention is, of queries that are scaled already."""
    return jax.nn.dot_product_attention(q, k, v, scale=1.0, is_causal=causal, implementation="xla")


def gradient(model):
    params, tokens = models.init(model, jax.random.key(0)), jnp.arange(14).reshape(2, 7) % model.vocab_size
    return jax.jit(jax.grad(lambda p: (models.apply(model)(p, tokens) ** 2).mean()))(params)


def test_where_there_is_no_gpu_it_is_plain():
    assert [attention.kind(m) for m in (MODEL, HALF, dataclasses.replace(HALF, arch="mlp"))] == ["plain"] * 3


def test_the_plain_one_is_that_of_the_library():
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 9, 2, 8)).astype(np.float32)
    np.testing.assert_allclose(attention.causal(q, k, v), library(q, k, v), rtol=1e-5, atol=1e-6)


def test_what_works_is_used_in_half_precision_alone(on_a_gpu):
    plain = gradient(HALF)  # nothing is tried yet: on this machine cuDNN's raises
    assert attention.kind(HALF) == "plain"
    attention._works.cache_clear()
    calls = on_a_gpu(library)
    assert [attention.kind(m) for m in (HALF, MODEL, dataclasses.replace(HALF, arch="mlp"))] == ["cudnn", "plain", "plain"]
    tried = len(calls)
    fused = gradient(HALF)
    assert len(calls) > tried
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.02 * scale), fused, plain)
    before = len(calls)
    gradient(MODEL)
    assert len(calls) == before


def test_it_is_tried_while_a_model_is_traced(on_a_gpu):
    """The trial computes then and there, and leaves nothing in the program."""
    calls = on_a_gpu(library)
    jax.make_jaxpr(lambda p: models.apply(HALF)(p, jnp.zeros((1, 7), jnp.int32)))(models.init(HALF, jax.random.key(0)))
    assert len(calls) == 2  # the trial, and the model's one block


@pytest.mark.parametrize("wrong", [functools.partial(library, causal=False), lambda q, k, v: 1 / 0, lambda q, k, v: v * jnp.nan],
                         ids=["of the future", "raises", "not finite"])
def test_what_does_not_work_is_not_used(on_a_gpu, wrong):
    on_a_gpu(wrong)
    assert attention.kind(HALF) == "plain"


def test_the_provenance_says_which(store: Store):
    from scalemem import execute
    from scalemem.spec import run_id

    run = make_run(exposures=2)
    execute.work(execute.plan([run])[0], store)
    assert store.provenance()[run_id(run)]["attention"] == "plain"
