"""Accuracy with and without a sequence, what that difference and extraction do with copies, and what it costs to leave many out."""

import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa

from scalemem import plot, tables

PANELS = (("passphrase", "duplicates_count", "documents of one content", "Left out one by one"),
          ("natural", "copies", "copies of a sequence", "Left out with all copies"))
SERIES = (("in_mean", "accuracy with it"), ("out_mean", "accuracy without it"), ("memorization", "memorization: the difference"),
          ("extracted_rate", "extracted, of runs with it"))


def draw(table, result):
    fig, grid = plt.subplots(2, 2, figsize=(7.2, 5.2))
    axes = grid.ravel()
    for axis, (kind, x, label, title) in zip(axes, PANELS, strict=False):
        rows, _ = tables.where(result.tables["duplicates"], f"kind == '{kind}'")
        for i, (y, name) in enumerate(SERIES):
            plot.points(axis, rows, x, y, name, plot.COLOURS[i], plot.MARKERS[i])
            at = sorted(set(rows[x].to_pylist()))
            axis.plot(at, [np.mean([r[y] for r in rows.to_pylist() if r[x] == v]) for v in at], color=plot.COLOURS[i], linewidth=0.7)
        axis.set(xlabel=label, ylabel="mean over sequences, 90 %", title=title, ylim=(-0.05, 1.05))
        plot.axis(axis.xaxis, rows[x].to_pylist(), wide=20)
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncol=4)

    for i, (kind, *_rest, title) in enumerate(PANELS):
        rows, _ = tables.where(result.tables["duplicates"], f"kind == '{kind}'")
        axes[2].plot(rows["memorization"].to_pylist(), rows["extracted_rate"].to_pylist(), plot.MARKERS[i], color=plot.COLOURS[4 + i], markersize=2.5,
                     alpha=0.5, label=title.lower())
    axes[2].set(xlabel="memorization", ylabel="extracted, of runs with it", title="A point a sequence",
                ylim=(-0.05, 1.3), yticks=np.arange(0, 6) / 5)
    axes[2].legend(loc="upper left", markerscale=1.5)
    removals(axes[3], result.tables.get("held_out"))
    return fig


def removals(axis, rows):
    """Accuracy on fresh documents of the second set of runs: a point a run, and their mean."""
    labels = ("all documents", "a quarter left\nout at random", "the most memorized\nquarter left out")
    axis.set(title="Fresh documents of the same contents", ylabel="accuracy, 90 %", xlim=(-0.5, 2.5), xticks=range(3), xticklabels=labels)
    if rows is None or not rows.num_rows:
        return
    arm = [2 if without else int(include < 1) for include, without in zip(rows["include"].to_pylist(), rows["without"].to_pylist(), strict=True)]
    for i in sorted(set(arm)):
        found = rows.filter(pa.array([a == i for a in arm]))["top1_fraction"].to_pylist()
        axis.plot(np.full(len(found), i), found, ".", color="0.7", markersize=3, zorder=1)
    plot.points(axis, rows.append_column("arm", pa.array(arm)), "arm", "top1_fraction", "mean", plot.COLOURS[0], "o")
