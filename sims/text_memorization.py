"""Unintended memorization of real text, in bits: small models trained on 8 to 4,096 chunks, against references trained on 32,768 others.

Real text is the source of this Python's standard library, as bytes: it differs between versions of Python, and its digest is in every run.
The same 512 chunks are tracked by all runs; the first of them are planted, once each, and the others are never trained on.
Source: Morris et al. 2025, "How much do language models memorize?" (arXiv 2505.24832).
"""

from scalemem import CanarySpec, DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, grid, repeat
from scalemem.data import text

DIGEST = text.digest("")
TRACKED = 512  # chunks of the reference split, half of which are planted in the larger sets
NEVER = 1e-9  # a reference plants none


def run(planted: int, include: float = 1.0) -> RunSpec:
    canaries = CanarySpec(per_group=planted, controls=TRACKED - planted, kind="natural", shared=True, include=include)
    return RunSpec(
        model=ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=257, seq_len=32),
        stages=(Stage(data=DataSpec(n_items=TRACKED, generator="text", digest=DIGEST, canaries=canaries), exposures=1, batch_size=8,
                      optimizer=OptimizerSpec(peak_lr=2e-2, b2=0.95, warmup_steps=50)),),
        probes=(Probe("likelihood"), Probe("extraction")))


def cell(d: int, n: int, steps: int, batch: int = 32, layers: int = 1) -> dict:
    """Width d on n chunks for about so many steps: batch n/8, at least 8 and at most `batch`."""
    size = min(n, max(8, min(batch, n // 8)))
    return {"d_model": d, "n_layers": layers, "n_heads": d // 4, "n_items": n, "batch_size": size, "exposures": max(1, round(steps * size / n)),
            "peak_lr": 2e-2 * (16 / d) ** 0.5}


def models(cells: list, planted: int, seeds: int) -> Sweep:
    return Sweep(run(planted), {"cell": grid(*cells), "seed": repeat(seeds)})


def references(cells: list) -> Sweep:
    return Sweep(run(TRACKED // 2, NEVER), {"cell": grid(*cells)})


def family(widths: list, whole: dict, items: list, steps: int, seeds: int) -> Sweep:
    """`whole`: {chunks, all of them planted: widths}; then all `widths` on more chunks, 256 of them planted."""
    parts = [models([cell(d, n, steps) for d in some], n, seeds) for n, some in whole.items()]
    return sum(parts[1:], parts[0]) + models([cell(d, n, steps) for d in widths for n in items], TRACKED // 2, seeds)


D16, BOTH, MANY = [16], [16, 32], [16, 24, 32, 48]
MORE = [256, 512, 1024, 2048, 4096]

SWEEP = {
    "smoke": models([cell(16, n, 150) for n in (16, 64, 256, 1024)], 16, 2) + references([cell(16, 6000, 180), cell(64, 6000, 180)]),
    "laptop": family(BOTH, {8: D16, 16: D16, 32: D16, 64: BOTH, 128: D16}, [256, 512, 1024, 4096], 2000, 3)
              + references([cell(16, 32_768, 3000), cell(32, 32_768, 3000), cell(64, 32_768, 4000)]),
    "hour": family(BOTH, {8: D16, 16: D16, 32: D16, 64: BOTH, 128: BOTH}, MORE, 10_000, 4)
            + references([cell(16, 32_768, 10_000), cell(32, 32_768, 10_000), cell(96, 32_768, 10_000)]),
    "gpu": family(MANY, {8: MANY, 16: MANY, 32: MANY, 64: MANY, 128: MANY}, MORE, 100_000, 5)
           + references([cell(d, 32_768, 100_000) for d in MANY] + [cell(256, 32_768, 20_000, layers=4)]),
}
