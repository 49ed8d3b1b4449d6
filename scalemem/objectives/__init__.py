"""Objectives: one file each, with `loss(apply, params, tokens, weights) -> sum in nats`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from scalemem.objectives import goldfish, next_token
from scalemem.spec import SpecError

# goldfish_KIND_K is a name for every K from 2 to 128; here stands one of each kind
OBJECTIVES: dict[str, Callable[..., Any]] = {
    "next_token": next_token.loss, **{f"goldfish_{kind}_4": goldfish.objective(kind, 4) for kind in goldfish.KINDS}}


def get(name: str) -> Callable[..., Any]:
    """The objective of a name; SpecError if there is none.

    >>> get("goldfish_static_3") is goldfish.objective("static", 3)
    True
    """
    family = re.fullmatch(rf"goldfish_({'|'.join(goldfish.KINDS)})_([1-9][0-9]{{0,2}})", name)
    if family and 2 <= int(family[2]) <= 128:
        return goldfish.objective(family[1], int(family[2]))
    if name not in OBJECTIVES:
        legal = ", ".join(["next_token", *(f"goldfish_{kind}_K" for kind in goldfish.KINDS)])
        raise SpecError(f"stage.objective = {name!r}: must be one of {legal}, K from 2 to 128; choose one of these")
    return OBJECTIVES[name]
