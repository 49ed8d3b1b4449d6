"""Capacity: GPTs trained to saturation on random tokens, each point of the exposure ladder annealed on its own.

Source: Morris et al. 2025, "How much do language models memorize?" (arXiv 2505.24832), at sizes that a laptop can train.
The family is one block, head size 4, S = 32: V = 128 with d = 8..32, and V = 512 with d = 16.
"""

from scalemem import DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, grid, repeat
from scalemem.accounting import n_params


def size(d: int, n: int, vocab: int = 128, seq: int = 32) -> dict:
    """One model size with its data: batch n/8, rate 2e-2 sqrt(16/d), capped at 3e-2 for d = 8, head size 4."""
    return {"d_model": d, "n_heads": d // 4, "vocab_size": vocab, "seq_len": seq, "n_items": n, "batch_size": n // 8,
            "peak_lr": min(3e-2, 2e-2 * (16 / d) ** 0.5)}


BASE = RunSpec(
    model=ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=128, seq_len=32),
    stages=(Stage(data=DataSpec(n_items=128), exposures=1000, batch_size=16,
                  optimizer=OptimizerSpec(peak_lr=2e-2, b1=0.95, b2=0.95, warmup_steps=50)),),
    probes=(Probe("capacity"),))

D8, D16, D24, D32, V512 = size(8, 48), size(16, 128), size(24, 256), size(32, 384), size(16, 192, vocab=512)
WIDE = size(32, 768, vocab=2048, seq=64)  # 80,352 parameters: a cell of the published grid


def ladder(sizes: list, exposures: list, seeds: int) -> Sweep:
    return Sweep(BASE, {"size": grid(*sizes), "exposures": grid(*exposures), "seed": repeat(seeds)})


def data_sizes(d: int, items: list, exposures: int, seeds: int) -> Sweep:
    return ladder([size(d, n) for n in items], [exposures], seeds)


SMOKE = ladder([D8, D16], [16, 32, 64], 2) + data_sizes(8, [16, 48, 96], 64, 2)
LAPTOP = (ladder([D8, D16, V512], [125, 250, 500, 1000], 4) + ladder([D24, D32], [125, 250, 500, 1000], 3)
          + data_sizes(8, [8, 16, 24, 48, 64, 96, 144], 500, 2)
          + data_sizes(16, [16, 32, 48, 64, 80, 112, 128, 192, 256, 400], 500, 2))
HOUR = (LAPTOP + ladder([D8, D16, D24, D32, V512], [4000], 2) + ladder([D8, D16], [16_000], 2)
        + ladder([D24, V512], [16_000], 1) + ladder([D8, D16], [64_000], 2) + data_sizes(16, [80, 88, 96], 16_000, 2)
        + ladder([WIDE], [125, 250, 500], 1))


def published(layers: int, d: int) -> dict:
    """A cell of the published grid with seven data bits a parameter, batch 2,048 or an eighth of the items."""
    cell = size(d, 0, vocab=2048, seq=64) | {"n_layers": layers, "n_heads": max(1, d // 64)}
    n = 8 * round(7 * n_params(ModelSpec(d_model=d, n_layers=layers, n_heads=1, vocab_size=2048, seq_len=64)) / (63 * 11) / 8)
    return cell | {"n_items": n, "batch_size": min(2048, n // 8)}


GPU = ladder([published(layers, d) for layers in (1, 2, 4, 8) for d in (32, 64, 128, 256)], [125, 250, 500, 1000, 4000], 3)

SWEEP = {"smoke": SMOKE, "laptop": LAPTOP, "hour": HOUR, "gpu": GPU}
