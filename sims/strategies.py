"""Every strategy on one fine-tuning task: a model that knows facts learns other ones, with as much compute whatever is done against forgetting.

What a strategy costs beside plain training is taken off its epochs; those with a strength, and shares of replay, have several. `joint` replays all
old facts, `replay` and `remind` (as codes of their embeddings) 32; collateral and relational weigh eight blocks of those that are replayed. SI
watches the learning of the old facts, too. Prompts are 16 to a pool. Source: shared/literature/forgetting.md 4.1 to 4.22.
"""
import dataclasses

from scalemem import DataSpec, ModelSpec, OptimizerSpec, Probe, ReplaySpec, RunSpec, Stage, StrategySpec, Sweep, grid, repeat, spec, strategies

NEW, READ, BLOCKS = 100_000, 32, 8  # the first new fact; old facts that a strategy reads or keeps; blocks of those that are replayed


def base(change: dict, before: bool = False, *, old: int = 256, exposures: int = 120, new: int = 96, epochs: int = 60, d: int = 32) -> RunSpec:
    """Old facts, then new ones for as many epochs as `epochs` of plain tuning cost; `before`: the strategy is in the first stage, too."""
    first = Stage(data=DataSpec(n_items=old, generator="facts"), exposures=exposures, batch_size=32,
                  optimizer=OptimizerSpec(peak_lr=1e-2 * (32 / d) ** 0.5, b2=0.95, warmup_steps=50), strategy=change["strategy"] if before else None)
    rate = {"lora": 1e-2, "prompts": 3e-2}.get(change.get("trains", ""), 3e-3)
    tuned = Stage(data=DataSpec(n_items=new, first=NEW, generator="facts"), exposures=epochs, batch_size=32,
                  optimizer=OptimizerSpec(peak_lr=rate, b2=0.95, schedule="constant", warmup_steps=10), **change)
    run = RunSpec(model=ModelSpec(d_model=d, n_layers=1, n_heads=d // 8, vocab_size=64, seq_len=8), stages=(first, tuned),
                  probes=(Probe("facts", at="stages", most=256),))
    fewer = dataclasses.replace(tuned, exposures=max(1, round(epochs / (1 + strategies.costs(spec.at_stage(run, 1)).flops_ratio))))
    return dataclasses.replace(run, stages=(first, fewer))


def arms(old: int) -> dict:
    """Arm -> (fields of the second stage, strengths or shares)."""
    read, whole = {"items": READ, "every": (every := old // READ)}, {"fraction": 0.25, "n_items": old}
    parts = {"items": READ, "tasks": BLOCKS, "every": max(1, old // BLOCKS // (READ // BLOCKS)), "stride": old // BLOCKS}
    of = lambda name, strengths, replay=None, **fields: ({"strategy": StrategySpec(name, **fields), "replay": replay}, strengths)  # noqa: E731
    pool = lambda name: ({"trains": "prompts", "strategy": StrategySpec(name, pool=16, chosen=4, length=4)}, [0.01, 0.5])  # noqa: E731
    return {
        "none": ({}, None), "head": ({"trains": "head"}, None), "joint": ({"replay": ReplaySpec(**whole)}, [0.1, 0.25, 0.5]),
        "replay": ({"replay": ReplaySpec(fraction=0.25, n_items=READ, every=every)}, [0.1, 0.25, 0.5]),
        "ewc": of("ewc", [1.0, 10.0, 100.0], kind="sample", **read), "online_ewc": of("online_ewc", [1.0, 10.0, 100.0], kind="empirical", **read),
        "si": of("si", [0.1, 1.0, 10.0]), "lwf": of("lwf", [0.3, 1.0, 3.0]), "logit_distillation": of("logit_distillation", [0.1, 1.0, 10.0]),
        "features": of("feature_distillation", [0.3, 3.0, 30.0]), "gem": of("gem", [0.0, 0.5], **read), "agem": of("agem", None, **read),
        "final": of("weight_averaging", [0.25, 0.5, 0.75], kind="final"), "mean": of("weight_averaging", None, kind="mean"),
        "slerp": of("merging", [0.5, 1.0, 1.5], kind="slerp"), "fast_slow": of("fast_slow", [0.3, 0.6], items=8),
        "collateral": of("collateral", None, ReplaySpec(**whole, blocks=BLOCKS), **parts), "remind": of("remind", [0.3, 1.0, 3.0], **read),
        "relational": of("relational", None, ReplaySpec(**whole, blocks=BLOCKS), **parts), "centre_loss": of("centre_loss", [0.1, 1.0], **read),
        "prototypes": of("prototypes", [0.3, 3.0], **read), "lora": ({"trains": "lora", "rank": 8}, None), "half": ({"trains": "half"}, None),
        **{name: pool(name) for name in strategies.PROMPTS}}


def sweep(names: list | None, seeds: int, **plan) -> Sweep:
    """All arms, or those named."""
    parts = []
    for name, (change, strengths) in arms(plan.get("old", 256)).items():
        field = "stages.1.strategy.strength" if change.get("strategy") else "stages.1.replay.fraction"
        both = [{field: s} | ({"stages.0.strategy.strength": s} if name == "si" else {}) for s in strengths or ()]
        if names is None or name in names:
            parts.append(Sweep(base(change, name == "si", **plan), ({"strength": grid(*both)} if both else {}) | {"seed": repeat(seeds)}))
    return sum(parts[1:], parts[0])


SWEEP = {
    "smoke": sweep(["none", "final"], 2, old=128, exposures=8, new=32, epochs=8, d=16), "laptop": sweep(None, 5),
    "gpu": sweep(None, 10, old=40_000, exposures=100, new=3200, epochs=60, d=256)}
