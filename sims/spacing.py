"""Facts met eight times, every 1, 4, 16 or 64 steps, the last time together; and how much of them is left as other facts go on.

Source: the question of a best interval between repetitions is of "Do your best and get enough rest for continual learning" (arXiv 2503.18371) and of
spacing in memory research; see section 4.8 of our notes. The design is ours.
"""

from scalemem import DataSpec, InjectSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, grid, repeat

TIMES = 8
SLOW = 0.05  # the rate of the stages in which facts are met and lost, as a part of that of learning


def size(d: int) -> dict:
    rate = 1.4e-2 * (16 / d) ** 0.5
    return {"d_model": d, "n_heads": d // 4, "stages.0.optimizer.peak_lr": rate, **{f"stages.{i}.optimizer.peak_lr": SLOW * rate for i in (1, 2)}}


def every(interval: int, steps: int) -> dict:
    """Encounters every `interval` steps, of which the last is at the last step."""
    return {"stages.1.inject.interval": float(interval), "stages.1.inject.start": steps - 1 - (TIMES - 1) * interval}


def base(pool: int, exposures: int, met: int, steps: int, after: int, vocab: int = 64) -> RunSpec:
    """A pool of facts learned; then new ones, once each, among them `met` facts eight times; then new ones alone."""
    data, new = {"generator": "facts", "object_tokens": 1}, pool + met
    learn = OptimizerSpec(peak_lr=1.4e-2, b2=0.95, warmup_steps=50)
    go_on = OptimizerSpec(peak_lr=7e-4, b2=0.95, schedule="constant")
    stream = {"exposures": 1, "batch_size": 64, "order": "sequential", "optimizer": go_on}
    return RunSpec(
        model=ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=vocab, seq_len=8),
        stages=(Stage(data=DataSpec(n_items=pool, **data), exposures=exposures, batch_size=64, optimizer=learn),
                Stage(data=DataSpec(n_items=64 * steps, first=new, **data), **stream,
                      inject=InjectSpec(n_items=met, first=pool, times=TIMES, start=steps - TIMES)),
                Stage(data=DataSpec(n_items=64 * after, first=new + 64 * steps, **data), **stream, segments=after, continued=True)),
        probes=(Probe("facts", at="log", most=32),))


def sweep(run: RunSpec, widths: list, intervals: list, steps: int, seeds: int) -> Sweep:
    return Sweep(run, {"size": grid(*map(size, widths)), "interval": grid(*[every(n, steps) for n in intervals]), "seed": repeat(seeds)})


SWEEP = {
    "smoke": sweep(base(128, 4, 8, 32, 16), [8], [1, 2, 4], 32, 2),
    "laptop": sweep(base(512, 60, 32, 512, 512), [16, 32], [1, 4, 16, 64], 512, 5),
    "hour": sweep(base(1024, 100, 32, 2048, 2048), [16, 32, 64], [1, 4, 16, 64, 256], 2048, 5),
    "gpu": sweep(base(8192, 100, 64, 4000, 4000, vocab=256), [32, 64, 128], [1, 4, 16, 64, 256, 512], 4000, 10),
}
