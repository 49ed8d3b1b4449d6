"""Membership inference among sequences alike: members against others of the same stratum, of perplexity or of whatever else tells them apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from scalemem import tables as columns
from scalemem.analyses import panel as panels
from scalemem.analyses import roc
from scalemem.spec import SpecError

if TYPE_CHECKING:
    import pyarrow as pa

KEYS = ("run_id", "exposures", "canary")


def analyse(tables: Mapping[str, pa.Table], *, scores: Sequence[str], table: str = "likelihood", joined: str | None = None,
            where: str | None = None, members: str = "planted", others: str = "not planted", by: Sequence[str] = (), match: str | None = None,
            strata: int = 1) -> pa.Table:
    """AUC and rates of scores, stratum by stratum: strata are between the quantiles 1/k, 2/k, .. that `match` has among a run's others.

    Args:
      tables: the per-sequence tables.
      scores: expressions, higher is more likely a member, any unit; sequences without a score are left out.
      table, joined, where: the table, another whose columns are put beside its own, sequence by sequence, and which of their rows.
      members, others: expressions that are true of the one and of the other.
      by: columns by which members are divided; each part is set against all others.
      match: expression by which members and others are matched, any unit; None leaves all in one stratum.
      strata: how many.
    Returns:
      a row for each run, checkpoint, part, stratum and score: seed, n_params, exposures, the `by` columns, stratum (1 has the lowest
      `match`), match_mean (of the stratum's others), attack (the score as written), and the columns of `roc.evaluate`.
    Raises:
      SpecError: an unknown table, or strata that are not 1 or more. TableError: an expression that is none.

    Source: Meeus et al. 2024 (arXiv 2402.09363): attacks on copyright traps in buckets of perplexity.

    >>> import pyarrow as pa
    >>> t = pa.table({"run_id": ["a"] * 4, "seed": [0] * 4, "n_params": [9] * 4, "exposures": [1] * 4, "planted": [True, False] * 2,
    ...               "nats": [1., 2., 9., 8.]})
    >>> analyse({"likelihood": t}, scores=["-nats"], match="nats", strata=2)["auc"].to_pylist()
    [1.0, 0.0]
    """
    if strata < 1:
        raise SpecError(f"analysis.strata = {strata}: must be at least 1; write 3")
    found = panels.table_of(tables, table) if joined is None else beside(panels.table_of(tables, table), panels.table_of(tables, joined))
    rows = []
    for key, part in panels.by(columns.where(found, where)[0], ["seed", "n_params", "exposures", "run_id"]):  # runs that differ in nothing else, too
        rest = part.filter(columns.mask(part, others))
        level = columns.compute(rest, match or "0 * seed").astype(float)
        edges = np.quantile(level, np.arange(1, strata) / strata) if len(level) else np.zeros(0)
        place = np.searchsorted(edges, level, side="right")
        inside = part.filter(columns.mask(part, members))
        for own, chosen in panels.by(inside, by) if by else [({}, inside)]:
            stratum = np.searchsorted(edges, columns.compute(chosen, match or "0 * seed").astype(float), side="right")
            for name in scores:
                of_members, of_rest = (columns.compute(t, name).astype(float) for t in (chosen, rest))
                for s in range(strata):
                    score = np.concatenate([of_members[stratum == s], of_rest[place == s]])
                    truth, keep = np.arange(len(score)) < np.sum(stratum == s), ~np.isnan(score)
                    rows.append({**key, **own, "stratum": s + 1, "match_mean": float(level[place == s].mean()) if (place == s).any() else math.nan,
                                 "attack": name, **roc.evaluate(score[keep], truth[keep])})
    return panels.rows(rows, ("seed", "n_params", "exposures", *by, "stratum", "match_mean", "attack", *roc.RATES))


def beside(left: pa.Table, right: pa.Table) -> pa.Table:
    """Two tables of the same runs' sequences as one: each row with the other table's columns that it has not itself."""
    import pyarrow as pa

    def plain(table: pa.Table) -> pa.Table:
        at = table.column_names.index("run_id")
        return table.set_column(at, "run_id", table.column("run_id").cast(pa.string()))

    more = [name for name in right.column_names if name not in left.column_names]
    return plain(left).join(plain(right).select([*KEYS, *more]), list(KEYS))
