"""Exact and approximate extraction behind a filter of n-grams, and BLEU, against n, beside sequences that were never planted."""

import matplotlib.pyplot as plt
import pyarrow as pa

from scalemem import plot


def draw(table, result):
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.9), sharey=True)
    found = result.tables["decoded"].to_pylist()
    sizes = sorted({r["ngram_tokens"] for r in found} - {0})
    none = 2 * sizes[-1]  # the place of no filter on the axis
    for row in found:
        row["kind"] = "planted" if row["planted"] else "never planted" if row["include"] == 1 else "never planted, trained without any"
        row["place"] = row["ngram_tokens"] or none
    _series(left, found, "planted", "exact_fraction", "word for word", plot.COLOURS[0], "o", 0.93)
    _series(left, found, "planted", "approximate_fraction", "BLEU above .75", plot.COLOURS[1], "s")
    _series(left, found, "never planted", "approximate_fraction", "never planted, BLEU above .75", "0.5", "x", 1.07)
    _series(right, found, "planted", "bleu_ratio", "planted", plot.COLOURS[2], "D")
    _series(right, found, "never planted", "bleu_ratio", "never planted", "0.5", "x")
    _series(right, found, "never planted, trained without any", "bleu_ratio", "never planted, trained without any", plot.COLOURS[4], "^")
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.set_xticks([*sizes, none], [*map(str, sizes), "none"])
        axis.set_xlabel("n: tokens of the n-grams that are forbidden")
        axis.set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1])
        axis.legend(loc="upper left")
    suffix = found[0]["seq_len"] // 2
    left.set(ylabel="share of suffixes", ylim=(-0.03, 1.2), title=f"Suffixes of {suffix} tokens behind a filter")
    right.set(ylabel="mean BLEU of the suffix", title="How near they come")
    right.tick_params(labelleft=True)
    return fig


def _series(axis, rows, kind, column, label, colour, marker, beside=1.0):
    """Means of seeds at each n (moved by a factor, to stand beside another), joined where there is a filter."""
    moved = [{**r, "place": beside * r["place"]} for r in rows if r["kind"] == kind]
    own = pa.Table.from_pylist(moved).group_by(["seed", "place"]).aggregate([(column, "mean")])
    plot.points(axis, own, "place", f"{column}_mean", label, colour, marker)
    mean = own.group_by("place").aggregate([(f"{column}_mean", "mean")]).sort_by("place").slice(0, len(set(own["place"].to_pylist())) - 1)
    axis.plot(mean["place"].to_pylist(), mean[f"{column}_mean_mean"].to_pylist(), color=colour, linewidth=0.8)
