"""Every strategy trains as the packed programs do it: strength 0 is plain training, strength is felt, nothing is NaN."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from scalemem import data, pack, strategies, train
from scalemem.data import labels
from scalemem.execute import check
from scalemem.spec import DataSpec, ModelSpec, OptimizerSpec, Probe, ReplaySpec, RunSpec, Stage, StrategySpec

MODEL = ModelSpec(d_model=4, n_layers=1, n_heads=1, vocab_size=12, seq_len=5, arch="mlp", init_std=0.3)
ROWS, STEPS = 8, 6
FAST: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}  # compiling is all that these tests do
REPLAY = ReplaySpec(fraction=0.5, n_items=16, blocks=2)


def stage(task, **changes):
    first, n_items = labels.split(task, 2, 8)
    spec = DataSpec(generator="striped", classes=4, per_class=8, first=first, n_items=n_items)
    return Stage(**{"data": spec, "optimizer": OptimizerSpec(peak_lr=0.01), "exposures": STEPS * ROWS // n_items, "batch_size": ROWS,
                    "objective": "label", "order": "sequential", **changes})


def run_of(**second):
    """Task 0, and then task 1 with a strategy, which reads task 0."""
    return RunSpec(model=MODEL, stages=(stage(0), stage(1, **second)), probes=(Probe("capacity"),), seed=1)


class Striped:
    """Labelled sequences without a random draw, which would be most of what there is to compile: token (t class + row) mod 4 in place t."""

    @staticmethod
    def items(run, key, index):
        of_class, row = index // 8, index % 8
        return jnp.concatenate([(jnp.arange(4) * of_class[:, None] + row[:, None]) % 4, 11 - of_class[:, None]], 1)


@pytest.fixture(scope="module", autouse=True)
def striped():
    data.GENERATORS["striped"] = Striped
    yield
    del data.GENERATORS["striped"]


@functools.cache
def first_stage():
    """The state of a run after task 0."""
    shape, k = train.Shape.of(run_of(), micro_batch=ROWS).stage(0), train.knobs(run_of())
    return jax.jit(lambda k: train.advance(shape, train.start(shape, k), k, STEPS)).lower(k).compile(FAST)(k)


def trained(runs, memory=None):
    """The weights [2, ...] that runs of one shape end at, as rows, and their states; all in one program, one run after another."""
    p = pack.Pack(train.Shape.of(runs[0], micro_batch=ROWS), tuple(runs), len(runs))
    before, now, state = p.shape.stage(0), p.shape.stage(1), first_stage()
    if memory is not None:
        state = state._replace(memory=memory(state.params))

    def one(k):
        begun = train.switch(before, now, state, k[0], k[1], same=memory is not None)
        ended = train.advance(now, begun, k[1], STEPS)
        return flat(train.weights(now, ended, k[1], ended=True)), ended

    k = pack.knobs(p, 0), pack.knobs(p, 1)
    return jax.device_get(jax.jit(lambda k: lax.map(one, k)).lower(k).compile(FAST)(k))


def flat(weights):
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(weights)])


@functools.cache
def plain(replay):
    return trained([run_of(replay=replay)])[0][0]


def path(weights):
    """What SI has after a stage: each weight took part in the fall of the loss."""
    same = lambda x: jax.tree.map(lambda w: jnp.full(w.shape, x), weights)  # noqa: E731
    return {"importance": same(0.0), "path": same(1.0), "anchor": weights}


STRENGTH = {"ewc": 100.0, "online_ewc": 100.0, "weight_averaging": 0.5, "merging": 0.5, "fast_slow": 0.5}
SPEC: dict[str, dict] = {"ewc": {"kind": "exact"}, "online_ewc": {"kind": "sample"}, "fast_slow": {"items": 3}, "collateral": {"tasks": 2},
                         "remind": {"codebooks": 2, "entries": 4},
                         "relational": {"tasks": 2}}
START = ("weight_averaging", "merging", "fast_slow")  # whose strength 0 stays where the stage began
NO_STRENGTH = ("agem", "collateral", "gem", "remind")  # without it, or with a margin of 0 that projects all the same, or with a part that is frozen


@pytest.mark.parametrize("name", [name for name in strategies.STRATEGIES if name not in strategies.PROMPTS])  # those: test_strategies_prompts.py
def test_strategy_trains(name):
    """At strength 0 a penalty is plain training, and an average stays at the start of the stage; a strong one ends elsewhere than plain training."""
    replay = REPLAY if "tasks" in SPEC.get(name, {}) else None
    strengths = (0.0, STRENGTH.get(name, 3.0))
    runs = [run_of(strategy=StrategySpec(name, **{"strength": s, "items": 16, **SPEC.get(name, {})}), replay=replay) for s in strengths]
    check(runs)
    (nothing, much), states = trained(runs, path if name == "si" else None)
    assert not states.diverged.any()
    assert np.isfinite(much).all()
    if name == "collateral":
        assert states.memory["scored"].tolist() == [[STEPS] * 2] * 2  # an item of each block a step, with one label
        return
    assert np.abs(much - plain(replay)).max() > 1e-3
    if name not in NO_STRENGTH:
        np.testing.assert_allclose(nothing, flat(first_stage().params) if name in START else plain(replay), atol=1e-5)


def test_the_stage_before_is_as_it_was():
    """SI and the others may not change what the first stage ends at."""
    run = run_of(strategy=StrategySpec("lwf"))
    assert train.Shape.of(run).stage(0) == train.Shape.of(run_of()).stage(0)
    assert dataclasses.replace(train.Shape.of(run).stage(1).run.stages[0], strategy=None) == train.Shape.of(run_of()).stage(1).run.stages[0]
