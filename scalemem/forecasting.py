"""Forecasts with predictive intervals, how far they extrapolate, and how the law did when it was tested.

The interval is for the y of a new run: parameters + run noise + misfit. The rule for the misfit is a random walk in log x: its variance
grows by one unit for each fitted range that is extrapolated,

    growth = 1 + sum over predictors of log(extrapolation) / log(largest / smallest fitted value),

so a curve fitted from 125 to 1,000 and read at 64,000 (two more ranges) has three times the misfit variance. Where the fit has no misfit
(neither given nor seen in replicates) the interval holds only if the law is right, and a warning says so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scalemem import tables
from scalemem.averaging import Average, law_of
from scalemem.fitting import Fit, GroupFit, Rows, fit, plain
from scalemem.laws import losses, statistics
from scalemem.laws.base import Law
from scalemem.laws.posterior import Predictive
from scalemem.laws.statistics import Measured
from scalemem.tables import TableError, TooFewRows

if TYPE_CHECKING:
    import pyarrow as pa

LEVELS = (0.5, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Forecast:
    """The forecast of one new run: median and predictive interval, NaN with a warning where the fit cannot say.

    `extrapolation` is the factor beyond the fitted values, 1 inside them.
    """

    at: dict[str, float]
    median: float
    low: float
    high: float
    interval: float
    extrapolation: float
    laws: dict[str, float]
    backtest: dict[str, Any] | None
    warnings: tuple[str, ...] = field(default=())

    @property
    def far(self) -> str:
        """The extrapolation as text: "37x", or "none"."""
        if self.extrapolation <= 1:
            return "none"
        return f"{self.extrapolation:.0f}x" if self.extrapolation >= 9.5 else f"{self.extrapolation:.2g}x"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; NaN becomes null."""
        numbers = {k: v if math.isfinite(v) else None for k, v in (
            ("median", self.median), ("low", self.low), ("high", self.high), ("extrapolation", self.extrapolation))}
        return {"at": self.at, **numbers, "interval": self.interval, "extrapolation_text": self.far, "laws": self.laws,
                "backtest": self.backtest, "warnings": list(self.warnings)}


def forecast(fit: Fit, at: Mapping[str, float], *, interval: float | None = None, group: Any = None) -> Forecast:
    """The predictive distribution of y for a new run at given predictors.

    On the law's scale (log or linear) it is the mixture over the fit's posterior theta_k with weights w_k

        sum_k w_k t_dof(f(x, theta_k), sqrt(f_k' C_k f_k + noise^2 + growth misfit^2)),    f_k' the gradient, C_k the covariance of theta,

    whose quantiles at (1 - interval) / 2, 1/2 and (1 + interval) / 2 are given; `growth` is the rule at the head of this module.

    Args:
      fit: of any law.
      at: {predictor: value}, positive, in the units of the fitted columns; a column's name may stand for its predictor.
      interval: probability of the interval, in (0, 1); default: the fit's.
      group: which group, where the fit has several: {column: value}, or the value of a single column.
    Returns:
      median, low and high in the unit of y; NaN, and a warning that says why, where they depend on what the rows do not identify.
    Raises:
      TableError: an unknown group, or predictors that are missing, unknown or not positive. TooFewRows: a group without rows.

    >>> import pyarrow as pa
    >>> from scalemem.fitting import fit
    >>> t = pa.table({"n": [1., 2., 4., 8.], "bits": [3.1, 5.9, 12.2, 23.9]})
    >>> f = forecast(fit(t, "power", y="bits", x="n"), {"n": 80})
    >>> f.far, f.low < 240 < f.high
    ('10x', True)

    The predictive distribution of a linear model: Draper and Smith, Applied Regression Analysis, 3rd ed., section 3.1.
    """
    law, found = law_of(fit.law, fit.x), fit.at(group)
    at = _predictors(fit, law, at)
    interval = fit.interval if interval is None else interval
    if not 0 < interval < 1:
        raise TableError(f"interval = {interval!r}: must lie between 0 and 1; write 0.9")
    beyond = max([_beyond(found.ranges[k], v) for k, v in at.items()], default=1.0) if found.ranges or not at else math.nan
    notes = [*fit.warnings] if len(fit.groups) == 1 else [*found.warnings]
    if found.posterior is None:
        return Forecast(at, math.nan, math.nan, math.nan, interval, beyond, {law.name: 1.0}, fit.backtest, tuple(notes))
    spread = predictive(law, found, {k: np.array([v]) for k, v in at.items()})
    low, median, high = (float(spread.quantile(q)[0]) for q in ((1 - interval) / 2, 0.5, (1 + interval) / 2))
    if math.isnan(median):
        lost = ", ".join(k for k, e in found.parameters.items() if e.status.startswith("not identified"))
        notes.append(f"no forecast: it depends on {lost}, which the fitted rows do not identify; add rows there" if lost else
                     "no forecast: it exceeds all numbers; ask nearer to the fitted rows")
    if not isinstance(found.posterior, Average) and found.posterior.misfit_sd == 0 and beyond > 1:
        notes.append(f"the interval assumes that the law holds {beyond:.3g} times beyond the fitted rows: no misfit was given or seen")
    if fit.backtest is None:
        notes.append("not back-tested")
    weights = found.posterior.shares() if isinstance(found.posterior, Average) else {law.name: 1.0}
    return Forecast(at, median, low, high, interval, beyond, weights, fit.backtest, tuple(notes))


