"""The stability gap: digits with permuted pixels, task after task, with all old items replayed, and looked at after every few steps.

Three tasks of ten digits, each with its own permutation of the pixels; a row of a batch is of an earlier task or of this one with equal
probability, drawn from all their items, so that the loss is that of training on all tasks at once. Sizes; and, at the middle one, what may make the
gap smaller: as many steps on a quarter of the items, old and new; nine old rows in ten; or a third of the rate. Beside them are no replay, and no new
task, of which the dips are noise. Of Guo et al.'s three remedies (several epochs of a subset, the best subset first, a mixture as in
pre-training) the second has no counterpart here, for no item is better than another: the lower rate is our own.
Source: De Lange et al. 2023; Hess et al.; Guo et al. 2024 (arXiv 2406.14833).
"""

import dataclasses

from scalemem import DataSpec, ModelSpec, OptimizerSpec, Probe, ReplaySpec, RunSpec, Stage, Sweep, repeat
from scalemem.data.labels import TRANSFORM, permuted

ITEMS = permuted(0)[1]


def base(width: int, remedy: str, epochs: int, tasks: int, batch: int) -> RunSpec:
    """Tasks for so many epochs each, by plain descent at a constant rate, looked at four times an octave."""
    steps = -(-ITEMS // batch)
    plain = OptimizerSpec(peak_lr=0.1, name="sgd", b1=0.0, schedule="constant")
    data = DataSpec(generator="digits", n_items=ITEMS, task_classes=10, scenario="domain")
    first = Stage(data=data, exposures=epochs, batch_size=batch, optimizer=plain, objective="label", segments=steps)

    def later(task: int) -> Stage:
        old = {"fraction": 0.9 if remedy == "mixture" else task / (task + 1), "n_items": task * TRANSFORM, "blocks": task}
        if remedy == "subset":  # all rows are drawn, from every fourth item of all tasks so far
            old = {"fraction": 1.0, "n_items": (task + 1) * TRANSFORM // 4, "blocks": task + 1, "every": 4}
        if remedy == "same":
            return first
        slow = dataclasses.replace(plain, peak_lr=plain.peak_lr / 3) if remedy == "slow" else plain
        return dataclasses.replace(first, data=dataclasses.replace(data, first=permuted(task)[0]), optimizer=slow,
                                   replay=None if remedy == "none" else ReplaySpec(**old))

    return RunSpec(model=ModelSpec(d_model=width, n_layers=2, n_heads=1, vocab_size=27, seq_len=65, arch="mlp", init_std=0.1),
                   stages=(first, *map(later, range(1, tasks))), probes=(Probe("tasks", at="log", most=340),))


def sweep(widths: list, remedies: list, seeds: int, **plan) -> Sweep:
    """Sizes with full replay, and the remedies at the middle one."""
    middle = widths[len(widths) // 2]
    arms = [(width, "full") for width in widths] + [(middle, remedy) for remedy in remedies]
    parts = [Sweep(base(width, remedy, **plan), {"seed": repeat(seeds)}) for width, remedy in arms]
    return sum(parts[1:], parts[0])


REMEDIES = ["same", "none", "subset", "mixture", "slow"]
SWEEP = {
    "smoke": sweep([8], [], 2, epochs=6, tasks=2, batch=56),
    "laptop": sweep([16, 32, 64, 128], REMEDIES, 5, epochs=6, tasks=3, batch=28),
    "hour": sweep([16, 32, 64, 128, 256], REMEDIES, 20, epochs=10, tasks=3, batch=28),
    "gpu": sweep([16, 32, 64, 128, 256, 512, 1024], REMEDIES, 20, epochs=10, tasks=3, batch=28),
}
