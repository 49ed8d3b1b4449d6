"""The rows of a table with what their runs were: fields of the runs' specs beside each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from scalemem import tables as columns
from scalemem.analyses import panel as panels
from scalemem.analyses.split import parts

if TYPE_CHECKING:
    import pyarrow as pa


def analyse(tables: Mapping[str, pa.Table], *, fields: Sequence[str], table: str = "runs", where: str | None = None) -> pa.Table:
    """The rows of a table, and beside each what its run has for every field.

    Args:
      tables: "runs" with its specs, and measures by name.
      fields: of the specs, such as "objective", or columns of the runs; a name that several fields end in must be written longer.
      table, where: whose rows, and which of them; `where` may use the fields.
    Returns:
      the rows, combination of fields after combination, with a column a field; one that the table has already keeps its own values.
    Raises:
      SpecError: an unknown table or field, or no field. RowsError: a table without rows. TableError: an expression that is none.
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
    return columns.where(pa.concat_tables(made, promote_options="permissive"), where)[0]
