"""The training of ONE run: its state, its step and its loop. No vmap, mesh, file or process here; `pack.py` makes many of it.

Everything that differs between the runs of one shape is traced (`knobs`): the number of items, the batch, the rates, the length,
the seed. Everything that fixes the program is static (`Shape`). A run is a list of stages; stages that share their statics share a program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from scalemem import data, models, objectives, optimizers, strategies, trainable
from scalemem.data import schedule
from scalemem.data.order import key, permutation
from scalemem.spec import ReplaySpec, RunSpec, Stage, at_stage
from scalemem.strategies.context import Context

Knobs = dict[str, Any]

MATERIALISE_TOKENS = 1 << 26  # a data set up to this many tokens is drawn once per call, a larger one item by item
MICRO_BATCH_TOKENS = 512  # about as many as keep activations in a CPU's second-level cache
FEW_STEPS = 64  # with so many segments an epoch, a call draws the items that it needs and not the data set
STAGE = 1 << 24  # an epoch's key is folded with its number, and stages are this far apart


class State(NamedTuple):
    """What training carries: all of it is checkpointed, and nothing else is needed to go on."""

    params: Any  # what the stage trains
    optimizer: Any
    segment: jax.Array  # segments of this stage completed; an epoch has `Stage.segments` of them, one by default
    loss_nats: jax.Array  # mean training loss a scored token over the last segment, taken before each update
    diverged: jax.Array  # some step's loss was not finite; training stopped there
    rest: Any = ()  # what the stage does not train (`trainable.split`)
    memory: Any = ()  # of the stage's strategy
    reference: Any = ()  # the weights at the start of this stage; () in the first


class Placement(NamedTuple):
    """How a step's arrays lie on devices: functions that give back what they are given, elsewhere. As XLA likes, by default."""

    rows: Callable[[Any], Any] = lambda tokens: tokens  # the rows of a forward pass [R, S]
    weights: Callable[[Any], Any] = lambda tree: tree  # what is as large as the weights: they, their gradients, the optimizer's moments


