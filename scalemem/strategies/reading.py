"""Which old items a strategy reads, what the stage's objective scores of them, and the mean gradient on them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from scalemem.spec import RunSpec, StrategySpec
from scalemem.strategies.context import Context

ROWS = 16  # sequences a pass


def spec(ctx: Context) -> StrategySpec:
    """The strategy of the stage; its strength, first and decay may be placeholders: they are in `ctx.k`."""
    found = ctx.run.stages[0].strategy
    assert found is not None
    return found


def per_task(strategy: StrategySpec) -> int:
    """Old items of each of the tasks before."""
    return max(1, strategy.items // strategy.tasks)


def numbers(ctx: Context) -> Int[Array, "tasks M"]:
    """Item numbers of what a strategy reads: item m of task j is first + j stride + m every; M = items / tasks, rounded down.

    `every` and `stride` are those of the spec; a stride of 0 is M every, so that tasks are neighbours, as they are in a split stream. Where only
    some of the tasks were learned (`seen`), they are repeated in the places of the others.
    """
    s = spec(ctx)
    m = per_task(s)
    task = jnp.arange(s.tasks) % seen(ctx)
    return ctx.k["strategy_first"] + task[:, None] * (s.stride or m * s.every) + jnp.arange(m) * s.every


def seen(ctx: Context) -> Any:
    """How many of the tasks before were learned; may be traced."""
    room, given = spec(ctx).tasks, ctx.k["strategy_seen"]
    return jnp.where(given > 0, jnp.minimum(given, room), room)


def tasks(strategy: StrategySpec) -> int:
    """How many of the tasks before were learned, of a spec with all its numbers."""
    return min(strategy.tasks, strategy.seen or strategy.tasks)


def stored(strategy: StrategySpec) -> int:
    """Old items of all the tasks that were learned."""
    return per_task(strategy) * tasks(strategy)


def scored(ctx: Context, tokens: Int[Array, "B S"]) -> tuple[Bool[Array, "B T V"], Float[Array, "B T"]]:
    """What the stage's objective asks of each position: among which tokens it tells the target, and with which weight.

    An objective that is a weighted cross-entropy over some of the logits has, at equal logits, the gradient weight (1 / K - [the target]) on the
    K tokens that it tells apart, and 0 on the others. So this reads any such objective without knowing it.

    Returns:
      support [B, S - 1, V], False everywhere where a position is not scored; and weight [B, S - 1], the factor of its nats.
    """
    shape = (len(tokens), tokens.shape[1] - 1, ctx.run.model.vocab_size)
    slope = jax.grad(lambda z: ctx.loss_sum(lambda logits, _: logits, z, tokens, jnp.ones(len(tokens))))(jnp.zeros(shape))
    support = slope != 0
    return support, slope.max(-1) * support.sum(-1)


def picked(logits: Float[Array, "*L V"], support: Bool[Array, "*L V"], temperature: float = 1.0) -> Float[Array, "*L V"]:
    """Log-softmax over the tokens of the support; -1e30 elsewhere, also where there is no support."""
    return jnp.where(support, jax.nn.log_softmax(jnp.where(support, logits / temperature, -1e30), -1), -1e30)


def mean_gradient(ctx: Context, trained: Any, tokens: Int[Array, "M S"], count: Any = None) -> tuple[Float[Array, ""], Any]:
    """Mean loss a scored token on the first `count` sequences (default: all), and its gradient in float32; at most ROWS sequences at a time.

    Only as many passes are made as `count`, which may be traced, needs.
    """
    count = len(tokens) if count is None else count
    rows = min(ROWS, len(tokens))
    padded = jnp.pad(tokens, ((0, -len(tokens) % rows), (0, 0)))

    def add(i, carry):
        some = lax.dynamic_slice_in_dim(padded, i * rows, rows)
        on = (i * rows + jnp.arange(rows) < count).astype(jnp.float32)
        nats, grads = jax.value_and_grad(ctx.loss_sum, 1)(ctx.apply, trained, some, on)
        return carry[0] + nats, jax.tree.map(lambda a, g: a + g.astype(jnp.float32), carry[1], grads)

    zero = (jnp.float32(0), jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), trained))
    total = lax.fori_loop(0, -(-count // rows), add, zero)
    return jax.tree.map(lambda x: x / (count * (tokens.shape[1] - 1)), total)


def share(run: RunSpec, sequences: float) -> float:
    """Training steps on so many sequences over those of the whole stage: exposures times its items."""
    stage = run.stages[0]
    return sequences / max(1, stage.exposures * stage.data.n_items)
