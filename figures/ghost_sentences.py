"""The last-word test and the perplexity test against copies, by size; and the copies that half of the passphrases need, against size."""

import matplotlib.pyplot as plt
import numpy as np

from scalemem import plot, tables


def draw(table, result):
    fig, (words, perplexity, need) = plt.subplots(1, 3, figsize=(7.2, 2.8))
    tests = result.tables["tests"]
    sizes = sorted(set(tables.where(tests, "copies > 0")[0]["n_params"].to_pylist()))
    for i, p in enumerate(sizes):
        for axis, attack in ((words, "last_1_exact_fraction"), (perplexity, "-nats")):
            rows, _ = tables.where(tests, f"attack == '{attack}' and n_params == {p} and copies > 0")
            if attack != "-nats":  # of controls hardly one is completed: then the share that is said is 2 AUC - 1
                rows = tables.derive(rows, "said_percent", "100 * (2 * auc - 1)")
            plot.points(axis, rows, "copies", "auc" if attack == "-nats" else "said_percent", f"{p:,}", plot.COLOURS[i], plot.MARKERS[i] + "-")
    null = tables.where(tests, "attack == '-nats' and copies == 0")[0]["auc"].to_pylist()
    if null:
        perplexity.axhline(np.mean(null), color="0.2", linestyle=":", label="never planted")
    words.axhline(50, color="0.6", linewidth=0.6)
    words.set(xlabel="copies of a passphrase", ylabel="last word said (%, beyond controls)", title="Last-word test")
    perplexity.axhline(0.5, color="0.6", linewidth=0.6)
    perplexity.set(xlabel="copies of a passphrase", ylabel="AUC against controls", title="Perplexity test", ylim=(0.4, 1.02))
    words.legend(title="parameters", loc="upper left")
    if null:
        perplexity.legend(handles=[line for line in perplexity.lines if line.get_label() == "never planted"], loc="lower right")
    rows = [r for r in result.tables["thresholds"].to_pylist() if np.isfinite(r["threshold_copies_count"])]
    x, y, low, high = (np.array([r[c] for r in rows]) for c in ("n_params", "threshold_copies_count", "low_threshold_count", "high_threshold_count"))
    need.errorbar(x, y, [y - low, high - y], fmt="o", color=plot.COLOURS[0], capsize=1.5, elinewidth=0.8, label="measured, 90 %")
    if "threshold" in result.fits and len(x):
        plot.law(need, result.fits["threshold"], "x", x.min() / 1.3, x.max() * 2, colour="0.3", label="power law, 90 %")
    for axis in (words, perplexity, need):
        plot.log_x(axis)
    need.set(xlabel="parameters", ylabel="copies that half of them need", title="Copies for the last word", yscale="log")
    if len(x):
        plot.axis(need.yaxis, np.concatenate([low, high]))
        need.set_ylim(low.min() / 2, high.max() * 2)
    need.legend(loc="upper right")
    return fig
