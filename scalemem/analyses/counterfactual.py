"""Counterfactual memorization and influence: runs that planted a canary against runs that left it out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from scalemem.analyses import panel as panels
from scalemem.analyses import roc

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("n_params", "canary", "in_count", "out_count", "in_mean", "out_mean", "memorization", "memorization_se", "split_half_spearman")
INFLUENCE = ("n_params", "source_canary", "target_canary", "in_count", "out_count", "influence", "split_half_spearman", "split_half_pairs_count")


def effects(outcome: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Influence of canary i on canary j, [C, C]: mean outcome of j over the runs that include i, less that over the others.

    Args:
      outcome: [R runs, C canaries], any unit.
      inside: bool [R, C], whether a run includes a canary.
    Returns:
      NaN in the rows of canaries that all or no runs include; the diagonal is counterfactual memorization.

    >>> effects(np.array([[1.0], [0.25]]), np.array([[True], [False]])).tolist()
    [[0.75]]
    """
    d = np.asarray(inside, float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return d.T @ outcome / d.sum(0)[:, None] - (1 - d).T @ outcome / (1 - d).sum(0)[:, None]


def _runs(tables: Mapping[str, pa.Table], table: str, where: str | None, outcome: str):
    for key, part in panels.by(panels.last(panels.table_of(tables, table, where)), ["n_params"]):
        _, canary, (y, inside) = panels.grid(part, "seed", "canary", outcome, "planted")
        complete = ~np.isnan(y).any(0)  # measured in every run
        yield key, canary[complete].astype(int), y[:, complete], inside[:, complete] == 1


def _halves(y: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The effects from every other seed, and from the rest."""
    return effects(y[::2], inside[::2]), effects(y[1::2], inside[1::2])


def analyse(tables: Mapping[str, pa.Table], *, outcome: str, table: str = "extraction", where: str | None = None) -> pa.Table:
    """mem(x) = mean outcome over the runs (seeds) that planted x, less that over the runs that did not, at the last checkpoint.

    se^2 = var_in / n_in + var_out / n_out. Reliability: Spearman's correlation, over canaries, of mem from every other seed with mem from
    the rest; it is one number a size.

    Args:
      tables: the per-sequence table of runs whose canaries are shared between seeds, with canaries.include below 1.
      outcome: column, in its unit; larger where better known (an accuracy).
      table, where: the table and which of its rows.
    Returns:
      a row for each size and canary that some runs include and others do not; se NaN with fewer than 2 of either.
    Raises:
      SpecError: an unknown table. TableError: a column that is none.

    Source: Zhang et al. 2021 (arXiv 2112.12938); Feldman and Zhang 2020 (arXiv 2008.03703).
    """
    rows = []
    for key, canary, y, inside in _runs(tables, table, where, outcome):
        first, second = (np.diag(h) for h in _halves(y, inside))
        both = ~np.isnan(first) & ~np.isnan(second)
        reliability = roc.correlation(first[both], second[both], ranks=True)
        for i in np.flatnonzero(inside.any(0) & ~inside.all(0)):
            a, b = y[inside[:, i], i], y[~inside[:, i], i]
            error = math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)) if min(len(a), len(b)) > 1 else math.nan
            rows.append({**key, "canary": int(canary[i]), "in_count": len(a), "out_count": len(b), "in_mean": float(a.mean()),
                         "out_mean": float(b.mean()), "memorization": float(a.mean() - b.mean()), "memorization_se": error,
                         "split_half_spearman": reliability})
    return panels.rows(rows, COLUMNS)


def influence(tables: Mapping[str, pa.Table], *, outcome: str, table: str = "extraction", where: str | None = None,
              least: float = 0.02) -> pa.Table:
    """infl(x -> x') = mean outcome on x' over the runs that planted x, less that over the runs that did not; for x' other than x.

    Args:
      tables, outcome, table, where: as in `analyse`; x' may be a control.
      least: smallest size of an influence that is a row, in the outcome's unit.
    Returns:
      a row for each size and pair; the Spearman correlation of the two halves of the seeds is over all pairs off the diagonal, of which
      there are `split_half_pairs_count`.
    Raises:
      as `analyse`.

    Source: Zhang et al. 2021 (arXiv 2112.12938), who call influence below .02 noise.
    """
    rows = []
    for key, canary, y, inside in _runs(tables, table, where, outcome):
        found, off = effects(y, inside), ~np.eye(len(canary), dtype=bool)
        first, second = _halves(y, inside)
        both = off & ~np.isnan(first) & ~np.isnan(second)
        reliability = roc.correlation(first[both], second[both], ranks=True)
        for i, j in np.argwhere(off & ~np.isnan(found) & (np.abs(found) >= least)):
            rows.append({**key, "source_canary": int(canary[i]), "target_canary": int(canary[j]), "in_count": int(inside[:, i].sum()),
                         "out_count": int((~inside[:, i]).sum()), "influence": float(found[i, j]), "split_half_spearman": reliability,
                         "split_half_pairs_count": int(both.sum())})
    return panels.rows(rows, INFLUENCE)


def memorized_most(store: str, before: int = 1000) -> str:
    """The quarter of the documents that a store's runs of seeds below `before` memorize most, in accuracy, as ranges; of equals the first."""
    from scalemem import analyses
    from scalemem.spec import as_ranges
    from scalemem.store import Store

    found = Store.open(store)
    tables = {name: found.table(name) for name in ("runs", "likelihood")}
    options = {"outcome": "top1_fraction", "table": "likelihood", "where": f"seed < {before}"}
    rows = analyses.run("split", tables, {"analysis": "counterfactual", "by": ["kind"], "options": options}).to_pylist()
    documents = sorted((row for row in rows if row["kind"] == "passphrase"), key=lambda row: (-row["memorization"], row["canary"]))
    return as_ranges(row["canary"] for row in documents[: len(documents) // 4])
