"""Five tasks of two classes, one after another, under the three scenarios: what strategies against forgetting keep.

Two streams: scikit-learn's handwritten digits in a perceptron, and sequences around prototypes in a transformer. All runs take the same steps on as
many rows. `joint` draws the rows of task k evenly from all items of the tasks so far, `replay` from 28 items of each class before.
Source: van de Ven & Tolias 2019 (arXiv 1904.07734); van de Ven et al. 2022.
"""

import dataclasses

from scalemem import DataSpec, ModelSpec, OptimizerSpec, Probe, ReplaySpec, RunSpec, Stage, StrategySpec, Sweep, repeat

TASKS, CLASSES, PER_CLASS, PER_TASK, KEPT = 5, 2, 140, 280, 28


def base(generator: str, scenario: str, strategy: str, epochs: int, tasks: int = TASKS, width: int = 64) -> RunSpec:
    """Tasks for so many epochs each, at a constant rate; the optimizer starts afresh."""
    extra = {} if generator == "digits" else {"classes": TASKS * CLASSES, "noise": 0.3}
    data = DataSpec(generator=generator, n_items=PER_TASK, per_class=PER_CLASS, task_classes=CLASSES, scenario=scenario, **extra)
    plain = Stage(data=data, exposures=epochs, batch_size=28, optimizer=OptimizerSpec(peak_lr=2e-3, schedule="constant"),
                  objective=f"label_in_task_{CLASSES}" if scenario == "task" else "label")
    model = (ModelSpec(d_model=width, n_layers=2, n_heads=1, vocab_size=27, seq_len=65, arch="mlp", init_std=0.1) if generator == "digits" else
             ModelSpec(d_model=width // 2, n_layers=1, n_heads=4, vocab_size=32, seq_len=13))
    return RunSpec(model=model, stages=tuple(dataclasses.replace(
        plain, data=dataclasses.replace(data, first=t * PER_TASK), **against(strategy, t, tasks)) for t in range(tasks)),
        probes=(Probe("tasks", at="stages"),))


def against(name: str, task: int, tasks: int) -> dict:
    """What is done in the stage of a task; those who keep old items keep KEPT of each class, and a Fisher is of 10 of each."""
    every, kept = PER_CLASS // KEPT, CLASSES * KEPT
    if name == "si":  # watches the first task, too
        return {"strategy": StrategySpec("si", strength=1.0)}
    if task == 0 or name == "none":
        return {}
    if name in ("joint", "replay"):
        pool = {"n_items": task * PER_TASK} if name == "joint" else {"n_items": task * kept, "every": every}
        return {"replay": ReplaySpec(fraction=task / (task + 1), **pool)}  # type: ignore[arg-type]
    room = {"tasks": tasks - 1, "seen": task, "stride": PER_TASK}
    if name == "agem":
        return {"strategy": StrategySpec(name, items=(tasks - 1) * kept, every=every, **room)}  # type: ignore[arg-type]
    if name == "ewc":
        return {"strategy": StrategySpec(name, kind="exact", strength=100.0, items=(tasks - 1) * 20, every=PER_TASK // 20, **room)}  # type: ignore[arg-type]
    return {"strategy": StrategySpec(name, strength=1.0)}


def sweep(arms: list, epochs: int, seeds: int, **shape) -> Sweep:
    """Arms: (generator, scenario, strategy)."""
    first, *others = (Sweep(base(*arm, epochs=epochs, **shape), {"seed": repeat(seeds)}) for arm in arms)
    return sum(others, first)


NAMES = ("none", "joint", "ewc", "si", "lwf", "replay", "agem")
ARMS = [(*stream, name) for stream in [*(("digits", s) for s in ("task", "domain", "class")), ("prototypes", "task"), ("prototypes", "class")]
        for name in NAMES]
SWEEP = {
    "smoke": sweep([("digits", "class", name) for name in ("none", "joint", "replay")], 2, 2, tasks=2, width=8),
    "laptop": sweep(ARMS, 30, 5),
    "hour": sweep(ARMS, 60, 20, width=128),
    "gpu": sweep(ARMS, 100, 20, width=256),
}
