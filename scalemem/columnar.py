"""Rows to Parquet bytes and back, columns united across parts; pyarrow is imported where it is used."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scalemem.durable import StoreError, StoreWarning

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

_PLAIN = (float, int, str, bool, type(None))
_KINDS = "biufU"  # of NumPy arrays that are written as they are: bool, integers, floats, text
GROUP_ROWS = 1 << 20  # rows that are made Arrow's at a time


class Pieces:
    """A column in several pieces, one after another: lists, NumPy or Arrow arrays."""

    def __init__(self, parts: Sequence[Any]) -> None:
        self.parts = tuple(parts)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[Any]:
        return itertools.chain.from_iterable(map(_listed, self.parts))


class Block(dict[str, Any]):
    """Many rows as columns: name to values, all of one length; each a list, a NumPy array, an Arrow array or `Pieces` of these."""

    def __len__(self) -> int:
        """Rows, not columns."""
        return len(next(iter(self.values()), ()))

    def __bool__(self) -> bool:
        return len(self) > 0


def repeated(value: Any, count: int) -> np.ndarray:
    """A column of one value again and again, which takes the memory of one.

    >>> repeated("ab", 10**9).nbytes // 10**9, repeated("ab", 10**9).strides
    (8, (0,))
    """
    import numpy as np

    return np.broadcast_to(np.asarray(value), (count,))


def unite_blocks(blocks: Sequence[Mapping[str, Any]]) -> Block:
    """One block of all rows; a value that a block lacks is None. Lists become one list, anything else stays where it is, as `Pieces`.

    >>> dict(unite_blocks([{"a": [1]}, {"a": [2], "b": [3.0]}]))
    {'a': [1, 2], 'b': [None, 3.0]}
    >>> import numpy as np
    >>> list(unite_blocks([{"a": np.arange(2)}, {"a": [5]}])["a"])
    [0, 1, 5]
    """
    import numpy as np

    names = dict.fromkeys(name for block in blocks for name in block)
    sizes = [len(next(iter(block.values()), ())) for block in blocks]
    united = Block()
    for name in names:
        parts = [block[name] if name in block else repeated(None, n) for block, n in zip(blocks, sizes, strict=True)]
        if all(isinstance(part, list) or (isinstance(part, np.ndarray) and part.dtype.kind == "O") for part in parts):
            united[name] = list(Pieces(parts))
        else:
            united[name] = Pieces([piece for part in parts for piece in (part.parts if isinstance(part, Pieces) else [part])])
    return united


def distinct(values: Any) -> list[Any]:
    """The values of a column, each once, in the order in which they first occur.

    >>> distinct(Pieces([repeated("b", 3), ["a", "b"]]))
    ['b', 'a']
    """
    import numpy as np

    found: dict[Any, None] = {}
    for part in values.parts if isinstance(values, Pieces) else [values]:
        if isinstance(part, np.ndarray):
            few = part[:1] if _constant(part) else part
            found.update(dict.fromkeys(few.tolist()))
        else:
            found.update(dict.fromkeys(part.unique().to_pylist() if hasattr(part, "unique") else part))
    return list(found)


def run_ids(rows: Sequence[Mapping[str, Any]] | Block) -> Iterable[Any]:
    """Of a block each once, of rows one a row; None where there is none."""
    if isinstance(rows, Block):
        return distinct(rows["run_id"]) if "run_id" in rows else [None]
    return (row.get("run_id") for row in rows)


def encode(name: str, rows: Sequence[Mapping[str, Any]] | Block, compression: str = "zstd") -> memoryview:
    """Parquet bytes of rows or a block, with every column that any row has; a value that a row lacks is null.

    NumPy columns keep their types and become no Python objects; they are made Arrow's some rows at a time, and `repeated` ones never whole.

    Raises:
      StoreError: a column mixes types that have no common one.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not isinstance(rows, Block):
        rows = Block({column: [row.get(column) for row in rows] for column in dict.fromkeys(key for row in rows for key in row)})
    columns = {column: _typed(name, column, values) for column, values in rows.items()}
    schema = pa.schema([pa.field(column, kind) for column, (_, kind) in columns.items()])
    few = [column for column, (parts, kind) in columns.items()
           if (pa.types.is_string(kind) and column != "spec") or all(isinstance(part, np.ndarray) and _constant(part) for part in parts)]
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, schema, compression=compression, use_dictionary=few) as writer:  # type: ignore[arg-type]
        for first in range(0, max(len(rows), 1), GROUP_ROWS):
            last = min(first + GROUP_ROWS, len(rows))
            writer.write_table(pa.table([pa.chunked_array(_arrow(_cut(parts, first, last), kind), kind) for parts, kind in columns.values()],
                                        schema=schema))
    return memoryview(sink.getvalue())


