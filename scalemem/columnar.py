"""Rows to Parquet bytes and back, columns united across parts; pyarrow is imported where it is used."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scalemem.durable import StoreError, StoreWarning

if TYPE_CHECKING:
    import pyarrow as pa

_PLAIN = (float, int, str, bool, type(None))


class Block(dict[str, Sequence[Any]]):
    """Many rows as columns: name to values, all of one length."""

    def __len__(self) -> int:
        """Rows, not columns."""
        return len(next(iter(self.values()), ()))

    def __bool__(self) -> bool:
        return len(self) > 0


def unite_blocks(blocks: Sequence[Mapping[str, Sequence[Any]]]) -> Block:
    """One block of all rows; a value that a block lacks is None.

    >>> dict(unite_blocks([{"a": [1]}, {"a": [2], "b": [3.0]}]))
    {'a': [1, 2], 'b': [None, 3.0]}
    """
    names = dict.fromkeys(name for block in blocks for name in block)
    sizes = [len(next(iter(block.values()), ())) for block in blocks]
    return Block({name: [v for block, n in zip(blocks, sizes, strict=True) for v in block.get(name, [None] * n)] for name in names})


def encode(name: str, rows: Sequence[Mapping[str, Any]] | Block) -> bytes:
    """Parquet bytes of rows or a block, with every column that any row has; a value that a row lacks is null.

    Raises:
      StoreError: a column mixes types that have no common one.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {}
    block = isinstance(rows, Block)
    for column in rows if block else dict.fromkeys(key for row in rows for key in row):
        found = rows[column] if block else (row.get(column) for row in rows)  # type: ignore[call-overload, index]
        values = [value if type(value) in _PLAIN else _plain(value) for value in found]
        try:
            columns[column] = pa.array(values)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            types = ", ".join(sorted({type(value).__name__ for value in values}))
            raise StoreError(f"table {name}, column {column}: values of types {types} make no column "
                             f"({' '.join(str(error).split())[:100]}); give it numbers, strings or booleans") from None
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd", use_dictionary=["run_id"])  # type: ignore[arg-type]
    return sink.getvalue().to_pybytes()


def _plain(value: Any) -> Any:
    """A NumPy or JAX scalar as a Python number."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def decode(content: bytes, run_ids: set[str] | None = None) -> pa.Table:
    """The rows of Parquet bytes; only those of `run_ids`, if given."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
    if run_ids is None:
        return table
    return table.filter(pc.is_in(table["run_id"], value_set=pa.array(sorted(run_ids))))  # type: ignore[attr-defined]


def to_bytes(table: pa.Table, suffix: str) -> bytes:
    """A table as the content of a .csv or .parquet file; in CSV null is an empty field and NaN is nan."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    if suffix == ".csv":
        pyarrow.csv.write_csv(table, sink)
    else:
        pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def unite(pieces: Sequence[pa.Table], where: str) -> pa.Table:
    """One table of all pieces, sorted by run_id and within a run in the order of the pieces.

    A column that a piece lacks is null there; integers and floats unite to floats; other types that differ unite to
    strings, with a StoreWarning that names the column.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        table = pa.concat_tables(pieces, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        types: dict[str, set[pa.DataType]] = {}
        for field in (field for piece in pieces for field in piece.schema):
            types.setdefault(field.name, set()).add(field.type)
        mixed = {name for name, found in types.items() if not _unite(found)}
        warnings.warn(f"{where}, column {', '.join(sorted(mixed))}: written with different types; read as strings",
                      StoreWarning, stacklevel=3)
        pieces = [piece.cast(pa.schema([pa.field(f.name, pa.string()) if f.name in mixed else f for f in piece.schema]))
                  for piece in pieces]
        table = pa.concat_tables(pieces, promote_options="permissive")
    return table.take(pc.sort_indices(table, sort_keys=[("run_id", "ascending")]))  # type: ignore[attr-defined]


def _unite(types: set[pa.DataType]) -> bool:
    import pyarrow as pa

    try:
        pa.unify_schemas([pa.schema([("column", t)]) for t in types], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return False
    return True
