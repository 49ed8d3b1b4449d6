"""Memorization profiles: what training on a sequence did to it, by when it was trained on and when it is looked at."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from scalemem.analyses import panel as panels
from scalemem.analyses import roc
from scalemem.tables import RowsError

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("n_params", "cohort_step", "checkpoint_step", "kind", "treated_count", "control_count", "did", "did_se", "did_t_ratio", "difference")


def analyse(tables: Mapping[str, pa.Table], *, outcome: str, table: str = "likelihood", where: str | None = None) -> pa.Table:
    """Differences in differences of an outcome, by cohort and checkpoint.

    A cohort g is what was first trained on between two checkpoints, g - 1 and g; its controls are the canaries that its run never plants.

        did = (Y_c(g) - Y_g-1(g)) - (Y_c(never) - Y_g-1(never)),    difference = Y_c(g) - Y_c(never)

    with Y the mean outcome. Controls are those of the same seed, and seeds are pooled by their treated sequences. With d_i the change of a
    treated sequence less that of its controls, se^2 = var(d) / N + sum_s (N_s / N)^2 var_s(control) / M_s. Kinds: pre (c < g - 1, where
    did is 0 if trends are parallel), instantaneous (c = g), persistent (c > g), residual (the last c, if after g). c = g - 1 is the base: 0.

    Args:
      tables: the per-sequence table, of runs looked at at least at the ends of the segments, and before the first.
      outcome: column whose mean is compared, in its unit; larger where better known.
      table, where: the table and which of its rows; controls must be among them.
    Returns:
      a row for each size, cohort (by the step of its checkpoint g) and checkpoint; did, did_se and difference in the outcome's unit, the
      error NaN for fewer than 2 treated or controls of a seed.
    Raises:
      SpecError: an unknown table. RowsError: no controls, or no planted sequence with a checkpoint before it.

    Source: Lesci et al. 2024 (arXiv 2406.04327), the estimator; they take Callaway and Sant'Anna's, with a bootstrap.
    """
    rows = []
    for key, part in panels.by(panels.table_of(tables, table, where), ["n_params"]):
        cells: dict[tuple[float, float], list[tuple[np.ndarray, np.ndarray, np.ndarray, str]]] = {}
        for _, one in panels.by(part, ["seed"]):
            _, steps, (y, first, planted) = panels.grid(one, "canary", "step", outcome, "first_step", "planted")
            first, treated = np.nanmax(first, 1), np.nanmax(planted, 1) == 1
            cohort = np.searchsorted(steps, first, side="right")  # the first checkpoint after that step
            for g in np.unique(cohort[treated & (cohort > 0) & (cohort < len(steps))]):
                for c in range(len(steps)):
                    change, own = y[:, c] - y[:, g - 1], treated & (cohort == g) & ~np.isnan(y[:, c] - y[:, g - 1])
                    control = ~treated & ~np.isnan(change)
                    if c != g - 1 and own.any() and control.any():
                        cells.setdefault((float(steps[g]), float(steps[c])), []).append(
                            (change[own], change[control], y[own, c] - y[control, c].mean(), _kind(int(g), c, len(steps))))
        if not cells:
            raise RowsError(f"table {table!r}, n_params = {key['n_params']}: no cohort has a checkpoint before it and controls beside it; plant "
                            "with controls, and take the measure at segments")
        rows += [{**key, "cohort_step": int(g), "checkpoint_step": int(c), **_cell(found)} for (g, c), found in sorted(cells.items())]
    return panels.rows(rows, COLUMNS)


def _kind(g: int, c: int, count: int) -> str:
    return "pre" if c < g else "instantaneous" if c == g else "residual" if c == count - 1 else "persistent"


def _cell(found: list[tuple[np.ndarray, np.ndarray, np.ndarray, str]]) -> dict[str, Any]:
    adjusted = np.concatenate([change - control.mean() for change, control, _, _ in found])
    n, fewest = len(adjusted), min(len(control) for _, control, _, _ in found)
    error = math.nan
    if n > 1 and fewest > 1:
        error = math.sqrt(float(adjusted.var(ddof=1)) / n + sum((len(a) / n) ** 2 * float(b.var(ddof=1)) / len(b) for a, b, _, _ in found))
    did = float(adjusted.mean())
    return {"kind": found[0][3], "treated_count": n, "control_count": sum(len(b) for _, b, _, _ in found), "did": did, "did_se": error,
            "did_t_ratio": did / error if error > 0 else math.nan, "difference": float(np.mean(np.concatenate([d for _, _, d, _ in found])))}


def between_sizes(tables: Mapping[str, pa.Table], *, outcome: str, table: str = "likelihood", where: str | None = None) -> pa.Table:
    """Pearson's correlation of the profiles of two sizes, over their common cells from treatment on.

    Args:
      tables, outcome, table, where: as in `analyse`.
    Returns:
      first_n_params, second_n_params, pearson, cells_count: a row for each pair of sizes, the smaller first.
    Raises:
      as `analyse`.

    Source: Lesci et al. 2024 (arXiv 2406.04327).
    """
    made = analyse(tables, outcome=outcome, table=table, where=where).to_pylist()
    profiles: dict[int, dict[tuple[int, int], float]] = {}
    for row in made:
        if row["kind"] != "pre":
            profiles.setdefault(row["n_params"], {})[row["cohort_step"], row["checkpoint_step"]] = row["did"]
    rows = []
    for a, b in itertools.combinations(sorted(profiles), 2):
        common = sorted(profiles[a].keys() & profiles[b].keys())
        x, y = (np.array([profiles[n][cell] for cell in common]) for n in (a, b))
        rows.append({"first_n_params": a, "second_n_params": b, "pearson": roc.correlation(x, y), "cells_count": len(common)})
    return panels.rows(rows, ("first_n_params", "second_n_params", "pearson", "cells_count"))
