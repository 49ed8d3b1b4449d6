"""Verdicts on claims, from data only: HOLDS, FAILS or INCONCLUSIVE. Interprets `fits/NAME.toml`, whose sections are

    [[derive]]    name, expression, [unit], [table]
    [[reduce]]    name, group = [columns], column, statistic = "mean" | "median" | "max" | "min" | "count", [where, reason], [table]
    [[fit]]       name, law, y, x = {predictor = "column"}, [group, where + reason, table, interval, replicates, misfit_sd, noise_sd,
                  weights]
    [[forecast]]  fit, at = {predictor = value}, label, [group, interval, scale = factor, unit = "text"]
    [[claim]]     id, text, low and / or high, [published, source], and exactly one quantity:
      parameter = "fit.param"                                every group must hold; the worst decides
      statistic = {of, take, [where, reason, group, table]}  take = mean | median | min | max | max_abs | spread (max - min over mean)
      ratio     = {of, numerator_where, denominator_where, paired_by = [columns], [table]}
      coverage  = {fit, where, [group of the fit is by its columns]}
      collapse  = {pooled = "fit", separate = "fit"}         residual sd of one curve for all over that of a curve each

`table` is "runs" (the default), the name of a reduce, or "fit.NAME": a row per group with its columns and each parameter's value, _low and
_high; a fit on it carries the first fit's uncertainty, as shared by all its rows. A reduce has its group columns, the reduced column and
`n_rows`. Expressions are those of `scalemem.tables`, and may use a fitted parameter as `fit_name.parameter`.
`where` in a fit or a reduce needs a `reason`. Sections may refer to each other in any order.

Intervals: t over rows (mean), order statistics (median), bootstrap over rows (min, max, max_abs, spread; its outer end is the value seen),
t over pairs of the log ratio (ratio), Clopper-Pearson (coverage), F (collapse). A claim HOLDS if the interval lies inside [low, high],
FAILS if it lies outside, and is INCONCLUSIVE if it straddles a threshold or there is no interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scalemem import tables
from scalemem.fitting import NODES, Fit, carry, fit, plain
from scalemem.forecasting import Forecast, coverage, forecast, with_backtest
from scalemem.laws import statistics
from scalemem.laws.statistics import Measured
from scalemem.spec import SpecError
from scalemem.tables import TooFewRows

if TYPE_CHECKING:
    import pyarrow as pa

# key:kind, with ! where it is required
_QUANTITIES = {
    "statistic": "of:text! take:text! where:text reason:text group:list table:text",
    "ratio": "of:text! numerator_where:text! denominator_where:text! paired_by:list! table:text",
    "coverage": "fit:text! where:text!",
    "collapse": "pooled:text! separate:text!",
}
_SECTIONS = {
    "derive": "name:text! expression:text! unit:text table:text",
    "reduce": "name:text! group:list! column:text! statistic:text! where:text reason:text table:text",
    "fit": "name:text! law:text! y:text! x:table group:list where:text reason:text table:text interval:number replicates:list "
           "misfit_sd:number noise_sd:number weights:text",
    "forecast": "fit:text! at:table! label:text! group:value interval:number scale:number unit:text",
    "claim": "id:text! text:text! low:number high:number published:value source:text parameter:text "
             "statistic:table ratio:table coverage:table collapse:table",
}
_KINDS = {"text": str, "number": (int, float), "list": (list, str), "table": dict, "value": (str, int, float, dict)}
_REDUCE = {"mean": np.mean, "median": np.median, "max": np.max, "min": np.min, "count": len}
_TAKE = ("mean", "median", "min", "max", "max_abs", "spread")
_FIT_OPTIONS = ("interval", "replicates", "misfit_sd", "noise_sd", "weights")
_INTERVAL = 0.9  # of every quantity that is not a fit's


@dataclass(frozen=True)
class Claim:
    """A claim fixed beforehand: the quantity must lie in [low, high]. `quantity` is the TOML entry that says how it is measured."""

    id: str
    text: str
    quantity: dict[str, Any]
    low: float
    high: float
    published: str | float | None = None
    source: str = ""


@dataclass(frozen=True)
class Verdict:
    """A measured quantity, its interval, and what it says about the claim; `parts` are the groups, of which the worst decides."""

    id: str
    verdict: str
    value: float
    low: float
    high: float
    n: int
    method: str
    reason: str = ""
    parts: tuple[Verdict, ...] = ()


def verdict(value: float, interval_low: float, interval_high: float, low: float, high: float) -> tuple[str, str]:
    """(HOLDS | FAILS | INCONCLUSIVE, reason): the interval inside, outside, or astride [low, high].

    >>> verdict(1.01, 0.98, 1.04, 0.9, 1.1)[0], verdict(1.2, 1.15, 1.25, 0.9, 1.1)[0], verdict(1.1, 1.0, 1.2, 0.9, 1.1)[0]
    ('HOLDS', 'FAILS', 'INCONCLUSIVE')
    """
    if any(math.isnan(v) for v in (value, interval_low, interval_high)):
        return "INCONCLUSIVE", "no interval"
    if low <= interval_low and interval_high <= high:
        return "HOLDS", ""
    if interval_high < low or interval_low > high:
        return "FAILS", f"the interval lies {'below' if interval_high < low else 'above'} the claim"
    return "INCONCLUSIVE", "the interval straddles a threshold"


@dataclass(frozen=True)
class StudyResult:
    """Fits by name, forecasts [(label, unit, forecast)], claims with their verdicts, and what could not be done and why."""

    fits: dict[str, Fit]
    forecasts: tuple[tuple[str, str, Forecast], ...]
    verdicts: tuple[tuple[Claim, Verdict], ...]
    problems: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; NaN and infinity become null."""
        claims = [vars(c) | vars(v) | {"claim": [c.low, c.high], "low": v.low, "high": v.high, "parts": [vars(p) for p in v.parts]}
                  for c, v in self.verdicts]
        return plain({"fits": {k: f.to_json() for k, f in self.fits.items()}, "claims": claims, "problems": self.problems,
                      "forecasts": [{"label": label, "unit": unit, **f.to_json()} for label, unit, f in self.forecasts]})


