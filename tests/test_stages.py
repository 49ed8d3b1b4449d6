"""Runs of several stages: what they share with runs of one, replay and injection, what is trained, resume."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MODEL, make_run

from scalemem import data, execute, pack, record, train, trainable
from scalemem.data import schedule
from scalemem.execute import check, from_json, plan, to_json, work
from scalemem.spec import InjectSpec, Probe, ReplaySpec, RunSpec, SpecError, at_stage, canonical_json, from_dict, run_id, to_dict
from scalemem.store import Store

KEY = train.key(3, "order")


PROBES = (Probe("loss_of_stage", at="log"),)


def staged(*changes, seed=0, probes=PROBES, **first):
    """A run whose stages are the first one with some fields changed."""
    run = make_run(n_items=24, seed=seed, **first)
    stages = tuple(dataclasses.replace(run.stages[0], **change) for change in ({}, *changes))
    return dataclasses.replace(run, stages=stages, probes=probes)


def moved(run, first, n_items):
    return dataclasses.replace(run.stages[0].data, first=first, n_items=n_items)


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    """A measure that tells the moment and the weights that it was given."""
    from scalemem import measure

    def loss_of_stage(run, params, data_key, fresh_key, moment):
        norm = float(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(params)))
        moved = 0.0 if moment.reference is None else float(sum(
            jnp.sum(jnp.abs(a - b)) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(moment.reference), strict=True)))
        return {"norm": norm, "moved": moved, "place": np.arange(2), "first_item": np.full(2, run.stages[0].data.first)}

    monkeypatch.setitem(measure.MEASURES, "loss_of_stage", loss_of_stage)
    monkeypatch.setattr(measure, "OF_STAGES", ("loss_of_stage", *measure.OF_STAGES))


def run_all(run, path, **options):
    """The tables of a run that is worked on in this process."""
    store = Store.open(path, create=True)
    for p in plan([run], store):
        while not work(p, store, **options):
            pass
    return {name: store.table(name).to_pylist() for name in store.tables()}


def test_a_second_stage_goes_on_from_the_first_with_its_own_items_and_optimizer(tmp_path):
    one = staged({"exposures": 3, "data": moved(make_run(), 1000, 8), "batch_size": 4})
    tables = run_all(one, tmp_path)
    curves = tables["curves"]
    ends = [row for row in curves if row["stage"] == 0][-1], [row for row in curves if row["stage"] == 1]
    assert [row["stage_step"] for row in ends[1]] == [0, 2, 4, 6]
    assert ends[1][0]["norm"] == ends[0]["norm"]
    assert ends[1][0]["moved"] == 0 < ends[1][1]["moved"] < ends[1][-1]["moved"] * 1.5
    assert ends[1][-1]["step"] == ends[0]["step"] + 6
    assert {(row["stage"], row["first_item"]) for row in tables["loss_of_stage"]} == {(0, 0), (1, 1000)}
    assert tables["runs"][0]["stage1_n_items"] == 8
    assert tables["runs"][0]["norm"] == ends[1][-1]["norm"]

    shape, k0, k1 = train.Shape.of(one), train.knobs(one), train.knobs(one, 1)
    state = jax.jit(lambda: train.advance(shape.stage(0), train.start(shape.stage(0), k0), k0, 1 << 20))()
    fresh, kept = (jax.jit(functools.partial(train.switch, shape.stage(0), shape.stage(1), continued=c))(state, k0, k1) for c in (False, True))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(fresh.optimizer))  # re-warmed
    assert jax.tree.all(jax.tree.map(np.array_equal, kept.optimizer, state.optimizer))


def test_a_stage_of_no_exposures_changes_nothing(tmp_path):
    plain = dataclasses.replace(make_run(n_items=24), probes=(Probe("loss_of_stage"),))
    two = staged({"exposures": 0}, probes=plain.probes)
    assert run_all(two, tmp_path / "two")["runs"][0]["norm"] == pytest.approx(run_all(plain, tmp_path / "one")["runs"][0]["norm"], rel=1e-6)


def test_stages_that_differ_in_numbers_share_a_program():
    run = staged({"data": moved(make_run(), 64, 20)}, {"data": moved(make_run(), 128, 24), "exposures": 9})
    shape = train.Shape.of(run)
    assert shape.stage(1) == shape.stage(2) == shape.stage(0)
    assert pack.program(shape.stage(1), "map") is pack.program(shape.stage(0), "map")


def test_replay_draws_the_stated_fraction_from_the_stated_blocks():
    run = staged({"replay": ReplaySpec(fraction=0.25, first=100, n_items=40, blocks=4, law="power", exponent=1.0), "batch_size": 16})
    view, k = at_stage(run, 1), train.knobs(run, 1)
    made, row = schedule.plan(view, {name: jnp.asarray(v) for name, v in k.items()}), jnp.arange(16)
    draw = jax.jit(jax.vmap(lambda s: schedule.items(view, made, {n: jnp.asarray(v) for n, v in k.items()}, KEY, s, row, row)))
    found = np.asarray(draw(jnp.arange(4000)))
    old = found[found >= 100]
    assert found[found < 100].max() < 16
    assert set(old) == set(range(100, 140))
    assert abs(len(old) / found.size - 0.25) < 4 * (0.25 * 0.75 / found.size) ** 0.5
    share = np.bincount((old - 100) // 10, minlength=4) / len(old)
    np.testing.assert_allclose(share, np.array([1 / 4, 1 / 3, 1 / 2, 1]) / (25 / 12), atol=0.01)
    assert np.array_equal(found[:, :8], np.asarray(jax.vmap(lambda s: schedule.items(
        view, made, {n: jnp.asarray(v) for n, v in k.items()}, KEY, s, row[:8], row[:8]))(jnp.arange(4000))))  # a row knows only itself


def test_injected_items_are_met_when_the_formula_says():
    spec = InjectSpec(n_items=3, first=500, times=4, start=2, interval=3.0, growth=2.0, stagger=1.0)
    run = staged({"inject": spec, "exposures": 60})
    view, k = at_stage(run, 1), {name: jnp.asarray(v) for name, v in train.knobs(run, 1).items()}
    made, row = schedule.plan(view, k), jnp.arange(4)
    met = {(int(i), s) for s in range(60) for i in schedule.items(view, made, k, KEY, s, row, row) if i >= 500}
    assert met == {(500 + f, 2 + f + (3 * m**2 if m else 0)) for f in range(3) for m in range(4)}


def test_views_are_met_at_once_and_rarer():
    """Six encounters of each of two facts, three at once, every 3 x 4 steps; which sentence each is goes on."""
    run = make_run(n_items=24, data={"variants": 4}, batch_size=6)
    inject = InjectSpec(n_items=2, first=80, times=6, interval=4.0, views=3, paraphrase=True)
    run = dataclasses.replace(run, stages=(dataclasses.replace(run.stages[0], exposures=9, inject=inject),))
    k = {name: jnp.asarray(v) for name, v in train.knobs(run).items()}
    made, row = schedule.plan(run, k), jnp.arange(6)
    met = {s: sorted(int(i) for i in schedule.items(run, made, k, KEY, s, row, row) if i >= 80) for s in range(20)}
    assert {s: found for s, found in met.items() if found} == {0: [80, 81, 82, 84, 85, 86], 12: [80, 81, 82, 84, 85, 86]}
    check([run])


def test_paraphrases_go_round_all_sentences_but_the_held_out_one():
    run = make_run(n_items=24, data={"variants": 4})
    inject = InjectSpec(n_items=2, first=80, times=5, paraphrase=True)
    run = dataclasses.replace(run, stages=(dataclasses.replace(run.stages[0], exposures=9, inject=inject),))
    k = {name: jnp.asarray(v) for name, v in train.knobs(run).items()}
    made, row = schedule.plan(run, k), jnp.arange(4)
    met = [[int(i) for i in schedule.items(run, made, k, KEY, s, row, row) if i >= 80] for s in range(5)]
    assert met == [[80 + m % 3, 84 + m % 3] for m in range(5)]


@pytest.mark.parametrize("trains", ["lora", "half", "head", "attention", "mlp"])
def test_only_what_is_named_is_trained(trains):
    run = staged({"trains": trains, "rank": 3, "exposures": 2})
    shape, k0, k1 = train.Shape.of(run), train.knobs(run), train.knobs(run, 1)

    @jax.jit
    def both():
        state = train.switch(shape.stage(0), shape.stage(1), train.start(shape.stage(0), k0), k0, k1)
        after = train.advance(shape.stage(1), state, k1, 9)
        return state, after, train.weights(shape.stage(1), state, k1), train.weights(shape.stage(1), after, k1, ended=True)

    state, after, before, end = both()
    moved = {trainable._name(path): bool(np.any(a != b)) for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(end), strict=True)}
    matrices = {n for n in moved if n.endswith("/w")}
    assert jax.tree.all(jax.tree.map(np.array_equal, before, state.reference))
    changed = {name for name, m in moved.items() if m}
    if trains == "lora":
        assert changed == matrices
        adapters = jax.tree.leaves(after.params, is_leaf=lambda x: isinstance(x, dict) and "a" in x)
        assert {int(np.linalg.matrix_rank(np.asarray(x["a"] @ x["b"]))) for x in adapters} == {3}
    elif trains == "half":
        assert len(changed & matrices) * 2 == len(matrices)
        assert changed >= set(moved) - matrices
    else:
        wanted = {"head": ("norm/", "tokens"), "attention": ("/attention/",), "mlp": ("/mlp/",)}[trains]
        assert changed == {n for n in moved if any(part in n if part[0] == "/" else n.startswith(part) for part in wanted)}


def test_a_stopped_staged_run_goes_on_bit_for_bit(tmp_path):
    run = staged({"trains": "lora", "rank": 2, "exposures": 6}, {"exposures": 3}, exposures=5)
    whole = run_all(run, tmp_path / "whole")
    calls = iter(range(10_000))
    again = run_all(run, tmp_path / "stopped", stopping=lambda: next(calls) % 9 == 4, checkpoint_s=0)
    for name in whole:
        assert json.dumps(again[name]) == json.dumps(whole[name])  # as text, for nan is not nan


def test_packed_and_planned_as_any_other(tmp_path):
    runs = [staged({"exposures": e, "trains": "lora", "rank": r}, seed=s) for e in (2, 3) for r in (1, 2) for s in (0, 1)]
    packs = plan(runs)
    assert sorted(len(p.runs) for p in packs) == [4, 4]  # those of one length
    assert [from_json(to_json(p)) for p in packs] == packs
    store = Store.open(tmp_path, create=True)
    for p in packs:
        assert work(p, store)
    assert store.missing(runs) == []
    single = run_all(runs[0], tmp_path / "single")["runs"][0]["norm"]
    packed = {row["run_id"]: row for row in store.table("runs").to_pylist()}[run_id(runs[0])]["norm"]
    assert packed == pytest.approx(single, rel=1e-5)
    assert execute._flops(runs[0], 0, 99) == pytest.approx(execute.accounting.train_flops(runs[0]))


def test_identity_and_points():
    run = staged({"replay": ReplaySpec(fraction=0.1, n_items=5), "inject": InjectSpec(n_items=1, first=9)})
    assert from_dict(RunSpec, to_dict(run)) == run
    assert run_id(run) != run_id(staged({}))
    assert '"stages":[{' in canonical_json(run)
    long = staged({"exposures": 40})
    points, at = [], 0
    while at < 40:
        points.append(at := record.next_point(long, 1, at))
    assert points == [1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 16, 19, 23, 27, 32, 38, 40]


@pytest.mark.parametrize(("change", "message"), [
    ({"data": moved(make_run(generator="zipf"), 0, 8)}, "stages.1..data"),
    ({"inject": InjectSpec(n_items=9, first=50)}, "at most a batch|a batch"),
    ({"inject": InjectSpec(n_items=1, first=50, times=99)}, "last encounter"),
    ({"inject": InjectSpec(n_items=1, first=50, paraphrase=True)}, "variants"),
    ({"replay": {"fraction": 0.5, "n_items": 2, "blocks": 3}}, "replay.blocks"),
    ({"trains": "lora", "continued": True}, "continued"),
])
def test_what_cannot_be_trained_is_one_line(change, message):
    def attempt():
        check([staged({k: ReplaySpec(**v) if isinstance(v, dict) else v for k, v in change.items()})])

    with pytest.raises(SpecError, match=message) as error:
        attempt()
    assert len(str(error.value).splitlines()) == 1


def test_items_of_a_stage_are_its_range():
    run = staged({"data": moved(make_run(), 7, 5)})
    key = train.key(0, "data")
    np.testing.assert_array_equal(data.items(at_stage(run, 1), key, jnp.arange(7, 12)), data.items(at_stage(run, 0), key, jnp.arange(7, 12)))
    assert MODEL.seq_len == data.items(run, key, jnp.arange(2)).shape[1]
