"""The share of sequences with a compression ratio above 1, against copies and size, beside sequences that were never planted."""

import matplotlib.pyplot as plt

from scalemem import plot, tables


def draw(table, result):
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.9), sharey=True)
    searched = result.tables["searched"]
    planted = tables.where(searched, "planted")[0]
    found = planted.group_by(["seed", "n_params", "copies"]).aggregate([("compressible_rate", "mean")])
    copies, sizes = (sorted(set(found[name].to_pylist())) for name in ("copies", "n_params"))
    for i, size in enumerate(sizes):
        rows = tables.where(found, f"n_params == {size}")[0]
        beside = [c * 1.06 ** (i - len(sizes) // 2) for c in rows["copies"].to_pylist()]
        rows = rows.append_column("place", [beside])
        plot.points(left, rows, "place", "compressible_rate_mean", f"{size:,}", plot.COLOURS[i % 7], plot.MARKERS[i % 7])
        mean = rows.group_by("place").aggregate([("compressible_rate_mean", "mean")]).sort_by("place")
        left.plot(mean["place"].to_pylist(), mean["compressible_rate_mean_mean"].to_pylist(), color=plot.COLOURS[i % 7], linewidth=0.8)
    left.set_xscale("log")
    left.set_xticks(copies, [f"{c:.0f}" for c in copies])
    left.set_xticks([], minor=True)
    left.set(xlabel="copies in training", ylabel="share of sequences with a ratio above 1", ylim=(-0.05, 1.3), title="Planted, by copies")
    left.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    left.legend(title="parameters", loc="upper left", ncols=3)

    own = planted.group_by(["seed", "n_params"]).aggregate([("compressible_rate", "mean")])
    plot.points(right, own, "n_params", "compressible_rate_mean", f"planted, {copies[0]} to {copies[-1]} copies", plot.COLOURS[2], "o")
    others = tables.where(searched, "not planted")[0]
    for where, label, marker in (("include == 1", "never planted", "s"), ("include < 1", "never planted, trained without any", "x")):
        plot.points(right, tables.where(others, where)[0], "n_params", "compressible_rate", label, "0.4", marker)
    if "size" in result.fits:
        plot.law(right, result.fits["size"], "x", *result.fits["size"].at(None).ranges["x"], colour=plot.COLOURS[2])
    plot.log_x(right)
    right.set(xlabel="parameters", title="By size")
    right.legend(loc="upper left")
    return fig
