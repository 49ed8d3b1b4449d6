"""Files that survive a kill, a power cut and a full disk: written whole or not at all, and errors in one clear line."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class StoreError(RuntimeError):
    """A store that cannot be used. The message is one line: which path, what happened, how to mend it."""


class DiskError(StoreError):
    """The disk refuses to read or write: nothing more can be done until its cause is mended."""


class StoreWarning(UserWarning):
    """Something in a store was lost and will be run again. One line that names it."""


_AGAIN = "then run the same command again: nothing already written is lost"
_CAUSES = {
    errno.ENOSPC: f"the disk is full; free some space, {_AGAIN}",
    errno.EDQUOT: f"the disk quota is used up; free some space, {_AGAIN}",
    errno.EROFS: f"the file system is read-only; remount it or choose another path, {_AGAIN}",
    errno.EACCES: f"permission denied; change its owner or mode, {_AGAIN}",
    errno.EPERM: f"permission denied; change its owner or mode, {_AGAIN}",
    errno.ENOENT: f"the path has vanished; mount or restore it, {_AGAIN}",
    errno.ENOTDIR: f"the path has vanished; mount or restore it, {_AGAIN}",
    errno.ESTALE: f"the file system was unmounted; mount it, {_AGAIN}",
    errno.EIO: f"the disk fails to read or write; check it, {_AGAIN}",
    errno.ENOLCK: "the file system has no file locks; put the store on a disk that has them",
    errno.EOPNOTSUPP: "the file system has no file locks; put the store on a disk that has them",
    errno.EFBIG: f"a file would be larger than the system allows; raise `ulimit -f`, {_AGAIN}",
    errno.EMFILE: f"too many open files; raise `ulimit -n`, {_AGAIN}",
}


@contextlib.contextmanager
def one_line(path: Path) -> Iterator[None]:
    """Turns an OSError inside the block into a DiskError that names `path`, the cause and how to mend it."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error


def disk_error(path: Path, error: BaseException) -> DiskError:
    """A DiskError for whatever was raised where `path` was written; it says what the system's error behind it means."""
    number = _errno(error)
    said = os.strerror(number) if number else (str(error).splitlines() or [""])[0][:200] or type(error).__name__
    return error if isinstance(error, DiskError) else DiskError(f"{path}: {_CAUSES.get(number, f'{said}; mend the cause, {_AGAIN}')}")


def _errno(error: BaseException | None) -> int:
    """The number of the system's error behind an exception, of its causes, or as TensorStore has it in its messages; 0 for none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno:
            return error.errno
        found = re.search(r"os_error_code='(\d+)'", str(error))
        if found:
            return int(found[1])
        error = error.__cause__ or error.__context__
    return 0


def fsync_dir(path: Path) -> None:
    """Makes the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_whole(path: Path, content: bytes | memoryview, *, sync_dir: bool = True) -> None:
    """Writes a file under a temporary name, fsyncs it and renames it: `path` is old, new or absent, never half.

    Args:
      path: the file; its directory must exist.
      content: all of it.
      sync_dir: False leaves the caller to `fsync_dir` once for several files of one directory.

    Raises:
      OSError: nothing is left behind.
    """
    temporary = path.with_name(f".tmp-{secrets.token_hex(8)}")
    try:
        _write(temporary, content, os.O_CREAT | os.O_EXCL)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if sync_dir:
        fsync_dir(path.parent)


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Appends a record as one checked, fsynced JSON line; after an error the file is as it was.

    Raises:
      OSError: the line was not written.
    """
    existed = path.exists()
    size = path.stat().st_size if existed else 0
    try:
        _write(path, checked_line(record), os.O_CREAT | os.O_APPEND)
        if not existed:
            fsync_dir(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.truncate(path, size)
        raise


def read_lines(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The records of a file written by `append_line`, and the numbers (from 1) of its corrupted lines.

    What follows the last line break is a line whose writer was killed: it is ignored.
    """
    records, corrupted = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
            if record.pop("check") != _check(record):
                raise ValueError("wrong checksum")
            records.append(record)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            corrupted.append(number)
    return records, corrupted


def checked_line(record: dict[str, Any]) -> bytes:
    """A record as a line of JSON that carries its own checksum."""
    return json.dumps({**record, "check": _check(record)}, separators=(",", ":")).encode() + b"\n"


def _check(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def _write(path: Path, content: bytes | memoryview, flags: int) -> None:
    fd = os.open(path, os.O_WRONLY | flags, 0o666)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view):]
        os.fsync(fd)
    finally:
        os.close(fd)
