"""Real text: chunks of S tokens of the user's own documents, each chunk once, in training, held-out and reference splits.

A document is in a split by its hash alone. The documents of a split, in an order drawn by `data.language`, each with its end, are one
stream that is cut into chunks of S tokens; a chunk that is equal to an earlier one of any split is left out. A pool holds 2^21 tokens in
all, 8 : 1 : 1 over the splits, so that it fits on a device as one table; what is beyond is not used. Items 0 .. 2^29 - 1 are of the
training split, then held out up to 2^30, then of the reference split; within a split the key permutes the chunks.
"""

from __future__ import annotations

import functools
import hashlib
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from scalemem.data import corpora, tokenizing
from scalemem.data.canaries import HELD_OUT
from scalemem.spec import DataSpec, RunSpec, SpecError

POOL_TOKENS = 1 << 21
ROUNDS = 8


class _Pool(NamedTuple):
    table: np.ndarray  # [all chunks, S]: split after split
    sizes: np.ndarray  # chunks of each split
    tokenizer: tokenizing.Tokenizer


def digest(corpus: str = "") -> str:
    """What to write as `data.digest`: 16 hexadecimal digits that name the set of documents of a corpus, as it is now.

    Args:
      corpus: as `data.corpus`: a file, a folder or a JSONL; "" is the Python standard library's source.
    Raises:
      SpecError: no such path, or no text in it.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.txt").write_text("one")
    ...     digest(folder)
    'fe8d7a873dc48961'
    """
    return corpora.read(corpus).digest


@functools.lru_cache(maxsize=4)
def _corpus(path: str, expected: str) -> corpora.Corpus:
    found = corpora.read(path)
    if found.digest != expected:
        raise SpecError(f"data.digest = {expected!r}: the text of data.corpus = {path!r} has the digest {found.digest!r}; "
                        + ("point data.corpus at the text that was meant, or " if expected else "") + f"write digest = {found.digest!r}")
    return found


@functools.lru_cache(maxsize=8)
def _tokenizer(path: str, expected: str, kind: str, vocab_size: int) -> tokenizing.Tokenizer:
    if vocab_size < tokenizing.LEAST:
        raise SpecError(f"model.vocab_size = {vocab_size}: must be at least {tokenizing.LEAST} for data.tokenizer = {kind!r}, every byte and "
                        "the end of a document; raise it")
    found = _corpus(path, expected)
    if kind == "bytes":
        return tokenizing.by_bytes()
    return tokenizing.bpe([found.documents[i] for i in found.of("train")], expected, vocab_size)


