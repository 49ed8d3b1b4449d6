"""What `fits/NAME.toml` may say, and the check of it. Its sections are

    [[analysis]]  name, kind, [options = {...}]: what scalemem.analyses.KIND makes of the runs, of the tables of
                                     their measures, and of other analyses, which options name
    [[derive]]    name, expression, [unit], [table]
    [[reduce]]    name, group = [columns], column, statistic = "mean" | "median" | "max" | "min" | "count", [where, reason], [table]
    [[fit]]       name, law, y, x = {predictor = "column"}, [group, where + reason, table, interval, replicates, misfit_sd, noise_sd,
                  weights]
    [[forecast]]  fit, at = {predictor = value}, label, [group, interval, scale = factor, unit = "text"]
    [[claim]]     id, text, low and / or high, [published, source], and exactly one quantity:
      parameter = "fit.param"                                every group must hold; the worst decides
      statistic = {of, take, [where, reason, group, table, replicates = [columns]]}
                                                             take = mean | median | min | max | max_abs | spread (max - min over mean)
                                                             | share (of rows that are 1, where all are 0 or 1)
      ratio     = {of, numerator_where, denominator_where, paired_by = [columns], [table]}
      coverage  = {fit, where, [group of the fit is by its columns]}
      collapse  = {pooled = "fit", separate = "fit"}         residual sd of one curve for all over that of a curve each

`table` is "runs" (the default), the name of a measure's table, an analysis or a reduce, or "fit.NAME": a row per group with its columns and each
parameter's value, _low and _high; a fit on it carries the first fit's uncertainty, as shared by all its rows. A reduce has its group columns, the
reduced column, `n_rows` and, for a mean, its standard deviation as `COLUMN_sd`. `replicates` are the columns that must agree for rows to differ by
noise alone; a `spread` or other extreme of a reduced mean knows its noise by itself.
Expressions are those of `scalemem.expressions`, and may use a fitted parameter as `fit_name.parameter`.
`where` in a fit or a reduce needs a `reason`. Sections may refer to each other in any order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from scalemem.spec import SpecError

# key:kind, with ! where it is required
QUANTITIES = {
    "statistic": "of:text! take:text! where:text reason:text group:list table:text replicates:list",
    "ratio": "of:text! numerator_where:text! denominator_where:text! paired_by:list! table:text",
    "coverage": "fit:text! where:text!",
    "collapse": "pooled:text! separate:text!",
}
SECTIONS = {
    "analysis": "name:text! kind:text! options:table",
    "derive": "name:text! expression:text! unit:text table:text",
    "reduce": "name:text! group:list! column:text! statistic:text! where:text reason:text table:text",
    "fit": "name:text! law:text! y:text! x:table group:list where:text reason:text table:text interval:number replicates:list "
           "misfit_sd:number noise_sd:number weights:text",
    "forecast": "fit:text! at:table! label:text! group:value interval:number scale:number unit:text",
    "claim": "id:text! text:text! low:number high:number published:value source:text parameter:text "
             "statistic:table ratio:table coverage:table collapse:table",
}
_KINDS = {"text": str, "number": (int, float), "list": (list, str), "table": dict, "value": (str, int, float, dict)}
REDUCE = ("mean", "median", "max", "min", "count")
TAKE = ("mean", "median", "min", "max", "max_abs", "spread", "share")


def check(toml: Mapping[str, Any]) -> None:
    """Raises SpecError, in one line, for an unknown, missing or mistyped key of a fits file."""
    for section, entries in toml.items():
        if section not in SECTIONS:
            raise SpecError(f"{section}: unknown section; legal: {', '.join(SECTIONS)}; remove or rename it")
        if not isinstance(entries, list):
            raise SpecError(f"{section}: must be a list of tables; write [[{section}]]")
        for i, entry in enumerate(entries):
            check_keys(f"{section}[{i}]", entry, SECTIONS[section])
        names = [e.get("name", e.get("id", e.get("label"))) for e in entries]
        if len(set(names)) < len(names):
            raise SpecError(f"{section}: {max(names, key=names.count)!r} appears twice; rename one of them")
    for entry in [*toml.get("fit", ()), *toml.get("reduce", ())]:
        if "where" in entry and not entry.get("reason"):
            raise SpecError(f"{entry['name']}.where: needs a reason; say in `reason` why the other rows are left out")
    for entry in toml.get("reduce", ()):
        _choice(f"{entry['name']}.statistic", entry["statistic"], REDUCE)
    for entry in toml.get("claim", ()):
        path, kinds = f"claim {entry['id']!r}", [k for k in ("parameter", *QUANTITIES) if k in entry]
        if len(kinds) != 1:
            raise SpecError(f"{path}: has {' and '.join(kinds) or 'no quantity'}; must have exactly one of parameter, "
                            f"{', '.join(QUANTITIES)}; keep one")
        if not {"low", "high"} & set(entry) or not entry.get("low", -math.inf) < entry.get("high", math.inf):
            raise SpecError(f"{path}: must have low, high or both, with low < high; add the threshold")
        if kinds[0] != "parameter":
            check_keys(f"{path}.{kinds[0]}", entry[kinds[0]], QUANTITIES[kinds[0]])
        if kinds[0] == "statistic":
            _choice(f"{path}.statistic.take", entry["statistic"]["take"], TAKE)


def _choice(path: str, value: str, legal: tuple[str, ...]) -> None:
    if value not in legal:
        raise SpecError(f"{path} = {value!r}: must be one of {', '.join(legal)}; choose one of these")


def check_keys(path: str, entry: Any, schema: str) -> None:
    """Raises SpecError for a key of `entry` that `schema` does not have, of another type, or missing; `path` says where."""
    kinds = dict(part.split(":") for part in schema.split())
    if not isinstance(entry, dict):
        raise SpecError(f"{path} = {entry!r}: must be a table; legal keys: {', '.join(kinds)}")
    for key, value in entry.items():
        if key not in kinds:
            raise SpecError(f"{path}.{key}: unknown key; legal: {', '.join(kinds)}; remove or rename it")
        kind = kinds[key].rstrip("!")
        if not isinstance(value, _KINDS[kind]) or isinstance(value, bool):
            raise SpecError(f"{path}.{key} = {value!r}: must be a {kind}; change it")
    missing = [k for k, kind in kinds.items() if kind.endswith("!") and k not in entry]
    if missing:
        raise SpecError(f"{path}.{missing[0]}: missing; add the key")
