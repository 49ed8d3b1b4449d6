"""REMIND: lower layers stay as they are, and what they made of old items is kept, product-quantised, and replayed into the layers above."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from scalemem import accounting
from scalemem.models import parts
from scalemem.spec import ModelSpec, RunSpec, SpecError
from scalemem.strategies import reading
from scalemem.strategies.context import Context, Costs

KINDS = ("pq", "float")  # features as codes, or as they are, to tell what quantising costs
ROUNDS = 16  # of Lloyd's algorithm
FLOAT_BITS = 32
_FIT, _DRAW = range(2)  # folded into the key


def layer(model: ModelSpec) -> int:
    """The layer whose features are kept, and below which nothing is trained: the middle one, rounded down; 0 is the embeddings."""
    return model.n_layers // 2


def fit(x: Float[Array, "N d"], entries: int, key: jax.Array) -> Float[Array, "K d"]:
    """Centres of k-means: `entries` rows drawn without replacement, then ROUNDS rounds of Lloyd's algorithm; a centre without rows stays.

    >>> fit(jnp.array([[0.0], [1.0], [10.0], [11.0]]), 2, jax.random.key(0)).ravel().sort().tolist()
    [0.5, 10.5]
    """
    def round_(_, centres):
        member = jax.nn.one_hot(nearest(x, centres), entries)
        count = member.sum(0)[:, None]
        return jnp.where(count > 0, member.T @ x / jnp.maximum(count, 1), centres)

    return lax.fori_loop(0, ROUNDS, round_, x[jax.random.permutation(key, len(x))[:entries]])


def nearest(x: Float[Array, "*N d"], centres: Float[Array, "K d"]) -> Int[Array, "*N"]:
    """The number of the nearest centre; of equal ones the first."""
    return ((centres**2).sum(-1) - 2 * x @ centres.T).argmin(-1)


def encode(features: Float[Array, "*N D"], books: Float[Array, "C K d"]) -> Array:
    """Codes [*N, C], uint8: features are cut into C parts of d = D / C numbers, and of each part the number of its nearest entry is kept."""
    cut = jnp.moveaxis(features.reshape(*features.shape[:-1], len(books), -1), -2, 0)
    return jnp.moveaxis(jax.vmap(nearest)(cut, books), 0, -1).astype(jnp.uint8)


def decode(codes: Array, books: Float[Array, "C K d"]) -> Float[Array, "*N D"]:
    """The features that codes stand for."""
    found = jax.vmap(lambda code, book: book[code], (-1, 0), -2)(codes.astype(jnp.int32), books)
    return found.reshape(*codes.shape[:-1], -1)


def begin(ctx: Context, trained: Any, before: Any) -> dict[str, Any]:
    """Features of the old items [M, T, D] as codes, their tokens (of which the loss reads the targets alone), and the codebooks.

    The first stage with this strategy fits the codebooks, on the features of its old items; later ones keep them, and as the lower layers do not
    change either, an item that was encoded earlier has the same codes again. An mlp's features are at the last place alone.
    """
    spec, model = reading.spec(ctx), ctx.run.model
    tokens = ctx.fetch(reading.numbers(ctx).ravel())
    features = parts.lower(model, layer(model))(ctx.weights(trained), tokens[:, :-1]).astype(jnp.float32)
    features = features[:, -1:] if model.arch == "mlp" else features
    if spec.kind == "float":
        return {"tokens": tokens, "features": features}
    if before is not None:
        books = before["books"]
    else:
        cut = jnp.moveaxis(features.reshape(-1, spec.codebooks, model.d_model // spec.codebooks), 1, 0)
        keys = jax.random.split(jax.random.fold_in(ctx.key, _FIT), spec.codebooks)
        books = jax.vmap(lambda x, key: fit(x, spec.entries, key))(cut, keys)
    return {"tokens": tokens, "codes": encode(features, books), "books": books}


def batch_loss(ctx: Context, trained: Any, memory: Any, tokens: jax.Array, weights: jax.Array) -> jax.Array:
    """strength times the objective's loss of the upper layers on replayed features, one old item for each row of the batch, drawn with replacement.

    The draw is made from the bits of the weights and of the row: a new one at every step, and the same one if the step is made again. The source
    replays 50 features for each new item of a stream that is read once, and mixes features and crops images, which is not here.
    """
    rows = drawn(ctx, trained, tokens, len(memory["tokens"]))
    features = memory["features"][rows] if "features" in memory else decode(memory["codes"][rows], memory["books"])
    length = tokens.shape[1] - 1
    features = jnp.pad(features, ((0, 0), (length - features.shape[1], 0), (0, 0))).astype(jnp.dtype(ctx.run.model.compute_dtype))
    above = parts.upper(ctx.run.model, layer(ctx.run.model))
    return ctx.k["strategy_strength"] * ctx.loss_sum(lambda t, _: above(ctx.weights(t), features), trained, memory["tokens"][rows], weights)


def drawn(ctx: Context, trained: Any, tokens: Int[Array, "B S"], stored: int) -> Int[Array, " B"]:
    """Which stored item each row of a batch is joined by: from the row's tokens and the weights, not from what else is in the pass."""
    bits = jnp.uint32(0)
    for leaf in jax.tree.leaves(trained):
        bits = bits * 31 + lax.bitcast_convert_type(lax.stop_gradient(leaf).astype(jnp.float32), jnp.uint32).sum(dtype=jnp.uint32)
    key = jax.random.fold_in(jax.random.fold_in(ctx.key, _DRAW), bits)
    places = (2 * jnp.arange(tokens.shape[1], dtype=jnp.uint32) + 1) * jnp.uint32(0x9E3779B9)
    row = (tokens.astype(jnp.uint32) * places | 1).sum(-1, dtype=jnp.uint32)
    return jax.vmap(lambda own: jax.random.randint(jax.random.fold_in(key, own), (), 0, stored))(row)


