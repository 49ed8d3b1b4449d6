"""What a person sees in a terminal: the plan, the progress, the tables of a study and its verdicts."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

COLOUR = {"HOLDS": "green", "FAILS": "red", "INCONCLUSIVE": "yellow"}


def number(value: Any) -> str:
    """A number as a person reads it: thousands grouped, four digits, "-" for what is not there."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    if abs(value) >= 1e15 or abs(value) < 1e-3:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(75), duration(7300)
    ('1 min 15 s', '2 h 1 min')
    """
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    return f"{s // 60} min {s % 60} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60} min"


def plan(console: Console, event: dict[str, Any], total: int) -> None:
    """One line: what is to be done, before anything is spent."""
    total = event.get("total_runs", total)  # of jobs: those that go one way
    done = total - event["runs"]
    already = f" ({done} of {total} are there already)" if done else ""
    if not event["runs"]:
        console.print(f"Nothing is missing: all {total} runs are in the store.")
        return
    console.print(f"{event['runs']} runs{already} of {event['shapes']} shapes to compile, {event['flops'] / 1e12:.3g} TFLOPs, "
                  f"about {duration(event['seconds'])} on {event['workers']} worker{'s' * (event['workers'] != 1)}.")
    for row in event.get("paths", ()):
        names = ("weights", "optimizer", "gradients", "copies", "activations", "data")
        parts = ", ".join(f"{name} {_megabytes(row[f'{name}_bytes'])}" for name in names if row[f"{name}_bytes"])
        where = f" over {row['devices']} devices" if row["devices"] > 1 else ""
        where += f", each model over {row['split']}" if 1 < row["split"] < row["devices"] else ""
        console.print(f"  {row['path']}{where}: {row['runs']} runs, at most about {_megabytes(row['memory_bytes'])} of "
                      f"{'the machine' if row['path'] == 'cpu' else 'a device'}'s {_megabytes(row['capacity_bytes'])} ({parts})", soft_wrap=True)


def _megabytes(count: float) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e8 else f"{count / 1e6:.2g} MB"


@contextlib.contextmanager
def progress(console: Console, total_runs: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar of the work (by FLOPs), the runs finished and the time left; yields what `launch.run` reports to."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False))
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task, finished, told, jobs = bar.add_task("runs", total=None), 0, 0, ""

        def report(event: dict[str, Any]) -> None:
            nonlocal finished, told, jobs
            kind = event["event"]
            if kind == "plan":
                plan(console, event, total_runs)
                bar.update(task, total=event["flops"], visible=event["runs"] > 0)
            elif kind == "progress":
                bar.advance(task, event["flops"])
            elif kind == "jobs":
                jobs = f"; jobs: {event['running']} run, {event['pending']} wait" + f" ({event['reason']})" * bool(event["reason"])
                bar.update(task, description=f"{finished} runs finished{jobs}")
            elif kind == "run":
                finished += 1
                bar.update(task, description=f"{finished} runs finished{jobs}")
                if event["status"] == "diverged":
                    console.print(f"[yellow]diverged:[/] {event['run_id']} (recorded as such, left out of the fits)")
            elif kind == "failed":
                console.print(f"[red]failed:[/] {len(event['run_ids'])} runs: {escape(event['reason'])} (log: {event.get('log', 'none')})",
                              soft_wrap=True)
            elif kind == "warning":
                console.print(f"[yellow]warning:[/] {escape(event['text'])}", soft_wrap=True)
            share = bar.tasks[task].percentage
            if not console.is_terminal and share >= told + 10:  # a log gets ten lines, not a bar
                told = int(share // 10 * 10)
                console.print(f"{told} % of the work, {finished} runs finished, {duration(bar.tasks[task].elapsed or 0)}")

        yield report


def table(console: Console, content: dict[str, Any]) -> None:
    """A table of `study.shown`."""
    grid = Table(title=content["title"], title_justify="left", title_style="bold", box=None, header_style="dim", pad_edge=False)
    for column in content["columns"]:
        words = column.split("_")
        grid.add_column(" ".join(words), justify="right", min_width=max(map(len, words)), no_wrap=column == "converged")
    for row in content["rows"]:
        grid.add_row(*(number(row.get(column)) for column in content["columns"]))
    console.print(grid)
    console.print()


def rows(console: Console, table: dict[str, Any]) -> None:
    """What became of a table's rows: what each filter left out, and which count as replicates."""
    for f in table["filters"]:
        name = f["filter"] if f["filter"].startswith("--") else f"--where {f['filter']!r}"
        console.print(f"{f['dropped']} of {table['rows']} rows were left out by {name}", soft_wrap=True, markup=False)
    if table.get("replicates"):
        console.print(f"{table['replicates']} rows share group and x with rows of another y: they count as replicates", soft_wrap=True)


def fits(console: Console, found: dict[str, Any]) -> None:
    """Each fit: its law and parameters with their intervals."""
    from scalemem.averaging import law_of

    for name, fit in found.items():
        console.print(f"[bold]fit {name}[/]: {law_of(fit['law'], fit['x']).formula}  ({fit['n_rows']} rows, {fit['interval']:.0%} intervals)")
        for group in fit["groups"]:
            key = ", ".join(f"{k} {number(v)}" for k, v in group["key"].items())
            values = "; ".join(_estimate(k, e) for k, e in group["parameters"].items())
            console.print(f"  {key + ': ' if key else ''}{values}", soft_wrap=True, highlight=False)
        for text in fit["warnings"]:
            console.print(f"  [yellow]{escape(text)}[/]", soft_wrap=True)
    console.print()


