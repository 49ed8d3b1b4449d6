"""DualPrompt: general prompts that all tasks share in the lower blocks, and in the upper ones an expert of the task, found by its key."""

from __future__ import annotations

from typing import Any

import jax

from scalemem.models import prompts
from scalemem.spec import RunSpec
from scalemem.strategies import l2p
from scalemem.strategies.context import Context, Costs


def batch_loss(ctx: Context, trained: Any, memory: Any, tokens: jax.Array, weights: jax.Array) -> jax.Array:
    """strength times sum_t c_t (1 - cos(q_t, key of the task)), over scored positions: the only slope that keys have.

    The task is the number of the stage among those that train prompts, and is known in training alone; after it each position reads the expert whose
    key is nearest among the tasks learned. Prompts are keys and values of attention themselves; the source puts them before their projection.

    Source: Wang et al. 2022, by shared/literature/forgetting.md 4.22 (brief) and row 198 of catalogue.tsv.
    """
    return l2p.batch_loss(ctx, trained, memory, tokens, weights)


def costs(run: RunSpec) -> Costs:
    """As `l2p.extra`: a general prompt in half of the blocks and, masked, all experts in half of them (a middle block has both)."""
    stage = run.stages[0]
    assert stage.strategy is not None
    half = prompts.general(run.model.n_layers)
    return l2p.extra(run, stage.strategy.length * (1 + stage.strategy.pool), half)
