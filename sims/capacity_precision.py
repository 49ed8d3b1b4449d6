"""What precision is worth: float32 against bfloat16 in the matrix products and in the weights, and rounding after training.

Source: Morris et al. 2025 (arXiv 2505.24832): 3.83 bits per parameter in fp32 and 3.51 in bf16, a ratio of 1.09.
"""

from scalemem import DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, grid, repeat

BASE = RunSpec(
    model=ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=128, seq_len=32),
    stages=(Stage(data=DataSpec(n_items=128), exposures=500, batch_size=16,
                  optimizer=OptimizerSpec(peak_lr=2e-2, b1=0.95, b2=0.95, warmup_steps=50)),),
    probes=(Probe("capacity"), Probe("quantized")))

D8 = {"d_model": 8, "n_heads": 2, "n_items": 48, "batch_size": 6, "peak_lr": 2.8e-2}
D16 = {"d_model": 16, "n_heads": 4, "n_items": 128, "batch_size": 16, "peak_lr": 2e-2}
D24 = {"d_model": 24, "n_heads": 6, "n_items": 256, "batch_size": 32, "peak_lr": 1.63e-2}
FLOAT32 = {"param_dtype": "float32", "compute_dtype": "float32"}
COMPUTE = {"param_dtype": "float32", "compute_dtype": "bfloat16"}
WEIGHTS = {"param_dtype": "bfloat16", "compute_dtype": "float32"}


def precisions(sizes: list, exposures: int, seeds: int) -> Sweep:
    return Sweep(BASE, {"size": grid(*sizes), "precision": grid(FLOAT32, COMPUTE, WEIGHTS), "exposures": grid(exposures),
                        "seed": repeat(seeds)})


SWEEP = {"smoke": precisions([D8], 16, 3), "laptop": precisions([D8, D16, D24], 500, 4), "hour": precisions([D8, D16, D24], 2000, 4),
         "gpu": precisions([D8, D16, D24], 16_000, 10)}