@functools.lru_cache(maxsize=8)
def _pool(path: str, expected: str, kind: str, vocab_size: int, seq_len: int, language: int) -> _Pool:
    tokenizer, found = _tokenizer(path, expected, kind, vocab_size), _corpus(path, expected)
    seen: set[bytes] = set()
    parts = []
    for name, tenths in zip(corpora.SPLITS, corpora.TENTHS, strict=True):
        limit = max(1, POOL_TOKENS // seq_len * tenths // sum(corpora.TENTHS))
        order = sorted(found.of(name), key=lambda i: hashlib.sha256(language.to_bytes(4, "big") + found.hashes[i]).digest())
        stream = (np.append(tokenizer.encode(found.documents[i]), tokenizer.end) for i in order)
        parts.append(corpora.chunks(stream, seq_len, limit, seen))
        if not parts[-1]:
            raise SpecError(f"data.corpus = {path!r}: its {len(order)} {name} documents make no new chunk of model.seq_len = {seq_len} tokens; "
                            "give more text or shorten the sequence")
    table = np.stack([row for part in parts for row in part]).astype(np.uint16 if vocab_size <= 1 << 16 else np.int32)
    return _Pool(table, np.array([len(part) for part in parts]), tokenizer)


def _of(run: RunSpec) -> _Pool:
    data: DataSpec = run.stages[0].data
    return _pool(data.corpus, data.digest, data.tokenizer, run.model.vocab_size, run.model.seq_len, data.language)


def pool_size(run: RunSpec, split: str = "train") -> int:
    """Distinct chunks of a split: "train", "held_out" or "reference"; items of a split beyond them are the same chunks again.

    Raises:
      ValueError: another split.
      SpecError: the text cannot be read, or is not the one of the digest.
    """
    if split not in corpora.SPLITS:
        raise ValueError(f"split = {split!r}: must be one of {', '.join(corpora.SPLITS)}; choose one of these")
    return int(_of(run).sizes[corpora.SPLITS.index(split)])


def check(run: RunSpec) -> None:
    """Raises SpecError, in one line, where a run's text is another than its digest says, or too small for its items or natural canaries."""
    data, size = run.stages[0].data, pool_size(run)
    if data.n_items > size:
        raise SpecError(f"data.n_items = {data.n_items}: must be at most {size}, the distinct training chunks of data.corpus = {data.corpus!r}; "
                        "lower it or give more text")
    canaries = data.canaries
    if canaries and canaries.kind == "natural":
        count, size = canaries.per_group * canaries.groups + canaries.controls, pool_size(run, "reference")
        if count > size:
            raise SpecError(f"data.canaries: its {count} natural canaries and controls must be at most {size}, the chunks of the reference split; "
                            "plant fewer or give more text")


@jax.jit
def permuted(key: jax.Array, index: Int[Array, " B"], size: Int[Array, " B"]) -> Int[Array, " B"]:
    """Place of each index in a pseudo-random permutation of 0 .. size - 1 that the key draws; exact: distinct indices, distinct places.

    With a = ceil(sqrt(size)), x = a l + r: 8 Feistel rounds (l, r) -> (r, l + F_k(r) mod a) permute 0 .. a^2 - 1; they are applied again
    to what falls outside 0 .. size - 1 until it is inside, which permutes those alone. Memory and time do not depend on the size.

    Args:
      key: PRNG key.
      index: int32 [B], each from 0 to its size - 1.
      size: int32 [B], at least 1, at most 2^30.
    Returns:
      int32 [B].

    >>> sorted(permuted(jax.random.key(0), jnp.arange(5), jnp.full(5, 5)).tolist())
    [0, 1, 2, 3, 4]

    Source: Feistel networks and cycle walking are textbook methods of ciphers over small sets (from memory, unverified).
    """
    words, size = jax.random.bits(key, (ROUNDS,)), size.astype(jnp.uint32)
    side = jnp.sqrt(size.astype(jnp.float32)).astype(jnp.uint32)
    side = side + (side * side < size)
    side = side - ((side - 1) ** 2 >= size)  # exact, however a device rounds its roots

    def once(x: jax.Array) -> jax.Array:
        left, right = x // side, x % side
        for word in words:
            left, right = right, (left + _mixed(right * jnp.uint32(0x9E3779B1) + word) % side) % side
        return left * side + right

    def step(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x = jnp.where(state[1], once(state[0]), state[0])
        return x, x >= size

    return jax.lax.while_loop(lambda state: state[1].any(), step, (index.astype(jnp.uint32), size > 0))[0].astype(jnp.int32)


def _mixed(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit words that spreads every bit over all: MurmurHash3's finalizer (from memory; any good mixer would do)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def items(run: RunSpec, key: jax.Array, index: Int[Array, " B"]) -> Int[Array, "B S"]:
    """Chunks `index` of the text in the order that `key` draws: a function of (key, i), distinct up to the size of the split's pool.

    Args:
      run: gives the text, the tokenizer and the sequence length S.
      key: the data set's PRNG key.
      index: int32 [B]: training chunks below 2^29, held-out ones below 2^30, then reference chunks; modulo the size of the split's pool.
    Returns:
      tokens, int32 [B, S].
    Raises:
      SpecError: the text cannot be read, is not the one of the digest, or is too small for one chunk of each split.
    """
    pool = _of(run)
    split = jnp.minimum(index // HELD_OUT, len(pool.sizes) - 1)
    size = jnp.asarray(pool.sizes, jnp.int32)[split]
    start = jnp.asarray(np.cumsum(pool.sizes) - pool.sizes, jnp.int32)[split]
    row = start + permuted(key, index % HELD_OUT % size, size)
    return jnp.asarray(pool.table)[row].astype(jnp.int32)


def entropy_bits(run: RunSpec) -> float:
    """Not a number: nobody knows the entropy of a text. Against a reference model it can be bounded, not computed."""
    del run
    return math.nan


def decode(run: RunSpec, tokens: Int[Array, " S"] | np.ndarray) -> str:
    """Tokens as text: ends of documents as ␄, cut characters and tokens that mean nothing as �."""
    data = run.stages[0].data
    return _tokenizer(data.corpus, data.digest, data.tokenizer, run.model.vocab_size).decode(np.asarray(tokens))


def texts(run: RunSpec, tokens: Int[Array, "B S"] | np.ndarray) -> list[str]:
    """`decode` of each row: what zlib attacks compress and readers read."""
    return [decode(run, row) for row in np.asarray(tokens)]


def statistics(run: RunSpec) -> dict[str, float]:
    """What a run's text is like.

    Args:
      run: with generator text.
    Returns:
      document_count (distinct), duplicate_count, skipped_count (files), train_chunk_count, held_out_chunk_count, reference_chunk_count,
      bytes_per_token (mean over the training chunks, an end of a document being of 0 bytes), used_token_count (tokens of the vocabulary
      that the training chunks have) and used_token_fraction.
    """
    data, pool = run.stages[0].data, _of(run)
    found = _corpus(data.corpus, data.digest)
    counts = np.bincount(pool.table[: pool.sizes[0]].ravel(), minlength=run.model.vocab_size)
    lengths = np.array([len(piece) for piece in pool.tokenizer.pieces])
    used = int((counts > 0).sum())
    return {
        "document_count": len(found.documents), "duplicate_count": found.duplicate_count, "skipped_count": found.skipped_count,
        **{f"{name}_chunk_count": int(size) for name, size in zip(corpora.SPLITS, pool.sizes, strict=True)},
        "bytes_per_token": float(counts[: len(lengths)] @ lengths / counts.sum()),
        "used_token_count": used, "used_token_fraction": used / run.model.vocab_size,
    }