@dataclass(frozen=True)
class Shape:
    """What fixes the compiled program. Runs that share it share one compilation."""

    run: RunSpec  # with every traced number replaced by a placeholder
    slots: int  # items that an epoch's permutation has room for; the largest n_items of the sweep, rounded up to a power of 2
    micro_batch: int  # rows a forward pass
    later_slots: tuple[int, ...] = ()  # of the stages after the first
    remat: bool = False  # each block's activations are computed again in the backward pass, and not kept

    @staticmethod
    def of(run: RunSpec, slots: int = 0, micro_batch: int = 0, later_slots: tuple[int, ...] = (), remat: bool = False) -> Shape:
        """The shape of a run, with room for `slots` items and `micro_batch` rows a pass (0: about MICRO_BATCH_TOKENS tokens)."""
        rows = micro_batch or max(1, MICRO_BATCH_TOKENS // (run.model.seq_len - 1))
        wanted = (slots, *(later_slots or (0,) * len(run.stages)))
        first, *later = (_room(stage.data.n_items, n) for stage, n in zip(run.stages, wanted, strict=False))
        return Shape(_placeholder(run), first, rows, tuple(later), remat)

    def stage(self, i: int) -> Shape:
        """The shape of stage i alone; stages that differ in traced numbers only share it."""
        if len(self.run.stages) == 1:
            return self
        return Shape(at_stage(self.run, i), (self.slots, *self.later_slots)[i], self.micro_batch, remat=self.remat)


def _room(n_items: int, slots: int) -> int:
    return 1 << (max(slots, n_items) - 1).bit_length()


def _placeholder(run: RunSpec) -> RunSpec:
    return dataclasses.replace(run, stages=tuple(_bare(stage) for stage in run.stages), seed=0)


def _bare(stage: Stage) -> Stage:
    """A stage without its traced numbers."""
    optimizer = dataclasses.replace(stage.optimizer, **{k: 0.5 if k in ("peak_lr", "eps") else 0 for k in optimizers.KNOBS})
    least = max(stage.segments, stage.data.canaries.planted_items if stage.data.canaries else 1)  # that a run of these may have
    replay, inject, strategy = stage.replay, stage.inject, stage.strategy
    if replay:  # blocks: room for a power of two of them, and for some
        blocks = max(16, 1 << (replay.blocks - 1).bit_length())
        replay = ReplaySpec(fraction=0.0, n_items=blocks, law=replay.law, blocks=blocks)
    if inject:
        inject = dataclasses.replace(inject, first=0, start=0, interval=1.0, growth=1.0, stagger=0.0, views=1)
    if strategy:
        strategy = dataclasses.replace(strategy, strength=1.0, first=0, decay=1.0, seen=0)
    rank = max(8, 1 << (stage.rank - 1).bit_length()) if stage.trains == "lora" else 8
    return dataclasses.replace(
        stage, data=dataclasses.replace(stage.data, n_items=least, first=0), optimizer=optimizer, exposures=0, batch_size=1, replay=replay,
        inject=inject, strategy=strategy, rank=rank)


def knobs(run: RunSpec, i: int = 0) -> Knobs:
    """The traced numbers of a stage of a run."""
    stage = run.stages[i]
    found = {"seed": run.seed, "n_items": stage.data.n_items, "batch_size": stage.batch_size, "exposures": stage.exposures, "stage": i,
             "first": stage.data.first, **optimizers.knobs(stage.optimizer), **schedule.knobs(stage)}
    if stage.trains == "lora":
        found["rank"] = stage.rank
    if stage.strategy:
        found |= {f"strategy_{name}": getattr(stage.strategy, name) for name in ("strength", "first", "items", "decay", "seen")}
    return found


def start(shape: Shape, k: Knobs) -> State:
    """The state before the first step of the first stage."""
    return _begin(shape, models.init(shape.run.model, key(k["seed"], "init")), k, None)


def switch(before: Shape, shape: Shape, state: State, k_before: Knobs, k: Knobs, *, continued: bool = False, same: bool = False) -> State:
    """The state before the first step of a further stage.

    Args:
      before, shape: of the stage that ends and of the one that begins.
      state: at the end of the one.
      k_before, k: the numbers of both.
      continued: go on with the optimizer's moments.
      same: both have the same strategy, which is given its memory.
    """
    left = weights(before, state, k_before, ended=True)
    found = _begin(shape, left, k, state.memory if same else None)
    return found._replace(optimizer=state.optimizer if continued else found.optimizer, diverged=state.diverged, loss_nats=state.loss_nats,
                          reference=left)


def _begin(shape: Shape, params: Any, k: Knobs, memory: Any) -> State:
    stage = shape.run.stages[0]
    trained, rest = trainable.split(shape.run.model, stage, params, _key(k, "strategy"), k.get("rank", 1))
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), trained)  # moments stay in float32, whatever the weights are kept in
    opt = optimizers.direction(stage.optimizer.name, k).init(wide)
    strategy = strategies.of(shape.run)
    memory = strategy.begin(_context(shape, k, rest), trained, memory) if hasattr(strategy, "begin") else ()
    return State(trained, opt, jnp.int32(0), jnp.float32(jnp.nan), jnp.bool_(False), rest, memory)


def weights(shape: Shape, state: State, k: Knobs, *, ended: bool = False) -> Any:
    """The weights of the whole model, as they are in a stage or (`ended`) as its end leaves them."""
    strategy, trained = strategies.of(shape.run), state.params
    if ended and hasattr(strategy, "finish"):
        trained = strategy.finish(_context(shape, k, state.rest), trained, state.memory)
    return trainable.join(shape.run.stages[0], trained, state.rest)


def _key(k: Knobs, name: str) -> jax.Array:
    """The key of a purpose in a stage."""
    return jax.random.fold_in(key(k["seed"], name), k["stage"])


def _context(shape: Shape, k: Knobs, rest: Any) -> Context:
    """What the strategy of a stage sees."""
    stage, forward, data_key = shape.run.stages[0], models.apply(shape.run.model, remat=shape.remat), key(k["seed"], "data")
    joined = lambda trained: trainable.join(stage, trained, rest, training=True)  # noqa: E731
    return Context(shape.run, forward.after(joined, halves=stage.trains != "prompts"), objectives.get(stage.objective),
                   lambda index: data.items(shape.run, data_key, index), k, _key(k, "strategy"), joined)


