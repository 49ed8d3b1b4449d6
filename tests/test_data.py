"""Generators: an item is a function of (key, i) alone, uniform tokens are uniform, and their entropy is what it is said to be."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MODEL, make_run
from scipy import stats

from scalemem import data, train
from scalemem.data import uniform

KEY = train.key(5, "data")


def draw(run, index, key=KEY):
    return np.asarray(uniform.items(run, key, jnp.asarray(index, jnp.int32)))


def test_an_item_depends_on_its_number_and_the_key_alone():
    run = make_run()
    all_ = draw(run, np.arange(40))
    np.testing.assert_array_equal(draw(run, np.arange(40)[::-1]), all_[::-1])
    np.testing.assert_array_equal(draw(run, [7, 7, 3]), all_[[7, 7, 3]])
    np.testing.assert_array_equal(draw(run, [39]), all_[39:])
    np.testing.assert_array_equal(jax.jit(lambda i: uniform.items(run, KEY, i))(jnp.arange(40)), all_)
    larger = make_run(n_items=39, seed=9, exposures=1, batch_size=39, model=dataclasses.replace(MODEL, d_model=16, n_layers=3))
    np.testing.assert_array_equal(draw(larger, np.arange(40)), all_)  # neither the model's size nor the number of items matters
    assert not np.array_equal(draw(run, np.arange(40), train.key(6, "data")), all_)
    assert not np.array_equal(draw(run, np.arange(40), train.key(5, "probe")), all_)


def test_items_far_out_are_items_too():
    run = make_run()
    top = (1 << 31) - 1
    far = draw(run, [top - 1, top])
    assert not np.array_equal(far[0], far[1])
    assert ((far >= 0) & (far < MODEL.vocab_size)).all()


@pytest.mark.parametrize("vocab", [2, 32, 100])  # 100: not a power of two, where a careless modulus shows
def test_tokens_are_uniform_and_independent(vocab):
    """Chi-square of single tokens, of every position and of neighbours, with a fixed key: no p-value is below 1e-4."""
    run = make_run(dataclasses.replace(MODEL, vocab_size=vocab))
    tokens = draw(run, np.arange(6000))
    assert tokens.shape == (6000, 8)
    assert tokens.dtype == np.int32
    assert (tokens.min(), tokens.max()) == (0, vocab - 1)
    counts = [np.bincount(tokens.ravel(), minlength=vocab), *(np.bincount(tokens[:, t], minlength=vocab) for t in range(8)),
              np.bincount((tokens[:, 0] * vocab + tokens[:, 1]), minlength=vocab**2) if vocab <= 32 else [1, 1],
              np.bincount((tokens[:-1, 0] % 2 * 2 + tokens[1:, 0] % 2), minlength=4)]
    assert min(stats.chisquare(c).pvalue for c in counts) > 1e-4


def test_no_item_is_drawn_twice():
    run = make_run()
    tokens = draw(run, np.arange(6000))
    assert len(np.unique(tokens, axis=0)) == 6000  # 32^8 possible: a repeat has a chance of 2e-5


def test_entropy_of_uniform_tokens():
    assert data.get("uniform").entropy_bits(make_run()) == 7 * 5
    assert uniform.entropy_bits(make_run(dataclasses.replace(MODEL, vocab_size=100))) == pytest.approx(7 * math.log2(100), rel=1e-15)
