"""What a launch keeps beside rows: final models, and states under a name. Workers read it in the store, wherever they run.

    <store>/keep.json                 what the last launch asked for; absent where it asked for nothing
    <store>/models/                   final models (`export_model`)
    <store>/named/<name>/<pack>/      checkpoints that stay (`named`)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scalemem import export_model
from scalemem.durable import StoreError, checked_line, one_line, read_lines, write_whole
from scalemem.spec import RunSpec, SpecError, run_id
from scalemem.store import Store


class Keep(NamedTuple):
    """What is kept of runs that finish from now on."""

    models: bool = False  # the final weights
    at: tuple[int, ...] = ()  # the states after so many exposures of the last stage
    stages: bool = False  # the states at the end of each stage

    def moments(self, begins: Sequence[int], segments: int) -> dict[int, str]:
        """After which segments of a pack its states are kept, and under which names.

        Args:
          begins: the segments after which its stages begin, and after which the last one ends.
          segments: of an exposure of the last stage.

        >>> Keep(at=(2, 100), stages=True).moments([0, 4, 10], 1)
        {4: 'stage-1', 10: 'stage-2', 6: 'exposures-2'}
        """
        found = {end: f"stage-{i}" for i, end in enumerate(begins[1:], start=1)} if self.stages else {}
        return found | {end: f"exposures-{n}" for n in self.at if (end := begins[-2] + n * segments) <= begins[-1]}


def parse(models: bool, at: str) -> Keep:
    """The options of the command line: `at` is numbers of exposures, or "stages", with commas between.

    >>> parse(True, "10,stages")
    Keep(models=True, at=(10,), stages=True)
    """
    words = [word.strip() for word in at.split(",") if word.strip()]
    numbers = [word for word in words if word != "stages"]
    for word in numbers:
        if not word.isdecimal() or int(word) < 1:
            raise SpecError(f"--checkpoint-at {word!r}: must be a number of exposures, or stages; write it as in 10,100,stages")
    return Keep(models, tuple(sorted({int(word) for word in numbers})), "stages" in words)


def ask(store: Path, keep: Keep) -> None:
    """Records what a launch asks for.

    Raises:
      SpecError: models, and the package that writes them is not installed.
      DiskError: it cannot be written.
    """
    if keep.models:
        export_model.check()
    path = store / "keep.json"
    with one_line(path):
        if keep != Keep():
            write_whole(path, checked_line(keep._asdict()))
        else:
            path.unlink(missing_ok=True)


def asked(store: Path) -> Keep:
    """What the last launch asked for; StoreError if that is damaged."""
    path = store / "keep.json"
    with one_line(path):
        if not path.exists():
            return Keep()
        records, corrupted = read_lines(path)
    if corrupted or len(records) != 1 or records[0].keys() != Keep()._asdict().keys():
        raise StoreError(f"{path}: damaged; run the same command again, which writes it anew")
    return Keep(records[0]["models"], tuple(records[0]["at"]), records[0]["stages"])


def note(store: Store, keep: Keep, runs: Sequence[RunSpec]) -> str:
    """One line on those of `runs` that finished without their models being kept; empty if there are none."""
    finished = store.finished() if keep.models else {}
    lacking = [key for key in map(run_id, runs) if key in finished and not export_model.path_of(store.path, key).exists()]
    return (f"{len(lacking)} runs finished earlier without --keep-models ({lacking[0]}{', ...' if len(lacking) > 1 else ''}): their models are not "
            "kept, and they are not run again; give another --store to have them") if lacking else ""


def folder(store: Path, name: str, pack_id: str) -> Path:
    """Where the states of a pack are kept under a name."""
    return store / "named" / name / pack_id
