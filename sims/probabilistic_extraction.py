"""(n, p)-extraction of random canaries of 4 to 128 copies in a Markov background: sizes of one family, and models that never saw one.

Source: Hayes et al. 2024, "Measuring memorization through probabilistic discoverable extraction" (arXiv 2410.19482).
"""

from scalemem import CanarySpec, DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, grid, repeat

NEVER = 1e-9  # the probability that a control's canary is planted


def size(d: int) -> dict:
    """Width d, head size 4, and the rate of our capacity recipe times 0.7."""
    return {"d_model": d, "n_heads": d // 4, "peak_lr": 1.4e-2 * (16 / d) ** 0.5}


def base(items: int, per_group: int, batch: int = 16, vocab: int = 64, seq: int = 16) -> RunSpec:
    """One pass over `items` sequences, of which half are copies; as many canaries of 4, 8, ..., 128 copies each, and 8 times that in controls."""
    canaries = CanarySpec(per_group=per_group, groups=6, copies=4, controls=8 * per_group)
    return RunSpec(
        model=ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=vocab, seq_len=seq),
        stages=(Stage(data=DataSpec(n_items=items, generator="markov", zipf=1.2, canaries=canaries), exposures=1, batch_size=batch,
                      optimizer=OptimizerSpec(peak_lr=1.4e-2, b2=0.95, warmup_steps=50)),),
        probes=(Probe("probabilistic"),))


def sweep(run: RunSpec, widths: list, without: list, seeds: int) -> Sweep:
    """Sizes with canaries, and some without, asked for the same ones."""
    return (Sweep(run, {"size": grid(*map(size, widths)), "seed": repeat(seeds)})
            + Sweep(run, {"size": grid(*map(size, without)), "include": grid(NEVER), "seed": repeat(seeds)}))


SWEEP = {
    "smoke": sweep(base(1024, per_group=2), [16, 64], [16], 2),
    "laptop": sweep(base(16_384, per_group=32), [16, 24, 32, 48, 64], [64], 4),
    "hour": sweep(base(65_536, per_group=128), [16, 24, 32, 48, 64, 96], [16, 64], 8),
    "gpu": sweep(base(1 << 20, per_group=2048, batch=64, vocab=1024, seq=64), [64, 96, 128, 192, 256, 384, 512], [64, 512], 8),
}
