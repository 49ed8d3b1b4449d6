"""Fits read tables: `fit` gives one result per group, each with intervals, and JSON that a forecast can be made from."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scalemem import laws, tables
from scalemem.laws.base import Law
from scalemem.laws.least_squares import least_squares
from scalemem.laws.posterior import Estimate, Posterior, Result
from scalemem.laws.quadrature import integrate, pooled_noise
from scalemem.laws.sample import Sample
from scalemem.tables import RowsError, TableError, TooFewRows

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class GroupFit:
    """The fit of one group: its key {column: value}, estimates, and what a forecast needs. `posterior` is None if it failed."""

    key: dict[str, Any]
    parameters: dict[str, Estimate]
    objective: float
    n_rows: int
    tried: int
    agreeing: int
    lack_of_fit: float
    ranges: dict[str, tuple[float, float]]  # of each predictor
    posterior: Posterior | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fit:
    """A law fitted to a table. `dropped` rows failed `where`; `backtest` is what `forecasting.with_backtest` found."""

    law: str
    y: str
    x: dict[str, str]
    group: tuple[str, ...]
    where: str | None
    interval: float
    groups: tuple[GroupFit, ...]
    dropped: int
    fingerprint: str
    warnings: tuple[str, ...] = ()
    backtest: dict[str, Any] | None = field(default=None)

    def at(self, group: Any = None) -> GroupFit:
        """The result of one group, by its key or, with one group column, by its value; None where there is one group only."""
        keys = [g.key for g in self.groups]
        if group is None and len(keys) == 1:
            return self.groups[0]
        key = group if isinstance(group, Mapping) else {self.group[0]: group} if len(self.group) == 1 else {}
        if group is None or key not in keys:
            kind = TooFewRows if key and set(key) == set(self.group) else TableError
            raise kind(f"group {group!r}: must be one of {keys[:8]}; name one of these")
        return self.groups[keys.index(dict(key))]

    def residual(self) -> tuple[float, int]:
        """Sum of squares on the law's scale and its degrees of freedom, over all groups that could be fitted."""
        done = [g for g in self.groups if g.posterior is not None]
        p = len(laws.get(self.law).names)
        return sum(g.objective for g in done), sum(g.n_rows - p for g in done)

    def table(self, z: float = 0.0) -> pa.Table:
        """A row per group: its columns, each parameter's value, `_low` and `_high`, and `n_rows`.

        `z` moves all values together by that many standard deviations, read off their intervals (a split normal).
        """
        import pyarrow as pa
        from scipy.special import ndtri
        rows = []
        for g in self.groups:
            row = dict(g.key)
            for k, e in g.parameters.items():
                step = abs(z) / float(ndtri((1 + self.interval) / 2)) * ((e.high if z > 0 else e.low) - e.value)
                row |= {k: e.value + (step if z else 0.0), f"{k}_low": e.low, f"{k}_high": e.high}
            rows.append(row | {"n_rows": g.n_rows})
        return pa.Table.from_pylist(rows)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: with one group its parameters, with several NaN (null) and a status that points to `groups`."""
        first = self.groups[0].parameters
        several = {k: Estimate(math.nan, math.nan, math.nan, e.unit, "one value a group: see groups") for k, e in first.items()}
        whole = {"law": self.law, "parameters": first if len(self.groups) == 1 else several,
                 "objective": sum(g.objective for g in self.groups if g.posterior), "n_rows": sum(g.n_rows for g in self.groups),
                 "n_groups": len(self.groups), "starts": _starts(self.groups), "warnings": self.warnings,
                 "fingerprint": self.fingerprint, "y": self.y, "x": self.x, "group": self.group, "where": self.where,
                 "dropped": self.dropped, "interval": self.interval, "backtest": self.backtest, "groups": self.groups}
        return plain(whole)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Fit:
        """The inverse of `to_json`. Raises TableError where a field is missing or malformed."""
        try:
            found = [_group(g) for g in value["groups"]]
            return cls(value["law"], value["y"], dict(value["x"]), tuple(value["group"]), value["where"], value["interval"], tuple(found),
                       value["dropped"], value["fingerprint"], tuple(value["warnings"]), value["backtest"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TableError(f"fit file: {type(error).__name__} at {error}: must be what `scalemem fit --out` wrote; fit again") from None


def _starts(groups: Sequence[GroupFit]) -> dict[str, int]:
    return {"tried": sum(g.tried for g in groups), "agreeing": sum(g.agreeing for g in groups)}


def plain(value: Any) -> Any:
    """JSON of a fit: NaN and infinity become null, floats keep nine digits, covariances that are all zero are left out."""
    if isinstance(value, Posterior):
        covariances = value.covariances if value.covariances.any() else ()
        return plain(vars(value) | {"covariances": covariances})
    if isinstance(value, GroupFit):
        return plain(vars(value) | {"starts": _starts([value])})
    if isinstance(value, Estimate):
        return plain(vars(value))
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items() if k not in ("tried", "agreeing") or not isinstance(value.get("key"), dict)}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value


def _number(value: float | None, missing: float = math.nan) -> float:
    return missing if value is None else float(value)


def _group(value: Mapping[str, Any]) -> GroupFit:
    parameters = {k: Estimate(_number(e["value"]), _number(e["low"]), _number(e["high"]), e["unit"], e["status"])
                  for k, e in value["parameters"].items()}
    posterior, p = value["posterior"], len(value["parameters"])
    if posterior is not None:
        points = np.array(posterior["points"], float).reshape(-1, p)
        covariances = np.array(posterior["covariances"], float).reshape(-1, p, p) if posterior["covariances"] else np.zeros(
            (len(points), p, p))
        posterior = Posterior(np.array(posterior["weights"], float), points, covariances, posterior["noise_sd"], posterior["misfit_sd"],
                              _number(posterior["dof"], math.inf), np.array(posterior["unseen"], float).reshape(-1, p))
    ranges = {k: (float(v[0]), float(v[1])) for k, v in value["ranges"].items()}
    return GroupFit(dict(value["key"]), parameters, _number(value["objective"]), value["n_rows"], value["starts"]["tried"],
                    value["starts"]["agreeing"], _number(value["lack_of_fit"]), ranges, posterior, tuple(value["warnings"]))


def fit(table: pa.Table, law: str | Law, *, y: str, x: Mapping[str, str] | str | None = None, group: Sequence[str] | str = (),
        where: str | np.ndarray | None = None, interval: float = 0.9, replicates: Sequence[str] = (), misfit_sd: float | None = None,
        noise_sd: float | None = None, weights: str | None = None) -> Fit:
    """Fits a law to the rows of a table, one result per group.

    Minimises, from every start of the law, S(theta) = sum_i (scale(y_i) - scale(f(x_i, theta)))^2 with `scale` log or identity. The
    interval of theta_j is its profile, {v : min over theta with theta_j = v of S <= S_min + t^2 s^2}, t Student's and s^2 the variance of
    a residual: exact for a linear law. A law with a prior (`exposure`) integrates that parameter out instead (`laws.quadrature`).

    Args:
      table: (rows,) with the columns named below.
      law: by name (`laws.describe()` lists them), or a Law.
      y, x: columns: the quantity, and {predictor: column} (a single column where the law has one predictor), positive.
      group: columns; each combination of their values is fitted apart.
      where: an expression, or (rows,) booleans; the rows that fail it are dropped and counted.
      interval: probability of the intervals, in (0, 1).
      replicates: columns that must agree, besides x, for rows to be repetitions of one run.
      misfit_sd: sd, on the law's scale, of what runs of equal x share beyond the law: relative on a log, else in the unit of y.
        Default: the law's (of `exposure` 0.0044 of the median |y|), else estimated from replicates.
      noise_sd: sd of a run, in the same unit, if it is known. Default: estimated (for `exposure` from the replicates of all groups, and
        a weak prior at 0.0074 of the median |y|).
      weights: column of whole numbers; a row of weight 2 counts as two rows.
    Returns:
      groups in sorted order, each with {parameter: value, low, high, unit, status}; units are made of the columns'. A parameter that is
      not identified is NaN and its status says why; a group with too few rows has NaN throughout.
    Raises:
      TableError: a column, law or expression that is none, or an option out of range. RowsError: a value that cannot be fitted, by row and
      column. TooFewRows: no group has enough rows.

    >>> import pyarrow as pa
    >>> t = pa.table({"n": [1., 2., 4., 8.], "bits": [3.1, 5.9, 12.2, 23.9]})
    >>> found = fit(t, "power", y="bits", x="n").at().parameters["b"]
    >>> round(found.value, 3), found.status
    (0.989, 'ok')

    Profile intervals: Bates and Watts 1988, Nonlinear Regression Analysis and Its Applications, section 6.1.
    """
    law = laws.get(law)
    x, group, replicates = _mapping(law, x), _columns(group), _columns(replicates)
    if not 0 < interval < 1:
        raise TableError(f"interval = {interval!r}: must lie between 0 and 1; write 0.9")
    for name, sd in (("misfit_sd", misfit_sd), ("noise_sd", noise_sd)):
        if sd is not None and not 0 <= sd < math.inf:
            raise TableError(f"{name} = {sd!r}: must be a finite number of at least 0; give a standard deviation")
    keep = where if isinstance(where, np.ndarray) else tables.mask(table, where)
    found = tables.groups(table, group, keep)
    text = where if isinstance(where, str) else None
    if not found:
        raise TooFewRows(f"law {law.name}: 0 of {table.num_rows} rows are left{f' by where = {text!r}' if text else ''}; widen the filter")
    columns = _read(table, law, y, x, keep, weights)
    also = [np.unique(tables.load(table, c).astype(str), return_inverse=True)[1].reshape(-1) for c in replicates]
    samples = []
    for _, rows in found:
        rows = np.repeat(rows, columns["weights"][rows].astype(int)) if weights else rows
        samples.append(Sample.of(law, {k: columns[k][rows] for k in law.predictors}, columns["y"][rows], [c[rows] for c in also]))
    results = _estimate(law, samples, interval, noise_sd, misfit_sd)
    if all(isinstance(r, TooFewRows) for r in results):
        raise next(r for r in results if isinstance(r, TooFewRows))
    units = {"y": tables.unit(table, y)} | {k: tables.unit(table, c) for k, c in x.items()}
    fits = tuple(_group_fit(law, key, s, r, units) for (key, _), s, r in zip(found, samples, results, strict=True))
    settings = [law.name, law.formula, y, x, group, replicates, interval, misfit_sd, noise_sd]
    digest = hashlib.sha256(json.dumps([settings, [g.key for g in fits]], sort_keys=True).encode())
    for s in samples:
        digest.update(np.stack([s.y, *(s.x[k] for k in law.predictors)]).tobytes())
    notes = tuple(f"{tables.key_text(g.key)}: {w}" if g.key else w for g in fits for w in g.warnings)
    return Fit(law.name, y, x, tuple(group), text, interval, fits, int((~keep).sum()), digest.hexdigest(), notes)


def _columns(names: Sequence[str] | str) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _mapping(law: Law, x: Mapping[str, str] | str | None) -> dict[str, str]:
    if isinstance(x, str):
        x = {law.predictors[0]: x} if len(law.predictors) == 1 else {"": x}
    x = dict(x or {})
    if set(x) != set(law.predictors):
        need, mend = ", ".join(law.predictors) or "none", " and ".join(f"{k}=COLUMN" for k in law.predictors) or "no x"
        raise TableError(f"x of law {law.name} = {x}: must name a column for each predictor ({need}) of {law.formula}; "
                         f"NAME=COLUMN: write {mend}")
    return x


def _read(table: pa.Table, law: Law, y: str, x: Mapping[str, str], keep: np.ndarray, weights: str | None) -> dict[str, np.ndarray]:
    """The columns of a fit over all rows, checked on those that are kept (predictors must be positive; y, too, under a log)."""
    def whole(name: str, above: float, why: str) -> np.ndarray:
        full = np.full(table.num_rows, math.nan)
        full[keep] = tables.column(table, name, above=above, keep=keep, why=why)
        huge = keep & ~((np.abs(full) < 1e60) & ((np.abs(full) > 1e-60) | (full == 0)))
        if huge.any():
            row = int(np.argmax(huge))
            raise RowsError(f"column {name!r}, row {row + 1} = {full[row]:g}: must lie within 1e-60 and 1e60; "
                            "derive the column in another unit")
        return full

    log = law.scale == "log"
    found = {"y": whole(y, law.floor, f" (law {law.name} fits its log)" if log else "")}
    found |= {k: whole(c, 0.0, f" (predictor {k} of law {law.name})") for k, c in x.items()}
    if weights:
        found["weights"] = whole(weights, -1e-9, "")
        bad = keep & (found["weights"] % 1 != 0)
        if bad.any():
            raise RowsError(f"column {weights!r}, row {int(np.argmax(bad)) + 1} = {found['weights'][bad][0]:g}: must be a whole number; "
                            "weights count repetitions of a row")
    return found


def _estimate(law: Law, samples: Sequence[Sample], interval: float, noise_sd: float | None, misfit_sd: float | None) -> list:
    """A Result or the TooFewRows of each group."""
    level = law.level(np.concatenate([s.y for s in samples]))
    noise, dof = pooled_noise(law, list(samples), noise_sd, level)
    if misfit_sd is None and law.misfit_sd is not None:
        misfit_sd = law.misfit_sd * level
    found: list[Result | TooFewRows] = []
    for s in samples:
        try:
            with np.errstate(all="ignore"):
                if law.shape is None:
                    result = least_squares(law, s, interval=interval, noise_sd=noise_sd, misfit_sd=misfit_sd)
                else:
                    result = integrate(law, s, interval=interval, noise_sd=noise, dof=dof, misfit_sd=misfit_sd or 0.0)
            found.append(result)
        except TooFewRows as error:
            found.append(error)
    return found


def _group_fit(law: Law, key: dict[str, Any], s: Sample, result: Result | TooFewRows, units: Mapping[str, str]) -> GroupFit:
    ranges = {k: (float(s.x[k].min()), float(s.x[k].max())) for k in law.predictors} if len(s) else {}
    unit = {p.name: p.unit.format_map(units) for p in law.parameters}
    if isinstance(result, TooFewRows):
        none = {k: Estimate(math.nan, math.nan, math.nan, u, f"not identified: {result}") for k, u in unit.items()}
        return GroupFit(key, none, math.nan, len(s), 0, 0, math.nan, ranges, None, (str(result),))
    estimates = {k: Estimate(e.value, e.low, e.high, unit[k], e.status) for k, e in result.estimates.items()}
    notes = [f"{k}: {e.status}" for k, e in estimates.items() if e.status != "ok"]
    if s.copies():
        notes.append(f"{s.copies()} rows repeat another one exactly: they count as runs of their own; drop them if they are copies")
    return GroupFit(key, estimates, result.objective, len(s), result.tried, result.agreeing, result.lack_of_fit, ranges,
                    result.posterior, (*notes, *result.warnings))


NODES = (-math.sqrt(3), 0.0, math.sqrt(3))  # Gauss-Hermite: exact for the first five moments of a normal
NODE_WEIGHTS = (1 / 6, 2 / 3, 1 / 6)


def carry(fits: Sequence[Fit]) -> Fit:
    """The fit of a table that is uncertain as a whole, from its fits with the table at each of NODES.

    Forecasts are the mixture over nodes; a parameter's interval adds the shift between nodes in quadrature on either side.
    """
    from scipy.special import ndtri
    low, middle, high = fits
    sigmas = float(ndtri((1 + middle.interval) / 2)) / NODES[2]
    groups = []
    for sides in zip(low.groups, middle.groups, high.groups, strict=True):
        found, estimates = sides[1], {}
        for k, e in found.parameters.items():
            shifts = [s.parameters[k].value - e.value for s in (sides[0], sides[2])]
            down, up = max(0.0, *(-v for v in shifts)), max(0.0, *shifts)
            estimates[k] = Estimate(e.value, e.value - math.hypot(e.value - e.low, sigmas * down),
                                    e.value + math.hypot(e.high - e.value, sigmas * up), e.unit, e.status)
        known = [s.posterior for s in sides if s.posterior is not None]
        posterior = found.posterior
        if posterior is not None and len(known) == 3:
            posterior = replace(posterior, points=np.concatenate([q.points for q in known]),
                                weights=np.concatenate([w * q.weights for w, q in zip(NODE_WEIGHTS, known, strict=True)]),
                                covariances=np.concatenate([q.covariances for q in known]))
        groups.append(replace(found, parameters=estimates, posterior=posterior))
    return replace(middle, groups=tuple(groups))
