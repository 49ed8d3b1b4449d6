"""Does it matter when a sequence is trained on? Counts of memorized ones by block of training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from scalemem import tables as columns
from scalemem.analyses import panel as panels
from scalemem.spec import SpecError

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("seed", "n_params", "n_count", "blocks_count", "memorized_count", "dispersion_ratio", "dispersion_probability",
           "binomial_dispersion_ratio", "homogeneity_probability", "trend_z_ratio", "trend_probability", "first_half_fraction",
           "second_half_fraction")


def analyse(tables: Mapping[str, pa.Table], *, memorized: str, table: str = "extraction", where: str = "planted", blocks: int = 16,
            position: str = "last_step") -> pa.Table:
    """Whether memorized sequences are spread over training as by chance, in each run, at its last checkpoint.

    The n sequences in order of `position` are cut into B blocks of n_b, alike to one, with m_b memorized and q = sum m / n. The index of
    dispersion X^2 / (B - 1), X^2 = sum_b (m_b - n_b q)^2 / (n_b q), is var / mean for equal blocks and near 1 for Poisson counts;
    `dispersion_probability` is two-sided, by chi^2 of B - 1. Counts of n_b sequences have a variance of n_b q (1 - q): the binomial index is
    X^2 / (1 - q) / (B - 1), and `homogeneity_probability` its upper tail. Trend: Cochran and Armitage's z of memorized on position,

        z = sum_i (y_i - q) (s_i - mean s) / sqrt(q (1 - q) sum_i (s_i - mean s)^2),    two-sided.

    Args:
      tables: the per-sequence table.
      memorized: column of true/false, or of a score that is 1 where memorized.
      table, where: the table and which of its rows.
      blocks: B, at least 2; no more than there are sequences are used.
      position: column of the step at which a sequence was trained on.
    Returns:
      a row for each seed and size; NaN where none or all are memorized.
    Raises:
      SpecError: an unknown table, fewer than 2 blocks. TableError: a column that is none.

    Source: Biderman et al. 2023, Pythia, and its code, the counts by block; trend test: from memory, unverified.
    """
    from scipy.stats import chi2, norm

    if blocks < 2:
        raise SpecError(f"analysis.blocks = {blocks!r}: must be at least 2; write 16")
    rows = []
    for key, part in panels.by(panels.last(panels.table_of(tables, table, where)), ["seed", "n_params"]):
        had, at = panels.truth(part, memorized), columns.column(part, position)
        had, at = had[keep := ~np.isnan(had)], at[keep]
        order = np.argsort(at, kind="stable")
        parts = np.array_split(had[order], min(blocks, max(len(had), 1)))
        n, m, size = len(had), np.array([p.sum() for p in parts]), np.array([len(p) for p in parts])
        row = {**key, "n_count": n, "blocks_count": len(parts), "memorized_count": int(m.sum())} | dict.fromkeys(COLUMNS[5:], math.nan)
        if 0 < m.sum() < n:
            q, dof = m.sum() / n, len(parts) - 1
            x2 = float(np.sum((m - size * q) ** 2 / (size * q)))
            centred = at - at.mean()
            z = float(np.sum((had - q) * centred) / math.sqrt(q * (1 - q) * np.sum(centred**2))) if np.ptp(at) else math.nan
            half = n // 2
            row |= dict(zip(COLUMNS[5:], (
                x2 / dof, min(1.0, 2 * float(min(chi2.cdf(x2, dof), chi2.sf(x2, dof)))), x2 / (1 - q) / dof, float(chi2.sf(x2 / (1 - q), dof)),
                z, 2 * float(norm.sf(abs(z))), float(had[order][:half].mean()), float(had[order][half:].mean())), strict=True))
        rows.append(row)
    return panels.rows(rows, COLUMNS)
