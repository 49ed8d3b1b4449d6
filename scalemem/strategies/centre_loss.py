"""Centre loss: the last token's logits are drawn to the centre of their class, where old classes have theirs from the old model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scalemem.spec import RunSpec
from scalemem.strategies import reading
from scalemem.strategies.context import Context, Costs

ALPHA = 0.5  # how fast a centre moves
ROWS = 16  # items of the stage that move the centres at each step


def features(ctx: Context, trained: Any, tokens: Int[Array, "B S"]) -> Float[Array, "B V"]:
    """The logits of the last token, less their mean: what a strategy can see of the last hidden state."""
    logits = ctx.apply(trained, tokens[:, :-1])[:, -1]
    return logits - logits.mean(-1, keepdims=True)


def centres(ctx: Context, trained: Any, tokens: Int[Array, "B S"]) -> tuple[Float[Array, "V V"], Float[Array, " V"]]:
    """Mean features of the items of each class, which is the last token; and how many items a class has. Classes without one are 0."""
    member = jax.nn.one_hot(tokens[:, -1], ctx.run.model.vocab_size)
    count = member.sum(0)
    return member.T @ features(ctx, trained, tokens) / jnp.maximum(count, 1)[:, None], count


def begin(ctx: Context, trained: Any, before: Any) -> Any:
    """The centres of the old items' classes; those of the stage before where it had this strategy."""
    return centres(ctx, trained, ctx.fetch(reading.numbers(ctx).ravel()))[0] if before is None else before


def batch_loss(ctx: Context, trained: Any, memory: Any, tokens: jax.Array, weights: jax.Array) -> jax.Array:
    """(strength / 2) sum_i ||f_i - c_(y_i)||^2 / V, and as often as a row has scored tokens, so that it stands beside a mean loss a row.

    V, the number of features, is left out by the source; a strength of 1e-3 to 1e-2 there is as much times V here.
    Source: Wen et al. 2016, by shared/literature/forgetting.md 4.14 [M], where f is a hidden layer.
    """
    far = ((features(ctx, trained, tokens) - memory[tokens[:, -1]]) ** 2).mean(-1)
    return ctx.k["strategy_strength"] / 2 * (far * weights).sum() * (tokens.shape[1] - 1)


def after(ctx: Context, old: Any, new: Any, memory: Any, grads: Any, step: Any) -> tuple[Any, Any]:
    """c_j <- c_j - alpha sum_{y_i = j} (c_j - f_i) / (1 + n_j), alpha = .5, over ROWS items of the stage, drawn with replacement.

    The source takes the items of the step; a strategy does not see them after it, and draws its own. Classes that the stage does not have stay.
    """
    del old, grads
    index = ctx.k["first"] + jax.random.randint(jax.random.fold_in(ctx.key, step), (ROWS,), 0, ctx.k["n_items"])
    mean, count = centres(ctx, new, ctx.fetch(index))
    return new, memory - ALPHA * (count / (1 + count))[:, None] * jnp.where(count[:, None] > 0, memory - mean, 0)


def costs(run: RunSpec) -> Costs:
    """A forward pass of the old items once and of ROWS items a step; V^2 numbers, the centres."""
    stage = run.stages[0]
    assert stage.strategy is not None
    steps = stage.exposures * -(-stage.data.n_items // stage.batch_size)
    forward = reading.stored(stage.strategy) + steps * ROWS
    return Costs(reading.share(run, forward / 3), run.model.vocab_size**2)


