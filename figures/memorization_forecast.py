"""Copies that it takes and numbers memorized, with forecasts; recall of what the largest memorizes; forecast against baseline."""

import matplotlib.pyplot as plt
import numpy as np

from scalemem import plot


def draw(table, result):
    fig, ((copies, count), (recall, gain)) = plt.subplots(2, 2, figsize=(7.2, 5.4))
    which, counts, seen = (result.tables[name].to_pylist() for name in ("which", "count", "thresholds"))
    sizes = sorted(set(table["n_params"].to_pylist()))
    target, mine = sizes[-1], [r for r in table.to_pylist() if r["seed"] < 300]
    last = max((r["predictor_n_params"] for r in counts if r["predictor_n_params"] < 0.5 * target), default=0)
    chosen = [r for r in counts if r["predictor_n_params"] == last]
    said = f"forecast from up to {last:,}, 90 %"

    def bar(axis, x, row, keys, colour, label):
        middle, low, high = (np.array([row[k]]) for k in keys)
        axis.errorbar([x], middle, [middle - low, high - middle], fmt="o", markersize=3, color=colour, linewidth=1, label=label)

    keys = ("threshold_copies_count", "low_threshold_count", "high_threshold_count")
    for i, r in enumerate(r for r in seen if np.isfinite(r["threshold_copies_count"])):
        bar(copies, r["n_params"], r, keys, plot.COLOURS[0], None if i else "measured, 90 %")
    for i, r in enumerate(chosen):
        bar(copies, target * (1.12 + 0.06 * i), r, keys, plot.COLOURS[1], None if i else f"{said},\neach seed, side by side")
    copies.set(xlabel="parameters", ylabel="copies for half to be memorized", title="How often must it be seen?", yscale="log")
    copies.set_yticks(ticks := [10, 20, 50, 100, 200], map(str, ticks), minor=False)

    measured = np.array([[r["n_params"], 100 * r["memorized_fraction_planted"]] for r in mine]).T
    count.plot(*measured, ".", color=plot.COLOURS[0], markersize=3, label="measured, each seed")
    for i, r in enumerate(chosen):
        share = {k: 100 * r[k] / r["n_count"] for k in ("forecast_count", "low_count", "high_count")}
        bar(count, target * (1.12 + 0.06 * i), share, tuple(share), plot.COLOURS[1], None if i else f"{said},\neach seed, side by side")
    count.set(xlabel="parameters", ylabel="planted sequences memorized (%)", title="How many?", ylim=(0, 100))

    for i, p in enumerate(sizes):
        mean = {}
        for r in which:
            if r["predictor_n_params"] == p and r["predictor_fraction"] >= 0.1:
                mean.setdefault(r["train_flops"], []).append(r["recall"])
        label = f"{p:,}" + (" (itself)" if p == target else "")
        recall.plot(list(mean), [np.nanmean(v) for v in mean.values()], marker=plot.MARKERS[i % len(plot.MARKERS)], markersize=3, linewidth=0.8,
                    color="0.2" if p == target else plot.COLOURS[i % len(plot.COLOURS)], label=label)
    recall.set(xlabel="training FLOPs of the predictor", ylabel="recall", title=f"Share of {target:,}'s that each predictor has", xscale="log",
               ylim=(-0.02, 1.02))
    recall.legend(title="predictor, parameters", loc="upper left")

    ended = [r for r in which if r["predictor_fraction"] == 1]
    for k, (column, label) in enumerate((("f1", "the smaller model's own set"), ("forecast_f1", "forecast"))):
        rows = {p: [r[column] for r in ended if r["predictor_n_params"] == p and np.isfinite(r[column])] for p in sizes[:-1]}
        rows = {p: np.array(v) for p, v in rows.items() if len(v) > 1}
        error = [plot.half_width(v) for v in rows.values()]
        gain.errorbar(np.array(list(rows)) * (1 + 0.03 * k), [v.mean() for v in rows.values()], error, marker=plot.MARKERS[k], markersize=3,
                      linewidth=0.8, color=plot.COLOURS[k], label=label)
    gain.set(xlabel="parameters of the predictor", ylabel="F1, mean and 90 %", title=f"Which will {target:,} memorize?", ylim=(0, 1.02))
    plot.log_x(copies).legend(loc="lower left")
    plot.log_x(count).legend(loc="upper left")
    plot.log_x(gain).legend(loc="lower right")
    return fig
