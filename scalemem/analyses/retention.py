"""Which law a forgetting curve follows: each is fitted to the first part of the curve and judged by its error on the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scalemem import laws as registry
from scalemem.analyses import panel as panels
from scalemem.laws.base import Law
from scalemem.spec import SpecError
from scalemem.tables import RowsError, TableError

if TYPE_CHECKING:
    import pyarrow as pa

LAWS = ("log_linear", "power", "power_floor", "exponential", "exponential_decay", "exponential_decay_double")
GRID = {1: 96, 2: 28}  # values of each parameter that is not linear, where there are so many of them
EXPONENTS = (0.02, 5.0)
CHUNK = 1 << 22  # numbers at a time
COLUMNS = ("head_error", "tail_error", "tail_bias", "wins_fraction", "margin_ratio", "explained_fraction")


class Fitted(NamedTuple):
    """Least squares of a law on G curves."""

    parameters: dict[str, np.ndarray]  # [G] each
    squares: np.ndarray  # [G], sum of squared residuals


def analyse(tables: Mapping[str, pa.Table], *, value: str, table: str = "facts", time: str = "stage_step",
            group: Sequence[str] = ("seed", "n_params"), laws: Sequence[str] = LAWS, factor: float = 4.0, where: str | None = None) -> pa.Table:
    """Laws of decay compared on held-out tails: fitted up to time T / factor, and judged by the error from there to the last time T.

    The curve of a group is the mean of `value` over its rows at each time; rows at time 0 or before are left out. Every law is fitted by least
    squares on `value` itself, which may be negative, whatever scale `scalemem fit` has for it. The error is the root mean square over the
    times of the tail. Thousands of curves with the same times are fitted together.

    Args:
      tables: that of the curves.
      table, where: its name, and which of its rows.
      value: what is retained: a log probability less what it was before, an accuracy, a retainability.
      time: column of the time since learning ended, such as steps.
      group: columns; each combination of their values is a curve, such as a seed or a fact.
      laws: names of laws in one predictor x, the time, that are linear in their other parameters but one or two.
      factor: how many times longer the curve is than the part that laws are fitted to, above 1.
    Returns:
      a row for each curve and law, errors in the unit of `value`: points_count and tail_count; head_error and tail_error, root mean squares of the
      fit to the head on both parts; tail_bias, mean of fit less value on the tail; wins_fraction, 1 for the law of the least tail_error;
      margin_ratio, the least tail_error of the others over its own; explained_fraction, R^2 of a fit to all points, and the parameters of
      that fit by their names in the laws' formulas, NaN where a law has none of this name. A curve with too few points to fit and judge
      all laws is left out.
    Raises:
      SpecError: an unknown law, or a factor that is not above 1. TableError: a column that is none. RowsError: no curve has enough points.

    Source: the comparison that shared/literature/forgetting.md 2 asks for: log-linear, exponential and power with a floor, by held-out tail.
    """
    import pyarrow as pa

    if not factor > 1:
        raise SpecError(f"analysis.factor = {factor!r}: must be above 1; 4 forecasts a curve four times as long as what is known")
    chosen = [_law(name) for name in laws]
    parameters = tuple({p: None for law in chosen for p in law.names})
    parts: list[dict[str, np.ndarray]] = []
    times, keys, curves = _curves(panels.table_of(tables, table, where), value, time, group)
    for at, members in _patterns(curves):
        x, y = times[at], curves[np.ix_(members, at)]
        head = x <= x[-1] / factor
        if head.sum() <= max(len(law.names) for law in chosen):
            continue
        found = [judge(law, x, y, head) for law in chosen]
        tails = np.array([f["tail_error"] for f in found])
        for i, f in enumerate(found):
            others = np.delete(tails, i, 0).min(0) if len(found) > 1 else np.full(len(members), math.nan)
            with np.errstate(divide="ignore", invalid="ignore"):
                f |= {"margin_ratio": others / tails[i], "wins_fraction": (tails[i] <= tails.min(0)).astype(float)}
            counts = {"curve": members, "law": np.full(len(members), i), "points_count": np.full(len(members), len(x)),
                      "tail_count": np.full(len(members), np.sum(~head))}
            parts.append(counts | {name: f.get(name, np.full(len(members), math.nan)) for name in (*COLUMNS, *parameters)})
    if not parts:
        raise RowsError(f"table {table!r}: no curve has enough times before and after a {factor:g}th of its last for {', '.join(laws)}; "
                        "measure more, name simpler laws, or lower the factor")
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.lexsort((columns["law"], columns["curve"]))
    columns = {name: values[order] for name, values in columns.items()}
    which, law = pa.array(columns.pop("curve")), np.asarray(laws, object)[columns.pop("law")]
    return pa.table({**{name: values.take(which) for name, values in keys.items()}, "law": pa.array(law, pa.string()), **columns})


def judge(law: Law, x: np.ndarray, y: np.ndarray, head: np.ndarray) -> dict[str, np.ndarray]:
    """What is said of one law on curves y [G, N] at times x [N]: errors of the fit to `head` [N], R^2 and parameters of that to all, [G] each."""
    missed = curve(law, x, fit(law, x[head], y[:, head]).parameters) - y
    whole = fit(law, x, y)
    with np.errstate(divide="ignore", invalid="ignore"):
        explained = 1 - whole.squares / np.sum((y - y.mean(1, keepdims=True)) ** 2, 1)
    return {"head_error": np.sqrt(np.mean(missed[:, head] ** 2, 1)), "tail_error": np.sqrt(np.mean(missed[:, ~head] ** 2, 1)),
            "tail_bias": missed[:, ~head].mean(1), "explained_fraction": explained, **whole.parameters}


def curve(law: Law, x: np.ndarray, parameters: Mapping[str, np.ndarray]) -> np.ndarray:
    """The law at x [N] for parameters [G] each: [G, N].

    >>> curve(registry.get("exponential"), np.array([0.0, 1.0]), {"a": np.array([2.0]), "t": np.array([1.0])}).round(3).tolist()
    [[2.0, 0.736]]
    """
    return np.broadcast_to(law.function({"x": x, "1": np.ones_like(x)}, {k: np.asarray(v)[:, None] for k, v in parameters.items()}),
                           (len(next(iter(parameters.values()))), len(x)))


def fit(law: Law, x: np.ndarray, y: np.ndarray) -> Fitted:
    """Least squares of a law on curves y [G, N] at times x [N], on y itself.

    Parameters in which the law is linear are solved for; the others, one or two, are searched on a grid that all curves share and then on parabolas
    through its best point and that point's neighbours. Exponents lie in EXPONENTS and times between a third of the first and ten times the last x.

    >>> found = fit(registry.get("exponential"), np.arange(1.0, 9), np.exp(-np.arange(1.0, 9) / 3)[None])
    >>> round(float(found.parameters["t"][0]), 4)
    3.0
    """
    free = [p for p in law.parameters if p.name not in law.linear]
    if not free:
        return _refined(law, x, y, [], np.zeros((len(y), 0)), np.zeros(0))
    sides = [_grid(x, "{x}" in p.unit, GRID[len(free)]) for p in free]
    points = np.stack([side.ravel() for side in np.meshgrid(*sides, indexing="ij")], 1)
    if len(free) == 2 and free[0].unit == free[1].unit:
        points = points[points[:, 0] < points[:, 1]]  # which is which does not matter
    q = np.linalg.qr(np.swapaxes(_basis(law, x, free, points), 1, 2))[0]
    squares = np.full((len(y), len(points)), math.inf)
    for part in _chunks(len(y), len(points) * q.shape[-1]):
        squares[part] = -np.sum(np.tensordot(y[part], q, (1, 1)) ** 2, -1)
    best = points[np.argmin(squares, 1)]
    return _refined(law, x, y, free, best, np.array([side[1] - side[0] for side in sides]))


def _grid(x: np.ndarray, is_time: bool, count: int) -> np.ndarray:
    """Logarithms of what is tried."""
    low, high = (x[0] / 3, 10 * x[-1]) if is_time else EXPONENTS
    return np.linspace(math.log(low), math.log(high), count)


def _basis(law: Law, x: np.ndarray, free: Sequence[Any], points: np.ndarray) -> np.ndarray:
    """What multiplies each linear parameter, [M, q, N], at M points [M, k]: logarithms of the others, of minus those that may be negative."""
    given = {p.name: (np.exp(points[:, j]) if p.log else -np.exp(points[:, j]))[:, None] for j, p in enumerate(free)}
    at, nothing = {"x": x, "1": np.ones_like(x)}, dict.fromkeys(law.linear, np.zeros((1, 1)))
    shape = (len(points), len(x))
    return np.stack([np.broadcast_to(law.function(at, {**given, **nothing, k: np.ones((1, 1))}), shape) for k in law.linear], 1)


def _refined(law: Law, x: np.ndarray, y: np.ndarray, free: Sequence[Any], best: np.ndarray, step: np.ndarray) -> Fitted:
    """From the grid's best points [G, k], steps of the grid [k], to the bottom; with what is linear solved for."""
    parts = []
    for part in _chunks(len(y), len(x) * len(law.linear)):
        at, target = best[part].copy(), y[part]
        lowest, solved = _solve(law, x, target, free, at)
        for shrink in (1.0, 0.1):
            for j in range(len(free)):
                move = np.zeros(len(free))
                move[j] = shrink * step[j]
                left, right = (_solve(law, x, target, free, at + sign * move)[0] for sign in (-1, 1))
                with np.errstate(divide="ignore", invalid="ignore"):
                    vertex = 0.5 * (left - right) / (left - 2 * lowest + right)
                there = at + np.clip(np.nan_to_num(vertex), -1, 1)[:, None] * move
                squares, again = _solve(law, x, target, free, there)
                better = squares < lowest
                at[better], lowest, solved = there[better], np.where(better, squares, lowest), np.where(better[:, None], again, solved)
        parts.append((at, lowest, solved))
    at, lowest, solved = (np.concatenate(v) for v in zip(*parts, strict=True))
    found = {p.name: np.exp(at[:, j]) if p.log else -np.exp(at[:, j]) for j, p in enumerate(free)}
    return Fitted({name: found.get(name, solved[:, law.linear.index(name)] if name in law.linear else None) for name in law.names}, lowest)  # type: ignore[misc]


