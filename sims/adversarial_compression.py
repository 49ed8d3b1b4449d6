"""The shortest prompts after which models say random sequences of 8 tokens: trained on 32 to 256 times, never, and by models that saw none.

The search is a greedy coordinate gradient, so prompts bound the shortest one from above; it is nearly all of the cost.
Source: Schwarzschild et al. 2024, "Rethinking LLM memorization through the lens of adversarial compression" (arXiv 2404.15146).
"""

from scalemem import CanarySpec, DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, grid, repeat

NEVER = 1e-9  # the probability that a control's sequence is planted


def size(d: int) -> dict:
    """Width d, head size 4, and the rate of our capacity recipe times 0.7."""
    return {"d_model": d, "n_heads": d // 4, "peak_lr": 1.4e-2 * (16 / d) ** 0.5}


def base(items: int, copies: int, batch: int = 16, vocab: int = 64, seq: int = 16, kind: str = "random") -> RunSpec:
    """One pass over `items` sequences; two canaries of each of four numbers of copies, as eight is what the measure searches for."""
    canaries = CanarySpec(per_group=2, groups=4, copies=copies, controls=8, kind=kind)
    return RunSpec(
        model=ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=vocab, seq_len=seq),
        stages=(Stage(data=DataSpec(n_items=items, generator="markov", zipf=1.2, canaries=canaries), exposures=1, batch_size=batch,
                      optimizer=OptimizerSpec(peak_lr=1.4e-2, b2=0.95, warmup_steps=50)),),
        probes=(Probe("compression"), Probe("extraction")))


def sweep(run: RunSpec, widths: list, without: list, seeds: int) -> Sweep:
    """Sizes with canaries, and some without, searched for the same ones."""
    return (Sweep(run, {"size": grid(*map(size, widths)), "seed": repeat(seeds)})
            + Sweep(run, {"size": grid(*map(size, without)), "include": grid(NEVER), "seed": repeat(seeds)}))


SWEEP = {
    "smoke": sweep(base(512, copies=4, seq=8), [8], [8], 1),
    "laptop": sweep(base(4096, copies=32), [8, 16, 48], [48], 3),
    "hour": sweep(base(16_384, copies=32, seq=32), [8, 12, 16, 24, 32, 48, 64], [16, 64], 12),
    "gpu": sweep(base(1 << 18, copies=32, batch=64, vocab=1024, seq=64), [32, 64, 128, 256, 512], [64, 512], 24),
}
