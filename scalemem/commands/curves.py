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

    group, x = [g.strip() for g in args.group.split(",") if g.strip()], predictors(args.law, args.x)
    for option, column in [*(("x", c) for c in x.values()), *(("group", g) for g in group)]:
        if column == args.y:
            raise TableError(f"--{option} {column!r}: is the column that --y names; give another column to one of them")
    if len(set(group)) < len(group):
        raise TableError(f"--group {args.group!r}: names a column twice; name each once")
    ready = prepare(args.source, derive=pairs(args.derive, "derive"), units=pairs(args.unit, "unit"), where=args.where, distinct=args.distinct)
    return ready, {"y": args.y, "x": x or None, "group": group}


def predictors(law: str, items: list[str]) -> dict[str, str]:
    """{predictor: column} of --x options; a column alone gives its name to the predictor, or is the column of a law's only one."""
    from scalemem.averaging import AUTO, law_of

    own = law_of(law).predictors
    only = own[0] if law != AUTO and len(own) == 1 and len(items) == 1 else None
    return pairs([v if "=" in v else f"{only or v}={v}" for v in items], "x")


def options(args: argparse.Namespace) -> dict[str, Any]:
    """What a fit is told besides its table and law."""
    return {k: getattr(args, k) for k in ("interval", "loss", "trials", "starts", "bootstrap")}


def _counts(ready: Prepared, columns: dict[str, Any], law: str) -> tuple[dict[str, int], list[str]]:
    """How many rows repeat others, and the warnings that this deserves."""
    from scalemem import repeats
    from scalemem.averaging import AUTO

    counts = repeats.count(ready.table, ready.keep, columns["y"], columns["x"] or {}, columns["group"])
    return counts, repeats.told(counts, int(ready.keep.sum()), law == AUTO)


def fit(args: argparse.Namespace) -> Outcome:
    """Fits a law and says what it found."""
    from scalemem import fitting, forecasting, prepare, report, show

    notes = report.notes(pairs(args.note, "note"))
    if args.report:
        report.check(args.report)
    console, (ready, columns) = console_of(args), read(args)
    found = fitting.fit(ready.table, args.law, where=ready.keep, **columns, **options(args))
    if not any(e.status == "ok" for g in found.groups for e in g.parameters.values()):
        error = prepare.constant(ready, found.x, found.group)
        if error:
            raise error
    found = forecasting.with_backtest(found, ready.table, ready.keep, **options(args))
    counts, warned = _counts(ready, columns, args.law)
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
        asked = [*(f"--group {k}=VALUE" for k in found.group), *(f"--at {k}=VALUE" for k in found.x)]
        console.print(f"fit kept in {args.out}; try: {' '.join(['scalemem forecast', args.out, *asked])}", soft_wrap=True)
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
    from scalemem import forecasting, picture, show

    if args.figure:
        picture.check(args.figure)
    console, found = console_of(args), kept(args.fit)
    made = [forecasting.forecast(found, at, interval=args.interval, group=key(args.group)) for at in points(args.at)]
    if args.figure:
        picture.save(lambda: picture.forecast(found, made, key(args.group)), args.figure)
    bodies = [f.to_json() for f in made]
    shared = [w for w in bodies[0]["warnings"] if all(w in b["warnings"] for b in bodies)]
    for b in bodies:
        show.forecast(console, b | {"warnings": [w for w in b["warnings"] if w not in shared]})
    console.print(f"  {escape(show.validation(found.backtest))}", soft_wrap=True, highlight=False)
    for text in shared:
        console.print(f"  [yellow]{escape(text)}[/]", soft_wrap=True)
    if args.figure:
        console.print(f"figure in {args.figure}", soft_wrap=True)
    return bodies[0] if len(bodies) == 1 else {"forecasts": bodies}, 0


def points(items: list[str]) -> list[dict[str, float]]:
    """The points that --at options ask for: a predictor that is given several times takes its values one after the other.

    >>> points(["n=1", "n=2", "d=3"])
    [{'n': 1.0, 'd': 3.0}, {'n': 2.0, 'd': 3.0}]
    """
    values: dict[str, list[float]] = {}
    for item in items:
        for k, v in pairs([item], "at", number=True).items():
            values.setdefault(k, []).append(v)
    several = [k for k, v in values.items() if len(v) > 1]
    if len(several) > 1:
        raise TableError(f"--at: {' and '.join(several)} have several values each; ask for several values of one predictor only")
    n = max(map(len, values.values()), default=1)
    return [{k: v[i] if len(v) > 1 else v[0] for k, v in values.items()} for i in range(n)]


def backtest(args: argparse.Namespace) -> Outcome:
    """How well a law forecasts what was held out."""
    from scalemem import forecasting, picture, rolling, show

    if args.figure:
        picture.check(args.figure)
    if args.rolling is not None and (args.holdout or args.split or args.figure):
        raise TableError(f"--rolling {args.rolling}: holds rows out by itself and is not drawn; leave --holdout, --split and --figure out")
    console, (ready, columns) = console_of(args), read(args)
    if args.rolling is not None:
        result = rolling.rolling(ready.table, args.law, origins=args.rolling, where=ready.keep, **columns, **options(args))
    else:
        result = forecasting.backtest(ready.table, args.law, holdout=args.holdout, split=args.split, where=ready.keep, **columns, **options(args))
    if args.figure:
        picture.save(lambda: picture.backtest(result), args.figure)
    counts, warned = _counts(ready, columns, args.law)
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
    if args.figure:
        console.print(f"figure in {args.figure}", soft_wrap=True)
    return body, 0
