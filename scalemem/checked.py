"""Dataclasses that check themselves: legal values beside each field, and one clear line for what is not legal."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import types
import typing
from dataclasses import MISSING, fields
from typing import Any


class SpecError(ValueError):
    """A spec that cannot be run. The message is one line: field, value, what is legal, how to mend it."""

    __module__ = "scalemem.spec"  # where people find it


def field(default: Any = MISSING, *, low=None, high=None, choices=None, above=None, name=False, doc: str = "") -> Any:
    """A dataclass field with its legal values: low <= x <= high, x > above, x in choices, or the name of a module."""
    legal = {"low": low, "high": high, "above": above, "choices": choices, "name": name, "doc": doc}
    return dataclasses.field(default=default, metadata=legal)


def shown(value: Any) -> str:
    """`repr` on one line of at most 80 characters, also where `repr` itself is long, of several lines or fails."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):
        text = f"<a very large {type(value).__name__}>"
    return text if len(text) < 80 else text[:77] + "..."


def error(path: str, value: Any, legal: str, mend: str) -> SpecError:
    """The error of a field: its path, its value, what is legal, how to mend it."""
    return SpecError(f"{path} = {shown(value)}: must be {legal}; {mend}")


def _check_number(path: str, value: Any, kind: type, legal: typing.Mapping[str, Any]) -> Any:
    """`value` as an exact `kind` within its bounds: 125.0 is the integer 125, 1 is the float 1.0, True is neither."""
    number = None
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            number = kind(value)
        except (ValueError, OverflowError):  # int(nan), int(inf), float(10**400)
            number = None
    if number is None or (number != value if kind is int else not math.isfinite(number)):
        noun = "a whole number" if kind is int else "a finite number"
        raise error(path, value, noun, f"write {noun} for {path}")
    low, high, above = legal.get("low"), legal.get("high"), legal.get("above")
    too_low = (low is not None and number < low) or (above is not None and number <= above)
    if too_low or (high is not None and number > high):
        bounds = (("at least", low), ("above", above), ("at most", high))
        raise error(path, value, " and ".join(f"{word} {limit}" for word, limit in bounds if limit is not None),
                    f"choose a value in that range for {path}")
    return number


@functools.cache
def hints_of(cls: type) -> dict[str, Any]:
    """The types of the fields of a class, by name."""
    return typing.get_type_hints(cls)


@functools.cache
def _rules(cls: type) -> tuple[tuple[str, str, Any, typing.Mapping[str, Any]], ...]:
    """Name, path in messages, type and legal values of each field of a class."""
    return tuple((f.name, f"{name_of(cls)}.{f.name}", hints_of(cls)[f.name], f.metadata) for f in fields(cls))


@functools.lru_cache(maxsize=1 << 16, typed=True)
def _scalar(cls: type, i: int, value: Any) -> Any:
    """The value of a field, checked; the runs of a sweep have most of them in common."""
    _, path, hint, legal = _rules(cls)[i]
    return _check(path, value, hint, legal)


class Checked:
    """Validates every field on construction, from the annotations and the metadata of `field`."""

    def __post_init__(self) -> None:
        for i, (name, path, hint, legal) in enumerate(_rules(type(self))):
            value = getattr(self, name)
            if type(value) in (str, int, bool) or (type(value) is float and value):  # but for 0.0, which equals -0.0
                found = _scalar(type(self), i, value)
            else:
                found = _check(path, value, hint, legal)
            if found is not value:
                object.__setattr__(self, name, found)
        self._check_together()

    def _check_together(self) -> None:
        """Rules between fields; subclasses raise SpecError."""


def name_of(cls: type) -> str:
    """What messages call a value of a class: model for ModelSpec, stage for Stage."""
    return "canaries" if cls.__name__ == "CanarySpec" else cls.__name__.removesuffix("Spec").lower()


def _check(path: str, value: Any, hint: Any, legal: typing.Mapping[str, Any]) -> Any:
    origin = typing.get_origin(hint)
    if origin is types.UnionType or origin is typing.Union:
        options = [a for a in typing.get_args(hint) if a is not type(None)]
        return None if value is None else _check(path, value, options[0], legal)
    if origin is tuple:
        item = typing.get_args(hint)[0]
        if isinstance(value, (str, bytes)) or not isinstance(value, (list, tuple)):
            raise error(path, value, f"a list of {name_of(item)}", f"write {path} as a list")
        return tuple(_check(f"{path}[{i}]", v, item, {}) for i, v in enumerate(value))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, hint):
            raise error(path, value, f"a {hint.__name__}", f"build {path} with {hint.__name__}(...)")
        return value
    if hint in (int, float):
        return _check_number(path, value, hint, legal)
    if not isinstance(value, hint):
        legal_type = {str: "a string", bool: "true or false"}.get(hint, str(hint))
        raise error(path, value, legal_type, f"change the type of {path}")
    if legal.get("choices") and value not in legal["choices"]:
        raise error(path, value, "one of " + ", ".join(legal["choices"]), f"choose one of these for {path}")
    if legal.get("name") and not (value.isascii() and value.isidentifier()):
        raise error(path, value, legal["doc"], f"write {path} as letters, digits and underscores")
    return value
