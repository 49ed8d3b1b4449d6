"""A set of new facts, studied a few times by a model that knows others; then a stream of further facts, in which the set is tested again and again.

Stage 0: a pool of facts, a sixteenth of which is met often and the rest ever more rarely. Stage 1, the study: 64 facts that were never met, or as
many random strings, each once an exposure, in batches of 4. Stage 2: facts of another pool, most of them new. An epoch of each stage is 64 items, so
that they share a program; of the pools 64 items are drawn a step.
Source: Orhan 2023, "Recognition, recall, and retention of few-shot memories in large language models" (arXiv 2303.17557).
"""

import dataclasses

from scalemem import DataSpec, ModelSpec, OptimizerSpec, Probe, ReplaySpec, RunSpec, Stage, Sweep, grid, repeat

SET, POOL = 64, 4096
NEW, LATER, RANDOM = 20_000, 40_000, 1 << 28  # the first fact of the study set, of the pool that follows, and of strings without structure


def base(before: int, after: int, d: int = 32) -> RunSpec:
    """`before` steps of pre-training; one exposure of the study set; `after` steps of other facts."""
    known = DataSpec(n_items=SET, first=POOL - SET, generator="facts", relations=4, object_tokens=1)
    optimizer = OptimizerSpec(peak_lr=5e-3, b2=0.95, schedule="constant")
    pool = ReplaySpec(fraction=1.0, n_items=POOL, law="power", blocks=16, exponent=1.5)
    first = Stage(data=known, optimizer=dataclasses.replace(optimizer, warmup_steps=32), exposures=before, batch_size=SET, replay=pool)
    study = dataclasses.replace(first, data=dataclasses.replace(known, first=NEW), optimizer=optimizer, exposures=1, batch_size=SET // 16,
                                replay=dataclasses.replace(pool, fraction=0.0), continued=True)
    later = dataclasses.replace(first, optimizer=optimizer, exposures=after, replay=dataclasses.replace(pool, first=LATER), continued=True)
    return RunSpec(model=ModelSpec(d_model=d, n_layers=1, n_heads=d // 8, vocab_size=128, seq_len=6), stages=(first, study, later),
                   probes=(Probe("facts", at="log", most=SET),))


def sweep(run: RunSpec, exposures: list, seeds: int) -> Sweep:
    """Facts and strings, studied once or more."""
    return Sweep(run, {"stages.1.exposures": grid(*exposures), "stages.1.data.first": grid(NEW, RANDOM), "seed": repeat(seeds)})


SWEEP = {
    "smoke": sweep(base(32, 32, d=8), [1, 4], 2),
    "laptop": sweep(base(1024, 1024), [1, 2, 3, 5, 10], 5),
    "hour": sweep(base(4096, 4096, d=64), [1, 2, 3, 5, 10, 20], 8),
    "gpu": sweep(base(1 << 15, 1 << 15, d=256), [1, 2, 3, 5, 10, 20], 10),
}
