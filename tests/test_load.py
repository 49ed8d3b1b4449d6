"""Capacity load: bits of the distinct items of a run's stages, against numbers worked out by hand."""

import dataclasses
import math

import pytest

from scalemem.accounting import n_params
from scalemem.data import facts
from scalemem.data.load import distinct_items, load_ratio
from scalemem.spec import CanarySpec, DataSpec, InjectSpec, ModelSpec, OptimizerSpec, Probe, ReplaySpec, RunSpec, Stage

MODEL = ModelSpec(d_model=4, n_layers=1, n_heads=1, vocab_size=16, seq_len=4)
STAGE = Stage(data=DataSpec(n_items=10), optimizer=OptimizerSpec(peak_lr=0.1), exposures=2, batch_size=5)


def run(*stages, model=MODEL):
    return RunSpec(model=model, stages=stages, probes=(Probe("likelihood"),))


def stage(first=0, n_items=10, data=None, **change):
    return dataclasses.replace(STAGE, data=DataSpec(n_items=n_items, first=first, **(data or {})), **change)


@pytest.mark.parametrize(("stages", "expected"), [
    ((stage(),), 10),
    ((stage(), stage(100)), 20),
    ((stage(0, 10), stage(5, 10), stage(5, 5)), 15),  # overlapping, and one within another
    ((stage(100), stage(replay=ReplaySpec(fraction=0.5, first=0, n_items=50))), 60),  # the pool has the stage's own items, too
    ((stage(100), stage(replay=ReplaySpec(fraction=0.0, first=0, n_items=50))), 20),  # nothing is replayed
    ((stage(100, inject=InjectSpec(n_items=3, first=109)),), 12),  # one of those injected is an item of the stage
])
def test_distinct_items(stages, expected):
    assert distinct_items(run(*stages)) == expected


def test_load_of_random_tokens():
    """30 items of 3 scored tokens of 4 bits, over 2 bits for each of P parameters."""
    two = run(stage(0, 10), stage(10, 20))
    assert load_ratio(two) == pytest.approx(30 * 3 * 4 / (2 * n_params(MODEL)))


@pytest.mark.parametrize("variants", [1, 4])
def test_sentences_of_a_fact_count_once(variants):
    """40 sentences are of 40 facts, or of 10 with four sentences each."""
    told = {"generator": "facts", "object_tokens": 1, "variants": variants}
    one = run(stage(0, 40, told), model=dataclasses.replace(MODEL, vocab_size=64, seq_len=8))
    bits = facts.entropy_bits(one)
    assert bits > math.log2(facts.parts(one).values)
    assert load_ratio(one) == pytest.approx(40 / variants * bits / (2 * n_params(one.model)))


def test_canaries_have_no_stated_load():
    assert math.isnan(load_ratio(run(stage(0, 10, {"canaries": CanarySpec(per_group=2)}))))
