"""The old language's loss after fine-tuning against replay and size, and old against new loss."""

import matplotlib.pyplot as plt

from scalemem import plot, tables


def draw(table, result):
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.9))
    rows = result.tables["early_stop"]
    sizes, fractions = (sorted(set(rows[name].to_pylist())) for name in ("n_params", "replay_fraction"))

    for i, n in enumerate(sizes):
        part = tables.where(rows, f"n_params == {n}")[0]
        plot.points(axes[0], part, "replay_fraction", "increase_nats", f"{n:,}", plot.COLOURS[i], plot.MARKERS[i])
    for i, p in enumerate(fractions):
        part = tables.where(rows, f"replay_fraction == {p}")[0]
        plot.points(axes[1], part, "n_params", "increase_nats", f"{p:.0%}", plot.COLOURS[i], plot.MARKERS[i])
        axes[2].plot(tables.load(part, "target_loss_nats"), tables.load(part, "old_loss_nats"), plot.MARKERS[i], color=plot.COLOURS[i], ms=3,
                     alpha=0.7, label=f"{p:.0%}")
    axes[0].axhline(0, color="0.6", lw=0.7)
    axes[0].set(xscale="symlog", xlim=(-0.002, 0.5), xlabel="share of old sequences", ylabel="increase of the old loss (nats a token)",
                xticks=fractions, xticklabels=[f"{p:.0%}" for p in fractions], title="By size")
    axes[0].set_xscale("symlog", linthresh=0.01)
    axes[0].set_xticks(fractions, [f"{p:.0%}" for p in fractions])
    axes[0].legend(title="parameters", fontsize=6, title_fontsize=6)
    plot.log_x(axes[1])
    plot.axis(axes[1].xaxis, sizes, most=3)
    axes[1].set(xlabel="parameters", title="By share of old sequences")
    axes[1].legend(title="old sequences", fontsize=6, title_fontsize=6)
    axes[2].set(xlabel="loss on the new language (nats)", ylabel="loss on the old one (nats)", title="Every run, at its early stop")
    return fig
