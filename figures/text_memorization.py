"""Memorized bits and held-out loss against the bits of the data, both a parameter: two sizes, two references, capacity where it fills."""

import matplotlib.pyplot as plt
import numpy as np

from scalemem import plot, tables


def draw(table, result):
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.1))
    oracle, same = result.tables["oracle"], result.tables["same_size"]
    sizes = sorted(set(oracle["n_params"].to_pylist()))
    for i, p in enumerate(sizes):
        for source, y, name in ((same, "stored_bits_per_param", "a model of its size"), (oracle, "memorized_bits_per_param", "the larger oracle")):
            rows, _ = tables.where(source, f"n_params == {p}")
            mean_load(rows, y, left, f"{p:,} parameters, against {name}", plot.COLOURS[i], "o" if source is same else "s", source is same)
        rows, _ = tables.where(oracle, f"n_params == {p}")
        mean_load(rows, "held_out_bits", right, f"{p:,} parameters", plot.COLOURS[i], "o", True)
    top = 1.15 * max(same["stored_bits_per_param"].to_pylist())
    load = np.geomspace(min(oracle["data_bits_per_param"].to_pylist()), max(top, 1), 50)
    left.plot(load[load < top], load[load < top], color="0.5", linestyle=":", label="all of the data")
    left.set(ylim=(-0.05 * top, 1.45 * top), ylabel="memorized bits per parameter, less\nwhat unseen chunks read",
             title="Memorized beyond the reference")
    right.set(ylabel="held-out loss (bits per byte)", title="Loss of chunks never trained on", ylim=(0, None))
    for axis in (left, right):
        plot.log_x(axis).set_xlabel("bits of the data under the reference, per parameter")
    left.legend(loc="upper left", fontsize=6)
    right.legend(loc="upper right")
    return fig


def mean_load(rows, y, ax, label, colour, marker, solid):
    """Means over seeds at each number of chunks, at their mean load, with 90 % intervals, joined."""
    n, x, v = (np.asarray(rows[c].to_pylist(), float) for c in ("n_items", "data_bits_per_param", y))
    each = [n == k for k in np.unique(n)]
    ax.errorbar([x[e].mean() for e in each], [v[e].mean() for e in each], yerr=[plot.half_width(v[e]) if e.sum() > 2 else 0 for e in each],
                marker=marker, color=colour, markerfacecolor=colour if solid else "white", linewidth=1 if solid else 0.7,
                linestyle="-" if solid else "--", capsize=1.5, elinewidth=0.8, label=label)
