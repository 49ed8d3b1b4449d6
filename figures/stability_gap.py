"""The first task while the second begins, with and without replay and with what may help; depth and recovery against size."""

import matplotlib.pyplot as plt
import numpy as np

from scalemem import plot, tables

ARMS = {"full": "full replay", "same": "no new task", "none": "no replay", "subset": "a quarter of the items", "mixture": "nine old rows in ten",
        "slow": "a third of the rate"}


def draw(table, result):
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.9), gridspec_kw={"width_ratios": (1.3, 1, 1)})
    gaps = result.tables["gaps"]
    sizes = sorted(set(gaps["n_params"].to_pylist()))
    middle = sizes[len(sizes) // 2]
    rows = tables.where(result.tables["looks"], f"stage == 1 and transform == 0 and n_params == {middle}")[0]
    arms, steps, scores = (np.array(rows[c].to_pylist()) for c in ("arm", "stage_step", "accuracy_fraction"))
    for i, (arm, label) in enumerate(ARMS.items()):
        at = np.unique(steps[arms == arm])
        if len(at):
            axes[0].plot(at + 1, [scores[(arms == arm) & (steps == s)].mean() for s in at], color=plot.COLOURS[i], linewidth=0.9, label=label)
    axes[0].set(xlabel="steps into the second task, plus 1", ylabel="accuracy on the first task", title=f"{middle:,} weights", xscale="log")
    axes[0].legend(fontsize=6, loc="lower right")

    full = tables.where(gaps, "arm == 'full' and stage == 1")[0]
    plot.points(axes[1], full, "n_params", "depth_score", "at its lowest", plot.COLOURS[0], "o")
    plot.points(axes[1], full, "n_params", "depth_at_ends_score", "seen at the ends of tasks", plot.COLOURS[1], "s")
    plot.log_x(axes[1])
    axes[1].set_xticks([30_000, 100_000], ["30,000", "100,000"])
    axes[1].set(xlabel="parameters", ylabel="fall of old tasks, accuracy", title="Full replay", ylim=(-0.01, None))
    axes[1].legend(fontsize=6, loc=(0.05, 0.14))

    shown = [arm for arm in ARMS if arm in set(gaps["arm"].to_pylist())]
    for at, arm in enumerate(shown):
        depth = np.array(tables.where(gaps, f"arm == '{arm}' and stage == 1 and n_params == {middle}")[0]["depth_score"].to_pylist(), float)
        i = list(ARMS).index(arm)
        axes[2].errorbar(depth.mean(), at, xerr=plot.half_width(depth) if len(depth) > 1 else 0.0, fmt=plot.MARKERS[i], color=plot.COLOURS[i],
                         markersize=3.5, linewidth=0.8)
    axes[2].set_yticks(range(len(shown)), [ARMS[arm] for arm in shown], fontsize=6)
    axes[2].set(xlabel="fall of the first task, accuracy", title=f"{middle:,} weights", xlim=(-0.01, None))
    return fig
