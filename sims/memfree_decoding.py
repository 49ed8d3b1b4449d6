"""Sequences known by heart, asked for behind a filter that lets no n-gram of the training set be completed: for n of 4 to 32 tokens.

Source: Ippolito et al. 2022, "Preventing verbatim memorization in language models gives a false sense of privacy" (arXiv 2210.17546).
"""

from scalemem import CanarySpec, DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, grid, repeat

NEVER = 1e-9  # the probability that a control's sequence is planted


def base(documents: int, copies: int, d: int = 32, vocab: int = 64, seq: int = 64, batch: int = 8, peak_lr: float = 1.4e-2) -> RunSpec:
    """One pass over sequences of which half are copies of random ones; twice as many random ones are never planted."""
    canaries = CanarySpec(per_group=documents, copies=copies, controls=2 * documents)
    return RunSpec(
        model=ModelSpec(d_model=d, n_layers=1, n_heads=d // 8, vocab_size=vocab, seq_len=seq),
        stages=(Stage(data=DataSpec(n_items=2 * documents * copies, generator="markov", zipf=1.2, canaries=canaries), exposures=1,
                      batch_size=batch, optimizer=OptimizerSpec(peak_lr=peak_lr, b2=0.95, warmup_steps=50)),),
        probes=(Probe("memfree"),))


def sweep(run: RunSpec, seeds: int) -> Sweep:
    """Models with the sequences, and a third as many without, asked for the same ones."""
    return Sweep(run, {"seed": repeat(seeds)}) + Sweep(run, {"include": grid(NEVER), "seed": repeat(max(2, seeds // 3))})


SWEEP = {
    "smoke": sweep(base(2, copies=32, seq=16), 2),
    "laptop": sweep(base(4, copies=200), 24),
    "hour": sweep(base(4, copies=800, d=64), 96),
    "gpu": sweep(base(256, copies=800, d=256, vocab=4096, seq=128, batch=64, peak_lr=7e-3), 24),
}