def _typed(table: str, column: str, values: Any) -> tuple[list[Any], pa.DataType]:
    """The pieces of a column, NumPy's as they are and others as Arrow arrays, and the type that holds all of them."""
    import numpy as np
    import pyarrow as pa

    parts, listed = [], []
    for part in values.parts if isinstance(values, Pieces) else [values]:
        if hasattr(part, "dtype") and not isinstance(part, np.ndarray):  # JAX's
            part = np.asarray(part)
        if isinstance(part, np.ndarray) and part.dtype.kind not in _KINDS and not (_constant(part) and part[:1].tolist() == [None]):
            part = part.tolist()  # such as bfloat16
        if not isinstance(part, (np.ndarray, pa.Array, pa.ChunkedArray)):
            listed = [value if type(value) in _PLAIN else _plain(value) for value in part]
            try:
                part = pa.array(listed)
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                raise _no_column(table, column, {type(value).__name__ for value in listed}, error) from None
        parts.append(part)
    kinds = {_kind(part) for part in parts}
    try:
        return parts, pa.unify_schemas([pa.schema([("column", kind)]) for kind in kinds], promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise _no_column(table, column, set(map(str, kinds)), error) from None


def _no_column(table: str, column: str, kinds: set[str], error: Exception) -> StoreError:
    return StoreError(f"table {table}, column {column}: values of types {', '.join(sorted(kinds))} make no column "
                      f"({' '.join(str(error).split())[:100]}); give it numbers, strings or booleans")


def _kind(part: Any) -> pa.DataType:
    import numpy as np
    import pyarrow as pa

    if not isinstance(part, np.ndarray):
        return part.type
    return pa.null() if part.dtype == object else pa.string() if part.dtype.kind == "U" else pa.from_numpy_dtype(part.dtype)


def _cut(parts: Sequence[Any], first: int, last: int) -> Iterator[Any]:
    """Rows first .. last - 1 of a column in pieces."""
    for part in parts:
        if first < len(part) and last > 0:
            yield part[max(first, 0):min(last, len(part))]
        first, last = first - len(part), last - len(part)


def _arrow(parts: Iterator[Any], kind: pa.DataType) -> list[pa.Array]:
    """Pieces as Arrow arrays of a type; equal text is written once."""
    import pyarrow as pa

    made = []
    for part in parts:
        if isinstance(part, pa.ChunkedArray):
            made += part.cast(kind, safe=False).chunks
        elif isinstance(part, pa.Array):
            made.append(part.cast(kind, safe=False))
        elif part.dtype == object:
            made.append(pa.nulls(len(part), kind))
        elif _constant(part):
            made.append(pa.repeat(pa.scalar(part[0].item()).cast(kind), len(part)))
        else:
            made.append(pa.array(part).cast(kind, safe=False))
    return made


def _constant(part: np.ndarray) -> bool:
    """Whether a column is one value again and again, as `repeated` makes it."""
    return part.strides == (0,) and len(part) > 0


def _listed(part: Any) -> Any:
    return part.tolist() if hasattr(part, "tolist") else part


def _plain(value: Any) -> Any:
    """A NumPy or JAX scalar as a Python number."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def decode(content: Any, run_ids: set[str] | None = None, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of Parquet bytes; only those of `run_ids`, and only run_id and these columns, if given."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    names = None if columns is None else ["run_id", *columns]
    file = pq.ParquetFile(pa.BufferReader(pa.py_buffer(content)))
    table = pa.concat_tables([file.read_row_group(i, columns=names, use_threads=False) for i in range(file.num_row_groups)])
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


def unite(pieces: Sequence[pa.Table], where: str, columns: Sequence[str] = ()) -> pa.Table:
    """One table of all pieces, sorted by run_id and within a run in the order of the pieces; StoreError if it lacks one of `columns`.

    A column that a piece lacks is null there; integers and floats unite to floats; other types that differ unite to
    strings, with a StoreWarning that names the column.
    """
    import numpy as np
    import pyarrow as pa

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
    unknown = next((column for column in columns if column not in table.column_names), None)
    if unknown is not None:
        raise StoreError(f"{where}: no column {unknown!r}; legal: those of the whole table, read without naming any; choose one of these")
    code = _ranks(table["run_id"])
    return table if (code[1:] >= code[:-1]).all() else table.take(pa.array(np.argsort(code, kind="stable")))


def _ranks(column: pa.ChunkedArray) -> np.ndarray:
    """The place of each text among the column's, in order, int32 [rows]."""
    import numpy as np

    number: dict[str, int] = {}
    codes = [np.zeros(0, np.int32)]
    for chunk in column.chunks:
        few = chunk.dictionary_encode()
        codes.append(np.array([number.setdefault(text, len(number)) for text in few.dictionary.to_pylist()], np.int32)[few.indices.to_numpy()])
    rank = np.empty(len(number), np.int32)
    rank[[number[text] for text in sorted(number)]] = np.arange(len(number))
    return rank[np.concatenate(codes)]


def _unite(types: set[pa.DataType]) -> bool:
    import pyarrow as pa

    try:
        pa.unify_schemas([pa.schema([("column", t)]) for t in types], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return False
    return True
