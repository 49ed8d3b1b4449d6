"""Items drawn by kept programs are those of the data set, whatever the run's size, number of items and seed; one program serves them all."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import make_run

from scalemem import data, train
from scalemem.measure import drawing
from scalemem.spec import CanarySpec, ModelSpec, RunSpec

INDEX = np.array([3, 0, 9, 1 << 29, 5])


def planted(generator, d=8, n_items=40, seed=0, **canary):
    model = ModelSpec(d_model=d, n_layers=1, n_heads=2, vocab_size=16, seq_len=8)
    run = make_run(model, n_items=n_items, generator=generator, seed=seed)
    source = dataclasses.replace(run.stages[0].data, canaries=CanarySpec(**{"per_group": 2, "groups": 2, **canary}) if canary else None)
    return RunSpec(model=model, stages=(dataclasses.replace(run.stages[0], data=source),), probes=run.probes, seed=seed)


@pytest.mark.parametrize("generator", ["uniform", "markov"])
def test_items_and_their_likelihood_are_the_generators(generator):
    run, key = planted(generator), train.key(0, "data")
    tokens = drawing.items(run, key, INDEX)
    np.testing.assert_array_equal(tokens, data.get(generator).items(run, key, jnp.asarray(INDEX)))
    found = drawing.nats(run, tokens)
    assert (found is None) == (not hasattr(data.get(generator), "nats"))
    if found is not None:
        np.testing.assert_allclose(found, data.get(generator).nats(run, tokens), rtol=1e-6)


@pytest.mark.parametrize("canary", [{"kind": "random", "include": 0.5}, {"kind": "passphrase", "without": "1-2"}])
def test_a_training_set_has_its_canaries(canary):
    for run in (planted("markov", **canary), planted("markov", d=16, n_items=50, seed=5, **canary)):
        key = train.key(run.seed, "data")
        np.testing.assert_array_equal(drawing.trained(run, key, np.arange(11)), data.items(run, key, jnp.arange(11)))
        np.testing.assert_array_equal(drawing.items(run, key, np.arange(11)), data.get("markov").items(run, key, jnp.arange(11)))


def test_runs_of_one_source_share_a_program(monkeypatch):
    zipf, traced = data.get("zipf"), []
    items = zipf.items
    monkeypatch.setattr(zipf, "items", lambda run, key, index: traced.append(len(index)) or items(run, key, index))
    for d, n_items, count in ((8, 40, 5), (16, 50, 6), (8, 64, 8), (8, 64, 0)):
        run = planted("zipf", d=d, n_items=n_items, kind="random")
        assert drawing.items(run, train.key(d, "data"), np.arange(count)).shape == (count, 8)
    assert traced == [8, 1]  # five, six and eight items are room for eight
