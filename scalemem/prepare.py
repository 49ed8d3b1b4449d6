"""A table made ready for a fit: columns derived, units given, rows filtered, repetitions counted, and all of it written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scalemem import repeats, tables
from scalemem.tables import TableError, TooFewRows

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Prepared:
    """All rows of a table and which of them are used; `filters` are {"filter": text, "dropped": rows}, in the order they were applied."""

    table: pa.Table
    keep: np.ndarray
    where: str | None
    filters: tuple[dict[str, Any], ...]
    derived: dict[str, str]
    units: dict[str, str]
    source: str

    def to_json(self) -> dict[str, Any]:
        """What was done to the table, for a report."""
        return {"source": self.source, "rows": self.table.num_rows, "used": int(self.keep.sum()), "filters": list(self.filters),
                "derived": self.derived, "units": self.units}


def prepare(source: str | Path | pa.Table, *, derive: Mapping[str, str] | None = None, units: Mapping[str, str] | None = None,
            where: Sequence[str] = (), distinct: bool = False) -> Prepared:
    """Reads a table, derives columns, gives units, and applies the filters one after the other.

    Args:
      source: a file or store (`tables.read`), or a table.
      derive: {new column: expression}, in order; a later one may use an earlier one.
      units: {column: unit}, which parameters then carry.
      where: expressions; a row must satisfy all of them.
      distinct: rows that repeat an earlier one in every column are dropped, after the other filters.
    Returns:
      all rows, so that a row keeps its number in messages, and the mask of those used.
    Raises:
      TableError: no such file or column, or not an expression. TooFewRows: no row is left.

    >>> import pyarrow as pa
    >>> p = prepare(pa.table({"flop": [6., 12., 12.], "N": [1., 2., 2.]}), derive={"D": "flop / (6 * N)"}, where=["N > 1"], distinct=True)
    >>> p.table.column("D").to_pylist(), p.keep.tolist(), [f["dropped"] for f in p.filters]
    ([1.0, 1.0, 1.0], [False, True, False], [1, 1])
    """
    named = str(source) if isinstance(source, (str, Path)) else "a table in memory"
    table = tables.read(source) if isinstance(source, (str, Path)) else source
    for name, expression in (derive or {}).items():
        table = tables.derive(table, name, expression)
    for name, unit in (units or {}).items():
        table = tables.with_unit(table, name, unit)
    keep, filters = np.ones(table.num_rows, bool), []
    for text in where:
        passed = keep & tables.mask(table, text)
        filters.append({"filter": text, "dropped": int(keep.sum() - passed.sum())})
        keep = passed
    if distinct:
        repeated = repeats.repeated(table, table.column_names, keep)
        filters.append({"filter": repeats.DISTINCT, "dropped": int(repeated.sum())})
        keep = keep & ~repeated
    if not keep.any():
        said = " and ".join(repr(t) for t in where)
        raise TooFewRows(f"{named}: 0 of {table.num_rows} rows are left" + (f" by where = {said}; widen the filter" if said else "; add rows"))
    whole = where[0] if len(where) == 1 else " and ".join(f"({w})" for w in where) or None
    return Prepared(table, keep, whole, tuple(filters), dict(derive or {}), dict(units or {}), named)


def constant(p: Prepared, x: Mapping[str, str], group: Sequence[str]) -> TableError | None:
    """The error to raise where nothing is identified because each predictor has one value in each group; None where one varies."""
    if not x or any(len(np.unique(tables.load(p.table, c)[rows])) > 1 for _, rows in tables.groups(p.table, group, p.keep) for c in x.values()):
        return None
    name, rows = next(iter(x.values())), np.flatnonzero(p.keep) + 1
    value = tables.load(p.table, name)[rows[0] - 1]
    where = f"row {rows[0]}" if len(rows) == 1 else f"rows {rows[0]} to {rows[-1]}"
    return TableError(f"column {name!r}, {where} = {value:g}: one distinct value" + (" in each group" if group else "") +
                      ": must have at least two, else no parameter is identified; add rows of other values")
