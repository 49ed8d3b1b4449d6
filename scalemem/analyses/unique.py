"""How many different training sequences would more sampling find? Good-Turing and Chao's estimates from how often each was found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from scalemem.analyses import panel as panels

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("seed", "n_params", "exposures", "found_count", "unique_count", "once_count", "twice_count", "unseen_probability", "chao1_count",
           "doubled_count", "good_toulmin_count", "doubled_true_count", "doubled_error_fraction")


def estimate(counts: np.ndarray) -> dict[str, float]:
    """Richness estimates from how often each sequence was found; S were found at least once, f_k exactly k times, n = sum k f_k.

    unseen_probability = f_1 / n: that the next find is a new one (Good and Turing).
    chao1 = S + f_0,  f_0 = (n - 1) / n f_1^2 / (2 f_2), with f_1 (f_1 - 1) / 2 in place of f_1^2 / (2 f_2) where f_2 = 0.
    doubled = S + f_0 [1 - (1 - f_1 / (n f_0 + f_1))^n]: different ones after as many finds again (Chao).
    good_toulmin = S + sum_k (-1)^(k + 1) f_k: the same, without bias, but noisier.

    Args:
      counts: how often each sequence was found, whole numbers, zeros allowed.

    >>> found = estimate(np.array([1, 1, 2, 0]))
    >>> found["chao1_count"], found["good_toulmin_count"], found["unseen_probability"]
    (4.5, 4.0, 0.5)

    Source: Good 1953, Good and Toulmin 1956, Chao 1984, Chao et al. 2014 (from memory, unverified).
    """
    counts = np.asarray(counts, float)
    counts = counts[counts > 0]
    n, s, once, twice = float(counts.sum()), len(counts), int(np.sum(counts == 1)), int(np.sum(counts == 2))
    zero = (n - 1) / n * (once**2 / (2 * twice) if twice else once * (once - 1) / 2) if n else 0.0
    more = zero * -math.expm1(n * math.log1p(-once / (n * zero + once))) if zero > 0 else 0.0
    return {"found_count": n, "unique_count": s, "once_count": once, "twice_count": twice, "unseen_probability": once / n if n else math.nan,
            "chao1_count": s + zero, "doubled_count": s + more, "good_toulmin_count": s + float(np.sum(np.where(counts % 2, 1.0, -1.0)))}


def analyse(tables: Mapping[str, pa.Table], *, count: str, second: str | None = None, table: str = "unprompted",
            where: str | None = None) -> pa.Table:
    """What the finds of one half of the samples say of both halves together, in each run and at each checkpoint.

    Args:
      tables: the per-sequence table.
      count: column of how often a sequence was found in the first half of the samples.
      second: column of how often in the second half; with it, what was forecast is checked.
      table, where: the table and which of its rows.
    Returns:
      a row for each run and checkpoint with the columns of `estimate`; doubled_true_count is the number of different ones in both halves and
      doubled_error_fraction = doubled_count / doubled_true_count - 1, NaN without `second` or finds.
    Raises:
      SpecError: an unknown table. TableError: a column that is none.

    Source: the check by halves: Nasr et al. 2023 (arXiv 2311.17035), from memory, unverified.
    """
    rows = []
    for key, part in panels.by(panels.table_of(tables, table, where), ["seed", "n_params", "exposures"]):
        first = np.nan_to_num(panels.number(part, count))
        found = estimate(first)
        both = float(np.sum(first + np.nan_to_num(panels.number(part, second)) > 0)) if second else math.nan
        rows.append({**key, **found, "doubled_true_count": both, "doubled_error_fraction": found["doubled_count"] / both - 1 if both else math.nan})
    return panels.rows(rows, COLUMNS)
