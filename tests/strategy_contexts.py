"""Contexts for the tests of strategies: functions of a few weights in the place of models, and items that are rows of a table."""

import dataclasses

import jax
import jax.numpy as jnp
from conftest import make_run

from scalemem import objectives
from scalemem.spec import ModelSpec, StrategySpec
from scalemem.strategies import Context


def bigram(trained, tokens):
    """Logits of the next token: the row of a matrix that the last token names."""
    return trained["w"][tokens]


def make_context(name="ewc", table=None, *, loss_sum=None, objective="next_token", vocab=3, strategy=None):
    """A stage with a strategy, whose item i is row i of `table` [N, S]."""
    table = jnp.zeros((1, 2), jnp.int32) if table is None else jnp.asarray(table)
    model = ModelSpec(d_model=4, n_layers=0, n_heads=1, vocab_size=vocab, seq_len=table.shape[1])
    spec = StrategySpec(name, **{"items": len(table), **(strategy or {})})
    run = make_run(model, n_items=len(table), batch_size=min(2, len(table)), objective=objective)
    run = dataclasses.replace(run, stages=(dataclasses.replace(run.stages[0], strategy=spec),))
    numbers = {"strategy_strength": spec.strength, "strategy_first": spec.first, "strategy_items": spec.items, "strategy_decay": spec.decay,
               "strategy_seen": spec.seen,
               "stage": 1, "first": 0, "n_items": len(table), "batch_size": 2, "seed": 0, "exposures": 1}
    return Context(run, bigram, loss_sum or objectives.get(objective), lambda index: table[index], numbers, jax.random.key(0))
