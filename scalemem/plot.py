"""Drawing: Axes in, Axes out. One style for every figure, points with their intervals, laws with their bands."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from scalemem.averaging import law_of
from scalemem.fitting import Fit
from scalemem.forecasting import predictive

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6f4e37")  # distinct to colour-blind eyes
MARKERS = "osD^vP*"


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Paper-size type and thin lines, without a display."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.size": 8, "axes.titlesize": 8.5, "axes.labelsize": 8, "legend.fontsize": 7, "lines.linewidth": 1.2,
                         "lines.markersize": 3.5, "axes.spines.top": False, "axes.spines.right": False,
                         "figure.constrained_layout.use": True, "legend.frameon": False, "axes.grid": True,
                         "grid.alpha": 0.25, "grid.linewidth": 0.5}):
        try:
            yield
        finally:
            plt.close("all")


def half_width(values: np.ndarray, interval: float = 0.9) -> float:
    """Half the t interval of a mean, in the unit of the values; 0 where there is one value, or all are the same.

    >>> round(half_width(np.array([1.0, 2.0, 3.0])), 3)
    1.686
    """
    from scipy.special import stdtrit

    n = len(values)
    return float(stdtrit(n - 1, (1 + interval) / 2) * np.std(values, ddof=1)) / n**0.5 if n > 1 else 0.0


def points(ax: Axes, table: pa.Table, x: str, y: str, label: str = "", colour: str = COLOURS[0], marker: str = "o") -> Axes:
    """Draws the mean of y over the rows of equal x, with a 90 % interval where there are at least three.

    At each x with n rows the bar is mean +- t_{n-1, 0.95} s / sqrt(n); with fewer than three rows there is the point alone.

    Args:
      ax: drawn on.
      table: (rows,) with the columns x and y.
      x, y: columns of numbers, each in its own unit.
      label: of the series in the legend; "" leaves it out.
      colour, marker: Matplotlib's.
    Returns:
      ax.
    Raises:
      KeyError: a column that the table lacks.

    >>> import matplotlib.figure, pyarrow as pa
    >>> ax = points(matplotlib.figure.Figure().subplots(), pa.table({"x": [1, 1, 2], "y": [2.0, 4.0, 5.0]}), "x", "y")
    >>> [float(v) for v in ax.lines[0].get_ydata()]
    [3.0, 5.0]

    Student 1908, Biometrika 6:1.
    """
    xs, ys = (np.asarray(table[c].to_pylist(), float) for c in (x, y))
    at = np.unique(xs)
    groups = [ys[xs == v] for v in at]
    half = [half_width(g) if len(g) > 2 else 0.0 for g in groups]
    ax.errorbar(at, [g.mean() for g in groups], yerr=half, fmt=marker, color=colour, label=label or None, capsize=1.5, elinewidth=0.8)
    return ax


def law(ax: Axes, fit: Fit, x: str, lo: float, hi: float, group: Any = None, at: Mapping[str, float] | None = None,
        colour: str = COLOURS[0], label: str = "", interval: float = 0.9, x_unit: float = 1.0) -> Axes:
    """Draws the median of a fitted law over [lo, hi] and its predictive band; dashed outside the fitted range.

    The band holds a new run with probability `interval`: the quantiles (1 -+ interval) / 2 of `forecasting.predictive` at 200 points,
    evenly spaced in log x. A group that could not be fitted draws nothing.

    Args:
      ax: drawn on.
      fit: of any law with a predictor.
      x: the predictor on the axis.
      lo, hi: range of x, positive, in the unit of the axis.
      group: which group of the fit: {column: value}, or the value of a single column; None where there is one group.
      at: {predictor: value} of the other predictors, in the units of the fitted columns.
      colour, label: of the curve; "" leaves it out of the legend.
      interval: probability of the band, in (0, 1).
      x_unit: what the axis is divided by: x / x_unit is drawn.
    Returns:
      ax.
    Raises:
      TableError: an unknown group. KeyError: a predictor that is neither x nor in `at`.

    >>> import matplotlib.figure, pyarrow as pa
    >>> from scalemem.fitting import fit
    >>> found = fit(pa.table({"n": [1., 2., 4.], "bits": [3.1, 5.9, 12.2]}), "power", y="bits", x="n")
    >>> len(law(matplotlib.figure.Figure().subplots(), found, "x", 1, 40).lines)
    2

    The band: see `forecasting.forecast`.
    """
    found = fit.at(group)
    if found.posterior is None:
        return ax
    grid = np.geomspace(lo * x_unit, hi * x_unit, 200)
    at_points = {k: np.full(200, v) for k, v in (at or {}).items()} | {x: grid}
    spread = predictive(law_of(fit.law, fit.x), found, at_points)
    low, mid, high = (np.asarray(spread.quantile(q)) for q in ((1 - interval) / 2, 0.5, (1 + interval) / 2))
    inside = (grid >= found.ranges[x][0] * 0.999) & (grid <= found.ranges[x][1] * 1.001)
    grid = grid / x_unit
    ax.plot(grid, np.where(inside, mid, np.nan), color=colour, label=label or None)
    ax.plot(grid, mid, color=colour, linestyle=(0, (2, 2)), linewidth=0.8)
    ax.fill_between(grid, low, high, color=colour, alpha=0.15, linewidth=0)
    return ax


def log_x(ax: Axes) -> Axes:
    """A logarithmic x axis labelled in plain numbers: at each decade, and at 2 and 5 of each where there is room. Call it last."""
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 30 * low else (1,)))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    return ax


def axis(of: Any, values: Any, wide: float = 1.0, most: int = 6) -> None:
    """Makes an axis (`ax.xaxis` or `ax.yaxis`) logarithmic where the values are positive and span more than the factor `wide`, with at most
    about `most` labels, at plain numbers where they are short and powers of ten where they are not."""
    from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter

    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    ax, which = of.axes, of.axis_name
    of.set_major_formatter(lambda value, _: ticked(value))
    of.set_major_locator(MaxNLocator(most - 1, steps=[1, 2, 2.5, 5, 10]))
    if not len(values) or values.min() <= 0 or values.max() <= wide * values.min():
        return
    getattr(ax, f"set_{which}scale")("log")
    low, high = values.min() / 1.5, values.max() * 1.5
    for subs in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [t for t in LogLocator(subs=subs, numticks=99).tick_values(low, high) if low <= t <= high]
        if len(ticks) <= most + 1:
            break
    else:
        ticks = ticks[::-(-len(ticks) // most)]
    of.set_major_locator(FixedLocator(ticks))
    of.set_major_formatter(lambda value, _: ticked(value))
    of.set_minor_formatter(NullFormatter())


def ticked(value: float) -> str:
    r"""A tick's label.

    >>> ticked(2e9), ticked(1e7), ticked(0.03), ticked(2500.0)
    ('$2{\\times}10^{9}$', '$10^{7}$', '0.03', '2,500')
    """
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.10g}"
    power = math.floor(math.log10(abs(value)) + 1e-9)
    lead = f"{value / 10.0**power:.6g}"
    return f"$10^{{{power}}}$" if lead == "1" else rf"${lead}{{\times}}10^{{{power}}}$"
