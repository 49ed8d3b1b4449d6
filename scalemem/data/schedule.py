"""Which item stands in which row of a batch: the epoch's own, an old one that is replayed, or one that is injected at its step."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from scalemem.spec import InjectSpec, ReplaySpec, RunSpec, SpecError

Knobs = dict[str, Any]
REPLAY = 0x5245504C  # folded into the order's key


class Plan(NamedTuple):
    """What does not depend on the step, made once before the loop."""

    encounters: Any  # steps of all encounters, ascending, and which they are; () without injection
    ages: Any  # cumulative weights of the pool's blocks, the last learned first; () without replay


def knobs(stage: Any) -> Knobs:
    """The traced numbers of a stage's replay and injection."""
    found: Knobs = {}
    if stage.replay:
        r: ReplaySpec = stage.replay
        found |= {"replay_fraction": r.fraction, "replay_first": r.first, "replay_items": r.n_items, "replay_blocks": r.blocks,
                  "replay_exponent": r.exponent, "replay_every": r.every}
    if stage.inject:
        i: InjectSpec = stage.inject
        found |= {"inject_first": i.first, "inject_start": i.start, "inject_interval": i.interval, "inject_growth": i.growth,
                  "inject_stagger": i.stagger, "inject_views": i.views}
    return found


def encounter_steps(n_items: int, times: int, start: Any, interval: Any, growth: Any, stagger: Any, xp: Any = jnp, views: Any = 1) -> Any:
    """Steps [n_items, times] at which item f is met the m-th time: start + floor(stagger f + interval (views floor(m / views))^growth), m from 0.

    >>> encounter_steps(2, 3, 5, 10.0, 1.0, 1.0, np).tolist()
    [[5, 15, 25], [6, 16, 26]]
    >>> encounter_steps(1, 4, 5, 10.0, 1.0, 1.0, np, views=2).tolist()  # two at once, half as often
    [[5, 5, 25, 25]]

    Source: views are those of a view batch, shared/literature/forgetting.md 4.8: as many encounters in all, `views` of them in one batch, and an
    interval `views` times as long. With `paraphrase` they are different sentences of a fact.
    """
    f, m = xp.arange(n_items, dtype=xp.float32)[:, None], (xp.arange(times) // views * views).astype(xp.float32)[None]
    later = xp.where(m > 0, xp.float32(interval) * xp.maximum(m, 1) ** xp.float32(growth), 0)
    return start + xp.floor(xp.float32(stagger) * f + later).astype(xp.int32)


def plan(run: RunSpec, k: Knobs) -> Plan:
    """The plan of a stage's rows.

    Args:
      run: its only stage is the one at hand.
      k: its traced numbers.
    """
    spec, encounters = run.stages[0].inject, ()
    if spec:
        at = encounter_steps(spec.n_items, spec.times, k["inject_start"], k["inject_interval"], k["inject_growth"], k["inject_stagger"],
                             views=k["inject_views"]).ravel()
        order = jnp.argsort(at)
        encounters = (at[order], order)
    return Plan(encounters, _cumulative(run.stages[0].replay, k) if run.stages[0].replay else ())


def _cumulative(replay: ReplaySpec, k: Knobs, weights: Any = None) -> Any:
    """Cumulative weights of the pool's blocks, the one that was learned last first: as the law says, or given in the order of learning."""
    age = jnp.arange(1, replay.blocks + 1, dtype=jnp.float32)
    if weights is not None:
        law = weights[jnp.clip(k["replay_blocks"] - 1 - jnp.arange(replay.blocks), 0)]
    else:
        laws = {"uniform": lambda: jnp.ones_like(age), "power": lambda: age ** -k["replay_exponent"],
                "exponential": lambda: jnp.exp(-(age - 1) / k["replay_exponent"]), "recent": lambda: (age == 1).astype(jnp.float32)}
        law = laws[replay.law]()
    return jnp.cumsum(jnp.where(age <= k["replay_blocks"], law, 0))


def weighted(made: Plan, run: RunSpec, k: Knobs, weights: Any) -> Plan:
    """A plan whose blocks are drawn from in proportion to `weights`, in the order in which they were learned."""
    return made._replace(ages=_cumulative(run.stages[0].replay, k, weights)) if run.stages[0].replay else made


def items(run: RunSpec, made: Plan, k: Knobs, key: jax.Array, step: Any, row: Int[Array, " R"], own: Int[Array, " R"]) -> Int[Array, " R"]:
    """Item numbers of some rows of a step's batch.

    Args:
      run, made, k: the stage, its plan and its numbers.
      key: of the order of this stage.
      step: of the stage, from 0.
      row: places in the batch, from 0.
      own: the epoch's own items of these rows.
    Returns:
      own, but with probability replay_fraction an item of the pool, and in the first rows the items that are injected at this step.
    """
    stage, number = run.stages[0], own
    if stage.replay:
        base = jax.random.fold_in(jax.random.fold_in(key, REPLAY), step)
        draw = jax.vmap(lambda r: jax.random.bits(jax.random.fold_in(base, r), (3,)))(row)
        share = (draw[:, :2] >> 8).astype(jnp.float32) * 2.0**-24
        age = jnp.searchsorted(made.ages, share[:, 1] * made.ages[-1], side="right")
        size = k["replay_items"] // k["replay_blocks"]
        block = k["replay_blocks"] - 1 - jnp.minimum(age, k["replay_blocks"] - 1)
        old = k["replay_first"] + (block * size + (draw[:, 2] % size.astype(jnp.uint32)).astype(jnp.int32)) * k["replay_every"]
        number = jnp.where(share[:, 0] < k["replay_fraction"], old, number)
    if stage.inject:
        at, which = made.encounters
        begin, end = jnp.searchsorted(at, step, side="left"), jnp.searchsorted(at, step, side="right")
        entry = which[jnp.minimum(begin + row, len(at) - 1)]
        fact, time = entry // stage.inject.times, entry % stage.inject.times
        sentence = time % (stage.data.variants - 1) if stage.inject.paraphrase else 0
        number = jnp.where(row < end - begin, k["inject_first"] + fact * stage.data.variants + sentence, number)
    return number


def check(run: RunSpec, steps: int) -> None:
    """Raises SpecError, in one line, for injections that do not fit into their batches or into the steps of the stage."""
    stage = run.stages[0]
    if not stage.inject:
        return
    spec = stage.inject
    at = encounter_steps(spec.n_items, spec.times, spec.start, spec.interval, spec.growth, spec.stagger, np, spec.views)
    if at.max() >= steps:
        raise SpecError(f"inject.times = {spec.times}: the last encounter is at step {at.max()} of a stage of {steps} steps; must be before its "
                        "end; inject less often, sooner, or train longer")
    most = int(np.bincount(at.ravel() - at.min()).max())
    if most > stage.batch_size:
        raise SpecError(f"inject.n_items = {spec.n_items}: {most} encounters at one step, in batches of {stage.batch_size}; must be at most a batch; "
                        "raise the stagger or the batch")
