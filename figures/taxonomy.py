"""What part of each kind is memorized, against size; what copies do to templates and to others; and three regressions against one."""

import matplotlib.pyplot as plt
import numpy as np

from scalemem import plot, tables


def draw(table, result):
    fig, (part, dose, quality) = plt.subplots(1, 3, figsize=(7.2, 3.0))
    kinds, templates = result.tables["kinds"], result.tables["templates"]
    for i, kind in enumerate(("recitation", "reconstruction", "recollection")):
        rows, _ = tables.where(kinds, f"`class` == '{kind}' and model == 'pooled'")
        rows = tables.derive(rows, "percent", "100 * memorized_fraction")
        plot.points(part, rows, "n_params", "percent", kind, plot.COLOURS[i], plot.MARKERS[i] + "-")
    fresh = tables.derive(tables.where(templates, "not planted")[0], "percent", "100 * memorized_rate")
    plot.points(part, fresh, "n_params", "percent", "templates never seen", "0.4", "x:")
    part.set(xlabel="parameters", ylabel="memorized (%)", title="Part of each kind", ylim=(0, 105))
    part.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=2, columnspacing=0.8, handletextpad=0.3)

    factors = result.tables["copies"]
    sizes = sorted(set(factors["n_params"].to_pylist()))
    for i, p in enumerate((sizes[0], sizes[-1])):
        for templating, line in ((1, "-"), (0, ":")):
            rows, _ = tables.where(factors, f"n_params == {p} and templating_rate == {templating}")
            rows = tables.derive(rows, "percent", "100 * memorized_rate")
            label = f"{'templates' if templating else 'others'}, {p:,}"
            plot.points(dose, rows, "copies", "percent", label, plot.COLOURS[i + 3], plot.MARKERS[i] + line)
    dose.set(xlabel="copies", ylabel="memorized (%)", title="What copies do, by parameters", ylim=(0, 105))
    dose.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=2, columnspacing=0.8, handletextpad=0.3)

    for i, (model, label) in enumerate((("pooled", "one regression"), ("taxonomic", "three, one a kind"))):
        rows, _ = tables.where(kinds, f"`class` == 'all' and model == '{model}'")
        shifted = rows.append_column("x", [(np.array(rows["n_params"].to_pylist()) * (1 + 0.06 * i)).tolist()])
        plot.points(quality, shifted, "x", "f1", label, plot.COLOURS[i], plot.MARKERS[i] + "-")
    quality.set(xlabel="parameters", ylabel="F1 on held-out sequences", title="Told before looking")
    quality.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=1)
    plot.log_x(dose)
    for axis in (part, quality):
        plot.axis(axis.xaxis, sizes, most=2)
    return fig
