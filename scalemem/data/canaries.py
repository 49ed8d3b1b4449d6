"""Canaries: sequences planted in a data set, a known number of times, and others of the same kind that never are.

random      tokens drawn independently and uniformly
structured  a random format of its own, then a filling of `word_length` tokens, each one of the first `words` of the vocabulary
passphrase  words drawn from a list of `words` words of `word_length` random tokens (a ghost sentence)
trap        a sequence of the background source at a temperature, so at a controlled perplexity
natural     a sequence of the background source itself; of a text, a chunk of its reference split
template    of odd number: a motif of `word_length` random tokens again and again, each time raised by 0 or 1 (drawn once), modulo the
            vocabulary, so that what follows can be worked out; of even number: a trap, in which it cannot

The planted copies are the first items of the data set, group after group; the order of the epoch (`order.permutation`) decides when
each is seen. A canary that a run does not include, by the draw of its seed or because `without` names it, leaves its items to the
background, and is one of the run's controls.
"""

from __future__ import annotations

import dataclasses
import functools
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from scalemem import quick
from scalemem.spec import CanarySpec, ModelSpec, OptimizerSpec, Probe, RunSpec, SpecError, Stage

HELD_OUT = 1 << 29  # items from here on are never trained on: fresh samples of the source, or a text's held-out chunks
BACKGROUND = HELD_OUT + (1 << 27)  # held out, and no probe stands in them
REFERENCE = 1 << 30  # items from here on are of a text's reference split


class Layout(NamedTuple):
    """What each planted item is a copy of; arrays over the planted items."""

    canary: np.ndarray  # its number
    copy: np.ndarray  # which of its copies
    copies: np.ndarray  # how many there are


class Probes(NamedTuple):
    """The canaries of a run and its controls, as sequences to be measured."""

    tokens: jax.Array  # int32 [C, S]: the canary at its offset in a held-out background sequence
    first: int  # position of its first token
    length: int  # its tokens
    group: np.ndarray  # int [C], -1 for a control
    planted: np.ndarray  # bool [C]
    copies: np.ndarray  # int [C], 0 where not planted
    temperature: np.ndarray  # float [C]
    first_step: np.ndarray  # int [C]: step of the first epoch that trains on its first copy; -1 where not planted
    last_step: np.ndarray  # and on its last
    canary: np.ndarray  # int [C]: its number

    def columns(self) -> dict[str, np.ndarray]:
        """What is known of each canary, as columns of a table."""
        return {name: getattr(self, name) for name in ("canary", "group", "planted", "copies", "temperature", "first_step", "last_step")}


@functools.lru_cache(maxsize=256)
def layout(spec: CanarySpec) -> Layout:
    """Which canary each planted item is a copy of.

    >>> layout(CanarySpec(per_group=1, groups=2)).canary.tolist()
    [0, 1, 1]
    """
    copies = np.repeat(spec.copies_by_group, spec.per_group)
    canary = np.repeat(np.arange(len(copies)), copies)
    return Layout(canary, np.concatenate([np.arange(c) for c in copies]), copies[canary])


def temperatures(spec: CanarySpec) -> np.ndarray:
    """The temperature of every canary and control, float32 [C]: even in log from `coldest` to `hottest` within a group."""
    def ladder(count: int) -> np.ndarray:
        return np.geomspace(spec.coldest, spec.hottest, count) if count > 1 else np.full(count, (spec.coldest * spec.hottest) ** 0.5)

    return np.concatenate([np.tile(ladder(spec.per_group), spec.groups), ladder(spec.controls)]).astype(np.float32)


