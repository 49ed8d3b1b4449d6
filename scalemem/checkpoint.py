"""Checkpoints of a pack in progress, through Orbax: written while training goes on; a half-written or damaged one is never gone on from.

    <folder>/pack.json          which runs, in which order and shape, under which executor: a resume must use the same
    <folder>/<epoch>/           the states, written by Orbax under a temporary name and renamed when whole
    <folder>/<epoch>.curves     what has been measured on the way: Parquet files one after another, one of each run and table
    <folder>/<epoch>.json       written last: every file of the checkpoint with its size and checksum; without it there is none

Both JSON files are a line that carries its own checksum (`durable.checked_line`).
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scalemem import columnar
from scalemem.durable import checked_line, disk_error, read_lines, write_whole

Curves = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]  # run_id -> table -> blocks of rows, in order
Told = Callable[[str], None]


def _checkpointer():
    """Orbax's, for this process: where there are several, none waits for another."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # what goes wrong is raised, too
    import orbax.checkpoint as ocp

    if jax.process_count() == 1:
        return ocp.Checkpointer(ocp.StandardCheckpointHandler())
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}")
    return ocp.Checkpointer(ocp.StandardCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone)


def epochs(folder: Path) -> list[int]:
    """Epochs that have a whole checkpoint, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.with_suffix(".json").exists())


def save(folder: Path, epoch: int, states: Any, curves: Curves, pack: dict[str, Any]) -> None:
    """Writes the checkpoint of an epoch, then removes older ones; a kill at any moment leaves one whole.

    Args:
      folder: the pack's own.
      epoch: epochs completed; names the checkpoint.
      states: pytree of arrays, all of which this process holds.
      curves: what has been measured on the way.
      pack: what `load_pack` gives back.
    Raises:
      DiskError: it cannot be written; older ones are as they were.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _checkpointer() as checkpointer:
            checkpointer.save((folder / str(epoch)).resolve(), states, force=True)
        content, index = _packed(curves)
        write_whole(folder / f"{epoch}.curves", content, sync_dir=False)
        line = checked_line(pack)
        if not (folder / "pack.json").exists() or (folder / "pack.json").read_bytes() != line:
            write_whole(folder / "pack.json", line, sync_dir=False)
        files = {name: _seal(folder / name) for name in _names(folder, epoch)}
        write_whole(folder / f"{epoch}.json", checked_line({"curves": index, "files": files}))
        for old in epochs(folder):
            if old < epoch:
                _remove(folder, old)
    except Exception as error:  # Orbax raises many kinds, for a full disk too
        raise disk_error(folder, error) from error


