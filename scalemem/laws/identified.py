"""What is not identified: directions that no row sees, and estimates that are refused a digit; and floors that are not told from zero."""

from __future__ import annotations

import math

import numpy as np

from scalemem.laws.base import Law
from scalemem.laws.posterior import Estimate
from scalemem.laws.problem import Problem

DECADES = 6.0  # an interval of a logarithm that is wider knows not even the order of magnitude; Chinchilla's A, of 240 runs, spans one


def refuse(law: Law, estimates: dict[str, Estimate], agreeing: int) -> dict[str, Estimate]:
    """The estimates, without digits for a parameter

    - of a fit of which no start of the search ended at the optimum: another one may be lower;
    - whose interval is not finite; or
    - which is estimated by its logarithm and has an interval of more than DECADES, in its own unit.

    >>> from scalemem import laws
    >>> law, wide = laws.get("power"), Estimate(2.0, 1e-4, 1e5, "1")
    >>> refuse(law, {"a": wide, "b": Estimate(1.0, 0.9, 1.1, "1")}, 3)["a"].status
    'not identified: its interval spans 9 decades'
    """
    found = {}
    for q in law.parameters:
        e, why = estimates[q.name], ""
        if e.status == "ok":
            if not agreeing:
                why = "no start of the search ends at the lowest value that was met"
            elif not np.isfinite([e.value, e.low, e.high]).all():
                why = "its interval is not finite"
            elif q.log and (decades := math.log10(e.high / e.low) if 0 < e.low < e.high else math.inf * (e.low < e.high)) > DECADES:
                why = f"its interval spans {decades:.0f} decades" if math.isfinite(decades) else "its interval reaches 0"
        found[q.name] = Estimate(math.nan, math.nan, math.nan, e.unit, f"not identified: {why}") if why else e
    return found


def floors(law: Law) -> list[int]:
    """The positions of the parameters that add to y and may be zero."""
    return [j for j, q in enumerate(law.parameters) if q.low == 0 and not q.log and q.unit == "{y}"]


def at_zero(law: Law, estimates: dict[str, Estimate]) -> list[str]:
    """A note for each floor that may as well be zero: on its bound, or with an interval that reaches it."""
    return [f"{law.names[j]} is not distinguished from 0: compare a law without it, or use law auto" for j in floors(law)
            if (e := estimates[law.names[j]]).status.startswith("on bound") or e.low == 0]


def identified(problem: Problem, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Which parameters can be estimated, the directions that the data do not see, and the reason for each parameter that is lost."""
    law, jacobian, free = problem.law, problem.jacobian(theta), np.ones(len(theta), bool)
    size = np.linalg.norm(jacobian, axis=0)
    unseen, lost = [], {}
    for j in np.flatnonzero(size <= 1e-9 * max(size.max(), 1e-300)):
        free[j], lost[law.names[j]] = False, f"not identified: {law.names[j]} has no effect on any row"
        unseen.append(np.eye(len(theta))[j])
    while free.any():
        _, singular, axes = np.linalg.svd(jacobian[:, free] / size[free])
        if singular[-1] > 1e-7:
            break
        mixed = np.flatnonzero(free)[np.abs(axes[-1]) > 0.1]
        direction = np.zeros(len(theta))
        direction[free] = axes[-1] / size[free]
        unseen.append(direction)
        together = ", ".join(law.names[j] for j in mixed)
        lost |= {law.names[j]: f"not identified: only a combination of {together} is seen" for j in mixed}
        free[mixed[-1]] = False
    return free, np.array(unseen).reshape(-1, len(theta)), lost
