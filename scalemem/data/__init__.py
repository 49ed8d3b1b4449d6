"""Generators: one file each, with `items(run, key, index) -> tokens` and `entropy_bits(run)`, the exact entropy of an item.

Sources of known likelihood have `nats(run, tokens)`, exact code lengths, and `tempered(run, key, index, temperature)`, too.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import jax
from jaxtyping import Array, Int

from scalemem.data import canaries
from scalemem.spec import RunSpec, SpecError

# name -> module, or where it is imported from when it is used
GENERATORS: dict[str, Any] = {name: f"scalemem.data.{name}" for name in ("uniform", "zipf", "markov", "pcfg", "text", "facts", "domains", "digits",
                                                                       "prototypes")}


def get(name: str) -> ModuleType:
    """The generator of a name; SpecError if there is none."""
    if name not in GENERATORS:
        raise SpecError(f"data.generator = {name!r}: must be one of {', '.join(GENERATORS)}; choose one of these")
    found = GENERATORS[name]
    return importlib.import_module(found) if isinstance(found, str) else found


def items(run: RunSpec, key: jax.Array, index: Int[Array, " B"]) -> Int[Array, "B S"]:
    """Items of the first stage's data set by number: those of its generator, with its canaries planted in them."""
    generator = get(run.stages[0].data.generator)
    background = generator.items(run, key, index)
    if run.stages[0].data.canaries is None:
        return background
    return canaries.overlay(run, generator, key, index, background)


def check(run: RunSpec) -> None:
    """Raises SpecError, in one line, where the data of a run cannot be made: no such generator, or what it refuses."""
    data = run.stages[0].data
    generator = get(data.generator)
    if data.canaries and data.canaries.kind in ("trap", "template") and not hasattr(generator, "tempered"):
        legal = ", ".join(name for name in GENERATORS if hasattr(get(name), "tempered"))
        raise SpecError(f"canaries.kind = {data.canaries.kind!r}: needs a source with temperatures, not {data.generator!r}; legal: {legal}; "
                        "change the generator")
    if data.canaries and data.canaries.kind == "structured" and data.canaries.word_length > (data.canaries.length or run.model.seq_len):
        raise SpecError(f"canaries.word_length = {data.canaries.word_length}: must be at most the canary's length; shorten the filling")
    if hasattr(generator, "check"):
        generator.check(run)
