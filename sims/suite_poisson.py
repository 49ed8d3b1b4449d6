"""One pass in which random sequences recur at random steps: are those memorized at its end spread over the order of training as by chance?

Two schedules; and the same sequences with all copies in the first or in the last part of the pass (other seeds), so that where they stand is known.
Source: Biderman et al. 2023, "Pythia", the test of memorized sequences against a Poisson process.
"""

import dataclasses

from scalemem import CanarySpec, DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, grid, repeat

PLACED = 100  # seeds from here on have their canaries early or late


def size(d: int) -> dict:
    """Width d, head size 4, and the rate of our capacity recipe times 0.7."""
    return {"d_model": d, "n_heads": d // 4, "peak_lr": 1.4e-2 * (16 / d) ** 0.5}


def one_pass(items: int, planted: int, copies: int, batch: int, vocab: int = 64, seq: int = 16) -> RunSpec:
    """`planted` canaries of random tokens, as many controls, in a Markov background."""
    canaries = CanarySpec(per_group=planted, copies=copies, controls=planted, kind="random")
    return RunSpec(
        model=ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=vocab, seq_len=seq),
        stages=(Stage(data=DataSpec(n_items=items, generator="markov", zipf=1.2, canaries=canaries), exposures=1, batch_size=batch,
                      optimizer=OptimizerSpec(peak_lr=1.4e-2, b2=0.95, warmup_steps=50)),),
        probes=(Probe("extraction"),))


def sweep(base: RunSpec, widths: list, seeds: int, placed: int) -> Sweep:
    """Copies anywhere, for all sizes; early and late, for the largest."""
    schedules = grid("constant", "trapezoid")
    anywhere = Sweep(base, {"size": grid(*map(size, widths)), "schedule": schedules, "seed": repeat(seeds)})
    return anywhere + Sweep(dataclasses.replace(base, seed=PLACED), {"size": grid(size(widths[-1])), "schedule": schedules,
                                                                     "placement": grid("early", "late"), "seed": repeat(placed)})


SWEEP = {
    "smoke": sweep(one_pass(2048, planted=16, copies=56, batch=16), [48], 2, 2),
    "laptop": sweep(one_pass(16_384, planted=96, copies=48, batch=16), [48, 64], 10, 5),
    "hour": sweep(one_pass(65_536, planted=384, copies=48, batch=16), [48, 64, 96], 10, 5),
    "gpu": sweep(one_pass(1 << 20, planted=4096, copies=48, batch=64, vocab=1024, seq=64), [128, 256, 512], 10, 5),
}
