"""Tables in: read CSV, Parquet or a store; filter and derive by safe expressions; columns as float64 with clear errors.

An expression is parsed, never evaluated as code. It has columns (`` `Model Size` `` in backticks where the name is not one word),
numbers, text in quotes, `+ - * / **`, comparisons (chained, too), `x in [1, 2]`, `and`, `or`, `not`, parentheses, `true`, `false` and the
functions is_null, log, log2, exp, sqrt, abs. A comparison with a missing value is false.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

Constants = Callable[[str], float]
_FUNCTIONS = {"log": np.log, "log2": np.log2, "exp": np.exp, "sqrt": np.sqrt, "abs": np.abs}
_ARITHMETIC = {ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.divide, ast.Pow: np.power}
_COMPARISONS = {ast.Eq: np.equal, ast.NotEq: np.not_equal, ast.Lt: np.less, ast.LtE: np.less_equal, ast.Gt: np.greater,
                ast.GtE: np.greater_equal}


class TableError(ValueError):
    """A table that cannot be used as asked. The message is one line: where, the value, what is legal, how to mend it."""


class TooFewRows(TableError):
    """The rows are sound, but there are too few of them for what was asked."""


def read(source: str | Path) -> pa.Table:
    """A table from a CSV file (also .gz), a Parquet file, or the runs of a store directory; told apart by content.

    Raises TableError when the file is absent, empty or malformed, or names a column twice.
    """
    import pyarrow as pa

    path = Path(source)
    if path.is_dir():
        from scalemem.store import Store
        return Store.open(path).table("runs")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        table = _parse(path, magic)
        names = list(table.column_names)
        table.validate()
    except (OSError, EOFError, ValueError, pa.ArrowException) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())
        raise TableError(f"{path}: cannot be read: {reason[:160]}; give a CSV, CSV.gz or Parquet file, or a store") from None
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise TableError(f"{path}: column {twice[0]!r} appears {names.count(twice[0])} times; rename one of them")
    return table


def _parse(path: Path, magic: bytes) -> pa.Table:
    if magic == b"PAR1" or path.suffix in (".parquet", ".pq"):
        import pyarrow.parquet as pq
        return pq.ParquetFile(path).read()
    import gzip

    import pyarrow.csv as csv
    with (gzip.open(path, "rb") if magic[:2] == b"\x1f\x8b" else path.open("rb")) as file:
        return csv.read_csv(file)


def _load(table: pa.Table, name: str) -> np.ndarray:
    """A column as bool, float64 (missing = NaN) or object (text; missing = None)."""
    import pyarrow as pa

    if name not in table.column_names:
        have = ", ".join(table.column_names[:40]) or "none"
        raise TableError(f"column {name!r}: not in the table; its columns are: {have}; correct the name")
    data, kind = table.column(name), table.schema.field(name).type
    if pa.types.is_dictionary(kind):
        data, kind = data.cast(kind.value_type), kind.value_type
    if pa.types.is_boolean(kind):
        return np.array([v is True for v in data.to_pylist()], bool)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind):
        return np.asarray(data.cast(pa.float64(), safe=False).to_numpy(), np.float64)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.array(data.to_pylist() + [None], object)[:-1]
    raise TableError(f"column {name!r} holds {kind}: must be numbers, text or true/false; store it as one of these")


def column(table: pa.Table, name: str, *, above: float | None = None, keep: np.ndarray | None = None, why: str = "") -> np.ndarray:
    """The values of a column as float64: finite, and above `above` where given; `keep` is a mask of the rows that are used.

    Raises TableError naming the row (from 1, before any filter) and the column.

    >>> import pyarrow as pa
    >>> column(pa.table({"loss": [1, 2]}), "loss")
    array([1., 2.])
    >>> column(pa.table({"loss": [1, -2]}), "loss", above=0)
    Traceback (most recent call last):
    scalemem.tables.TableError: column 'loss', row 2 = -2: must be above 0; drop such rows with where = "loss > 0"
    """
    values = _load(table, name)
    keep = np.ones(len(values), bool) if keep is None else keep
    quoted = name if name.isidentifier() else f"`{name}`"

    def refuse(bad: np.ndarray, legal: str, mend: str) -> None:
        if bad.any():
            row = int(np.argmax(bad))
            shown = repr(values[row]) if values.dtype == object else "missing" if math.isnan(values[row]) else f"{values[row]:g}"
            raise TableError(f"column {name!r}, row {row + 1} = {shown[:60]}: must be {legal}; {mend}")

    if values.dtype == object:
        refuse(keep & np.array([not _numeric(v) for v in values], bool), "a number", "mend the cell, or drop the row with a filter")
        refuse(keep, "a number", "the column is stored as text: store it as numbers")
        return np.full(len(values), np.nan)[keep]
    values = values.astype(np.float64)
    refuse(keep & np.isnan(values), "a number", f'fill it in, or drop such rows with where = "not is_null({quoted})"')
    refuse(keep & np.isinf(values), "finite", f'drop such rows with where = "abs({quoted}) < 1e300"')
    if above is not None:
        refuse(keep & (values <= above), f"above {above:g}{why}", f'drop such rows with where = "{quoted} > {above:g}"')
    return values[keep]


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
    """Which rows satisfy the expression, as booleans; None keeps all. `constants` resolves dotted names such as `fit.alpha`."""
    if expression is None:
        return np.ones(table.num_rows, bool)
    result = compute(table, expression, constants)
    if result.dtype != bool:
        raise TableError(f"expression {expression!r}: must be true or false for each row; add a comparison")
    return result


def compute(table: pa.Table, expression: str, constants: Constants | None = None) -> np.ndarray:
    """The value of an expression for each row: bool, float64 or text."""
    if not isinstance(expression, str) or not expression.strip() or len(expression) > 2000:
        raise TableError(f"expression {str(expression)[:60]!r}: must be text of 1 to 2000 characters; write it shorter or add it")
    columns: dict[str, str] = {}

    def backticked(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]
        columns[f"_column_{len(columns)}"] = match[1]
        return f"_column_{len(columns) - 1}"

    text = re.sub(r"""'[^']*'|"[^"]*"|`([^`]+)`""", backticked, expression.strip())
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            value = _Rows(table, expression, columns, constants)(ast.parse(text, mode="eval").body)
    except TableError:
        raise
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        what = error.msg if isinstance(error, SyntaxError) else "too deep or not text"
        raise TableError(f"expression {expression!r}: cannot be read: {what}; write it like \"d_model >= 16 and seed in [0, 1]\"") from None
    return np.broadcast_to(value, (table.num_rows,)).copy()


