"""Facts learned, then other facts learned once each: small models for 128 steps, and models of 3 and 11 times their size for 1280.

Source: the protocol (small models and short continuations, held out: ten times the size after ten times the steps) is ours; what is known of the
forms of forgetting is in shared/literature/forgetting.md 2.
"""

from scalemem import DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, grid, repeat

SLOW = 0.003  # the rate of the continuation, as a part of that of learning: at its end most, not all, is forgotten


def size(d: int) -> dict:
    """Width d, heads of 4 or 5, and the rates of our capacity recipe times 0.7."""
    rate = 1.4e-2 * (16 / d) ** 0.5
    return {"d_model": d, "n_heads": d // 4 if d % 4 == 0 else 2, "stages.0.optimizer.peak_lr": rate, "stages.1.optimizer.peak_lr": SLOW * rate}


def base(facts: int, exposures: int, steps: int, batch: int = 64, vocab: int = 64) -> RunSpec:
    """`facts` facts learned by heart, then as many steps on a stream of new ones; probes before, and four an octave of steps."""
    data = {"generator": "facts", "object_tokens": 1}
    learn = OptimizerSpec(peak_lr=1.4e-2, b2=0.95, warmup_steps=50)
    go_on = OptimizerSpec(peak_lr=1.4e-2 * SLOW, b2=0.95, warmup_steps=10, schedule="constant")
    return RunSpec(
        model=ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=vocab, seq_len=8),
        stages=(Stage(data=DataSpec(n_items=facts, **data), exposures=exposures, batch_size=batch, optimizer=learn),
                Stage(data=DataSpec(n_items=steps * batch, first=facts, **data), exposures=1, batch_size=batch, segments=steps,
                      order="sequential", optimizer=go_on)),
        probes=(Probe("facts", at="log", most=256),))


def sweep(run: RunSpec, widths: list, seeds: int) -> Sweep:
    return Sweep(run, {"size": grid(*map(size, widths)), "seed": repeat(seeds)})


SWEEP = {
    "smoke": sweep(base(128, exposures=8, steps=160, batch=32), [8, 12], 2),
    "laptop": sweep(base(1024, exposures=100, steps=1280), [8, 10, 12, 16, 32, 60], 10),
    "hour": sweep(base(4096, exposures=100, steps=2560), [8, 12, 16, 24, 32, 80, 112], 10),
    "gpu": sweep(base(16_384, exposures=200, steps=4080, batch=256, vocab=256), [16, 24, 32, 48, 64, 160, 224], 10),
}
