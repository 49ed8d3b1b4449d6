"""Discoverable extraction of passphrases of 4 to 128 copies in a Markov background: sizes of one family, and models that never saw one.

A passphrase is words of two tokens from a list of eight, so that a short prompt is the beginning of many of them, as it is in text.
In one more arm canaries of a format, with two tokens of 32 values each filled in, are looked at in four other ways: exposure, approximate
matches, what the model says unasked, and a cloze.
Sources: Carlini et al. 2022, "Quantifying memorization across neural language models" (arXiv 2202.07646); of the four, Carlini et al. 2019
(arXiv 1802.08232), Ippolito et al. 2022 (arXiv 2210.17546), Nasr et al. 2023 (arXiv 2311.17035), Chang et al. 2023 ("Speak, memory").
"""

from dataclasses import replace

from scalemem import CanarySpec, DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, grid, repeat

NEVER = 1e-9  # the probability that a control's canary is planted


def size(d: int) -> dict:
    """Width d, head size 4, and the rate of our capacity recipe times 0.7."""
    return {"d_model": d, "n_heads": d // 4, "peak_lr": 1.4e-2 * (16 / d) ** 0.5}


def base(items: int, per_group: int, batch: int = 16, vocab: int = 64, seq: int = 16) -> RunSpec:
    """One pass over `items` sequences, of which half are copies; as many canaries of 4, 8, ..., 128 copies each."""
    canaries = CanarySpec(per_group=per_group, groups=6, copies=4, controls=2 * per_group, kind="passphrase", words=8)
    return RunSpec(
        model=ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=vocab, seq_len=seq),
        stages=(Stage(data=DataSpec(n_items=items, generator="markov", zipf=1.2, canaries=canaries), exposures=1, batch_size=batch,
                      optimizer=OptimizerSpec(peak_lr=1.4e-2, b2=0.95, warmup_steps=50)),),
        probes=(Probe("extraction"),))


def sweep(run: RunSpec, widths: list, without: list, seeds: int) -> Sweep:
    """Sizes with canaries, and some without, asked for the same ones."""
    return (Sweep(run, {"size": grid(*map(size, widths)), "seed": repeat(seeds)})
            + Sweep(run, {"size": grid(*map(size, without)), "include": grid(NEVER), "seed": repeat(seeds)}))


def other_ways(items: int, per_group: int, widths: list, seeds: int, batch: int = 16) -> Sweep:
    """As many canaries of 4, 8, ..., 128 copies each, of one format; seeds from 100 on."""
    run = base(items, per_group, batch)
    canaries = CanarySpec(per_group=per_group, groups=6, copies=4, controls=4 * per_group, kind="structured", words=32, word_length=2)
    stage = replace(run.stages[0], data=replace(run.stages[0].data, canaries=canaries))
    probes = tuple(map(Probe, ("exposure", "approximate", "unprompted", "cloze")))
    return Sweep(replace(run, stages=(stage,), probes=probes, seed=100), {"size": grid(*map(size, widths)), "seed": repeat(seeds)})


SWEEP = {
    "smoke": sweep(base(1024, per_group=2), [16, 64], [16], 2),
    "laptop": sweep(base(16_384, per_group=32), [12, 16, 24, 32, 48, 64], [16, 64], 4) + other_ways(16_384, 16, [32, 64], 4),
    "hour": sweep(base(65_536, per_group=128), [8, 12, 16, 24, 32, 48, 64, 96], [16, 64], 8),
    "gpu": sweep(base(1 << 20, per_group=2048, batch=64, vocab=1024, seq=64), [32, 64, 96, 128, 192, 256, 384, 512], [64, 512], 8),
}
