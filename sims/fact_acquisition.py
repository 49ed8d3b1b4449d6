"""Facts met ten times in a stream of other facts: how much each encounter adds, and how it is lost when the encounters end.

Stage 0 is pre-training on a pool of facts, all sentences of each; a sixteenth of the pool is met often and the rest ever more rarely (a power
law), so that the model knows some of it and never all. In each further stage the stream goes on, and the first rows of its first batch are facts
that were never met before: a stage is a place to look from, and neither optimizer nor rate is started afresh. `group` facts are met in stages 1 to
`encounters`, as many only in the last of these, which is long; and then all of them once again. Stage 1 has other facts in the rows that the facts
met once have later, and stage 0 has facts of the pool in them, so that all stages share one program.
Source: Chang et al. 2024, "How do large language models acquire factual knowledge during pretraining?" (arXiv 2406.11813).
"""

import dataclasses

from scalemem import DataSpec, InjectSpec, ModelSpec, OptimizerSpec, Probe, ReplaySpec, RunSpec, Stage, Sweep, repeat

POOL, VARIANTS = 4096, 6  # facts of the pool, and sentences of each, of which the last is never met of an injected fact
BATCH = 64


def size(d: int) -> dict:
    """Width d, heads of size 8, and a rate that falls with the root of the width."""
    return {"d_model": d, "n_heads": d // 8, "rate": 6e-3 * (32 / d) ** 0.5}


def base(group: int, encounters: int, before: int, after: int, window: int, d: int = 32, batch: int = BATCH, paraphrase: bool = False) -> RunSpec:
    """`before` windows of pre-training; new facts met every `window` steps; `after` windows from their last encounter to one more."""
    shape, new = size(d), POOL + 64
    rate = shape.pop("rate")
    data = DataSpec(n_items=window * BATCH, generator="facts", variants=VARIANTS, relations=4, object_tokens=1)
    pool = ReplaySpec(fraction=1.0, n_items=POOL * VARIANTS, law="power", blocks=16, exponent=1.5)
    optimizer = OptimizerSpec(peak_lr=rate, b2=0.95, schedule="constant")
    pretrain = Stage(data=data, optimizer=dataclasses.replace(optimizer, warmup_steps=32), exposures=before, batch_size=BATCH, segments=window,
                     replay=pool, inject=InjectSpec(n_items=2 * group))

    def meeting(m: int) -> Stage:
        """Encounter m, from 0: of the facts of the group, and before the last of other facts beside them."""
        last = m >= encounters - 1
        sentence = m % (VARIANTS - 1) if paraphrase else 0
        inject = InjectSpec(n_items=2 * group, first=(new if last else new - group) * VARIANTS + sentence)
        return dataclasses.replace(pretrain, data=dataclasses.replace(data, n_items=window * batch), optimizer=optimizer, batch_size=batch,
                                   exposures=after if m == encounters - 1 else 1, continued=True, inject=inject)

    return RunSpec(model=ModelSpec(n_layers=1, vocab_size=128, seq_len=6, **shape), stages=(pretrain, *map(meeting, range(encounters + 1))),
                   probes=(Probe("facts", at="log", most=2 * group),))


def sweep(plan: dict, widths: list, batches: list, lengths: list, seeds: int) -> Sweep:
    """Sizes; and at the middle one paraphrases, other batches after pre-training, and other lengths of it."""
    middle = widths[len(widths) // 2]
    arms = [{"d": d} for d in widths] + [{"paraphrase": True}] + [{"batch": b} for b in batches] + [{"before": n} for n in lengths]
    parts = [Sweep(base(**{**plan, "d": middle, **arm}), {"seed": repeat(seeds)}) for arm in arms]
    return sum(parts[1:], parts[0])


SWEEP = {
    "smoke": sweep({"group": 4, "encounters": 4, "before": 4, "after": 8, "window": 8}, [8], [], [], 2),
    "laptop": sweep({"group": 8, "encounters": 10, "before": 32, "after": 32, "window": 32}, [16, 32, 64], [32, 128], [8, 16], 5),
    "hour": sweep({"group": 16, "encounters": 10, "before": 64, "after": 64, "window": 50}, [16, 32, 64, 128], [32, 128, 256], [16, 32, 128], 5),
    "gpu": sweep({"group": 24, "encounters": 10, "before": 256, "after": 128, "window": 50}, [32, 64, 128, 256, 512], [128, 256, 512], [64, 128], 10),
}
