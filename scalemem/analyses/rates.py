"""Extraction rates by size, copies and length of the prompt, and how straight they are in the logarithm of each."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from scalemem import tables as columns
from scalemem.analyses import panel as panels
from scalemem.spec import SpecError
from scalemem.tables import RowsError, TableError

if TYPE_CHECKING:
    import pyarrow as pa

AXES = ("n_params", "copies", "context_tokens")
COLUMNS = ("seed", "n_params", "exposures", "planted_count", "copies", "context_tokens", "n_count", "extractable_rate")
LINE_COLUMNS = ("seed", "points_count", "slope_fraction_per_decade", "explained_fraction", "explained_pseudo_fraction")


def analyse(tables: Mapping[str, pa.Table], *, table: str = "extraction", where: str | None = None) -> pa.Table:
    """The share of sequences that greedy decoding completes exactly, for each size, number of copies and length of the prompt.

    Columns extractable_rate_K (1 where K tokens of the sequence are enough) are melted into rows of context_tokens = K and averaged over
    the sequences of as many copies.

    Args:
      tables: the per-sequence table.
      table, where: the table and which of its rows; the last checkpoint of each run is read.
    Returns:
      a row for each run, copies (0: never planted) and K; n_count sequences are behind it, and planted_count were planted in the run,
      0 in a model trained without.
    Raises:
      SpecError: an unknown table. TableError: no column extractable_rate_K. RowsError: no row is left.

    Source: Carlini et al. 2022 (arXiv 2202.07646): sets with as many sequences of each number of copies.

    >>> import pyarrow as pa
    >>> runs = {"run_id": ["a"] * 3, "seed": [0] * 3, "n_params": [9] * 3, "exposures": [1.0] * 3, "planted": [True, True, False]}
    >>> found = analyse({"extraction": pa.table({**runs, "copies": [4, 4, 0], "extractable_rate_8": [1.0, 0.0, 0.0]})})
    >>> [(r["copies"], r["context_tokens"], r["n_count"], r["extractable_rate"]) for r in found.to_pylist()]
    [(0, 8, 1, 0.0), (4, 8, 2, 0.5)]
    """
    import pyarrow as pa

    source = panels.last(panels.table_of(tables, table))
    contexts = sorted(int(m[1]) for name in source.column_names if (m := re.fullmatch(r"extractable_rate_(\d+)", name)))
    if not contexts:
        raise TableError(f"table {table!r}: has no column extractable_rate_K, K the tokens of a prompt; measure extraction, or name another table")
    run, planted = columns.load(source, "run_id").astype(str), panels.truth(source, "planted")
    _, inverse = np.unique(run, return_inverse=True)
    source = source.append_column("planted_count", pa.array(np.bincount(inverse, planted)[inverse].astype(int)))
    source, _ = columns.where(source, where)
    if source.num_rows == 0:
        raise RowsError(f"table {table!r}: no row satisfies where = {where!r}; loosen it, or run what it asks for")
    rows = []
    for key, part in panels.by(source, ["seed", "n_params", "exposures", "planted_count", "copies"]):
        for k in contexts:
            rate = panels.number(part, f"extractable_rate_{k}")
            rate = rate[~np.isnan(rate)]  # sequences of other lengths have other prompts
            if len(rate):
                rows.append({**key, "context_tokens": k, "n_count": len(rate), "extractable_rate": float(rate.mean())})
    return panels.rows(rows, COLUMNS)


def lines(tables: Mapping[str, pa.Table], *, x: str, where: str | None = None, table: str = "extraction", low: float = 0.02,
          high: float = 0.98) -> pa.Table:
    """How straight the rate is in log10 of one axis: the slope a decade and R^2, of each seed and of the mean over seeds.

    The points are y_s(x), the rate of seed s averaged over all other axes, at those x where its mean over seeds lies within (low, high): the
    part that is not saturated. By least squares of y on log10 x, R^2 = 1 - residual / total sum of squares. R^2 of the mean curve of
    n seeds is theta, and without seed s theta_s; Tukey's pseudo-values are n theta - (n - 1) theta_s: their mean is the jackknife's estimate,
    a t interval over them its interval. They may exceed 1.

    Args:
      tables: as for `analyse`.
      x: n_params, copies or context_tokens.
      where: which rows of `analyse` are used; those of sequences that were never planted are left out.
      table: the per-sequence table.
      low, high: rates between which a point counts.
    Returns:
      a row a seed: points_count, slope_fraction_per_decade, explained_fraction (R^2), and explained_pseudo_fraction; NaN where there are
      fewer than three points, one seed for the last, or no variation.
    Raises:
      SpecError: another x, or low not below high. RowsError: no row is left, or the seeds have not the same x.

    Source: Carlini et al. 2022 (arXiv 2202.07646) for the straight line; the jackknife: Tukey 1958, from memory, unverified.
    """
    if x not in AXES:
        raise SpecError(f"analysis.x = {x!r}: must be one of {', '.join(AXES)}; choose one of these")
    if not low < high:
        raise SpecError(f"analysis.low = {low!r}: must be below high = {high!r}; lower it")
    source, _ = columns.where(analyse(tables, table=table, where="planted"), where)
    if source.num_rows == 0:
        raise RowsError(f"rates: no row satisfies where = {where!r}; loosen it, or run what it asks for")
    seeds, r = np.unique(columns.column(source, "seed"), return_inverse=True)
    values, c = np.unique(columns.column(source, x), return_inverse=True)
    count, total = np.zeros((2, len(seeds), len(values)))
    np.add.at(count, (r, c), 1)
    np.add.at(total, (r, c), columns.column(source, "extractable_rate"))
    if not count.all():
        s, v = np.argwhere(count == 0)[0]
        raise RowsError(f"rates: seed {seeds[s]:g} has no row of {x} = {values[v]:g}, which others have; choose with where what all have")
    rate = total / count
    keep = (rate.mean(0) > low) & (rate.mean(0) < high)
    rate, at = rate[:, keep], np.log10(values[keep])
    whole = straight(at, rate.mean(0))[1]
    rows = []
    for s, seed in enumerate(seeds):
        slope, explained = straight(at, rate[s])
        others = straight(at, np.delete(rate, s, 0).mean(0))[1] if len(seeds) > 1 else math.nan
        rows.append({"seed": int(seed), "points_count": int(keep.sum()), "slope_fraction_per_decade": slope, "explained_fraction": explained,
                     "explained_pseudo_fraction": len(seeds) * whole - (len(seeds) - 1) * others})
    return panels.rows(rows, LINE_COLUMNS)


def straight(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and R^2 of y on x by least squares; NaN of fewer than three points, and R^2 of equal y.

    >>> [round(v, 3) for v in straight(np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 1.0]))]
    [0.5, 0.75]
    """
    if len(x) < 3:
        return math.nan, math.nan
    dx, dy = x - x.mean(), y - y.mean()
    slope, total = float(dx @ dy / (dx @ dx)), float(dy @ dy)
    return slope, float((dx @ dy) ** 2 / (dx @ dx) / total) if total > 0 else math.nan
