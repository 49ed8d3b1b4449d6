"""What is kept of earlier phases, by the law of recurrence: as phases go by, and by the age of the facts."""

import matplotlib.pyplot as plt

from scalemem import plot, tables


def draw(table, result):
    rows = result.tables["environment"]
    sizes, laws = sorted(set(rows["n_params"].to_pylist())), sorted(set(rows["law"].to_pylist()))
    fig, axes = plt.subplots(1, 1 + len(sizes), figsize=(7.2, 2.9), sharey=True, squeeze=False)

    for axis, n in zip(axes[0], sizes, strict=False):
        for i, law in enumerate(laws):
            part = tables.where(rows, f"n_params == {n} and law == '{law}'")[0]
            plot.points(axis, part, "phases", "kept_fraction", law, plot.COLOURS[i], plot.MARKERS[i])
        axis.set(xlabel="phases", title=f"Earlier phases, {n:,} parameters", ylim=(-0.03, 1.03))
    for i, law in enumerate(laws):
        part = tables.where(rows, f"n_params == {sizes[-1]} and law == '{law}'")[0]
        plot.points(axes[0, -1], part, "phases", "oldest_fraction", law, plot.COLOURS[i], plot.MARKERS[i])
    axes[0, -1].set(xlabel="phases", title=f"The first phase, {sizes[-1]:,} parameters")
    axes[0, 0].set_ylabel("recalled")
    axes[0, 0].legend(title="recurrence", fontsize=6, title_fontsize=6)
    return fig
