"""Per-sequence tables as arrays: seeds x sequences x sizes x checkpoints, with one clear error for what cannot be one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scalemem import tables as columns
from scalemem.spec import SpecError
from scalemem.tables import RowsError

if TYPE_CHECKING:
    import pyarrow as pa


def table_of(tables: Mapping[str, pa.Table], name: str, where: str | None = None) -> pa.Table:
    """A table by its name, filtered; SpecError if there is none, RowsError if no row is left."""
    if name not in tables:
        raise SpecError(f"analysis.table = {name!r}: must be one of {', '.join(tables) or 'no table'}; measure it, or correct the name")
    found, _ = columns.where(tables[name], where)
    if found.num_rows == 0:
        raise RowsError(f"table {name!r}: no row satisfies where = {where!r}; loosen it, or run what it asks for")
    return found


def number(table: pa.Table, name: str) -> np.ndarray:
    """A column of numbers or true/false as float64, NaN where missing."""
    found = columns.load(table, name)
    if found.dtype == object:
        raise columns.TableError(f"column {name!r}: is text; must be numbers or true/false; name another column")
    return np.where(table.column(name).is_null().to_numpy(), math.nan, found.astype(np.float64))


def truth(table: pa.Table, name: str) -> np.ndarray:
    """A column of true/false, or of scores of which 1 is true, as 0.0 and 1.0; NaN where missing."""
    found = number(table, name)
    return np.where(np.isnan(found), math.nan, found >= 1)


def by(table: pa.Table, names: Sequence[str]) -> Iterator[tuple[dict[str, Any], pa.Table]]:
    """The rows of each group, in sorted order: ({column: value}, its table)."""
    import pyarrow as pa

    code = np.zeros(table.num_rows, np.int64)
    for name in names:
        columns.load(table, name)  # its errors
        cells = table.column(name)
        plain = cells.cast(cells.type.value_type) if pa.types.is_dictionary(cells.type) else cells
        _, encoded = np.unique(plain.combine_chunks().dictionary_encode(null_encoding="encode").indices.to_numpy(zero_copy_only=False),
                               return_inverse=True)
        code = code * (int(encoded.max(initial=0)) + 1) + encoded
    _, first, inverse, size = np.unique(code, return_index=True, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(size)[:-1])
    for key, at in columns.groups(table.take(first), names, np.ones(len(first), bool)):
        yield key, table.take(np.sort(np.concatenate([members[i] for i in at])))


def last(table: pa.Table) -> pa.Table:
    """The rows of the last checkpoint of each run."""
    run, at = columns.load(table, "run_id"), columns.column(table, "exposures")
    _, inverse = np.unique(run.astype(str), return_inverse=True)
    end = np.full(inverse.max() + 1, -math.inf)
    np.maximum.at(end, inverse, at)
    return table.filter(at == end[inverse])


def rows(found: Sequence[Mapping[str, Any]], names: Sequence[str]) -> pa.Table:
    """Rows as a table, whose columns are `names` and in that order, also where there are no rows."""
    import pyarrow as pa

    return pa.table({name: [row[name] for row in found] for name in names})


def runs(tables: Mapping[str, pa.Table]) -> dict[str, dict[str, Any]]:
    """The row of each run in the table of runs, by run_id."""
    return {row["run_id"]: row for row in tables["runs"].to_pylist()}


def grid(table: pa.Table, row: str, column: str, *names: str) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Columns of a long table as matrices, NaN where there is no row.

    Args:
      table: with one row for each pair of values of `row` and `column`.
      names: columns of numbers or true/false.
    Returns:
      the values of `row` [A] and of `column` [B], ascending, and a matrix [A, B] for each name.
    Raises:
      RowsError: two rows of one pair.

    >>> import pyarrow as pa
    >>> grid(pa.table({"seed": [0, 1], "canary": [5, 5], "x": [1.0, 2.0]}), "seed", "canary", "x")[2][0].tolist()
    [[1.0], [2.0]]
    """
    keys = [columns.column(table, n) for n in (row, column)]
    (a, i), (b, j) = (np.unique(x, return_inverse=True) for x in keys)
    flat = i * len(b) + j
    if len(np.unique(flat)) < len(flat):
        again = int(np.setdiff1d(np.arange(len(flat)), np.unique(flat, return_index=True)[1])[0])
        raise RowsError(f"row {again + 1}: a second one of {row} = {keys[0][again]:g}, {column} = {keys[1][again]:g}; there must be one: "
                        "say which with where")
    made = []
    for name in names:
        cells = np.full(len(a) * len(b), math.nan)
        cells[flat] = number(table, name)
        made.append(cells.reshape(len(a), len(b)))
    return a, b, made


