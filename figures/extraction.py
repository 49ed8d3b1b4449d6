"""The extractable fraction against size, copies and the prompt's length, with the straight lines and what was never planted; other ways to look."""

import math

import matplotlib.pyplot as plt

from scalemem import plot, tables

BITS = 10  # of a filling of two tokens of 32 values


def draw(table, result):
    more = "exposed" in result.tables
    fig, grid = plt.subplots(*((2, 2) if more else (1, 3)), figsize=(7.2, 5.6 if more else 2.9), sharey=True)
    axes = grid.ravel()
    rates = result.tables["rates"]
    sizes = sorted(set(rates["n_params"].to_pylist()))
    series = sorted({sizes[0], sizes[len(sizes) // 2], sizes[-1]})
    controls = tables.where(rates, "copies == 0 and context_tokens == 8")[0]

    plot.points(axes[0], result.tables["by_size"], "n_params", "extractable_rate", "planted, 4 to 128 copies", plot.COLOURS[2], "o")
    for where, label, marker, colour in (("planted_count > 0", "never planted", "s", "0.5"),
                                         ("planted_count == 0", "trained without canaries", "x", plot.COLOURS[1])):
        plot.points(axes[0], tables.where(controls, where)[0], "n_params", "extractable_rate", label, colour, marker)
    for axis, name, x in ((axes[1], "by_copies", "copies"), (axes[2], "by_context", "context_tokens")):
        for i, size in enumerate(series):
            rows = tables.where(result.tables[name], f"n_params == {size}")[0]
            plot.points(axis, rows, x, "extractable_rate", f"{size:,}", plot.COLOURS[i], plot.MARKERS[i])

    titles = ("Prompts of 8 tokens, 4 to 128 copies", "Prompts of 8 tokens; line: largest", "4 to 128 copies; line: largest")
    labels = ("parameters", "copies in training", "tokens of the prompt")
    for axis, name, title, label in zip(axes[:3], ("size", "copies", "context"), titles, labels, strict=True):
        if name in result.fits:
            fit = result.fits[name].at(None)
            plot.law(axis, result.fits[name], "x", *fit.ranges["x"], colour=plot.COLOURS[2 if name == "size" else len(series) - 1])
            low, mid, high = (100 * math.log(10) * v for v in (fit.parameters["b"].low, fit.parameters["b"].value, fit.parameters["b"].high))
            label += f"\n{mid:+.0f} points a decade ({low:.0f} to {high:.0f})"
        axis.set(xlabel=label, title=title, ylim=(-0.03, 1.03))
    plot.log_x(axes[0])
    for axis, name, x in ((axes[1], "by_copies", "copies"), (axes[2], "by_context", "context_tokens")):
        plot.axis(axis.xaxis, result.tables[name][x].to_pylist())
    axes[0].set_ylabel("fraction extractable by greedy decoding")
    axes[0].legend(loc="upper left")
    axes[1].legend(title="parameters", loc="upper left")
    if more:
        axes[2].set_ylabel(axes[0].get_ylabel())
        other_ways(axes[3], result.tables)
    return fig


def other_ways(axis, found):
    """The largest models of the arm with fillings: exposure as a part of the most there can be, the masked token, what is said unasked."""
    series = (("exposed", "exposure_bits", f"exposure, of {BITS} bits"), ("guessed", "cloze_exact_fraction", "masked token guessed among 32"),
              ("said", "emitted_fraction", "half of it said unasked"))
    for i, (name, y, label) in enumerate(series):
        rows = tables.where(found[name], f"n_params == {max(found[name]['n_params'].to_pylist())}")[0]
        part = tables.derive(rows, "part", f"{y} / {BITS if name == 'exposed' else 1}")
        plot.points(axis, part, "copies", "part", label, plot.COLOURS[3 + i], plot.MARKERS[i])
    axis.set(ylabel="mean, 90 %", title="Other ways to look; largest models, by copies")
    plot.axis(axis.xaxis, found["exposed"]["copies"].to_pylist())
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08))
