"""A suite of sizes that see the same sequences in the same order, once: canaries of 4 to 231 copies in a Markov source.

Which of them will the largest model memorize, and how many? Asked of smaller models, and of checkpoints on the way.
Source: Biderman et al. 2023, "Emergent and predictable memorization" (arXiv 2304.11158); the suite as in Pythia (Biderman et al. 2023).
"""

from scalemem import CanarySpec, DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, grid, repeat


def size(d: int, layers: int = 1) -> dict:
    """Width d, head size 4, and the rate of our capacity recipe times 0.7."""
    return {"d_model": d, "n_layers": layers, "n_heads": d // 4, "peak_lr": 1.4e-2 * (16 / d) ** 0.5}


def suite(items: int, per_group: int, groups: int, batch: int, segments: int, vocab: int = 64, seq: int = 16, kind: str = "trap",
          seed: int = 0) -> RunSpec:
    """One pass over `items` sequences; canaries are drawn from the background source at temperatures of .5 to 3, or are passphrases."""
    coldest, hottest = (0.5, 3.0) if kind == "trap" else (1.0, 1.0)
    canaries = CanarySpec(per_group=per_group, groups=groups, copies=4, ratio=1.5, controls=2 * per_group, kind=kind, coldest=coldest,
                          hottest=hottest)
    return RunSpec(
        model=ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=vocab, seq_len=seq),
        stages=(Stage(data=DataSpec(n_items=items, generator="markov", zipf=1.2, canaries=canaries), exposures=1, batch_size=batch,
                      segments=segments, optimizer=OptimizerSpec(peak_lr=1.4e-2, b2=0.95, warmup_steps=50)),),
        probes=(Probe("extraction", at="powers_of_two"),), seed=seed)


def sweep(base: RunSpec, widths: list, seeds: int) -> Sweep:
    return Sweep(base, {"size": grid(*map(size, widths)), "seed": repeat(seeds)})


WIDTHS = [12, 16, 20, 24, 28, 32, 48, 64]
OTHER = 300  # from this seed on the suite is another one, which no forecaster was tuned on: passphrases

SWEEP = {
    "smoke": sweep(suite(2048, per_group=4, groups=9, batch=8, segments=4), [12, 16, 24, 32, 48], 2),
    "laptop": (sweep(suite(16_384, per_group=12, groups=11, batch=16, segments=16, seed=100), WIDTHS, 10)
               + sweep(suite(16_384, per_group=12, groups=11, batch=16, segments=16, kind="passphrase", seed=OTHER), WIDTHS, 4)),
    "hour": sweep(suite(65_536, per_group=48, groups=11, batch=16, segments=64, seed=100), [*WIDTHS, 96], 10),
    "gpu": sweep(suite(1 << 20, per_group=384, groups=12, batch=64, segments=256, vocab=1024, seq=64),
                 [32, 48, 64, 96, 128, 192, 256, 384, 512], 10),
}
