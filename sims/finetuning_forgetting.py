"""Fine-tuning on new facts by adapters of rank 1 to 32, and in full, of a model that was saturated with old ones: what is learned, what is lost.

Source: Kalajdzievski 2024 (arXiv 2401.05605). Of its law the rank (through the number of tuned parameters) and the steps are varied, and one size of
model is taken, as there; its text is replaced by facts, whose loss is that of their objects.
"""

from scalemem import DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, grid, repeat

NEW = 100_000  # number of the first new fact


def base(old: int, exposures: int, new: int, epochs: int, width: int = 32, batch: int = 64) -> RunSpec:
    """`old` facts `exposures` times, then `new` others for `epochs`, at a constant rate; probed at log-spaced steps."""
    before = Stage(data=DataSpec(n_items=old, generator="facts"), exposures=exposures, batch_size=batch,
                   optimizer=OptimizerSpec(peak_lr=1e-2 * (32 / width) ** 0.5, b2=0.95, warmup_steps=50))
    tuned = Stage(data=DataSpec(n_items=new, first=NEW, generator="facts"), exposures=epochs, batch_size=32, segments=new // 32, trains="lora",
                  optimizer=OptimizerSpec(peak_lr=1e-2, b2=0.95, schedule="constant", warmup_steps=10))
    return RunSpec(model=ModelSpec(d_model=width, n_layers=1, n_heads=width // 8, vocab_size=64, seq_len=8), stages=(before, tuned),
                   probes=(Probe("drift", at="log"), Probe("facts", at="log")))


def sweep(run: RunSpec, ranks: list, seeds: int, full: bool = True) -> Sweep:
    """Adapters of each rank, and full fine-tuning at a third of their rate."""
    adapters = Sweep(run, {"stages.1.rank": grid(*ranks), "seed": repeat(seeds)})
    tuned = grid({"stages.1.trains": "all", "stages.1.optimizer.peak_lr": 3e-3})
    return adapters + Sweep(run, {"tuned": tuned, "seed": repeat(seeds)}) if full else adapters


SWEEP = {
    "smoke": sweep(base(256, 8, 32, 40, width=16), [1, 4], 2, full=False),
    "laptop": sweep(base(1200, 60, 96, 100), [1, 2, 4, 8, 16, 32], 5),
    "hour": sweep(base(4800, 100, 384, 100, width=64), [1, 2, 4, 8, 16, 32, 64], 8),
    "gpu": sweep(base(80_000, 100, 3200, 100, width=256, batch=256), [1, 2, 4, 8, 16, 32, 64, 128, 256], 5),
}
