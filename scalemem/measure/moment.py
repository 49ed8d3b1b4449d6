"""At which moment of a staged run a measure is taken, and which items the run has read, reads or will read."""

from __future__ import annotations

from typing import Any, NamedTuple

from scalemem.spec import RunSpec


class Source(NamedTuple):
    """Items that a run reads: those of a stage, those injected in it, or those replayed in it."""

    name: str  # stage0, inject0, replay1, ...
    first: int
    n_items: int


class Moment(NamedTuple):
    """Where a run is."""

    stage: int
    reference: Any  # the weights at the start of this stage; None in the first
    sources: tuple[Source, ...]
    most: int  # items of a source that are read


def sources(run: RunSpec) -> tuple[Source, ...]:
    """The ranges of items of all stages of a run, in order; a range that occurs again is named once.

    >>> from scalemem.spec import *
    >>> model, inject = ModelSpec(d_model=4, n_layers=0, n_heads=1, vocab_size=4, seq_len=4), InjectSpec(n_items=2, first=100)
    >>> stage = Stage(data=DataSpec(n_items=8), optimizer=OptimizerSpec(peak_lr=0.1), exposures=1, batch_size=4, inject=inject)
    >>> [s[:] for s in sources(RunSpec(model=model, stages=(stage,), probes=(Probe("likelihood"),)))]
    [('stage0', 0, 8), ('inject0', 100, 2)]
    """
    found: dict[tuple[int, int], str] = {}
    for i, stage in enumerate(run.stages):
        inject = stage.inject and (stage.inject.first, stage.inject.n_items * stage.data.variants)
        for name, place in (("stage", (stage.data.first, stage.data.n_items)), ("inject", inject)):
            if place:
                found.setdefault(place, f"{name}{i}")
    return tuple(Source(name, *place) for place, name in found.items())
