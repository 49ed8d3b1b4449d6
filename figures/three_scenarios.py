"""Accuracy of all tasks at the end by strategy and scenario, for digits and for sequences, and what each strategy costs."""

import matplotlib.pyplot as plt
import numpy as np

from scalemem import plot, tables

LABELS = {"none": "none", "si": "SI", "ewc exact": "EWC", "lwf": "LwF", "agem": "A-GEM", "replay": "replay", "joint": "joint"}
SCENARIOS = {"task": "task known", "domain": "task not needed", "class": "task inferred"}


def draw(table, result):
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.9), gridspec_kw={"width_ratios": (1, 1, 0.9)})
    scores = result.tables["scores"]
    present = set(scores["strategy"].to_pylist())
    names = [name for name in LABELS if name in present]
    places = np.arange(len(names))

    for axis, generator, title in ((axes[0], "digits", "Digits, perceptron"), (axes[1], "prototypes", "Sequences, transformer")):
        for i, (scenario, label) in enumerate(SCENARIOS.items()):
            for at, name in enumerate(names):
                part = tables.where(scores, f"generator == '{generator}' and scenario == '{scenario}' and strategy == '{name}'")[0]
                values = np.array(part["acc_fraction"].to_pylist(), float)
                if not len(values):
                    continue
                bar = plot.half_width(values) if len(values) > 1 else 0.0
                axis.errorbar(values.mean(), at + 0.2 * (i - 1), xerr=bar, fmt=plot.MARKERS[i], color=plot.COLOURS[i], markersize=3.5, linewidth=0.8,
                              label=label if name == names[0] else None)
        axis.axvline(0.2, color="0.6", linewidth=0.6, linestyle=":")
        axis.set(xlabel="accuracy on all tasks at the end", title=title, xlim=(-0.03, 1.03), ylim=(-0.6, len(names) - 0.4))
        axis.set_yticks(places, [LABELS[name] for name in names] if axis is axes[0] else [])
    axes[0].legend(loc="upper left", fontsize=6)

    costs = (("extra_flops_ratio", "FLOPs over plain", 1.0), ("state_floats_per_param", "copies of the weights", 1.0),
             ("stored_tokens_count", "tokens kept / 10,000", 1e-4))
    for i, (column, label, scale) in enumerate(costs, 3):
        arms = [tables.where(scores, f"generator == 'digits' and strategy == '{name}'")[0] for name in names]
        values = [np.mean(arm[column].to_pylist()) * scale if arm.num_rows else np.nan for arm in arms]
        axes[2].plot(values, places + 0.2 * (i - 4), plot.MARKERS[i], color=plot.COLOURS[i], markersize=3.5, label=label)
    axes[2].set(xlabel="beside plain training", title="What each costs (digits)", ylim=(-0.6, len(names) - 0.4))
    axes[2].set_yticks(places, [])
    axes[2].legend(loc="lower right", fontsize=6)
    return fig
