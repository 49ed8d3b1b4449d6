"""Real text: what is read, lossless tokenizers of an exact size, disjoint splits, exact permutations, and errors of one line."""

import collections
import dataclasses
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tokenizers import pre_tokenizers

from scalemem import data
from scalemem.data import corpora, text, tokenizing
from scalemem.data.canaries import HELD_OUT, REFERENCE
from scalemem.spec import CanarySpec, DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, SpecError, Stage

LENGTH = 8
KEY = jax.random.key(3, impl="threefry2x32")
WORDS = ["the", "cat", "sat", "on", "a", "mat", "über", "naïve", "猫", "and", "then", "ran", "off\t", "(quickly)", "12345", "x_y"]


def written(folder, count=120, seed=0):
    """A folder of `count` documents of random words, some of them twice."""
    rng = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    for i in range(count):
        words = rng.choice(WORDS, rng.integers(1, 30))
        (folder / f"{i}.txt").write_text(" ".join(words) + "\n", encoding="utf-8")
    (folder / "again.txt").write_bytes((folder / "0.txt").read_bytes())
    return str(folder)


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    for cached in (text._corpus, text._tokenizer, text._pool):
        cached.cache_clear()


@pytest.fixture
def corpus(tmp_path):
    return written(tmp_path / "corpus")


def make(corpus, *, vocab=257, length=LENGTH, n_items=10, **fields):
    fields = {"digest": text.digest(corpus), **fields}
    stage = Stage(data=DataSpec(n_items=n_items, generator="text", corpus=corpus, **fields), optimizer=OptimizerSpec(peak_lr=1e-3),
                  exposures=1, batch_size=1)
    model = ModelSpec(d_model=4, n_layers=0, n_heads=1, vocab_size=vocab, seq_len=length)
    return RunSpec(model=model, stages=(stage,), probes=(Probe("capacity"),))


def rows(run, first, count, key=KEY):
    assert count <= 4096
    return np.asarray(text.items(run, key, first + jnp.arange(4096)))[:count]  # one shape: few programs


