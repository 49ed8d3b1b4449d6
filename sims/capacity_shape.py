"""What moves bits per parameter: vocabulary, sequence length, depth against width, heads, norm and head, at 10,300 to 13,200 parameters.

Widths are whole heads of size 4, which is as near as parameters can be matched: six blocks of width 12 have 19 % more than the base.
Every cell gets the same data bits per parameter (4.7), exposures, optimizer, rate rule and number of steps; none is tuned. The last sweep
stores far less than capacity in sequences that share first tokens: what cannot be known is which of them one is in.
Source: Morris et al. 2025 (arXiv 2505.24832), tables of sequence length and vocabulary.
"""

import dataclasses
import math

from scalemem import DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, grid, repeat
from scalemem.accounting import n_params

MODEL = ModelSpec(d_model=24, n_layers=1, n_heads=6, vocab_size=128, seq_len=32)
BASE = RunSpec(
    model=MODEL, probes=(Probe("capacity"),),
    stages=(Stage(data=DataSpec(n_items=256), exposures=250, batch_size=32,
                  optimizer=OptimizerSpec(peak_lr=2e-2, b1=0.95, b2=0.95, warmup_steps=50)),))


def cell(bits_per_param: float = 4.7, **change) -> dict:
    """A change of the base model with items for that many data bits a parameter (a multiple of 8, so that a batch is an eighth)."""
    if "d_model" in change:
        change = {"n_heads": max(1, change["d_model"] // 4)} | change
    model = dataclasses.replace(MODEL, **change)
    n = 8 * round(bits_per_param * n_params(model) / ((model.seq_len - 1) * math.log2(model.vocab_size)) / 8)
    return change | {"n_items": n, "batch_size": n // 8, "peak_lr": 2e-2 * min(1.5, (16 / model.d_model) ** 0.5)}


VOCABULARY = [cell(vocab_size=32, d_model=28), cell(vocab_size=512, d_model=16)]
LENGTH = [cell(seq_len=8), cell(seq_len=16), cell(seq_len=64)]
DEPTH = [cell(n_layers=0, d_model=68), cell(n_layers=3, d_model=16), cell(n_layers=6, d_model=12)]
HEADS = [cell(n_heads=h) for h in (1, 3, 12)]
SWITCHES = [cell(norm="rmsnorm"), cell(position="rotary"), cell(mlp="swiglu"), cell(tied=False, d_model=20)]
CELLS = [cell(), *VOCABULARY, *LENGTH, *DEPTH, *HEADS, *SWITCHES]


def shortfall(lengths: list, seeds: int) -> Sweep:
    """256 sequences over 128 tokens: two a first token, as the published 4,096 over 2,048."""
    few = {"d_model": 32, "n_heads": 8, "n_items": 256, "batch_size": 32, "peak_lr": 1.4e-2, "exposures": 1000}
    return Sweep(BASE, {"few": grid(few), "seq_len": grid(*lengths), "seed": repeat(seeds)})


def shapes(cells: list, exposures: int, seeds: int) -> Sweep:
    return Sweep(BASE, {"shape": grid(*cells), "exposures": grid(exposures), "seed": repeat(seeds)})


SWEEP = {
    "smoke": shapes([cell(), cell(norm="rmsnorm")], 16, 3),
    "laptop": shapes(CELLS, 250, 3) + shortfall([4, 8, 16], 3),
    "hour": shapes(CELLS, 1000, 3) + shapes(CELLS, 250, 3) + shortfall([4, 8, 16], 3),
    "gpu": shapes(CELLS, 4000, 10) + shortfall([4, 8, 16], 10),
}