def _estimate(name: str, e: dict[str, Any]) -> str:
    unit = "" if e["unit"] == "1" else f" {e['unit']}"
    status = "" if e["status"] == "ok" else f" ({e['status']})"
    return f"{name} = {number(e['value'])} [{number(e['low'])}, {number(e['high'])}]{unit}{status}"


def result(console: Console, body: dict[str, Any]) -> None:
    """All of a study's result: tables, fits, forecasts, verdicts."""
    for content in body["tables"]:
        table(console, content)
    fits(console, body["fits"])
    for name, problem in body["problems"].items():
        console.print(f"[yellow]not fitted, {name}:[/] {escape(problem)}", soft_wrap=True)
    for f in body["forecasts"]:
        forecast(console, f)
    console.print()
    for claim in body["claims"]:
        verdict(console, claim)


def forecast(console: Console, f: dict[str, Any]) -> None:
    """The forecast, its interval and how far it extrapolates in one line; the weights of its laws and its warnings below."""
    label = f.get("label") or ", ".join(f"{k} = {number(v)}" for k, v in f["at"].items())
    unit = f" {f['unit']}" if f.get("unit") else ""
    console.print(f"[bold]forecast[/] {escape(label)}: {number(f['median'])}{unit}  {f['interval']:.0%} interval [{number(f['low'])}, "
                  f"{number(f['high'])}]  extrapolation={f['extrapolation_text']}", soft_wrap=True, highlight=False)
    if len(f["laws"]) > 1:
        console.print(f"  laws: {weights(f['laws'])}", soft_wrap=True, highlight=False)
    for text in f["warnings"]:
        console.print(f"  [yellow]{escape(text)}[/]", soft_wrap=True)


def weights(laws: dict[str, float], least: float = 0.01) -> str:
    """The weights of laws, the heaviest first; those below `least` are left out.

    >>> weights({"growth": 0.7, "offset": 0.296, "power": 0.004})
    'growth 70 %, offset 30 %'
    """
    return ", ".join(f"{k} {v:.0%}".replace("%", " %") for k, v in sorted(laws.items(), key=lambda kv: -kv[1]) if v >= least)


def validation(b: dict[str, Any] | None) -> str:
    """A fit's back-test in a sentence.

    >>> validation({"rmse_log_mean": 0.0123, "coverage": {"0.9": 0.8}, "n_test": 5, "extrapolation": 2.0, "held_out": "largest x"})
    'back-test, largest x held out (up to 2x beyond the rest): rmse of the log 0.0123; 90 % intervals hold 4 of 5 rows'
    """
    if not b or not b.get("n_test"):
        return f"not back-tested: {b['reason']}" if b and b.get("reason") else "not back-tested"
    beyond = f" (up to {b['extrapolation']:.3g}x beyond the rest)" if b.get("extrapolation") else ""
    share = b["coverage"]["0.9"]
    return (f"back-test, {b['held_out']} held out{beyond}: rmse of the log {number(b['rmse_log_mean'])}; 90 % intervals hold "
            f"{'-' if share is None else round(share * b['n_test'])} of {b['n_test']} rows")


def verdict(console: Console, claim: dict[str, Any]) -> None:
    """The verdict with the claim, the numbers that it rests on, and those of each group where there are several."""
    bounds = [b if b is not None else w for b, w in zip(claim["claim"], ("-inf", "inf"), strict=True)]
    console.print(f"[{COLOUR[claim['verdict']]} bold]{claim['verdict']:<12}[/] {escape(claim['text'])}", soft_wrap=True, highlight=False)
    published = f"; published {claim['published']}" if claim.get("published") is not None else ""
    lines = [f"{_measured(claim)}, claim [{bounds[0]}, {bounds[1]}]{published}" + (f"; {claim['reason']}" if claim["reason"] else "")]
    lines += [f"{part['verdict']:<12} {part['id']}: {_measured(part)}" for part in claim.get("parts") or ()]
    for line in lines:
        console.print(f"             {line}", soft_wrap=True, highlight=False, markup=False, style="dim")


def _measured(v: dict[str, Any]) -> str:
    return f"{number(v['value'])} [{number(v['low'])}, {number(v['high'])}], n = {v['n']}"


def allocation(console: Console, a: dict[str, Any]) -> None:
    """The size and tokens that a budget is best spent on, and what that rests on."""
    console.print(f"[bold]allocation[/] of {a['budget']:.3g} FLOP (C = {a['flops_factor']:g} N D), approach {a['approach']}, {a['interval']:.0%} "
                  f"intervals, extrapolation={number(a['extrapolation'])}x", soft_wrap=True, highlight=False)
    for g in a.get("groups", ()):
        found = f"least loss at {g['n_params']:.4g} parameters" if g["n_params"] else g["reason"]
        console.print(f"  group C = {g['compute']:.3g}: {g['n_rows']} runs, {found}", soft_wrap=True, highlight=False)
    for name in ("n_params", "n_tokens", "tokens_per_param", "exponent_n_params", "exponent_n_tokens", "loss"):
        if name in a:
            e = a[name]
            low, value, high = ("-" if e[k] is None else f"{e[k]:.4g}" for k in ("low", "value", "high"))
            unit, status = "" if e["unit"] == "1" else f" {e['unit']}", "" if e["status"] == "ok" else f" ({e['status']})"
            console.print(escape(f"  {name} = {value} [{low}, {high}]{unit}{status}"), soft_wrap=True, highlight=False)
    for text in a["warnings"]:
        console.print(f"  [yellow]{escape(text)}[/]", soft_wrap=True)
