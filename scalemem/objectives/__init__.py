"""Objectives: one file each, with `loss(apply, params, tokens, weights) -> sum in nats`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scalemem.objectives import next_token
from scalemem.spec import SpecError

OBJECTIVES: dict[str, Callable[..., Any]] = {"next_token": next_token.loss}


def get(name: str) -> Callable[..., Any]:
    """The objective of a name; SpecError if there is none."""
    if name not in OBJECTIVES:
        raise SpecError(f"stage.objective = {name!r}: must be one of {', '.join(OBJECTIVES)}; choose one of these")
    return OBJECTIVES[name]
