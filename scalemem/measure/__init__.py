"""Measures: one file each, `measure(run, params, data_key, fresh_key) -> {column_with_unit: value}`."""

from __future__ import annotations

from collections.abc import Callable

from scalemem.measure import capacity, quantized
from scalemem.spec import SpecError

MEASURES: dict[str, Callable[..., dict[str, float]]] = {"capacity": capacity.measure, "quantized": quantized.measure}


def get(name: str) -> Callable[..., dict[str, float]]:
    """The measure of a name; SpecError if there is none."""
    if name not in MEASURES:
        raise SpecError(f"probe.measure = {name!r}: must be one of {', '.join(MEASURES)}; choose one of these")
    return MEASURES[name]
