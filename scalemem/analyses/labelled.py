"""The rows of a table with the name of the arm that each run is of, told by what is true of the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scalemem import tables as columns
from scalemem.analyses import panel as panels
from scalemem.spec import SpecError
from scalemem.tables import RowsError

if TYPE_CHECKING:
    import pyarrow as pa


def analyse(tables: Mapping[str, pa.Table], *, labels: Mapping[str, Any], table: str = "runs", name: str = "arm") -> pa.Table:
    """The rows of a table, with a column that says which arm their run is of.

    Args:
      tables: "runs", and others that have run_id.
      labels: arm -> expression of the columns of `runs`; a run is of the first arm whose expression is true of it.
      table: whose rows.
      name: of the new column.
    Returns:
      the rows of runs that are of an arm, with the column.
    Raises:
      SpecError: no such table, or no label. RowsError: no run is of an arm. TableError: an expression that is none, or has an unknown column.

    >>> import pyarrow as pa
    >>> runs = pa.table({"run_id": ["a", "b"], "replay": [0.5, None]})
    >>> analyse({"runs": runs}, labels={"none": "is_null(replay)", "replay": "replay > 0"})["arm"].to_pylist()
    ['replay', 'none']
    """
    import pyarrow as pa

    if not labels:
        raise SpecError("analysis.labels = {}: must give at least one arm; write name = 'expression of the columns of runs'")
    rows, arm = panels.table_of(tables, table), {}
    for label, where in labels.items():
        for run in columns.where(tables["runs"], where)[0]["run_id"].to_pylist():
            arm.setdefault(run, label)
    found = [arm.get(run) for run in rows["run_id"].to_pylist()]
    if not any(found):
        raise RowsError(f"labels {', '.join(labels)}: no run of table {table!r} is of one of them; correct the expressions")
    return rows.append_column(name, pa.array(found, pa.string())).filter(pa.array([one is not None for one in found]))
