"""Runs beside a staged run that say what its numbers mean: one that meets the lost items again, and one that has never seen them.

Both keep everything else: models, seeds, batches, rates and steps. They take item numbers that no stage reads, so they need a generator whose items
are exchangeable (facts, uniform, zipf, markov, pcfg); `analyses.reexposure` reads the first.
Source: shared/literature/forgetting.md 9, rule 4 (never-injected facts, re-exposure recovery probe, retrained reference) and 4.21 (recovery probe).
"""

from __future__ import annotations

import dataclasses

from scalemem.spec import RunSpec, SpecError

MOST = 1 << 30  # item numbers are below


def reexposed(run: RunSpec, exposures: int, stage: int = 0) -> RunSpec:
    """The run with one stage more, in which half of the items are those of `stage` and half, the next as many numbers, were never seen.

    Items of both kinds are met equally often, in the same batches, at the rate and batch of the last stage; what the lost ones need less than the new
    ones is what was left of them (savings).

    Args:
      run: of several stages, say learning and then forgetting.
      exposures: of each item in the new stage.
      stage: whose items are met again.
    Raises:
      SpecError: no such stage, or another range of the run has the numbers next to its items.

    >>> from scalemem.spec import *
    >>> learn = Stage(data=DataSpec(n_items=8, generator="facts"), optimizer=OptimizerSpec(peak_lr=0.1), exposures=1, batch_size=4)
    >>> forget = dataclasses.replace(learn, data=DataSpec(n_items=8, first=100, generator="facts"))
    >>> model = ModelSpec(d_model=4, n_layers=1, n_heads=1, vocab_size=64, seq_len=8)
    >>> run = RunSpec(model=model, stages=(learn, forget), probes=(Probe("facts", at="log"),))
    >>> last = reexposed(run, 4).stages[-1]
    >>> last.data.first, last.data.n_items, last.exposures
    (0, 16, 4)
    """
    data = _stage(run, stage).data
    end, count = data.first + data.n_items, data.n_items
    taken = [place for place in _ranges(run) if place[0] < end + count and place[1] > end]
    if taken or end + count > MOST:
        raise SpecError(f"stages[{stage}].data.n_items = {count}: the {count} item numbers from {end} on must be free for a re-exposure, which "
                        f"needs items never seen (now: {taken or 'beyond 2^30'}); move the other stages' `first`")
    last = dataclasses.replace(run.stages[-1], data=dataclasses.replace(data, n_items=2 * count), exposures=exposures, segments=1, replay=None,
                               inject=None, strategy=None, trains="all", continued=False)
    return dataclasses.replace(run, stages=(*run.stages, last))


def without(run: RunSpec, stage: int = 0) -> RunSpec:
    """The retrained reference: the run, at the same steps, with as many items that nothing else reads in the place of those of `stage`.

    What it scores on the items of `stage` is what a model does that never met them. Ranges that read those items elsewhere (a replay of them, or a
    strategy's old items) are moved with them.

    >>> from scalemem.spec import *
    >>> learn = Stage(data=DataSpec(n_items=8, generator="facts"), optimizer=OptimizerSpec(peak_lr=0.1), exposures=1, batch_size=4)
    >>> forget = dataclasses.replace(learn, data=DataSpec(n_items=8, first=100, generator="facts"), replay=ReplaySpec(fraction=0.1, n_items=8))
    >>> model = ModelSpec(d_model=4, n_layers=1, n_heads=1, vocab_size=64, seq_len=8)
    >>> found = without(RunSpec(model=model, stages=(learn, forget), probes=(Probe("facts"),)))
    >>> [s.data.first for s in found.stages], found.stages[1].replay.first
    ([108, 100], 108)
    """
    data = _stage(run, stage).data
    free = max(end for _, end in _ranges(run))
    free += -free % data.variants
    if free + data.n_items > MOST:
        raise SpecError(f"stages[{stage}].data.n_items = {data.n_items}: no such number of items is free below 2^30; move the stages' `first`")
    moved = lambda first: first + free - data.first if data.first <= first < data.first + data.n_items else first  # noqa: E731

    def one(s):
        parts = {name: part and dataclasses.replace(part, first=moved(part.first)) for name in ("replay", "inject", "strategy")
                 for part in (getattr(s, name),)}
        return dataclasses.replace(s, data=dataclasses.replace(s.data, first=moved(s.data.first)), **parts)

    return dataclasses.replace(run, stages=tuple(map(one, run.stages)))


def _stage(run: RunSpec, stage: int):
    if not 0 <= stage < len(run.stages):
        raise SpecError(f"stage = {stage}: must be from 0 to {len(run.stages) - 1}, a stage of the run; correct it")
    return run.stages[stage]


def _ranges(run: RunSpec) -> list[tuple[int, int]]:
    """First and last + 1 of all item numbers that the run trains on."""
    found = [(s.data.first, s.data.first + s.data.n_items) for s in run.stages]
    found += [(s.replay.first, s.replay.first + (s.replay.n_items - 1) * s.replay.every + 1) for s in run.stages if s.replay]
    return found + [(s.inject.first, s.inject.first + s.inject.n_items * s.data.variants) for s in run.stages if s.inject]