def evaluate(toml: Mapping[str, Any], table: pa.Table) -> StudyResult:
    """Fits, forecasts and verdicts of a study from its `fits/NAME.toml` (as parsed) and its table of runs.

    Too few rows are a result: the fit is listed in `problems` and the claims on it are INCONCLUSIVE. Raises SpecError for what the schema
    above does not allow, and TableError for a missing column or a value that cannot be.
    """
    check(toml)
    return _Study(toml, table).result()


def check(toml: Mapping[str, Any]) -> None:
    """Raises SpecError, in one line, for an unknown, missing or mistyped key of a fits file."""
    for section, entries in toml.items():
        if section not in _SECTIONS:
            raise SpecError(f"{section}: unknown section; legal: {', '.join(_SECTIONS)}; remove or rename it")
        if not isinstance(entries, list):
            raise SpecError(f"{section}: must be a list of tables; write [[{section}]]")
        for i, entry in enumerate(entries):
            check_keys(f"{section}[{i}]", entry, _SECTIONS[section])
        names = [e.get("name", e.get("id", e.get("label"))) for e in entries]
        if len(set(names)) < len(names):
            raise SpecError(f"{section}: {max(names, key=names.count)!r} appears twice; rename one of them")
    for entry in [*toml.get("fit", ()), *toml.get("reduce", ())]:
        if "where" in entry and not entry.get("reason"):
            raise SpecError(f"{entry['name']}.where: needs a reason; say in `reason` why the other rows are left out")
    for entry in toml.get("reduce", ()):
        _choice(f"{entry['name']}.statistic", entry["statistic"], tuple(_REDUCE))
    for entry in toml.get("claim", ()):
        path, kinds = f"claim {entry['id']!r}", [k for k in ("parameter", *_QUANTITIES) if k in entry]
        if len(kinds) != 1:
            raise SpecError(f"{path}: has {' and '.join(kinds) or 'no quantity'}; must have exactly one of parameter, "
                            f"{', '.join(_QUANTITIES)}; keep one")
        if not {"low", "high"} & set(entry) or not entry.get("low", -math.inf) < entry.get("high", math.inf):
            raise SpecError(f"{path}: must have low, high or both, with low < high; add the threshold")
        if kinds[0] != "parameter":
            check_keys(f"{path}.{kinds[0]}", entry[kinds[0]], _QUANTITIES[kinds[0]])
        if kinds[0] == "statistic":
            _choice(f"{path}.statistic.take", entry["statistic"]["take"], _TAKE)


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


