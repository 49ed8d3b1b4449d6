"""Rolling-origin back-tests: how a law would have forecast the next factor of two, from each of several earlier frontiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scalemem import tables
from scalemem.averaging import law_of
from scalemem.forecasting import Backtest, backtest, summarise
from scalemem.laws.base import Law
from scalemem.tables import TableError

if TYPE_CHECKING:
    import pyarrow as pa


def rolling(table: pa.Table, law: str | Law = "auto", *, y: str, x: Mapping[str, str] | str | None = None, group: Sequence[str] | str = (),
            origins: int = 4, where: str | np.ndarray | None = None, **options: Any) -> Backtest:
    """Fits the rows up to an origin and forecasts those up to twice as far, for several origins in each group.

    With X the largest value of the predictor that spans the largest factor in a group, origin k = 1 ... K is X / 2^k: fitted are rows of at
    most that, tested those of more than that and at most X / 2^(k - 1). Scores are those of `forecasting.backtest`.

    Args:
      table, law, y, x, group, where, options: as in `forecasting.backtest`.
      origins: K, at least 1.
    Returns:
      a row for each group and origin, with `origin`, where something is tested; groups that are too small at an origin have a `reason`.
      The summary is over all of them: origins of one curve share its errors, so that these are fewer independent tests than rows.
    Raises:
      TableError: `origins` out of range, a law without predictors, a column that is none. RowsError: a value that cannot be.

    >>> import pyarrow as pa
    >>> t = pa.table({"n": [1., 2., 4., 8., 16.], "bits": [3.1, 5.9, 12.2, 23.9, 48.5]})
    >>> [round(r["origin"], 1) for r in rolling(t, "power", y="bits", x="n", origins=2).rows]
    [8.0, 4.0]

    Rolling origins: Tashman 2000, International Journal of Forecasting 16:437 (from memory, unverified).
    """
    if isinstance(origins, bool) or not isinstance(origins, int) or not 1 <= origins <= 40:
        raise TableError(f"origins = {origins!r}: must be a whole number from 1 to 40; write 4")
    known = law_of(law, x if isinstance(x, Mapping) else ())
    names = [group] if isinstance(group, str) else list(group)
    columns = [x] if isinstance(x, str) else list((x or {}).values())
    if not columns:
        raise TableError(f"rolling origins: law {known.name} is given no predictor to roll along; name one with x")
    inside = where if isinstance(where, np.ndarray) else tables.mask(table, where)
    frontier, values = np.full(table.num_rows, np.nan), np.full(table.num_rows, np.nan)
    for _, rows in tables.groups(table, names, inside):
        asked = np.zeros(table.num_rows, bool)
        asked[rows] = True
        each = [tables.column(table, c, above=0.0, keep=asked) for c in columns]
        values[asked] = along = max(each, key=lambda v: v.max() / v.min())
        frontier[asked] = along.max()
    found = []
    for k in range(1, origins + 1):
        origin = frontier / 2**k * (1 + 1e-9)
        ahead = inside & (values > origin) & (values <= 2 * origin)
        if not ahead.any():
            continue
        made = backtest(table, law, y=y, x=x, group=names, holdout=ahead, where=inside & (values <= 2 * origin), **options)
        at = {tuple(key.values()): float(frontier[rows[0]] / 2**k) for key, rows in tables.groups(table, names, ahead)}
        found += [r | {"origin": at[tuple(r["group"].values())]} for r in made.rows]
    return Backtest(tuple(found), summarise(found))
