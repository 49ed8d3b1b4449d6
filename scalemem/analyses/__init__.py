"""Analyses: tables of per-sequence rows in, a table that fits, claims and figures read out; no accelerator is needed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from scalemem.analyses import (
    attacks,
    count,
    counterfactual,
    lira,
    matrix,
    np_rates,
    poisson,
    profile,
    taxonomy,
    unique,
    which,
)
from scalemem.spec import SpecError

if TYPE_CHECKING:
    import pyarrow as pa

ANALYSES: dict[str, Callable[..., pa.Table]] = {
    "which": which.analyse, "count": count.analyse, "matrix": matrix.analyse, "profile": profile.analyse,
    "profile_correlation": profile.between_sizes, "poisson": poisson.analyse, "counterfactual": counterfactual.analyse,
    "influence": counterfactual.influence, "lira": lira.analyse, "attacks": attacks.analyse, "np_rates": np_rates.analyse,
    "taxonomy": taxonomy.analyse, "unique": unique.analyse,
}
# option -> its annotation as written, of every analysis; those without a default are required
OPTIONS: dict[str, dict[str, inspect.Parameter]] = {
    name: {p.name: p for p in inspect.signature(f).parameters.values() if p.kind is p.KEYWORD_ONLY} for name, f in ANALYSES.items()}
_LEGAL = {"str": "text", "str | None": "text", "int": "a whole number", "float": "a number", "Sequence[str]": "a list of text",
          "Sequence[float]": "a list of numbers"}


def get(name: str) -> Callable[..., pa.Table]:
    """The analysis of a name; SpecError if there is none."""
    if name not in ANALYSES:
        raise SpecError(f"analysis.name = {name!r}: must be one of {', '.join(ANALYSES)}; choose one of these")
    return ANALYSES[name]


def check(name: str, options: Mapping[str, Any]) -> None:
    """Raises SpecError, in one line, for an unknown analysis or an unknown, missing or mistyped option of it.

    >>> check("poisson", {"memorised": "exact"})
    Traceback (most recent call last):
    scalemem.spec.SpecError: analysis.memorised: unknown option of poisson; legal: memorized, table, where, blocks, position; remove or rename it
    """
    get(name)
    for key, value in options.items():
        if key not in OPTIONS[name]:
            raise SpecError(f"analysis.{key}: unknown option of {name}; legal: {', '.join(OPTIONS[name])}; remove or rename it")
        if not _is(value, kind := OPTIONS[name][key].annotation):
            raise SpecError(f"analysis.{key} = {str(value)[:60]!r}: must be {_LEGAL[kind]}; change its type")
    for key, parameter in OPTIONS[name].items():
        if parameter.default is parameter.empty and key not in options:
            raise SpecError(f"analysis.{key}: missing, {name} needs it; must be {_LEGAL[parameter.annotation]}; add it")


def run(name: str, tables: Mapping[str, pa.Table], options: Mapping[str, Any]) -> pa.Table:
    """The table of an analysis, its options checked first.

    Args:
      name: of `ANALYSES`.
      tables: "runs", "curves" and measures by name.
      options: of `OPTIONS[name]`.
    Raises:
      SpecError: as `check`; TableError: a table that has not what is asked for.
    """
    check(name, options)
    return get(name)(tables, **options)


def _is(value: Any, kind: str) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind.startswith("Sequence"):
        return isinstance(value, (list, tuple)) and all(_is(v, kind[9:-1]) for v in value)
    return isinstance(value, str) if kind == "str" else number and (kind == "float" or isinstance(value, int)) if kind in ("int", "float") else (
        value is None or isinstance(value, str))
