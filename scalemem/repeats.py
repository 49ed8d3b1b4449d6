"""Rows that repeat others: told apart as duplicates (every column), copies (group, x and y) and replicates (another y)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from scalemem import tables

if TYPE_CHECKING:
    import pyarrow as pa

DISTINCT = "--distinct"  # the option that drops duplicates


def count(table: pa.Table, keep: np.ndarray, y: str, x: Mapping[str, str], group: Sequence[str]) -> dict[str, int]:
    """How many of the rows used repeat others.

    `duplicates` equal an earlier row in every column of the table; `copies` equal an earlier one in group, x and y, whatever the other
    columns say (duplicates among them); `replicates` share group and x with a row of another y, as repeated runs do.

    >>> import pyarrow as pa
    >>> t = pa.table({"n": [1, 1, 2, 2, 3], "loss": [5., 5., 4., 3., 2.], "seed": [0, 0, 0, 1, 0]})
    >>> count(t, np.ones(5, bool), "loss", {"x": "n"}, [])
    {'duplicates': 1, 'copies': 1, 'replicates': 2}
    """
    point = [*group, *x.values()]
    at, pair = codes(table, point), codes(table, [*point, y])
    first = ~repeated(table, [*point, y], keep) & keep  # the distinct values of y at each point
    several = np.bincount(at[first], minlength=at.max(initial=-1) + 1) > 1
    return {"duplicates": int(repeated(table, table.column_names, keep).sum()),
            "copies": int(keep.sum() - len(np.unique(pair[keep]))), "replicates": int((several[at] & keep).sum()) if point else 0}


def told(counts: Mapping[str, int], used: int, once: bool = False) -> list[str]:
    """The warnings that repetitions deserve; `once` where copies are merged, as in the average over laws."""
    d, c = counts["duplicates"], counts["copies"]
    so = "they are fitted as one row of that weight" if once else "they count as runs of their own"
    found = [f"{d} of {used} rows repeat an earlier one in every column: {so}; {DISTINCT} drops them"] * (d > 0)
    return found + [f"{c - d} of {used} rows repeat an earlier one in group, x and y but not in every column: {so}"] * (c > d)


def codes(table: pa.Table, names: Sequence[str]) -> np.ndarray:
    """For each row a whole number, equal where all the named columns are (missing equals missing)."""
    code = np.zeros(table.num_rows, np.int64)
    for name in names:
        cells = tables.load(table, name) if _simple(table, name) else np.array([*map(repr, table.column(name).to_pylist()), None], object)[:-1]
        if cells.dtype == object:
            each = np.unique([f"={v}" if isinstance(v, str) else "" for v in cells] or np.zeros(0, str), return_inverse=True)[1]
        elif cells.dtype == bool:
            each = np.where(table.column(name).is_null().to_numpy(), 2, cells)
        else:
            each = np.unique(cells, return_inverse=True)[1]  # NaN equals NaN here
        code = np.unique(code * (int(each.max(initial=0)) + 1) + each, return_inverse=True)[1]
    return code


def _simple(table: pa.Table, name: str) -> bool:
    import pyarrow as pa

    kind = table.schema.field(name).type
    return not (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_duration(kind)
                or pa.types.is_fixed_size_binary(kind))


def repeated(table: pa.Table, names: Sequence[str], keep: np.ndarray) -> np.ndarray:
    """Which of the kept rows equal an earlier kept one in all the named columns, as booleans (rows,)."""
    rows = np.flatnonzero(keep)
    again = np.ones(len(rows), bool)
    again[np.unique(codes(table, names)[rows], return_index=True)[1]] = False
    found = np.zeros(len(keep), bool)
    found[rows[again]] = True
    return found
