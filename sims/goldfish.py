"""Documents seen a hundred times under goldfish losses that leave one target in K out, and under the standard one.

A document is 64 random tokens, so that a token never trained on is right with a probability of 1 / V: what is expected is known exactly.
Source: Hans et al. 2024, "Be like a goldfish, don't memorize" (arXiv 2406.10209).
"""

from scalemem import CanarySpec, DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, grid, repeat

NEVER = 1e-9  # the probability that a control's document is planted


def base(documents: int, copies: int, d: int = 32, vocab: int = 64, seq: int = 64, batch: int = 6, peak_lr: float = 2e-2) -> RunSpec:
    """One pass over sequences of which a third are copies of the documents; as many documents are never planted."""
    canaries = CanarySpec(per_group=documents, copies=copies, controls=documents)
    return RunSpec(
        model=ModelSpec(d_model=d, n_layers=1, n_heads=d // 8, vocab_size=vocab, seq_len=seq),
        stages=(Stage(data=DataSpec(n_items=3 * documents * copies, generator="markov", zipf=1.2, canaries=canaries), exposures=1,
                      batch_size=batch, optimizer=OptimizerSpec(peak_lr=peak_lr, b2=0.95, warmup_steps=50)),),
        probes=(Probe("extraction"),))


def sweep(run: RunSpec, drop: list, seeds: int) -> Sweep:
    """Objectives at equal tokens; K = 4 at equal supervised tokens, with 4/3 of all in each of as many steps; and no documents at all."""
    stage = run.stages[0]
    canaries = stage.data.canaries
    assert canaries is not None
    copies = round(4 / 3 * canaries.copies)
    equal = {"objective": "goldfish_hashed_4", "batch_size": stage.batch_size * 4 // 3, "copies": copies,
             "n_items": 3 * canaries.per_group * copies}
    return (Sweep(run, {"objective": grid("next_token", *(f"goldfish_hashed_{k}" for k in drop), "goldfish_static_4", "goldfish_random_4"),
                        "seed": repeat(seeds)})
            + Sweep(run, {"equal": grid(equal), "seed": repeat(seeds)})
            + Sweep(run, {"include": grid(NEVER), "seed": repeat(seeds)}))


SWEEP = {
    "smoke": sweep(base(4, copies=12), [4], 2),
    "laptop": sweep(base(16, copies=100), [2, 4, 8, 16, 32], 4),
    "hour": sweep(base(64, copies=100, d=64, vocab=256), [2, 3, 4, 8, 16, 32, 64, 128], 8),
    "gpu": sweep(base(2048, copies=100, d=256, vocab=4096, seq=256, batch=96, peak_lr=1e-2), [2, 3, 4, 8, 16, 32, 64, 128], 8),
}
