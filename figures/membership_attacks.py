"""AUC against load, the sizes on one law; attacks along training; members found at few false positives."""

import matplotlib.pyplot as plt
import numpy as np

from scalemem import plot, tables

NAMES = {"loss": "loss", "zlib": "zlib", "min_k": "Min-K%", "min_kpp": "Min-K%++", "reference": "another run", "source_reference": "the true source",
         "lira_offline": "LiRA offline", "lira_online": "LiRA online"}
COLOURS = dict(zip(NAMES, (*plot.COLOURS, "black"), strict=True))


def mean_lines(axis, rows, x, y, attacks):
    """The mean over rows of each x, a line an attack."""
    for name in attacks:
        own = [r for r in rows if r["attack"] == name and np.isfinite(r[y])]
        at = sorted({r[x] for r in own})
        marker = (plot.MARKERS + "X")[list(NAMES).index(name)]
        axis.plot(at, [np.mean([r[y] for r in own if r[x] == v]) for v in at], color=COLOURS[name], marker=marker, linewidth=0.9, label=NAMES[name])


def draw(table, result):
    fig, (load, time, rate) = plt.subplots(1, 3, figsize=(7.2, 2.9))
    attacks = result.tables["attacks"]
    end, _ = tables.where(attacks, "exposures == 16")
    sizes = sorted(set(end["n_params"].to_pylist()))
    span = [f(end["data_bits_per_param"].to_pylist()) for f in (min, max)]
    for name in ("loss", "reference"):
        for p, marker in zip(sizes, plot.MARKERS, strict=False):
            own, _ = tables.where(end, f"n_params == {p} and attack == '{name}'")
            plot.points(load, own, "data_bits_per_param", "auc", "", COLOURS[name], marker)
        load.plot([], [], color=COLOURS[name], linewidth=4, label=NAMES[name])
    if "loss_log" in result.fits:
        plot.law(load, result.fits["loss_log"], "x", *span, colour=COLOURS["loss"], label="law of the loss, 90 %")
    for p, marker in zip(sizes, plot.MARKERS, strict=False):
        load.plot([], [], marker=marker, color="0.4", linestyle="", label=f"{p:,} parameters")
    plot.log_x(load).set(xlabel="data bits per parameter", ylabel="AUC after 16 epochs",
                         title="Load: two attacks,\nsizes together", ylim=(0.45, 1.28),
                         yticks=np.arange(5, 11) / 10)
    load.legend(fontsize=6, loc="upper right")

    least = min(r["data_bits_per_param"] for r in attacks.to_pylist() if r["n_params"] == sizes[-1])
    course = [r | {"epoch": r["exposures"]} for r in attacks.to_pylist() if r["n_params"] == sizes[-1] and r["data_bits_per_param"] == least]
    mean_lines(time, course, "epoch", "auc", NAMES)
    time.set_xscale("symlog", base=2, linthresh=1)
    time.set(xlabel="epochs", ylabel="AUC", title=f"In training: {sizes[-1]:,} parameters,\n{least:.2g} bits each", xticks=[0, 1, 2, 4, 8, 16],
             xticklabels=[0, 1, 2, 4, 8, 16], ylim=(0.45, 1.22), yticks=np.arange(5, 11) / 10)
    time.legend(fontsize=6, loc="upper left", ncol=2)

    pooled, _ = tables.where(result.tables["pooled"], f"exposures == 16 and n_params == {sizes[len(sizes) // 2]}")
    rows = [r | {"tpr": 100 * max(r["tpr_at_fpr_1pct"], 1e-4)} for r in pooled.to_pylist()]
    mean_lines(rate, rows, "load_bits_per_param", "tpr", ("loss", "min_k", "reference", "lira_online"))
    rate.axhline(1, color="0.6", linewidth=0.6)
    plot.log_x(rate).set(xlabel="data bits per parameter", ylabel="members found (%)",
                         title=f"At 1 % false positives:\n{sizes[len(sizes) // 2]:,} parameters", yscale="log", ylim=(0.5, 500),
                         yticks=[1, 3, 10, 30, 100], yticklabels=[1, 3, 10, 30, 100])
    rate.minorticks_off()
    rate.legend(fontsize=6, loc="upper right")
    load.axhline(0.5, color="0.6", linewidth=0.6), time.axhline(0.5, color="0.6", linewidth=0.6)
    return fig
