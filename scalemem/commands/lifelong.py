"""The command that forecasts forgetting from curves of one's own."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from scalemem.commands.curves import points
from scalemem.commands.terminal import Outcome, console_of, pairs
from scalemem.tables import TableError

if TYPE_CHECKING:
    import pyarrow as pa


def lifelong(args: argparse.Namespace) -> Outcome:
    """Forecasts what larger models will have forgotten after more steps, from a table of curves."""
    from scalemem import analyses, show
    from scalemem.prepare import prepare

    console = console_of(args)
    ready = prepare(args.source, derive=pairs(args.derive, "derive"), units=pairs(args.unit, "unit"), where=args.where, distinct=args.distinct)
    at = points(args.at)
    if not at or any(set(point) != {args.size, args.steps} for point in at):
        raise TableError(f"--at: must give {args.size} and {args.steps}; write --at {args.size}=VALUE --at {args.steps}=VALUE")
    kept = ready.table.filter(ready.keep)
    names = {"value": args.y, "size": args.size, "steps": args.steps, "group": args.group}
    made = analyses.run("lifelong", {"forgotten": _with_places(kept, at, names)}, {**names, "interval": args.interval})
    rows = made.to_pylist()
    show.rows(console, ready.to_json())
    show.table(console, {"title": f"Forecast of {args.y}, with its {args.interval:.0%} interval", "columns": list(rows[0]), "rows": rows})
    return {"forecasts": rows, "table": ready.to_json()}, 0


def _with_places(table: pa.Table, at: list[dict[str, float]], names: dict[str, str]) -> pa.Table:
    """The rows that have a value, and for every group a row without one at each place that is asked for."""
    import pyarrow as pa

    from scalemem.analyses import panel

    columns = {name: panel.number(table, name) for name in (names["value"], names["size"], names["steps"])}
    group = table[names["group"]].to_pylist() if names["group"] in table.column_names else [0] * table.num_rows
    rows: list[dict[str, Any]] = [{names["group"]: g, **{name: float(column[i]) for name, column in columns.items()}} for i, g in enumerate(group)]
    rows = [row for row in rows if row[names["value"]] == row[names["value"]]]
    rows += [{names["group"]: g, names["value"]: None, **point} for g in dict.fromkeys(group) for point in at]
    return pa.Table.from_pylist(rows)
