"""A state split over 8 devices trains the run of one device, and goes on bit for bit; bfloat16 products keep float32 beside them."""

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MODEL, longer, make_run, one, trained
from jax.sharding import PartitionSpec

from scalemem import execute, export_model, models, pack, sharding, train
from scalemem.spec import run_id

LARGE = dataclasses.replace(MODEL, d_model=64, vocab_size=64, seq_len=16)
RUN = make_run(LARGE, n_items=32, batch_size=13, exposures=80, peak_lr=3e-3, weight_decay=0.1)  # 240 steps, the last of an epoch smaller
BOTH = [dataclasses.replace(longer(RUN, 20), seed=seed) for seed in (0, 1)]

EIGHT = """
    import json, os, sys, warnings
    from pathlib import Path
    warnings.simplefilter("error")
    sys.path[:0] = [sys.argv[1]]
    import jax, numpy as np
    from scalemem import execute, launch, memory, pack, sharding, train
    from scalemem.store import Store
    from test_sharding import BOTH, RUN

    def stored(store):
        return json.dumps([store.table(name).to_pylist() for name in ("runs", "curves")])

    found, place = {}, Path(sys.argv[2])
    assert len(jax.devices()) == 8
    (p,) = execute.plan([RUN], None, "fsdp", 8)
    assert (p.size, p.shape.micro_batch) == (1, 16)  # 13 rows, and room for as many on every device
    program, k = pack.program(p.shape, "fsdp", 8), pack.knobs(p)
    states = program.start(k)
    found["first"] = [float(np.abs(np.asarray(x)).sum()) for x in jax.tree.leaves(states.params)]
    states = program.advance(states, k, 30)
    states = jax.block_until_ready(program.advance(states, k, 1000))
    found["loss"] = float(states.loss_nats[0])
    for part in ("params", "optimizer"):
        leaves = jax.tree.leaves(getattr(states, part))
        held = [sum(s.data.nbytes for x in leaves for s in x.addressable_shards if s.device == d) for d in jax.devices()]
        found[part] = [sum(x.nbytes for x in leaves), *held]

    (p,), (calm, stopped) = execute.plan(BOTH[:1], None, "fsdp", 8), (Store.open(place / name, create=True) for name in ("calm", "stopped"))
    assert execute.work(p, calm, "fsdp", 8)
    found["rows"] = calm.table("runs").to_pylist()
    for _ in range(3):  # left after every call
        calls = iter([True])
        assert not execute.work(p, stopped, "fsdp", 8, stopping=lambda: next(calls, True))
    assert execute.work(execute.plan(BOTH[:1], stopped, "fsdp", 8)[0], stopped, "fsdp", 8)
    found["same bits"] = stored(calm) == stored(stopped)
    found["provenance"] = next(iter(stopped.provenance().values()))

    (q,) = execute.plan(BOTH, None, "fsdp", 8, split=4)
    assert (q.size, q.shape.micro_batch) == (2, 16)
    states = pack.program(q.shape, "fsdp", 8, 2).start(pack.knobs(q))
    found["tokens"] = [list(s.data.shape) for s in states.params["tokens"].addressable_shards]
    pairs = Store.open(place / "pairs", create=True)
    assert not execute.work(q, pairs, "fsdp", 8, stopping=lambda: True)
    assert execute.work(execute.plan(BOTH, pairs, "fsdp", 8)[0], pairs, "fsdp", 8)  # as its checkpoint has it
    found["pairs"] = {row["run_id"]: row["loss_nats"] for row in pairs.table("runs").to_pylist()}

    memory.capacity = lambda device=None: 1e4  # of which no run has enough
    (way,) = launch.ways([RUN])
    found["way"] = [way.executor, way.devices]
    again = execute.plan(BOTH[:1], None, "fsdp", 8, micro_batch=4, remat=True)[0]
    program, k = pack.program(again.shape, "fsdp", 8), pack.knobs(again)
    found["again"] = [float(program.advance(program.start(k), k, 1000).loss_nats[0]), again.shape.micro_batch]
    print(json.dumps(found))
"""

