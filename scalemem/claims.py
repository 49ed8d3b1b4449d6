"""Verdicts on claims, from data only: HOLDS, FAILS or INCONCLUSIVE. Interprets `fits/NAME.toml`, whose schema is `scalemem.schema`.

Intervals: t over rows (mean), order statistics (median), redrawn with the noise of the values, else bootstrap over rows (min, max, max_abs,
spread), t over pairs of the log ratio (ratio), Clopper-Pearson over curves, else rows (coverage), F (collapse). A claim HOLDS if the
interval lies inside [low, high], FAILS if it lies outside, and is INCONCLUSIVE if it straddles a threshold or there is no interval.
What the rows do not allow is listed in `problems` and makes the claims on it INCONCLUSIVE; the rest of the study goes on.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scalemem import tables
from scalemem.expressions import missing
from scalemem.fitting import NODES, Fit, carry, fit, plain
from scalemem.forecasting import Forecast, coverage, forecast, with_backtest
from scalemem.laws import statistics
from scalemem.laws.statistics import Measured, Noise
from scalemem.schema import QUANTITIES, check
from scalemem.schema import check_keys as check_keys  # part of this module's interface
from scalemem.spec import SpecError
from scalemem.tables import RowsError, TableError, TooFewRows

if TYPE_CHECKING:
    import pyarrow as pa

_REDUCE = {"mean": np.mean, "median": np.median, "max": np.max, "min": np.min, "count": len}
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
    """Fits by name, forecasts [(label, unit, forecast)], claims with verdicts, what could not be done and why, and the tables that were made."""

    fits: dict[str, Fit]
    forecasts: tuple[tuple[str, str, Forecast], ...]
    verdicts: tuple[tuple[Claim, Verdict], ...]
    problems: dict[str, str]
    tables: dict[str, pa.Table] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; NaN and infinity become null."""
        claims = [vars(c) | vars(v) | {"claim": [c.low, c.high], "low": v.low, "high": v.high, "parts": [vars(p) for p in v.parts]}
                  for c, v in self.verdicts]
        return plain({"fits": {k: f.to_json() for k, f in self.fits.items()}, "claims": claims, "problems": self.problems,
                      "forecasts": [{"label": label, "unit": unit, **f.to_json()} for label, unit, f in self.forecasts]})


def evaluate(toml: Mapping[str, Any], table: pa.Table, measured: Mapping[str, pa.Table] | None = None) -> StudyResult:
    """Fits, forecasts and verdicts of a study from its `fits/NAME.toml` (as parsed) and its table of runs.

    Too few rows, or a value that cannot be, are a result: what needs them is listed in `problems`, and the claims on it are INCONCLUSIVE.
    A group without a value is left out of a fit on a fit's parameters, with a warning. A table without rows makes all INCONCLUSIVE.

    Args:
      toml: the sections of `scalemem.schema`.
      table: a row per run.
      measured: the tables of the measures of these runs, by name.
    Raises:
      SpecError: what the schema does not allow, or a name of a fit, table or parameter that is not in the file.
      TableError: a column that the table lacks, an unknown law, or an expression that is not one.
    """
    check(toml)
    return _Study(toml, table, measured or {}).result()


