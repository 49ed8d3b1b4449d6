"""Recognition and recall against exposures, what is left of both against log steps, and the log probability gained."""

import matplotlib.pyplot as plt

from scalemem import plot, tables

LIGHT = ("#8fc1e3", "#f2b48c")  # of strings without structure


def draw(table, result):
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 3.1))
    kept, curves = result.tables["kept"], result.tables["curves_of_study"]
    most = max(kept["study_exposures"].to_pylist())
    for i, (column, label) in enumerate((("study_recognition_fraction", "recognised"), ("study_recall_fraction", "recalled"))):
        for random, colour in ((0, plot.COLOURS[i]), (1, LIGHT[i])):
            part = tables.where(kept, f"random_set == {random}")[0]
            plot.points(axes[0], part, "study_exposures", column, f"{label}, {'strings' if random else 'facts'}", colour, plot.MARKERS[i])
    axes[0].axhline(0.5, color="0.4", linewidth=0.6, linestyle=":")
    axes[0].set(xlabel="exposures", ylabel="fraction at the end of the study", ylim=(-0.03, 1.05), title="Dotted: chance of recognition")
    plot.log_x(axes[0])

    chosen = tables.where(curves, f"study_exposures == {most} and since_steps > 0")[0]
    for i, (column, label) in enumerate((("above_chance_fraction", "recognised"), ("recall_fraction", "recalled"))):
        for random, colour in ((0, plot.COLOURS[i]), (1, LIGHT[i])):
            part = tables.where(chosen, f"random_set == {random}")[0]
            plot.points(axes[1], part, "since_steps", column, f"{label}, {'strings' if random else 'facts'}", colour, plot.MARKERS[i])
    axes[1].set(xlabel="steps after the study", ylabel="recalled; recognised above chance", ylim=(-0.1, 1.05),
                title=f"{most} exposures")
    plot.log_x(axes[1])
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=4)

    for i, e in enumerate(sorted(set(kept["study_exposures"].to_pylist()))):
        part = tables.where(curves, f"study_exposures == {e} and since_steps > 0 and random_set == 0")[0]
        plot.points(axes[2], part, "since_steps", "gain_nats", f"{e}", plot.COLOURS[i], plot.MARKERS[i])
    axes[2].axhline(0, color="0.4", linewidth=0.6)
    axes[2].set(xlabel="steps after the study", ylabel="log p gained by the study, nats", title="Facts")
    plot.log_x(axes[2])
    axes[2].legend(title="exposures", ncols=2, loc="upper right")
    return fig
