"""Checkpoints of a pack in progress, through Orbax: the newest whole one is read, a half-written one never is.

    <folder>/pack.json          which runs, in which order and shape, under which executor: a resume must use the same
    <folder>/<epoch>.curves     what has been measured on the way: Parquet files one after another, one of each run and table
    <folder>/<epoch>.json       which they are, and where; a checkpoint of an earlier version has the curves themselves here
    <folder>/<epoch>/           the states, written by Orbax under a temporary name and renamed when whole
"""

from __future__ import annotations

import json
import logging
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scalemem import columnar
from scalemem.durable import write_whole

Curves = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]  # run_id -> table -> blocks of rows, in order


def _checkpointer():
    logging.getLogger("absl").setLevel(logging.ERROR)
    import orbax.checkpoint as ocp

    return ocp.StandardCheckpointer()


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
      states: pytree of arrays.
      curves: what has been measured on the way.
      pack: what `load_pack` gives back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "pack.json", json.dumps(pack).encode())
    content, index = _packed(curves)
    write_whole(folder / f"{epoch}.curves", content)
    write_whole(folder / f"{epoch}.json", json.dumps(index).encode())
    with _checkpointer() as checkpointer:
        checkpointer.save((folder / str(epoch)).resolve(), states, force=True)
        checkpointer.wait_until_finished()
    for old in epochs(folder):
        if old < epoch:
            _remove(folder, old)


def _packed(curves: Curves) -> tuple[bytes, dict[str, Any]]:
    """Parquet files one after another, and where each begins: a column that one run lacks, or has of another type, is not given to it."""
    parts, index, at = [], [], 0
    for run, tables in curves.items():
        for name, blocks in tables.items():
            united = columnar.unite_blocks(blocks)
            if united:
                parts.append(columnar.encode(name, united, compression="none"))
                index.append([run, name, at, len(parts[-1])])
                at += len(parts[-1])
    content = b"".join(parts)
    return content, {"curves": index, "bytes": len(content), "crc32": zlib.crc32(content)}


def _unpacked(folder: Path, epoch: int) -> dict[str, dict[str, list[Any]]]:
    """The curves that `_packed` wrote, one block a run and table; ValueError if they are not whole."""
    index = json.loads((folder / f"{epoch}.json").read_bytes())
    if "crc32" not in index:  # of an earlier version: the curves themselves
        return index
    content = memoryview((folder / f"{epoch}.curves").read_bytes())
    if (len(content), zlib.crc32(content)) != (index["bytes"], index["crc32"]):
        raise ValueError("its curves are damaged")
    found: dict[str, dict[str, list[Any]]] = {}
    for run, name, at, size in index["curves"]:
        table = columnar.decode(content[at : at + size])
        found.setdefault(run, {})[name] = [columnar.Block(zip(table.column_names, table.columns, strict=True))]
    return found


def _remove(folder: Path, epoch: int) -> None:
    """The JSON first: without it the rest is no checkpoint."""
    (folder / f"{epoch}.json").unlink(missing_ok=True)
    (folder / f"{epoch}.curves").unlink(missing_ok=True)
    shutil.rmtree(folder / str(epoch), ignore_errors=True)


def load(folder: Path, like: Callable[[int], Any]) -> tuple[int, Any, dict[str, dict[str, list[Any]]]] | None:
    """(epoch, states, curves) of the newest readable checkpoint, or None; a damaged one is removed, and an older one tried.

    Args:
      folder: the pack's own.
      like: of an epoch, the pytree of jax.ShapeDtypeStruct that says what the states must be.
    """
    for epoch in reversed(epochs(folder)):
        try:
            with _checkpointer() as checkpointer:
                states = checkpointer.restore((folder / str(epoch)).resolve(), like(epoch))
            return epoch, states, _unpacked(folder, epoch)
        except Exception as error:  # Orbax raises many kinds for damage; whichever it is, the run is done again from further back
            logging.getLogger("scalemem").warning("checkpoint %s/%s: damaged (%s), set aside; going on from further back",
                                                  folder, epoch, str(error).splitlines()[0] if str(error) else type(error).__name__)
            _remove(folder, epoch)
    return None


def load_pack(folder: Path) -> dict[str, Any] | None:
    """The pack that a checkpoint folder belongs to, or None where there is nothing whole to go on from."""
    try:
        return json.loads((folder / "pack.json").read_bytes()) if epochs(folder) else None
    except (OSError, ValueError):
        return None
