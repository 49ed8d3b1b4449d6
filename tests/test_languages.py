"""Synthetic languages: what is drawn, what is said of its likelihood and its entropy are those of an enumeration of all sequences."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MODEL, make_run
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scalemem import train
from scalemem.data import markov, pcfg, source, uniform, zipf
from scalemem.spec import SpecError

KEY = train.key(5, "data")
MODULES = {"uniform": uniform, "zipf": zipf, "markov": markov, "pcfg": pcfg}
SMALL = [("uniform", 3, 3, {}), ("zipf", 4, 3, {}), ("markov", 3, 4, {}), ("markov", 3, 5, {"context": 2, "zipf": 0.0}),
         ("markov", 3, 5, {"context": 3, "zipf": 2.5}), ("markov", 2, 4, {"context": 8}), ("pcfg", 3, 2, {"rules": 2}), ("pcfg", 3, 3, {"rules": 3}),
         ("pcfg", 3, 5, {"rules": 2}), ("pcfg", 3, 7, {"rules": 2, "zipf": 0.5}), ("pcfg", 4, 5, {"rules": 1}), ("pcfg", 2, 8, {"rules": 2})]
DRAWN = [SMALL[i] for i in (1, 2, 4, 8, 9)]
UNOPTIMIZED: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
INDEX = np.arange(600, dtype=np.int32)
LARGE = [("uniform", {}), ("zipf", {}), ("markov", {"context": 2}), ("pcfg", {"zipf": 0.7})]


def language(name, vocab=32, seq_len=11, **data):
    """A run of a source, and the source."""
    run = make_run(dataclasses.replace(MODEL, vocab_size=vocab, seq_len=seq_len), generator=name)
    stage = dataclasses.replace(run.stages[0], data=dataclasses.replace(run.stages[0].data, **{"language": 3, **data}))
    return dataclasses.replace(run, stages=(stage,)), MODULES[name]


@functools.cache
def program(function):
    """The function compiled, a run being static; not optimized, for compiling is what these tests wait for."""
    return jax.jit(function, static_argnums=0, compiler_options=UNOPTIMIZED)


def items(run, index, key=KEY):
    return np.asarray(program(MODULES[run.stages[0].data.generator].items)(run, key, jnp.asarray(index, jnp.int32)))


def tempered(run, index, temperature):
    return np.asarray(program(MODULES[run.stages[0].data.generator].tempered)(run, KEY, jnp.asarray(index), jnp.asarray(temperature, jnp.float32)))


def nats(run, tokens):
    return np.asarray(program(MODULES[run.stages[0].data.generator].nats)(run, jnp.asarray(tokens)))


def law(n, exponent):
    weight = [r**-exponent for r in range(1, n + 1)]
    return [w / math.fsum(weight) for w in weight]


def hash_of(*parts):
    """`source.hashed` in whole numbers without bounds."""
    def mix(x):
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            x = ((x ^ (x >> shift)) * factor) % 2**32
        return x ^ (x >> 16)

    return functools.reduce(lambda state, part: mix(state ^ part), parts[1:], mix((parts[0] + 0x9E3779B9) % 2**32))


def everything(run, temperature=1.0) -> dict[tuple[int, ...], float]:
    """The probability of each sequence of a language, by enumeration of its choices."""
    data, vocab, length = run.stages[0].data, run.model.vocab_size, run.model.seq_len
    tokens, p = range(vocab), law(vocab, data.zipf / temperature)
    if data.generator == "uniform":
        return {x: vocab**-length for x in itertools.product(tokens, repeat=length)}
    if data.generator == "zipf":
        order = sorted(tokens, key=lambda token: hash_of(data.language, token))
        return {x: math.prod(p[order.index(token)] for token in x) for x in itertools.product(tokens, repeat=length)}
    if data.generator == "markov":
        found: dict[tuple[int, ...], float] = {(): 1.0}
        for _ in range(length):
            grown = {}
            for x, mass in found.items():
                heard = [0] * data.context + [token + 1 for token in x]
                shift = hash_of(data.language, *heard[-data.context :]) % vocab
                grown |= {(*x, (rank + shift) % vocab): mass * p[rank] for rank in tokens}
            found = grown
        return found
    productions, rule = pcfg.grammar(run), law(data.rules, data.zipf / temperature)

    def below(node, depth, symbol):
        """Leaves under a node of the balanced tree (children 2 i and 2 i + 1), of a symbol."""
        if node >= length:
            return [((symbol,), 1.0)]
        out = []
        for j, p_rule in enumerate(rule):
            pair = (int(side[depth][symbol * data.rules + j]) for side in (productions.left, productions.right))
            parts = (below(2 * node + side, depth + 1, child) for side, child in enumerate(pair))
            out += [(x + y, p_rule * p_x * p_y) for (x, p_x), (y, p_y) in itertools.product(*parts)]
        return out

    parses = [(x, p[root] * mass) for root in tokens for x, mass in below(1, 0, root)]
    assert len(dict(parses)) == len(parses)  # one each
    return dict(parses)


def beginnings(table, length):
    """The probability of each first `length` tokens."""
    out = {}
    for x, mass in table.items():
        out[x[:length]] = out.get(x[:length], 0.0) + mass
    return out


@pytest.mark.parametrize(("name", "vocab", "seq_len", "data"), SMALL)
def test_nats_and_entropy_are_those_of_the_enumeration(name, vocab, seq_len, data):
    run, module = language(name, vocab, seq_len, **data)
    table = everything(run)
    assert math.fsum(table.values()) == pytest.approx(1, rel=1e-12)
    known = [beginnings(table, length) for length in range(seq_len + 1)]
    sequences = list(itertools.product(range(vocab), repeat=seq_len))
    expected = [[math.log(known[t][x[:t]] / known[t + 1][x[: t + 1]]) if x[: t + 1] in known[t + 1] else math.inf for t in range(1, seq_len)]
                for x in sequences]
    got = nats(run, np.array(sequences, np.int32))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=2e-6)
    assert (got >= 0).all()
    entropy = math.fsum(p * math.log2(known[1][x[:1]] / p) for x, p in table.items())
    assert module.entropy_bits(run) == pytest.approx(entropy, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize(("name", "vocab", "seq_len", "data"), DRAWN)
def test_sequences_are_drawn_with_their_probability_at_every_temperature(name, vocab, seq_len, data):
    """Chi-square over whole sequences, with a fixed key: no p-value is below 1e-4."""
    run, _ = language(name, vocab, seq_len, **data)
    drawn = tempered(run, np.arange(9000), np.repeat([1.0, 0.5, 3.0], 3000))
    for temperature, tokens in zip((1.0, 0.5, 3.0), np.split(drawn, 3), strict=True):
        table = everything(run, temperature)
        seen, counts = np.unique(tokens, axis=0, return_counts=True)
        observed = dict.fromkeys(table, 0) | dict(zip(map(tuple, seen.tolist()), counts.tolist(), strict=True))
        assert set(observed) == set(table)  # nothing that is not of the language
        pairs = sorted((3000 * p, observed[x]) for x, p in table.items())
        rare = sum(expected < 5 for expected, _ in pairs)
        bins = np.array([[sum(column) for column in zip(*pairs[:rare], strict=True)], *pairs[rare:]] if rare else pairs)
        bins = bins[bins[:, 0] > 1]
        bins[:, 0] *= bins[:, 1].sum() / bins[:, 0].sum()
        assert len(bins) > 1
        assert stats.chisquare(bins[:, 1], bins[:, 0]).pvalue > 1e-4


@pytest.mark.parametrize(("name", "data"), LARGE)
def test_mean_code_length_is_the_entropy(name, data):
    run, module = language(name, **data)
    bits = nats(run, items(run, INDEX)).astype(np.float64).sum(1) / math.log(2)
    error = bits.std() / math.sqrt(len(bits))
    assert abs(bits.mean() - module.entropy_bits(run)) < 4 * error + 1e-5


@pytest.mark.parametrize(("name", "data"), LARGE)
def test_an_item_depends_on_its_number_and_the_key_alone(name, data):
    run, module = language(name, **data)
    index = INDEX.copy()
    index[:5] = 4, (1 << 30) - 1, 1 << 29, 4, 0
    tokens = items(run, index)
    assert tokens.dtype == np.int32
    assert tokens.shape == (600, 11)
    np.testing.assert_array_equal(tokens[0], tokens[3])
    np.testing.assert_array_equal(tokens[5:], items(run, INDEX)[5:])
    np.testing.assert_array_equal(items(run, index[::-1]), tokens[::-1])
    alone = jax.vmap(lambda i: module.items(language(name, **data, n_items=99)[0], KEY, i[None])[0])  # nor on how many there are
    np.testing.assert_array_equal(jax.jit(alone, compiler_options=UNOPTIMIZED)(index), tokens)
    assert len(np.unique(items(run, INDEX), axis=0)) > 590
    assert not np.array_equal(items(run, index, train.key(6, "data")), tokens)


@pytest.mark.parametrize(("name", "data"), LARGE[1:])
def test_a_language_is_its_number(name, data):
    """The same draws in another language are other sequences, likely in their own and unlikely (or impossible) in the first."""
    (run, _), (other, _) = language(name, **data), language(name, **data, language=4)
    tokens, foreign = items(run, INDEX), items(other, INDEX)
    assert not np.array_equal(tokens, foreign)
    own = nats(run, tokens).mean()
    assert own < nats(other, tokens).mean()
    assert own < nats(run, foreign).mean()
    assert nats(other, foreign).mean() == pytest.approx(own, rel=0.2)
    assert nats(run, items(run, INDEX, train.key(6, "data"))).mean() == pytest.approx(own, rel=0.2)  # another key, one language


@pytest.mark.parametrize(("name", "data"), LARGE)
def test_temperatures(name, data):
    """1 is `items` exactly, whatever its neighbours; near 0 all is the likeliest choice; far up every choice is as likely as another."""
    run, _ = language(name, **data)
    tokens = items(run, INDEX)
    temperature = np.array([1.0, 1e-3, 1e6])[INDEX % 3]
    temperature[1:3] = 1e-38, 3e38  # what a float32 just holds
    mixed = tempered(run, INDEX, temperature)
    np.testing.assert_array_equal(mixed[::3], tokens[::3])
    if name == "uniform":
        np.testing.assert_array_equal(mixed, tokens)
        return
    cold, hot = mixed[1::3], mixed[2::3]
    assert len(np.unique(cold, axis=0)) == 1
    assert len(np.unique(hot, axis=0)) > 190
    if name == "pcfg":  # as likely as sequences of the same productions, were all equally probable
        level, source_of_level = language(name, **data | {"zipf": 0.0})
        bits = nats(level, np.repeat(hot, 3, 0))[::3].astype(np.float64).sum(1) / math.log(2)
        assert abs(bits.mean() - source_of_level.entropy_bits(level)) < 4 * bits.std() / math.sqrt(len(bits))
    else:
        least = -math.log(law(32, 1.0)[0])
        got = nats(run, mixed)
        np.testing.assert_allclose(got[1::3], least, rtol=1e-6)
        values, counts = np.unique(got[2::3], return_counts=True)
        assert len(values) == 32
        assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("context", [1, 2, 3])
def test_a_markov_chain_sees_its_context_and_no_further(context):
    run, _ = language("markov", 32, 8, context=context)
    tokens = np.random.default_rng(0).integers(0, 32, (64, 8)).astype(np.int32)
    before = nats(run, tokens)
    changed = tokens.copy()
    changed[:, 2] = (changed[:, 2] + 1) % 32
    differs = (nats(run, changed) != before).mean(0)  # of the tokens at 1..7; that at 2 is number 1 here
    assert differs[0] == 0
    assert (differs[1 : 2 + context] > 0.8).all()
    assert (differs[2 + context :] == 0).all()


def test_one_token_that_the_grammar_forbids_leaves_no_sequence():
    run, _ = language("pcfg", 32, 16, rules=2)
    tokens = items(run, INDEX).copy()
    good = nats(run, tokens)
    assert np.isfinite(good).all()
    tokens[:, 9] = (tokens[:, 9] + 7) % 32
    bad = nats(run, tokens)
    np.testing.assert_allclose(bad[:, :8], good[:, :8], atol=1e-5)
    assert not np.isnan(bad).any()
    broken = np.isinf(bad)
    assert broken.any(1).mean() > 0.9
    assert (np.diff(broken.astype(int), axis=1) >= 0).all()


def test_the_largest_vocabulary_of_a_grammar():
    """One production a symbol: x_1 leaves few roots possible, and of them x_2 leaves nearly always one."""
    run, _ = language("pcfg", pcfg.LARGEST_VOCAB, 3, rules=1, zipf=0.0)
    tokens = items(run, np.arange(24))
    assert tokens.max() > 50000
    got = nats(run, tokens).astype(np.float64)
    assert np.isfinite(got).all()
    bits = got.sum(1) / math.log(2)
    assert abs(bits.mean() - pcfg.entropy_bits(run)) < 4 * bits.std() / math.sqrt(len(bits))


@pytest.mark.parametrize(("vocab", "rules", "words"), [(4, 5, "data.rules = 5: must be at most model.vocab_size = 4"),
                                                        (pcfg.LARGEST_VOCAB + 1, 2, "model.vocab_size = 65537: must be at most 65536")])
def test_a_grammar_that_cannot_be(vocab, rules, words):
    run, _ = language("pcfg", vocab, rules=rules)
    calls = (lambda: pcfg.check(run), lambda: pcfg.items(run, KEY, jnp.arange(2)), lambda: pcfg.entropy_bits(run),
             lambda: pcfg.nats(run, jnp.zeros((1, 11), jnp.int32)))
    for call in calls:
        with pytest.raises(SpecError, match=words) as error:
            call()
        assert len(str(error.value).splitlines()) == 1


@given(vocab=st.integers(1, 40), share=st.floats(0, 1), language=st.integers(0, 2**31 - 1), level=st.integers(0, 20))
@settings(max_examples=60, deadline=None)
def test_productions_are_different_pairs(vocab, share, language, level):
    count = vocab * max(1, round(share * vocab))
    left, right = pcfg._pairs(vocab, count, language, level)
    assert max(left.max(), right.max()) < vocab
    assert len({*zip(left.tolist(), right.tolist(), strict=True)}) == count


def test_productions_look_random():
    """Left and right symbols of a level, and their pairings with the symbol that produces them, are even: chi-square above 1e-4."""
    many = [pcfg._pairs(16, 16 * 4, number, 1) for number in range(300)]
    table = np.zeros((4, 16, 16))
    for left, right in many:
        for q in range(4):  # the productions of symbol 0
            table[q, left[q], right[q]] += 1
    assert stats.chisquare(table.sum(0).ravel()).pvalue > 1e-4
    assert stats.chisquare(table.sum((0, 2))).pvalue > 1e-4
    assert stats.chisquare(table.sum((0, 1))).pvalue > 1e-4


@given(n=st.integers(1, 1000), exponent=st.floats(0, 10))
@settings(max_examples=30, deadline=None)
def test_a_choice_is_zipfs_law_in_whole_draws(n, exponent):
    c = source.choice(n, exponent)
    counts = np.rint(c.probability * 2**32).astype(np.int64)
    assert counts.sum() == 2**32
    assert counts.min() >= 1
    assert (np.diff(counts) <= 0).all()
    expected = np.array(law(n, exponent))
    assert (np.abs(c.probability - expected) <= 2.0**-31 + n * 2.0**-32 * expected + 1e-15).all()
    np.testing.assert_array_equal(np.append(c.ends.astype(np.int64), 2**32), np.cumsum(counts))
    np.testing.assert_allclose(np.exp(-c.nats), c.probability)
    assert c.entropy_bits == pytest.approx(-math.fsum(c.probability * np.log2(c.probability)), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("n", "exponent"), [(1, 1.0), (2, 0.0), (7, 1.3), (300, 10.0)])
def test_a_draw_at_each_edge_of_a_choice(n, exponent):
    ends = source.choice(n, exponent).ends.astype(np.int64)
    first, last = np.append(0, ends), np.append(ends, 2**32) - 1
    bits = jnp.asarray(np.stack([first, last]).astype(np.uint32))
    np.testing.assert_array_equal(source.chosen(n, exponent, bits), np.tile(np.arange(n), (2, 1)))


def test_the_last_draw_chooses_what_has_a_probability():
    """The largest draw rounds to 1 in float32; a choice that is too cold to be made must not be made for that."""
    bits = jnp.full((3, 1), 2**32 - 1, jnp.uint32)
    assert source.chosen(9, 1.0, bits, jnp.array([1e-6, 1.0, 1e6])).ravel().tolist() == [0, 8, 8]


@given(language=st.integers(0, 2**31 - 1), parts=st.lists(st.integers(0, 2**32 - 1), max_size=4))
@settings(max_examples=50, deadline=None)
def test_the_hash_in_whole_numbers(language, parts):
    assert source.hashed(language, *(np.array([part], np.uint32) for part in parts)).tolist() == [hash_of(language, *parts)]
    assert source.hashed(language, *(jnp.array([part], jnp.uint32) for part in parts)).tolist() == [hash_of(language, *parts)]


def test_hashes_of_neighbours_are_even():
    """Shifts of contexts, bits and languages: chi-square above 1e-4."""
    a, b = np.divmod(np.arange(1 << 14, dtype=np.uint32), np.uint32(128))
    for language in (0, 1, 2**31 - 1):
        assert stats.chisquare(np.bincount(source.hashed(language, a, b) % 100, minlength=100)).pvalue > 1e-4
    changed = source.hashed(0, a, b) ^ source.hashed(0, a, b ^ np.uint32(1))
    assert 15.8 < np.mean([int(x).bit_count() for x in changed]) < 16.2
    orders = np.array([np.argsort(source.hashed(number, np.arange(8, dtype=np.uint32))) for number in range(4000)])
    assert min(stats.chisquare(np.bincount(orders[:, i], minlength=8)).pvalue for i in range(8)) > 1e-4
