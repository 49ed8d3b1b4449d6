"""Facts that were lost and facts never seen, met together: the share recalled as they are met again, and the steps that are saved."""

import matplotlib.pyplot as plt
import numpy as np

from scalemem import plot, tables

SOURCES = {"stage0": "lost", "stage2": "never seen"}


def draw(table, result):
    facts, half = result.tables["looks"], result.tables["half"]
    strengths = sorted(set(half["stage1_strategy_strength"].to_pylist()))
    fig, axes = plt.subplots(1, 1 + len(strengths), figsize=(2.6 * (1 + len(strengths)), 2.9), squeeze=False)
    for ax, strength in zip(axes[0], strengths, strict=False):
        runs = set(tables.where(half, f"stage1_strategy_strength == {strength}")[0]["run_id"].to_pylist())
        rows = tables.where(facts, f"stage1_strategy_strength == {strength}")[0]
        run, source, step, recalled = (np.array(rows[c].to_pylist()) for c in ("run_id", "source", "stage_step", "recalled"))
        for i, (name, label) in enumerate(SOURCES.items()):
            at = np.unique(step)
            each = [[recalled[(run == r) & (source == name) & (step == s)].mean() for s in at] for r in sorted(runs)]
            ax.plot(at + 1, np.mean(each, 0), f"-{plot.MARKERS[i]}", color=plot.COLOURS[i], markersize=2.5, linewidth=0.9, label=label)
            ax.fill_between(at + 1, np.min(each, 0), np.max(each, 0), color=plot.COLOURS[i], alpha=0.2, linewidth=0)
        ax.set(xscale="log", xlabel="steps since met again, plus 1", ylabel="facts recalled", ylim=(-0.03, 1.03),
               title="after plain tuning" if strength == 0 else f"after LwF, {strength:g}")
        ax.legend(fontsize=6, loc="upper left")
    ax = axes[0, -1]
    for i, (name, label) in enumerate((("half", "half are back"), ("most", "nine in ten are back"))):
        rows = result.tables[name]
        for j, strength in enumerate(strengths):
            saved = np.array(tables.where(rows, f"stage1_strategy_strength == {strength}")[0]["savings_fraction"].to_pylist(), float)
            bar = plot.half_width(saved) if len(saved) > 1 else 0.0
            ax.errorbar(j + 0.15 * i, saved.mean(), yerr=bar, fmt=plot.MARKERS[i], color=plot.COLOURS[i + 2], markersize=4,
                        label=label if j == 0 else None)
    ax.set_xticks(range(len(strengths)), ["plain" if s == 0 else f"LwF, {s:g}" for s in strengths])
    ax.set(ylabel="steps saved, a share", ylim=(min(-0.03, ax.get_ylim()[0]), 1), xlim=(-0.5, len(strengths) - 0.3))
    ax.legend(fontsize=6)
    return fig
