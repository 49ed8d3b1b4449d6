"""One pass over a Markov source, looked at after every sixteenth of it: what training on a sequence did, by when it was trained on.

2,048 of the sequences, seen once each, are followed, and 512 that are never seen: the cohorts and the controls of a difference in differences.
Source: Lesci et al. 2024, "Causal estimation of memorisation profiles" (arXiv 2406.04327).
"""

from scalemem import CanarySpec, DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, grid, repeat


def size(d: int) -> dict:
    """Width d, head size 4, and the rate of our capacity recipe times 0.7."""
    return {"d_model": d, "n_heads": d // 4, "peak_lr": 1.4e-2 * (16 / d) ** 0.5}


def one_pass(items: int, followed: int, controls: int, batch: int, segments: int, vocab: int = 64, seq: int = 16) -> RunSpec:
    """The followed sequences are of the source itself: they are planted once each, which leaves the data set as it would be."""
    canaries = CanarySpec(per_group=followed, controls=controls, kind="natural")
    return RunSpec(
        model=ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=vocab, seq_len=seq),
        stages=(Stage(data=DataSpec(n_items=items, generator="markov", zipf=1.2, canaries=canaries), exposures=1, batch_size=batch, segments=segments,
                      optimizer=OptimizerSpec(peak_lr=1.4e-2, b2=0.95, warmup_steps=50, decay_fraction=1.0, final_fraction=0.1)),),
        probes=(Probe("likelihood", at="segments"),))


def sweep(base: RunSpec, widths: list, seeds: int) -> Sweep:
    """A rate that falls linearly to a tenth, and one that stays; both see the same sequences in the same order."""
    return Sweep(base, {"size": grid(*map(size, widths)), "schedule": grid("constant", "trapezoid"), "seed": repeat(seeds)})


SWEEP = {
    "smoke": sweep(one_pass(1024, followed=256, controls=64, batch=16, segments=4), [8, 16, 32], 2),
    "laptop": sweep(one_pass(16_384, followed=2048, controls=512, batch=16, segments=16), [8, 16, 32, 64], 5),
    "hour": sweep(one_pass(65_536, followed=8192, controls=2048, batch=16, segments=32), [8, 16, 32, 64, 128], 5),
    "gpu": sweep(one_pass(1 << 20, followed=16_384, controls=4096, batch=64, segments=40, vocab=1024, seq=64), [32, 64, 128, 256, 512], 5),
}
