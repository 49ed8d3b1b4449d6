"""Facts leaked 16 to 432 times into a stream of other facts, which then goes on without them: by size, tokens, weight decay and data.

Stage 0 reads fresh facts, each once, and meets the leaked ones evenly spread over it; stage 1 goes on, optimizer and rate with it, for five times
as long on further fresh facts, or on a pool of facts that is read again and again. A token budget of 1 is `STEPS` steps. The rate is constant, so
that forgetting is not slowed by a rate that falls. Repeats are more than the published 4 to 144: models of this size hold nothing of 32.
Source: Bordt et al. 2025 (arXiv 2410.03249); its questions are facts here, its accuracy a choice between a fact's object and another's.
"""

import dataclasses

from scalemem import DataSpec, InjectSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, repeat

BATCH, STEPS, LATER, DECAY = 64, 350, 5, 0.1
LEAKED, CONTINUED = 350_000, 180_000  # numbers of the first leaked and of the first later fact


def base(repeats: int = 144, d: int = 32, budget: float = 1.0, decay: float = DECAY, pool: int = 0, later: float = LATER, leaked: int = 16,
         times: int = 1, vocab: int = 64, steps: int = STEPS) -> RunSpec:
    """`leaked` facts met `repeats` times in `budget` x `steps` steps; then `later` x `steps` more, at another decay, of a pool if there is one.

    `times` as many steps, and numbers of facts as far apart.
    """
    first, after = round(budget * steps * times), round(later * steps * times)
    model = ModelSpec(d_model=d, n_layers=1, n_heads=d // 8, vocab_size=vocab, seq_len=8)
    optimizer = OptimizerSpec(peak_lr=3e-3 * (32 / d) ** 0.5, b2=0.95, weight_decay=DECAY, schedule="constant", warmup_steps=35)
    inject = InjectSpec(n_items=leaked, first=LEAKED * times, times=repeats, interval=first / repeats, stagger=first / repeats / leaked)
    leak = Stage(data=DataSpec(n_items=first * BATCH, generator="facts"), optimizer=optimizer, exposures=1, batch_size=BATCH, inject=inject)
    items = pool or max(BATCH, after * BATCH)
    epochs = after * BATCH // items
    go_on = Stage(data=DataSpec(n_items=items, first=CONTINUED * times, generator="facts"), exposures=epochs, batch_size=BATCH, continued=True,
                  optimizer=dataclasses.replace(optimizer, weight_decay=decay, warmup_steps=0), segments=max(1, after // 7 // max(1, epochs)))
    return RunSpec(model=model, stages=(leak, go_on), probes=(Probe("facts", at="log", most=64),))


def sweep(arms: list, seeds: int) -> Sweep:
    """A run of each arm and seed."""
    parts = [Sweep(base(**arm), {"seed": repeat(seeds)}) for arm in arms]
    return sum(parts[1:], parts[0])


def arms(repeats: list, widths: list, budgets: list, decays: list, pools: list, **same) -> list:
    """Repeats at the middle size; sizes and token budgets, up to the end of the leak; weight decays and pools after most repeats."""
    most, middle = repeats[-1], repeats[1:3]
    found = [{"repeats": r} for r in repeats] + [{"repeats": most, "decay": w} for w in decays] + [{"repeats": most, "pool": n} for n in pools]
    short = [{"d": d} for d in widths] + [{"budget": b} for b in budgets]
    return [{**same, **arm} for arm in (*found, *({**arm, "repeats": r, "later": 0} for r in middle for arm in short))]


SWEEP = {
    "smoke": sweep(arms([16], [], [], [1.0], [], steps=42, leaked=8, d=16), 2),
    "laptop": sweep(arms([16, 48, 144, 432], [16, 64], [0.5, 2, 4], [0.01, 1.0], [2240]), 4),
    "hour": sweep(arms([16, 48, 144, 432], [16, 64, 128], [0.5, 2, 4], [0.01, 1.0], [2240, 8960]), 16),
    "gpu": sweep(arms([16, 48, 144, 432], [64, 256], [0.5, 2, 4], [0.01, 1.0], [35_840], d=128, vocab=256, leaked=128, times=16), 8),
}