class _Analyses(Mapping):
    """The tables of a study's other analyses, each made when it is first asked for."""

    def __init__(self, study: _Study, but: str):
        self.study = study
        self.names = [e["name"] for e in study.toml.get("analysis", ()) if e["name"] != but]

    def __getitem__(self, name: str) -> pa.Table:
        if name not in self.names:
            raise KeyError(name)
        return self.study.table(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names


class _Study:
    """Resolves tables, fits and fitted parameters by name, each once and when it is asked for."""

    def __init__(self, toml: Mapping[str, Any], runs: pa.Table, measured: Mapping[str, pa.Table]):
        self.toml, self.runs, self.measured = toml, runs, measured
        self.data_errors = RowsError if runs.num_rows else TableError  # without rows, columns may be absent or of no type
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
        """The runs, what a measure or an analysis gave, a reduce or the parameters of a fit, with its derived columns."""
        if name not in self.tables:
            with self.once(f"table {name}"):
                if name.startswith("fit."):
                    base = self.fit(name[4:]).table()
                elif name == "runs" or name in self.measured:
                    base = self.runs if name == "runs" else self.measured[name]
                elif any(e["name"] == name for e in self.toml.get("analysis", ())):
                    base = self.analysed(self.entry("analysis", name))
                else:
                    base = self.reduced(self.entry("reduce", name))
                self.tables[name] = self.derived(base, name)
        return self.tables[name]

    def analysed(self, entry: dict[str, Any]) -> pa.Table:
        """What an analysis makes of the runs, of the tables of their measures, and of other analyses."""
        from scalemem import analyses

        try:
            found = ChainMap({"runs": self.table()}, self.measured, _Analyses(self, entry["name"]))  # type: ignore[arg-type]
            return analyses.run(entry["kind"], found, entry.get("options", {}))
        except TableError as error:
            raise RowsError(f"analysis {entry['name']}: {error}") from None

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
        try:
            yield
        finally:
            self.pending.remove(what)

    def reduced(self, entry: dict[str, Any]) -> pa.Table:
        import pyarrow as pa
        source = self.table(entry.get("table", "runs"))
        keep = tables.mask(source, entry.get("where"), self.constant)
        values = np.full(source.num_rows, math.nan)
        values[keep] = tables.column(source, entry["column"], keep=keep)
        found = tables.groups(source, entry["group"], keep)
        name, take = entry["column"], entry["statistic"]
        rows = [{**k, name: float(_REDUCE[take](values[r])), "n_rows": len(r)} for k, r in found]
        if take == "mean":
            rows = [row | {f"{name}_sd": float(values[r].std(ddof=1)) if len(r) > 1 else math.nan}
                    for row, (_, r) in zip(rows, found, strict=True)]
        if not rows:
            raise TooFewRows(f"reduce {entry['name']}: 0 rows are left by where = {entry.get('where')!r}; widen it")
        return pa.Table.from_pylist(rows)

    def fit(self, name: str) -> Fit:
        """A fit with its back-test. Raises RowsError again where it failed before."""
        if name not in self.fits and name not in self.problems:
            with self.once(f"fit {name}"):
                try:
                    self.fits[name] = self.fitted(self.entry("fit", name))
                except self.data_errors as error:
                    self.problems[name] = str(error)
        if name in self.problems:
            raise RowsError(self.problems[name])
        return self.fits[name]

    def fitted(self, entry: dict[str, Any]) -> Fit:
        options = {k: entry[k] for k in _FIT_OPTIONS if k in entry}
        source = self.table(of := entry.get("table", "runs"))
        keep = tables.mask(source, entry.get("where"), self.constant)

        def on(table: pa.Table) -> Fit:
            return fit(table, entry["law"], y=entry["y"], x=entry.get("x"), group=entry.get("group", ()), where=keep, **options)

        if of.startswith("fit."):  # the first fit's uncertainty is shared by all rows of the second
            moved = [self.derived(self.fit(of[4:]).table(z), of) for z in NODES]
            keep, notes = self.without_value(entry, moved, keep)
            found = carry([on(table) for table in moved])
            found = replace(found, warnings=(*notes, *found.warnings))
        else:
            found = on(source)
        return replace(with_backtest(found, source, where=keep, **options), where=entry.get("where"))

    def without_value(self, entry: dict[str, Any], moved: list[pa.Table], keep: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """Leaves out the groups of a first fit that have no value to be fitted; says how many, and why."""
        first, lost = self.fit(entry["table"][4:]), np.zeros(len(keep), bool)
        for name in (entry["y"], *entry.get("x", {}).values()):
            for cells in (tables.load(table, name) for table in moved):
                lost |= keep & missing(cells)
        reasons = [tables.key_text(g.key) + ": " + "; ".join({e.status: 0 for e in g.parameters.values() if e.status != "ok"})
                   for g, out in zip(first.groups, lost, strict=True) if out]
        note = f"{len(reasons)} of {int(keep.sum())} groups of {entry['table']} have no value and are left out: {' | '.join(reasons)}"
        return keep & ~lost, [note] * bool(reasons)

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
            return [(tables.key_text(k), statistics.statistic(values[rows], q["take"], _INTERVAL, self.noise(q, source, values, rows)))
                    for k, rows in parts]
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

    def noise(self, q: dict[str, Any], source: pa.Table, values: np.ndarray, rows: np.ndarray) -> Noise | None:
        """What is known of the noise of a statistic's rows: from replicates among them, or from the runs behind a reduced mean."""
        if "replicates" in q:
            keep = np.zeros(source.num_rows, bool)
            keep[rows] = True
            cells = np.zeros(source.num_rows, int)
            for number, (_, members) in enumerate(tables.groups(source, q["replicates"], keep)):
                cells[members] = number
            return statistics.noise_of_rows(values[rows], cells[rows])
        if f"{q['of']}_sd" in source.column_names and "n_rows" in source.column_names:
            return statistics.noise_of_means(*(tables.load(source, c)[rows] for c in (f"{q['of']}_sd", "n_rows")))
        return None

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
        except self.data_errors as error:
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
            with suppress(RowsError):
                self.fit(entry["name"])
        forecasts = []
        for entry in self.toml.get("forecast", ()):
            try:
                forecasts.append((entry["label"], entry.get("unit", ""), self.forecast(entry)))
            except self.data_errors as error:
                self.problems[f"forecast {entry['label']}"] = str(error)
        claims = [Claim(c["id"], c["text"], {k: c[k] for k in ("parameter", *QUANTITIES) if k in c}, float(c.get("low", -math.inf)),
                        float(c.get("high", math.inf)), c.get("published"), c.get("source", "")) for c in self.toml.get("claim", ())]
        for entry in self.toml.get("analysis", ()):
            try:
                self.table(entry["name"])
            except self.data_errors as error:
                self.problems[entry["name"]] = str(error)
        judged = tuple((c, self.judge(c)) for c in claims)
        return StudyResult(self.fits, tuple(forecasts), judged, self.problems, self.tables)


def _judge(claim: Claim, key: str, m: Measured) -> Verdict:
    found, why = verdict(m.value, m.low, m.high, claim.low, claim.high)
    return Verdict(key, found, m.value, m.low, m.high, m.n, m.method, m.reason or why)
