"""The memorized share by when a canary was last seen; the index of dispersion of every run; copies early, anywhere and late."""

import json

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import chi2

from scalemem import plot

NAMES = {"constant": "constant rate", "trapezoid": "rate falling to 0"}
BLOCKS = 12


def mean(values):
    """Mean and half of its 90 % interval."""
    return np.mean(values), plot.half_width(np.asarray(values, float))


def draw(table, result):
    fig, (blocks, index, place) = plt.subplots(1, 3, figsize=(7.2, 2.7))
    runs = {r["run_id"]: r for r in table.to_pylist()}
    stands = {name: json.loads(r["spec"])["stages"][0]["data"]["canaries"].get("placement", "anywhere") for name, r in runs.items()}
    largest, had = max(r["n_params"] for r in runs.values()), {}
    for r in result.tables["extraction"].to_pylist():
        if r["planted"] and r["run_id"] in runs:
            had.setdefault(r["run_id"], []).append((r["last_step"], r["memorized_rate"]))
    share = {name: [np.mean([m for _, m in part]) for part in np.array_split(np.array(sorted(rows)), BLOCKS)] for name, rows in had.items()}
    for k, schedule in enumerate(NAMES):
        mine = [share[name] for name, r in runs.items() if (r["schedule"], r["n_params"], stands[name]) == (schedule, largest, "anywhere")]
        middle, half = np.array([mean(column) for column in np.transpose(mine)]).T
        blocks.errorbar(np.arange(1, BLOCKS + 1) + 0.1 * k, 100 * middle, 100 * half, color=plot.COLOURS[k], marker=plot.MARKERS[k], linewidth=0.8,
                        capsize=1.5, label=NAMES[schedule])
    blocks.set(xlabel=f"twelfth of the canaries, by last copy\n({largest:,} parameters)", ylabel="memorized (%)", title="When last seen",
               ylim=(0, None), xticks=[1, 4, 8, 12])

    kinds = [(table, s, n) for table in ("last_seen", "first_seen", "placed") for s in NAMES
             for n in sorted({r["n_params"] for r in result.tables[table].to_pylist()})]
    found = []
    for x, (name, schedule, n) in enumerate(kinds):
        y = [r["binomial_dispersion_ratio"] for r in result.tables[name].to_pylist() if (r["schedule"], r["n_params"]) == (schedule, n)]
        y = np.array([v for v in y if np.isfinite(v)])
        k, found = list(NAMES).index(schedule), [*found, *y]
        index.plot(x + np.linspace(-0.2, 0.2, len(y)), y, plot.MARKERS[k], color=plot.COLOURS[k], markersize=2.5, alpha=0.7)
        if len(y):
            index.plot([x - 0.35, x + 0.35], [y.mean()] * 2, color="0.2", linewidth=1)
    low, high = chi2.ppf([0.05, 0.95], BLOCKS - 1) / (BLOCKS - 1)
    index.axhspan(low, high, color="0.85", zorder=0)
    index.text(len(kinds) - 0.55, 0.94 * low, "grey: 90 % of runs, by chance", ha="right", va="top", fontsize=6.5)
    for name, label in (("last_seen", "last\ncopy"), ("first_seen", "first\ncopy"), ("placed", "early\nor late")):
        at = [x for x, kind in enumerate(kinds) if kind[0] == name]
        index.axvline(max(at) + 0.5, color="0.8", linewidth=0.6)
        index.text(np.mean(at), 1.02, label, transform=index.get_xaxis_transform(), ha="center", va="bottom", fontsize=7)
    index.set(xticks=range(len(kinds)), ylabel="index of dispersion / binomial", xlabel="thousand parameters")
    index.set_xticklabels([f"{n / 1000:.0f}" for _, _, n in kinds])
    plot.axis(index.yaxis, found, 2)
    index.set_ylim(0.65 * low)

    for k, schedule in enumerate(NAMES):
        for x, where in enumerate(("early", "anywhere", "late")):
            middle, half = mean([np.mean(share[name]) for name, r in runs.items()
                                 if (r["schedule"], r["n_params"], stands[name]) == (schedule, largest, where)])
            place.errorbar(x + 0.12 * k, 100 * middle, 100 * half, color=plot.COLOURS[k], marker=plot.MARKERS[k], capsize=1.5,
                           label=NAMES[schedule] if x == 0 else None)
    place.set(xticks=[0, 1, 2], ylabel="memorized (%)", title="Where the copies stand", xlabel=f"of the pass ({largest:,} parameters)",
              xlim=(-0.4, 2.5), ylim=(-3, None))
    place.set_xticklabels(["early", "anywhere", "late"])
    fig.legend(*place.get_legend_handles_labels(), loc="outside lower center", ncol=2)
    return fig
