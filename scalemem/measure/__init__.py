"""Measures: one file each, `measure(run, params, data_key, fresh_key) -> {column_with_unit: number or array}`.

Numbers are columns of the run's row. Arrays, all of one length, are columns of a table of the measure's name: a row for every canary or
control (`data.canaries.probes`). Measures OF_STAGES have one argument more, the `moment.Moment`; their rows are facts, domains or tasks.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from scalemem.spec import RunSpec, SpecError

OF_ITEMS = ("capacity", "quantized")  # read the whole data set of a source of known entropy
OF_CANARIES = ("likelihood", "extraction", "probabilistic", "exposure", "approximate", "unprompted", "last_words", "cloze", "compression",
               "memfree", "factors")
OF_STAGES: tuple[str, ...] = ("facts", "domains", "tasks", "drift", "linear_tasks")  # are told when they are taken (`moment.Moment`)
SUITS = {"facts": ("facts",), "domains": ("domains",), "tasks": ("digits", "prototypes")}  # generators of those that do not take any
# name -> function, or the module that has it as `measure`, imported when it is used
MEASURES: dict[str, Any] = {name: f"scalemem.measure.{name}" for name in OF_ITEMS + OF_CANARIES + OF_STAGES}


def get(name: str) -> Callable[..., dict[str, Any]]:
    """The measure of a name; SpecError if there is none."""
    if name not in MEASURES:
        raise SpecError(f"probe.measure = {name!r}: must be one of {', '.join(MEASURES)}; choose one of these")
    found = MEASURES[name]
    return importlib.import_module(found).measure if isinstance(found, str) else found


def check(run: RunSpec) -> None:
    """Raises SpecError, in one line, for a measure that does not exist or that the data of a run do not suit."""
    canaries, generator = run.stages[0].data.canaries, run.stages[0].data.generator
    for probe in run.probes:
        get(probe.measure)
        if generator not in SUITS.get(probe.measure, (generator,)):
            raise SpecError(f"probe.measure = {probe.measure!r}: reads items of {' or '.join(SUITS[probe.measure])}, not of {generator!r}; change "
                            "data.generator or the measure")
        if probe.measure in OF_ITEMS and generator in ("text", "digits"):
            what = "a text" if generator == "text" else "images"
            raise SpecError(f"probe.measure = {probe.measure!r}: reads data sets of known entropy, and nobody knows that of {what}; take "
                            f"{', '.join(OF_CANARIES if generator == 'text' else ('tasks', 'drift'))}")
        if probe.measure in OF_CANARIES and canaries is None:
            raise SpecError(f"probe.measure = {probe.measure!r}: reads canaries, and data.canaries = None; plant some, or take {', '.join(OF_ITEMS)}")
        if probe.measure in OF_ITEMS and canaries is not None:
            raise SpecError(f"probe.measure = {probe.measure!r}: reads data sets of known entropy, which canaries change; leave data.canaries out, "
                            f"or take {', '.join(OF_CANARIES)}")
