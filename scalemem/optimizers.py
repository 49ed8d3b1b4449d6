"""Optimizers and schedules whose every number may be traced: one program serves all rates, betas, decays and lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from scalemem.spec import OptimizerSpec, SpecError

Knobs = dict[str, Any]  # traced scalars, named as the fields of OptimizerSpec

KNOBS = ("peak_lr", "b1", "b2", "eps", "weight_decay", "warmup_steps", "decay_fraction", "final_fraction")

# name -> (knobs -> the direction of the update, before the rate multiplies it)
OPTIMIZERS: dict[str, Callable[[Knobs], optax.GradientTransformation]] = {
    "adam": lambda k: optax.scale_by_adam(k["b1"], k["b2"], k["eps"]),
    "sgd": lambda k: optax.trace(decay=k["b1"]),
    "lion": lambda k: optax.scale_by_lion(k["b1"], k["b2"]),
}


def knobs(spec: OptimizerSpec) -> Knobs:
    """The numbers of a spec, to be traced."""
    return {name: float(getattr(spec, name)) for name in KNOBS}


def get(name: str) -> Callable[[Knobs], optax.GradientTransformation]:
    """The optimizer of a name; SpecError if there is none."""
    if name not in OPTIMIZERS:
        raise SpecError(f"optimizer.name = {name!r}: must be one of {', '.join(OPTIMIZERS)}; choose one of these")
    return OPTIMIZERS[name]


def direction(name: str, k: Knobs) -> optax.GradientTransformation:
    """The optimizer of a name with decoupled weight decay added; the caller multiplies by -rate."""
    return optax.chain(get(name)(k), optax.add_decayed_weights(k["weight_decay"]))


def rate(schedule: str, k: Knobs, step: Any, total: Any) -> Any:
    """Learning rate at `step` of `total`: peak times warm-up (at most a tenth of the steps) times the schedule.

    trapezoid: 1, then linear to `final_fraction` over the last `decay_fraction` of the steps;
    cosine: f + (1 - f)(1 + cos(pi t)) / 2 with t from 0 after the warm-up to 1 at the end; constant: 1.
    """
    step, total = jnp.asarray(step, jnp.float32), jnp.asarray(total, jnp.float32)
    warmup = jnp.minimum(k["warmup_steps"], total / 10)
    rise = jnp.minimum(1.0, (step + 1) / jnp.maximum(warmup, 1))
    if schedule == "trapezoid":
        left = (total - step) / jnp.maximum(k["decay_fraction"] * total, 1)
        fall = k["final_fraction"] + (1 - k["final_fraction"]) * jnp.clip(left, 0, 1)
    elif schedule == "cosine":
        t = jnp.clip((step - warmup) / jnp.maximum(total - warmup, 1), 0, 1)
        fall = k["final_fraction"] + (1 - k["final_fraction"]) * (1 + jnp.cos(jnp.pi * t)) / 2
    else:
        fall = jnp.float32(1)
    return k["peak_lr"] * rise * fall
