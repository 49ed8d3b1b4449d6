"""Streams of domains and of labelled items: oracles for what is drawn, ranges for what is trained on and what is held out."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MODEL, make_run
from sklearn.datasets import load_digits

from scalemem import data, train
from scalemem.data import domains, labels, markov, prototypes
from scalemem.spec import InjectSpec, ReplaySpec, SpecError

KEY = train.key(0, "data")
draw = {name: jax.jit(data.get(name).items, static_argnums=0) for name in ("markov", "domains", "digits", "prototypes")}
nats = {name: jax.jit(data.get(name).nats, static_argnums=0) for name in ("markov", "domains")}
IMAGES = dataclasses.replace(MODEL, vocab_size=27, seq_len=65)


def run_of(generator, model=MODEL, stage=None, **spec):
    run = make_run(model, generator=generator, data=spec)
    return dataclasses.replace(run, stages=(dataclasses.replace(run.stages[0], **(stage or {})),))


def test_the_ends_of_the_stream_are_the_two_languages():
    run, index = run_of("domains", domains=5, context=2, language=7), jnp.arange(6)
    a, b = (run_of("markov", context=2, language=language) for language in (7, 8))
    last = 4 * domains.DOMAIN + index
    np.testing.assert_array_equal(draw["domains"](run, KEY, index), draw["markov"](a, KEY, index))
    np.testing.assert_array_equal(draw["domains"](run, KEY, last), draw["markov"](b, KEY, last))
    tokens = draw["domains"](run, KEY, last)
    np.testing.assert_array_equal(nats["domains"](run, tokens, 4), nats["markov"](b, tokens))
    np.testing.assert_array_equal(nats["domains"](run, tokens), nats["markov"](a, tokens))
    both = jnp.concatenate([index, last])
    np.testing.assert_array_equal(nats["domains"](run, draw["domains"](run, KEY, both), both // domains.DOMAIN),
                                  np.concatenate([nats["markov"](a, draw["markov"](a, KEY, index)), nats["markov"](b, tokens)]))
    assert domains.entropy_bits(run) == markov.entropy_bits(a)


def test_neighbours_differ_in_equal_shares_of_the_contexts_and_only_one_way():
    run = run_of("domains", dataclasses.replace(MODEL, vocab_size=97), domains=5, context=2)
    context = tuple(jnp.asarray(c, jnp.uint32).ravel() for c in np.meshgrid(np.arange(1, 98), np.arange(1, 98)))
    shift = np.stack([domains._shift(run, jnp.int32(d), context) for d in range(5)])
    differs = (shift[:, None] != shift[None]).mean(-1) / (1 - 1 / 97)  # two languages agree by chance in one context in V
    np.testing.assert_allclose(differs, np.abs(np.arange(5)[:, None] - np.arange(5)) / 4, atol=0.02)
    assert ((shift == shift[0]) | (shift == shift[4])).all()


def test_nats_of_a_domain_are_those_of_its_items_in_expectation():
    run, index = run_of("domains", domains=3), domains.DOMAIN + jnp.arange(4000)
    mean = float(nats["domains"](run, draw["domains"](run, KEY, index), 1).sum(-1).mean()) / math.log(2)
    assert mean == pytest.approx(domains.entropy_bits(run), rel=0.01)


def test_digits_are_those_of_scikit_learn_split_once():
    pixels, digit = load_digits(return_X_y=True)
    known = {(*row.astype(int), c) for row, c in zip(pixels, digit, strict=True)}
    run = run_of("digits", IMAGES)
    train_items, test_items = jnp.arange(1400), labels.TEST + jnp.arange(340)
    trained, tested = (np.asarray(draw["digits"](run, KEY, index)) for index in (train_items, test_items))
    assert trained.shape == (1400, 65)
    np.testing.assert_array_equal(26 - trained[:, -1], np.repeat(np.arange(10), 140))
    np.testing.assert_array_equal(26 - tested[:, -1], np.repeat(np.arange(10), 34))
    images = [(*row[:64].tolist(), 26 - row[64]) for row in np.concatenate([trained, tested])]
    assert set(images) <= known
    assert len(set(images)) > 1735  # scikit-learn's images are nearly all different
    np.testing.assert_array_equal(draw["digits"](run, train.key(9, "data"), train_items), trained)
    fewer = draw["digits"](run_of("digits", IMAGES, per_class=20), KEY, jnp.arange(200))
    np.testing.assert_array_equal(fewer.reshape(10, 20, 65), trained.reshape(10, 140, 65)[:, :20])


def test_a_transform_permutes_the_places_and_keeps_the_label():
    run = run_of("digits", IMAGES)
    plain, one, two = (np.asarray(draw["digits"](run, KEY, t * labels.TRANSFORM + jnp.arange(50))) for t in range(3))
    for moved in (one, two):
        assert not (moved == plain)[:, :64].all()
        np.testing.assert_array_equal(np.sort(moved[:, :64]), np.sort(plain[:, :64]))
        np.testing.assert_array_equal(moved[:, 64], plain[:, 64])
    order = np.asarray(labels.permutation(jnp.int32(1), 64))
    np.testing.assert_array_equal(one[:, :64], plain[:, order])
    assert sorted(order) == list(range(64))
    assert (one != two).any()
    np.testing.assert_array_equal(draw["digits"](run, KEY, jnp.array([3, labels.TRANSFORM + 3])), [plain[3], one[3]])


def test_scenarios_say_what_the_label_is():
    index = jnp.arange(10) * 140
    asked = {scenario: (26 - np.asarray(draw["digits"](run_of("digits", IMAGES, scenario=scenario, task_classes=5), KEY, index))[:, 64]).tolist()
             for scenario in ("class", "task", "domain")}
    assert asked == {"class": list(range(10)), "task": list(range(10)), "domain": [*range(5), *range(5)]}


def test_ranges_of_tasks():
    run = run_of("digits", IMAGES)
    for t in range(5):
        first, n_items = labels.split(t)
        assert {int(labels.place(run, i).number) for i in range(first, first + n_items)} == {2 * t, 2 * t + 1}
        assert labels.tasks(run, first, n_items) == [(0, t)]
        low, count = labels.held_out_split(t)
        places = [labels.place(run, i) for i in range(low, low + count)]
        assert {int(p.number) for p in places} == {2 * t, 2 * t + 1}
        assert all(p.test for p in places)
        assert sorted(labels.test_items(run, 0, t, 1000)) == list(range(low, low + count))
    first, n_items = labels.permuted(3)
    whole = run_of("digits", IMAGES, task_classes=10)
    assert labels.tasks(whole, first, n_items) == [(3, 0)]
    assert labels.tasks(whole, 0, 4 * labels.TRANSFORM) == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert labels.tasks(run, 140, 700) == [(0, 0), (0, 1), (0, 2)]
    assert len(labels.test_items(whole, 3, 0, 10)) == 10
    assert {int(labels.place(whole, int(i)).number) for i in labels.test_items(whole, 3, 0, 10)} == set(range(10))
    beyond = labels.place(run, labels.TEST + 340)
    assert not beyond.test
    assert beyond.number < 10


def test_prototypes_are_their_class_with_noise():
    model = dataclasses.replace(MODEL, vocab_size=12)
    exact, noisy = (run_of("prototypes", model, classes=4, per_class=500, noise=noise) for noise in (0.0, 0.25))
    index = jnp.arange(2000)
    pure, drawn = (np.asarray(draw["prototypes"](run, KEY, index)) for run in (exact, noisy))
    assert len(np.unique(pure, axis=0)) == 4
    np.testing.assert_array_equal(11 - pure[:, -1], np.repeat(np.arange(4), 500))
    np.testing.assert_array_equal(drawn[:, -1], pure[:, -1])
    assert drawn[:, :-1].max() < 8
    same = (drawn == pure)[:, :-1].mean()
    assert same == pytest.approx(0.75 + 0.25 / 8, abs=0.01)
    other = np.bincount((drawn - pure)[:, :-1].ravel() % 8, minlength=8)[1:] / drawn[:, :-1].size
    np.testing.assert_allclose(other, 0.25 / 8, atol=0.006)
    assert prototypes.entropy_bits(exact) == 0
    half = run_of("prototypes", dataclasses.replace(MODEL, vocab_size=6), classes=4, noise=0.5)
    assert prototypes.entropy_bits(half) == pytest.approx(6 * -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)))


SMALL = dataclasses.replace(MODEL, vocab_size=12)


@pytest.mark.parametrize(("run", "message"), [
    (run_of("digits"), "model.seq_len = 8: must be 65"),
    (run_of("digits", dataclasses.replace(IMAGES, vocab_size=26)), "model.vocab_size = 26: must be at least 27"),
    (run_of("digits", IMAGES, per_class=141), "data.per_class = 141: must be at most 140"),
    (run_of("digits", IMAGES, task_classes=4), "data.task_classes = 4: must divide the 10 classes; try 2"),
    (run_of("digits", IMAGES, first=1390), r"stages\[0\].data.n_items = 13: items from 1390 on end at 1400"),
    (run_of("digits", IMAGES, {"objective": "label_in_task_5"}), r"stages\[0\].objective = 'label_in_task_5': must be label_in_task_2"),
    (run_of("prototypes", SMALL, classes=11), "model.vocab_size = 12: must be at least 13"),
    (run_of("prototypes", SMALL, classes=4, per_class=1 << 16, stage={"inject": InjectSpec(n_items=2, first=(1 << 18) - 1)}), "inject.n_items = 2"),
    (run_of("domains", domains=3, first=3 << 20), r"stages\[0\].data.first = 3145728: its last item is of domain 3"),
    (run_of("domains", domains=3, first=(1 << 19) - 5), r"stages\[0\].data.first = 524283: items 524283 .. 524295 are not all"),
    (run_of("domains", domains=3, stage={"inject": InjectSpec(n_items=2, first=1 << 19)}), r"stages\[0\].inject.first = 524288"),
])
def test_what_does_not_fit_is_one_line(run, message):
    with pytest.raises(SpecError, match=message) as error:
        data.check(run)
    assert len(str(error.value).splitlines()) == 1


def test_a_replay_pool_may_span_domains_and_transforms():
    data.check(run_of("domains", domains=3, first=2 << 20, stage={"replay": ReplaySpec(fraction=0.1, n_items=2 << 20)}))
    data.check(run_of("digits", IMAGES, first=2 << 22, task_classes=10, stage={"replay": ReplaySpec(fraction=0.1, n_items=2 << 22)}))
