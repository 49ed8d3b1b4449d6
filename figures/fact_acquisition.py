"""Ten encounters and what is left after them: gains, retainability against log steps, size and kind of probe, batch size in two units."""

import matplotlib.pyplot as plt
import numpy as np

from scalemem import plot, tables

MAIN = "kind == 'memorization'"


def draw(table, result):
    fig, axes = plt.subplots(2, 2, figsize=(7.2, 5.4))
    acquired, encounters, retained = (result.tables[name] for name in ("acquired", "by_encounter", "retained"))
    most = max(acquired["met_count"].to_pylist())
    middle = sorted(set(tables.where(acquired, "sentence_count > 1")[0]["n_params"].to_pylist()))[0]
    batch, length = (max(tables.where(acquired, "sentence_count > 1")[0][c].to_pylist()) for c in ("batch_size", "pretrain_steps"))
    main = f"{MAIN} and n_params == {middle} and batch_size == {batch} and pretrain_steps == {length}"

    for i, (where, label) in enumerate(((f"sentence_count == 1 and met_count == {most}", "one sentence"),
                                        (f"sentence_count > 1 and met_count == {most}", "paraphrases"))):
        part = tables.where(encounters, f"{main} and {where} and encounter <= {most}")[0]
        each, before, top = (np.array(part[name].to_pylist()) for name in ("encounter", "before_nats", "maximum_nats"))
        saw = np.array([[before[each == e].mean(), top[each == e].mean()] for e in np.unique(each)])
        x = np.stack([np.unique(each) - 0.2, np.unique(each) + 0.2], 1) + 0.06 * i
        axes[0, 0].plot(x.ravel(), saw.ravel(), color=plot.COLOURS[i], linewidth=0.8)
        axes[0, 0].errorbar(x[:, 1], saw[:, 1], yerr=[plot.half_width(top[each == e]) for e in np.unique(each)],
                            fmt=plot.MARKERS[i], color=plot.COLOURS[i], markersize=3, elinewidth=0.5, label=label)
    axes[0, 0].set(xlabel="encounter", ylabel="log p of the object, nats", title="Before each encounter, and its maximum (marked)")
    axes[0, 0].legend(loc="lower right")

    for i, (where, label) in enumerate(((f"sentence_count == 1 and met_count == {most}", f"one sentence, {most} times"),
                                        (f"sentence_count > 1 and met_count == {most}", f"paraphrases, {most} times"),
                                        ("sentence_count == 1 and met_count == 1", "once"))):
        part = tables.where(retained, f"{main} and {where} and since_steps >= 1")[0]
        t, r, seeds = (np.array(part[name].to_pylist()) for name in ("since_steps", "retained_fraction", "seed"))
        common = np.unique(np.round(np.logspace(0, np.log10(t.max()), 24)))
        each = np.stack([np.interp(np.log(common), np.log(t[seeds == s]), r[seeds == s]) for s in np.unique(seeds)])
        axes[0, 1].plot(common, each.mean(0), plot.MARKERS[i] + "-", color=plot.COLOURS[i], markersize=3, linewidth=0.8, label=label)
        half = np.array([plot.half_width(column) for column in each.T])
        axes[0, 1].fill_between(common, each.mean(0) - half, each.mean(0) + half, color=plot.COLOURS[i], alpha=0.15, linewidth=0)
    axes[0, 1].axhline(0, color="0.4", linewidth=0.6)
    axes[0, 1].set(xscale="log", xlabel="steps after the last maximum", ylabel="retainability R", title="What is left of the gain")
    axes[0, 1].legend()

    for i, kind in enumerate(("memorization", "semantic", "composition")):
        part = tables.where(acquired, f"kind == '{kind}' and sentence_count == 1 and met_count == {most} and batch_size == {batch} "
                                      f"and pretrain_steps == {length}")[0]
        plot.points(axes[1, 0], part, "n_params", "effectivity_nats", kind, plot.COLOURS[i], plot.MARKERS[i])
    plot.log_x(axes[1, 0])
    axes[1, 0].axhline(0, color="0.4", linewidth=0.6)
    axes[1, 0].set(xlabel="parameters", ylabel="effectivity, nats an encounter", title="Mean gain of an encounter")
    axes[1, 0].legend(title="probe")

    part = tables.where(acquired, f"{MAIN} and n_params == {middle} and sentence_count == 1 and met_count == {most} and "
                                  f"pretrain_steps == {length} and gone_steps > 0")[0]
    for i, (column, label) in enumerate((("gone_steps", "steps"), ("gone_examples", "examples"))):
        plot.points(axes[1, 1], part, "batch_size", column, label, plot.COLOURS[i], plot.MARKERS[i])
    plot.axis(axes[1, 1].xaxis, part["batch_size"].to_pylist())
    axes[1, 1].set(yscale="log", xlabel="batch size after pre-training", ylabel="until nothing is left ($10^{r/a}$)", title="The unit decides")
    axes[1, 1].legend()
    return fig
