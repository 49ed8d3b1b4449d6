"""Measures of staged runs, on models that are functions of the tokens."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MODEL, make_run
from fake_models import constant, fake, forget, lookup

from scalemem import data, measure, models, train
from scalemem.data import domains as stream
from scalemem.data import facts as generator
from scalemem.data import labels
from scalemem.measure import domains, drawing, drift, facts, tasks
from scalemem.measure.moment import Moment, Source
from scalemem.spec import SpecError

KEYS = train.key(0, "data"), train.key(0, "probe")
init = jax.jit(models.init, static_argnums=0)  # one program, and not one for each shape of an array
FACTS = dataclasses.replace(MODEL, vocab_size=64, seq_len=8)


@pytest.fixture(autouse=True)
def no_program_is_kept():
    yield
    forget()
    drift._program.cache_clear()


def at(*sources, stage=1, reference=None, most=8):
    return Moment(stage, reference, tuple(Source(f"stage{i}", *s) for i, s in enumerate(sources)), most)


def facts_run(**spec):
    return make_run(FACTS, generator="facts", data={"variants": 3, "relations": 2, **spec})


def test_facts_that_a_model_knows_are_recalled_and_recognized(monkeypatch):
    run, sure = facts_run(), 12.0
    known = np.asarray(drawing.items(run, KEYS[0], np.arange(0, 12, 3)))  # the first sentence of facts 0 .. 3
    fake(monkeypatch, lookup(known, 64, sure))
    found = measure.get("facts")(run, {}, *KEYS, at((0, 24), (3 << 18, 3)))
    assert found["source"].tolist() == ["stage0"] * 8 + ["stage1"] + ["control"] * 8
    control = (1 << 29) // 3
    assert found["fact"].tolist() == [*range(8), 1 << 18, *range(control, control + 8)]
    knows = np.arange(17) < 4
    right = math.log1p(63 * math.exp(-sure))  # -log p of a token of which the model is sure, and of one it has no idea of
    np.testing.assert_allclose(found["memorization_nats"], np.where(knows, 2 * right, 2 * math.log(64)), rtol=1e-4)
    np.testing.assert_allclose(found["semantic_nats"], 2 * math.log(64), rtol=1e-5)
    np.testing.assert_allclose(found["composition_nats"], 2 * math.log(64), rtol=1e-5)
    assert found["recalled"].tolist() == knows.tolist()
    np.testing.assert_array_equal(found["recognized_fraction"], np.where(knows, 1, 0.5))
    assert (found["margin_nats"][knows] > 0.9 * sure).all()
    assert not found["margin_nats"][~knows].any()


def test_paraphrase_and_composition_are_read_at_their_objects(monkeypatch):
    run = facts_run()
    asked = {name: np.asarray(t) for name, t in jax.jit(lambda f: generator.probes(run, KEYS[0], f))(jnp.arange(4)).items()}
    for name in ("semantic", "composition"):
        fake(monkeypatch, lookup(asked[name], 64, 60.0))
        found = facts.measure(run, {}, *KEYS, at((0, 12)))
        for kind in facts.KINDS:
            assert (found[f"{kind}_nats"][:4] < 1e-6).all() == (kind == name)
        assert not found["recalled"].any()


def test_one_variant_and_no_structure_have_no_paraphrase(monkeypatch):
    fake(monkeypatch, constant(np.zeros(64)))
    found = facts.measure(facts_run(variants=1), {}, *KEYS, at((0, 4), (1 << 28, 4), most=3))
    first = 1 << 28
    assert found["source"].tolist() == ["stage0"] * 3 + ["stage1"] * 3 + ["control"] * 3 + ["control_random"] * 3
    assert found["fact"].tolist() == [start + i for start in (0, first, 2 * first, 3 * first) for i in range(3)]
    assert np.isnan(found["semantic_nats"]).all()
    assert np.isnan(found["composition_nats"]).all()
    again = facts.measure(facts_run(), {}, *KEYS, at((0, 12), (6, 12), most=4))  # facts 0 .. 3 and 2 .. 5
    assert again["fact"].tolist()[:6] == list(range(6))
    assert again["source"].tolist() == ["stage0"] * 4 + ["stage1"] * 2 + ["control"] * 4
    mixed = facts.measure(facts_run(), {}, *KEYS, at((0, 12), ((1 << 28) + 3, 12), most=2))
    assert np.isnan(mixed["semantic_nats"]).tolist() == [False, False, True, True, False, False, True, True]


def test_recognition_is_at_chance_for_a_model_that_knows_which_values_are_likely(monkeypatch):
    preferred = constant(np.random.default_rng(0).normal(size=64))
    fake(monkeypatch, lambda tokens: preferred(tokens) + 0.0 * tokens[..., None])  # else XLA would work all of it out as a constant
    found = facts.measure(facts_run(), {}, *KEYS, at((0, 900), most=300))
    assert found["recognized_fraction"].mean() == pytest.approx(0.5, abs=0.04)
    assert abs(found["margin_nats"].mean()) < 0.2


def test_loss_of_domains_is_that_of_the_source_above_what_must_be(monkeypatch):
    model = dataclasses.replace(MODEL, vocab_size=16)
    run = make_run(model, generator="domains", data={"domains": 3})
    p = np.exp(-data.get("domains").source.choice(16, 1.0).nats)

    def knows_the_first(tokens):  # the conditional distribution of language A, of the last token
        shift = stream._shift(run, jnp.int32(0), (tokens.astype(jnp.uint32) + 1,))
        return jnp.log(jnp.asarray(p, jnp.float32))[(jnp.arange(16) - shift[..., None]) % 16]

    fake(monkeypatch, knows_the_first)
    found = measure.get("domains")(run, {}, *KEYS, at((0, 9), (2 << 20, 5), most=16))
    assert found["domain"].tolist() == [0, 1, 2]
    assert found["touched"].tolist() == [True, False, True]
    assert found["excess_nats"][0] == pytest.approx(0, abs=1e-6)
    for d in (1, 2):
        tokens = np.asarray(drawing.items(run, KEYS[0], d * stream.DOMAIN + stream.HELD_OUT + np.arange(16)))
        by_hand = -np.take_along_axis(np.asarray(jax.jit(knows_the_first)(jnp.asarray(tokens[:, :-1]))), tokens[:, 1:, None], -1).mean()
        assert found["loss_nats"][d] == pytest.approx(by_hand, rel=1e-5)
        exact = float(jax.jit(lambda t: stream.nats(run, t, d))(jnp.asarray(tokens)).mean())  # noqa: B023
        assert found["excess_nats"][d] == pytest.approx(by_hand - exact, abs=1e-5)
    assert 0.1 < found["excess_nats"][1] < found["excess_nats"][2]


@pytest.mark.parametrize(("scenario", "accuracy"), [("class", [0, 0.5, 0, 0]), ("task", [0.5, 0.5, 0.5, 0.5]), ("domain", [0.5, 0.5, 0.5, 0.5])])
def test_accuracy_under_each_scenario_of_a_model_that_always_says_the_same(monkeypatch, scenario, accuracy):
    run = make_run(dataclasses.replace(MODEL, vocab_size=16), generator="prototypes", data={"classes": 8, "scenario": scenario, "per_class": 10})
    preferred = np.zeros(16)
    preferred[[12, 14, 10, 8]] = [3.0, 2.0, 1.0, 1.0]  # labels 3, 1, 5, 7: the second class of each task, that of task 1 above all
    if scenario == "domain":
        preferred[12] = 0
    fake(monkeypatch, constant(preferred))
    found = measure.get("tasks")(run, {}, *KEYS, at(labels.split(0, per_class=10), (20, 60), labels.split(1, per_class=10), most=1000))
    assert found["task"].tolist() == [0, 1, 2, 3]
    assert found["transform"].tolist() == [0] * 4
    assert found["n_test_count"].tolist() == [68] * 4
    assert found["accuracy_fraction"].tolist() == accuracy
    log_z = math.log(np.exp(preferred).sum())
    by_hand = {"class": [log_z - 1, log_z - 1.5, log_z - 0.5, log_z - 0.5], "domain": [log_z - 1] * 4,
               "task": [math.log(1 + math.exp(x)) - x / 2 for x in (2.0, 3.0, 1.0, 1.0)]}[scenario]
    np.testing.assert_allclose(found["loss_nats"], by_hand, rtol=1e-5)


def test_tasks_of_a_permuted_stream_are_transforms(monkeypatch):
    run = make_run(dataclasses.replace(MODEL, vocab_size=16), generator="prototypes", data={"classes": 8, "task_classes": 8, "per_class": 10})
    fake(monkeypatch, constant(np.zeros(16)))
    found = tasks.measure(run, {}, *KEYS, at(labels.permuted(2, 8, 10), labels.permuted(0, 8, 10), most=40))
    assert found["transform"].tolist() == [2, 0]
    assert found["task"].tolist() == [0, 0]
    assert found["n_test_count"].tolist() == [40, 40]
    np.testing.assert_allclose(found["loss_nats"], math.log(16), rtol=1e-6)


@pytest.mark.parametrize("name", ["markov", "facts"])
def test_drift_is_entropy_and_divergence_of_the_earlier_predictions(name):
    run = make_run(FACTS, generator=name)
    old, new = (jax.tree.map(lambda x: 10 * np.asarray(x), init(FACTS, train.key(seed, "init"))) for seed in (0, 1))
    moment = at((100, 20), (0, 7), reference=old, most=5)
    found = measure.get("drift")(run, new, *KEYS, moment)
    expected = np.arange(100, 120, 4) if name == "facts" else (1 << 29) + (1 << 27) + np.arange(5)
    np.testing.assert_array_equal(drift.contexts(run, moment), expected)
    tokens = np.asarray(drawing.items(run, KEYS[0], expected))[:, :-1]
    p, q = (np.asarray(jax.jit(models.apply(FACTS))(w, tokens), np.float64) for w in (old, new))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    assert found["base_entropy_nats"] == pytest.approx(-(np.exp(p) * p).sum(-1).mean(), rel=1e-5)
    assert found["forgetting_nats"] == pytest.approx(-(np.exp(p) * q).sum(-1).mean(), rel=1e-5)
    assert found["kl_nats"] == pytest.approx(found["forgetting_nats"] - found["base_entropy_nats"], abs=1e-12)
    before = drift.measure(run, old, *KEYS, moment)
    assert before["kl_nats"] == 0
    assert before["forgetting_nats"] == before["base_entropy_nats"] > 0
    assert all(math.isnan(x) for x in drift.measure(run, new, *KEYS, at((0, 4), stage=0)).values())


def test_small_divergences_are_exact(monkeypatch):
    base = np.random.default_rng(0).normal(size=(2, 64))
    monkeypatch.setattr(models, "apply", lambda spec: lambda w, tokens: jnp.broadcast_to(w, (*tokens.shape, 64)) + 0.0 * tokens[..., None])
    for size in (1e-5, 1e-3, 1.0, 30.0):
        old, new = np.float32(base[0]), np.float32(base[0] + size * base[1])
        p, q = (np.float64(x) - math.log(np.exp(np.float64(x)).sum()) for x in (old, new))
        exact = (np.exp(p) * (p - q)).sum()
        assert drift.divergence(FACTS, jnp.asarray(old), jnp.asarray(new), np.zeros((4, 7)))[1] == pytest.approx(exact, rel=0.02, abs=1e-13)


def test_drift_of_labelled_items_is_read_at_the_label():
    model = dataclasses.replace(MODEL, arch="mlp", vocab_size=16, init_std=0.5)
    run = make_run(model, generator="prototypes", data={"classes": 8, "per_class": 10})
    old, new = (init(model, train.key(seed, "init")) for seed in (0, 1))
    moment = at(labels.split(1, per_class=10), reference=old, most=10)
    found = drift.measure(run, new, *KEYS, moment)
    index = drift.contexts(run, moment)
    assert {int(labels.place(run, int(i)).number) for i in index} == {2, 3}
    tokens = np.asarray(drawing.items(run, KEYS[0], index))[:, :-1]
    apply = jax.jit(lambda w: jax.nn.log_softmax(models.apply(model)(w, tokens)[:, -1]))  # type: ignore[arg-type]
    p, q = (np.asarray(apply(w), np.float64) for w in (old, new))
    assert found["forgetting_nats"] == pytest.approx(-(np.exp(p) * q).sum(-1).mean(), rel=1e-5)


@pytest.mark.parametrize(("name", "other"), [("facts", "domains"), ("domains", "markov"), ("tasks", "facts")])
def test_a_measure_of_other_data_is_one_line(name, other):
    run = make_run(generator=other, probes=(name,))
    with pytest.raises(SpecError, match=f"probe.measure = '{name}': reads items of") as error:
        measure.check(run)
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(SpecError, match="must be"):
        measure.get(name)(run, {}, *KEYS, at((0, 4)))
    measure.check(make_run(generator=other, probes=("drift",)))
    assert domains.measure is measure.get("domains")
