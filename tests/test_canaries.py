"""Planted canaries: which, how often, where in their sequences and when in the epoch; and the segments that a run is looked at between."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MODEL, make_run, one, trained

from scalemem import accounting, data, execute, measure, train
from scalemem.data import canaries, order
from scalemem.spec import CanarySpec, DataSpec, ModelSpec, Probe, RunSpec, SpecError, as_ranges, run_id

N = 64


def planted(seed=0, n_items=N, model=MODEL, generator="markov", probes=("extraction",), segments=1, batch_size=8, at="end", exposures=1, **canary):
    canary = {"per_group": 3, "groups": 3, "controls": 4, **canary}
    run = make_run(model, n_items=n_items, batch_size=batch_size, seed=seed, generator=generator, exposures=exposures)
    stage = dataclasses.replace(run.stages[0], data=DataSpec(n_items=n_items, generator=generator, canaries=CanarySpec(**canary)), segments=segments)
    return RunSpec(model=model, stages=(stage,), probes=tuple(Probe(p, at) for p in probes), seed=seed)


def training_set(run, seed=None):
    return np.asarray(data.items(run, train.key(run.seed if seed is None else seed, "data"), jnp.arange(run.stages[0].data.n_items)))


def found(items, content):
    """Which (item, offset) holds the content, by looking everywhere."""
    width = len(content)
    return [(i, at) for i, row in enumerate(items) for at in range(len(row) - width + 1) if (row[at : at + width] == content).all()]


@pytest.mark.parametrize("kind", ["random", "structured", "passphrase", "trap", "natural", "template"])
def test_each_canary_stands_in_the_data_as_often_as_it_says(kind):
    run = planted(kind=kind, length=6, offset=1, words=8, coldest=0.5, hottest=3.0)
    probes, items = canaries.probes(run, train.key(0, "data")), training_set(run)
    assert probes.copies.tolist() == [1] * 3 + [2] * 3 + [4] * 3 + [0] * 4
    assert probes.group.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [-1] * 4
    for tokens, copies in zip(np.asarray(probes.tokens), probes.copies, strict=True):
        at = [place for place in found(items, tokens[1:7]) if place[0] < 21]
        assert len([place for place in at if place[1] == 1]) == copies
    assert len(np.unique(np.asarray(probes.tokens)[:, 1:7], axis=0)) == len(probes.copies)


def test_around_a_canary_and_beyond_the_planted_items_is_background():
    run = planted(length=4, offset=2)
    bare = dataclasses.replace(run, stages=(dataclasses.replace(run.stages[0], data=DataSpec(n_items=N, generator="markov")),))
    plain, items = training_set(bare), training_set(run)
    np.testing.assert_array_equal(items[21:], plain[21:])
    np.testing.assert_array_equal(items[:21][:, [0, 1, 6, 7]], plain[:21][:, [0, 1, 6, 7]])
    assert (items[:21, 2:6] != plain[:21, 2:6]).any(1).all()
    context = np.asarray(canaries.probes(run, train.key(0, "data")).tokens)[:, [0, 1, 6, 7]]
    assert not any((context[i] == plain[:, [0, 1, 6, 7]]).all(1).any() for i in range(len(context)))


def test_an_item_depends_on_key_and_number_alone():
    run, more = planted(), planted(n_items=2 * N)
    index = np.random.default_rng(0).permutation(N)
    items = training_set(run)
    np.testing.assert_array_equal(items, training_set(more)[:N])
    np.testing.assert_array_equal(jax.jit(lambda i: data.items(run, train.key(0, "data"), i))(jnp.asarray(index)), items[index])


def test_offsets_that_are_drawn_differ_and_stay_inside():
    run = planted(length=3, offset=-1, per_group=4, groups=1, copies=16, ratio=1)
    probes, items = canaries.probes(run, train.key(0, "data")), training_set(run)
    places = {at for i, at in found(items, np.asarray(probes.tokens)[0, :3]) if i < 16}
    assert len(places) > 2
    assert places <= set(range(6))


def test_what_a_run_includes_is_drawn_by_its_seed_and_what_is_shared_is_the_same():
    runs = [planted(seed=seed, include=0.5, shared=True, per_group=20, groups=1) for seed in range(6)]
    probes = [canaries.probes(run, train.key(run.seed, "data")) for run in runs]
    whole = np.array([p.planted for p in probes])
    assert 0.35 < whole[:, :20].mean() < 0.65
    assert not whole[:, 20:].any()
    assert len(np.unique(whole, axis=0)) == 6
    for run, p in zip(runs, probes, strict=True):
        np.testing.assert_array_equal(p.tokens, probes[0].tokens)
        items = training_set(run)
        assert [bool(found(items[:20], t)) for t in np.asarray(p.tokens)] == p.planted.tolist()
        assert ((p.first_step >= 0) == p.planted).all()
    own = [np.asarray(canaries.probes(planted(seed=seed), train.key(seed, "data")).tokens) for seed in (0, 1)]
    assert not (own[0] == own[1]).all(1).any()


def test_chosen_canaries_are_left_out_and_all_else_stays():
    whole, less = planted(shared=True), planted(shared=True, without="1,4-5")
    assert run_id(planted(without="")) == run_id(planted())
    assert run_id(less) != run_id(whole)
    before, after = (canaries.probes(run, train.key(0, "data")) for run in (whole, less))
    np.testing.assert_array_equal(before.tokens, after.tokens)
    assert np.flatnonzero(before.planted & ~after.planted).tolist() == [1, 4, 5]
    assert not (after.planted & ~before.planted).any()
    assert after.copies[[1, 4, 5]].tolist() == [0, 0, 0]
    items, left = training_set(whole), training_set(less)
    gone = np.isin(canaries.layout(less.stages[0].data.canaries).canary, [1, 4, 5])
    np.testing.assert_array_equal(items[:21][~gone], left[:21][~gone])
    np.testing.assert_array_equal(items[21:], left[21:])
    bare = dataclasses.replace(less, stages=(dataclasses.replace(less.stages[0], data=DataSpec(n_items=N, generator="markov")),))
    np.testing.assert_array_equal(left[:21][gone], training_set(bare)[:21][gone])


def test_the_draw_of_include_is_the_same_among_those_that_are_not_left_out():
    runs = [planted(per_group=20, groups=1, include=0.5, without=text) for text in ("", "0-9")]
    drawn, less = (canaries.probes(run, train.key(0, "data")).planted for run in runs)
    assert not less[:10].any()
    np.testing.assert_array_equal(less[10:], drawn[10:])
    assert drawn[:10].any()


@pytest.mark.parametrize("text", ["x", "3,2", "2,3", "9", "1-", "-1", "0-99999999999", " 1", "1,1", "01", "1-2-3"])
def test_a_list_of_canaries_has_one_way_to_be_written(text):
    with pytest.raises(SpecError, match=r"canaries.without = .* must be numbers of canaries below 9"):
        CanarySpec(per_group=3, groups=3, without=text)
    assert CanarySpec(per_group=3, groups=3, without=as_ranges([8, 2, 3, 4, 2])).left_out == (2, 3, 4, 8)


@pytest.mark.parametrize("placement", ["anywhere", "early", "late", "massed", "spaced"])
def test_steps_are_those_of_the_order_and_the_placement_shows(placement):
    run = planted(n_items=512, batch_size=4, placement=placement, per_group=4, groups=1, copies=8)
    probes = canaries.probes(run, train.key(0, "data"))
    seen = np.asarray(order.permutation(run, jax.random.fold_in(train.key(0, "order"), 0), 512, 512))
    assert sorted(seen) == list(range(512))
    at = {item: place for place, item in enumerate(seen.tolist())}
    for c in range(4):
        places = sorted(at[i] for i in range(8 * c, 8 * c + 8))
        assert (probes.first_step[c], probes.last_step[c]) == (places[0] // 4, places[-1] // 4)
        if placement == "massed":
            assert places[-1] - places[0] < 12
        if placement == "spaced":
            gaps = np.diff([*places, places[0] + 512])
            assert gaps.min() > 32
            assert gaps.max() < 96
        if placement == "early":
            assert places[-1] < 256
        if placement == "late":
            assert places[0] >= 256


def test_a_hotter_trap_is_more_perplexing_and_a_filling_is_of_the_words():
    run = planted(kind="trap", per_group=40, groups=1, coldest=0.3, hottest=5.0, model=dataclasses.replace(MODEL, seq_len=16))
    probes = canaries.probes(run, train.key(0, "data"))
    nats = np.asarray(data.get("markov").nats(run, probes.tokens)).mean(1)[:40]
    assert np.corrcoef(np.log(probes.temperature[:40]), nats)[0, 1] > 0.8
    assert (probes.temperature[0], probes.temperature[39]) == (np.float32(0.3), np.float32(5.0))
    filled = canaries.probes(planted(kind="structured", words=3, word_length=2), train.key(0, "data")).tokens
    assert int(filled[:, -2:].max()) < 3


@pytest.mark.parametrize(("change", "said"), [
    ({"n_items": 20}, "n_items = 20: must be at least the 21 planted items"),
    ({"length": 9}, "canaries.length = 9: must be at most 8"),
    ({"length": 7, "offset": 2}, "canaries.length = 7: must be at most 6"),
    ({"coldest": 2.0}, "canaries.hottest = 1.0: must be at least canaries.coldest = 2.0"),
    ({"segments": 9}, "stage.segments = 9: must be at most the 8 steps"),
])
def test_what_cannot_be_planted_is_one_line(change, said):
    with pytest.raises(SpecError) as caught:
        planted(**change)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("run", "said"), [
    (planted(kind="trap", generator="text"), "needs a source with temperatures"),
    (planted(kind="structured", length=3, word_length=4), "canaries.word_length = 4"),
    (planted(probes=("capacity",)), "which canaries change"),
    (make_run(generator="text"), "nobody knows that of a text"),
    (make_run(probes=("extraction",)), "reads canaries, and data.canaries = None"),
])
def test_what_does_not_go_together_is_one_line_before_anything_runs(run, said):
    with pytest.raises(SpecError) as caught:
        execute.check([run])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.optimised
def test_a_looked_at_run_trains_as_one_that_is_not():
    plain, looked = (trained([planted(segments=s, exposures=2, n_items=50)], slots=N, size=1) for s in (1, 3))
    jax.tree.map(np.testing.assert_array_equal, plain.params, looked.params)
    assert (int(plain.segment[0]), int(looked.segment[0])) == (2, 6)


@pytest.fixture(scope="module")
def runs():
    return [planted(seed=seed, segments=4, at=at, exposures=1) for at in ("powers_of_two", "segments") for seed in (0, 1)]


def work(store, runs, stops=()):
    """Runs packs; asked to stop at these calls, and started again."""
    calls = iter(range(10_000))
    for _ in range(40):
        packs = execute.plan(runs, store)
        if all([execute.work(p, store, stopping=lambda: next(calls) in stops) for p in packs]):
            return
    raise AssertionError("never finished")


def test_a_row_a_canary_and_checkpoint_whatever_interrupts(tmp_path, runs):
    from scalemem.store import Store

    stores = [Store.open(tmp_path / name, create=True) for name in "ab"]
    work(stores[0], runs)
    work(stores[1], runs, stops={0, 2, 3, 5})
    for name in ("runs", "curves", "extraction"):
        assert repr(stores[0].table(name).to_pydict()) == repr(stores[1].table(name).to_pydict())  # NaN is NaN here
    table = stores[0].table("extraction").to_pylist()
    for run in runs:
        rows = [r for r in table if r["run_id"] == execute.run_id(run)]
        when = [1, 2, 4] if run.probes[0].at == "powers_of_two" else [0, 1, 2, 3, 4]
        assert sorted({r["step"] for r in rows}) == [2 * w for w in when]
        assert {r["exposures"] for r in rows} == {w / 4 for w in when}
        assert len(rows) == 13 * len(when)
        assert {(r["seed"], r["n_params"]) for r in rows} == {(run.seed, accounting.n_params(run.model))}
        probes = canaries.probes(run, train.key(run.seed, "data"))
        last = sorted((r for r in rows if r["exposures"] == 1), key=lambda r: r["canary"])
        assert [r["copies"] for r in last] == probes.copies.tolist()
        assert [r["last_step"] for r in last] == probes.last_step.tolist()


def test_extraction_is_what_greedy_decoding_gives():
    """Against a slow loop on a model that has learned something: flags and scores, and the identity of teacher forcing with decoding."""
    from scalemem import models

    model = ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=16, seq_len=8)
    run = planted(model=model, n_items=128, exposures=40, per_group=2, groups=4, copies=4, kind="random")
    state = trained([run], slots=128, size=1)
    params = one(state, 0).params
    got = measure.get("extraction")(run, params, train.key(0, "data"), train.key(0, "probe"))
    probes, apply = canaries.probes(run, train.key(0, "data")), models.apply(model)

    def decode(prompts, count):
        tokens = np.asarray(prompts)
        for _ in range(count):
            following = jax.jit(apply)(params, jnp.asarray(tokens))[:, -1].argmax(-1)
            tokens = np.concatenate([tokens, np.asarray(following)[:, None]], 1)
        return tokens[:, prompts.shape[1]:]

    assert 0 < got["memorized_fraction_planted"] <= 1
    tokens = np.asarray(probes.tokens)
    same = decode(tokens[:, :4], 4) == tokens[:, 4:]
    np.testing.assert_array_equal(got["score_accuracy"], same.mean(1))
    np.testing.assert_array_equal(got["memorized_rate"], same.all(1))
    for k in (1, 2, 4, 6):
        np.testing.assert_array_equal(got[f"extractable_rate_{k}"], (decode(tokens[:, :k], 2) == tokens[:, k : k + 2]).all(1))
    assert got["memorized_fraction_controls"] == got["memorized_rate"][~probes.planted].mean()
    nats = -jax.nn.log_softmax(apply(params, probes.tokens[:, :-1]))
    suffix = np.take_along_axis(np.asarray(nats), np.asarray(probes.tokens)[:, 1:, None], -1)[:, 3:, 0].sum(1)
    np.testing.assert_allclose(got["suffix_nats"], suffix, rtol=1e-4, atol=1e-4)
