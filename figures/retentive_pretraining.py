"""What is recalled of group A after further groups, against what was recalled at the end of its study, by pre-training; and group by group."""

import matplotlib.pyplot as plt
import numpy as np

from scalemem import plot, tables


def draw(table, result):
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.9))
    one, curves, matched = result.tables["after_one"], result.tables["curves_of_study"], result.tables.get("matched")
    conditions = sorted({(r, s) for r, s in zip(one["pretrain_random"].to_pylist(), one["pretrain_steps"].to_pylist(), strict=True)})
    names = {c: f"{c[1]:,} steps, strings" if c[0] else (f"{c[1]:,} steps, facts" if c[1] else "none") for c in conditions}
    for i, (random, steps) in enumerate(conditions):
        part = tables.where(one, f"pretrain_random == {random} and pretrain_steps == {steps}")[0]
        exposures, x, y = (np.array(part[c].to_pylist()) for c in ("study_exposures", "study_recall_fraction", "end_recall_fraction"))
        at = [exposures == e for e in np.unique(exposures)]
        axes[0].errorbar([x[k].mean() for k in at], [y[k].mean() for k in at], xerr=[plot.half_width(x[k]) for k in at],
                         yerr=[plot.half_width(y[k]) for k in at], fmt=plot.MARKERS[i] + "-", color=plot.COLOURS[i], linewidth=0.8, elinewidth=0.6,
                         label=names[random, steps])
    axes[0].plot([0, 1], [0, 1], color="0.4", linewidth=0.6, linestyle=":")
    axes[0].set(xlabel="group A recalled after its study", ylabel="and after group B", title="Dotted: nothing is lost", xlim=(0, 1.03),
                ylim=(-0.02, 1.03))
    axes[0].legend(title="pre-training", loc="upper left")

    for i, level in enumerate(sorted(set(matched["level_fraction"].to_pylist())) if matched else ()):
        part = tables.where(matched, f"pretrain_random == 0 and level_fraction == {level}")[0]
        plot.points(axes[1], tables.derive(part, "steps_and_one", "pretrain_steps + 1"), "steps_and_one", "kept_fraction", f"{level:g}",
                    plot.COLOURS[i], plot.MARKERS[i])
    axes[1].set(xlabel="1 + steps of pre-training on facts", ylabel="share of it recalled after group B", title="At equal recall of group A")
    if matched:
        plot.log_x(axes[1])
        axes[1].legend(title="recall of group A")

    most = max(one["study_exposures"].to_pylist())
    for i, (random, steps) in enumerate(conditions):
        part = tables.where(curves, f"pretrain_random == {random} and pretrain_steps == {steps} and study_exposures == {most}")[0]
        plot.points(axes[2], part, "since_steps", "recall_fraction", names[random, steps], plot.COLOURS[i], plot.MARKERS[i])
    axes[2].set(xlabel="steps on groups B, C and D", ylabel="group A recalled", title=f"{most} exposures of each group", ylim=(-0.02, 1.03))
    return fig
