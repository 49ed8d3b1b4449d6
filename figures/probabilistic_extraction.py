"""Rates of (n, p)-extraction against samples, for several p and numbers of copies, and against size, beside greedy decoding."""

import matplotlib.pyplot as plt
import numpy as np

from scalemem import plot, tables


def draw(table, result):
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.9), sharey=True)
    found = result.tables["np"]
    largest = max(found["n_params"].to_pylist())
    own = tables.where(found, f"planted and n_params == {largest}")[0]
    for i, p in enumerate((0.1, 0.9, 0.999)):
        _line(axes[0], tables.where(own, f"p_probability == {p}")[0], f"p = {p}", i)
    others = tables.where(found, f"not planted and n_params == {largest} and p_probability == 0.1")[0]
    _line(axes[0], others, "never planted, p = 0.1", 3, "0.5")
    axes[0].axhline(np.mean(own["greedy_fraction"].to_pylist()), color="0.2", linewidth=0.9, linestyle="--", label="greedy")
    axes[0].set(title=f"{largest:,} parameters, 4 to 128 copies", ylabel="extractable fraction", xlabel="samples, n")

    for i, copies in enumerate((8, 16, 32, 64)):
        rows = tables.where(result.tables[f"np_{copies}"], f"n_params == {largest}")[0]
        n, mean = _line(axes[1], rows, "", i)
        half = int(np.argmax(mean >= 0.5 * mean[-1]))  # the label stands where half of it is reached, below if there is room
        place = {"xytext": (5, -9)} if mean[half] > 0.1 else {"xytext": (0, 4), "ha": "right"}
        axes[1].annotate(f"{copies} copies", (n[half], mean[half]), textcoords="offset points", color=plot.COLOURS[i], fontsize=7, **place)
        axes[1].axhline(np.mean(rows["greedy_fraction"].to_pylist()), color=plot.COLOURS[i], linewidth=0.9, linestyle="--")
    axes[1].set(title="By copies, p = 0.9; dashed: greedy", xlabel="samples, n")

    for i, (where, column, label) in enumerate((
            ("p_probability == 0.1 and n_samples_count == 500000", "extractable_fraction", "n = 500,000, p = 0.1"),
            ("p_probability == 0.1 and n_samples_count == 500000", "greedy_fraction", "greedy"),
            ("p_probability == 0.999 and n_samples_count == 10", "extractable_fraction", "n = 10, p = 0.999"))):
        rows = tables.where(found, f"planted and {where}")[0]
        plot.points(axes[2], rows, "n_params", column, label, plot.COLOURS[i], plot.MARKERS[i])
    axes[2].set(title="By size", xlabel="parameters")
    for axis in axes[:2]:
        axis.set_xscale("log")
        axis.set_xticks([1, 100, 10_000, 1_000_000], ["1", "100", "10,000", "$10^6$"])
        axis.set_xticks([10, 1000, 100_000], [""] * 3, minor=True)
    plot.log_x(axes[2])
    axes[0].set_ylim(-0.03, 1.03)
    axes[0].legend(loc="upper left")
    axes[2].legend(loc="upper left")
    return fig


def _line(axis, rows, label, i, colour=None):
    colour = colour or plot.COLOURS[i]
    plot.points(axis, rows, "n_samples_count", "extractable_fraction", label, colour, plot.MARKERS[i])
    n = sorted(set(rows["n_samples_count"].to_pylist()))
    values = np.array([[r["extractable_fraction"] for r in rows.to_pylist() if r["n_samples_count"] == k] for k in n])
    axis.plot(n, values.mean(1), color=colour, linewidth=0.8)
    return n, values.mean(1)