class _Rows:
    """Walks the syntax tree of an expression over the rows of a table; anything not listed here is refused."""

    def __init__(self, table: pa.Table, expression: str, columns: dict[str, str], constants: Constants | None):
        self.table, self.expression, self.columns, self.constants = table, expression, columns, constants

    def refuse(self, what: str, mend: str) -> TableError:
        return TableError(f"expression {self.expression[:200]!r}: {what}; {mend}")

    def __call__(self, node: ast.AST) -> np.ndarray:
        method = getattr(self, type(node).__name__, None)
        if method is None or type(node).__name__ == "refuse":
            raise self.refuse(f"{type(node).__name__} is not part of the language",
                              "use columns, numbers, text, + - * / **, comparisons, in, and, or, not, is_null")
        return method(node)

    def number(self, node: ast.AST) -> np.ndarray:
        value = self(node)
        if value.dtype == object:
            raise self.refuse("does arithmetic with text", "use numbers there")
        return value.astype(np.float64)

    def truth(self, node: ast.AST) -> np.ndarray:
        value = self(node)
        if value.dtype != bool:
            raise self.refuse("joins something that is not true or false", "compare it with a value first")
        return value

    def Constant(self, node: ast.Constant) -> np.ndarray:
        if isinstance(node.value, bool):
            return np.array(node.value)
        if isinstance(node.value, (int, float)):
            return np.array(float(node.value))
        if isinstance(node.value, str):
            return np.array(node.value, object)
        raise self.refuse(f"{node.value!r} is not a number or text", "write a number, or text in quotes")

    def Name(self, node: ast.Name) -> np.ndarray:
        name = self.columns.get(node.id, node.id)
        if name in ("true", "false") and name not in self.table.column_names:
            return np.array(name == "true")
        return _load(self.table, name)

    def Attribute(self, node: ast.Attribute) -> np.ndarray:
        if self.constants is None or not isinstance(node.value, ast.Name):
            raise self.refuse("a dotted name means nothing here", "use a column")
        return np.array(float(self.constants(f"{node.value.id}.{node.attr}")))

    def UnaryOp(self, node: ast.UnaryOp) -> np.ndarray:
        if isinstance(node.op, ast.Not):
            return ~self.truth(node.operand)
        if isinstance(node.op, ast.Invert):
            raise self.refuse("~ is not part of the language", "write not")
        value = self.number(node.operand)
        return -value if isinstance(node.op, ast.USub) else value

    def BinOp(self, node: ast.BinOp) -> np.ndarray:
        if type(node.op) not in _ARITHMETIC:
            raise self.refuse(f"{type(node.op).__name__} is not part of the language", "use + - * / **, and, or")
        return np.asarray(_ARITHMETIC[type(node.op)](self.number(node.left), self.number(node.right)))

    def BoolOp(self, node: ast.BoolOp) -> np.ndarray:
        parts = [self.truth(v) for v in node.values]
        both = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
        result = parts[0]
        for part in parts[1:]:
            result = both(result, part)
        return np.asarray(result)

    def Call(self, node: ast.Call) -> np.ndarray:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if len(node.args) != 1 or node.keywords or name not in (*_FUNCTIONS, "is_null"):
            raise self.refuse("calls something that is not part of the language", f"use is_null, {', '.join(_FUNCTIONS)} of one value")
        if name == "is_null":
            value = self(node.args[0])
            if isinstance(node.args[0], ast.Name) and value.dtype == bool:
                return np.array(self.table.column(self.columns.get(node.args[0].id, node.args[0].id)).is_null())
            return np.equal(value, None) if value.dtype == object else np.isnan(value)
        return np.asarray(_FUNCTIONS[name](self.number(node.args[0])))

    def Compare(self, node: ast.Compare) -> np.ndarray:
        left, result = self(node.left), np.array(True)
        for op, right_node in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, (ast.In, ast.NotIn)):
                if not isinstance(right_node, (ast.List, ast.Tuple, ast.Set)):
                    raise self.refuse("in needs a list", "write x in [1, 2]")
                found = np.zeros(left.shape, bool)
                for item in right_node.elts:
                    found = found | self.compare(ast.Eq, left, self(item))
                result = result & (found if isinstance(op, ast.In) else ~found & ~self.missing(left))
            else:
                right = self(right_node)
                result = result & self.compare(type(op), left, right)
                left = right
        return np.asarray(result)

    @staticmethod
    def missing(value: np.ndarray) -> np.ndarray:
        return np.asarray(np.equal(value, None), bool) if value.dtype == object else np.isnan(value.astype(np.float64))

    def compare(self, op: type, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        if op not in _COMPARISONS:
            raise self.refuse("is is not part of the language", "write == or is_null(column)")
        if (left.dtype == object) != (right.dtype == object):
            raise self.refuse("compares text with a number", "put text in quotes and numbers without")
        known = ~(self.missing(left) | self.missing(right))
        if left.dtype == object:
            left, right = (np.where(np.equal(v, None), "", v).astype(str) for v in (left, right))
        return np.asarray(_COMPARISONS[op](left, right)) & known


def derive(table: pa.Table, name: str, expression: str, unit: str = "", constants: Constants | None = None) -> pa.Table:
    """The table with one more column, computed by an expression; `unit` is kept with the column.

    >>> import pyarrow as pa
    >>> derive(pa.table({"bits": [6.0], "n_params": [2]}), "alpha", "bits / n_params").column("alpha").to_pylist()
    [3.0]
    """
    import pyarrow as pa

    if name in table.column_names:
        raise TableError(f"column {name!r}: is in the table already; choose another name")
    values = compute(table, expression, constants)
    array = pa.array(values.tolist()) if values.dtype == object else pa.array(values)
    return table.append_column(pa.field(name, array.type, metadata={"unit": unit} if unit else None), array)


def unit(table: pa.Table, name: str) -> str:
    """The unit kept with a column, or its name, which carries it (`loss_nats`)."""
    return (table.schema.field(name).metadata or {}).get(b"unit", name.encode()).decode()


def groups(table: pa.Table, names: Sequence[str] | str, keep: np.ndarray) -> list[tuple[dict[str, Any], np.ndarray]]:
    """The kept rows by the values of some columns, in sorted order: [({column: value}, row numbers from 0)]."""
    names = [names] if isinstance(names, str) else names
    found: dict[tuple, list[int]] = {}
    cells = [_load(table, n) for n in names]
    for row in np.flatnonzero(keep):
        key = tuple(_plain(c[row]) for c in cells)
        if None in key:
            raise TableError(f"column {names[key.index(None)]!r}, row {row + 1} is missing: must have a value, it forms groups; "
                             f'fill it in, or drop such rows with where = "not is_null({names[key.index(None)]})"')
        found.setdefault(key, []).append(int(row))
    order = sorted(found, key=lambda k: tuple((isinstance(v, str), v) for v in k))
    return [(dict(zip(names, k, strict=True)), np.array(found[k])) for k in order]


def _plain(cell: Any) -> Any:
    """A cell as a JSON value; whole numbers as int, missing as None."""
    if cell is None or isinstance(cell, str):
        return cell
    if isinstance(cell, np.bool_):
        return bool(cell)
    return None if math.isnan(cell) else int(cell) if float(cell).is_integer() and abs(cell) < 2**53 else float(cell)


def codes(table: pa.Table, name: str) -> np.ndarray:
    """A number for each distinct value of a column, to compare rows by; missing values are one value."""
    values = _load(table, name)
    return np.unique(values.astype(str), return_inverse=True)[1].reshape(-1).astype(np.float64)


def key_text(key: Mapping[str, Any]) -> str:
    """A group's key as text: "d_model = 16, seed = 0"."""
    return ", ".join(f"{k} = {v}" for k, v in key.items())


def values(table: pa.Table, expression: str, keep: np.ndarray, constants: Constants | None = None, above: float = -math.inf) -> np.ndarray:
    """An expression as float64 on all rows (NaN where `keep` is false); finite and above `above` where it is true, or TableError."""
    found = compute(table, expression, constants)
    bad = keep & ~((found > above) & np.isfinite(found)) if found.dtype != object else keep
    if bad.any():
        row = int(np.argmax(bad))
        raise TableError(f"expression {expression!r}, row {row + 1} = {found[row]}: must be a finite number"
                         f"{f' above {above:g}' if above > -math.inf else ''}; leave such rows out with a filter")
    return np.where(keep, found.astype(np.float64), math.nan) if found.dtype != object else np.full(len(found), math.nan)
