"""Five domains, from one language to another in equal steps, learned one after another: in the order of their similarity, and shuffled.

Source: Yildiz et al. 2024, "Investigating continual pretraining in large language models" (arXiv 2402.17400).
"""

import dataclasses

from scalemem import DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, grid, repeat

DOMAIN = 1 << 20  # items of a domain: scalemem.data.domains
SIMILAR, SHUFFLED = (0, 1, 2, 3, 4), ((2, 4, 1, 3, 0), (3, 0, 4, 1, 2), (1, 4, 2, 0, 3))


def size(d: int) -> dict:
    """Width d, head size 4, and the rate of our capacity recipe times 0.35, for every domain."""
    return {"d_model": d, "n_heads": d // 4, **{f"stages.{i}.optimizer.peak_lr": 7e-3 * (16 / d) ** 0.5 for i in range(5)}}


def order(domains: tuple) -> dict:
    return {f"stages.{i}.data.first": d * DOMAIN for i, d in enumerate(domains)}


def base(items: int) -> RunSpec:
    """`items` sequences of each domain, each seen once; the optimizer begins each domain afresh, its rate rises again."""
    data = DataSpec(n_items=items, generator="domains", domains=5, context=2, zipf=1.5)
    stage = Stage(data=data, exposures=1, batch_size=32, order="sequential", optimizer=OptimizerSpec(peak_lr=7e-3, b2=0.95, warmup_steps=20))
    return RunSpec(model=ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=32, seq_len=16),
                   stages=tuple(dataclasses.replace(stage, data=dataclasses.replace(data, first=d * DOMAIN)) for d in SIMILAR),
                   probes=(Probe("domains", at="stages", most=256),))


def sweep(run: RunSpec, widths: list, shuffles: int, seeds: int) -> Sweep:
    return Sweep(run, {"size": grid(*map(size, widths)), "order": grid(*map(order, (SIMILAR, *SHUFFLED[:shuffles]))), "seed": repeat(seeds)})


SWEEP = {
    "smoke": sweep(base(256), [8], 1, 2),
    "laptop": sweep(base(12_288), [8, 16, 32, 48], 3, 3),
    "hour": sweep(base(65_536), [8, 12, 16, 24, 32, 48, 64], 3, 5),
    "gpu": sweep(base(1 << 18), [16, 32, 64, 128, 192], 3, 5),
}