def after(ctx: Context, old: Any, new: Any, memory: Any, grads: Any, step: Any) -> tuple[Any, Any]:
    """The lower layers stay to the bit as they were; with a tied head the token embedding, and so the head, too."""
    del grads, step
    frozen = layer(ctx.run.model)

    def keep(path, before, now):
        return before if parts.is_lower("/".join(str(getattr(part, "key", part)) for part in path), frozen) else now

    return jax.tree_util.tree_map_with_path(keep, old, new), memory


def stored_bits(run: RunSpec) -> float:
    """Bits of what is kept, beside which the same items as tokens take items S log2 V.

        items places (C log2 K, or 32 D)  +  32 K D of codebooks  +  items targets log2 V

    places: S - 1 positions, or one of an mlp; targets: those that the objective scores. With C = 4 codes of K = 16 a position takes 16 bits: more
    than a token does. So quantised features save storage only where inputs are larger than that, such as images.

    Source: Hayes et al. 2020, by shared/literature/forgetting.md 4.15: 32 codebooks of 256 entries, a byte each.
    """
    stage, model = run.stages[0], run.model
    spec = stage.strategy
    assert spec is not None
    items, width = reading.stored(spec), model.d_model
    places = 1 if model.arch == "mlp" else model.seq_len - 1
    targets = (1 if stage.objective.startswith("label") else model.seq_len - 1) * math.log2(model.vocab_size)
    if spec.kind == "float":
        return items * (places * FLOAT_BITS * width + targets)
    return items * (places * spec.codebooks * math.log2(spec.entries) + targets) + FLOAT_BITS * spec.entries * width


def costs(run: RunSpec) -> Costs:
    """A training step of the upper layers a row, and a forward pass of the old items once; `stored_bits`, and no tokens.

    That the lower layers need no backward pass is not taken off. Fitting the codebooks is not counted.
    """
    stage, model = run.stages[0], run.model
    assert stage.strategy is not None
    whole, d, above = accounting.stage_flops(model, stage), model.d_model, model.n_layers - layer(model)
    if model.arch == "mlp":
        upper = 6.0 * stage.exposures * stage.data.n_items * (min(above, model.n_layers - 1) * d * d + model.vocab_size * d)
    else:
        upper = accounting.stage_flops(dataclasses.replace(model, n_layers=above), stage)
    share = upper / whole if whole else 0.0
    return Costs(share + reading.share(run, reading.stored(stage.strategy) / 3), stored_bits=stored_bits(run))


def check(run: RunSpec, path: str) -> None:
    """Raises SpecError, in one line, where features cannot be cut, a codebook has more entries than items, or the stage trains parts."""
    stage, model = run.stages[0], run.model
    spec = stage.strategy
    assert spec is not None
    if stage.trains != "all":
        raise SpecError(f"{path}.trains = {stage.trains!r}: must be 'all' with the strategy remind, which leaves the lower layers alone itself; "
                        "change one of the two")
    if spec.kind != "float" and model.d_model % spec.codebooks:
        raise SpecError(f"{path}.strategy.codebooks = {spec.codebooks}: must divide model.d_model = {model.d_model}; change one of the two")
    items = reading.per_task(spec) * spec.tasks
    if spec.kind != "float" and items < spec.entries:
        raise SpecError(f"{path}.strategy.entries = {spec.entries}: must be at most the {items} old items; lower it, or raise strategy.items")
