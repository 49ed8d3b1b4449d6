"""Strategies against forgetting: one file each, any of them on any stage.

A strategy is a module with any of these functions. `trained` is what the stage trains, `memory` whatever the strategy carries (arrays only).

    begin(ctx, trained, before) -> memory                       at the start; before: memory of the stage before if it had this strategy, or None
    batch_loss(ctx, trained, memory, tokens, weights) -> nats   added to the summed loss of some rows of a batch
    penalty(ctx, trained, memory) -> nats                       added to the mean loss a scored token, once a step
    project(ctx, trained, memory, grads, step) -> grads
    after(ctx, old, new, memory, grads, step) -> (trained, memory)
    finish(ctx, trained, memory) -> trained                     at the end
    replay_weights(ctx, memory) -> [tasks]                      of the blocks of the replay pool
    costs(run) -> Costs                                         of the only stage of this run
    check(run, path)                                            SpecError where it cannot be in the only stage of this run
    KINDS                                                       legal values of strategy.kind, the first is what "" means

What is no file here: replay, view-batch spacing and power-law environments are laws of `ReplaySpec` and `InjectSpec`; LoRA and half fine-tuning are
what a stage `trains` (scalemem.trainable), and l2p, dualprompt and coda_prompt are losses of one that trains prompts.
"""

from __future__ import annotations

import importlib
from types import ModuleType, SimpleNamespace
from typing import Any

from scalemem.spec import RunSpec, SpecError, at_stage
from scalemem.strategies.context import Context, Costs

__all__ = ["STRATEGIES", "Context", "Costs", "check", "costs", "get", "of"]

PROMPTS = ("l2p", "coda_prompt", "dualprompt")  # of a stage that trains prompts, and of no other

# name -> module, or where it is imported from when it is used
STRATEGIES: dict[str, Any] = {name: f"scalemem.strategies.{name}" for name in (
    "ewc", "online_ewc", "si", "lwf", "logit_distillation", "feature_distillation", "gem", "agem", "weight_averaging", "merging", "fast_slow",
    "collateral", "relational", "centre_loss", "prototypes", "remind", *PROMPTS)}


def get(name: str) -> ModuleType:
    """The strategy of a name; SpecError if there is none."""
    if name not in STRATEGIES:
        raise SpecError(f"strategy.name = {name!r}: must be one of {', '.join(STRATEGIES)}; choose one of these")
    found = STRATEGIES[name]
    return importlib.import_module(found) if isinstance(found, str) else found


def of(run: RunSpec) -> Any:
    """The strategy of a run's first stage; an object without functions where it has none."""
    spec = run.stages[0].strategy
    return get(spec.name) if spec else SimpleNamespace()


def costs(run: RunSpec) -> Costs:
    """What the strategy of a run's first stage costs beside plain training."""
    strategy = of(run)
    return strategy.costs(run) if hasattr(strategy, "costs") else Costs()


def check(run: RunSpec) -> None:
    """Raises SpecError, in one line, where a strategy of a run cannot be: no such strategy, a kind that it has not, or parts without an item."""
    for i, stage in enumerate(run.stages):
        strategy = stage.strategy
        _check_prompts(run, i)
        if strategy is None:
            continue
        module = get(strategy.name)
        kinds = getattr(module, "KINDS", ("",))
        if strategy.kind and strategy.kind not in kinds:
            raise SpecError(f"stages[{i}].strategy.kind = {strategy.kind!r}: must be one of {', '.join(map(repr, kinds))}; choose one of these")
        if strategy.seen > strategy.tasks:
            raise SpecError(f"stages[{i}].strategy.seen = {strategy.seen}: must be at most strategy.tasks = {strategy.tasks}; lower it")
        if strategy.items < strategy.tasks:
            raise SpecError(f"stages[{i}].strategy.items = {strategy.items}: must be at least strategy.tasks = {strategy.tasks}; raise it")
        if hasattr(module, "check"):
            module.check(at_stage(run, i), f"stages[{i}]")


def _check_prompts(run: RunSpec, i: int) -> None:
    """Raises SpecError where a stage trains prompts and cannot, or has a strategy of prompts and trains something else."""
    stage, strategy, before = run.stages[i], run.stages[i].strategy, run.stages[i - 1] if i else None
    prompted = stage.trains == "prompts"
    if prompted != (strategy is not None and strategy.name in PROMPTS):
        name = strategy.name if strategy else None
        raise SpecError(f"stages[{i}].trains = {stage.trains!r}: must be 'prompts' with one of the strategies {', '.join(PROMPTS)} and with no "
                        f"other (now {name!r}); change one of the two")
    if before is not None and before.trains == "prompts":
        assert before.strategy is not None
        pool = lambda s: (s.name, s.pool, s.length)  # noqa: E731
        if not prompted or pool(strategy) != pool(before.strategy):
            raise SpecError(f"stages[{i}].trains = {stage.trains!r}: must go on with the prompts of the stage before it (strategy, pool and length); "
                            "make both stages alike in these")
    if not prompted:
        return
    assert strategy is not None
    if run.model.arch != "gpt":
        raise SpecError(f"model.arch = {run.model.arch!r}: must be gpt where a stage trains prompts; choose gpt, or train something else")
    if not run.model.n_layers:
        raise SpecError("model.n_layers = 0: must be at least 1 where a stage trains prompts, which are read by attention; raise it")
    learned = sum(s.trains == "prompts" for s in run.stages[: i + 1])
    least, why = {"l2p": (strategy.chosen, "strategy.chosen"), "coda_prompt": (strategy.tasks, "strategy.tasks"),
                  "dualprompt": (learned, "the stages that train prompts")}[strategy.name]
    if strategy.pool < least:
        raise SpecError(f"stages[{i}].strategy.pool = {strategy.pool}: must be at least {why} = {least}; raise it")
