"""Fits read tables: `fit` gives one result per group, under a loss of one's choice."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scalemem import averaging, tables
from scalemem.fitted import NODE_WEIGHTS, NODES, Fit, GroupFit, Rows, carry, plain
from scalemem.laws import losses
from scalemem.laws.base import Law
from scalemem.laws.least_squares import least_squares
from scalemem.laws.losses import Loss
from scalemem.laws.posterior import Estimate, Result
from scalemem.laws.quadrature import integrate, pooled_noise
from scalemem.laws.sample import Sample
from scalemem.tables import RowsError, TableError, TooFewRows

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["NODES", "NODE_WEIGHTS", "Fit", "GroupFit", "carry", "fit", "plain"]


def fit(table: pa.Table, law: str | Law = "auto", *, y: str, x: Mapping[str, str] | str | None = None, group: Sequence[str] | str = (),
        where: str | np.ndarray | None = None, interval: float = 0.9, replicates: Sequence[str] = (), misfit_sd: float | None = None,
        noise_sd: float | None = None, weights: str | None = None, loss: str = "squared", trials: str | None = None, starts: int = 0,
        bootstrap: int = 0) -> Fit:
    """Fits a law to the rows of a table, one result per group.

    Minimises, from every start of the law, S(theta) = sum_i (scale(y_i) - scale(f(x_i, theta)))^2 with `scale` log or identity, or
    the sum of another loss. The interval of theta_j is its profile, {v : min over theta with theta_j = v of S <= S_min + t^2 s^2}, t
    Student's and s^2 the variance of a residual: exact for a linear law. A likelihood has s^2 = 1 and S = -2 log likelihood; a robust loss
    sum rho has S = 2 sum rho and s^2 = n / (n - p) sum rho'^2 / sum rho''. A law with a prior (`exposure`) integrates that parameter out
    instead (`laws.quadrature`).

    Args:
      table: (rows,) with the columns named below.
      law: by name (`laws.describe()` lists them), a Law, or "auto": an average over laws (`scalemem.averaging`), for any predictors.
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
      loss: squared (on the law's scale), log or linear (squared error there), huber:DELTA (on log y), huber (its scale estimated),
        asymmetric:T (squared error on log y, weight T above the law and 1 - T below it), binomial or beta_binomial; `laws.losses` has
        the formulas. The objective is the sum over rows.
      trials: of a count: column of whole numbers, out of which y succeeded; the law then gives the probability.
      starts: random starts besides the law's own, drawn from a box half as wide again on each side.
      bootstrap: refits to rows drawn with replacement; above 0 intervals are their percentiles, and forecasts are made from them.
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

    Profile intervals: Bates and Watts 1988, Nonlinear Regression Analysis and Its Applications, section 6.1. Likelihood ratios of robust
    losses: Heritier and Ronchetti 1994.
    """
    chosen = losses.parse(loss)
    own = averaging.law_of(law, x if isinstance(x, Mapping) else ())
    law = chosen.law(own)
    x, group, replicates = _mapping(law, x), _columns(group), _columns(replicates)
    if own.name == averaging.AUTO and (noise_sd is not None or misfit_sd is not None or starts or bootstrap or chosen.kind != "squared"):
        raise TableError("law auto: noise, misfit, loss and search are its own; leave noise_sd, misfit_sd, loss, starts and bootstrap out")
    if not 0 < interval < 1:
        raise TableError(f"interval = {interval!r}: must lie between 0 and 1; write 0.9")
    for name, sd in (("misfit_sd", misfit_sd), ("noise_sd", noise_sd)):
        if sd is not None and not 0 <= sd < math.inf:
            raise TableError(f"{name} = {sd!r}: must be a finite number of at least 0; give a standard deviation")
    for name, count in (("starts", starts), ("bootstrap", bootstrap)):
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= 10**6 or (0 < count < 20 and name == "bootstrap"):
            raise TableError(f"{name} = {count!r}: must be a whole number from {'20' if name == 'bootstrap' else '0'} to a million; "
                             f"write {name} = 1000, or leave it out")
    if (trials is not None) != chosen.counts:
        raise TableError(f"trials = {trials!r} with loss {chosen.name}: a column of trials goes with binomial and beta_binomial, and only "
                         "with them; name the column, or change the loss")
    if own.shape is not None and (starts or bootstrap):
        raise TableError(f"starts and bootstrap: law {own.name} is integrated, not searched; leave them out")
    if not chosen.squared and (noise_sd is not None or misfit_sd is not None):
        raise TableError(f"noise_sd and misfit_sd with loss {chosen.name}: belong to squared error; leave them out")
    keep = where if isinstance(where, np.ndarray) else tables.mask(table, where)
    found = tables.groups(table, group, keep)
    text = where if isinstance(where, str) else None
    if not found:
        raise TooFewRows(f"law {law.name}: 0 of {table.num_rows} rows are left{f' by where = {text!r}' if text else ''}; widen the filter")
    columns = _read(table, law, y, x, keep, weights, trials)
    also = [np.unique(tables.load(table, c).astype(str), return_inverse=True)[1].reshape(-1) for c in replicates]
    samples = []
    for _, rows in found:
        rows = np.repeat(rows, columns["weights"][rows].astype(int)) if weights else rows
        samples.append(Sample.of(law, {k: columns[k][rows] for k in law.predictors}, columns["y"][rows], [c[rows] for c in also],
                                 columns["trials"][rows] if trials else None))
    results = _estimate(law, samples, interval, noise_sd, misfit_sd, chosen, starts, bootstrap)
    if all(isinstance(r, TooFewRows) for r in results):
        raise next(r for r in results if isinstance(r, TooFewRows))
    units = {"y": tables.unit(table, y)} | {k: tables.unit(table, c) for k, c in x.items()}
    fits = tuple(_group_fit(law, key, s, r, units) for (key, _), s, r in zip(found, samples, results, strict=True))
    settings = [law.name, law.formula, y, x, group, replicates, interval, misfit_sd, noise_sd]
    if chosen.kind != "squared" or trials or starts or bootstrap:
        settings += [chosen.name, trials, starts, bootstrap]
    digest = hashlib.sha256(json.dumps([settings, [g.key for g in fits]], sort_keys=True).encode())
    for s in samples:
        digest.update(np.stack([s.y, *(s.x[k] for k in law.predictors), *([] if s.trials is None else [s.trials])]).tobytes())
    notes = tuple(f"{tables.key_text(g.key)}: {w}" if g.key else w for g in fits for w in g.warnings)
    return Fit(law.name, y, x, tuple(group), text, interval, fits, int((~keep).sum()), digest.hexdigest(), notes, None, chosen.name, trials,
               units)


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


def _read(table: pa.Table, law: Law, y: str, x: Mapping[str, str], keep: np.ndarray, weights: str | None,
          trials: str | None) -> dict[str, np.ndarray]:
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
    def refuse(name: str, values: np.ndarray, bad: np.ndarray, legal: str) -> None:
        if (bad := keep & bad).any():
            raise RowsError(f"column {name!r}, row {int(np.argmax(bad)) + 1} = {values[bad][0]:g}: must be {legal}")

    found = {"y": whole(y, law.floor, f" (law {law.name} fits its log)" if log else "")}
    for k, c in x.items():
        found[k] = whole(c, -1e-99 if k in law.zero else 0.0, f" (predictor {k} of law {law.name})")
    if weights:
        found["weights"] = whole(weights, -1e-9, "")
        refuse(weights, found["weights"], found["weights"] % 1 != 0, "a whole number; weights count repetitions of a row")
    if trials:
        found["trials"] = whole(trials, 0.0, " (trials)")
        refuse(trials, found["trials"], found["trials"] % 1 != 0, "a whole number; trials are counted")
        bad = (found["y"] % 1 != 0) | (found["y"] < 0) | (found["y"] > found["trials"])
        refuse(y, found["y"], bad, f"a whole number from 0 to the trials in {trials!r}; give the count of successes, not their share")
    return found


def _estimate(law: Law, samples: Sequence[Sample], interval: float, noise_sd: float | None, misfit_sd: float | None, loss: Loss, starts: int,
              bootstrap: int) -> list:
    """A Result or the TooFewRows of each group."""
    level = law.level(np.concatenate([s.y for s in samples]))
    noise, dof = pooled_noise(law, list(samples), noise_sd, level)
    if misfit_sd is None and law.misfit_sd is not None and loss.squared:
        misfit_sd = law.misfit_sd * level
    found: list[Result | TooFewRows] = []
    for s in samples:
        try:
            with np.errstate(all="ignore"):
                if law.name == averaging.AUTO:
                    result = averaging.estimate(law, s, interval)
                elif law.shape is None:
                    result = least_squares(law, s, interval=interval, noise_sd=noise_sd, misfit_sd=misfit_sd, loss=loss, starts=starts,
                                           bootstrap=bootstrap)
                else:
                    result = integrate(law, s, interval=interval, noise_sd=noise, dof=dof, misfit_sd=misfit_sd or 0.0)
            found.append(result)
        except TooFewRows as error:
            found.append(error)
    return found


def _group_fit(law: Law, key: dict[str, Any], s: Sample, result: Result | TooFewRows, units: Mapping[str, str]) -> GroupFit:
    ranges = {k: (float(s.x[k].min()), float(s.x[k].max())) for k in law.predictors} if len(s) else {}
    unit = {p.name: p.unit.format_map(units) for p in law.parameters}
    rows: Rows = {"x": {k: s.x[k] for k in law.predictors}, "y": s.y} | ({} if s.trials is None else {"trials": s.trials})
    if isinstance(result, TooFewRows):
        none = {k: Estimate(math.nan, math.nan, math.nan, u, f"not identified: {result}") for k, u in unit.items()}
        return GroupFit(key, none, math.nan, len(s), 0, 0, math.nan, ranges, None, (str(result),), rows=rows)
    estimates = {k: Estimate(e.value, e.low, e.high, unit[k], e.status) for k, e in result.estimates.items()}
    notes = [f"{k}: {e.status}" for k, e in estimates.items() if e.status != "ok"]
    if s.copies() and law.name == averaging.AUTO:
        notes.append(f"{s.copies()} rows repeat another one exactly: they are one row with that weight, and no sign that runs have no noise")
    elif s.copies():
        notes.append(f"{s.copies()} rows repeat another one exactly: they count as runs of their own; drop them if they are copies")
    return GroupFit(key, estimates, result.objective, len(s), result.tried, result.agreeing, result.lack_of_fit, ranges,
                    result.posterior, (*notes, *result.warnings), result.posterior.correlation(law.names), result.interval_by,
                    result.nuisance, rows)
