"""Many runs as one program: the numbers of solo runs, one compilation a shape, and neighbours that do not disturb."""

import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
import reference_gpt as reference
from conftest import MODEL, SIZE, longer, make_pack, make_run, one, trained

from scalemem import execute, pack, train
from scalemem.spec import run_id

# 201 steps of 13 items in fives, and runs that differ in everything that is traced
RUNS = [make_run(exposures=67), make_run(exposures=67, seed=1), make_run(exposures=50, n_items=16, seed=2),
        make_run(exposures=100, batch_size=7, seed=3), make_run(exposures=67, peak_lr=3e-3, b1=0.9, b2=0.99, weight_decay=0.1, seed=4)]


def diverging(run):
    return make_run(exposures=run.stages[0].exposures, peak_lr=1e6, seed=run.seed)


@pytest.fixture(scope="module")
def packed():
    return trained(RUNS)


@pytest.mark.optimised
def test_a_run_in_a_pack_is_the_run_alone(packed):
    for i, run in enumerate(RUNS):
        alone = one(trained([run], size=1), 0)
        assert float(packed.loss_nats[i]) == pytest.approx(float(alone.loss_nats), rel=1e-5)
        assert int(packed.segment[i]) == int(alone.segment) == run.stages[0].exposures
    assert len({float(x) for x in packed.loss_nats[:5]}) == 5


def test_vmap_gives_the_numbers_of_map(packed):
    at_once = trained(RUNS, how="vmap")
    # 1e-5 of the loss, and 1e-6 nats (what the design promises of a loss) where a run has memorized nearly all and its loss is near 0
    np.testing.assert_allclose(at_once.loss_nats[:5], packed.loss_nats[:5], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(at_once.segment, packed.segment)
    assert not at_once.diverged.any()


def test_the_place_in_a_pack_and_the_neighbours_change_no_bit(packed):
    backwards = trained(RUNS[::-1])
    for i in range(5):
        jax.tree.map(np.testing.assert_array_equal, one(backwards, 4 - i), one(packed, i))


def test_padding_trains_nothing(packed):
    assert packed.segment[5:].tolist() == [0] * (SIZE - 5)
    assert np.isnan(packed.loss_nats[5:]).all()


def test_one_compilation_serves_all_sizes_rates_and_seeds(packed):
    program = pack.program(make_pack(RUNS).shape, "map")

    def compiled():
        return [f._cache_size() for f in (program.start, program.advance)]  # type: ignore[attr-defined]

    before = compiled()
    assert min(before) >= 1
    for run in (make_run(n_items=9, batch_size=2, exposures=2, seed=7), make_run(peak_lr=1.0, eps=1e-3, warmup_steps=0, exposures=1),
                make_run(decay_fraction=0.1, final_fraction=0.3, exposures=3, n_items=16, batch_size=16)):
        assert pack.program(make_pack([run]).shape, "map") is program
        trained([run], 1, 2)
    assert compiled() == before
    assert len({p.shape for p in execute.plan([*RUNS, make_run(n_items=9, exposures=2)])}) == 1


@pytest.mark.parametrize(("how", "tolerance"), [("map", 0), ("vmap", 1e-6)])
def test_a_diverging_run_leaves_its_neighbours_alone(packed, how, tolerance):
    """Rate 1e6, whose weights overflow: at tolerance 0 the neighbours' bits are those of a pack without it."""
    calm = packed if how == "map" else trained(RUNS, how="vmap")
    wild = trained([RUNS[0], diverging(RUNS[1]), *RUNS[2:]], how=how)
    assert wild.diverged[1] or wild.loss_nats[1] > 2 * math.log(MODEL.vocab_size)
    for i in (0, 2, 3, 4):
        a, b = reference.leaves(one(wild, i).params), reference.leaves(one(calm, i).params)
        for path in a:
            np.testing.assert_allclose(a[path], b[path], rtol=tolerance, atol=tolerance * np.abs(b[path]).max(), err_msg=path)
        np.testing.assert_allclose(wild.loss_nats[i], calm.loss_nats[i], rtol=tolerance)


def test_a_diverged_run_is_recorded_and_has_no_measures(store):
    good, bad = make_run(exposures=30), make_run(exposures=30, peak_lr=1e6, seed=1)
    assert execute.work(make_pack([good, bad]), store)
    rows = {row["run_id"]: row for row in store.table("runs").to_pylist()}
    assert store.finished() == {run_id(good): "done", run_id(bad): "diverged"}
    assert rows[run_id(bad)]["memorized_bits"] is None
    assert rows[run_id(bad)]["train_loss_nats"] is None
    assert math.isfinite(rows[run_id(good)]["memorized_bits"])
    assert rows[run_id(bad)]["exposures_done"] <= 30


def test_a_run_whose_weights_are_lost_in_its_last_step_has_diverged(store):
    """The training loss is taken before the update, so it is still finite."""
    lost = make_run(exposures=1, batch_size=13, peak_lr=1e9, weight_decay=1e3, eps=1e-30, warmup_steps=0, decay_fraction=0.0)
    state = one(trained([lost]), 0)
    assert math.isfinite(state.loss_nats)
    execute.work(make_pack([lost]), store)
    assert store.finished() == {run_id(lost): "diverged"}


def test_identity_of_a_pack():
    ids = {make_pack(runs, **shape).id for runs in (RUNS, RUNS[::-1], RUNS[:4], [longer(RUNS[0], 5)])
           for shape in ({}, {"size": 16}, {"slots": 64}, {"rows": 4})}
    assert len(ids) == 16
    assert make_pack(RUNS).id == make_pack(list(RUNS)).id
    assert execute.from_json(json.loads(json.dumps(execute.to_json(make_pack(RUNS))))) == make_pack(RUNS)
    assert train.Shape.of(RUNS[0]) == train.Shape.of(make_run(exposures=9, seed=5, peak_lr=0.5, n_items=16))


DEVICES = """
    import json, sys, warnings
    warnings.simplefilter("error")
    sys.path[:0] = sys.argv[1:]
    import jax, numpy as np
    from conftest import make_pack, make_run
    from scalemem import pack
    assert len(jax.devices()) == 8
    runs = [make_run(exposures=67, seed=i, n_items=13 + i, peak_lr=0.02 / (i + 1)) for i in range(3)]
    result = {}
    for devices in (1, 2, 4, 8):
        p = make_pack(runs)  # three runs in eight places: five are padding
        program, k = pack.Program(p.shape, "shard", jax.devices()[:devices]), pack.knobs(p)
        states = program.advance(program.start(k), k, 7)
        states = jax.block_until_ready(program.advance(states, k, 1000))
        assert len(states.loss_nats.sharding.device_set) == devices
        result[devices] = [np.asarray(states.loss_nats, float).tolist(), np.asarray(states.segment).tolist()]
    print(json.dumps(result))
"""


def test_the_numbers_are_the_same_on_1_2_4_and_8_devices(tmp_path):
    env = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"}
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(DEVICES), str(here)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    runs = [make_run(exposures=67, seed=i, n_items=13 + i, peak_lr=0.02 / (i + 1)) for i in range(3)]
    expected = trained(runs)
    for losses, epochs in result.values():
        np.testing.assert_allclose(losses[:3], expected.loss_nats[:3], rtol=1e-5)
        assert epochs == [67, 67, 67] + [0] * 5
