"""The extractable fraction against size, copies and the prompt's length, with the straight lines and what was never planted."""

import math

import matplotlib.pyplot as plt

from scalemem import plot, tables


def draw(table, result):
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.9), sharey=True)
    rates = result.tables["rates"]
    sizes = sorted(set(rates["n_params"].to_pylist()))
    series = [s for s in (sizes[0], sizes[len(sizes) // 2], sizes[-1]) if s]
    controls = tables.where(rates, "copies == 0 and context_tokens == 8")[0]

    plot.points(axes[0], result.tables["by_size"], "n_params", "extractable_rate", "planted, 4 to 128 copies", plot.COLOURS[2], "o")
    for where, label, marker in (("planted_count > 0", "never planted", "s"), ("planted_count == 0", "trained without canaries", "x")):
        plot.points(axes[0], tables.where(controls, where)[0], "n_params", "extractable_rate", label, "0.4", marker)
    for axis, name, x in ((axes[1], "by_copies", "copies"), (axes[2], "by_context", "context_tokens")):
        for i, size in enumerate(series):
            rows = tables.where(result.tables[name], f"n_params == {size}")[0]
            plot.points(axis, rows, x, "extractable_rate", f"{size:,}", plot.COLOURS[i], plot.MARKERS[i])

    titles = ("Prompts of 8 tokens", "Prompts of 8 tokens", "4 to 128 copies")
    labels = ("parameters", "copies in training", "tokens of the prompt")
    for axis, name, title, label in zip(axes, ("size", "copies", "context"), titles, labels, strict=True):
        slope = ""
        if name in result.fits:
            fit, values = result.fits[name], axis.get_xlim()
            b = fit.at(None).parameters["b"]
            plot.law(axis, fit, "x", *_span(fit, values), colour=plot.COLOURS[2])
            low, mid, high = (100 * math.log(10) * v for v in (b.low, b.value, b.high))
            slope = f"\nlargest: {mid:+.0f} points a decade" if name != "size" else f"\n{mid:+.0f} points a decade"
            slope += f" ({low:+.0f} to {high:+.0f})" if math.isfinite(low) else ""
        plot.log_x(axis).set(xlabel=label, title=title + slope, ylim=(-0.03, 1.03))
    axes[0].set_ylabel("fraction extractable by greedy decoding")
    axes[0].legend(loc="upper left")
    axes[1].legend(title="parameters", loc="upper left")
    return fig


def _span(fit, limits):
    low, high = fit.at(None).ranges["x"]
    return max(low, limits[0]), high
