"""Prompt pools and compressed replay beside a decoder of two blocks: what they keep of old facts and learn of new ones, with the same compute.

In one block (the study `strategies`) a prompt's keys meet a query that has read no other token, and REMIND's features are embeddings. Here positions
of the second block have read the subject. Arms have the compute of plain tuning; prompts, which learn slowly, four times it.
Source: shared/literature/forgetting.md 4.15, 4.22; rows 20, 79, 84 and 198 of catalogue.tsv.
"""
import dataclasses

from scalemem import DataSpec, ModelSpec, OptimizerSpec, Probe, ReplaySpec, RunSpec, Stage, StrategySpec, Sweep, repeat, spec, strategies

NEW, READ = 100_000, 32  # the first new fact; old facts that are kept


def base(change: dict, times: int = 1, *, old: int = 256, exposures: int = 120, new: int = 96, epochs: int = 60, d: int = 32) -> RunSpec:
    """Old facts, then new ones for as many epochs as `times epochs` of plain tuning cost."""
    rate = {"lora": 1e-2, "prompts": 3e-2}.get(change.get("trains", ""), 3e-3)
    first = Stage(data=DataSpec(n_items=old, generator="facts"), exposures=exposures, batch_size=32,
                  optimizer=OptimizerSpec(peak_lr=1e-2 * (32 / d) ** 0.5, b2=0.95, warmup_steps=50))
    tuned = Stage(data=DataSpec(n_items=new, first=NEW, generator="facts"), exposures=times * epochs, batch_size=32,
                  optimizer=OptimizerSpec(peak_lr=rate, b2=0.95, schedule="constant", warmup_steps=10), **change)
    run = RunSpec(model=ModelSpec(d_model=d, n_layers=2, n_heads=d // 8, vocab_size=64, seq_len=8), stages=(first, tuned),
                  probes=(Probe("facts", at="stages", most=256),))
    ratio = strategies.costs(spec.at_stage(run, 1)).flops_ratio
    fewer = dataclasses.replace(tuned, exposures=max(1, round(times * epochs / (1 + ratio))))
    return dataclasses.replace(run, stages=(first, fewer))


def arms(old: int) -> dict:
    """Arm -> (fields of the second stage, its compute over that of plain tuning)."""
    kept = {"items": READ, "every": old // READ}
    pool = lambda name: {"trains": "prompts", "strategy": StrategySpec(name, pool=16, chosen=4, length=4, strength=0.5)}  # noqa: E731
    return {"none": ({}, 1), "lora": ({"trains": "lora", "rank": 8}, 1), **{name: (pool(name), 4) for name in strategies.PROMPTS},
            "replay": ({"replay": ReplaySpec(fraction=0.5, n_items=READ, every=old // READ)}, 1),
            "pq": ({"strategy": StrategySpec("remind", kind="pq", **kept)}, 1),
            "float": ({"strategy": StrategySpec("remind", kind="float", **kept)}, 1)}


def sweep(names: list | None, seeds: int, **plan) -> Sweep:
    """All arms, or those named."""
    every = arms(plan.get("old", 256))
    parts = [Sweep(base(*every[name], **plan), {"seed": repeat(seeds)}) for name in names or every]
    return sum(parts[1:], parts[0])


SWEEP = {
    "smoke": sweep(["none"], 2, old=64, exposures=4, new=32, epochs=4, d=16),  # pools are compiled in the tests
    "laptop": sweep(None, 5),
    "gpu": sweep(None, 10, old=40_000, exposures=100, new=3200, epochs=60, d=256),
}
