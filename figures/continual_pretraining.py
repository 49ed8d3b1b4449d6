"""Forgetting against size by order, what is left at the end, and the transfer matrix of the largest models."""

import matplotlib.pyplot as plt
import numpy as np

from scalemem import plot, tables


def draw(table, result):
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.9), width_ratios=(1, 1, 1.15))
    rows, cells = result.tables["orders"], result.tables["transfer"]
    sizes = sorted(set(rows["n_params"].to_pylist()))

    for axis, column, label in ((axes[0], "backward_nats", "forgotten of earlier domains (nats)"),
                                (axes[1], "last_nats", "all at the end, above the source (nats)")):
        for i, order in enumerate(("similar", "shuffled")):
            plot.points(axis, tables.where(rows, f"order == '{order}'")[0], "n_params", column, order, plot.COLOURS[i], plot.MARKERS[i])
        plot.log_x(axis)
        plot.axis(axis.xaxis, sizes, most=3)
        axis.set(xlabel="parameters", ylabel=label)
    axes[0].axhline(0, color="0.6", lw=0.7)
    axes[0].legend(title="order of domains")

    largest = tables.where(cells, f"n_params == {sizes[-1]}")[0]
    learned, domain, change = (tables.load(largest, name) for name in ("learned", "domain", "change_nats"))
    count = int(domain.max()) + 1
    mean = np.array([[change[(learned == a) & (domain == b)].mean() if np.any((learned == a) & (domain == b)) else np.nan for b in range(count)]
                     for a in range(count)])
    bound = np.nanmax(np.abs(mean))
    image = axes[2].imshow(mean, cmap="RdBu_r", vmin=-bound, vmax=bound)
    axes[2].set(xlabel="domain", ylabel="domain being learned", xticks=range(count), yticks=range(count),
                title=f"Change, {sizes[-1]:,} parameters")
    axes[2].grid(False)
    fig.colorbar(image, ax=axes[2], shrink=0.8, label="nats a token (red: harm)")
    return fig