class _Study:
    """Resolves tables, fits and fitted parameters by name, each once and when it is asked for."""

    def __init__(self, toml: Mapping[str, Any], runs: pa.Table):
        self.toml, self.runs = toml, runs
        self.tables: dict[str, pa.Table] = {}
        self.fits: dict[str, Fit] = {}
        self.problems: dict[str, str] = {}
        self.pending: list[str] = []

    def entry(self, section: str, name: str) -> dict[str, Any]:
        found = {e["name"]: e for e in self.toml.get(section, ())}
        if name not in found:
            raise SpecError(f"{section} {name!r}: not in the file; it has {', '.join(found) or 'none'}; correct the name")
        return found[name]

    def table(self, name: str = "runs") -> pa.Table:
        """The runs, a reduce or the parameters of a fit, with its derived columns."""
        if name not in self.tables:
            with self.once(f"table {name}"):
                if name.startswith("fit."):
                    base = self.fit(name[4:]).table()
                else:
                    base = self.runs if name == "runs" else self.reduced(self.entry("reduce", name))
                self.tables[name] = self.derived(base, name)
        return self.tables[name]

    def derived(self, base: pa.Table, name: str) -> pa.Table:
        for d in self.toml.get("derive", ()):
            if d.get("table", "runs") == name:
                base = tables.derive(base, d["name"], d["expression"], d.get("unit", ""), self.constant)
        return base

    @contextmanager
    def once(self, what: str) -> Iterator[None]:
        if what in self.pending:
            raise SpecError(f"{what}: refers to itself through {' -> '.join(self.pending)}; break the circle")
        self.pending.append(what)
        yield
        self.pending.remove(what)

    def reduced(self, entry: dict[str, Any]) -> pa.Table:
        import pyarrow as pa
        source = self.table(entry.get("table", "runs"))
        keep = tables.mask(source, entry.get("where"), self.constant)
        values = np.full(source.num_rows, math.nan)
        values[keep] = tables.column(source, entry["column"], keep=keep)
        found = tables.groups(source, entry["group"], keep)
        rows = [{**k, entry["column"]: float(_REDUCE[entry["statistic"]](values[r])), "n_rows": len(r)} for k, r in found]
        if not rows:
            raise TooFewRows(f"reduce {entry['name']}: 0 rows are left by where = {entry.get('where')!r}; widen it")
        return pa.Table.from_pylist(rows)

    def fit(self, name: str) -> Fit:
        """A fit with its back-test. Raises TooFewRows again where it failed before."""
        if name not in self.fits and name not in self.problems:
            with self.once(f"fit {name}"):
                try:
                    self.fits[name] = self.fitted(self.entry("fit", name))
                except TooFewRows as error:
                    self.problems[name] = str(error)
        if name in self.problems:
            raise TooFewRows(self.problems[name])
        return self.fits[name]

    def fitted(self, entry: dict[str, Any]) -> Fit:
        options = {k: entry[k] for k in _FIT_OPTIONS if k in entry}
        source = self.table(of := entry.get("table", "runs"))
        keep = tables.mask(source, entry.get("where"), self.constant)

        def on(table: pa.Table) -> Fit:
            return fit(table, entry["law"], y=entry["y"], x=entry.get("x"), group=entry.get("group", ()), where=keep, **options)

        if of.startswith("fit."):  # the first fit's uncertainty is shared by all rows of the second
            moved = [self.derived(self.fit(of[4:]).table(z), of) for z in NODES]
            found = carry([on(table) for table in moved])
        else:
            found = on(source)
        return replace(with_backtest(found, source, where=keep, **options), where=entry.get("where"))

    def constant(self, dotted: str) -> float:
        """The value of `fit.parameter` in an expression; NaN where it is not identified, and then no comparison is true."""
        each = self.parameter(dotted)
        if len(each) > 1:
            raise SpecError(f"{dotted}: has {len(each)} values, one a group; name a fit without groups")
        return each[0][1].value

    def measure(self, claim: Claim) -> list[tuple[str, Measured]]:
        """The quantity of a claim, by group where it has groups."""
        (kind, q), = claim.quantity.items()
        if kind == "parameter":
            return self.parameter(q)
        if kind == "statistic":
            source = self.table(q.get("table", "runs"))
            keep = tables.mask(source, q.get("where"), self.constant)
            parts = tables.groups(source, q.get("group", ()), keep) or [({}, np.zeros(0, int))]
            values = tables.values(source, q["of"], keep, self.constant)
            return [(tables.key_text(k), statistics.statistic(values[rows], q["take"], _INTERVAL)) for k, rows in parts]
        if kind == "ratio":
            source = self.table(q.get("table", "runs"))
            sides = []
            for side in ("numerator_where", "denominator_where"):
                keep = tables.mask(source, q[side], self.constant)
                values = tables.values(source, q["of"], keep, self.constant, above=0.0)
                sides.append({tuple(k.values()): values[rows] for k, rows in tables.groups(source, q["paired_by"], keep)})
            both = [k for k in sides[0] if k in sides[1]]
            over, under = (np.array([side[k].mean() for k in both]) for side in sides)
            sizes = [max((len(side[k]) for k in both), default=0) for side in sides]
            found = statistics.ratio(over, under, _INTERVAL)
            return [("", found._replace(method=f"{found.method}; a pair averages {sizes[0]} and {sizes[1]} rows"))]
        if kind == "coverage":
            found, source = self.fit(q["fit"]), self.table(self.entry("fit", q["fit"]).get("table", "runs"))
            return [("", coverage(found, source, tables.mask(source, q["where"], self.constant)))]
        return [("", statistics.sd_ratio(self.fit(q["pooled"]).residual(), self.fit(q["separate"]).residual(), _INTERVAL))]

    def parameter(self, dotted: str) -> list[tuple[str, Measured]]:
        name, _, parameter = dotted.partition(".")
        found = self.fit(name)
        if parameter not in found.groups[0].parameters:
            raise SpecError(f"{dotted}: no such parameter; {name} has {', '.join(found.groups[0].parameters)}; correct the name")
        method = f"{100 * found.interval:g} % interval of fit {name}"
        each = [(tables.key_text(g.key), g.parameters[parameter], g.n_rows) for g in found.groups]
        return [(key, Measured(e.value, e.low, e.high, n, method, "" if e.status == "ok" else e.status)) for key, e, n in each]

    def judge(self, claim: Claim) -> Verdict:
        """The verdict on each group; the worst is the claim's."""
        try:
            parts = [_judge(claim, key, m) for key, m in self.measure(claim)]
        except TooFewRows as error:
            return Verdict(claim.id, "INCONCLUSIVE", math.nan, math.nan, math.nan, 0, "", str(error))
        worst = max(parts, key=lambda v: ("HOLDS", "INCONCLUSIVE", "FAILS").index(v.verdict))
        where = f"{worst.id}: " if worst.id and worst.reason else ""
        return replace(worst, id=claim.id, reason=where + worst.reason, parts=tuple(parts) if len(parts) > 1 else ())

    def forecast(self, entry: dict[str, Any]) -> Forecast:
        found = forecast(self.fit(entry["fit"]), entry["at"], interval=entry.get("interval"), group=entry.get("group"))
        scale = entry.get("scale", 1)
        return replace(found, median=scale * found.median, low=scale * found.low, high=scale * found.high)

    def result(self) -> StudyResult:
        for entry in self.toml.get("fit", ()):
            with suppress(TooFewRows):
                self.fit(entry["name"])
        forecasts = []
        for entry in self.toml.get("forecast", ()):
            try:
                forecasts.append((entry["label"], entry.get("unit", ""), self.forecast(entry)))
            except TooFewRows as error:
                self.problems[f"forecast {entry['label']}"] = str(error)
        claims = [Claim(c["id"], c["text"], {k: c[k] for k in ("parameter", *_QUANTITIES) if k in c}, float(c.get("low", -math.inf)),
                        float(c.get("high", math.inf)), c.get("published"), c.get("source", "")) for c in self.toml.get("claim", ())]
        return StudyResult(self.fits, tuple(forecasts), tuple((c, self.judge(c)) for c in claims), self.problems)


def _judge(claim: Claim, key: str, m: Measured) -> Verdict:
    found, why = verdict(m.value, m.low, m.high, claim.low, claim.high)
    return Verdict(key, found, m.value, m.low, m.high, m.n, m.method, m.reason or why)
