"""Generators: one file each, with `items(run, key, index) -> tokens` and `entropy_bits(run)`, the exact entropy of an item."""

from __future__ import annotations

from types import ModuleType

from scalemem.data import uniform
from scalemem.spec import SpecError

GENERATORS: dict[str, ModuleType] = {"uniform": uniform}


def get(name: str) -> ModuleType:
    """The generator of a name; SpecError if there is none."""
    if name not in GENERATORS:
        raise SpecError(f"data.generator = {name!r}: must be one of {', '.join(GENERATORS)}; choose one of these")
    return GENERATORS[name]
