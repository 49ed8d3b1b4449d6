"""Checkpoints of a pack in progress, through Orbax: the newest whole one is read, a half-written one never is.

    <folder>/pack.json          which runs, in which order and shape, under which executor: a resume must use the same
    <folder>/<epoch>.json       the curves so far
    <folder>/<epoch>/           the states, written by Orbax under a temporary name and renamed when whole
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from scalemem.durable import write_whole


def _checkpointer():
    logging.getLogger("absl").setLevel(logging.ERROR)
    import orbax.checkpoint as ocp

    return ocp.StandardCheckpointer()


def epochs(folder: Path) -> list[int]:
    """Epochs that have a whole checkpoint, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.with_suffix(".json").exists())


def save(folder: Path, epoch: int, states: Any, curves: Any, pack: dict[str, Any]) -> None:
    """Writes the checkpoint of an epoch, then removes older ones; a kill at any moment leaves one whole.

    Args:
      folder: the pack's own.
      epoch: epochs completed; names the checkpoint.
      states: pytree of arrays.
      curves: what has been measured on the way, as JSON.
      pack: what `load_pack` gives back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "pack.json", json.dumps(pack).encode())
    write_whole(folder / f"{epoch}.json", json.dumps(curves).encode())
    with _checkpointer() as checkpointer:
        checkpointer.save((folder / str(epoch)).resolve(), states, force=True)
        checkpointer.wait_until_finished()
    for old in epochs(folder):
        if old < epoch:
            (folder / f"{old}.json").unlink()
            shutil.rmtree(folder / str(old), ignore_errors=True)


def load(folder: Path, like: Any) -> tuple[int, Any, Any] | None:
    """(epoch, states, curves) of the newest readable checkpoint, or None; a damaged one is removed, and an older one tried.

    Args:
      folder: the pack's own.
      like: pytree of jax.ShapeDtypeStruct that says what the states must be.
    """
    for epoch in reversed(epochs(folder)):
        try:
            with _checkpointer() as checkpointer:
                states = checkpointer.restore((folder / str(epoch)).resolve(), like)
            return epoch, states, json.loads((folder / f"{epoch}.json").read_bytes())
        except Exception as error:  # Orbax raises many kinds for damage; whichever it is, the run is done again from further back
            logging.getLogger("scalemem").warning("checkpoint %s/%s: damaged (%s), set aside; going on from further back",
                                                  folder, epoch, str(error).splitlines()[0] if str(error) else type(error).__name__)
            (folder / f"{epoch}.json").unlink(missing_ok=True)
            shutil.rmtree(folder / str(epoch), ignore_errors=True)
    return None


def load_pack(folder: Path) -> dict[str, Any] | None:
    """The pack that a checkpoint folder belongs to, or None where there is nothing whole to go on from."""
    try:
        return json.loads((folder / "pack.json").read_bytes()) if epochs(folder) else None
    except (OSError, ValueError):
        return None
