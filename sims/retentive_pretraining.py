"""Groups of facts learned one after another, by models that were trained on other facts before, on strings without structure, or on nothing.

Stage 0 is pre-training: `before` steps on a pool of facts, or of random strings, or none. Then groups A, B, C and D, 64 facts each, each trained
on alone for some exposures in batches of 16; group A is asked for after each. Rates are constant, and the same for all.
Source: Cao et al. 2023, "Retentive or forgetful?" (from memory, unverified).
"""

import dataclasses

from scalemem import DataSpec, ModelSpec, OptimizerSpec, Probe, ReplaySpec, RunSpec, Stage, Sweep, grid, repeat

SET, POOL, GROUPS = 64, 4096, 4
NEW, RANDOM = 20_000, 1 << 28  # the first fact of group A, and of strings without structure


def base(before: int, d: int = 32, exposures: int = 10) -> RunSpec:
    """`before` steps of pre-training, then the groups, each for so many exposures."""
    known = DataSpec(n_items=SET, first=POOL - SET, generator="facts", relations=4, object_tokens=1)
    optimizer = OptimizerSpec(peak_lr=5e-3, b2=0.95, schedule="constant")
    pool = ReplaySpec(fraction=1.0, n_items=POOL, law="power", blocks=16, exponent=1.5)
    first = Stage(data=known, optimizer=dataclasses.replace(optimizer, warmup_steps=32), exposures=before, batch_size=SET, replay=pool)
    groups = [dataclasses.replace(first, data=dataclasses.replace(known, first=NEW + g * SET), optimizer=optimizer, exposures=exposures,
                                  batch_size=SET // 4, replay=dataclasses.replace(pool, fraction=0.0)) for g in range(GROUPS)]
    return RunSpec(model=ModelSpec(d_model=d, n_layers=1, n_heads=d // 8, vocab_size=128, seq_len=6), stages=(first, *groups),
                   probes=(Probe("facts", at="stages", most=SET),))


def sweep(steps: int, lengths: list, exposures: list, seeds: int, d: int = 32) -> Sweep:
    """Facts for several lengths of pre-training, 0 among them, and strings for the longest."""
    study = grid(*[{f"stages.{g}.exposures": e for g in range(1, GROUPS + 1)} for e in exposures])
    run = base(steps, d)
    strings = dataclasses.replace(run.stages[0], replay=dataclasses.replace(run.stages[0].replay, first=RANDOM),  # type: ignore[type-var]
                                  data=dataclasses.replace(run.stages[0].data, first=RANDOM + POOL - SET))
    other = dataclasses.replace(run, stages=(strings, *run.stages[1:]))
    return (Sweep(run, {"stages.0.exposures": grid(*lengths), "study": study, "seed": repeat(seeds)})
            + Sweep(other, {"study": study, "seed": repeat(seeds)}))


SWEEP = {
    "smoke": sweep(32, [0, 32], [8, 32], 2, d=16),
    "laptop": sweep(1024, [0, 128, 1024], [4, 8, 16, 32, 64], 5),
    "hour": sweep(4096, [0, 64, 256, 1024, 4096], [4, 8, 16, 32, 64, 128], 8, d=64),
    "gpu": sweep(1 << 15, [0, 1 << 10, 1 << 12, 1 << 15], [4, 8, 16, 32, 64, 128], 10, d=256),
}
