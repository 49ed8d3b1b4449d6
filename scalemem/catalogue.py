"""What a store holds: its manifests read, its parts verified, and for every run the parts that its rows come from."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scalemem.durable import StoreWarning, checked_line, read_lines, write_whole

QUIET_S = 900.0  # a manifest of another host that has not grown for this long has no writer


@dataclass(frozen=True)
class Part:
    """One Parquet file as its manifest promises it."""

    table: str
    part: str  # file name in parts/
    sha256: str
    bytes: int
    rows: int
    run_ids: tuple[str, ...]


@dataclass(frozen=True)
class Commit:
    """Parts that one call wrote, in one manifest line: all of them exist or none."""

    time: float
    parts: tuple[Part, ...]
    statuses: dict[str, str]  # run_id to done or diverged, of the rows of table runs
    provenance: dict[str, Any]


@dataclass
class Catalogue:
    """For every finished run its status, provenance and tables, and for every table which part provides which runs."""

    statuses: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, dict[str, Any]] = field(default_factory=dict)
    tables: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    sources: dict[str, dict[Part, set[str]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(set)))

    def add(self, run_id: str, parts: Iterable[Part]) -> None:
        """Takes the rows of a run from these parts."""
        for part in parts:
            self.tables[run_id].add(part.table)
            self.sources[part.table][part].add(run_id)


@dataclass
class Manifests:
    """The manifests of a store, each read again only when it has changed."""

    folder: Path
    _read: dict[Path, tuple[tuple[int, int], list[dict[str, Any]], list[int]]] = field(default_factory=dict)

    def records(self) -> dict[Path, list[dict[str, Any]]]:
        """Records by file; a corrupted line is named in a warning and left out, so its runs count as missing."""
        found = {}
        for path in sorted(p for p in self.folder.iterdir() if p.suffix == ".jsonl"):
            state = path.stat()
            version = (state.st_size, state.st_mtime_ns)
            if self._read.get(path, (None,))[0] != version:
                self._read[path] = (version, *read_lines(path))
                for number in self._read[path][2]:
                    warnings.warn(f"{path}, line {number}: corrupted; the runs that it lists count as missing "
                                  "and will be run again", StoreWarning, stacklevel=4)
                if _torn(path) and not _writer_lives(path):
                    warnings.warn(f"{path}: ends within a line, for its writer was killed or it was cut; the runs that it listed there count "
                                  "as missing and will be run again", StoreWarning, stacklevel=4)
            found[path] = self._read[path][1]
        return found

    def repair(self, aside: Path) -> None:
        """Copies every manifest with corrupted lines, or that ends within one, to `aside` and keeps its good lines; but none that is written to."""
        for path in self.records():
            own = path.stem.rsplit("-", 2)[:2] == [socket.gethostname(), str(os.getpid())]
            if (self._read[path][2] or _torn(path)) and (own or not _writer_lives(path)):
                write_whole(aside / path.name, path.read_bytes())
                write_whole(path, b"".join(map(checked_line, self._read[path][1])))
                if not self._read[path][1]:
                    path.unlink()


def _torn(path: Path) -> bool:
    """Whether a manifest does not end with a line; who writes one may be about to end it."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        return size == 0 or (file.seek(size - 1), file.read(1))[1] != b"\n"


def _writer_lives(path: Path) -> bool:
    """Whether the process that appends to a manifest, which is named in its name, may still do so."""
    host, pid, _ = (path.stem.rsplit("-", 2) + ["", ""])[:3]
    if host != socket.gethostname() or not pid.isdecimal():
        return time.time() - path.stat().st_mtime < QUIET_S
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # of another user
    return True


def digest(content: bytes | memoryview) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


_verified: dict[tuple[str, int, int], str] = {}  # (path, size, mtime) to SHA-256 of what was read, for this process


