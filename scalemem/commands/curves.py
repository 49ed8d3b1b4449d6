"""Commands that fit, forecast and back-test any table."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from scalemem.commands.terminal import Outcome, console_of, pairs
from scalemem.durable import write_whole
from scalemem.tables import TableError, key_text

if TYPE_CHECKING:
    from scalemem.fitting import Fit
    from scalemem.prepare import Prepared


def read(args: argparse.Namespace) -> tuple[Prepared, dict[str, Any]]:
    """The table with its columns derived, its units and its filters, and which of its columns are the quantity, predictors and groups."""
    from scalemem.prepare import prepare

    group, x = [g.strip() for g in args.group.split(",") if g.strip()], pairs(args.x, "x")
    for option, column in [*(("x", c) for c in x.values()), *(("group", g) for g in group)]:
        if column == args.y:
            raise TableError(f"--{option} {column!r}: is the column that --y names; give another column to one of them")
    if len(set(group)) < len(group):
        raise TableError(f"--group {args.group!r}: names a column twice; name each once")
    ready = prepare(args.source, derive=pairs(args.derive, "derive"), units=pairs(args.unit, "unit"), where=args.where, distinct=args.distinct)
    return ready, {"y": args.y, "x": x or None, "group": group}


def _counts(ready: Prepared, columns: dict[str, Any]) -> tuple[dict[str, int], list[str]]:
    """How many rows repeat others, and the warnings that this deserves."""
    from scalemem import repeats

    counts = repeats.count(ready.table, ready.keep, columns["y"], columns["x"] or {}, columns["group"])
    return counts, repeats.told(counts, int(ready.keep.sum()))


def fit(args: argparse.Namespace) -> Outcome:
    """Fits a law and says what it found."""
    from scalemem import fitting, forecasting, prepare, report, show

    notes = report.notes(pairs(args.note, "note"))
    if args.report:
        report.check(args.report)
    console, (ready, columns) = console_of(args), read(args)
    found = fitting.fit(ready.table, args.law, where=ready.keep, interval=args.interval, **columns)
    if not any(e.status == "ok" for g in found.groups for e in g.parameters.values()):
        error = prepare.constant(ready, found.x, found.group)
        if error:
            raise error
    found = forecasting.with_backtest(found, ready.table, ready.keep, interval=args.interval)
    counts, warned = _counts(ready, columns)
    own = [w for w in found.warnings if not (warned and "repeat another one exactly" in w)]
    found = replace(found, where=ready.where, warnings=(*warned, *own))
    body = found.to_json() | {"table": ready.to_json() | counts | {"notes": notes}}
    if args.out:
        write_whole(Path(args.out), json.dumps(body, indent=1).encode() + b"\n")
    if args.report:
        write_whole(Path(args.report), report.text(report.report(found, body["table"]), Path(args.report).suffix).encode())
    show.rows(console, body["table"])
    show.fits(console, {args.y: body})
    if args.out:
        console.print(f"fit kept in {args.out}; try: scalemem forecast {args.out} --at " + " --at ".join(f"{k}=VALUE" for k in found.x))
    if args.report:
        console.print(f"report in {args.report}", soft_wrap=True)
    return body, 0


def kept(path: str) -> Fit:
    """The fit of a file. Raises TableError where it is not one."""
    from scalemem.fitting import Fit

    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise TableError(f"fit file {path}: {error}; name a file that `scalemem fit --out` wrote") from None
    return Fit.from_json(content)


def key(items: list[str]) -> dict[str, Any] | None:
    """The group that COLUMN=VALUE options name, numbers as numbers; None where there are none."""
    def cell(text: str) -> Any:
        if text in ("True", "False", "true", "false"):
            return text in ("True", "true")
        try:
            return float(text) if math.isfinite(float(text)) else text
        except ValueError:
            return text

    return {k: cell(v) for k, v in pairs(items, "group").items()} or None


def forecast(args: argparse.Namespace) -> Outcome:
    """A forecast from a kept fit."""
    from scalemem import forecasting, show

    console, found = console_of(args), kept(args.fit)
    body = forecasting.forecast(found, pairs(args.at, "at", number=True), interval=args.interval, group=key(args.group)).to_json()
    show.forecast(console, body)
    return body, 0


def backtest(args: argparse.Namespace) -> Outcome:
    """How well a law forecasts what was held out."""
    from scalemem import forecasting, show

    console, (ready, columns) = console_of(args), read(args)
    result = forecasting.backtest(ready.table, args.law, holdout=args.holdout, split=args.split, where=ready.keep, **columns)
    counts, warned = _counts(ready, columns)
    body = result.to_json() | {"warnings": warned, "table": ready.to_json() | counts}
    show.rows(console, body["table"])
    rows = [{**r["group"], **{k: v for k, v in r.items() if k not in ("group", "coverage")}, "in 90 %": r["coverage"]["0.9"]} for r in body["rows"]]
    if rows:
        show.table(console, {"title": "Back-test", "columns": list(rows[0]), "rows": rows})
    for r in body["rows"]:
        if "reason" in r:
            console.print(f"[yellow]{escape(key_text(r['group']))}: not tested: {escape(r['reason'])}[/]", soft_wrap=True)
    for text in warned:
        console.print(f"[yellow]{escape(text)}[/]", soft_wrap=True)
    found, share = body["summary"], body["summary"]["coverage"]["0.9"]
    console.print(f"rmse of the log, mean over groups: {show.number(found['rmse_log_mean'])}; 90 % intervals hold "
                  f"{'-' if share is None else f'{share:.0%}'} of {found['n_test']} held-out rows", soft_wrap=True)
    return body, 0