def _solve(law: Law, x: np.ndarray, y: np.ndarray, free: Sequence[Any], points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sum of squared residuals [G], linear parameters [G, q]) of each curve at its own point [G, k], by normal equations."""
    basis = np.broadcast_to(_basis(law, x, free, points), (len(y), len(law.linear), len(x)))
    size = np.sqrt(np.sum(basis**2, 2)) + 1e-300
    gram = (basis @ np.swapaxes(basis, 1, 2)) / (size[:, :, None] * size[:, None, :]) + 1e-15 * np.eye(len(law.linear))
    solved = np.linalg.solve(gram, (basis @ y[..., None]) / size[..., None])[..., 0] / size
    return np.sum((y - (solved[:, None, :] @ basis)[:, 0]) ** 2, 1), solved


def _chunks(count: int, each: int) -> list[slice]:
    most = max(1, CHUNK // max(1, each))
    return [slice(i, min(i + most, count)) for i in range(0, count, most)]


def _law(name: str) -> Law:
    try:
        law = registry.get(name)
    except TableError as error:
        raise SpecError(f"analysis.laws: {error}") from None
    if law.predictors != ("x",) or len(law.names) - len(law.linear) not in (0, 1, 2):
        raise SpecError(f"analysis.laws: {name!r} must have one predictor, and at most two parameters that are not linear; choose among "
                        f"{', '.join(LAWS)}")
    return law


def _curves(table: pa.Table, value: str, time: str, group: Sequence[str]) -> tuple[np.ndarray, dict[str, pa.Array], np.ndarray]:
    """(times [N], {column: its value for each curve [G]}, means [G, N], NaN where a curve has no row)."""
    import pyarrow as pa

    at, values = panels.number(table, time), panels.number(table, value)
    keep = at > 0
    if np.isnan(values[keep]).any():
        raise RowsError(f"column {value!r}: {int(np.isnan(values[keep]).sum())} values are missing; leave their rows out with where")
    if not keep.any():
        raise RowsError(f"column {time!r}: no time is above 0; a curve of forgetting begins after learning")
    times, column = np.unique(at[keep], return_inverse=True)
    cells = [table.column(name).combine_chunks().filter(pa.array(keep)).dictionary_encode() for name in group if _has(table, name)]
    code = np.zeros(int(keep.sum()), np.int64)
    for cell in cells:
        rank = np.argsort(np.argsort(cell.dictionary.to_numpy(zero_copy_only=False)))
        code = code * len(rank) + rank[cell.indices.to_numpy(zero_copy_only=False)]
    _, first, row = np.unique(code, return_index=True, return_inverse=True)
    shape = (len(first), len(times))
    flat = row * len(times) + column
    count = np.bincount(flat, minlength=shape[0] * shape[1]).reshape(shape)
    total = np.bincount(flat, values[keep], minlength=shape[0] * shape[1]).reshape(shape)
    keys = {name: cell.dictionary.take(cell.indices.take(pa.array(first))) for name, cell in zip(group, cells, strict=True)}
    return times, keys, np.where(count > 0, total / np.maximum(count, 1), math.nan)


def _has(table: pa.Table, name: str) -> bool:
    if name not in table.column_names or table.column(name).null_count:
        raise TableError(f"column {name!r}: not in the table, or empty in some rows; it forms groups: correct the name, or leave such rows out")
    return True


def _patterns(curves: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(which times [n], which curves [m]) of the curves that have the same times."""
    known = ~np.isnan(curves)
    if known.all():
        return [(np.arange(curves.shape[1]), np.arange(len(curves)))]
    patterns, of = np.unique(known, axis=0, return_inverse=True)
    return [(np.flatnonzero(pattern), np.flatnonzero(of.ravel() == i)) for i, pattern in enumerate(patterns)]
