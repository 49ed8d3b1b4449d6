"""What is left of facts met eight times: against the lag, by interval; and against the interval, by lag."""

import matplotlib.pyplot as plt

from scalemem import plot, tables


def draw(table, result):
    fig, axes = plt.subplots(1, 2, figsize=(7.2, 3.0))
    rows = result.tables["spacing"]
    largest = max(rows["n_params"].to_pylist())
    rows = tables.where(rows, f"n_params == {largest} and lag_steps > 0")[0]
    intervals, lags = (sorted(set(rows[name].to_pylist())) for name in ("interval_steps", "lag_steps"))

    for i, interval in enumerate(intervals):
        part = tables.where(rows, f"interval_steps == {interval}")[0]
        plot.points(axes[0], part, "lag_steps", "kept_nats", f"{interval:g}", plot.COLOURS[i], plot.MARKERS[i])
    shown = [lag for lag in (1, 16, 64, lags[-1]) if lag in lags]
    for i, lag in enumerate(dict.fromkeys(shown)):
        plot.points(axes[1], tables.where(rows, f"lag_steps == {lag}")[0], "interval_steps", "kept_nats", f"{lag}", plot.COLOURS[i], plot.MARKERS[i])
    for axis in axes:
        axis.set_xscale("log")
        axis.axhline(0, color="0.6", lw=0.7)
    axes[0].set(xlabel="steps since the last encounter", ylabel="left, above the controls (nats a fact)", title=f"{largest:,} parameters")
    axes[1].set(xlabel="steps between encounters", title="By the lag")
    axes[0].legend(title="steps between", fontsize=6, title_fontsize=6)
    axes[1].legend(title="lag", fontsize=6, title_fontsize=6)
    return fig
