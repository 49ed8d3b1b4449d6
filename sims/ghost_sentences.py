"""Ghost sentences: passphrases of six random words of two tokens, from a list of 64 words, in 1 to 316 copies behind four tokens of background.

Half as many again are never planted; and in one more arm none is.
Source: Zhao et al. 2024, "Protecting copyrighted material with unique identifiers in large language model training" (arXiv 2403.15740).
"""

from scalemem import CanarySpec, DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, grid, repeat


def size(d: int) -> dict:
    """Width d, head size 4, and the rate of our capacity recipe times 0.7."""
    return {"d_model": d, "n_heads": d // 4, "peak_lr": 1.4e-2 * (16 / d) ** 0.5}


def base(items: int, per_group: int, batch: int, groups: int = 6, vocab: int = 64, seq: int = 16, words: int = 64) -> RunSpec:
    ghosts = CanarySpec(per_group=per_group, groups=groups, copies=1, ratio=10**0.5, controls=4 * per_group, kind="passphrase", length=seq - 4,
                        offset=4, words=words, word_length=2)
    return RunSpec(
        model=ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=vocab, seq_len=seq),
        stages=(Stage(data=DataSpec(n_items=items, generator="markov", zipf=1.2, canaries=ghosts), exposures=1, batch_size=batch,
                      optimizer=OptimizerSpec(peak_lr=1.4e-2, b2=0.95, warmup_steps=50)),),
        probes=(Probe("likelihood"), Probe("last_words")))


def sweep(run: RunSpec, widths: list, seeds: int, null_seeds: int) -> Sweep:
    """Every size; and the first with passphrases that are drawn and never planted."""
    null = {"size": grid(size(widths[0])), "include": grid(1e-9), "seed": repeat(null_seeds)}
    return Sweep(run, {"size": grid(*map(size, widths)), "seed": repeat(seeds)}) + Sweep(run, null)


SWEEP = {
    "smoke": sweep(base(1024, 4, 16, groups=5), [16, 24, 32], 2, 2),
    "laptop": sweep(base(16_384, 12, 16), [16, 24, 32, 48, 64], 6, 16),
    "hour": sweep(base(65_536, 48, 16), [16, 24, 32, 48, 64], 8, 16),
    "gpu": sweep(base(1 << 20, 200, 64, groups=7, vocab=1024, seq=64, words=1024), [64, 96, 128, 192, 256, 384], 6, 6),
}
