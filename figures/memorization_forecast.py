"""The number that each size memorizes with its forecast; recall of what the largest will, against compute; forecast against baseline."""

import matplotlib.pyplot as plt
import numpy as np

from scalemem import plot, tables


def draw(table, result):
    fig, (count, recall, gain) = plt.subplots(1, 3, figsize=(7.2, 2.7))
    which, counts = result.tables["which"], result.tables["count"]
    sizes = sorted(set(table["n_params"].to_pylist()))
    target = sizes[-1]

    share = [[r["memorized_fraction_planted"] for r in table.to_pylist() if r["n_params"] == p] for p in sizes]
    for p, values in zip(sizes, share, strict=True):
        count.plot([p] * len(values), 100 * np.array(values), ".", color=plot.COLOURS[0], markersize=3, label="measured, a seed" if p == target else None)
    rows = tables.where(counts, "predictor_fraction == 1")[0].to_pylist()
    last = max((r["predictor_n_params"] for r in rows if r["predictor_n_params"] < 0.5 * target), default=None)
    chosen = [r for r in rows if r["predictor_n_params"] == last]
    if chosen:
        x = target * np.linspace(1.08, 1.45, len(chosen))
        middle, low, high = (100 * np.array([r[k] / r["n_count"] for r in chosen]) for k in ("forecast_count", "low_count", "high_count"))
        count.errorbar(x, middle, [middle - low, high - middle], fmt="_", color=plot.COLOURS[1], linewidth=0.8,
                       label=f"forecast, 90 %, a seed,\nfrom up to {last:,} parameters")
        count.axvline(last * 1.2, color="0.6", linewidth=0.6, linestyle=":")
    count.set(xlabel="parameters", ylabel="planted sequences memorized (%)", title="How many", ylim=(0, None))
    count.legend(loc="upper left")

    for i, p in enumerate(sizes):
        mean = {}
        for r in which.to_pylist():
            if r["predictor_n_params"] == p and np.isfinite(r["recall"]):
                mean.setdefault(r["train_flops"], []).append(r["recall"])
        if mean:
            recall.plot(list(mean), [np.mean(v) for v in mean.values()], marker=plot.MARKERS[i % len(plot.MARKERS)], markersize=3, linewidth=0.8,
                        color=plot.COLOURS[i % len(plot.COLOURS)], label=f"{p:,}")
    recall.set(xlabel="training FLOPs of the predictor", ylabel="recall", title=f"Which of {target:,}'s", xscale="log", ylim=(-0.02, 1.02))
    recall.legend(title="predictor", loc="upper left", ncol=1)

    ended = tables.where(which, "predictor_fraction == 1")[0].to_pylist()
    small = [p for p in sizes[:-1] if np.isfinite([r["f1"] for r in ended if r["predictor_n_params"] == p]).any()]
    for k, (column, label) in enumerate((("f1", "its own memorized set"), ("forecast_f1", "forecast"))):
        values = [np.array([r[column] for r in ended if r["predictor_n_params"] == p], float) for p in small]
        mean, error = [np.nanmean(v) for v in values], [1.83 * np.nanstd(v, ddof=1) / len(v) ** 0.5 if len(v) > 1 else 0 for v in values]
        gain.errorbar(np.array(small) * (1 + 0.04 * k), mean, error, marker=plot.MARKERS[k], markersize=3, linewidth=0.8, color=plot.COLOURS[k],
                      label=label)
    plot.log_x(count), plot.log_x(gain)
    gain.set(xlabel="parameters of the predictor", ylabel="F1", title="Forecast against small model", ylim=(0, 1.02))
    gain.legend(loc="lower right")
    return fig
