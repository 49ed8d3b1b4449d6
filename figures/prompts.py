"""What prompt pools and compressed replay keep of old facts against what they learn of new ones, and the bits that each kind of replay stores."""

import matplotlib.pyplot as plt
import numpy as np

from scalemem import plot, tables

NAMES = {"none": "plain tuning", "lora": "adapters", "l2p+prompts": "L2P", "dualprompt+prompts": "DualPrompt", "coda_prompt+prompts": "CODA-Prompt",
         "replay": "replay", "remind pq": "REMIND, codes", "remind float": "REMIND, floats"}
MARKS, COLOURS = plot.MARKERS + "X", (*plot.COLOURS, "0.2")


def draw(table, result):
    fig, axes = plt.subplots(1, 2, figsize=(6.4, 3))
    points = result.tables["points"]
    ends = {}
    for i, (name, label) in enumerate(NAMES.items()):
        if name not in points["strategy"].to_pylist():
            continue
        part = tables.where(points, f"strategy == '{name}'")[0]
        kept, learned, bits = (np.array(part[c].to_pylist(), float) for c in ("kept_fraction", "learned_fraction", "stored_bits"))
        bars = [plot.half_width(v) if len(v) > 1 else 0.0 for v in (kept, learned)]
        axes[0].errorbar(learned.mean(), kept.mean(), yerr=bars[0], xerr=bars[1], fmt=MARKS[i], color=COLOURS[i], markersize=4, label=label)
        ends[name] = (learned.mean(), kept.mean())
        if bits.any() or name == "none":
            axes[1].errorbar(bits.mean() / 1000, kept.mean(), yerr=bars[0], fmt=MARKS[i], color=COLOURS[i], markersize=4, label=label)
    if "none" in ends:
        axes[0].plot([0, ends["none"][0]], [1, ends["none"][1]], ":", color="0.5", linewidth=0.8)
    axes[0].set(xlabel="new facts recalled", ylabel="old facts still recalled", title="Dotted: tuning less", xlim=(-0.04, 1.06), ylim=(-0.04, 1.06))
    axes[0].legend(fontsize=6, loc="upper right")
    axes[1].set_xscale("symlog", linthresh=1)
    axes[1].set(xlabel="stored, thousands of bits", ylabel="old facts still recalled", title="32 facts in three forms")
    axes[1].legend(fontsize=6)
    return fig
