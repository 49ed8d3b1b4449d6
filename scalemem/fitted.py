"""What a fit is as a value: one result per group, each with intervals, and JSON that a forecast can be made from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scalemem.averaging import AUTO, Average, average, law_of
from scalemem.laws import losses
from scalemem.laws.posterior import Estimate, Posterior
from scalemem.tables import TableError, TooFewRows

if TYPE_CHECKING:
    import pyarrow as pa


Rows = dict[str, Any]  # "x": {predictor: (n,)}, "y": (n,), and "trials": (n,) of counts


@dataclass(frozen=True)
class GroupFit:
    """The fit of one group: its key {column: value}, estimates, and what a forecast needs. `posterior` is None if it failed.

    `correlation` {parameter: {parameter: value}} is that of the internal values (the logarithm of a parameter that has one), NaN where there
    is none; `interval_by` says how the intervals were made; `nuisance` is what the loss estimated beside the law; `rows` are those fitted.
    """

    key: dict[str, Any]
    parameters: dict[str, Estimate]
    objective: float
    n_rows: int
    tried: int
    agreeing: int
    lack_of_fit: float
    ranges: dict[str, tuple[float, float]]  # of each predictor
    posterior: Posterior | Average | None
    warnings: tuple[str, ...] = ()
    correlation: dict[str, dict[str, float]] = field(default_factory=dict)
    interval_by: str = ""
    nuisance: dict[str, float] = field(default_factory=dict)
    rows: Rows = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Fit:
    """A law fitted to a table. `dropped` rows failed `where`; `backtest` is what `forecasting.with_backtest` found; of counts, `trials` is
    the column of trials and the law gives the probability; `units` are those of "y" and of the predictors."""

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
    loss: str = "squared"
    trials: str | None = None
    units: dict[str, str] = field(default_factory=dict)

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
        """The sum of squares on the law's scale and its degrees of freedom, over all groups that could be fitted.

        Raises TableError where the objective is none: under another loss than squared error, or of the law auto.
        """
        if self.law == AUTO or not losses.parse(self.loss).squared:
            what = f"law {AUTO}" if self.law == AUTO else f"loss {self.loss}"
            raise TableError(f"residual of a fit with {what}: must be that of one law under squared error (loss squared, log or linear); fit again")
        done = [g for g in self.groups if g.posterior is not None]
        p = len(law_of(self.law, self.x).names)
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
                 "dropped": self.dropped, "interval": self.interval, "backtest": self.backtest, "groups": self.groups,
                 "loss": self.loss, "trials": self.trials, "units": self.units}
        if len(self.groups) == 1:
            whole |= {k: getattr(self.groups[0], k) for k in ("interval_by", "nuisance", "correlation")}
        return plain(whole)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Fit:
        """The inverse of `to_json`. Raises TableError where a field is missing or malformed."""
        try:
            found = [_group(g) for g in value["groups"]]
            return cls(value["law"], value["y"], dict(value["x"]), tuple(value["group"]), value["where"], value["interval"], tuple(found),
                       value["dropped"], value["fingerprint"], tuple(value["warnings"]), value["backtest"], value.get("loss", "squared"),
                       value.get("trials"), dict(value.get("units") or {}))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TableError(f"fit file: {type(error).__name__} at {error}: must be what `scalemem fit --out` wrote; fit again") from None


def _starts(groups: Sequence[GroupFit]) -> dict[str, int]:
    return {"tried": sum(g.tried for g in groups), "agreeing": sum(g.agreeing for g in groups)}


def plain(value: Any) -> Any:
    """JSON of a fit: NaN and infinity become null, floats keep nine digits, covariances that are all zero are left out."""
    if isinstance(value, Average):
        return {"average": "of rows"}  # it is made again from them
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
    rows: Rows = {k: np.array(v, float) for k, v in value["rows"].items() if k != "x"}
    rows["x"] = {k: np.array(v, float) for k, v in value["rows"]["x"].items()}
    if posterior is not None and "average" in posterior:
        posterior = average(rows["x"], rows["y"])
    elif posterior is not None:
        points = np.array(posterior["points"], float).reshape(-1, p)
        covariances = np.array(posterior["covariances"], float).reshape(-1, p, p) if posterior["covariances"] else np.zeros(
            (len(points), p, p))
        posterior = Posterior(np.array(posterior["weights"], float), points, covariances, posterior["noise_sd"], posterior["misfit_sd"],
                              _number(posterior["dof"], math.inf), np.array(posterior["unseen"], float).reshape(-1, p),
                              posterior.get("scale", ""))
    ranges = {k: (float(v[0]), float(v[1])) for k, v in value["ranges"].items()}
    return GroupFit(dict(value["key"]), parameters, _number(value["objective"]), value["n_rows"], value["starts"]["tried"],
                    value["starts"]["agreeing"], _number(value["lack_of_fit"]), ranges, posterior, tuple(value["warnings"]),
                    {k: {q: _number(v) for q, v in row.items()} for k, row in value.get("correlation", {}).items()},
                    value.get("interval_by", ""), {k: _number(v) for k, v in value.get("nuisance", {}).items()}, rows)


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
        known = [s.posterior for s in sides if isinstance(s.posterior, Posterior)]
        posterior = found.posterior
        if isinstance(posterior, Posterior) and len(known) == 3:
            posterior = replace(posterior, points=np.concatenate([q.points for q in known]),
                                weights=np.concatenate([w * q.weights for w, q in zip(NODE_WEIGHTS, known, strict=True)]),
                                covariances=np.concatenate([q.covariances for q in known]))
        groups.append(replace(found, parameters=estimates, posterior=posterior))
    return replace(middle, groups=tuple(groups))
