"""Recitation, reconstruction, recollection: templates and traps, half and half, in 1 to 64 copies, and as many of each that are never planted.

A template is a motif of two tokens again and again, each time raised by 0 or by 1; a trap is a sequence of the background's source at a
temperature of .2 to 3. In one more arm nothing is planted: nothing in its training follows a template.
Source: Prashanth et al. 2024, "Recite, reconstruct, recollect" (arXiv 2406.17746).
"""

from dataclasses import replace

from scalemem import CanarySpec, DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, grid, repeat


def size(d: int, layers: int = 1) -> dict:
    """Width d, head size 4, and the rate of our capacity recipe times 0.7."""
    return {"d_model": d, "n_heads": d // 4, "n_layers": layers, "peak_lr": 1.4e-2 * (16 / d) ** 0.5}


def base(items: int, per_group: int, batch: int, vocab: int = 32, seq: int = 16) -> RunSpec:
    planted = CanarySpec(per_group=per_group, groups=4, copies=1, ratio=4, controls=per_group, kind="template", coldest=0.2, hottest=3.0)
    return RunSpec(
        model=ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=vocab, seq_len=seq),
        stages=(Stage(data=DataSpec(n_items=items, generator="markov", zipf=1.2, canaries=planted), exposures=1, batch_size=batch,
                      optimizer=OptimizerSpec(peak_lr=1.4e-2, b2=0.95, warmup_steps=50)),),
        probes=(Probe("factors"),))


def sweep(run: RunSpec, sizes: list, seeds: int, null_seeds: int) -> Sweep:
    """Every size; and the last one without planting, of seeds from 100 on."""
    null = {"size": grid(sizes[-1]), "include": grid(1e-9), "seed": repeat(null_seeds)}
    return Sweep(run, {"size": grid(*sizes), "seed": repeat(seeds)}) + Sweep(replace(run, seed=100), null)


SWEEP = {
    "smoke": sweep(base(2048, 20, 16), [size(16), size(32)], 2, 1),
    "laptop": sweep(base(32_768, 256, 16), [size(d) for d in (16, 24, 32, 48, 64)], 4, 2),
    "hour": sweep(base(65_536, 512, 16), [size(d) for d in (12, 16, 24, 32, 48, 64, 96)], 6, 3),
    "gpu": sweep(base(1 << 20, 4096, 64, vocab=256, seq=64), [size(d, 2) for d in (32, 64, 128, 256)], 4, 2),
}
