"""Copyright traps: sequences of the background source at temperatures of .5 to 4, so at controlled perplexities, of three lengths, in 1 to 64 copies.

Each stands behind four tokens of background. As many again are never planted; and in one more arm none is, of any number.
Source: Meeus et al. 2024, "Copyright traps for large language models" (arXiv 2402.09363).
"""

from scalemem import CanarySpec, DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, grid, repeat


def size(d: int) -> dict:
    """Width d, head size 4, and the rate of our capacity recipe times 0.7."""
    return {"d_model": d, "n_heads": d // 4, "peak_lr": 1.4e-2 * (16 / d) ** 0.5}


def base(items: int, per_group: int, batch: int, seq: int = 20, vocab: int = 64, ratio: float = 4) -> RunSpec:
    traps = CanarySpec(per_group=per_group, groups=4, copies=1, ratio=ratio, controls=4 * per_group, kind="trap", length=seq - 4, offset=4,
                       coldest=0.5, hottest=4.0)
    return RunSpec(
        model=ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=vocab, seq_len=seq),
        stages=(Stage(data=DataSpec(n_items=items, generator="markov", zipf=1.2, canaries=traps), exposures=1, batch_size=batch,
                      optimizer=OptimizerSpec(peak_lr=1.4e-2, b2=0.95, warmup_steps=50)),),
        probes=(Probe("likelihood"),))


def sweep(run: RunSpec, widths: list, lengths: list, seeds: int, null_seeds: int) -> Sweep:
    """Every size and length; and the first size and last length with traps that are drawn and never planted."""
    null = {"size": grid(size(widths[0])), "canaries.length": grid(lengths[-1]), "include": grid(1e-9), "seed": repeat(null_seeds)}
    return Sweep(run, {"size": grid(*map(size, widths)), "canaries.length": grid(*lengths), "seed": repeat(seeds)}) + Sweep(run, null)


SWEEP = {
    "smoke": sweep(base(1024, 9, 16), [8, 16], [4, 16], 2, 2),
    "laptop": sweep(base(16_384, 36, 16), [8, 16, 32], [4, 8, 16], 4, 12),
    "hour": sweep(base(32_768, 72, 16), [8, 16, 32, 64], [4, 8, 16], 8, 8),
    "gpu": sweep(base(1 << 20, 300, 64, seq=104, vocab=1024, ratio=10), [64, 128, 256, 512], [25, 50, 100], 4, 4),
}
