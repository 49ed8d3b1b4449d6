"""What every command shares: where it prints, what it returns, and NAME=VALUE options."""

from __future__ import annotations

import argparse
import warnings
from typing import Any

from rich.markup import escape

from scalemem.spec import SpecError

Outcome = tuple[Any, int]  # the JSON body and the exit status


class Stopped(Exception):
    """The command was interrupted; says what is safe."""


def console_of(args: argparse.Namespace) -> Any:
    """Standard output for a person; standard error where standard output carries JSON."""
    from rich.console import Console

    console = Console(stderr=args.json, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=args.json, highlight=False, width=140)
    warnings.showwarning = lambda message, *_, **__: console.print(f"[yellow]warning:[/] {escape(str(message))}", soft_wrap=True)
    return console


def pairs(items: list[str], option: str, number: bool = False) -> dict[str, Any]:
    """NAME=VALUE options as a dict; SpecError for what is not of that form."""
    found: dict[str, Any] = {}
    for item in items:
        name, sign, value = item.partition("=")
        if not sign or not name or not value:
            raise SpecError(f"--{option} {item!r}: must be NAME=VALUE; write it with an equals sign")
        if name in found:
            raise SpecError(f"--{option} {item!r}: {name!r} is given twice; give it once")
        try:
            found[name] = float(value) if number else value
        except ValueError:
            raise SpecError(f"--{option} {item!r}: {value!r} is not a number; write {name}=NUMBER") from None
    return found
