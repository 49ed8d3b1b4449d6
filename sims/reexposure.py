"""Facts that tuning has made a model lose, met again in one stage with as many that it has never seen: how much sooner they are back.

Plain tuning, and two strategies against forgetting, of the study `strategies`; `scalemem.controls.reexposed` adds the last stage, with the same items
of both kinds in the same batches. Source: shared/literature/forgetting.md 9, rule 4, and 4.21 (recovery probe).
"""
from scalemem import DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, StrategySpec, Sweep, controls, grid, repeat

NEW = 100_000  # the first fact of tuning


def base(old: int, exposures: int, new: int, epochs: int, again: int, d: int) -> RunSpec:
    """Old facts, then new ones, then half of what is met old and half never seen."""
    model = ModelSpec(d_model=d, n_layers=1, n_heads=d // 8, vocab_size=64, seq_len=8)
    learn = Stage(data=DataSpec(n_items=old, generator="facts"), exposures=exposures, batch_size=32,
                  optimizer=OptimizerSpec(peak_lr=1e-2 * (32 / d) ** 0.5, b2=0.95, warmup_steps=50))
    tuned = Stage(data=DataSpec(n_items=new, first=NEW, generator="facts"), exposures=epochs, batch_size=32, strategy=StrategySpec("lwf"),
                  optimizer=OptimizerSpec(peak_lr=3e-3, b2=0.95, schedule="constant", warmup_steps=10))
    return controls.reexposed(RunSpec(model=model, stages=(learn, tuned), probes=(Probe("facts", at="log", most=2 * old),)), again)


def sweep(strengths: list, seeds: int, **plan) -> Sweep:
    """LwF of some strengths, of which 0 is plain tuning."""
    return Sweep(base(**plan), {"strategy": grid(*[{"stages.1.strategy.strength": s} for s in strengths]), "seed": repeat(seeds)})


SWEEP = {
    "smoke": sweep([0.0], 2, old=32, exposures=4, new=32, epochs=4, again=4, d=16),
    "laptop": sweep([0.0, 1.0], 5, old=256, exposures=120, new=96, epochs=60, again=60, d=32),
    "gpu": sweep([0.0, 0.3, 1.0], 10, old=8192, exposures=100, new=3200, epochs=60, again=100, d=128),
}
