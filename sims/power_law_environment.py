"""Facts learned phase by phase, half of each batch old ones: which phase an old one is of follows a power of its age, or another law.

Source: Gandhi et al. 2024, "Catastrophic interference is mitigated in naturalistic power-law learning environments" (arXiv 2401.10393, v1).
"""

import dataclasses

from scalemem import DataSpec, ModelSpec, OptimizerSpec, Probe, ReplaySpec, RunSpec, Stage, Sweep, grid, repeat

LAWS = {"none": (0.0, "uniform")} | {name: (0.5, name) for name in ("uniform", "power", "exponential", "recent")}


def size(d: int, phases: int) -> dict:
    return {"d_model": d, "n_heads": d // 4, **{f"stages.{i}.optimizer.peak_lr": 7e-3 * (16 / d) ** 0.5 for i in range(phases)}}


def law(name: str, phases: int) -> dict:
    """The same rehearsal in every phase but the first, which has nothing to rehearse."""
    fraction, kind = LAWS[name]
    return {f"stages.{i}.replay.law": kind for i in range(phases)} | {f"stages.{i}.replay.fraction": fraction for i in range(1, phases)}


def base(phases: int, facts: int, exposures: int) -> RunSpec:
    """`facts` new facts a phase, each met `exposures` times, but for the half of the rows that old ones take."""
    data = DataSpec(n_items=facts, generator="facts", object_tokens=1)

    def phase(i: int) -> Stage:
        pool = ReplaySpec(fraction=0.5 if i else 0.0, n_items=facts * max(i, 1), blocks=max(i, 1))
        return Stage(data=dataclasses.replace(data, first=i * facts), exposures=exposures, batch_size=32, replay=pool, continued=i > 0,
                     optimizer=OptimizerSpec(peak_lr=7e-3, b2=0.95, warmup_steps=20, schedule="constant"))

    return RunSpec(model=ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=64, seq_len=8), stages=tuple(map(phase, range(phases))),
                   probes=(Probe("facts", at="stages", most=128),))


def sweep(phases: int, facts: int, exposures: int, widths: list, laws: list, seeds: int) -> Sweep:
    return Sweep(base(phases, facts, exposures), {"size": grid(*[size(d, phases) for d in widths]), "law": grid(*[law(n, phases) for n in laws]),
                                                  "seed": repeat(seeds)})


SWEEP = {
    "smoke": sweep(3, 32, 4, [8], ["power", "exponential"], 2),
    "laptop": sweep(8, 128, 40, [16, 32], list(LAWS), 5),
    "hour": sweep(16, 256, 60, [16, 32, 64], list(LAWS), 5),
    "gpu": sweep(32, 1024, 100, [32, 64, 128, 256], list(LAWS), 10),
}
