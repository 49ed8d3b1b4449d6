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
    KINDS                                                       legal values of strategy.kind, the first is what "" means

What is no file here: replay, view-batch spacing and power-law environments are laws of `ReplaySpec` and `InjectSpec`; LoRA, half fine-tuning and
prompts are what a stage `trains` (scalemem.trainable). REMIND, replay of quantised features, is not here: a strategy sees the logits of a model
and not its lower half.
"""

from __future__ import annotations

import importlib
from types import ModuleType, SimpleNamespace
from typing import Any

from scalemem.spec import RunSpec, SpecError
from scalemem.strategies.context import Context, Costs

__all__ = ["STRATEGIES", "Context", "Costs", "check", "costs", "get", "of"]

# name -> module, or where it is imported from when it is used
STRATEGIES: dict[str, Any] = {name: f"scalemem.strategies.{name}" for name in (
    "ewc", "online_ewc", "si", "lwf", "logit_distillation", "feature_distillation", "gem", "agem", "weight_averaging", "merging", "fast_slow",
    "collateral", "relational", "centre_loss", "prototypes")}


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
        if strategy is None:
            continue
        kinds = getattr(get(strategy.name), "KINDS", ("",))
        if strategy.kind and strategy.kind not in kinds:
            raise SpecError(f"stages[{i}].strategy.kind = {strategy.kind!r}: must be one of {', '.join(map(repr, kinds))}; choose one of these")
        if strategy.seen > strategy.tasks:
            raise SpecError(f"stages[{i}].strategy.seen = {strategy.seen}: must be at most strategy.tasks = {strategy.tasks}; lower it")
        if strategy.items < strategy.tasks:
            raise SpecError(f"stages[{i}].strategy.items = {strategy.items}: must be at least strategy.tasks = {strategy.tasks}; raise it")