def contents(run: RunSpec, generator: ModuleType, key: jax.Array, canary: Int[Array, " B"]) -> Int[Array, "B L"]:
    """The tokens of canaries by number: a function of (key, number), and of the data set's language where they are shared."""
    spec, model = run.stages[0].data.canaries, run.model
    assert spec is not None
    language = jax.random.key(run.stages[0].data.language, impl="threefry2x32")
    own = jax.random.fold_in(language if spec.shared else key, 0x43414E41)
    length = spec.length or model.seq_len
    keys = jax.vmap(lambda c: jax.random.fold_in(own, c))(canary)

    def uniform(name: int, shape: tuple[int, ...], high: int) -> jax.Array:
        return jax.vmap(lambda k: jax.random.randint(jax.random.fold_in(k, name), shape, 0, high, jnp.int32))(keys)

    if spec.kind == "random":
        return uniform(0, (length,), model.vocab_size)
    if spec.kind == "structured":
        filling = uniform(1, (spec.word_length,), min(spec.words, model.vocab_size))
        return jnp.concatenate([uniform(0, (length - spec.word_length,), model.vocab_size), filling], 1)
    if spec.kind == "passphrase":
        words = jax.random.randint(jax.random.fold_in(language, 0x574F5244), (spec.words, spec.word_length), 0, model.vocab_size, jnp.int32)
        return words[uniform(0, (-(-length // spec.word_length),), spec.words)].reshape(len(canary), -1)[:, :length]
    if spec.kind in ("trap", "template"):
        traps = generator.tempered(run, own, REFERENCE + canary, jnp.asarray(temperatures(spec))[canary])[:, :length]
        if spec.kind == "trap":
            return traps
        motif, turn = uniform(0, (spec.word_length,), model.vocab_size), jnp.arange(length) // spec.word_length
        repeated = (motif[:, jnp.arange(length) % spec.word_length] + uniform(1, (1,), 2) * turn) % model.vocab_size
        return jnp.where(canary[:, None] % 2 == 1, repeated, traps)
    return generator.items(run, own, REFERENCE + canary)[:, :length]


def included(run: RunSpec, key: jax.Array, canary: Int[Array, " B"]) -> jax.Array:
    """Whether a run of this key plants each of these canaries, bool [B]; never a control, and none that is left out by its number."""
    spec = run.stages[0].data.canaries
    assert spec is not None
    planted = (canary < spec.per_group * spec.groups) & (_draw(key, canary) < spec.include)
    return planted & ~jnp.isin(canary, jnp.asarray(spec.left_out)) if spec.without else planted


def _draw(key: jax.Array, canary: Int[Array, " B"]) -> jax.Array:
    return jax.vmap(lambda c: jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, 0x494E434C), c)))(canary)


def overlay(run: RunSpec, generator: ModuleType, key: jax.Array, index: Int[Array, " B"], background: Int[Array, "B S"]) -> Int[Array, "B S"]:
    """Background items with the canaries in their places; the arguments of `items`, and what it gives without canaries."""
    spec = run.stages[0].data.canaries
    assert spec is not None
    canary = jnp.asarray(layout(spec).canary, jnp.int32)[jnp.clip(index, 0, spec.planted_items - 1)]
    here = (index >= 0) & (index < spec.planted_items) & included(run, key, canary)
    length = spec.length or run.model.seq_len
    if spec.offset < 0:
        room = run.model.seq_len - length + 1
        offset = jax.vmap(lambda i: jax.random.randint(jax.random.fold_in(jax.random.fold_in(key, 0x4F464653), i), (), 0, room))(index)
    else:
        offset = jnp.full(index.shape, spec.offset)
    return jnp.where(here[:, None], _placed(background, contents(run, generator, key, canary), offset), background)


def _placed(background: Int[Array, "B S"], content: Int[Array, "B L"], offset: Int[Array, " B"]) -> Int[Array, "B S"]:
    at = jnp.arange(background.shape[1])[None, :] - offset[:, None]
    inside = (at >= 0) & (at < content.shape[1])
    return jnp.where(inside, jnp.take_along_axis(content, jnp.clip(at, 0, content.shape[1] - 1), 1), background)


def probes(run: RunSpec, data_key: jax.Array | None = None) -> Probes:
    """Every canary of a run, then its controls, each in a background sequence that no run trains on.

    Args:
      run: with canaries in its first stage.
      data_key: the key of its data set.
    Raises:
      SpecError: a run without canaries.
    """
    del data_key  # of a run there is one: it follows from the seed
    return _probes(run)


@functools.lru_cache(maxsize=64)
def _probes(run: RunSpec) -> Probes:
    from scalemem.data import order

    stage, spec = run.stages[0], require(run)
    slots = 1 << (stage.data.n_items - 1).bit_length()
    quickly = quick.worth(0.0)
    tokens, draw = _program(_bare(run), quickly and exact(run))(order.key(run.seed, "data"))
    seen = _order_program(_bare(run), slots, quickly)(order.key(run.seed, "order"), stage.data.n_items)
    count = spec.per_group * spec.groups
    planted = (np.asarray(draw) < np.float32(spec.include)) & (np.arange(len(tokens)) < count) & ~np.isin(np.arange(len(tokens)), spec.left_out)
    group = np.concatenate([np.repeat(np.arange(spec.groups), spec.per_group), np.full(spec.controls, -1)])
    copies = np.where(planted, np.append(spec.copies_by_group, 0)[group], 0)
    step = np.empty(stage.data.n_items, int)
    step[np.asarray(seen)[: stage.data.n_items]] = np.arange(stage.data.n_items) // stage.batch_size
    laid = layout(spec).canary
    first, last = np.full(len(planted), 1 << 60), np.full(len(planted), -1)
    np.minimum.at(first[:count], laid, step[: len(laid)])
    np.maximum.at(last[:count], laid, step[: len(laid)])
    return Probes(tokens, max(spec.offset, 0), spec.length or run.model.seq_len, group, planted, copies, temperatures(spec),
                  np.where(planted, first, -1), np.where(planted, last, -1), np.arange(len(planted)))


def exact(run: RunSpec) -> bool:
    """Whether items are drawn with integers alone, and so are the same however a program that draws them is compiled."""
    source = run.stages[0].data
    return source.generator in ("uniform", "zipf", "markov") and (source.canaries is None or source.canaries.kind not in ("trap", "template"))


def _bare(run: RunSpec) -> RunSpec:
    """A run without what its probes' tokens and its order do not depend on: few programs to compile."""
    stage, spec, model = run.stages[0], require(run), run.model
    least = ModelSpec(d_model=1, n_layers=0, n_heads=1, vocab_size=model.vocab_size, seq_len=model.seq_len)
    same = dataclasses.replace(stage.data, n_items=spec.planted_items, canaries=dataclasses.replace(spec, include=1.0, without=""))
    bare = Stage(data=same, optimizer=OptimizerSpec(peak_lr=1.0), exposures=0, batch_size=1, order=stage.order)
    return RunSpec(model=least, stages=(bare,), probes=(Probe("probes"),))


@functools.lru_cache(maxsize=64)
def _program(run: RunSpec, quickly: bool):
    """Data key -> the probes' tokens, and what `included` draws for each: one program for all seeds, sizes and numbers of items."""
    from scalemem import data

    spec = require(run)
    generator = data.get(run.stages[0].data.generator)

    def made(data_key: jax.Array):
        number = jnp.arange(spec.per_group * spec.groups + spec.controls)
        background = generator.items(run, data_key, HELD_OUT + number)
        tokens = _placed(background, contents(run, generator, data_key, number), jnp.full(number.shape, max(spec.offset, 0)))
        return tokens, _draw(data_key, number)

    return jax.jit(made, compiler_options=quick.options(quickly))


@functools.lru_cache(maxsize=64)
def _order_program(run: RunSpec, slots: int, quickly: bool):
    """(order key, number of items) -> the first epoch's order."""
    from scalemem.data import order

    return jax.jit(lambda order_key, n_items: order.permutation(run, jax.random.fold_in(order_key, 0), slots, n_items),
                   compiler_options=quick.options(quickly))


def require(run: RunSpec) -> CanarySpec:
    """The canaries of a run; SpecError if it has none."""
    found = run.stages[0].data.canaries
    if found is None:
        raise SpecError("data.canaries = None: must be a CanarySpec for a measure of planted sequences; plant some, or take another measure")
    return found
