"""Rules of decoding: one file each, with `build(tokens, vocab_size, ...) -> rule`, a callable pytree to be given to `generate` as `ban`."""

from __future__ import annotations

from types import ModuleType

from scalemem.decoding import memfree
from scalemem.spec import SpecError

RULES: dict[str, ModuleType] = {"memfree": memfree}


def get(name: str) -> ModuleType:
    """The rule of a name; SpecError if there is none."""
    if name not in RULES:
        raise SpecError(f"decoding = {name!r}: must be one of {', '.join(RULES)}; choose one of these")
    return RULES[name]
