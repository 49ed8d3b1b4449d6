"""Who works on a store now: locks and leases that the kernel frees when their process dies, even by `kill -9`."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from scalemem.durable import StoreError, StoreWarning, checked_line, one_line, read_lines

STALE_S = 900.0  # a lease of another host without a heartbeat for this long has died
UNKNOWN = 0  # the pid of a living process whose lease is damaged

_held: set[int] = set()  # file descriptors of our locks; a forked child closes its copies, which would keep them alive


def _close_in_child() -> None:
    for fd in _held:
        with contextlib.suppress(OSError):
            os.close(fd)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


@contextlib.contextmanager
def exclusive(path: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Holds the lock file `path`; its content says who holds it.

    Args:
      path: created if absent, never removed.
      wait_s: how long to wait for another holder, in seconds.

    Raises:
      StoreError: another process, or this one, holds it; one line with pid, host, since when and how to mend it. Or there are no
        locks here: needs Linux or macOS.
    """
    with one_line(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # not inheritable: closed in a child that execs
        _held.add(fd)
    try:
        with one_line(path):
            deadline = time.monotonic() + wait_s
            while not _try_lock(fd):
                if time.monotonic() >= deadline:
                    raise StoreError(f"{path.parent}: {_describe(_read(path))}; wait for it or end it, "
                                     "then run the same command again")
                time.sleep(0.01)
            _put(fd, checked_line(_self()))
        yield
    finally:
        _release(fd)


@dataclass(frozen=True)
class Lease:
    """Runs that this process works on now; `beat()` every minute or so tells other hosts that it is alive."""

    run_ids: tuple[str, ...]
    path: Path
    fd: int
    content: bytes

    def beat(self) -> None:
        """Renews the heartbeat, which is the modification time of the lease's file, and its content, should that be damaged."""
        with one_line(self.path):
            os.utime(self.path)
            if os.pread(self.fd, len(self.content) + 1, 0) != self.content:
                _put(self.fd, self.content)


@contextlib.contextmanager
def lease(folder: Path, run_ids: Iterable[str]) -> Iterator[Lease]:
    """Claims those of `run_ids` that no living process has claimed; two processes never hold the same run.

    Args:
      folder: where leases are kept.
      run_ids: the runs wanted.

    Returns:
      A context with the Lease; its `run_ids` are what was granted, in the order asked, perhaps none.
    """
    name, temporary = f"{socket.gethostname()}-{secrets.token_hex(8)}.json", folder / f".tmp-{secrets.token_hex(8)}"
    path = folder / name  # the host is in it, so that it is known whether who wrote it lives, whatever has become of the content
    with one_line(folder), exclusive(folder / "lock", wait_s=30.0):
        living = leases(folder, remove_dead=True)
        taken = {run_id for content in living for run_id in content["run_ids"]}
        unsure = any(content["pid"] == UNKNOWN for content in living)  # whichever runs they hold
        granted = tuple(run_id for run_id in dict.fromkeys(run_ids) if run_id not in taken and not unsure)
        content = checked_line({**_self(), "run_ids": granted})
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        _held.add(fd)
        try:  # locked before it has its name, so nobody sees it unlocked while we live
            _try_lock(fd)
            os.pwrite(fd, content, 0)
            os.rename(temporary, path)
        except BaseException:
            _release(fd)
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    try:
        yield Lease(granted, path, fd, content)
    finally:
        if fd in _held:
            with contextlib.suppress(OSError):
                os.unlink(path)
        _release(fd)


def leases(folder: Path, *, remove_dead: bool = False) -> list[dict[str, Any]]:
    """What living processes have claimed: dicts with host, pid, since, run_ids and beat (seconds since the epoch).

    Args:
      folder: where leases are kept.
      remove_dead: removes those of dead processes; a damaged one is moved to `set-aside` beside the folder.

    Warns:
      StoreWarning: a lease is damaged. If its process lives, its pid is UNKNOWN and its runs are not known until it beats.
    """
    living = []
    for path in sorted(folder.glob("*.json")):
        content, host = _read(path), path.name.rpartition("-")[0] or socket.gethostname()
        alive, aside = _alive(path, {"host": host, **content}), ""
        if alive:
            with contextlib.suppress(FileNotFoundError):
                unknown = {"host": host, "pid": UNKNOWN, "since": path.stat().st_mtime, "run_ids": []}
                living.append({**(content or unknown), "beat": path.stat().st_mtime})
        elif remove_dead and content:
            path.unlink(missing_ok=True)
        elif remove_dead and path.exists():
            (folder.parent / "set-aside").mkdir(exist_ok=True)
            path.rename(folder.parent / "set-aside" / path.name)
            aside = ", moved to set-aside/"
        if not content and path.exists() | bool(aside):
            warnings.warn(f"{path}: damaged{aside}; " + ("its process lives and writes it again soon" if alive else
                          "its process has ended, and its runs are free"), StoreWarning, stacklevel=3)
    return living


def _alive(path: Path, content: dict[str, Any]) -> bool:
    """Whether who wrote a lease lives: by its lock on this host, by its heartbeat on another, unless that was an earlier life of our job."""
    job, restarts = _job()
    try:
        if content["host"] != socket.gethostname():
            if job and content.get("job") == job and content.get("restarts", 0) < restarts:
                return False
            return time.time() - path.stat().st_mtime < STALE_S
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _try_lock(fd, shared=True)
    finally:
        os.close(fd)


def _try_lock(fd: int, *, shared: bool = False) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: whoever only reads and fits does not come here
        raise StoreError("writing to a store needs file locks, which are there on Linux and macOS; run there, analyse anywhere") from None
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _release(fd: int) -> None:
    if fd in _held:  # not so in a forked child, which has closed its copy
        _held.discard(fd)
        os.close(fd)


def _self() -> dict[str, Any]:
    job, restarts = _job()
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time(), **({"job": job, "restarts": restarts} if job else {})}


def _job() -> tuple[str, int]:
    """The job of a cluster that this process is in, and how often it was queued again; ("", 0) in none."""
    return os.environ.get("SLURM_JOB_ID", ""), int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def _put(fd: int, content: bytes) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, content, 0)


def _read(path: Path) -> dict[str, Any]:
    """Who wrote a lock or lease; {} if it is damaged."""
    with contextlib.suppress(OSError):
        records, corrupted = read_lines(path)
        if len(records) == 1 and not corrupted:
            return records[0]
    return {}


def _describe(content: dict[str, Any]) -> str:
    if not content:
        return "another process is writing to this store"
    since = datetime.fromtimestamp(content["since"]).isoformat(" ", "seconds")
    return f"process {content['pid']} on {content['host']} is writing to this store since {since}"
