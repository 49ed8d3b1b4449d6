"""Commands that fit, forecast and back-test any table."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from scalemem.commands.terminal import Outcome, console_of, pairs
from scalemem.durable import write_whole
from scalemem.tables import TableError


def _read(args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    from scalemem import tables

    table = tables.read(args.source)
    group = [g for g in args.group.split(",") if g]
    return table, {"y": args.y, "x": pairs(args.x, "x") or None, "group": group}


def fit(args: argparse.Namespace) -> Outcome:
    """Fits a law and says what it found."""
    from scalemem import fitting, forecasting, show

    console, (table, columns) = console_of(args), _read(args)
    found = fitting.fit(table, args.law, where=args.where, interval=args.interval, **columns)
    found = forecasting.with_backtest(found, table, interval=args.interval)
    body = found.to_json()
    if args.out:
        write_whole(Path(args.out), json.dumps(body, indent=1).encode() + b"\n")
    show.fits(console, {args.y: body})
    if found.dropped:
        console.print(f"{found.dropped} rows were left out by --where {args.where!r}", soft_wrap=True)
    if args.out:
        console.print(f"fit kept in {args.out}; try: scalemem forecast {args.out} --at " + " --at ".join(f"{k}=VALUE" for k in found.x))
    return body, 0


def forecast(args: argparse.Namespace) -> Outcome:
    """A forecast from a kept fit."""
    from scalemem import forecasting, show
    from scalemem.fitting import Fit

    console = console_of(args)
    try:
        content = json.loads(Path(args.fit).read_text())
    except (OSError, ValueError) as error:
        raise TableError(f"fit file {args.fit}: {error}; name a file that `scalemem fit --out` wrote") from None
    found = Fit.from_json(content)
    group = {k: float(v) if v.replace(".", "", 1).lstrip("-").isdigit() else v for k, v in pairs(args.group, "group").items()} or None
    body = forecasting.forecast(found, pairs(args.at, "at", number=True), interval=args.interval, group=group).to_json()
    show.forecast(console, body)
    return body, 0


def backtest(args: argparse.Namespace) -> Outcome:
    """How well a law forecasts what was held out."""
    from scalemem import forecasting, show

    console, (table, columns) = console_of(args), _read(args)
    if args.where:
        from scalemem import tables
        table, dropped = tables.where(table, args.where)
        console.print(f"{dropped} rows were left out by --where {args.where!r}", soft_wrap=True)
    body = forecasting.backtest(table, args.law, holdout=args.holdout, split=args.split, **columns).to_json()
    rows = [{**r["group"], **{k: v for k, v in r.items() if k not in ("group", "coverage")}, "in 90 %": r["coverage"]["0.9"]} for r in body["rows"]]
    if rows:
        show.table(console, {"title": "Back-test", "columns": list(rows[0]), "rows": rows})
    found, share = body["summary"], body["summary"]["coverage"]["0.9"]
    console.print(f"rmse of the log, mean over groups: {show.number(found['rmse_log_mean'])}; 90 % intervals hold "
                  f"{'-' if share is None else f'{share:.0%}'} of {found['n_test']} held-out rows", soft_wrap=True)
    return body, 0
