"""How much of what was known is forgotten, and what a larger model will have forgotten after more steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scalemem import tables as columns
from scalemem.analyses import panel, surface
from scalemem.analyses.surface import Rows
from scalemem.tables import RowsError, TableError

if TYPE_CHECKING:
    import pyarrow as pa

FEWEST = 4  # rows of a group that a forecast can be made from


def forgotten(tables: Mapping[str, pa.Table], *, table: str = "facts", value: str = "memorization_nats", known: str = "source == 'stage0'",
              control: str = "source == 'control'", stage: int = 1) -> pa.Table:
    """Curves of forgetting: the share of what a model had learned of some facts that it has lost after so many steps of a later stage.

    learned(t) = mean value of the controls - mean value of the facts, in nats, both of the weights after t steps; a control is a fact of the same
    kind that nothing trained on, so what the stage does to all facts alike is no forgetting.
    forgotten_fraction(t) = 1 - learned(t) / learned(0); it is not cut to [0, 1].

    Args:
      tables: the measure's table has rows a fact and moment: seed, n_params, stage, stage_step, `value`, and what the conditions read.
      value: a code length, in nats.
      known, control: conditions of the facts that had been learned and of the controls.
      stage: the stage in which they are forgotten.
    Returns:
      seed, n_params, steps, learned_nats, forgotten_fraction, facts_count; a row a run and moment, steps = 0 first.
    Raises:
      SpecError: no such table; RowsError: no such rows; TableError: a column that is not there, or a run without controls.
    """
    import pyarrow as pa

    source = panel.table_of(tables, table, f"stage == {stage}")
    mine, others = panel.table_of({table: source}, table, known), panel.table_of({table: source}, table, control)
    means = {}
    for name, part in (("known", mine), ("control", others)):
        for key, rows in panel.by(part, ["seed", "n_params", "stage_step"]):
            means[name, *key.values()] = (float(panel.number(rows, value).mean()), rows.num_rows)
    found: dict[str, list[Any]] = {n: [] for n in ("seed", "n_params", "steps", "learned_nats", "forgotten_fraction", "facts_count")}
    first: dict[tuple[Any, Any], float] = {}
    for kind, *place in sorted(k for k in means if k[0] == "known"):
        if ("control", *place) not in means:
            raise TableError(f"table {table!r}: seed {place[0]}, n_params {place[1]} has no row with {control}; every run needs controls")
        nats, count = means[(kind, *place)]
        learned = means[("control", *place)][0] - nats
        begin = first.setdefault((place[0], place[1]), learned)
        for name, cell in zip(found, (*place, learned, 1 - learned / begin, count), strict=True):
            found[name].append(cell)
    return pa.table(found)


def forecast(tables: Mapping[str, pa.Table], *, table: str = "forgotten", value: str = "forgotten_fraction", size: str = "n_params",
             steps: str = "steps", group: str = "seed", fit_where: str = "", at_where: str = "", interval: float = 0.9) -> pa.Table:
    """What larger models will have forgotten after more steps, from small models and short continuations, seed by seed.

    The surface of `analyses.surface` is learned from the rows of `fit_where` of all groups, and continued in each group from that group's own.
    The values at the places that are forecast are read by the last columns alone.

    Args:
      tables: `table` has the columns named by value, size, steps and group (one group where there is no such column).
      fit_where: the rows that are known; all that have a value between 0 and 1 and steps above 0, if empty.
      at_where: the places to forecast; if empty, the rows without a value.
      interval: of each forecast.
    Returns:
      A row for each place: the group, n_params, steps, forecast_fraction (median), low_fraction, high_fraction, width_fraction, size_ratio and
      steps_ratio (to the largest that was fitted), fit_count, and, where the value is known, actual_fraction, inside (0 or 1), error_fraction and
      same_fraction (the last known value of the largest fitted size: what one says who expects no change), same_error_fraction.
    Raises:
      RowsError: nothing to forecast, or a group with fewer than 4 rows to fit.
    """
    import pyarrow as pa

    source = panel.table_of(tables, table)
    places = source.filter(columns.mask(source, at_where)) if at_where else source.filter(np.isnan(panel.number(source, value)))
    if not places.num_rows:
        raise RowsError(f"table {table!r}: no place to forecast; add rows without {value}, or say which with at_where")
    known = source.filter(columns.mask(source, fit_where or None))
    fitted = {key: _rows(part, size, steps, value, known=True) for key, part in _groups(known, group)}
    asked = dict(_groups(places, group))
    for key in asked:
        if len(fitted.get(key, Rows(*(np.empty(0),) * 3)).size) < FEWEST:
            raise RowsError(f"{group} {key}: fewer than {FEWEST} rows with {value} between 0 and 1 and {steps} above 0 to fit; measure more, or "
                            "loosen fit_where")
    strengths = surface.learn([rows for rows in fitted.values() if len(rows.size) >= FEWEST])
    found: list[dict[str, Any]] = []
    for key, part in asked.items():
        rows, at = fitted[key], _rows(part, size, steps, value, known=False)
        said = surface.forecast(rows, at, strengths)
        low, middle, high = (said.at(q) for q in ((1 - interval) / 2, 0.5, (1 + interval) / 2))
        same = _last(rows)
        for i in range(len(at.size)):
            row = {group: key, size: float(at.size[i]), steps: float(at.steps[i]), "forecast_fraction": float(middle[i]),
                   "low_fraction": float(low[i]), "high_fraction": float(high[i]), "width_fraction": float(high[i] - low[i]),
                   "size_ratio": float(at.size[i] / rows.size.max()), "steps_ratio": float(at.steps[i] / rows.steps.max()),
                   "fit_count": len(rows.size)}
            actual = float(at.fraction[i])
            if not math.isnan(actual):
                row |= {"actual_fraction": actual, "inside": float(low[i] <= min(max(actual, 0.0), 1.0) <= high[i]),
                        "error_fraction": abs(float(middle[i]) - actual), "same_fraction": same, "same_error_fraction": abs(same - actual)}
            found.append(row)
    names = dict.fromkeys(name for row in found for name in row)
    return pa.table({name: [row.get(name) for row in found] for name in names})


def strengths(tables: Mapping[str, pa.Table], *, table: str = "forgotten", value: str = "forgotten_fraction", size: str = "n_params",
              steps: str = "steps", group: str = "seed", fit_where: str = "") -> pa.Table:
    """The strengths that `forecast` learned: how much slopes drift, how much runs differ, and how exact a value is; a row each."""
    import pyarrow as pa

    source = panel.table_of(tables, table, fit_where or None)
    rows = [_rows(part, size, steps, value, known=True) for _, part in _groups(source, group)]
    found = surface.learn([r for r in rows if len(r.size) >= FEWEST])
    cells = [(link, name, value) for link, named in found.items() for name, value in named.items()]
    return pa.table({"link": [c[0] for c in cells], "strength": [c[1] for c in cells], "value": [c[2] for c in cells],
                     "prior_median": [surface.PRIOR[c[1]][0] for c in cells]})


def _groups(source: pa.Table, group: str) -> Sequence[tuple[Any, pa.Table]]:
    if group not in source.column_names:
        return [(0, source)] if source.num_rows else []
    return [(key[group], part) for key, part in panel.by(source, [group])]


def _rows(part: pa.Table, size: str, steps: str, value: str, *, known: bool) -> Rows:
    """The rows of a group; where the values must be `known`, those of steps above 0 and fractions between 0 and 1."""
    made = Rows(*(panel.number(part, name) for name in (size, steps, value)))
    for name, column in ((size, made.size), (steps, made.steps)):
        if not (np.isfinite(column) & (column >= 0)).all() or (name == size and not (column > 0).all()):
            raise TableError(f"column {name!r}: must be positive numbers ({steps} may be 0); mend or leave out the other rows")
    keep = (made.steps > 0) & (made.fraction > 0) & (made.fraction < 1) if known else made.steps > 0
    return Rows(*(column[keep] for column in made))


def _last(rows: Rows) -> float:
    largest = rows.size == rows.size.max()
    return float(rows.fraction[largest][np.argmax(rows.steps[largest])])
