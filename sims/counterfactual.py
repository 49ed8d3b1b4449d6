"""Runs with and without each sequence: what a model knows of it because it trained on it, against the number of its copies.

Two designs. "natural": sequences of the background's language, each with 1 to 64 copies that a run includes or leaves out together.
"passphrase": documents of an eighth as many contents, so that a content is in several, and each document is included by itself.
Source: Zhang et al. 2021 (arXiv 2112.12938), who left documents out of text that has near-copies of them.
"""

from scalemem import CanarySpec, DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, repeat


def run(n_items: int, exposures: int, canaries: CanarySpec, d: int) -> RunSpec:
    """Width d at the rate of our capacity recipe times 0.7; per-token accuracy and extraction at the end."""
    return RunSpec(
        model=ModelSpec(d_model=d, n_layers=1, n_heads=d // 4, vocab_size=64, seq_len=16),
        stages=(Stage(data=DataSpec(n_items=n_items, generator="markov", zipf=1.2, canaries=canaries), exposures=exposures, batch_size=16,
                      optimizer=OptimizerSpec(peak_lr=1.4e-2 * (16 / d) ** 0.5, b2=0.95, warmup_steps=50)),),
        probes=(Probe("likelihood"), Probe("extraction")))


def ladder(per_group: int, d: int = 16, exposures: int = 4) -> RunSpec:
    """Natural sequences with 1, 2, 4, .. 64 copies, all or none of them."""
    canaries = CanarySpec(per_group=per_group, groups=7, kind="natural", include=0.5, shared=True)
    return run(128 * per_group, exposures, canaries, d)


def documents(count: int, d: int = 16, exposures: int = 24) -> RunSpec:
    """Documents of an eighth as many contents, drawn at random, each included or not."""
    canaries = CanarySpec(per_group=count, kind="passphrase", words=count // 8, word_length=16, include=0.5, shared=True)
    return run(count, exposures, canaries, d)


def sweep(natural: RunSpec, copied: RunSpec, seeds: int, more: int) -> Sweep:
    return Sweep(natural, {"seed": repeat(seeds)}) + Sweep(copied, {"seed": repeat(more)})


SWEEP = {
    "smoke": sweep(ladder(4, d=12), documents(64, d=12), 8, 12),
    "laptop": sweep(ladder(16), documents(384), 64, 128),
    "gpu": sweep(ladder(64, d=32), documents(1024, d=32), 400, 400),
}
