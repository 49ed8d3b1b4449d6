"""Forgetting against p / n with its closed form, generalisation near p = n + 1, and what three learners have lost of their data."""

import matplotlib.pyplot as plt
import numpy as np

from scalemem import plot, tables
from scalemem.analyses import linear_tasks


def draw(table, result):
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.9))
    cells, learners = result.tables["cells"], result.tables["learners"]
    p = int(cells["d_model"][0].as_py())
    tasks, items = int(max(cells["tasks_count"].to_pylist())), np.arange(2, p - 1)
    similarities = sorted(set(cells["similarity_fraction"].to_pylist()))

    for i, similarity in enumerate(similarities):
        part = tables.where(cells, f"noise_ratio == 0 and tasks_count == {tasks} and similarity_fraction == {similarity} and n_items <= {p - 6}")[0]
        plot.points(axes[0], part, "params_per_item_ratio", "forgetting_simulated_ratio", f"{similarity:g}", plot.COLOURS[i], plot.MARKERS[i])
        drawn = items[p - items >= 6]
        exact = [linear_tasks.expected_forgetting(p, n, 0.0, np.ones(tasks), linear_tasks.shared(tasks, similarity)).sum() for n in drawn.tolist()]
        axes[0].plot(p / drawn, exact, color=plot.COLOURS[i], linewidth=0.9)
    axes[0].axhline(0, color="0.4", linewidth=0.6)
    axes[0].set(xlabel="weights / examples of a task, p/n", ylabel="forgetting $F_T$, in $\\|w^*\\|^2$", title=f"{tasks} tasks, no noise",
                ylim=(None, 2.4))
    axes[0].legend(title="similarity; lines: closed form", loc="upper right")

    for i, noise in enumerate(sorted(set(cells["noise_ratio"].to_pylist()))):
        part = tables.where(cells, f"noise_ratio == {noise} and tasks_count == {tasks} and similarity_fraction == 1")[0]
        plot.points(axes[1], part, "params_per_item_ratio", "generalisation_simulated_ratio", f"{noise:g}", plot.COLOURS[i], plot.MARKERS[i])
        exact = [linear_tasks.expected_generalisation(p, n, noise, np.ones(tasks), linear_tasks.shared(tasks, 1.0)) for n in items.tolist()]
        axes[1].plot(p / items, exact, color=plot.COLOURS[i], linewidth=0.9)
    axes[1].set(xlabel="weights / examples of a task, p/n", ylabel="mean distance at the end $G_T$, in $\\|w^*\\|^2$", yscale="log",
                title=f"{tasks} tasks of one answer", ylim=(1e-3, 30))
    axes[1].legend(title="sd of noise", loc=(0.5, 0.08))

    part = tables.where(learners, "similarity == 0 and noise == 0 and task_count > 1")[0]
    for i, (name, label) in enumerate((("sequential_old_loss_ratio", "nearest fit, old tasks"), ("ideal_new_loss_ratio", "ideal, new task"),
                                       ("ideal_old_loss_ratio", "ideal, old tasks"))):
        axes[2].plot(part["samples_per_param_ratio"].to_pylist(), part[name].to_pylist(), plot.MARKERS[i], color=plot.COLOURS[i], markersize=2.5,
                     label=label)  # a point a run: spreads of many powers of ten
    axes[2].axvline(1, color="0.4", linewidth=0.6)
    axes[2].set(xlabel="examples of all tasks / weights", ylabel="mean square of residuals / of answers", title="Tasks that share nothing",
                yscale="log", ylim=(1e-32, 1e4))
    axes[2].legend(loc="center right")
    for axis in axes[:2]:
        plot.axis(axis.xaxis, [1, 2, 4, 8, 16])
    return fig
