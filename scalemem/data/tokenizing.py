"""Tokenizers of real text: bytes, or a byte-level BPE trained to an exact vocabulary; both lossless, both with an end-of-document token."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from scalemem.spec import SpecError

LEAST = 257  # every byte and the end of a document


class Tokenizer(NamedTuple):
    """Documents to tokens; a token's number is its place in `pieces`, and the end-of-document token is the one after them."""

    encode: Callable[[bytes], np.ndarray]  # UTF-8 -> tokens, without an end
    pieces: tuple[bytes, ...]  # the bytes of each token

    @property
    def end(self) -> int:
        """The end-of-document token."""
        return len(self.pieces)

    def decode(self, tokens: np.ndarray) -> str:
        """Tokens [T] as text: ends of documents as ␄, cut characters and tokens outside the vocabulary as �.

        >>> by_bytes().decode(np.array([72, 105, 256, 999]))
        'Hi␄�'
        """
        shown = {self.end: "␄".encode()}
        pieces = (self.pieces[t] if 0 <= t < self.end else shown.get(t, "�".encode()) for t in np.asarray(tokens).tolist())
        return b"".join(pieces).decode(errors="replace")


def by_bytes() -> Tokenizer:
    """Token t < 256 is the byte t; 256 ends a document."""
    return Tokenizer(lambda document: np.frombuffer(document, np.uint8), tuple(bytes([i]) for i in range(256)))


def bpe(documents: Sequence[bytes], digest: str, vocab_size: int) -> Tokenizer:
    """Byte-level BPE of vocab_size - 1 pieces, the last token being the end of a document; trained once and kept in the cache folder.

    Training starts from the 256 bytes and merges the most frequent pair of neighbours, ties by their numbers, vocab_size - 257 times:
    the same documents give the same tokenizer. A damaged file of the cache is trained anew.

    Args:
      documents: UTF-8, the training split.
      digest: of the corpus; with the size, the name of the file.
      vocab_size: tokens, with the end of a document; at least 257.
    Returns:
      Tokenizer with vocab_size - 1 pieces.
    Raises:
      SpecError: the documents have too few distinct pairs for that many merges.

    >>> from tempfile import TemporaryDirectory
    >>> from unittest import mock
    >>> with TemporaryDirectory() as folder, mock.patch.dict(os.environ, XDG_CACHE_HOME=folder):
    ...     bpe([b"ababab"], "0" * 16, 258).pieces[256]
    b'ab'
    """
    path = cache_folder() / f"bpe-{digest}-{vocab_size}.json"
    made = _load(path, vocab_size)
    if made is None:
        made = _train(documents, vocab_size)
        with contextlib.suppress(OSError):  # a folder that cannot be written to costs time, not the run
            _save(path, made)
    byte_of, vocabulary = _bytes_of_letters(), made.get_vocab()
    pieces = tuple(bytes(byte_of[c] for c in letters) for letters in sorted(vocabulary, key=vocabulary.__getitem__))
    return Tokenizer(lambda document: np.array(made.encode(document.decode(), add_special_tokens=False).ids, np.int32), pieces)


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/scalemem, or ~/.cache/scalemem where it is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "scalemem")


def _train(documents: Sequence[bytes], vocab_size: int) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 1, min_frequency=1, show_progress=False, special_tokens=[],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator((d.decode() for d in documents), trainer, length=len(documents))
    if made.get_vocab_size() != vocab_size - 1:
        raise SpecError(f"model.vocab_size = {vocab_size}: a BPE of this corpus has at most {made.get_vocab_size() + 1} tokens; "
                        "lower it or give more text")
    return made


def _load(path: Path, vocab_size: int) -> tokenizers.Tokenizer | None:
    if not path.is_file():
        return None
    try:
        made = tokenizers.Tokenizer.from_file(str(path))
    except Exception:  # the library raises nothing narrower
        return None
    return made if made.get_vocab_size() == vocab_size - 1 else None


def _save(path: Path, made: tokenizers.Tokenizer) -> None:
    """Whole or not at all, also with others that write the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        part.write_text(made.to_str(), encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _bytes_of_letters() -> dict[str, int]:
    """Byte-level BPE writes a byte as a letter: visible Latin-1 as itself, the other bytes in order as U+0100, U+0101, ..."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(256)) - set(visible))
    return {chr(b): b for b in visible} | {chr(0x100 + i): b for i, b in enumerate(hidden)}
