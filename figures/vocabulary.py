"""Extraction and membership against the vocabulary at equal parameters and at equal width, and extraction against tokens a chunk."""

import matplotlib.pyplot as plt
import numpy as np

from scalemem import plot, tables

BYTES = 96  # tokens of a chunk of bytes: the longest


def draw(table, result):
    fig, (first, second, third) = plt.subplots(1, 3, figsize=(7.2, 2.9))
    widths = table["d_model"].to_pylist()
    one = max(set(widths), key=widths.count)  # the width that most arms have
    raw, cut = f"seq_len == {BYTES} and vocab_size > 257", f"not (seq_len == {BYTES} and vocab_size > 257)"
    same, _ = tables.where(table, f"d_model == {one} and {cut}")
    unused, _ = tables.where(table, raw)
    twin = {r["vocab_size"] for r in unused.to_pylist()}
    cells = {(r["vocab_size"], r["d_model"]) for r in tables.where(table, cut)[0].to_pylist()}
    wide = sorted((v, d) for v, d in cells if d != one or len([c for c in cells if c[0] == v]) == 1)  # an arm may serve both comparisons
    matched, _ = tables.where(table, f"({' or '.join(f'vocab_size == {v} and d_model == {d}' for v, d in wide)}) and {cut}")
    for axis, y in ((first, "memorized_fraction_planted"), (second, "canary_loss_auc")):
        if {d for _, d in wide} != {one}:
            name = f"equal parameters (width {', '.join(str(d) for _, d in wide)})"
            joined(axis, matched, "vocab_size", y, name, plot.COLOURS[0], "o", 1)
        joined(axis, same, "vocab_size", y, f"width {one}", plot.COLOURS[1], "s", 1.04)
        if twin:
            joined(axis, unused, "vocab_size", y, f"width {one}, bytes, other tokens unused", plot.COLOURS[2], "D", 0.96)
        sizes = sorted(set(table["vocab_size"].to_pylist()))
        axis.set_xscale("log")
        axis.set_xticks(sizes, [f"{v:,}" for v in sizes], minor=False)
        axis.minorticks_off()
        axis.set_xlabel("tokens in the vocabulary")
    for v in sorted(set(same["vocab_size"].to_pylist())):
        rows, _ = tables.where(same, f"vocab_size == {v}")
        joined(third, rows, "seq_len", "memorized_fraction_planted", "", plot.COLOURS[1], "s", 1)
        at = rows["seq_len"][0].as_py(), np.mean(rows["memorized_fraction_planted"].to_pylist())
        third.annotate(f"{v:,}", at, xytext=(-18, 9) if v == 257 else (5, 4), textcoords="offset points", fontsize=7)
    if twin:
        joined(third, unused, "seq_len", "memorized_fraction_planted", "", plot.COLOURS[2], "D", 1.03)
    if "by_length" in result.fits:
        plot.law(third, result.fits["by_length"], "x", 28, 100, colour="0.4")
    third.set(xlabel="tokens of a chunk of about 96 bytes", title=f"Extraction by length (width {one})", ylim=(0, 1))
    first.set(ylabel="share of planted chunks extracted", title="Extraction", ylim=(0, 1))
    second.set(ylabel="AUC of a threshold on the loss", title="Membership", ylim=(0.5, 1))
    fig.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


def joined(ax, rows, x, y, label, colour, marker, shift):
    """Means over seeds with 90 % intervals, joined; moved sideways by a factor, so that intervals do not hide each other."""
    at, v = (np.asarray(rows[c].to_pylist(), float) for c in (x, y))
    each = [at == k for k in np.unique(at)]
    ax.errorbar(np.unique(at) * shift, [v[e].mean() for e in each], yerr=[plot.half_width(v[e]) if e.sum() > 2 else 0 for e in each],
                fmt=f"{marker}-", color=colour, linewidth=0.8, capsize=1.5, elinewidth=0.8, label=label or None)
