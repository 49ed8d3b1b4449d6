"""The gap of leaked facts against repeats, by size and by tokens; and how it is lost, on fresh data and on a pool, beside the weights' decay."""

import matplotlib.pyplot as plt

from scalemem import plot, tables


def draw(table, result):
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.9))
    gaps = result.tables["gaps"]
    ends = tables.where(gaps, "stage == 0 and later_weight_decay == 0.1 and is_fresh == 1")[0]
    sizes, budgets = (sorted(set(ends[name].to_pylist())) for name in ("n_params", "train_tokens"))
    middle = tables.where(ends, "pool_items > 64")[0]
    size, budget = middle["n_params"][0].as_py(), middle["train_tokens"][0].as_py()

    for axis, name, values, other, fixed, label in ((axes[0], "n_params", sizes, "train_tokens", budget, "{:,} parameters"),
                                                    (axes[1], "train_tokens", budgets, "n_params", size, "{:,} tokens")):
        for i, value in enumerate(values):
            part = tables.where(ends, f"{name} == {value} and {other} == {fixed}")[0]
            if part.num_rows:
                plot.points(axis, part, "repeats_count", "accuracy_gap_fraction", label.format(int(value)), plot.COLOURS[i], plot.MARKERS[i])
        plot.log_x(axis)
        plot.axis(axis.xaxis, ends["repeats_count"].to_pylist())
        axis.axhline(0, color="0.4", linewidth=0.6)
        axis.set(xlabel="times that a fact was leaked")
        axis.legend(loc="upper left")
    axes[0].set(ylabel="accuracy, leaked less held-out facts", title=f"{budget:,} tokens", ylim=(-0.2, 0.9))
    axes[1].set(title=f"{size:,} parameters", ylim=axes[0].get_ylim())

    most = max(gaps["repeats_count"].to_pylist())
    arms = (("is_fresh == 1 and later_weight_decay == 0.1", "fresh, decay .1"), ("is_fresh == 1 and later_weight_decay == 1", "fresh, decay 1"),
            ("is_fresh == 1 and later_weight_decay == 0.01", "fresh, decay .01"), ("is_fresh == 0", "pool, decay .1"))
    later = tables.where(gaps, f"stage == 1 and stage_step > 0 and repeats_count == {most} and n_params == {size}")[0]
    for i, (where, label) in enumerate(arms):
        part = tables.where(later, where)[0]
        if part.num_rows:
            plot.points(axes[2], part, "later_ratio", "loss_gap_left_fraction", label, plot.COLOURS[i], plot.MARKERS[i])
    base = tables.where(later, arms[0][0])[0]
    pairs = sorted(set(zip(base["later_ratio"].to_pylist(), base["weight_left_fraction"].to_pylist(), strict=True)))
    axes[2].plot(*zip(*pairs, strict=True), color="0.3", linestyle="--", label="weights left, decay .1")
    plot.log_x(axes[2])
    axes[2].set(xlabel="tokens since the leak / of the leak", ylabel="share of the loss gap that is left", title=f"After {most} leaks")
    axes[2].legend(loc=(0.22, 0.42))
    return fig
