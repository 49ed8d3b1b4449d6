"""How full a model is: the bits of all that a run of several stages reads, over those that the model can be taken to hold."""

from __future__ import annotations

import math

from scalemem import accounting, data
from scalemem.spec import RunSpec

BITS_A_PARAMETER = 2.0


def distinct_items(run: RunSpec) -> int:
    """Items that the stages of a run read or are given, each counted once, however many stages read it; old ones replayed among them.

    >>> from scalemem.spec import *
    >>> model = ModelSpec(d_model=4, n_layers=1, n_heads=1, vocab_size=16, seq_len=4)
    >>> a = Stage(data=DataSpec(n_items=8), optimizer=OptimizerSpec(peak_lr=0.1), exposures=1, batch_size=4)
    >>> b = Stage(data=DataSpec(n_items=8, first=4), optimizer=OptimizerSpec(peak_lr=0.1), exposures=1, batch_size=4)
    >>> distinct_items(RunSpec(model=model, stages=(a, b), probes=(Probe("likelihood"),)))
    12
    """
    ranges = []
    for stage in run.stages:
        ranges.append((stage.data.first, stage.data.n_items))
        if stage.replay and stage.replay.fraction > 0:
            ranges.append((stage.replay.first, stage.replay.n_items))
        if stage.inject:
            ranges.append((stage.inject.first, stage.inject.n_items * stage.data.variants))
    total = end = 0
    for first, count in sorted(ranges):
        total += max(0, first + count - max(first, end))
        end = max(end, first + count)
    return total


def load_ratio(run: RunSpec) -> float:
    """Capacity load of a run: bits of its distinct items, over 2 bits a parameter.

    load = n H / (2 v P): n distinct items, H the entropy of one given its first token, v the sentences of a fact, which share its content (1 of
    other items), P parameters. Far below 1 there is room for all, and nothing need be forgotten. It is nominal: random tokens of small models
    take 2.7 to 3.8 bits a parameter (`capacity`), and of a stream that is read once a model holds only a part. NaN with canaries, and where the
    generator states no entropy.

    Source: Allen-Zhu and Li's 2 bits a parameter, as section 6 of our notes on forgetting asks for it.
    """
    stage = run.stages[0]
    if stage.data.canaries:
        return math.nan
    bits = data.get(stage.data.generator).entropy_bits(run) * distinct_items(run) / stage.data.variants
    return bits / (BITS_A_PARAMETER * accounting.n_params(run.model))
