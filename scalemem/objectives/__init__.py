"""Objectives: one file each, with `loss(apply, params, tokens, weights) -> sum in nats`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from scalemem.objectives import goldfish, label, next_token
from scalemem.spec import SpecError

# goldfish_KIND_K is a name for every K from 2 to 128, label_in_task_K for every K from 1 to 4096; here stands one of each kind
OBJECTIVES: dict[str, Callable[..., Any]] = {
    "next_token": next_token.loss, "label": label.loss, "label_in_task_2": label.in_task(2),
    **{f"goldfish_{kind}_4": goldfish.objective(kind, 4) for kind in goldfish.KINDS}}


def get(name: str) -> Callable[..., Any]:
    """The objective of a name; SpecError if there is none.

    >>> get("goldfish_static_3") is goldfish.objective("static", 3)
    True
    """
    family = re.fullmatch(rf"goldfish_({'|'.join(goldfish.KINDS)})_([1-9][0-9]{{0,2}})", name)
    if family and 2 <= int(family[2]) <= 128:
        return goldfish.objective(family[1], int(family[2]))
    tasks = re.fullmatch(r"label_in_task_([1-9][0-9]{0,3})", name)
    if tasks and int(tasks[1]) <= 4096:
        return label.in_task(int(tasks[1]))
    if name not in OBJECTIVES:
        legal = ", ".join(["next_token", *(f"goldfish_{kind}_K" for kind in goldfish.KINDS), "label", "label_in_task_K"])
        raise SpecError(f"stage.objective = {name!r}: must be one of {legal} (goldfish: one target in K, from 2 to 128, left out; label: K classes "
                        "of a task); choose one of these")
    return OBJECTIVES[name]
