"""Programs that are not worth optimising: on a CPU they are compiled in a third of the time, and take three to five times as long to run.

Of a run that is measured once, compiling its small measures takes longer than the measures. Which programs are such depends on the run and on shapes
alone, not on a clock, so that a run gives the same bits again.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any

import jax

MOST_FLOPS = 1e9  # of a call: about 40 ms of a core, compiled in full
_OPTIONS: dict[str, Any] = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
_once: contextvars.ContextVar[bool] = contextvars.ContextVar("once", default=False)


@contextlib.contextmanager
def once(yes: bool) -> Iterator[None]:
    """Within it programs are asked for that, if `yes`, run once a run."""
    token = _once.set(yes)
    try:
        yield
    finally:
        _once.reset(token)


def worth(flops: float) -> bool:
    """Whether a program that a call of so many FLOPs asks for is compiled quickly."""
    return _once.get() and flops <= MOST_FLOPS and jax.default_backend() == "cpu"


def options(yes: bool) -> dict[str, Any] | None:
    """What `jax.jit` takes as compiler_options; None where XLA does not know these."""
    return _OPTIONS if yes and _known() else None


@functools.cache
def _known() -> bool:
    try:
        jax.jit(lambda x: x + 1, compiler_options=_OPTIONS)(0.0)
    except Exception:  # of XLA: no such option
        return False
    return True
