"""What small models forget in few steps, and what is forecast and measured of larger ones after more: curves, and every seed's last step."""

import matplotlib.pyplot as plt
import numpy as np

from scalemem import plot, tables


def draw(table, result):
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.1), width_ratios=(1.45, 1))
    curves, said = result.tables["forgotten"], result.tables["forecast"]
    sizes = sorted(set(said["n_params"].to_pylist()))
    small = sorted(n for n in set(curves["n_params"].to_pylist()) if n < sizes[0])

    for n in small:
        rows = tables.where(curves, f"n_params == {n} and steps > 0")[0]
        x, mean = _mean(rows, "steps", "forgotten_fraction")
        axes[0].plot(x, mean, color="0.6", lw=0.9, label=f"{small[0]:,} to {small[-1]:,} parameters" if n == small[0] else None)
    for i, n in enumerate(sizes):
        rows = tables.where(said, f"n_params == {n}")[0]
        x, middle = _mean(rows, "steps", "forecast_fraction")
        low, high = (_mean(rows, "steps", f"{end}_fraction")[1] for end in ("low", "high"))
        axes[0].fill_between(x, low, high, color=plot.COLOURS[i], alpha=0.18, lw=0)
        axes[0].plot(x, middle, color=plot.COLOURS[i], ls="--", lw=1)
        plot.points(axes[0], rows, "steps", "actual_fraction", f"{n:,.0f} parameters, measured", plot.COLOURS[i], plot.MARKERS[i])
        last = tables.where(rows, f"steps == {x[-1]}")[0]
        low, middle, high, actual = (tables.load(last, f"{name}_fraction") for name in ("low", "forecast", "high", "actual"))
        place = np.arange(len(actual)) + (i - 0.5) * 0.3
        axes[1].errorbar(place, middle, [middle - low, high - middle], fmt="none", ecolor=plot.COLOURS[i], elinewidth=1)
        axes[1].plot(place, middle, "_", color=plot.COLOURS[i], ms=6)
        axes[1].plot(place, actual, plot.MARKERS[i], color=plot.COLOURS[i], ms=3.5,
                     label=f"{n:,.0f}: {int(tables.load(last, 'inside').sum())} of {len(actual)} inside")
    known = max(s for s in tables.load(curves, "steps") if s <= x[-1] / 10)
    axes[0].axvline(known, color="0.5", lw=0.7, ls=":")
    axes[0].text(known, 1.02, "small models are seen up to here ", ha="right", va="bottom", fontsize=6, transform=axes[0].get_xaxis_transform())
    axes[0].set(xscale="log", xlabel="steps of the continuation", ylabel="forgotten share of what was known", ylim=(-0.03, 1.03), xlim=(1, None))
    axes[0].legend(loc="upper left", fontsize=6)
    axes[1].set(xlabel="seed", title=f"After {x[-1]:,.0f} steps, with 90 % intervals", ylim=(-0.28, 1.03), xticks=range(len(actual)),
                yticks=(0, 0.25, 0.5, 0.75, 1))
    axes[1].legend(loc="lower left", title="measured (–: forecast), parameters", fontsize=6, title_fontsize=6)
    return fig


def _mean(rows, x, y):
    """x, and the mean of y over the rows at each."""
    at, values = tables.load(rows, x), tables.load(rows, y)
    places = np.unique(at)
    return places, np.array([values[at == p].mean() for p in places])
