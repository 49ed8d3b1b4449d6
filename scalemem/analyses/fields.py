"""The rows of a table with what their runs were: fields of the runs' specs beside each row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from scalemem import tables as columns
from scalemem.analyses import panel as panels
from scalemem.analyses.split import parts
from scalemem.spec import SpecError

if TYPE_CHECKING:
    import pyarrow as pa


def analyse(tables: Mapping[str, pa.Table], *, fields: Sequence[str], table: str = "runs", number: str | None = None,
            where: str | None = None) -> pa.Table:
    """The rows of a table, and beside each what its run has for every field.

    Args:
      tables: "runs" with its specs, and measures by name.
      fields: of the specs, such as "objective", or columns of the runs; a name that several fields end in must be written longer.
      table, where: whose rows, and which of them; `where` may use all columns of the result.
      number: of tables with columns NAME_K for whole numbers K: a row becomes one for each K, with the columns NAME, and K in a column of
        this name; None leaves them beside one another.
    Returns:
      the rows, combination of fields after combination, with a column a field; one that the table has already keeps its own values.
    Raises:
      SpecError: an unknown table or field, no field, or no column with a number. RowsError: a table without rows.
      TableError: an expression that is none.
    """
    import pyarrow as pa

    panels.table_of(tables, table)  # its errors
    made = []
    for key, part in parts(tables, fields):
        rows = part[table]
        for name, value in key.items():
            if name not in rows.column_names:
                rows = rows.append_column(name, pa.array([value] * rows.num_rows, pa.array([value]).type))
        made.append(rows)
    found = pa.concat_tables(made, promote_options="permissive")
    return columns.where(found if number is None else _long(found, number), where)[0]


def _long(table: pa.Table, number: str) -> pa.Table:
    """The rows of a table for each K of its columns NAME_K."""
    import pyarrow as pa

    numbered = [(name, *match.groups()) for name in table.column_names if (match := re.fullmatch(r"(.+)_([0-9]+)", name))]
    if not numbered:
        raise SpecError(f"analysis.number = {number!r}: no column ends in a number; leave it out, or name a table that has some")
    same = table.select([name for name in table.column_names if name not in {n for n, _, _ in numbered}])
    long = []
    for k in sorted({int(k) for _, _, k in numbered}):
        part = same.append_column(number, pa.array([k] * table.num_rows))
        for name, stem, of in numbered:
            if int(of) == k:
                part = part.append_column(stem, table.column(name))
        long.append(part)
    return pa.concat_tables(long, promote_options="permissive")
