"""All membership attacks on the same runs: one-copy canaries that each of 16 seeds includes or leaves out, in data sets of growing load.

Half of the canaries are members of a run, half are not, and both are sequences of the background's own language, so that nothing but
training tells them apart. The canaries are the same for all sizes, loads and seeds; more background makes the load.
Source: the attacks of section 11.4 of our notes; the load of Morris et al. 2025 (arXiv 2505.24832).
"""

from scalemem import CanarySpec, DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, grid, repeat
from scalemem.accounting import n_params

ITEM_BITS = 15 * 4.310597392060359  # of a sequence's scored tokens, from `markov.entropy_bits`


def size(d: int) -> dict:
    """Width d, head size 4, and the rate of our capacity recipe times 0.7."""
    return {"d_model": d, "n_heads": d // 4, "peak_lr": 1.4e-2 * (16 / d) ** 0.5}


def items(d: int, load: float) -> dict:
    """Width d with items for so many bits a parameter."""
    model = ModelSpec(d_model=d, n_layers=1, n_heads=d // 4, vocab_size=64, seq_len=16)
    return size(d) | {"n_items": round(load * n_params(model) / ITEM_BITS / 8) * 8}


def base(canaries: int, exposures: int) -> RunSpec:
    planted = CanarySpec(per_group=canaries, kind="natural", include=0.5, shared=True)
    return RunSpec(
        model=ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=64, seq_len=16),
        stages=(Stage(data=DataSpec(n_items=1 << 14, generator="markov", zipf=1.2, canaries=planted), exposures=exposures, batch_size=16,
                      optimizer=OptimizerSpec(peak_lr=1.4e-2, b2=0.95, warmup_steps=50)),),
        probes=(Probe("likelihood", at="powers_of_two"),))


def sweep(run: RunSpec, loads: dict, seeds: int) -> Sweep:
    """Sizes with their loads, and each size before training, with its smallest load."""
    trained = {"setting": grid(*(items(d, load) for d, some in loads.items() for load in some)), "seed": repeat(seeds)}
    untrained = {"setting": grid(*(items(d, some[0]) for d, some in loads.items())), "exposures": grid(0), "seed": repeat(seeds)}
    return Sweep(run, trained) + Sweep(run, untrained)


WIDE = {d: [4, 8, 14, 24, 40] for d in (16, 24, 32, 48)}
SWEEP = {
    "smoke": sweep(base(64, 16), {8: [4, 14], 12: [4, 14]}, 6),
    "laptop": sweep(base(192, 16), {8: [8.5, 14, 24, 40], 16: [4, 8.5, 14, 24], 24: [4, 8.5, 14]}, 16),
    "hour": sweep(base(192, 16), {8: [8.5, 14, 24, 40]} | {d: WIDE[d] for d in (16, 24)}, 32),
    "gpu": sweep(base(256, 16), {d: [4, 8, 14, 24, 40] for d in (16, 24, 32, 48)}, 128),
}
