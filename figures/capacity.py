"""Memorized bits against data bits by size, convergence in exposures, and bits against parameters with the law and the published line."""

import matplotlib.pyplot as plt
import numpy as np

from scalemem import plot, tables

LADDER = "data_bits_per_param > 4.4 and data_bits_per_param < 5.1"


def draw(table, result):
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(7.2, 2.7))
    by_size = tables.where(table, "vocab_size == 128 and exposures == exposures")[0]
    family = sorted(set(zip(by_size["d_model"].to_pylist(), by_size["n_params"].to_pylist(), strict=True)))
    exposures = max(set(tables.where(table, "data_bits_per_param < 2")[0]["exposures"].to_pylist()), default=0)
    for i, (d, p) in enumerate(family):
        rows, _ = tables.where(table, f"vocab_size == 128 and d_model == {d} and exposures == {exposures}")
        if len(set(rows["n_items"].to_pylist())) > 2:
            plot.points(left, rows, "data_bits", "memorized_bits", f"{p:,} parameters", plot.COLOURS[i], plot.MARKERS[i])
        ladder, _ = tables.where(table, f"vocab_size == 128 and d_model == {d} and {LADDER}")
        plot.points(middle, ladder, "exposures", "bits_per_param", f"{p:,}", plot.COLOURS[i], plot.MARKERS[i])
        key = {"vocab_size": 128, "d_model": d, "n_params": p}
        if "early" in result.fits and any(g.key == key for g in result.fits["early"].groups):
            top = max(4 * max(ladder["exposures"].to_pylist()), 4000)
            plot.law(middle, result.fits["early"], "exposures", 60, top, key, colour=plot.COLOURS[i])
    span = np.array(left.get_xlim()).clip(1)
    left.plot(span, span, color="0.4", linewidth=0.8, linestyle=":", label="all of the data")
    left.set(xlabel="data set (bits)", ylabel="memorized (bits)", title=f"Bits follow the data, then stay\n({exposures} exposures)",
             ylim=(0, None))
    left.legend(loc="lower right")
    middle.set(xscale="log", xlabel="exposures of a sequence", ylabel="bits per parameter",
               title="Convergence: the law from up to 1,000\nexposures, its 90 % band, longer runs")
    middle.legend(title="parameters", loc="lower right")

    measured = tables.where(table, "exposures == 1000 and vocab_size == 128 and data_bits_per_param > 4")[0]
    plot.points(right, measured, "n_params", "memorized_bits", "measured, 1,000 exposures")
    lo, hi = family[0][1] / 1.5, family[-1][1] * 8
    for name, colour, label in (("measured", plot.COLOURS[0], ""), ("capacity", plot.COLOURS[1], "at convergence (extrapolated)")):
        if name in result.fits:
            plot.law(right, result.fits[name], "x", lo, hi, colour=colour, label=label)
    grid = np.array([lo, hi])
    right.fill_between(grid, 3.51 * grid, 3.83 * grid, color="0.3", alpha=0.5, linewidth=0, label="published 3.51 to 3.83 bits/parameter")
    right.set(xscale="log", yscale="log", xlabel="parameters", ylabel="memorized (bits)", title="Bits against parameters:\nthe law, its 90 % band")
    right.legend(loc="upper left")
    return fig