def _predictors(fit: Fit, law: Law, at: Mapping[str, float]) -> dict[str, float]:
    by_column = {c: k for k, c in fit.x.items()}
    named = {by_column.get(k, k): v for k, v in at.items()}
    if set(named) != set(law.predictors):
        raise TableError(f"at = {dict(at)}: must give a value for each of {', '.join(law.predictors) or 'no predictors'}; "
                         "write NAME=VALUE for each")
    for k, v in named.items():
        if isinstance(v, bool) or not isinstance(v, (int, float)) or not (0 < v < 1e300 or (v == 0 and k in law.zero)):
            raise TableError(f"at {k} = {v!r}: must be a positive finite number; write {k}=VALUE")
    return {k: float(named[k]) for k in law.predictors}


def _beyond(fitted: tuple[float, float], value: float) -> float:
    if fitted[0] <= 0 or value <= 0:  # a predictor that may be 0: how far below its smallest value is no ratio
        return max(value / fitted[1], 1.0) if fitted[1] > 0 else 1.0
    return max(value / fitted[1], fitted[0] / value, 1.0)


def growth(found: GroupFit, x: Mapping[str, np.ndarray]) -> np.ndarray:
    """The factor on the misfit's variance at each point (the rule above); a predictor that did not vary counts a doubling as a range."""
    total = np.ones(len(next(iter(x.values()))) if x else 1)
    for k, v in x.items():
        low, high = found.ranges[k]
        if low <= 0:  # a predictor that may be 0 has no range in log: beyond its largest value, doublings count
            total = total + np.log(np.maximum(v / high if high > 0 else np.ones_like(v), 1.0)) / math.log(2.0)
            continue
        total = total + np.log(np.maximum(np.maximum(v / high, low / v), 1.0)) / math.log(high / low if high > 1.01 * low else 2.0)
    return total


def predictive(law: Law, found: GroupFit, x: Mapping[str, np.ndarray]) -> Predictive:
    """The predictive distribution of new runs at many points {predictor: values}."""
    assert found.posterior is not None
    if isinstance(found.posterior, Average):
        return found.posterior.predict(x)
    return found.posterior.predict(law, x, growth(found, x))