def advance(shape: Shape, state: State, k: Knobs, segments: Any, placement: Placement = Placement()) -> State:  # noqa: B008
    """Train for so many more segments, but not beyond `k["exposures"]` epochs, and not at all once diverged.

    A step's gradient is summed over passes of `shape.micro_batch` rows, in float32 whatever the weights are kept or multiplied in.
    """
    stage, model = shape.run.stages[0], shape.run.model
    data_key, order_key = key(k["seed"], "data"), key(k["seed"], "order")
    optimizer, strategy = optimizers.direction(stage.optimizer.name, k), strategies.of(shape.run)
    ctx = _context(shape, k, state.rest)
    n, batch, rows = k["n_items"], k["batch_size"], shape.micro_batch
    steps = -(-n // batch)
    mixed = bool(stage.replay or stage.inject)
    if mixed:
        plan, mix_key = schedule.plan(shape.run, k), _key(k, "order")

    if shape.slots * model.seq_len <= MATERIALISE_TOKENS and not mixed and stage.segments < FEW_STEPS:
        table = data.items(shape.run, data_key, k["first"] + jnp.arange(shape.slots))
        fetch = lambda index: table[index]  # noqa: E731
    else:
        fetch = lambda index: data.items(shape.run, data_key, k["first"] + index)  # noqa: E731

    def drawn(memory):
        return schedule.weighted(plan, shape.run, k, strategy.replay_weights(ctx, memory)) if hasattr(strategy, "replay_weights") else plan

    def loss(trained, tokens, weight, memory):
        nats = ctx.loss_sum(ctx.apply, trained, tokens, weight)
        return nats + strategy.batch_loss(ctx, trained, memory, tokens, weight) if hasattr(strategy, "batch_loss") else nats

    def micro(i, carry, trained, memory, order, first, count, number):
        """Add the gradient of micro-batch i of a step whose rows are order[first : first + count]."""
        row = i * rows + jnp.arange(rows)
        own = order[jnp.minimum(first + row, n - 1)]
        tokens = ctx.fetch(schedule.items(shape.run, drawn(memory), k, mix_key, number, row, k["first"] + own)) if mixed else fetch(own)
        nats, grads = jax.value_and_grad(loss)(trained, placement.rows(tokens), (row < count).astype(jnp.float32), memory)
        return carry[0] + nats, placement.weights(jax.tree.map(lambda a, g: a + g.astype(jnp.float32), carry[1], grads))

    def step(s, carry, order, epoch):
        trained, opt, nats, memory = carry
        first, number = s * batch, epoch * steps + s
        count = jnp.minimum(batch, n - first)
        zero = (jnp.float32(0), placement.weights(jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), trained)))
        total, grads = lax.fori_loop(0, -(-count // rows), lambda i, c: micro(i, c, trained, memory, order, first, count, number), zero)
        grads = jax.tree.map(lambda g: g / (count * (model.seq_len - 1)), grads)
        direction = grads
        if hasattr(strategy, "penalty"):
            direction = jax.tree.map(jnp.add, direction, jax.grad(lambda t: strategy.penalty(ctx, t, memory))(trained))
        if hasattr(strategy, "project"):
            direction = strategy.project(ctx, trained, memory, direction, number)
        update, opt = optimizer.update(direction, opt, trained)
        update = trainable.masked(stage, update, state.rest)
        lr = optimizers.rate(stage.optimizer.schedule, k, number, k["exposures"] * steps)
        new = jax.tree.map(lambda p, u: (p - lr * u).astype(p.dtype), trained, update)
        if hasattr(strategy, "after"):
            new, memory = strategy.after(ctx, trained, new, memory, grads, number)
        return placement.weights(new), placement.weights(opt), nats + total, memory

    def ordered(epoch):
        return permutation(shape.run, jax.random.fold_in(order_key, epoch + k["stage"] * STAGE), shape.slots, n)

    def one_segment(st: State, order) -> State:
        epoch, part = st.segment // stage.segments, st.segment % stage.segments
        first, last = _bound(steps, part, stage.segments), _bound(steps, part + 1, stage.segments)
        trained, opt, nats, memory = lax.fori_loop(
            first, last, lambda s, c: step(s, c, order, epoch), (st.params, st.optimizer, jnp.float32(0), st.memory))
        items = jnp.minimum(last * batch, n) - first * batch
        nats = nats / (items * (model.seq_len - 1))
        return st._replace(params=trained, optimizer=opt, segment=st.segment + 1, loss_nats=nats, diverged=~jnp.isfinite(nats), memory=memory)

    def one_of_many(carry):
        """A segment of an epoch of several, whose order is made when the epoch begins."""
        st, order = carry
        epoch = st.segment // stage.segments
        order = lax.cond(st.segment % stage.segments == 0, lambda: ordered(epoch), lambda: order)
        return one_segment(st, order), order

    until = jnp.minimum(state.segment + segments, k["exposures"] * stage.segments)

    def going(st: State):
        return (st.segment < until) & ~st.diverged

    if stage.segments == 1:
        return lax.while_loop(going, lambda st: one_segment(st, ordered(st.segment)), state)
    return lax.while_loop(lambda c: going(c[0]), one_of_many, (state, ordered(state.segment // stage.segments)))[0]


def _bound(steps: Any, part: Any, segments: int) -> Any:
    """floor(steps part / segments), in which no product overflows."""
    return steps // segments * part + steps % segments * part // segments
