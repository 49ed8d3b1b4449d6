"""AUC of traps against copies, by length, a panel a size; and against perplexity, by copies."""

import matplotlib.pyplot as plt

from scalemem import plot, tables


def draw(table, result):
    traps = result.tables["traps"]
    planted, _ = tables.where(traps, "include == 1")
    sizes, lengths = (sorted(set(planted[c].to_pylist())) for c in ("n_params", "length"))
    fig, axes = plt.subplots(2, 2, figsize=(7.2, 5.2), sharey=True)
    panels = list(axes.flat)
    for axis, p in zip(panels, sizes[-3:], strict=False):
        for i, length in enumerate(lengths):
            rows, _ = tables.where(planted, f"n_params == {p} and length == {length}")
            plot.points(axis, rows, "copies", "auc", f"{length} tokens", plot.COLOURS[i], plot.MARKERS[i] + "-")
        axis.set(xlabel="copies of a trap", title=f"{p:,} parameters")
    panels[0].legend(title="length of the trap", loc="upper left")
    last = panels[3]
    copies = sorted(set(planted["copies"].to_pylist()))
    for i, c in enumerate(copies):
        rows, _ = tables.where(planted, f"copies == {c} and length == {lengths[-1]}")
        thirds = sorted(set(rows["stratum"].to_pylist()))
        centre = {s: sum(v := tables.where(rows, f"stratum == {s}")[0]["perplexity_ratio"].to_pylist()) / len(v) for s in thirds}
        rows = rows.append_column("centre", [[centre[s] for s in rows["stratum"].to_pylist()]])
        plot.points(last, rows, "centre", "auc", f"{c}", plot.COLOURS[i], plot.MARKERS[i] + "-")
    null, _ = tables.where(traps, "include < 1")
    if null.num_rows:
        values = null["auc"].to_pylist()
        last.axhline(sum(values) / len(values), color="0.2", linestyle=":", label="never planted")
    last.set(xlabel="perplexity under the source (mean of a third)", title=f"{lengths[-1]} tokens, all sizes")
    for axis in panels:
        axis.set_visible(axis is last or axis.has_data())
        axis.axhline(0.5, color="0.6", linewidth=0.6)
        axis.set_ylim(0.4, 1.02)
        plot.log_x(axis)
    for axis in axes[:, 0]:
        axis.set_ylabel("AUC, traps against controls\nof the same third of perplexity")
    last.legend(title="copies of a trap", loc="upper center", bbox_to_anchor=(0.5, -0.22), ncol=5, columnspacing=1.0, handletextpad=0.4)
    return fig
