"""Adversarial compression against exhaustive search, models whose shortest prompts are known, and differences in float64."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MODEL, make_run

from scalemem import data, models, train
from scalemem.data import canaries
from scalemem.measure import compression
from scalemem.spec import CanarySpec, DataSpec, SpecError

KEY = jax.random.key(0)


def planted(spec, **keywords):
    run = make_run(**keywords)
    stage = dataclasses.replace(run.stages[0], data=DataSpec(n_items=run.stages[0].data.n_items, canaries=spec))
    return dataclasses.replace(run, stages=(stage,))


@functools.lru_cache(maxsize=8)
def greedy(apply, length):
    """The next token at every place of sequences of this length."""
    return jax.jit(lambda params, tokens: apply(params, tokens).argmax(-1))


def says(apply, params, prompts, length, room=8):
    """Greedy decoding from prompts of one length, a token at a time, in a room of fixed length: what stands behind is not seen."""
    prompts = np.atleast_2d(prompts)
    tokens, n = np.pad(prompts, ((0, 0), (0, room - prompts.shape[1]))), prompts.shape[1]
    for place in range(n, n + length):
        tokens[:, place] = greedy(apply, room)(params, tokens)[:, place - 1]
    return tokens[:, n : n + length].tolist()


@pytest.fixture(scope="module")
def memorizer():
    """A run of four planted canaries and four that are not, trained until it knows its items; its parameters, and its model."""
    run = planted(CanarySpec(per_group=2, groups=2, ratio=3, controls=4), n_items=16, exposures=400)
    shape, knobs = train.Shape.of(run), train.knobs(run)
    return run, jax.jit(lambda: train.advance(shape, train.start(shape, knobs), knobs, 1 << 20))().params, compression._apply(MODEL)


@pytest.mark.parametrize("tied", [True, False])
def test_slopes_are_those_of_the_one_hot_code(tied):
    """Differences of a float64 model that takes soft tokens; a tied head has the extra rows as classes, which must not count."""
    rng = np.random.default_rng(0)
    table, head = rng.normal(size=(11, 5)), rng.normal(size=(5, 11))
    head = table.T if tied else head
    n, target, prompt = 3, np.array([4, 9, 4, 0]), np.array([7, 7, 2, 10, 1])  # five places, of which three count

    def nats(soft):
        code = np.concatenate([soft[:n], np.eye(11)[target[:-1]]])
        logits = (np.tanh(np.cumsum(code @ table, 0)) @ head)[n - 1 :]
        return (np.log(np.exp(logits).sum(-1)) - logits[np.arange(4), target]).mean()

    soft = np.eye(11)[prompt]
    expected = np.zeros((5, 11))
    for place in np.ndindex(5, 11):
        step = np.zeros((5, 11))
        step[place] = 1e-5
        expected[place] = (nats(soft + step) - nats(soft - step)) / 2e-5
    params = {"tokens": jnp.asarray(table, jnp.float32), "head": jnp.asarray(head, jnp.float32)}
    apply = lambda p, t: jnp.tanh(jnp.cumsum(p["tokens"][t], 1)) @ (p["tokens"].T if tied else p["head"])  # noqa: E731
    got = compression.slopes(apply, params, jnp.asarray(prompt), jnp.asarray(target), n)
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)
    assert not expected[n:].any()
    assert np.abs(expected[:n]).min() > 1e-4


@pytest.mark.parametrize(("longest", "length"), [(1, 1), (1, 3), (4, 1), (4, 3)])
def test_the_target_stands_right_behind_the_prompt(longest, length):
    prompt, target = np.arange(1, longest + 1), np.arange(101, 101 + length)
    for n in range(1, longest + 1):
        expected = [*prompt[:n], *target, *[0] * longest][: longest + length - 1]
        assert compression._laid(jnp.asarray(prompt), jnp.asarray(target), n).tolist() == expected


def chain(vocab, seed=0):
    """A model of which each token has one successor: (apply, params, successor)."""
    after = np.random.default_rng(seed).permutation(vocab)
    params = {"tokens": jnp.eye(vocab), "head": 9 * jnp.eye(vocab)[after]}
    return lambda p, t: p["tokens"][t] @ p["head"], params, after


def test_a_chain_needs_one_token_and_what_is_no_chain_has_no_prompt():
    apply, params, after = chain(24)
    target = [3]
    while len(target) < 6:
        target.append(int(after[target[-1]]))
    found = compression.search(apply, params, target, KEY, longest=6)
    assert found is not None
    assert found.tolist() == [int(np.flatnonzero(after == 3)[0])]
    assert says(apply, params, found, 6) == [target]
    again = compression.search(apply, params, target, KEY, longest=6)
    assert again is not None
    assert again.tolist() == found.tolist()
    broken = [*target[:-1], (target[-1] + 1) % 24]
    assert compression.search(apply, params, broken, KEY, longest=6, steps=20) is None


@pytest.fixture(scope="module")
def least(memorizer):
    """Tokens of the shortest prompt of each five tokens that the model says after one, two or three: all prompts are tried."""
    _, params, apply = memorizer
    shortest = {}
    for n in (3, 2, 1):
        prompts = np.array(list(itertools.product(range(32), repeat=n)), np.int32)
        shortest.update({tuple(said): n for said in says(apply, params, np.resize(prompts, (32**max(n, 2), n)), 5)})
    return shortest


def test_against_all_prompts_of_up_to_three_tokens(memorizer, least):
    """At the length of the shortest prompt there is, one is found: always of one token, mostly of more; below it, never."""
    run, params, apply = memorizer
    items = np.asarray(data.get("uniform").items(run, train.key(0, "data"), jnp.arange(12, 16)))  # behind the copies of the canaries
    few = [np.random.default_rng(n).permutation([y for y in least if least[y] == n])[:4].tolist() for n in (1, 2)]
    found = {1: [], 2: [], 3: []}
    for i, target in enumerate([*few[0], *few[1], *items[:, 3:].tolist()]):
        shortest = least[tuple(target)]
        for n in range(1, shortest + 1):
            hit, prompt = compression._attempt(params, jnp.asarray(target), n, 60, jax.random.fold_in(KEY, i), apply=apply, longest=3,
                                               candidates=100, top_k=32)
            assert bool(hit) == (says(apply, params, np.asarray(prompt)[:n], 5) == [target])
            assert n == shortest or not hit
        found[shortest].append(bool(hit))
    assert found[1] == [True] * 4
    assert sum(found[2]) >= 2
    assert sum(found[3]) >= 3
    assert compression.search(apply, params, [5, 5, 9, 5, 1], KEY, longest=3, steps=60) is None
    assert (5, 5, 9, 5, 1) not in least


def tried(monkeypatch, works, longest):
    """(length, moves) of each attempt when the lengths in `works` succeed, and the length of what is returned."""
    log = []

    def attempt(params, target, n, steps, key, **_):
        log.append((n, steps))
        return n in works, np.arange(longest)

    monkeypatch.setattr(compression, "_attempt", attempt)
    found = compression.search(lambda p, t: t, {"tokens": jnp.eye(4)}, [1, 2], KEY, longest=longest)
    return log, None if found is None else len(found)


@pytest.mark.parametrize(("works", "longest", "lengths", "moves", "found"), [
    (range(1, 99), 20, [5, 4, 3, 2, 1], [200] * 5, 1),
    (range(4, 99), 20, [5, 4, 3], [200] * 3, 4),
    (range(8, 99), 20, [5, 10, 9, 8, 7], [200] + [240] * 4, 8),
    (range(6, 99), 20, [5, 10, 9, 8, 7, 6], [200] + [240] * 5, 6),
    ([], 17, [5, 10, 15, 17], [200, 240, 288, 345], None),
    ([17], 17, [5, 10, 15, 17, 16], [200, 240, 288, 345, 345], 17),
    (range(2, 99), 3, [3, 2, 1], [200] * 3, 2), ([], 1, [1], [200], None)])
def test_the_schedule(monkeypatch, works, longest, lengths, moves, found):
    assert tried(monkeypatch, works, longest) == (list(zip(lengths, moves, strict=True)), found)


def test_the_schedule_ends_whatever_succeeds(monkeypatch):
    for works, longest in itertools.product(itertools.chain.from_iterable(itertools.combinations(range(1, 8), k) for k in range(8)), (4, 7)):
        log, found = tried(monkeypatch, works, longest)
        lengths = [n for n, _ in log]
        assert len(set(lengths)) == len(lengths)
        assert set(lengths) <= set(range(1, longest + 1))
        assert found == min(set(works) & set(lengths), default=None)


def test_trained_canaries_are_compressible_and_their_like_are_not(memorizer, least):
    """Of canaries that fill their sequences: targets of 5 tokens, and at most 3 before them."""
    run, params, apply = memorizer
    got = compression.measure(run, params, train.key(0, "data"), train.key(0, "probe"))
    assert got["planted"].tolist() == [True] * 4 + [False] * 4
    assert got["target_tokens"].tolist() == [5] * 8
    assert got["acr_compressible_fraction"] > 0.5 > got["acr_compressible_fraction_control"] == got["compressible"][4:].mean()
    probes = canaries.probes(run, train.key(0, "data"))
    for i, shortest in enumerate(got["shortest_prompt_tokens"]):
        assert got["compressible"][i] == (shortest < 5)
        assert math.isnan(shortest) or 1 <= shortest <= 3
        np.testing.assert_equal(got["acr_ratio"][i], 5 / shortest)
        exact = least.get(tuple(np.asarray(probes.tokens)[i, 3:].tolist()))
        assert (exact is not None) == (i < 4)
        assert math.isnan(shortest) or shortest >= exact
    rows = np.asarray(probes.tokens)
    known = (np.array(says(apply, params, rows[:, :3], 5)) == rows[:, 3:]).all(1)
    assert known.tolist() == [True] * 4 + [False] * 4  # a prompt that there is, whether or not the search finds it


@pytest.mark.parametrize(("spec", "rows", "target", "longest"), [
    (CanarySpec(per_group=20, controls=30, length=2, offset=1), 16, (1, 3), 6), (CanarySpec(per_group=3), 3, (3, 8), 3)])
def test_what_is_searched_for(monkeypatch, spec, rows, target, longest):
    """At most 8 a side, evenly; the last tokens of the canary; the key follows the canary; without controls their share is nan."""
    calls, run = [], planted(spec, n_items=32, exposures=0)
    monkeypatch.setattr(compression, "search", lambda apply, params, y, key, longest: calls.append((y, key, longest)) or (
        y[:1] if len(calls) % 2 else None))
    params = models.init(MODEL, KEY)
    got = compression.measure(run, params, train.key(0, "data"), KEY)
    probes = canaries.probes(run, train.key(0, "data"))
    arrays = {name: column for name, column in got.items() if np.ndim(column)}
    assert {len(column) for column in arrays.values()} == {rows} == {len(calls)}
    assert set(arrays) >= {"canary", "copies", "planted", "target_tokens", "shortest_prompt_tokens", "acr_ratio", "compressible"}
    assert max(got["planted"].sum(), (~got["planted"]).sum()) <= 8
    numbers = got["canary"][got["planted"]]
    assert (numbers[0], numbers[-1]) == (0, spec.per_group - 1)
    assert np.ptp(np.diff(numbers)) <= 1 if len(numbers) > 1 else numbers.tolist() == [0]
    for canary, (y, key, most) in zip(got["canary"], calls, strict=True):
        assert y.tolist() == np.asarray(probes.tokens)[canary, slice(*target)].tolist()
        assert key == jax.random.fold_in(KEY, int(canary))
        assert most == longest
    assert got["acr_compressible_fraction"] == got["compressible"][got["planted"]].mean()
    assert math.isnan(got["acr_compressible_fraction_control"]) == (spec.controls == 0)
    np.testing.assert_array_equal(got["compressible"], np.nan_to_num(got["acr_ratio"]) > 1)
    np.testing.assert_array_equal(np.isnan(got["acr_ratio"]), [i % 2 == 1 for i in range(rows)])


def test_one_program_for_all_lengths_of_prompt():
    model, params, after = chain(16, seed=1)
    traced = []
    apply = lambda p, t: traced.append(t.shape) or model(p, t)  # noqa: E731
    compression.search(apply, params, [1, int(after[1])], KEY, longest=7, steps=3)
    first = len(traced)
    assert first > 0
    compression.search(apply, params, [2, int(after[3])], KEY, longest=7, steps=5)
    assert len(traced) == first


@pytest.mark.parametrize(("arguments", "says"), [
    ({"longest": 0}, "^longest = 0, target of shape"), ({"target": []}, r"^longest = 3, target of shape \(0,\)"),
    ({"params": {"wte": 1}}, "^params has wte: must have the embeddings as params\\['tokens'\\]")])
def test_bad_arguments(arguments, says):
    legal = {"params": {"tokens": jnp.eye(4)}, "target": [1, 2], "key": KEY, "longest": 3}
    with pytest.raises(ValueError, match=says) as error:
        compression.search(lambda p, t: t, **{**legal, **arguments})
    assert "\n" not in str(error.value)


def test_a_run_without_canaries_is_one_line():
    with pytest.raises(SpecError, match=r"^data.canaries = None: must be"):
        compression.measure(make_run(), {}, KEY, KEY)
