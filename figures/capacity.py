"""Memorized bits against data bits by size, convergence in exposures, and bits against parameters with the law and the published line.

The family is V = 128 where there is one (laptop), or else V = 2048 (the published grid).
"""

import matplotlib.pyplot as plt
import numpy as np

from scalemem import plot, tables

LADDER = "(data_bits_per_param > 4.4 and data_bits_per_param < 5.1 or vocab_size == 2048)"


def draw(table, result):
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(7.2, 2.9))
    rows = table.to_pylist()
    vocab = 128 if any(r["vocab_size"] == 128 for r in rows) else 2048
    family = sorted({(r["n_params"], r["n_layers"], r["d_model"]) for r in rows if r["vocab_size"] == vocab})
    exposures = max(tables.where(table, "data_bits_per_param < 2")[0]["exposures"].to_pylist(), default=0)
    top = 0.0
    for i, (p, layers, d) in enumerate(family):
        colour, marker = plot.COLOURS[i % len(plot.COLOURS)], plot.MARKERS[i % len(plot.MARKERS)]
        rows, _ = tables.where(table, f"vocab_size == {vocab} and n_params == {p} and exposures == {exposures}")
        if len(set(rows["n_items"].to_pylist())) > 2:  # a size with data on both sides of saturation
            plot.points(left, rows, "data_bits", "memorized_bits", f"{p:,}", colour, marker)
            top = max(top, *rows["memorized_bits"].to_pylist())
        ladder, _ = tables.where(table, f"vocab_size == {vocab} and n_params == {p} and {LADDER}")
        plot.points(middle, ladder, "exposures", "bits_per_param", f"{p:,}", colour, marker)
        key = {"vocab_size": vocab, "n_layers": layers, "d_model": d, "n_params": p}
        if "early" in result.fits and any(g.key == key for g in result.fits["early"].groups):
            longest = 2 * max(*ladder["exposures"].to_pylist(), 4000)
            plot.law(middle, result.fits["early"], "exposures", 100, longest, key, colour=colour)
    top = top or 1.0
    left.plot([0, 1.25 * top], [0, 1.25 * top], color="0.4", linewidth=0.8, linestyle=":", label="all of the data")
    left.set(xlabel="data set (bits)", ylabel="memorized (bits)", title=f"Bits follow the data, then stay\n({exposures} exposures)",
             xlim=(0, None), ylim=(0, 1.25 * top))
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_formatter(lambda v, _: f"{v / 1000:g}k" if v else "0")
    left.legend(title="parameters", loc="center right")
    plot.log_x(middle).set(xlabel="exposures of each sequence", ylabel="bits per parameter",
               title="Convergence: law fitted up to 1,000\n(90 % band), and longer runs")
    if len(family) <= 7:
        middle.legend(title="parameters", loc="lower right")

    measured = tables.where(table, f"exposures == 1000 and vocab_size == {vocab} and data_bits_per_param > 4")[0]
    plot.points(right, measured, "n_params", "memorized_bits", "measured, 1,000 exposures")
    lo, hi = family[0][0] / 1.5, family[-1][0] * 30
    for name, colour, label in (("measured", plot.COLOURS[0], ""), ("capacity", plot.COLOURS[1], "at convergence, extrapolated")):
        if name in result.fits:
            plot.law(right, result.fits[name], "x", lo, hi, colour=colour, label=label)
    grid = np.array([lo, hi])
    right.fill_between(grid, 3.51 * grid, 3.83 * grid, color="0.3", alpha=0.5, linewidth=0, label="published, 3.51-3.83 a parameter")
    right.set(xscale="log", yscale="log", xlabel="parameters", ylabel="memorized (bits)", title="Bits against parameters:\nlaw and 90 % band",
              ylim=(lo, 60 * hi))
    right.legend(loc="upper left", handlelength=1.2)
    return fig