JOB = """
    import json, os, sys
    sys.path[:0] = [sys.argv[1]]
    os.environ["SCALEMEM_CHECKPOINT_S"] = "0"  # one is being written most of the time
    from scalemem import execute, keeping, orders
    from scalemem.store import Store
    from test_sharding import BOTH

    store = Store.open(sys.argv[2], create=True)
    keeping.ask(store.path, keeping.Keep(models=True))
    order = orders.Order.write(store, execute.plan(BOTH, store, "fsdp", 8, split=4), "fsdp", 8, 1)
    orders.Job(str(store.path), order.name)()
    print(json.dumps([store.finished(), len(order.open()), store.checkpoints()]))
"""


def flags(devices):
    """Of XLA: those of all tests, and so many devices."""
    return f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"


def on_eight(script, *argv):
    env = {**os.environ, "XLA_FLAGS": flags(8)}
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(Path(__file__).parent), *map(str, argv)], env=env, capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    return on_eight(EIGHT, tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def alone():
    return one(trained([RUN], size=1, slots=32, rows=13), 0)


@pytest.fixture(scope="module")
def shorter():
    return trained(BOTH, size=2, slots=32, rows=13)


def test_240_steps_over_8_devices_are_those_of_one(eight, alone):
    """The design promises a loss to about 1e-6 between ways of running; here to 1e-5 of it, as of packs."""
    assert eight["loss"] == pytest.approx(float(alone.loss_nats), rel=1e-5)


def test_its_row_is_that_of_the_run_on_one_device(eight, shorter):
    (row,) = eight["rows"]
    assert row["run_id"] == run_id(BOTH[0])
    assert row["loss_nats"] == pytest.approx(float(shorter.loss_nats[0]), rel=1e-5)


def test_no_device_starts_with_other_weights(eight):
    params = models.init(LARGE, train.key(0, "init"))
    np.testing.assert_allclose(eight["first"], [np.abs(p).sum() for p in jax.tree.leaves(params)], rtol=1e-5)


@pytest.mark.parametrize("part", ["params", "optimizer"])
def test_every_device_holds_an_eighth(eight, part):
    total, *held = eight[part]
    small = 2 * sum(p.size for p in jax.tree.leaves(models.shape(LARGE)) if p.size < sharding.WHOLE) * 4 + 64  # biases and scales, and counters
    assert all(total / 8 <= bytes_ <= total / 8 + small for bytes_ in held)
    assert small < total / 8


def test_a_split_run_is_gone_on_with_bit_for_bit(eight):
    assert eight["same bits"]
    assert (eight["provenance"]["executor"], eight["provenance"]["devices"], eight["provenance"]["pack_size"]) == ("fsdp", 8, 1)


def test_two_runs_train_at_once_on_four_devices_each(eight, shorter):
    """The mesh has rows of devices, a run each; they stop and go on together."""
    assert eight["tokens"] == [[1, LARGE.vocab_size // 4, LARGE.d_model]] * 8
    assert sorted(eight["pairs"]) == sorted(map(run_id, BOTH))
    for i, run in enumerate(BOTH):
        assert eight["pairs"][run_id(run)] == pytest.approx(float(shorter.loss_nats[i]), rel=1e-5)


def test_a_job_of_a_cluster_splits_models_over_its_devices_and_keeps_them(tmp_path, shorter):
    finished, left, checkpoints = on_eight(JOB, tmp_path / "store")
    assert (finished, left, checkpoints) == ({run_id(run): "done" for run in BOTH}, 0, [])
    for i, run in enumerate(BOTH):
        found, kept = export_model.load(export_model.path_of(tmp_path / "store", run_id(run)))
        assert found == run
        here, there = (models.apply(LARGE)(params, jnp.arange(30).reshape(2, 15)) for params in (kept, one(shorter, i).params))
        np.testing.assert_allclose(here, there, atol=2e-3)  # of the logits: keys' biases, on which they do not depend, are made of rounding


def test_smaller_passes_and_blocks_computed_again_change_nothing_but_rounding(eight, shorter):
    loss, rows = eight["again"]
    assert rows == 8  # 4, but one on every device
    assert loss == pytest.approx(float(shorter.loss_nats[0]), rel=1e-5)


def test_a_model_too_large_for_a_device_is_sent_to_all(eight):
    assert eight["way"] == ["fsdp", 8]


def test_how_arrays_are_split():
    split = sharding.split
    assert split((2, 32, 96), 8, packed=True) == PartitionSpec("runs", None, "fsdp")
    assert split((2, 96, 32), 8, packed=True) == PartitionSpec("runs", "fsdp")
    assert split((2,), 8, packed=True) == PartitionSpec("runs")
    assert split((50257, 768), 8) == PartitionSpec(None, "fsdp")  # the vocabulary is no multiple
    assert split((sharding.WHOLE,), 8) == PartitionSpec("fsdp")
    for whole in ((), (sharding.WHOLE - 8,), (1001, 999)):
        assert split(whole, 8) == PartitionSpec()


# -- passes, blocks computed again, bfloat16 ------------------------------------------------------------------------------


def memory_of(model, **shape):
    run = make_run(model, n_items=32, batch_size=32)
    p = pack.Pack(train.Shape.of(run, 32, **shape), (run,), 1)
    program, k = pack.Program(p.shape, "map"), pack.knobs(p)
    used: Any = program.advance.lower(jax.eval_shape(program.start, k), k, 1).compile().memory_analysis()
    return used.temp_size_in_bytes


def test_blocks_computed_again_take_less_memory():
    deep = dataclasses.replace(MODEL, n_layers=3, seq_len=32)
    assert memory_of(deep, micro_batch=32, remat=True) < 0.6 * memory_of(deep, micro_batch=32)


def test_blocks_computed_again_have_the_same_gradient():
    model = dataclasses.replace(MODEL, n_layers=2, position="rotary", norm="rmsnorm", mlp="swiglu", tied=False)
    params, tokens = models.init(model, train.key(0, "init")), jnp.arange(14).reshape(2, 7) % model.vocab_size

    def gradient(remat):
        return jax.jit(jax.grad(lambda p: (models.apply(model, remat=remat)(p, tokens) ** 2).sum()))(params)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6 * np.abs(b).max()), gradient(True), gradient(False))


def test_options_of_a_pass_are_no_part_of_a_run_but_of_a_pack():
    runs = [longer(RUN, 3)]
    plain, small, again = execute.plan(runs), execute.plan(runs, micro_batch=2), execute.plan(runs, remat=True)
    assert small[0].shape.micro_batch == 2
    assert again[0].shape.remat
    assert not plain[0].shape.remat
    assert len({packs[0].id for packs in (plain, small, again)}) == 3
    assert all(execute.from_json(json.loads(json.dumps(execute.to_json(packs[0])))) == packs[0] for packs in (plain, small, again))
    assert execute.plan(runs, micro_batch=1000)[0].shape.micro_batch == 13


def wide_types(jaxpr, found):
    """The types of arrays that loops carry, in a program and in what it calls."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "while":
            found.append({(v.aval.shape, str(v.aval.dtype)) for v in eqn.outvars})
        for value in eqn.params.values():
            for inner in value if isinstance(value, (list, tuple)) else [value]:
                if hasattr(inner, "jaxpr"):
                    wide_types(inner.jaxpr, found)
    return found


def test_bfloat16_products_beside_float32_weights_moments_and_sums_of_gradients():
    """compute_dtype is of the products alone: what is summed over passes and steps stays in float32."""
    model = dataclasses.replace(LARGE, compute_dtype="bfloat16")
    run = make_run(model, n_items=32, batch_size=13, exposures=2)
    shape, k = train.Shape.of(run, 32, 5), train.knobs(run)
    state = jax.eval_shape(lambda k: train.start(shape, k), k)
    assert {str(x.dtype) for x in jax.tree.leaves(state.params)} == {"float32"}
    assert {str(x.dtype) for x in jax.tree.leaves(state.optimizer)} == {"float32", "int32"}
    program = jax.make_jaxpr(lambda s, k: train.advance(shape, s, k, 1))(state, k)
    assert "bf16" in str(program)  # the products
    carried = wide_types(program.jaxpr, [])
    sums = carried[-1]  # the innermost loop: the gradient over passes
    assert {shape for shape, _ in sums} >= {p.shape for p in jax.tree.leaves(state.params)}
    assert {dtype for _, dtype in set().union(*carried)} <= {"float32", "int32", "bool"}
