"""Membership inference against data bits per parameter, for four sizes of one family; the largest is held out of the fit.

Source: Morris et al. 2025 (arXiv 2505.24832), the sigmoid with its ratio turned over as their own table requires.
"""

from scalemem import DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, grid, repeat
from scalemem.accounting import n_params

BASE = RunSpec(
    model=ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=128, seq_len=32),
    stages=(Stage(data=DataSpec(n_items=128), exposures=100, batch_size=16,
                  optimizer=OptimizerSpec(peak_lr=2e-2, b1=0.95, b2=0.95, warmup_steps=50)),),
    probes=(Probe("capacity"),))


def size(d: int, bits_per_param: float) -> dict:
    """Width d with items for so many data bits a parameter; batch n/8."""
    model = ModelSpec(d_model=d, n_layers=1, n_heads=d // 4, vocab_size=128, seq_len=32)
    n = 8 * max(1, round(bits_per_param * n_params(model) / (31 * 7) / 8))
    return {"d_model": d, "n_heads": d // 4, "n_items": n, "batch_size": n // 8, "peak_lr": min(3e-2, 2e-2 * (16 / d) ** 0.5)}


def ladder(widths: list, loads: list, exposures: int, seeds: int) -> Sweep:
    return Sweep(BASE, {"size": grid(*(size(d, load) for d in widths for load in loads)), "exposures": grid(exposures),
                        "seed": repeat(seeds)})


LOADS, HEAVY = [3, 6, 10, 15, 22, 33, 50, 75], [110, 160]

SWEEP = {
    "smoke": ladder([8, 16], [4, 10, 20, 40], 16, 2),
    "laptop": ladder([8, 16], LOADS + HEAVY, 100, 3) + ladder([24], LOADS, 100, 2) + ladder([32], LOADS[:-1], 100, 2),
    "hour": ladder([8, 16, 24, 32], LOADS + HEAVY, 250, 3),
    "gpu": ladder([8, 16, 24, 32], LOADS + HEAVY, 1000, 5),
}
