"""Corpora: the documents of a file, a folder or a JSONL, each once, with a digest of them and a split that each document carries in itself."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scalemem.spec import SpecError

SPLITS = ("train", "held_out", "reference")
TENTHS = (8, 1, 1)  # of the documents, by their hash
NOT_STDLIB = {"site-packages", "dist-packages", "test", "tests", "idle_test"}


class Corpus(NamedTuple):
    """What a corpus holds."""

    documents: tuple[bytes, ...]  # UTF-8, distinct, in the order of their SHA-256
    hashes: tuple[bytes, ...]  # SHA-256 of each
    skipped_count: int  # files that could not be read or are not UTF-8 text, and records with half a surrogate pair
    duplicate_count: int  # documents left out, for an equal one is there

    @property
    def digest(self) -> str:
        """First 16 hexadecimal digits of SHA-256 of the documents' hashes in order: of the set of documents, not of how it is stored."""
        return hashlib.sha256(b"".join(self.hashes)).hexdigest()[:16]

    def of(self, split: str) -> list[int]:
        """Numbers of the documents of a split."""
        return [i for i, h in enumerate(self.hashes) if split_of(h) == split]


def split_of(sha256: bytes) -> str:
    """The split of a document, from its hash alone: tenths 0..7 train, 8 held_out, 9 reference.

    >>> [split_of(i.to_bytes(8, "big")) for i in (7, 8, 9)]
    ['train', 'held_out', 'reference']
    """
    tenth = int.from_bytes(sha256[:8], "big") % sum(TENTHS)
    return next(name for i, name in enumerate(SPLITS) if tenth < sum(TENTHS[: i + 1]))


def read(corpus: str) -> Corpus:
    """The distinct documents of a corpus, as it is now.

    A folder: one document a file, in all folders below it; names that begin with a dot are passed over. A .jsonl or .ndjson file, by
    itself or in a folder: one document a line, its field "text". Another file by itself: cut into documents at its blank lines. Empty:
    the Python standard library's own source, which another version of Python has another of. Files that are not UTF-8 text or hold a
    NUL are skipped and counted; blank documents are left out.

    Args:
      corpus: path of a file or folder; ~ is the home folder; "" is the standard library.
    Returns:
      Corpus: documents as UTF-8 bytes.
    Raises:
      SpecError: no such path, a line of JSONL without a text, or nothing readable.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     for name, text in (("a.txt", "one"), ("b.txt", "two"), ("c.txt", "one")):
    ...         _ = Path(folder, name).write_text(text)
    ...     found = read(folder)
    >>> sorted(found.documents), found.duplicate_count
    ([b'one', b'two'], 1)
    """
    root = Path(corpus).expanduser() if corpus else Path(sysconfig.get_path("stdlib"))
    if not (root.is_file() or root.is_dir()):
        raise SpecError(f"data.corpus = {corpus!r}: no such file or folder; point it at UTF-8 text: a file, a folder or a JSONL")
    found: dict[bytes, bytes] = {}
    skipped = kept = 0
    for path in [root] if root.is_file() else _files(root, stdlib=not corpus):
        for document in _documents(path, alone=path == root):
            if document is None:
                skipped += 1
            elif document.strip():
                found[hashlib.sha256(document).digest()] = document
                kept += 1
    if not found:
        raise SpecError(f"data.corpus = {corpus!r}: holds no text ({skipped} skipped: unreadable or not UTF-8); point it at UTF-8 text")
    hashes = tuple(sorted(found))
    return Corpus(tuple(found[h] for h in hashes), hashes, skipped, kept - len(found))


def chunks(documents: Iterable[np.ndarray], length: int, limit: int, seen: set[bytes]) -> list[np.ndarray]:
    """The stream of all documents cut into chunks of `length` tokens, each content once; what is left at the end is dropped.

    Args:
      documents: tokens of each.
      length: tokens in a chunk.
      limit: chunks at most, at least 1; documents behind the last are not looked at.
      seen: contents that are not wanted; those of the chunks found are added.
    Returns:
      int32 chunks [length], in their order.

    >>> [c.tolist() for c in chunks([np.array([1, 2, 3]), np.array([4, 1, 2, 5])], length=2, limit=9, seen=set())]
    [[1, 2], [3, 4]]
    """
    kept: list[np.ndarray] = []
    rest = np.empty(0, np.int32)
    for document in documents:
        stream = np.concatenate([rest, document.astype(np.int32)])
        whole = len(stream) // length * length
        for chunk in stream[:whole].reshape(-1, length):
            if (content := chunk.tobytes()) not in seen:
                seen.add(content)
                kept.append(chunk)
                if len(kept) == limit:
                    return kept
        rest = stream[whole:]
    return kept


def _files(root: Path, stdlib: bool) -> Iterator[Path]:
    for folder, below, names in os.walk(root):
        below[:] = sorted(b for b in below if not (b.startswith(".") or (stdlib and b in NOT_STDLIB)))
        for name in sorted(names):
            # _sysconfigdata*.py say how this Python was built: they differ between machines of one version
            wanted = name.endswith(".py") and not name.startswith("_sysconfigdata") if stdlib else not name.startswith(".")
            if wanted and (path := Path(folder, name)).is_file():
                yield path


def _documents(path: Path, alone: bool) -> Iterator[bytes | None]:
    """The documents of one file; None for what is skipped."""
    try:
        raw = path.read_bytes()
        raw.decode()
    except (OSError, UnicodeDecodeError):
        yield None
        return
    if b"\0" in raw:
        yield None
    elif path.suffix in (".jsonl", ".ndjson"):
        yield from (_record(path, i, line) for i, line in enumerate(raw.splitlines(), 1) if line.strip())
    elif alone:
        yield from re.split(rb"\n\s*\n", raw)
    else:
        yield raw


def _record(path: Path, number: int, line: bytes) -> bytes | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise SpecError(f"data.corpus: line {number} of {str(path)!r} must be an object with a string \"text\"; mend or remove the line")
    try:
        return text.encode()
    except UnicodeEncodeError:
        return None
