"""The language of filters and derived columns: parsed, never evaluated as code.

It has columns (`` `Model Size` `` in backticks where the name is not one word), numbers, quoted text, `+ - * / **`, comparisons
(chained, too), `x in [1, 2]`, `and`, `or`, `not`, parentheses, `true`, `false` and is_null, log, log2, exp, sqrt, abs. A comparison with a
missing value is false, also where a column holds nothing else and so has no type.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Columns = Callable[[str], np.ndarray]  # of a column's name: its cells as bool, float64 or object, or which of them are missing
Constants = Callable[[str], float]  # the value of a dotted name, such as `fit.alpha`
LANGUAGE = "use columns, numbers, 'text', + - * / **, comparisons, in [..], and, or, not, is_null, log, log2, exp, sqrt, abs"
_FUNCTIONS = {"log": np.log, "log2": np.log2, "exp": np.exp, "sqrt": np.sqrt, "abs": np.abs}
_ARITHMETIC = {ast.Add: np.add, ast.Sub: np.subtract, ast.Mult: np.multiply, ast.Div: np.divide, ast.Pow: np.power}
_COMPARISONS = {ast.Eq: np.equal, ast.NotEq: np.not_equal, ast.Lt: np.less, ast.LtE: np.less_equal,
                ast.Gt: np.greater, ast.GtE: np.greater_equal}


class TableError(ValueError):
    """A table that cannot be used as asked. One line: where, the value, what is legal, how to mend it."""


def missing(cells: Any) -> np.ndarray:
    """Which cells are None or NaN."""
    return np.asarray(cells != cells) | np.asarray(np.asarray(cells, object) == np.array(None), bool)


def evaluate(expression: str, load: Columns, null: Columns, constants: Constants | None = None) -> np.ndarray:
    """The value of an expression, (rows,) or () where it names no column: bool, float64 or text.

    Args:
      load, null: give a column's cells, and which of them are missing, by its name.
      constants: gives the value of a dotted name; None: there are none.

    Raises TableError for what is not part of the language.

    >>> evaluate("d / 2 > 5 or d in [8]", {"d": np.array([8.0, 9.0, 16.0])}.__getitem__, np.isnan)
    array([ True, False,  True])
    """
    if not isinstance(expression, str) or not expression.strip() or len(expression) > 2000:
        raise TableError(f"expression {str(expression)[:60]!r}: must be text of 1 to 2000 characters; rewrite it")
    columns: list[str] = []

    def backticked(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]
        columns.append(match[1])
        return f"_column_{len(columns) - 1}"

    text = re.sub(r"""'[^']*'|"[^"]*"|`([^`]+)`""", backticked, expression.strip())
    names = {f"_column_{i}": n for i, n in enumerate(columns)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        what = error.msg if isinstance(error, SyntaxError) else "too deep, or not text"
        raise TableError(f"expression {expression!r}: cannot be read ({what}); {LANGUAGE}") from None
    try:
        with np.errstate(all="ignore"):
            return np.asarray(_Rows(expression, names, load, null, constants)(tree))
    except (RecursionError, OverflowError):
        raise TableError(f"expression {expression[:200]!r}...: too deep or too large a number; {LANGUAGE}") from None


class _Rows:
    """Walks the syntax tree of an expression; a node without a method here is refused."""

    def __init__(self, expression: str, names: Mapping[str, str], load: Columns, null: Columns, constants: Constants | None):
        self.expression, self.names, self.load, self.null, self.constants = expression, names, load, null, constants

    def __call__(self, node: ast.AST, kind: str = "") -> np.ndarray:
        method = getattr(self, type(node).__name__, None)
        if method is None:
            raise self.error(f"{type(node).__name__} is not part of the language")
        value = np.asarray(method(node))
        if kind == "number" and value.dtype == object:
            raise self.error("does arithmetic with text")
        if kind == "truth" and value.dtype != bool:
            if not missing(value).all():
                raise self.error("joins something that is not true or false")
            value = np.zeros(value.shape, bool)  # a column without values has no type of its own
        return value.astype(np.float64) if kind == "number" else value

    def error(self, what: str) -> TableError:
        return TableError(f"expression {self.expression!r}: {what}; {LANGUAGE}")

    def Constant(self, node: ast.Constant):
        if isinstance(node.value, (bool, str)):
            return np.array(node.value, object if isinstance(node.value, str) else bool)
        if isinstance(node.value, (int, float)):
            return float(node.value)
        raise self.error(f"{node.value!r} is not a number or text")

    def Name(self, node: ast.Name):
        name = self.names.get(node.id, node.id)
        return name == "true" if name in ("true", "false") else self.load(name)

    def Attribute(self, node: ast.Attribute):
        if self.constants is None or not isinstance(node.value, ast.Name):
            raise self.error("a dotted name means nothing here")
        return self.constants(f"{node.value.id}.{node.attr}")

    def UnaryOp(self, node: ast.UnaryOp):
        if isinstance(node.op, ast.Invert):
            raise self.error("~ is not part of the language")
        if isinstance(node.op, ast.Not):
            return ~self(node.operand, "truth")
        return self(node.operand, "number") * (-1 if isinstance(node.op, ast.USub) else 1)

    def BinOp(self, node: ast.BinOp):
        if type(node.op) not in _ARITHMETIC:
            raise self.error(f"{type(node.op).__name__} is not part of the language")
        return _ARITHMETIC[type(node.op)](self(node.left, "number"), self(node.right, "number"))

    def BoolOp(self, node: ast.BoolOp):
        result, both = self(node.values[0], "truth"), isinstance(node.op, ast.And)
        for value in node.values[1:]:
            result = result & self(value, "truth") if both else result | self(value, "truth")
        return result

    def Call(self, node: ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if len(node.args) != 1 or node.keywords or name not in (*_FUNCTIONS, "is_null"):
            raise self.error("calls something that is not part of the language")
        if name != "is_null":
            return _FUNCTIONS[name](self(node.args[0], "number"))
        value = self(node.args[0])
        if value.dtype == bool and isinstance(node.args[0], ast.Name):
            return self.null(self.names.get(node.args[0].id, node.args[0].id))
        return missing(value)

    def Compare(self, node: ast.Compare):
        left, result = self(node.left), np.array(True)
        for op, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(op, (ast.In, ast.NotIn)):
                if not isinstance(right, (ast.List, ast.Tuple, ast.Set)):
                    raise self.error("in needs a list")
                found = np.any([np.zeros(left.shape, bool), *(self.compare(ast.Eq, left, self(v)) for v in right.elts)], axis=0)
                result = result & (found if isinstance(op, ast.In) else ~found & ~missing(left))
            else:
                value = self(right)
                result, left = result & self.compare(type(op), left, value), value
        return result

    def compare(self, op: type, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        if op not in _COMPARISONS:
            raise self.error("is is not part of the language")
        known = ~(missing(left) | missing(right))
        if (left.dtype == object) != (right.dtype == object):
            if known.any():
                text = left if left.dtype == object else right
                row = int(np.argmax(known))
                cell = f", row {row + 1} = {str(text[row])[:40]!r}," if text.ndim else f" {str(text)[:40]!r}"
                raise self.error(f"compares text{cell} with a number")
            return known
        if left.dtype == object:
            left, right = (np.where(missing(v), "", v).astype(str) for v in (left, right))
        return _COMPARISONS[op](left, right) & known
