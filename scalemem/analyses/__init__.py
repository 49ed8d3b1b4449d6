"""Analyses: tables of per-sequence rows in, a table that fits, claims and figures read out; no accelerator is needed."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from scalemem.spec import SpecError

if TYPE_CHECKING:
    import pyarrow as pa

# name -> module and function, imported when it is used
ANALYSES: dict[str, str] = {
    "acquisition": "acquisition.analyse",
    "acquisition_by_encounter": "acquisition.by_encounter",
    "acquisition_laws": "acquisition.laws",
    "acquisition_retained": "acquisition.retained",
    "arms": "arms.analyse",
    "best_interval": "recurrence.best_interval",
    "contamination": "contamination.analyse",
    "contamination_pool": "contamination.against_fresh",
    "continual": "continual.analyse",
    "counterfactual": "counterfactual.analyse",
    "cumulative_decay": "weight_decay.analyse",
    "domain_order": "domain_order.analyse",
    "domain_transfer": "domain_order.transfer",
    "dose": "dose.analyse",
    "duplicates": "duplicates.analyse",
    "early_stop": "early_stop.analyse",
    "effects": "effects.analyse",
    "environment": "recurrence.environment",
    "environment_lead": "recurrence.lead",
    "fields": "fields.analyse",
    "finetuning": "finetuning.analyse",
    "finetuning_forecast": "finetuning.forecast",
    "finetuning_lines": "finetuning.lines",
    "finetuning_matched": "finetuning.matched",
    "finetuning_order": "finetuning.order",
    "forgotten": "lifelong.forgotten",
    "frontier": "arms.frontier",
    "influence": "counterfactual.influence",
    "labelled": "labelled.analyse",
    "lifelong": "lifelong.forecast",
    "lifelong_strengths": "lifelong.strengths",
    "linear_tasks": "linear_tasks.analyse",
    "lira": "lira.analyse",
    "matched": "matched.analyse",
    "matrix": "matrix.analyse",
    "membership": "membership.analyse",
    "np_rates": "np_rates.analyse",
    "poisson": "poisson.analyse",
    "profile": "profile.analyse",
    "profile_correlation": "profile.between_sizes",
    "profile_forecast": "effects.forecast",
    "rate_lines": "rates.lines",
    "rates": "rates.analyse",
    "recall_curves": "recall.curves",
    "recall_kept": "recall.kept",
    "recall_laws": "recall.laws",
    "recall_matched": "recall.matched",
    "reexposure": "reexposure.analyse",
    "replay_forms": "early_stop.forms",
    "retention": "retention.analyse",
    "spacing": "recurrence.spacing",
    "split": "split.analyse",
    "stability": "stability.analyse",
    "taxonomy": "taxonomy.analyse",
    "thresholds": "dose.thresholds",
    "unintended": "unintended.analyse",
    "unique": "unique.analyse",
    "which": "which.analyse",
}
_LEGAL = {"str": "text", "str | None": "text", "int": "a whole number", "float": "a number", "Sequence[str]": "a list of text",
          "Sequence[float]": "a list of numbers", "Mapping[str, Any]": "a table of options"}


def get(name: str) -> Callable[..., pa.Table]:
    """The analysis of a name; SpecError if there is none."""
    if name not in ANALYSES:
        raise SpecError(f"analysis.name = {name!r}: must be one of {', '.join(ANALYSES)}; choose one of these")
    module, function = ANALYSES[name].split(".")
    return getattr(importlib.import_module(f"scalemem.analyses.{module}"), function)


def options(name: str) -> dict[str, inspect.Parameter]:
    """The options of an analysis, by name, with their annotations as written; those without a default are required."""
    return {p.name: p for p in inspect.signature(get(name)).parameters.values() if p.kind is p.KEYWORD_ONLY}


def check(name: str, given: Mapping[str, Any]) -> None:
    """Raises SpecError, in one line, for an unknown analysis or an unknown, missing or mistyped option of it.

    >>> check("poisson", {"memorised": "exact"})
    Traceback (most recent call last):
    scalemem.spec.SpecError: analysis.memorised: unknown option of poisson; legal: memorized, table, where, blocks, position; remove or rename it
    """
    legal = options(name)
    for key, value in given.items():
        if key not in legal:
            raise SpecError(f"analysis.{key}: unknown option of {name}; legal: {', '.join(legal)}; remove or rename it")
        if not _is(value, kind := legal[key].annotation):
            raise SpecError(f"analysis.{key} = {str(value)[:60]!r}: must be {_LEGAL[kind]}; change its type")
    for key, parameter in legal.items():
        if parameter.default is parameter.empty and key not in given:
            raise SpecError(f"analysis.{key}: missing, {name} needs it; must be {_LEGAL[parameter.annotation]}; add it")


def run(name: str, tables: Mapping[str, pa.Table], given: Mapping[str, Any]) -> pa.Table:
    """The table of an analysis, its options checked first.

    Args:
      name: of `ANALYSES`.
      tables: "runs", "curves" and measures by name.
      given: its options.
    Raises:
      SpecError: as `check`; TableError: a table that has not what is asked for.
    """
    check(name, given)
    return get(name)(tables, **given)


def _is(value: Any, kind: str) -> bool:
    if kind.startswith("Mapping"):
        return isinstance(value, Mapping)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind.startswith("Sequence"):
        return isinstance(value, (list, tuple)) and all(_is(v, kind[9:-1]) for v in value)
    return isinstance(value, str) if kind == "str" else number and (kind == "float" or isinstance(value, int)) if kind in ("int", "float") else (
        value is None or isinstance(value, str))
