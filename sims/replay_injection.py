"""A language learned, then one that differs in a quarter of its contexts, from few sequences seen again and again, with none or some old ones among
them.

Source: Bethune et al. 2025, "Scaling laws for forgetting during finetuning with pretraining data injection" (arXiv 2502.06042).
"""

from scalemem import DataSpec, ModelSpec, OptimizerSpec, Probe, ReplaySpec, RunSpec, Stage, Sweep, grid, repeat

DOMAIN = 1 << 20  # items of a domain: scalemem.data.domains
OLD = 1 << 18  # the pool of old items: far more than are drawn, so nearly all that is replayed is new


def size(d: int) -> dict:
    """Width d, head size 4, and the rates of our capacity recipe times 0.5; the fine-tuning begins again with a tenth of it."""
    rate = 1e-2 * (16 / d) ** 0.5
    return {"d_model": d, "n_heads": d // 4, "stages.0.optimizer.peak_lr": rate, "stages.1.optimizer.peak_lr": rate / 10}


def tuned(items: int, passes: int) -> dict:
    """So many sequences of the second language, in batches of 32, and so many passes over them: the steps are the same for all."""
    return {"stages.1.data.n_items": items, "stages.1.exposures": passes, "stages.1.segments": items // 32}


def base(pretrain: int) -> RunSpec:
    data = {"generator": "domains", "domains": 5, "context": 2, "zipf": 1.5}
    learn = OptimizerSpec(peak_lr=1e-2, b2=0.95, warmup_steps=50)
    tune = OptimizerSpec(peak_lr=1e-3, b2=0.95, warmup_steps=20, schedule="constant")
    return RunSpec(
        model=ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=32, seq_len=16),
        stages=(Stage(data=DataSpec(n_items=pretrain, **data), exposures=1, batch_size=32, order="sequential", optimizer=learn),
                Stage(data=DataSpec(n_items=32, first=DOMAIN, **data), exposures=1, batch_size=32, optimizer=tune,
                      replay=ReplaySpec(fraction=0.0, n_items=OLD))),
        probes=(Probe("domains", at="log", most=256),))


def sweep(run: RunSpec, widths: list, sets: list, fractions: list, seeds: int) -> Sweep:
    return Sweep(run, {"size": grid(*map(size, widths)), "set": grid(*[tuned(*s) for s in sets]), "stages.1.replay.fraction": grid(*fractions),
                       "seed": repeat(seeds)})


FRACTIONS = [0.0, 0.01, 0.05, 0.2]
SWEEP = {
    "smoke": sweep(base(2048), [8, 16], [(64, 8)], [0.0, 0.2], 2),
    "laptop": sweep(base(16_384), [12, 16, 24, 40], [(128, 80), (512, 20)], FRACTIONS, 3),
    "hour": sweep(base(131_072), [12, 16, 24, 32, 48, 64], [(128, 320), (512, 80), (2048, 20), (8192, 5)], FRACTIONS, 5),
    "gpu": sweep(base(1 << 18), [32, 48, 64, 96, 128, 192, 256], [(1024, 320), (8192, 40), (65_536, 5)], FRACTIONS + [0.001, 0.5], 5),
}
