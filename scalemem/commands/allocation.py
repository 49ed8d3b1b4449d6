"""The command that spends a training budget."""

from __future__ import annotations

import argparse
from typing import Any

from scalemem.commands.terminal import Outcome, console_of, pairs
from scalemem.tables import TableError


def allocate(args: argparse.Namespace) -> Outcome:
    """The compute-optimal size and tokens, from a fit or from isoFLOP groups."""
    from scalemem import allocation, show
    from scalemem.commands.curves import kept, key

    console = console_of(args)
    allocation.check(args.budget, args.interval, args.flops_factor)
    if args.approach == "2":
        found = _isoflop(args, console)
    else:
        given = [f"--{k}" for k in ("y", "x", "derive", "unit", "where", "distinct", "budgets") if getattr(args, k)]
        if given:
            raise TableError(f"{given[0]}: is of --approach 2 and a table; a fit has its rows already: leave it out, or add --approach 2")
        found = allocation.allocate(kept(args.source), args.budget, interval=args.interval, factor=args.flops_factor, group=key(args.group))
    body = found.to_json()
    show.allocation(console, body)
    return body, 0


def _isoflop(args: argparse.Namespace, console: Any) -> Any:
    from scalemem import isoflop, prepare, show

    x = pairs(args.x, "x")
    if not args.y or set(x) not in ({"n_params", "train_flops"}, {"n_params", "n_tokens"}) or args.group:
        raise TableError("--approach 2: must have a table, --y LOSS, --x n_params=COLUMN and one of --x train_flops=COLUMN and "
                         "--x n_tokens=COLUMN, and no --group; give these")
    try:
        budgets = [float(v) for v in args.budgets.split(",")] if args.budgets else None
    except ValueError:
        raise TableError(f"--budgets {args.budgets!r}: must be numbers with commas between; write 1e19,1e20,1e21") from None
    ready = prepare.prepare(args.source, derive=pairs(args.derive, "derive"), units=pairs(args.unit, "unit"), where=args.where,
                            distinct=args.distinct)
    found = isoflop.allocate(ready.table, args.budget, y=args.y, x=x, keep=ready.keep, interval=args.interval, factor=args.flops_factor,
                             within=args.within, budgets=budgets)
    show.rows(console, ready.to_json())
    return found
