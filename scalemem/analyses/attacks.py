"""Membership inference by any score columns: how well each tells planted canaries from controls, run by run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from scalemem.analyses import panel as panels
from scalemem.analyses import roc

if TYPE_CHECKING:
    import pyarrow as pa



def analyse(tables: Mapping[str, pa.Table], *, scores: Sequence[str], table: str = "likelihood", where: str | None = None,
            by: Sequence[str] = ()) -> pa.Table:
    """AUC, F1 and true-positive rates of score columns, members being planted canaries and the others those that the run never planted.

    Args:
      tables: the per-sequence table.
      scores: columns, higher is more likely a member, any unit; sequences without a score are left out.
      table, where: the table and which of its rows; controls must be among them.
      by: columns by which members are divided (copies, temperature); each part is set against all controls.
    Returns:
      a row for each run, checkpoint, part and score: seed, n_params, exposures, the `by` columns, attack, and those of `roc.evaluate`.
    Raises:
      SpecError: an unknown table. TableError: a column that is none.
    """
    rows = []
    for key, part in panels.by(panels.table_of(tables, table, where), ["seed", "n_params", "exposures"]):
        member = panels.truth(part, "planted") == 1
        others = part.filter(~member)
        for own, members in panels.by(part.filter(member), by) if by else [({}, part.filter(member))]:
            for name in scores:
                score = np.concatenate([panels.number(members, name), panels.number(others, name)])
                truth, keep = np.arange(len(score)) < members.num_rows, ~np.isnan(score)
                rows.append({**key, **own, "attack": name, **roc.evaluate(score[keep], truth[keep])})
    return panels.rows(rows, ("seed", "n_params", "exposures", *by, "attack", *roc.RATES))
