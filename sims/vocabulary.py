"""Memorization of the same text cut by vocabularies of 257 to 2,048 tokens: chunks of about 96 bytes, once to 32 times, among 1,024.

Three comparisons: models of about 25,000 parameters, wider where the vocabulary is smaller; models of one width; and one model, of 1,024
tokens, that reads bytes or a BPE. Real text is the source of this Python's standard library: it differs between versions of Python.
Source: Kharitonov, Baroni and Hupkes 2021, "How BPE affects memorization in Transformers" (arXiv 2110.02782).
"""

from scalemem import CanarySpec, DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, grid, repeat
from scalemem.accounting import n_params
from scalemem.data import text

DIGEST = text.digest("")
TOKENS = {257: 96, 512: 45, 1024: 36, 2048: 31, 4096: 27}  # of about 96 bytes, by vocabulary; measured (data.text.statistics)


def run(per_group: int, n: int, exposures: int) -> RunSpec:
    canaries = CanarySpec(per_group=per_group, groups=6, copies=1, ratio=2, controls=96, kind="natural")
    return RunSpec(
        model=ModelSpec(d_model=20, n_layers=1, n_heads=5, vocab_size=257, seq_len=96),
        stages=(Stage(data=DataSpec(n_items=n, generator="text", digest=DIGEST, tokenizer="bytes", canaries=canaries), exposures=exposures,
                      batch_size=16, optimizer=OptimizerSpec(peak_lr=1e-2, b2=0.95, warmup_steps=50)),),
        probes=(Probe("likelihood"), Probe("extraction")))


def arm(vocab: int, d: int, bytes_: bool = False, head: int = 4) -> dict:
    """A vocabulary and width; a vocabulary of bytes has no use for its tokens beyond 257."""
    raw = bytes_ or vocab == 257
    return {"vocab_size": vocab, "seq_len": TOKENS[257] if raw else TOKENS[vocab], "d_model": d, "n_heads": d // head,
            "tokenizer": "bytes" if raw else "bpe", "peak_lr": 1.4e-2 * (16 / d) ** 0.5}


def matched(vocab: int, wanted: int, head: int = 4) -> dict:
    """The width, a multiple of the head's, of which the number of parameters comes nearest to the wanted."""
    def off(d: int) -> int:
        return abs(wanted - n_params(ModelSpec(d_model=d, n_layers=1, n_heads=1, vocab_size=vocab, seq_len=TOKENS[vocab])))

    return arm(vocab, min(range(head, 2048, head), key=off), head=head)


def arms(base: RunSpec, vocabularies: list, wanted: int, d: int, seeds: int, head: int = 4) -> Sweep:
    """All of about `wanted` parameters, all of width d, and a vocabulary of 1,024 that reads bytes."""
    cells = [matched(v, wanted, head) for v in vocabularies] + [arm(v, d, head=head) for v in vocabularies] + [arm(1024, d, bytes_=True, head=head)]
    cells = [c for i, c in enumerate(cells) if c not in cells[:i]]
    return Sweep(base, {"arm": grid(*cells), "seed": repeat(seeds)})


SWEEP = {
    "smoke": Sweep(run(1, 128, 6), {"arm": grid(arm(257, 20), arm(512, 20)), "seed": repeat(2)}),
    "laptop": arms(run(8, 1024, 16), [257, 512, 1024, 2048], 25_000, 20, 4),
    "hour": arms(run(16, 2048, 16), [257, 512, 1024, 2048], 60_000, 40, 8),
    "gpu": arms(run(100, 16_384, 32), [257, 512, 1024, 2048, 4096], 1_000_000, 160, 5, head=32),
}