def defect(folder: Path, part: Part) -> str:
    """Why a part cannot be used; empty if it is what its manifest promises."""
    path = folder / part.part
    try:
        state = os.stat(path)
        key = (str(path), state.st_size, state.st_mtime_ns)
        if state.st_size != part.bytes:
            return f"{state.st_size} bytes instead of {part.bytes}"
        if key not in _verified:
            _verified[key] = digest(path.read_bytes())
        return "" if _verified[key] == part.sha256 else "wrong checksum"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"unreadable ({error.strerror})"


def read(folder: Path, part: Part) -> bytes | None:
    """The content of a part, or None if it is no longer what was verified; `defect` then looks again."""
    with contextlib.suppress(OSError):
        content = (folder / part.part).read_bytes()
        if digest(content) == part.sha256:
            return content
    for key in [key for key in _verified if key[0] == str(folder / part.part)]:
        del _verified[key]
    return None


def build(store: Path, records: dict[Path, list[dict[str, Any]]]) -> Catalogue:
    """Finds for every run the first complete set of its rows.

    A set is a row of table `runs` with all parts that hold rows of that run and that the same call, or the same process
    before it, wrote. It is complete if each of these parts is what its manifest promises. Tables appended later (a
    measure taken of a finished run) join it. A part that is not what was promised is named in a warning and moved to
    `set-aside/`, unless its runs have been run again since.
    """
    sets: list[tuple[float, str, str, tuple[Part, ...], Commit]] = []  # time, manifest, run_id, parts, commit
    later: list[tuple[float, str, str, tuple[Part, ...]]] = []
    parts: dict[Part, None] = {}
    for path, lines in records.items():
        open_parts: dict[str, list[Part]] = defaultdict(list)
        last = 0.0
        for commit in map(_commit, (record for record in lines if record["kind"] == "commit")):
            parts.update(dict.fromkeys(commit.parts))
            last = commit.time
            for part in commit.parts:
                for run_id in part.run_ids:
                    open_parts[run_id].append(part)
            sets += [(last, path.name, key, tuple(open_parts.pop(key)), commit) for key in commit.statuses]
        later += [(last, path.name, key, tuple(held)) for key, held in open_parts.items()]

    defects = {part: reason for part in parts if (reason := defect(store / "parts", part))}
    found = Catalogue()
    for _, _, run_id, members, commit in sorted(sets, key=lambda s: s[:3]):
        if run_id not in found.statuses and defects.keys().isdisjoint(members):
            found.statuses[run_id] = commit.statuses[run_id]
            found.provenance[run_id] = commit.provenance
            found.add(run_id, members)
    for _, _, run_id, members in sorted(later, key=lambda s: s[:3]):
        if run_id in found.statuses:
            for table in {part.table for part in members} - found.tables[run_id]:
                of_table = [part for part in members if part.table == table]
                if defects.keys().isdisjoint(of_table):
                    found.add(run_id, of_table)
    for part, reason in defects.items():
        lost = [run_id for run_id in part.run_ids if part.table not in found.tables[run_id]]
        if lost:
            _set_aside(store, part, reason, lost)
    return found


def _commit(record: dict[str, Any]) -> Commit:
    parts = tuple(Part(p["table"], p["part"], p["sha256"], p["bytes"], p["rows"], tuple(p["run_ids"]))
                  for p in record["parts"])
    return Commit(record["time"], parts, record["statuses"], record["provenance"])


def _set_aside(store: Path, part: Part, reason: str, lost: list[str]) -> None:
    moved = ""
    with contextlib.suppress(OSError):
        (store / "set-aside").mkdir(exist_ok=True)
        os.rename(store / "parts" / part.part, store / "set-aside" / part.part)
        moved = ", moved to set-aside/"
    warnings.warn(f"{store / 'parts' / part.part}: {reason}{moved}; {len(lost)} runs whose {part.table} it held count "
                  f"as missing and will be run again ({lost[0]}{', ...' if len(lost) > 1 else ''})",
                  StoreWarning, stacklevel=5)
