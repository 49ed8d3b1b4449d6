"""Runs with and without each sequence: what a model knows of it because it trained on it, against the number of its copies.

Two designs. "natural": sequences of the background's language, each with 1 to 64 copies that a run includes or leaves out together.
"passphrase": documents of an eighth as many contents, so that a content is in several, and each document is included by itself.
Then, of the documents, a second set of runs of other seeds: all of them, all but the quarter that the first set had found to be memorized
most (`MOST`), and all but a quarter drawn at random. Fresh documents of the same contents tell what that costs.
Sources: Zhang et al. 2021 (arXiv 2112.12938), who left documents out of text that has near-copies of them; Feldman and Zhang 2020
(arXiv 2008.03703), who trained without what is memorized most. `MOST`: analyses.counterfactual.memorized_most of a store of the first set.
"""

from dataclasses import replace

from scalemem import CanarySpec, DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, grid, repeat

SECOND = 1000  # the first seed of the second set
MOST = {
    "smoke": "0,2,5,7,11-12,15,19,21,32,36,44-45,53,60,63",
    "laptop": "1,8,17-19,25-27,29,41-43,46,50,52-53,55,57-58,62,65,72,74,80,84-85,90,96,99,103-105,110,114,116,122,125,129-130,134-135,140,"
              "143,146,148,158-159,166,174,193,201-203,206-208,216-219,225-226,230-231,233,238-240,254,264,268,274-275,287,289,291-293,296,"
              "302-305,314,321-322,331,345,362-365,367,370,377,380",
}


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


def removal(copied: RunSpec, most: str, seeds: int) -> Sweep:
    """All documents; without a quarter drawn by each seed; without those named. Never planted, to be asked for: half as many again."""
    stage = copied.stages[0]
    assert stage.data.canaries
    canaries = replace(stage.data.canaries, include=1.0, controls=stage.data.n_items // 2)
    base = replace(copied, seed=SECOND, stages=(replace(stage, data=replace(stage.data, canaries=canaries)),))
    arms = grid({"include": 1.0, "without": ""}, {"include": 0.75, "without": ""}, {"include": 1.0, "without": most})
    return Sweep(base, {"arm": arms, "seed": repeat(seeds)})


SWEEP = {
    "smoke": (Sweep(ladder(4, d=12), {"seed": repeat(8)}) + Sweep(documents(64, d=12), {"seed": repeat(12)})
              + removal(documents(64, d=12), MOST["smoke"], 4)),
    "laptop": Sweep(ladder(16), {"seed": repeat(64)}) + Sweep(documents(384), {"seed": repeat(128)}) + removal(documents(384), MOST["laptop"], 32),
    "gpu": Sweep(ladder(64, d=32), {"seed": repeat(400)}) + Sweep(documents(1024, d=32), {"seed": repeat(400)}),
}
