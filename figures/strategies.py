"""What every strategy keeps of old facts against what it learns of new ones, its best strength, and what it costs."""

import matplotlib.pyplot as plt
import numpy as np

from scalemem import plot, tables

COLOURS, MARKERS = (*plot.COLOURS, "0.2"), plot.MARKERS + "X"  # the last is that of "none"
FAMILIES = {
    "replay": ("joint", "replay", "collateral+joint", "relational+joint", "remind"),
    "penalty": ("ewc sample", "online_ewc empirical", "si"),
    "distillation": ("lwf", "logit_distillation", "feature_distillation", "prototypes", "centre_loss"),
    "projection": ("gem", "agem"),
    "averages": ("weight_averaging final", "weight_averaging mean", "merging slerp", "fast_slow"),
    "parts": ("lora", "half", "head"),
    "prompts": ("l2p+prompts", "dualprompt+prompts", "coda_prompt+prompts"),
    "none": ("none",),
}


def draw(table, result):
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 3.9), gridspec_kw={"width_ratios": (1.1, 1, 0.8)})
    points = result.tables["points"]
    present = set(points["strategy"].to_pylist())
    best, order = {}, []
    for i, (family, names) in enumerate(FAMILIES.items()):
        for name in names:
            if name not in present:
                continue
            part = tables.where(points, f"strategy == '{name}'")[0]
            strength, kept, learned = (np.array(part[c].to_pylist(), float) for c in ("strength", "kept_fraction", "learned_fraction"))
            means = [(kept[strength == s].mean(), learned[strength == s].mean()) for s in np.unique(strength)]
            label = family if not any(one in best for one in names) else None
            axes[0].plot([m[1] for m in means], [m[0] for m in means], f"-{MARKERS[i]}", color=COLOURS[i], markersize=3.5, linewidth=0.6,
                         label=label)
            at = np.unique(strength)[int(np.argmax([sum(m) for m in means]))]
            chosen = kept[strength == at]
            best[name] = (chosen.mean(), plot.half_width(chosen) if len(chosen) > 1 else 0.0, i, learned[strength == at].mean())
            order.append(name)
    axes[0].plot([0, np.mean(tables.where(points, "strategy == 'none'")[0]["learned_fraction"].to_pylist())], [1, best["none"][0]], ":", color="0.5",
                 linewidth=0.8)
    axes[0].set(xlabel="new facts recalled", ylabel="old facts still recalled", title="Dotted: tuning less\n", xlim=(-0.03, 1.05), ylim=(-0.03, 1.05))
    axes[0].legend(loc="lower left", fontsize=6)

    order.sort(key=lambda name: best[name][0])
    for at, name in enumerate(order):
        mean, half, i, learned = best[name]
        axes[1].errorbar(mean, at, xerr=half, fmt=MARKERS[i], color=COLOURS[i], markersize=3.5, linewidth=0.8,
                         markerfacecolor=COLOURS[i] if learned >= 0.5 else "white")
    shown = {"weight_averaging final": "line of ends", "weight_averaging mean": "mean of the path", "merging slerp": "slerp merge",
             "l2p+prompts": "L2P", "dualprompt+prompts": "DualPrompt", "coda_prompt+prompts": "CODA-Prompt"}
    axes[1].set_yticks(range(len(order)), [shown.get(name, name.replace("_", " ")) for name in order], fontsize=6)
    axes[1].set(xlabel="old facts still recalled", title="At its best strength;\nhollow: under half learned", xlim=(-0.03, 1.05))

    costs = (("extra_flops_ratio", "FLOPs over plain"), ("state_floats_per_param", "copies of the weights"),
             ("stored_tokens_count", "tokens kept / 1,000"))
    for j, (column, label) in enumerate(costs):
        scale = 1e-3 if "tokens" in column else 1.0
        values = [np.mean(tables.where(points, f"strategy == '{name}'")[0][column].to_pylist()) * scale for name in order]
        axes[2].plot(values, range(len(order)), plot.MARKERS[j], color=plot.COLOURS[(4, 5, 6)[j]], markersize=3, label=label)
    axes[2].set_yticks(range(len(order)), [])
    axes[2].set(xlabel="beside plain training", title="What each costs\n")
    axes[2].legend(loc="lower right", fontsize=6)
    return fig