class Panel(NamedTuple):
    """R seeds, C sequences, K sizes, F checkpoints; NaN where nothing was measured."""

    seeds: np.ndarray  # [R]
    canary: np.ndarray  # [C]
    sizes: np.ndarray  # [K], parameters, ascending
    fractions: np.ndarray  # [F], of training, ascending, the last is 1
    exposures: np.ndarray  # [K, F], epochs; NaN where a size has no such checkpoint
    value: np.ndarray  # [R, C, K, F]
    memorized: np.ndarray  # [R, C, K, F], 0 or 1
    log_copies: np.ndarray  # [R, C], log(1 + copies)
    position: np.ndarray  # [R, C], step of the first epoch that trains on the last copy, over the largest one
    seen: np.ndarray  # [R, C, F], 1 once every copy was trained on

    @classmethod
    def of(cls, table: pa.Table, value: str, memorized: str) -> Panel:
        """The panel of a per-sequence table.

        Args:
          table: with seed, n_params, exposures, step, canary, copies, last_step and the two columns.
          value: column of a continuous value, larger where a sequence is better known.
          memorized: column of true/false, or of a score that is 1 where a sequence is memorized.
        Raises:
          RowsError: two rows of one sequence, size and checkpoint, or two runs of one seed and size.
        """
        keys = [columns.column(table, n) for n in ("seed", "canary", "n_params", "exposures")]
        (seeds, r), (canary, c), (sizes, k) = (np.unique(x, return_inverse=True) for x in keys[:3])
        runs, number_of = np.unique(columns.load(table, "run_id").astype(str), return_inverse=True)
        which = np.full((len(seeds), len(sizes)), -1)
        which[r, k] = number_of
        if (odd := which[r, k] != number_of).any():
            row = int(np.argmax(odd))
            raise RowsError(f"seed = {seeds[r[row]]:g}, n_params = {sizes[k[row]]:g}: several runs, {runs[number_of[row]]} and "
                            f"{runs[which[r[row], k[row]]]} among them; a panel has one of each: say which with where")
        end = np.zeros((len(seeds), len(sizes)))
        np.maximum.at(end, (r, k), keys[3])
        done = np.where(end[r, k] > 0, keys[3] / np.where(end[r, k] > 0, end[r, k], 1), 1).round(9)
        fractions, f = np.unique(done, return_inverse=True)
        shape = (len(seeds), len(canary), len(sizes), len(fractions))
        at = np.ravel_multi_index((r, c, k, f), shape)
        if len(np.unique(at)) < len(at):
            row = int(np.setdiff1d(np.arange(len(at)), np.unique(at, return_index=True)[1])[0])
            raise RowsError(f"row {row + 1}: a second one of seed {seeds[r[row]]:g}, sequence {canary[c[row]]:g}, {sizes[k[row]]:g} parameters and "
                            f"{keys[3][row]:g} exposures; a panel has one of each: say which with where")

        def cells(x: np.ndarray) -> np.ndarray:
            out = np.full(shape, math.nan)
            out.flat[at] = x
            return out

        def per_sequence(x: np.ndarray) -> np.ndarray:
            out = np.full(shape[:2], math.nan)
            out[r, c] = x
            return out

        exposures = np.full(shape[2:], math.nan)
        exposures[k, f] = keys[3]
        last_step, step = columns.column(table, "last_step"), columns.column(table, "step")
        seen = np.zeros((*shape[:2], len(fractions)))
        np.maximum.at(seen, (r, c, f), step > last_step)
        return cls(seeds, canary, sizes, fractions, exposures, cells(number(table, value)), cells(truth(table, memorized)),
                   per_sequence(np.log1p(columns.column(table, "copies"))), per_sequence(last_step / max(last_step.max(), 1)), seen)

    @property
    def final(self) -> int:
        """The index of the last checkpoint."""
        return len(self.fractions) - 1

    def known(self, *cells: tuple[int, int]) -> np.ndarray:
        """Which sequences were measured in all of these (size, checkpoint) cells, bool [R, C]."""
        return np.all([~np.isnan(self.value[:, :, k, f]) & ~np.isnan(self.memorized[:, :, k, f]) for k, f in cells], axis=0)
