"""Tasks of over-parameterised linear regression one after another: the exact oracle of forgetting, simulated. Nothing is trained.

Fields of a run say what its measure simulates: model.d_model = p weights, data.n_items = n examples a task, data.domains = T tasks, data.noise = the
standard deviation of an answer's noise, data.similarity = the inner product of any two of the true unit weights, Probe.most = sequences of
tasks. The transformer is the smallest that such a spec allows, gets no exposures and is not read.
Source: Lin et al. 2023 (ICML); Peng et al. 2023 (ICML) for the ideal continual learner.
"""

from scalemem import DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, grid, repeat


def base(p: int, most: int) -> RunSpec:
    """p weights, `most` sequences of tasks."""
    return RunSpec(
        model=ModelSpec(d_model=p, n_layers=0, n_heads=1, vocab_size=2, seq_len=2),
        stages=(Stage(data=DataSpec(n_items=1, domains=2, noise=0.5), exposures=0, batch_size=1, optimizer=OptimizerSpec(peak_lr=0.1)),),
        probes=(Probe("linear_tasks", most=most),))


def sweep(p: int, most: int, items: list, tasks: list, noises: list, similarities: list, seeds: int) -> Sweep:
    """All combinations."""
    return Sweep(base(p, most), {"n_items": grid(*items), "domains": grid(*tasks), "noise": grid(*noises), "similarity": grid(*similarities),
                                 "seed": repeat(seeds)})


SWEEP = {  # p / n of 8, 2 and 16/13, and n = p - 2, are in all of them; at 4,000 sequences some have an error of a per cent
    "smoke": sweep(32, 1000, [4, 16, 26, 30], [2], [0.0, 0.5], [0.0, 1.0], 2),
    "laptop": sweep(32, 16_000, [2, 4, 8, 12, 16, 20, 24, 26, 30], [2, 5], [0.0, 0.5], [0.0, 0.5, 1.0], 2),
    "gpu": sweep(32, 64_000, [2, 4, 8, 12, 16, 20, 24, 26, 30], [2, 5, 12], [0.0, 0.5, 1.0], [0.0, 0.25, 0.5, 0.75, 1.0], 5),
}
