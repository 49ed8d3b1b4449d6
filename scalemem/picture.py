"""Figures of a forecast and of a back-test, with what a reader must know in a caption under them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scalemem.averaging import AUTO, Average, law_of
from scalemem.fitting import Fit, GroupFit
from scalemem.forecasting import Backtest, Forecast, predictive, widest
from scalemem.laws.base import Law
from scalemem.plot import COLOURS, axis, style
from scalemem.show import number, validation
from scalemem.tables import TableError, key_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE, CAPTION, LINE = (7.0, 4.5), 132, 0.135  # inches; characters and inches of a line of the caption
TRUST = " An average trusts its laws near the largest rows; before them its median follows the rows."
LEAST, DRAWS, GROUPS = 0.02, 30, 24  # weight of a family that is drawn, draws of a single law, panels of a back-test
GREY, BAND = "#777777", COLOURS[0]


def check(path: str) -> None:
    """Refuses a figure file of a kind that cannot be drawn, before anything is fitted."""
    if Path(path).suffix not in (".png", ".pdf", ".svg"):
        raise TableError(f"--figure {path!r}: must end in .png, .pdf or .svg; rename it")


def save(draw: Callable[[], Figure], path: str) -> None:
    """Draws in the house style and writes the figure."""
    with style():
        draw().savefig(path, dpi=200)


def forecast(found: Fit, made: Sequence[Forecast], group: Any = None) -> Figure:
    """The fitted rows, the curves that were considered, the forecast with its bands, and the rows' residuals below.

    Along the predictor that takes several values in `made`, else the one that is extrapolated furthest; the others are held at the values of
    the first forecast, and rows are coloured by one of them. Open markers are the rows that the fit's back-test held out. Residuals are
    y / median - 1 at each row's own predictors.

    Args:
      found: a fit with its rows.
      made: forecasts of one group of it.
      group: which group; None where there is one.
    Returns:
      a figure of 7 by 4.5 inches. Where the fit cannot forecast there are the rows alone, and the caption says why.
    Raises:
      TableError: an unknown group, or a law without predictors, which has no axis.
    """
    import matplotlib.pyplot as plt

    g, law = found.at(group), law_of(found.law, found.x)
    if not law.predictors:
        raise TableError(f"--figure: law {law.name} has no predictor to draw along; leave it out")
    name = _along(g, made)
    held = {k: v for k, v in made[0].at.items() if k != name}
    x, y, open_ = g.rows["x"], _quantity(g), _held_out(g)
    fig, (top, low) = plt.subplots(2, 1, figsize=SIZE, sharex=True, height_ratios=(3, 1))
    everything = [*x[name], *(f.at[name] for f in made)]
    line = _grid(min(everything), max(everything))
    known = g.posterior is not None
    seen = [y]
    if known:
        at = {k: np.full(len(line), v) for k, v in held.items()} | {name: line}
        spread = predictive(law, g, at)
        _candidates(top, law, g, at, line)
        _bands(top, g, line, spread.quantile, name)
        middle = spread.quantile(0.5)
        seen += [middle[np.isfinite(middle)], *([f.low, f.median, f.high] for f in made if math.isfinite(f.median))]
        for i, f in enumerate(made):
            if math.isfinite(f.median):
                top.errorbar([f.at[name]], [f.median], yerr=[[f.median - f.low], [f.high - f.median]], fmt="D", color=COLOURS[1], capsize=2.5,
                             zorder=4, label=f"forecast, {_percent(f.interval)} interval" if not i else None)
        _residuals(low, x[name], y, predictive(law, g, x).quantile(0.5), open_)
    shade = _rows(top, x, y, open_, name)
    for a in (top, low):
        axis(a.xaxis, everything)
        a.margins(x=0.03)
    axis(top.yaxis, np.concatenate([np.ravel(v) for v in seen]), wide=3.0)
    low.set_xlabel(_label(found, found.x[name], name))
    top.set_ylabel(_measured(found))
    each = sorted(zip(*top.get_legend_handles_labels(), strict=True), key=lambda item: _rank(item[1]))
    fig.legend([h for h, _ in each], [text for _, text in each], loc="outside upper left", ncols=4, title=key_text(g.key) or None,
               alignment="left")  # above the axes, where it hides no row
    if shade is not None:
        fig.colorbar(shade[0], ax=top, label=_label(found, found.x[shade[1]], shade[1]), pad=0.01)
    _caption(fig, _said(found, g, made, name, held))
    return fig


def backtest(result: Backtest) -> Figure:
    """A panel for each group, at most 24: fitted rows, held-out rows (open), and the forecast with its 50 % and 90 % bands.

    With one predictor bands are curves. With several each held-out row has the forecast at its own predictors as a bar.

    Raises TableError where no group could be fitted.
    """
    import matplotlib.pyplot as plt

    found = result.fit
    if found is None:
        raise TableError("--figure: no group could be fitted, so there is no forecast to draw; see the reasons in the table")
    shown = list(zip(result.rows, result.held, strict=True))[:GROUPS]
    across = min(4, math.ceil(math.sqrt(len(shown))))
    down = math.ceil(len(shown) / across)
    fig, panels = plt.subplots(down, across, squeeze=False, figsize=(SIZE[0], max(1.55 * down + 0.5, 2.6 if down > 1 else 3.6)))
    for ax, item in zip(panels.flat, [*shown, *[None] * (across * down - len(shown))], strict=True):
        if item is None:
            ax.set_axis_off()
        else:
            _panel(ax, found, *item)
    first = found.groups[0]
    name = widest(first)
    for i, ax in enumerate(panels.flat[:len(shown)]):
        if i + across >= len(shown):
            ax.set_xlabel(_label(found, found.x[name], name), fontsize=7)
        if i % across == 0:
            ax.set_ylabel(_measured(found), fontsize=7)
    s, share = result.summary, result.summary["coverage"]["0.9"]
    more = f" The first {GROUPS} of {len(result.rows)} groups are drawn." if len(result.rows) > GROUPS else ""
    failed = f" {s['n_failed']} groups could not be tested." if s["n_failed"] else ""
    bands = "Line and bands: median," if len(found.x) == 1 else "Bars, at each held-out row's own predictors:"
    _caption(fig, f"Back-test of law {found.law}. Filled: fitted rows. Open: held-out rows. {bands} 50 % and 90 % intervals "
             f"of a new run, from the fitted rows alone; e: rmse of the log over a group's held-out rows. Groups: {s['n_groups']}; "
             f"mean rmse of the log {number(s['rmse_log_mean'])}, 90 % intervals hold {_percent(share)} of {s['n_test']} held-out rows."
             + TRUST * (found.law == AUTO) + more + failed)
    return fig


def _panel(ax: Axes, found: Fit, row: Mapping[str, Any], held: Mapping[str, Any]) -> None:
    g = next((g for g in found.groups if g.key == row["group"]), None)
    actual = held["y"] / held["trials"] if "trials" in held else held["y"]
    title = ", ".join(map(str, row["group"].values())) if row["group"] else ""
    error = "" if math.isnan(row["rmse_log"]) else f"e = {number(row['rmse_log'])}"
    ax.set_title("\n".join(textwrap.wrap(title, 27)[:2] + [error if "reason" not in row else "not tested"]).strip(), fontsize=7, pad=2)
    ax.tick_params(labelsize=6)
    name = widest(g) if g is not None else next(iter(found.x))
    xs, ys = [*held["x"][name]], [actual]
    if g is not None:
        xs += [*g.rows["x"][name]]
        ys.append(_quantity(g))
        ax.plot(g.rows["x"][name], ys[-1], "o", color="black", markersize=2.2, zorder=3)
    ax.plot(held["x"][name], actual, "o", color=COLOURS[1], markerfacecolor="white", markersize=3, zorder=4)
    if g is not None and g.posterior is not None:
        law = law_of(found.law, found.x)
        line = _grid(min(xs), max(xs)) if len(found.x) == 1 else held["x"][name]
        spread = predictive(law, g, {name: line} if len(found.x) == 1 else held["x"])
        if len(found.x) == 1:
            _bands(ax, g, line, spread.quantile, name)
        else:
            for level, width in ((0.9, 0.8), (0.5, 2.2)):
                ax.vlines(line, spread.quantile((1 - level) / 2), spread.quantile((1 + level) / 2), color=BAND, linewidth=width, alpha=0.6)
        ys.append(spread.quantile(0.5))
    axis(ax.xaxis, xs, most=3)
    axis(ax.yaxis, np.concatenate(ys), wide=3.0, most=5)


def _along(g: GroupFit, made: Sequence[Forecast]) -> str:
    """The predictor that the forecasts differ in, else the one that is extrapolated furthest, else the widest."""
    at = made[0].at
    for k in at:
        if len({f.at[k] for f in made}) > 1:
            return k
    beyond = {k: max(v / g.ranges[k][1], g.ranges[k][0] / v if v else 1.0) for k, v in at.items()} if g.ranges else dict.fromkeys(at, 1.0)
    return max(beyond, key=lambda k: beyond[k]) if max(beyond.values()) > 1 else widest(g)


def _grid(low: float, high: float) -> np.ndarray:
    """200 points of the axis, a little beyond either end."""
    if low <= 0:
        return np.linspace(low, high * 1.02, 200)
    over = (high / low) ** 0.03
    return np.geomspace(low / over, high * over, 200)


def _quantity(g: GroupFit) -> np.ndarray:
    """What the forecast is of: y, or the share of the trials."""
    return g.rows["y"] / g.rows["trials"] if "trials" in g.rows else g.rows["y"]


def _held_out(g: GroupFit) -> np.ndarray:
    """The rows that `forecasting.with_backtest` holds out: the largest value of the widest predictor."""
    values = g.rows["x"][widest(g)]
    return values == values.max()


def _bands(ax: Axes, g: GroupFit, line: np.ndarray, quantile: Callable[[float], np.ndarray], name: str) -> None:
    """The median, dashed outside the fitted range, and the bands."""
    middle, (low, high) = quantile(0.5), g.ranges[name]
    inside = (line >= 0.999 * low) & (line <= 1.001 * high)
    for level, alpha in ((0.9, 0.14), (0.5, 0.22)):
        ax.fill_between(line, quantile((1 - level) / 2), quantile((1 + level) / 2), color=BAND, alpha=alpha, linewidth=0,
                        label=f"{_percent(level)} of new runs")
    ax.plot(line, np.where(inside, middle, math.nan), color=BAND, label="median", zorder=2.5)
    ax.plot(line, middle, color=BAND, linestyle=(0, (2, 2)), linewidth=0.9, zorder=2.5)


def _candidates(ax: Axes, law: Law, g: GroupFit, at: Mapping[str, np.ndarray], line: np.ndarray) -> None:
    """Each family's mean curve with its weight, or draws of a single law's curve."""
    p = g.posterior
    if isinstance(p, Average):
        curves = p.curves(p.rows.below(at))[0]
        shares = np.bincount(p.family, p.weights, len(p.families))
        faint = [i for i in np.argsort(-shares, kind="stable") if shares[i] >= LEAST]
        for i, colour in zip(faint, (*COLOURS[2:], GREY, *COLOURS[:2]) * 2, strict=False):
            mine = p.family == i
            ax.plot(line, p.weights[mine] @ curves[mine] / shares[i], color=colour, alpha=0.6, linewidth=0.8,
                    label=f"{p.families[i].name} {_percent(float(shares[i]))}")
        return
    assert p is not None
    if len(p.points) == 1:
        root = np.linalg.cholesky(p.covariances[0] + 1e-14 * np.diag(np.diag(p.covariances[0])) + 1e-300 * np.eye(len(law.names)))
        points = p.points + np.random.default_rng(0).standard_normal((DRAWS, len(law.names))) @ root.T
    else:
        points = p.points[np.searchsorted(np.cumsum(p.weights), (np.arange(DRAWS) + 0.5) / DRAWS).clip(max=len(p.points) - 1)]
    law = replace(law, scale=p.scale or law.scale)
    curves = law.off_scale(law.predict({**at, "1": np.ones(len(line))}, points)) * np.ones((DRAWS, len(line)))
    for i, curve in enumerate(curves):
        ax.plot(line, curve, color=GREY, alpha=0.25, linewidth=0.5, label=f"{law.name}: {DRAWS} curves that fit" if not i else None)


def _rows(ax: Axes, x: Mapping[str, np.ndarray], y: np.ndarray, open_: np.ndarray, name: str) -> tuple[Any, str] | None:
    """The rows; with several predictors coloured by another one, which is returned with the colours."""
    import matplotlib
    from matplotlib.colors import ListedColormap, LogNorm

    others = [k for k in x if k != name and (x[k] > 0).all() and np.ptp(x[k]) > 0]
    if not others:
        ax.plot(x[name][~open_], y[~open_], "o", color="black", label="rows", zorder=3)
        ax.plot(x[name][open_], y[open_], "o", color="black", markerfacecolor="white", label="rows held out in the back-test", zorder=3)
        return None
    by = max(others, key=lambda k: float(x[k].max() / x[k].min()))
    norm = LogNorm(x[by].min(), x[by].max())
    colours = ListedColormap(matplotlib.colormaps["viridis"](np.linspace(0, 0.87, 256)))  # no yellow: it is lost on white
    shade = ax.scatter(x[name][~open_], y[~open_], c=x[by][~open_], norm=norm, cmap=colours, s=9, label="rows", zorder=3)
    edge = list(colours(norm(x[by][open_])))
    ax.scatter(x[name][open_], y[open_], facecolors="white", edgecolors=edge, s=12, label="rows held out in the back-test", zorder=3)
    return shade, by


def _residuals(ax: Axes, x: np.ndarray, y: np.ndarray, median: np.ndarray, open_: np.ndarray) -> None:
    relative = bool((np.concatenate([y, median]) > 0).all())
    off = 100 * (y / median - 1) if relative else y - median
    ax.axhline(0, color=BAND, linewidth=0.9)
    ax.plot(x[~open_], off[~open_], "o", color="black", markersize=2.5)
    ax.plot(x[open_], off[open_], "o", color="black", markerfacecolor="white", markersize=2.5)
    ax.set_ylabel("residual (%)" if relative else "residual")
    most = float(np.nanmax(np.abs(off), initial=0.0)) or 1.0
    ax.set_ylim(-1.25 * most, 1.25 * most)


def _label(found: Fit, column: str, of: str) -> str:
    unit = found.units.get(of, column).strip("()")
    return column if unit in (column, "1") else f"{column} ({unit})"


def _measured(found: Fit) -> str:
    return _label(found, found.y, "y") + (f" / {found.trials}" if found.trials else "")


def _rank(label: str) -> int:
    """Where a label stands in the legend: rows, forecast, median, bands, laws."""
    starts = ("rows", "forecast", "median", "90 %", "50 %")
    return next((i for i, start in enumerate(starts) if label.startswith(start)), len(starts))


def _said(found: Fit, g: GroupFit, made: Sequence[Forecast], name: str, held: Mapping[str, float]) -> str:
    """What the caption says: the numbers, how far they reach, what is held, the back-test and the warnings."""
    each = [f"{found.x[name]} = {_short(f.at[name])}: {number(f.median)} [{number(f.low)}, {number(f.high)}], "
            + (f"{f.far} beyond the rows" if f.extrapolation > 1 else "inside the rows") for f in made]
    p, mixed = g.posterior, isinstance(g.posterior, Average)
    law = f"an average over {len(p.families)} families of curves" if isinstance(p, Average) else law_of(found.law, found.x).formula
    parts = [f"Forecast by {law}, fitted to {g.n_rows} rows. " + "; ".join(each) + f" ({_percent(made[0].interval)} intervals)." + TRUST * mixed]
    if held:
        fixed = " and ".join(f"{found.x[k]} = {_short(v)}" for k, v in held.items())
        parts.append(f"Curves are at {fixed}; the rows have their own values, so they need not lie on them (residuals are at their own).")
    told = validation(found.backtest)
    parts.append(f"{told[0].upper()}{told[1:]}.")
    furthest = max(made, key=lambda f: f.extrapolation)
    warned = dict.fromkeys(w for w in furthest.warnings if w != "not back-tested" and ": not identified" not in w)
    parts += [f"{w[0].upper()}{w[1:]}." for w in list(warned)[:3]]
    return " ".join(parts)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _short(value: float) -> str:
    return f"{value:.4g}".replace("e+", "e")


def _caption(fig: Figure, text: str) -> None:
    lines = textwrap.wrap(text, CAPTION, break_on_hyphens=False)[:7]
    share = (len(lines) * LINE + 0.06) / fig.get_figheight()
    layout: Any = fig.get_layout_engine()
    layout.set(rect=(0, share, 1, 1 - share))
    fig.text(0.012, share - 0.02 / fig.get_figheight(), "\n".join(lines), fontsize=7, va="top", linespacing=1.15)