@dataclass(frozen=True)
class Backtest:
    """Forecasts of held-out rows: a row for each group, and their summary; for figures the fit, None if there is none, and the rows held out."""

    rows: tuple[dict[str, Any], ...]
    summary: dict[str, Any]
    fit: Fit | None = None
    held: tuple[Rows, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; NaN becomes null."""
        return plain({"rows": self.rows, "summary": self.summary})


def backtest(table: pa.Table, law: str | Law = "auto", *, y: str, x: Mapping[str, str] | str | None = None, group: Sequence[str] | str = (),
             holdout: str | np.ndarray | None = None, split: str | None = None, where: str | np.ndarray | None = None,
             **options: Any) -> Backtest:
    """Fits a law on some rows and forecasts the others, group by group.

    With m_i the median forecast of held-out row i of n, p its predictive density and F its distribution,

        rmse_log^2 = mean (log m_i - log y_i)^2,  bias_log = mean (log m_i - log y_i),  log_likelihood = mean log p(y_i)  (nats),
        coverage(level) = share of |F(y_i) - 1/2| <= level / 2,  msce = mean over levels of (coverage - level)^2.

    Of counts the forecast is a probability: m_i and F are compared with y_i / trials_i, p is of the count.

    Args:
      table: (rows,) with the columns named below.
      law: by name, or a Law.
      y, x: columns: the quantity, and {predictor: column} (a single column where the law has one predictor).
      group: columns; each combination of their values is fitted and forecast apart.
      holdout: an expression, or (rows,) booleans: rows for which it is true are held out; or
      split: a column: 0 = held out, any other number = fit.
      where: an expression, or (rows,) booleans: the others take no part.
      options: of `fit`: interval, loss, trials, replicates, misfit_sd, noise_sd, weights, starts, bootstrap.
    Returns:
      rows `{group, law, n_fit, n_test, rmse_log, bias_log, log_likelihood, coverage, seconds}`, and a summary: errors are means over
      groups, coverage over all held-out rows. A group that cannot be fitted or has no held-out rows has NaN and a `reason`, and does not
      enter the summary (`n_failed` counts it).
    Raises:
      TableError: a column, law or expression that is none, or not exactly one of holdout and split. RowsError: a value that cannot
      be. TooFewRows: nothing is held out.

    >>> import pyarrow as pa
    >>> t = pa.table({"n": [1., 2., 4., 8., 16.], "bits": [3.1, 5.9, 12.2, 23.9, 48.5]})
    >>> round(backtest(t, "power", y="bits", x="n", holdout="n > 8").summary["rmse_log_mean"], 3)
    0.023

    The scores: Gneiting and Raftery 2007, JASA 102:359; back-tests of scaling laws: Alabdulmohsin et al. 2022, arXiv 2209.06640.
    """
    law = law_of(law, x if isinstance(x, Mapping) else ())
    if (holdout is None) == (split is None):
        raise TableError("back-test: must have one of holdout and split; give an expression or a column of 1 (fit) and 0 (held out)")
    inside = where if isinstance(where, np.ndarray) else tables.mask(table, where)
    out = _held_out(table, holdout, split, inside)
    if not (out & inside).any():
        raise TooFewRows(f"back-test: 0 rows are held out by {holdout or split!r}; widen it")
    names = [group] if isinstance(group, str) else list(group)
    began = time.perf_counter()
    try:
        found = fit(table, law, y=y, x=x, group=names, where=inside & ~out, **options)
    except TooFewRows as error:
        found = error
    held = tables.groups(table, names, inside & out)
    seconds = (time.perf_counter() - began) / len(held)
    rows = [_row(table, law, key, found, test, seconds) for key, test in held]
    if not isinstance(found, Fit):
        return Backtest(tuple(rows), summarise(rows))
    return Backtest(tuple(rows), summarise(rows), found, tuple(_rows(table, found, key, test) for key, test in held))


def _rows(table: pa.Table, found: Fit, key: dict[str, Any], rows: np.ndarray) -> Rows:
    """The held-out rows of a group; none of one that was not fitted, whose values were not checked."""
    asked = np.zeros(table.num_rows, bool)
    asked[rows] = any(g.key == key and g.posterior is not None for g in found.groups)
    names = {"y": found.y} | ({"trials": found.trials} if found.trials else {})
    return {k: tables.column(table, c, keep=asked) for k, c in names.items()} | {
        "x": {k: tables.column(table, c, keep=asked) for k, c in found.x.items()}}


def _held_out(table: pa.Table, holdout: str | np.ndarray | None, split: str | None, inside: np.ndarray) -> np.ndarray:
    if split is None:
        return holdout if isinstance(holdout, np.ndarray) else tables.mask(table, holdout)
    out = np.zeros(table.num_rows, bool)
    out[inside] = tables.column(table, split, keep=inside) == 0
    return out


def _row(table: pa.Table, law: Law, key: dict[str, Any], found: Fit | TooFewRows, test: np.ndarray,
         seconds: float) -> dict[str, Any]:
    began, asked = time.perf_counter(), np.zeros(table.num_rows, bool)
    asked[test] = True
    fitted = next((g for g in found.groups if g.key == key), None) if isinstance(found, Fit) else None
    row = {"group": key, "law": law.name, "n_fit": fitted.n_rows if fitted else 0, "n_test": len(test), "rmse_log": math.nan,
           "bias_log": math.nan, "log_likelihood": math.nan, "coverage": {str(v): math.nan for v in LEVELS}, "seconds": seconds}
    if not isinstance(found, Fit) or fitted is None:
        return row | {"reason": str(found) if isinstance(found, TooFewRows) else "no rows to fit in this group"}
    if fitted.posterior is None:
        return row | {"reason": "; ".join(fitted.warnings)}
    spread, actual, trials = _actual(found, law, fitted, table, asked)
    median, level = spread.quantile(0.5), spread.cdf(actual)
    if np.isnan(median).any():
        return row | {"reason": "; ".join(fitted.warnings)}
    error = np.log(median / actual) if min(actual.min(), median.min()) > 0 else np.array(math.nan)
    return row | {"rmse_log": float(np.sqrt(np.mean(error**2))), "bias_log": float(np.mean(error)),
                  "log_likelihood": float(np.mean(spread.log_density(actual) - np.log(trials))),
                  "coverage": {str(v): float(np.mean(np.abs(level - 0.5) <= v / 2)) for v in LEVELS},
                  "seconds": seconds + time.perf_counter() - began}


def _actual(found: Fit, law: Law, fitted: GroupFit, table: pa.Table, rows: np.ndarray) -> tuple[Predictive, np.ndarray, np.ndarray]:
    """The forecast of rows (a mask), what they are compared with, y or the share of the trials, and the trials (1 where nothing is counted)."""
    x = {k: tables.column(table, c, keep=rows, above=-1e-99 if k in law.zero else 0.0) for k, c in found.x.items()}
    spread, y = predictive(law, fitted, x), tables.column(table, found.y, keep=rows, above=losses.parse(found.loss).law(law).floor)
    if found.trials is None:
        return spread, y, np.ones(len(y))
    trials = tables.column(table, found.trials, keep=rows, above=0.0)
    share = np.clip(spread.mean, 0.0, 1.0)
    return replace(spread, sd=np.hypot(spread.sd, np.sqrt(share * (1 - share) / trials))), y / trials, trials


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over groups of the errors, coverage over all held-out rows."""
    done = [r for r in rows if "reason" not in r]
    sizes = [r["n_test"] for r in done]
    coverage = {str(v): float(np.average([r["coverage"][str(v)] for r in done], weights=sizes)) if done else math.nan for v in LEVELS}
    return {"rmse_log_mean": float(np.mean([r["rmse_log"] for r in done])) if done else math.nan, "coverage": coverage,
            "msce": float(np.mean([(coverage[str(v)] - v) ** 2 for v in LEVELS])), "n_groups": len(done), "n_failed": len(rows) - len(done),
            "n_test": sum(sizes)}


def widest(g: GroupFit) -> str:
    """The predictor whose fitted values span the largest factor."""
    return max(g.ranges, key=lambda k: g.ranges[k][1] / g.ranges[k][0] if g.ranges[k][0] > 0 else math.inf)


def with_backtest(found: Fit, table: pa.Table, where: np.ndarray | None = None, **options: Any) -> Fit:
    """The fit with a back-test on its own rows: in each group the rows of the largest value of the widest predictor are held out.

    `where` is the mask of the fitted rows if the fit's own filter does not give it; `options` are those that `fit` was given, beside the
    loss and its trials, which the fit knows. Where nothing can be held out the back-test holds the reason.
    """
    options = {"loss": found.loss, "trials": found.trials} | options
    law, inside = law_of(found.law, found.x), tables.mask(table, found.where) if where is None else where
    if not found.x:
        return replace(found, backtest={"reason": f"law {law.name} has no predictor to hold out"})
    out, factors = np.zeros(table.num_rows, bool), []
    for (_, rows), g in zip(tables.groups(table, found.group, inside), found.groups, strict=True):
        values = tables.column(table, found.x[widest(g)], keep=inside)[np.searchsorted(np.flatnonzero(inside), rows)]
        out[rows[values == values.max()]] = True
        rest = values[values < values.max()]
        factors.append(float(values.max() / rest.max()) if len(rest) else math.nan)
    result = backtest(table, law, y=found.y, x=found.x, group=found.group, holdout=out, where=inside, **options)
    reasons = [r["reason"] for r in result.rows if "reason" in r]
    furthest = max((f for f in factors if math.isfinite(f)), default=math.nan)
    extra = {"held_out": "largest predictor value of each group", "extrapolation": furthest}
    return replace(found, backtest=plain(result.summary | extra | ({"reason": reasons[0]} if reasons else {})))


def coverage(found: Fit, table: pa.Table, rows: np.ndarray) -> Measured:
    """The share of held-out rows inside a fit's predictive intervals, with its own interval.

    Rows of one curve share its errors: they fall inside together or outside. So where the fit has groups the interval counts curves,

        value = rows inside / rows,    [low, high] = Clopper-Pearson(curves whose rows are all inside, curves),

    stretched to hold the value where some curves are in part outside. A fit without groups counts rows.

    Args:
      found: the fit; its `interval` is the level of both intervals.
      table: the held-out rows, with the columns of the fit.
      rows: (table.num_rows,) booleans: which rows are asked about.
    Returns:
      value, low and high in [0, 1]; `n` is what was counted: curves, or rows. Rows of a group that was not fitted, or where the fit
      makes no forecast, are left out and counted in `method`.
    Raises:
      TableError: a column that the table lacks. RowsError: a value that cannot be.

    >>> import pyarrow as pa
    >>> t = pa.table({"y": [1.0, 1.2, 0.9, 1.1]})
    >>> coverage(fit(t, "constant", y="y"), t, np.ones(4, bool)).method
    'Clopper-Pearson, 4 of 4'

    Clopper and Pearson 1934, Biometrika 26:404.
    """
    law, hits, n, left, curves = law_of(found.law, found.x), 0, 0, 0, []
    for key, picked in tables.groups(table, found.group, rows):
        fitted, mask = next((g for g in found.groups if g.key == key), None), np.zeros(table.num_rows, bool)
        mask[picked] = True
        if fitted is None or fitted.posterior is None:
            left += len(picked)
            continue
        spread, actual, _ = _actual(found, law, fitted, table, mask)
        level = spread.cdf(actual)
        inside = np.abs(level[known := np.isfinite(level)] - 0.5) <= found.interval / 2
        hits, n, left = hits + int(inside.sum()), n + len(inside), left + int(np.sum(~known))
        curves += [bool(inside.all())] * bool(known.any())
    measured = statistics.proportion(hits, n, found.interval)
    if found.group and n:
        share, whole = measured.value, statistics.proportion(sum(curves), len(curves), found.interval)
        method = f"Clopper-Pearson over curves: {hits} of {n} rows, {sum(curves)} of {len(curves)} curves"
        measured = Measured(share, min(whole.low, share), max(whole.high, share), len(curves), method)
    return measured._replace(method=measured.method + f"; {left} rows left out" * (left > 0))