class Writer:
    """Writes the checkpoints of a pack one after another, in a thread beside the training.

    Training waits for a copy of the states in the memory of the host, as its next step takes the buffers of the old ones.
    """

    def __init__(self, folder: Path, pack: dict[str, Any]):
        self.folder, self.pack = folder, pack
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether the last checkpoint is still being written."""
        return self._thread is not None and self._thread.is_alive()

    def save(self, epoch: int, states: Any, curves: Curves) -> None:
        """Begins to write a checkpoint, once the one before it is written.

        Raises:
          DiskError: the one before could not be written.
        """
        self.wait()
        copied = jax.tree.map(np.array, states)
        so_far = {run: {name: list(blocks) for name, blocks in tables.items()} for run, tables in curves.items()}

        def write() -> None:
            try:
                save(self.folder, epoch, copied, so_far, self.pack)
            except BaseException as error:  # raised where the training is
                self._error = error

        self._thread = threading.Thread(target=write, name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until the last checkpoint is whole; DiskError if it could not be written."""
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        self.check()

    def check(self) -> None:
        """Raises DiskError if the last checkpoint could not be written; does not wait for it."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None or issubclass(kind, Exception):  # else in a hurry
            with contextlib.suppress(*() if kind is None else (Exception,)):  # what was raised first is what counts
                self.wait()


def _packed(curves: Curves) -> tuple[bytes, list[Any]]:
    """Parquet files one after another, and where each begins: a column that one run lacks, or has of another type, is not given to it."""
    parts, index, at = [], [], 0
    for run, tables in curves.items():
        for name, blocks in tables.items():
            united = columnar.unite_blocks(blocks)
            if united:
                parts.append(columnar.encode(name, united, compression="none"))
                index.append([run, name, at, len(parts[-1])])
                at += len(parts[-1])
    return b"".join(parts), index


def _unpacked(content: bytes, index: Sequence[Any]) -> dict[str, dict[str, list[Any]]]:
    """The curves that `_packed` wrote, one block a run and table."""
    found: dict[str, dict[str, list[Any]]] = {}
    for run, name, at, size in index:
        table = columnar.decode(memoryview(content)[at : at + size])
        found.setdefault(run, {})[name] = [columnar.Block(zip(table.column_names, table.columns, strict=True))]
    return found


def _names(folder: Path, epoch: int) -> Iterator[str]:
    """The files of a checkpoint, but for its JSON, as paths from the folder."""
    yield f"{epoch}.curves"
    for path in sorted((folder / str(epoch)).rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder))


def _seal(path: Path) -> list[int]:
    content = path.read_bytes()
    return [len(content), zlib.crc32(content)]


def _read_json(path: Path) -> dict[str, Any]:
    """The record of a file of one checked line; ValueError if it is not what was written."""
    records, corrupted = read_lines(path)
    if corrupted or len(records) != 1:
        raise ValueError(f"{path.name} is damaged")
    return records[0]


def _remove(folder: Path, epoch: int) -> None:
    """The JSON first: without it the rest is no checkpoint."""
    (folder / f"{epoch}.json").unlink(missing_ok=True)
    (folder / f"{epoch}.curves").unlink(missing_ok=True)
    shutil.rmtree(folder / str(epoch), ignore_errors=True)


def _set_aside(folder: Path, aside: Path | None, *names: str) -> str:
    """Moves files of a checkpoint folder to `aside`; gives the words that say where."""
    if aside is None:
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return "removed"
    target = aside / f"checkpoint-{folder.name}-{secrets.token_hex(4)}"
    try:
        target.mkdir(parents=True)
        for name in names:
            if (folder / name).exists():
                (folder / name).rename(target / name)
    except OSError as error:
        raise disk_error(folder, error) from error
    return f"moved to {aside.name}/{target.name}"


def _say(text: str) -> None:
    logging.getLogger("scalemem").warning(text)


def load(folder: Path, like: Callable[[int], Any], aside: Path | None = None,
         told: Told = _say) -> tuple[int, Any, dict[str, dict[str, list[Any]]]] | None:
    """(epoch, states, curves) of the newest whole checkpoint, or None; a damaged one is named and set aside, and an older one tried.

    Args:
      folder: the pack's own.
      like: of an epoch, the pytree of jax.ShapeDtypeStruct that says what the states must be.
      aside: the folder to which damaged ones are moved; None removes them.
      told: is given a line on each damaged one.
    """
    for epoch in reversed(epochs(folder)):
        try:
            sealed = _read_json(folder / f"{epoch}.json")
            for name, seal in sealed["files"].items():
                if not (folder / name).is_file() or _seal(folder / name) != seal:
                    raise ValueError(f"{name} is damaged")
            with _checkpointer() as checkpointer:
                states = checkpointer.restore((folder / str(epoch)).resolve(), like(epoch))
            return epoch, states, _unpacked((folder / f"{epoch}.curves").read_bytes(), sealed["curves"])
        except Exception as error:  # Orbax raises many kinds for damage; whichever it is, the run is done again from further back
            why = (str(error).splitlines() or [type(error).__name__])[0]
            where = _set_aside(folder, aside, f"{epoch}.json", f"{epoch}.curves", str(epoch))
            told(f"checkpoint {folder}/{epoch}: {why}; {where}; its pack goes on from further back")
    return None


def load_pack(folder: Path) -> dict[str, Any] | None:
    """The pack that a checkpoint folder belongs to, or None where there is nothing whole to go on from."""
    try:
        return _read_json(folder / "pack.json") if epochs(folder) else None
    except (OSError, ValueError):
        return None


def discard_unreadable(folder: Path, aside: Path, told: Told = _say) -> None:
    """Sets aside checkpoints of which nobody can tell whose they are: their pack.json is damaged."""
    if epochs(folder) and load_pack(folder) is None:
        where = _set_aside(folder, aside, *(p.name for p in folder.iterdir()))
        told(f"checkpoint {folder}: pack.json is damaged; {where}; its runs are done again")

