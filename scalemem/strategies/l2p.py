"""Learning to prompt: of a pool of prompts each position reads the nearest by their keys, and the keys are drawn to what asked for them."""

from __future__ import annotations

from typing import Any

import jax

from scalemem import accounting, trainable
from scalemem.models import prompts
from scalemem.spec import RunSpec
from scalemem.strategies import reading
from scalemem.strategies.context import Context, Costs


def batch_loss(ctx: Context, trained: Any, memory: Any, tokens: jax.Array, weights: jax.Array) -> jax.Array:
    """strength times sum_t c_t sum_(m chosen at t) (1 - cos(q_t, key_m)), over scored positions: the only slope that keys have.

    c_t is the objective's weight of a position. The source's factor is .5, from memory, unverified. What is read, and how it is chosen, is in
    `models.prompts`; the head is not trained.

    Source: Wang et al. 2022, by shared/literature/forgetting.md 4.22 (brief) and row 20 of catalogue.tsv.
    """
    del memory
    params = ctx.weights(trained)
    asked = prompts.query(ctx.run.model, params, tokens[:, :-1])
    far = (prompts.weights(params["prompts"], asked) * (1 - prompts.cosine(asked, trained["keys"]))).sum(-1)
    return ctx.k["strategy_strength"] * ((far * reading.scored(ctx, tokens)[1]).sum(-1) * weights).sum()


def costs(run: RunSpec) -> Costs:
    """`extra`, and once a step the pass of the whole pool through the blocks."""
    stage = run.stages[0]
    assert stage.strategy is not None
    pool = stage.strategy.pool * stage.strategy.length
    return extra(run, pool, run.model.n_layers, pool / stage.batch_size / (run.model.seq_len - 1))


def extra(run: RunSpec, read: int, layers: int, passed: float = 0.0) -> Costs:
    """What prompts cost beside plain training: the query's forward pass, a third of a step; attention to `read` more places in so many blocks.

    Each position pays 12 d for each such place and block, as it does for one of the text. Places that are masked count, for they are computed. That
    the frozen weights need no gradient (a third of a step) is not taken off, as it is not for adapters. The pool is what is stored.

    Args:
      run: its only stage trains prompts.
      read: prompt tokens that a position's attention has beside those of the text, in a block.
      layers: blocks that have them.
      passed: prompt tokens that pass through the blocks, over those of the batch.
    """
    stage = run.stages[0]
    positions = stage.exposures * stage.data.n_items * (run.model.seq_len - 1)
    one = accounting.stage_flops(run.model, stage) / max(1, positions)
    more = 12 * layers * read * run.model.d_model / one if positions else 0.0
    return Costs(1 / 3 + more + passed, trainable.n_trained(run.model, stage))
