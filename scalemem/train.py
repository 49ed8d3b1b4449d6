"""The training of ONE run: its state, its step and its loop. No vmap, mesh, file or process here; `pack.py` makes many of it.

Everything that differs between the runs of one shape is traced (`knobs`): the number of items, the batch, the rates, the length,
the seed. Everything that fixes the program is static (`Shape`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from scalemem import data, models, objectives, optimizers
from scalemem.data.order import key, permutation
from scalemem.spec import RunSpec

Knobs = dict[str, Any]

MATERIALISE_TOKENS = 1 << 26  # a data set up to this many tokens is drawn once per call, a larger one item by item
MICRO_BATCH_TOKENS = 512  # about as many as keep activations in a CPU's second-level cache


class State(NamedTuple):
    """What training carries: all of it is checkpointed, and nothing else is needed to go on."""

    params: Any
    optimizer: Any
    segment: jax.Array  # segments completed; an epoch has `Stage.segments` of them, one by default
    loss_nats: jax.Array  # mean training loss a scored token over the last segment, taken before each update
    diverged: jax.Array  # some step's loss was not finite; training stopped there


@dataclass(frozen=True)
class Shape:
    """What fixes the compiled program. Runs that share it share one compilation."""

    run: RunSpec  # with every traced number replaced by a placeholder
    slots: int  # items that an epoch's permutation has room for; the largest n_items of the sweep, rounded up to a power of 2
    micro_batch: int  # rows a forward pass

    @staticmethod
    def of(run: RunSpec, slots: int = 0, micro_batch: int = 0) -> Shape:
        """The shape of a run, with room for `slots` items and `micro_batch` rows a pass (0: about MICRO_BATCH_TOKENS tokens)."""
        stage = run.stages[0]
        rows = micro_batch or max(1, MICRO_BATCH_TOKENS // (run.model.seq_len - 1))
        return Shape(_placeholder(run), 1 << (max(slots, stage.data.n_items) - 1).bit_length(), rows)


def _placeholder(run: RunSpec) -> RunSpec:
    stage = run.stages[0]
    optimizer = dataclasses.replace(stage.optimizer, **{k: 0.5 if k in ("peak_lr", "eps") else 0 for k in optimizers.KNOBS})
    least = max(stage.segments, stage.data.canaries.planted_items if stage.data.canaries else 1)  # that a run of these may have
    bare = dataclasses.replace(stage, data=dataclasses.replace(stage.data, n_items=least), optimizer=optimizer, exposures=0, batch_size=1)
    return dataclasses.replace(run, stages=(bare,), seed=0)


def knobs(run: RunSpec) -> Knobs:
    """The traced numbers of a run."""
    stage = run.stages[0]
    return {"seed": run.seed, "n_items": stage.data.n_items, "batch_size": stage.batch_size, "exposures": stage.exposures,
            **optimizers.knobs(stage.optimizer)}


def start(shape: Shape, k: Knobs) -> State:
    """The state before the first step."""
    params = models.init(shape.run.model, key(k["seed"], "init"))
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)  # moments stay in float32, whatever the weights are kept in
    opt = optimizers.direction(shape.run.stages[0].optimizer.name, k).init(wide)
    return State(params, opt, jnp.int32(0), jnp.float32(jnp.nan), jnp.bool_(False))


def advance(shape: Shape, state: State, k: Knobs, segments: Any) -> State:
    """Train for so many more segments, but not beyond `k["exposures"]` epochs, and not at all once diverged."""
    stage, model = shape.run.stages[0], shape.run.model
    apply, loss_sum = models.apply(model), objectives.get(stage.objective)
    data_key, order_key = key(k["seed"], "data"), key(k["seed"], "order")
    optimizer = optimizers.direction(stage.optimizer.name, k)
    n, batch, rows = k["n_items"], k["batch_size"], shape.micro_batch
    steps = -(-n // batch)

    if shape.slots * model.seq_len <= MATERIALISE_TOKENS:
        table = data.items(shape.run, data_key, jnp.arange(shape.slots))
        fetch = lambda index: table[index]  # noqa: E731
    else:
        fetch = lambda index: data.items(shape.run, data_key, index)  # noqa: E731

    def micro(i, carry, params, order, first, count):
        """Add the gradient of micro-batch i of a step whose rows are order[first : first + count]."""
        row = i * rows + jnp.arange(rows)
        tokens = fetch(order[jnp.minimum(first + row, n - 1)])
        nats, grads = jax.value_and_grad(loss_sum, 1)(apply, params, tokens, (row < count).astype(jnp.float32))
        return carry[0] + nats, jax.tree.map(lambda a, g: a + g.astype(jnp.float32), carry[1], grads)

    def step(s, carry, order, epoch):
        params, opt, nats = carry
        first = s * batch
        count = jnp.minimum(batch, n - first)
        zero = (jnp.float32(0), jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params))
        total, grads = lax.fori_loop(0, -(-count // rows), lambda i, c: micro(i, c, params, order, first, count), zero)
        grads = jax.tree.map(lambda g: g / (count * (model.seq_len - 1)), grads)
        update, opt = optimizer.update(grads, opt, params)
        lr = optimizers.rate(stage.optimizer.schedule, k, epoch * steps + s, k["exposures"] * steps)
        params = jax.tree.map(lambda p, u: (p - lr * u).astype(p.dtype), params, update)
        return params, opt, nats + total

    def one_segment(st: State) -> State:
        epoch, part = st.segment // stage.segments, st.segment % stage.segments
        order = permutation(shape.run, jax.random.fold_in(order_key, epoch), shape.slots, n)
        first, last = _bound(steps, part, stage.segments), _bound(steps, part + 1, stage.segments)
        params, opt, nats = lax.fori_loop(
            first, last, lambda s, c: step(s, c, order, epoch), (st.params, st.optimizer, jnp.float32(0)))
        items = jnp.minimum(last * batch, n) - first * batch
        loss = nats / (items * (model.seq_len - 1))
        return State(params, opt, st.segment + 1, loss, ~jnp.isfinite(loss))

    until = jnp.minimum(state.segment + segments, k["exposures"] * stage.segments)
    return lax.while_loop(lambda st: (st.segment < until) & ~st.diverged, one_segment, state)


def _bound(steps: Any, part: Any, segments: int) -> Any:
    """floor(steps part / segments), in which no product overflows."""
    return steps // segments * part + steps % segments * part // segments