def refused(call, *parts):
    with pytest.raises(SpecError) as found:
        call()
    message = str(found.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


# what is read

def test_a_corpus_is_a_set_of_documents_however_it_is_stored(tmp_path):
    folder, lines, alone = tmp_path / "folder", tmp_path / "a.jsonl", tmp_path / "a.txt"
    (folder / "deep" / "er").mkdir(parents=True)
    texts = ["first\nof two lines", "  second, \u732b", "third"]
    for name, content in zip(("z.txt", "deep/b", "deep/er/c.md"), texts, strict=True):
        (folder / name).write_bytes(content.encode())
    lines.write_text("".join(json.dumps({"text": t, "id": i}) + "\n\n" for i, t in enumerate([*texts, texts[0], " \n"])))
    alone.write_bytes("\n \n\n".join(texts).encode())
    found = [corpora.read(str(p)) for p in (folder, lines, alone)]
    assert [set(f.documents) for f in found] == [{t.encode() for t in texts}] * 3
    assert len({f.digest for f in found} | {text.digest(str(folder))}) == 1
    assert [f.duplicate_count for f in found] == [0, 1, 0]
    (folder / "more.jsonl").write_text(json.dumps({"text": "fourth"}))
    assert set(corpora.read(str(folder)).documents) == {t.encode() for t in [*texts, "fourth"]}
    assert text.digest(str(folder)) != found[0].digest  # read anew


def test_what_is_no_text_is_skipped_and_counted(tmp_path):
    folder = tmp_path / "c"
    folder.mkdir()
    for name, raw in (("a", b"text"), ("b", b"\xff\xfe"), ("c", b"a\0b"), ("d", b" \n"), (".hidden", b"hidden")):
        (folder / name).write_bytes(raw)
    (folder / "half.jsonl").write_text(r'{"text": "\ud800"}')
    (folder / ".git").mkdir()
    (folder / ".git" / "x").write_text("hidden")
    (folder / "gone").symlink_to(folder / "nowhere")
    found = corpora.read(str(folder))
    assert found.documents == (b"text",)
    assert found.skipped_count == 3
    assert text.digest(str(folder)) == found.digest


@pytest.mark.parametrize("line", ['{"body": "x"}', '{"text": 3}', "[]", "{", "[" * 100_000])
def test_a_line_without_a_text_is_named(tmp_path, line):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n\n' + line)
    refused(lambda: text.digest(str(path)), "line 3", "a.jsonl", '"text"')


def test_no_text_at_all(tmp_path):
    refused(lambda: text.digest(str(tmp_path / "nowhere")), "data.corpus", "nowhere", "no such file")
    refused(lambda: text.digest("/dev/null"), "data.corpus", "no such file")
    refused(lambda: text.digest(str(tmp_path)), "holds no text", "0 skipped")
    (tmp_path / "x").write_bytes(b"\xff")
    refused(lambda: text.digest(str(tmp_path)), "holds no text", "1 skipped")


# tokenizers

@given(st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_bytes_round_trip(string):
    tokenizer = tokenizing.by_bytes()
    tokens = tokenizer.encode(string.encode())
    assert tokens.tolist() == list(string.encode())
    assert tokenizer.decode(tokens) == string


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bpe")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        found = corpora.read(written(folder / "corpus"))
        return tokenizing.bpe(found.documents, found.digest, 300), found


@given(string=st.text(max_size=60) | st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join))
@settings(max_examples=100, deadline=None)
def test_bpe_round_trip(bpe, string):
    tokenizer, _ = bpe
    tokens = tokenizer.encode(string.encode())
    assert ((tokens >= 0) & (tokens < tokenizer.end)).all()
    assert b"".join(tokenizer.pieces[t] for t in tokens) == string.encode()
    assert tokenizer.decode(tokens) == string


def test_bpe_has_the_exact_size_and_each_piece_once(bpe):
    tokenizer, _ = bpe
    assert len(tokenizer.pieces) == len(set(tokenizer.pieces)) == tokenizer.end == 299
    assert set(tokenizer.pieces) >= {bytes([i]) for i in range(256)}
    assert tokenizer.decode(np.array([299, 300, -1])) == "␄��"


def test_bpe_merges_the_most_frequent_pair(bpe):
    """Against a slow BPE of the same words: the same pieces in the same order."""
    tokenizer, found = bpe
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_of = tokenizing._bytes_of_letters()
    counts = collections.Counter(bytes(byte_of[c] for c in w) for d in found.documents for w, _ in split.pre_tokenize_str(d.decode()))
    number = {p: i for i, p in enumerate(tokenizer.pieces[:256])}
    words = [([number[bytes([b])] for b in w], c) for w, c in counts.items()]
    pieces = list(tokenizer.pieces[:256])
    for _ in range(43):
        pairs = collections.Counter()
        for w, c in words:
            for pair in itertools.pairwise(w):
                pairs[pair] += c
        best = min(pairs, key=lambda p: (-pairs[p], p))
        pieces.append(pieces[best[0]] + pieces[best[1]])
        for w, _ in words:
            i = 0
            while i < len(w) - 1:
                if (w[i], w[i + 1]) == best:
                    w[i : i + 2] = [len(pieces) - 1]
                i += 1
    assert tuple(pieces) == tokenizer.pieces


def test_bpe_is_trained_once_and_a_damaged_file_is_mended(bpe, tmp_path, monkeypatch):
    first, found = bpe
    path = tmp_path / "cache" / "scalemem" / f"bpe-{found.digest}-300.json"
    assert tokenizing.bpe(found.documents, found.digest, 300).pieces == first.pieces  # another training, the same pieces
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    whole = path.read_bytes()
    train = tokenizing._train
    monkeypatch.setattr(tokenizing, "_train", None)
    again = tokenizing.bpe(found.documents, found.digest, 300)
    assert again.pieces == first.pieces
    np.testing.assert_array_equal(again.encode(found.documents[0]), first.encode(found.documents[0]))
    monkeypatch.setattr(tokenizing, "_train", train)
    for damage in (whole[:1000], b"", whole.replace(b'"a"', b'"aa"')[:-2], train([b"xyxy"], 257).to_str().encode()):
        path.write_bytes(damage)
        assert tokenizing.bpe(found.documents, found.digest, 300).pieces == first.pieces
        assert path.read_bytes() == whole


def test_bpe_without_a_cache_folder(bpe, tmp_path, monkeypatch):
    first, found = bpe
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert tokenizing.bpe(found.documents, found.digest, 300).pieces == first.pieces


def test_a_corpus_too_small_for_its_vocabulary(corpus):
    refused(lambda: text.items(make(corpus, vocab=5000, tokenizer="bpe"), KEY, jnp.arange(1)), "model.vocab_size = 5000", "at most")


def test_bpe_is_trained_on_the_training_split_alone(corpus):
    found, run = corpora.read(corpus), make(corpus, vocab=290, tokenizer="bpe")
    own = tokenizing.bpe([d for d, h in zip(found.documents, found.hashes, strict=True) if int(h.hex()[:16], 16) % 10 < 8], "own", 290)
    assert text._of(run).tokenizer.pieces == own.pieces
    assert tokenizing.bpe(found.documents, "all", 290).pieces != own.pieces


# chunks and splits

@pytest.mark.parametrize(("tokenizer", "vocab"), [("bytes", 257), ("bpe", 280)])
def test_chunks_are_those_of_a_slow_reference(corpus, tokenizer, vocab):
    run = make(corpus, vocab=vocab, tokenizer=tokenizer, language=5)
    encoder, seen = text._of(run).tokenizer, set()
    for i, name in enumerate(corpora.SPLITS):
        found, expected = corpora.read(corpus), []
        numbers = sorted(found.of(name), key=lambda j: text.hashlib.sha256(b"\0\0\0\5" + found.hashes[j]).digest())
        stream = [t for j in numbers for t in [*encoder.encode(found.documents[j]).tolist(), vocab - 1]]
        for at in range(0, len(stream) - LENGTH + 1, LENGTH):
            if (chunk := tuple(stream[at : at + LENGTH])) not in seen:
                seen.add(chunk)
                expected.append(chunk)
        size = text.pool_size(run, name)
        assert size == len(expected) > 5
        drawn = rows(run, i * HELD_OUT, size)
        assert sorted(map(tuple, drawn.tolist())) == sorted(expected)
        assert not np.array_equal(drawn, expected)


def test_splits_share_no_document_and_no_chunk(corpus):
    run, found = make(corpus), corpora.read(corpus)
    documents = [{found.documents[i] for i in found.of(name)} for name in corpora.SPLITS]
    assert sum(map(len, documents)) == len(set().union(*documents)) == len(found.documents)
    chunks = [set(map(tuple, rows(run, first, 2000).tolist())) for first in (0, HELD_OUT, REFERENCE)]
    assert [len(c) for c in chunks] == [text.pool_size(run, name) for name in corpora.SPLITS]
    assert len(set().union(*chunks)) == sum(map(len, chunks))


def test_a_split_is_of_the_document_whatever_else_there_is(tmp_path):
    small, large = corpora.read(written(tmp_path / "a", 30)), corpora.read(written(tmp_path / "b", 200))
    assert set(small.hashes) < set(large.hashes)
    for name, share in zip(corpora.SPLITS, (0.8, 0.1, 0.1), strict=True):
        there = {large.hashes[i] for i in large.of(name)}
        assert {small.hashes[i] for i in small.of(name)} == there & set(small.hashes)
        assert stats.binomtest(len(there), len(large.hashes), share).pvalue > 1e-3


def test_the_pool_is_capped(corpus, monkeypatch):
    sizes = {name: text.pool_size(make(corpus), name) for name in corpora.SPLITS}
    monkeypatch.setattr(text, "POOL_TOKENS", 100 * LENGTH + 3)
    text._pool.cache_clear()
    run = make(corpus)
    assert sizes["train"] > 80
    assert [text.pool_size(run, name) for name in corpora.SPLITS] == [80, 10, 10]
    assert len(np.unique(rows(run, 0, 80), axis=0)) == 80


# items

def test_items_are_pure_and_distinct_up_to_the_pool(corpus):
    run = make(corpus)
    size = text.pool_size(run)
    drawn = rows(run, 0, 2 * size)
    assert drawn.dtype == np.int32
    assert len(np.unique(drawn[:size], axis=0)) == size
    np.testing.assert_array_equal(drawn[size:], drawn[:size])
    np.testing.assert_array_equal(text.items(run, KEY, jnp.array([7, 7, 3])), drawn[[7, 7, 3]])
    index = jnp.array([0, 5, HELD_OUT, HELD_OUT + 9, REFERENCE, REFERENCE + HELD_OUT - 1, (1 << 31) - 1])
    eager = text.items(run, KEY, index)
    np.testing.assert_array_equal(jax.jit(lambda k, i: text.items(run, k, i))(KEY, index), eager)
    keys = jax.random.split(KEY, 3)
    mapped = jax.vmap(lambda k: text.items(run, k, index))(keys)
    np.testing.assert_array_equal(mapped[1], text.items(run, keys[1], index))
    np.testing.assert_array_equal(data.get("text").items(make(corpus, n_items=99), KEY, index), eager)  # n_items is not read
    assert not np.array_equal(rows(run, 0, size, keys[0]), drawn[:size])
    assert not np.array_equal(rows(make(corpus, language=1), 0, 20), drawn[:20])


def test_a_permutation_is_exact():
    sizes = [*range(1, 60), 1000, 1024, 1025, 65_537, (1 << 20) - 1]
    index, size = np.concatenate([np.arange(s) for s in sizes]), np.repeat(sizes, sizes)
    places = np.asarray(text.permuted(KEY, jnp.asarray(index), jnp.asarray(size)))
    for part, n in zip(np.split(places, np.cumsum(sizes)[:-1]), sizes, strict=True):
        np.testing.assert_array_equal(np.sort(part), np.arange(n))


def test_a_permutation_is_that_of_plain_integers():
    sizes = [1, 2, 3, 7, 100, 1023, 999_999, 1_999_396, 1_999_397, (1 << 30) - 1, 1 << 30]
    words, full = np.asarray(jax.random.bits(KEY, (text.ROUNDS,))).tolist(), (1 << 32) - 1

    def reference(x, size):
        side = math.isqrt(size - 1) + 1
        while True:
            left, right = divmod(x, side)
            for word in words:
                h = (right * 0x9E3779B1 + word) & full
                h = (h ^ h >> 16) * 0x85EBCA6B & full
                h = (h ^ h >> 13) * 0xC2B2AE35 & full
                left, right = right, (left + ((h ^ h >> 16) % side)) % side
            x = left * side + right
            if x < size:
                return x

    index, size = (np.array(v) for v in zip(*((i, s) for s in sizes for i in {0, s // 3, s - 1}), strict=True))
    expected = [reference(i, s) for i, s in zip(index.tolist(), size.tolist(), strict=True)]
    assert text.permuted(KEY, jnp.asarray(index), jnp.asarray(size)).tolist() == expected


def test_permutations_are_as_if_drawn_at_random():
    """First two places of many permutations of 7: all 42 pairs alike, and fixed points one in the mean; no p-value below 1e-4."""
    keys = jax.random.split(jax.random.key(11, impl="threefry2x32"), 8400)
    places = np.asarray(jax.jit(jax.vmap(lambda k: text.permuted(k, jnp.arange(7), jnp.full(7, 7))))(keys))
    pairs = np.bincount(places[:, 0] * 7 + places[:, 1], minlength=49)
    assert stats.chisquare(pairs[pairs > 0]).pvalue > 1e-4
    assert (pairs > 0).sum() == 42
    fixed = (places == np.arange(7)).sum(1)
    assert abs(fixed.mean() - 1) < 4 / math.sqrt(len(fixed))


# what a run is told

def test_the_digest_is_part_of_a_run(corpus):
    right = text.digest(corpus)
    assert len(right) == 16
    for wrong in ("", "0" * 16):
        refused(lambda wrong=wrong: text.check(make(corpus, digest=wrong)), "data.digest", repr(wrong), f"write digest = {right!r}")
        refused(lambda wrong=wrong: text.items(make(corpus, digest=wrong), KEY, jnp.arange(1)), right)
        refused(lambda wrong=wrong: text.decode(make(corpus, digest=wrong), np.arange(3)), right)


def test_runs_that_a_text_cannot_serve(corpus, tmp_path):
    run = make(corpus)
    size, reference = text.pool_size(run), text.pool_size(run, "reference")
    text.check(make(corpus, n_items=size))
    refused(lambda: text.check(make(corpus, n_items=size + 1)), f"data.n_items = {size + 1}", f"at most {size}")
    for kind in ("bytes", "bpe"):
        refused(lambda kind=kind: text.check(make(corpus, vocab=256, tokenizer=kind)), "model.vocab_size = 256", "257", kind)
    refused(lambda: text.check(make(corpus, length=1 << 18)), "model.seq_len = 262144", "train")
    (tmp_path / "one.txt").write_text("a single document of some words")
    refused(lambda: text.check(make(str(tmp_path / "one.txt"))), "0 ", "documents make no new chunk")
    natural = CanarySpec(per_group=reference - 3, controls=3, kind="natural")
    text.check(make(corpus, n_items=size, canaries=natural))
    refused(lambda: text.check(make(corpus, n_items=size, canaries=dataclasses.replace(natural, controls=4))),
            f"{reference + 1} natural", f"at most {reference}")
    with pytest.raises(ValueError, match=r"split = 'test': must be one of train, held_out, reference"):
        text.pool_size(run, "test")


def test_text_of_tokens_and_its_statistics(corpus):
    for run in (make(corpus), make(corpus, vocab=290, tokenizer="bpe")):
        found, size = corpora.read(corpus), text.pool_size(run)
        drawn = rows(run, 0, size)
        shown = text.texts(run, drawn)
        assert shown == [text.decode(run, row) for row in drawn]
        for string in shown[:50]:
            inner = [part.strip("�") for part in string.split("␄")]
            assert all(any(part.encode() in document for document in found.documents) for part in inner)
        is_end = drawn == run.model.vocab_size - 1
        pieces = text._of(run).tokenizer.pieces
        size_bytes = sum(len(pieces[t]) for t in drawn[~is_end])
        used = len(np.unique(drawn))
        assert text.statistics(run) == pytest.approx({
            "document_count": len(found.documents), "duplicate_count": found.duplicate_count, "skipped_count": 0, "train_chunk_count": size,
            "held_out_chunk_count": text.pool_size(run, "held_out"), "reference_chunk_count": text.pool_size(run, "reference"),
            "bytes_per_token": size_bytes / drawn.size, "used_token_count": used, "used_token_fraction": used / run.model.vocab_size})
        assert found.duplicate_count >= 1
    assert math.isnan(text.entropy_bits(run))


def test_the_standard_library_is_a_corpus():
    run = make("", length=64)
    found = text._corpus("", run.stages[0].data.digest)
    assert any(b"def dumps(" in d for d in found.documents)  # json/__init__.py
    assert not any(b"class TestCase" in d and b"test.support" in d for d in found.documents)
    assert [text.pool_size(run, name) for name in corpora.SPLITS] == [26214, 3276, 3276]  # the cap: 2^21 / 64, 8 : 1 : 1
    assert "import" in "".join(text.texts(run, rows(run, 0, 300)))
