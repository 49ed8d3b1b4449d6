"""Tables in: read CSV, Parquet or a store; filter and derive by safe expressions; columns as float64 with clear errors.

The language of expressions is that of `scalemem.expressions`. Three errors: TableError, the question cannot be asked of this table (no such
column, not an expression); RowsError, one of its kind: it can, but a cell stands against it; TooFewRows: it can, with more rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scalemem.expressions import Constants, TableError, evaluate, missing

if TYPE_CHECKING:
    import pyarrow as pa


class RowsError(TableError):
    """The question is sound, but the rows hold what cannot be used. A study goes on without the fit or claim that needs them."""


class TooFewRows(RowsError):
    """The rows are sound, but there are too few of them for what was asked."""


def read(source: str | Path) -> pa.Table:
    """A table from a CSV file (also .gz), a Parquet file, or the runs of a store directory; told apart by content.

    Lines at the head of a CSV that begin with # are comments and are skipped; rows are numbered from 1 after the line of names.
    Raises TableError when the file is absent, empty or malformed, or names a column twice.
    """
    import pyarrow as pa

    path = Path(source)
    try:
        if path.is_dir():
            from scalemem.store import Store
            return Store.open(path).table("runs")
        table = _parse(path)
        table.validate(full=True)
        names = [str(n) for n in table.column_names]
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        if type(error).__module__.startswith("scalemem."):  # the store's own error says more
            raise
        reason = " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())
        raise TableError(f"{path}: cannot be read: {reason[:160]}; give a CSV, CSV.gz or Parquet file, or a store") from None
    if len(names) == 1 and (apart := next((c for c in ";\t|" if c in names[0]), None)):
        raise TableError(f"{path}: one column, {names[0][:60]!r}: its cells must be separated by commas, not {apart!r}; save it as such")
    twice = [n for n in names if names.count(n) > 1]
    if twice:
        raise TableError(f"{path}: column {twice[0]!r} appears {names.count(twice[0])} times; rename one of them")
    return table


def _parse(path: Path) -> pa.Table:
    import gzip
    import re
    import zlib

    import pyarrow as pa
    import pyarrow.csv as csv
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"PAR1" or path.suffix in (".parquet", ".pq"):
        return pq.ParquetFile(path).read()
    try:
        with gzip.open(path) if magic[:2] == b"\x1f\x8b" else path.open("rb") as file:
            content = file.read()
        comments = re.match(rb"(?:\xef\xbb\xbf)?((?:[ \t]*#[^\r\n]*(?:\r\n|\r|\n|$))*)", content)
        start = comments.end() if comments and comments[1] else 0
        return csv.read_csv(pa.py_buffer(memoryview(content)[start:]), parse_options=csv.ParseOptions(newlines_in_values=True))
    except zlib.error as error:
        raise ValueError(f"damaged gzip data: {error}") from None


def load(table: pa.Table, name: str) -> np.ndarray:
    """A column as bool (missing = false), float64 (missing = NaN) or object (text; missing = None)."""
    import pyarrow as pa

    if name not in table.column_names:
        have = ", ".join(table.column_names[:40]) or "none"
        raise TableError(f"column {name!r}: not in the table; its columns are: {have}; correct the name")
    data, kind = table.column(name), table.schema.field(name).type
    if pa.types.is_dictionary(kind):
        data, kind = data.cast(kind.value_type), kind.value_type
    if pa.types.is_temporal(kind) and not pa.types.is_duration(kind):
        data, kind = pa.chunked_array([[None if v is None else str(v) for v in data.to_pylist()]], pa.string()), pa.string()
    if pa.types.is_boolean(kind):
        return data.fill_null(False).to_numpy()
    if any(f(kind) for f in (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)):
        return np.array(data.cast(pa.float64(), safe=False).to_numpy(), np.float64)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        cells = data.combine_chunks().dictionary_encode()  # equal text is one object
        return np.array([*cells.dictionary.to_pylist(), None], object)[cells.indices.fill_null(-1).to_numpy()]
    raise TableError(f"column {name!r} holds {kind}: must be numbers, text or true/false; store it as one of these")


def column(table: pa.Table, name: str, *, above: float = -math.inf, keep: np.ndarray | None = None,
           why: str = "") -> np.ndarray:
    """The values of a column as float64, finite and above `above`, on the rows where the mask `keep` is true.

    Raises TableError naming the row (from 1, before any filter) and the column.

    >>> import pyarrow as pa
    >>> column(pa.table({"loss": [1, 2]}), "loss")
    array([1., 2.])
    >>> column(pa.table({"loss": [1, -2]}), "loss", above=0)
    Traceback (most recent call last):
    scalemem.tables.RowsError: column 'loss', row 2 = -2: must be above 0; drop such rows with where = "loss > 0"
    """
    found, quoted = load(table, name), name if name.isidentifier() else f"`{name}`"
    keep = np.ones(len(found), bool) if keep is None else keep

    def refuse(bad: np.ndarray, legal: str, mend: str) -> None:
        if bad.any():
            cell = found[row := int(np.argmax(bad))]
            shown = "missing" if missing(cell) else repr(cell)[:60] if isinstance(cell, str) else f"{cell:g}"
            raise (TableError if found.dtype == object else RowsError)(
                f"column {name!r}, row {row + 1} = {shown}: must be {legal}; {mend}")

    if found.dtype == object:
        refuse(keep & np.array([not _numeric(v) for v in found], bool), "a number", "mend the cell or filter the row out")
        refuse(keep, "a number", "the column is stored as text: store it as numbers")
        return np.zeros(0)
    found = np.where(table.column(name).is_null().to_numpy(), math.nan, found.astype(np.float64))
    refuse(keep & np.isnan(found), "a number", f'fill it in, or drop such rows with where = "not is_null({quoted})"')
    refuse(keep & np.isinf(found), "finite", f'drop such rows with where = "abs({quoted}) < 1e300"')
    refuse(keep & (found <= above), f"above {above:g}{why}", f'drop such rows with where = "{quoted} > {above:g}"')
    return found[keep]


def _numeric(cell: Any) -> bool:
    try:
        float(cell)
    except (TypeError, ValueError):
        return False
    return True


def where(table: pa.Table, expression: str | None) -> tuple[pa.Table, int]:
    """The rows for which the expression is true, and how many were dropped.

    >>> import pyarrow as pa
    >>> t, dropped = where(pa.table({"d": [8, 16, 32]}), "d in [8, 32] and not d / 2 > 10")
    >>> t.column("d").to_pylist(), dropped
    ([8], 2)
    """
    import pyarrow as pa

    keep = mask(table, expression)
    return table.filter(pa.array(keep)), int((~keep).sum())


def mask(table: pa.Table, expression: str | None, constants: Constants | None = None) -> np.ndarray:
    """Which rows satisfy the expression, as booleans; None keeps all."""
    if expression is None:
        return np.ones(table.num_rows, bool)
    result = compute(table, expression, constants)
    if result.dtype != bool and missing(result).all():
        return np.zeros(len(result), bool)
    if result.dtype != bool:
        raise TableError(f"expression {expression!r}: must be true or false for each row; add a comparison")
    return result


def compute(table: pa.Table, expression: str, constants: Constants | None = None) -> np.ndarray:
    """The value of an expression for each row: bool, float64 or text."""
    def null(name: str) -> np.ndarray:
        return table.column(name).is_null().to_numpy()

    value = evaluate(expression, lambda name: load(table, name), null, constants)
    return np.broadcast_to(value, (table.num_rows,)).copy()


def values(table: pa.Table, expression: str, keep: np.ndarray, constants: Constants | None = None,
           above: float = -math.inf) -> np.ndarray:
    """An expression as float64 on all rows (NaN where `keep` is false); finite and above `above` on the kept ones."""
    found = compute(table, expression, constants)
    bad = keep if found.dtype == object else keep & ~((found > above) & np.isfinite(found))
    if bad.any():
        row, bound = int(np.argmax(bad)), f" above {above:g}" if above > -math.inf else ""
        raise (TableError if found.dtype == object else RowsError)(
            f"expression {expression!r}, row {row + 1} = {found[row]}: must be a finite number{bound}; "
                         "leave such rows out with a filter")
    return np.array([float(v) if k else math.nan for v, k in zip(found, keep, strict=True)])


def derive(table: pa.Table, name: str, expression: str, unit: str = "", constants: Constants | None = None) -> pa.Table:
    """The table with one more column, computed by an expression; `unit` is kept with the column.

    >>> import pyarrow as pa
    >>> derive(pa.table({"bits": [6.0], "n_params": [2]}), "alpha", "bits / n_params").column("alpha").to_pylist()
    [3.0]
    """
    import pyarrow as pa

    if name in table.column_names:
        raise TableError(f"column {name!r}: is in the table already; choose another name")
    array = pa.array(compute(table, expression, constants).tolist())
    return table.append_column(pa.field(name, array.type, metadata={"unit": unit} if unit else None), array)


def unit(table: pa.Table, name: str) -> str:
    """The unit kept with a column, or its name, which carries it (`loss_nats`)."""
    return (table.schema.field(name).metadata or {}).get(b"unit", name.encode()).decode()


def with_unit(table: pa.Table, name: str, unit: str) -> pa.Table:
    """The table with a unit kept with a column; one made of several is put in brackets, as it becomes part of the units of parameters.

    >>> import pyarrow as pa
    >>> unit(with_unit(pa.table({"loss": [1.0]}), "loss", "nats/token"), "loss")
    '(nats/token)'
    """
    if name not in table.column_names:
        load(table, name)
    if not unit.strip() or len(unit) > 40 or not unit.isprintable():
        raise TableError(f"unit {unit[:50]!r} of column {name!r}: must be a word of at most 40 characters; write {name}=nats")
    text = unit.strip()
    text = f"({text})" if any(c in text for c in " /*^") and not (text[0] == "(" and text[-1] == ")") else text
    at = table.column_names.index(name)
    old = table.schema.field(at)
    return table.set_column(at, old.with_metadata({**(old.metadata or {}), b"unit": text.encode()}), table.column(at))


def groups(table: pa.Table, names: Sequence[str] | str, keep: np.ndarray) -> list[tuple[dict[str, Any], np.ndarray]]:
    """The kept rows by the values of some columns, in sorted order: [({column: value}, row numbers from 0)]."""
    names = [names] if isinstance(names, str) else names
    rows, cells = np.flatnonzero(keep), [load(table, n) for n in names]
    absent, infinite = (np.zeros((len(names), len(rows)), bool) for _ in range(2))
    code = np.zeros(len(rows), np.int64)
    for i, cell in enumerate(c[rows] for c in cells):
        absent[i] = missing(cell)
        infinite[i] = np.isinf(cell) if cell.dtype == np.float64 else False
        _, number = np.unique(np.where(absent[i], "", cell).astype(str) if cell.dtype == object else cell, return_inverse=True)
        code = np.unique(code * (int(number.max(initial=0)) + 1) + number, return_inverse=True)[1]
    bad = (absent | infinite).any(0)
    if bad.any():
        row = int(np.argmax(bad))
        name = names[int(np.argmax(absent[:, row] if absent[:, row].any() else infinite[:, row]))]
        if absent[:, row].any():
            raise RowsError(f"column {name!r}, row {rows[row] + 1} = missing: must have a value, it forms groups; fill it in, "
                            f'or drop such rows with where = "not is_null({name})"')
        raise RowsError(f"column {name!r}, row {rows[row] + 1} = inf: must be finite, it forms groups; filter the row out")
    order = np.argsort(code, kind="stable")
    members = np.split(rows[order], np.flatnonzero(np.diff(code[order])) + 1) if len(rows) else []
    found = {tuple(_plain(c[own[0]]) for c in cells): own for own in members}
    return [(dict(zip(names, k, strict=True)), found[k]) for k in sorted(found, key=lambda k: tuple((isinstance(v, str), v) for v in k))]


def key_text(key: Mapping[str, Any]) -> str:
    """A group's key as text: "d_model = 16, seed = 0"."""
    return ", ".join(f"{k} = {v}" for k, v in key.items())


def _plain(cell: Any) -> Any:
    """A cell as a JSON value: whole numbers as int, missing as None."""
    if missing(cell) or isinstance(cell, (str, np.bool_)):
        return None if missing(cell) else bool(cell) if isinstance(cell, np.bool_) else cell
    return int(cell) if float(cell).is_integer() and abs(cell) < 2**53 else float(cell)
