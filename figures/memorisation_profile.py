"""The effect of one copy at the next checkpoint, by when it was trained on; how it fades; how alike the profiles of two sizes are."""

import matplotlib.pyplot as plt
import numpy as np

from scalemem import plot, tables

NAMES = {"trapezoid": "falling rate", "constant": "constant rate"}


def draw(table, result):
    fig, ((falling, constant), (fading, alike)) = plt.subplots(2, 2, figsize=(7.2, 5.2))
    cells = result.tables["profile"]
    sizes = sorted(set(table["n_params"].to_pylist()))
    end = max(cells["cohort_step"].to_pylist())
    for ax, schedule in ((falling, "trapezoid"), (constant, "constant")):
        for i, p in enumerate(sizes):
            now = tables.where(cells, f"n_params == {p} and schedule == '{schedule}' and kind == 'instantaneous'")[0].to_pylist()
            x, y, e = (np.array([r[c] for r in now]) for c in ("cohort_step", "gain_nats", "did_se"))
            ax.errorbar(x + (i - 1.5) * end / 200, y, 1.645 * e, color=plot.COLOURS[i], marker=plot.MARKERS[i], linewidth=0.8, capsize=1.5,
                        label=f"{p:,}")
        ax.axhline(0, color="0.5", linewidth=0.6)
        ax.set(title=f"Trained on in the steps up to x: {NAMES[schedule]}", xlabel="optimizer step of the cohort's checkpoint",
               ylabel="gain at that checkpoint (nats a sequence)",
               xlim=(0, 1.03 * end))
    top = max(falling.get_ylim()[1], constant.get_ylim()[1])
    for ax in (falling, constant):
        ax.set_ylim(min(falling.get_ylim()[0], constant.get_ylim()[0]), top)
    steps = np.array([0, end])
    falling.plot(steps, top * 0.95 * (1 - 0.9 * steps / end), color="0.4", linestyle=":", label="rate (0 to peak)")
    constant.legend(title="parameters", ncol=2), falling.legend(falling.lines[-1:], ["rate, scaled"], loc="upper right")

    for i, p in enumerate(sizes):
        after = tables.where(cells, f"n_params == {p} and schedule == 'constant'")[0].to_pylist()
        lags = sorted({r["lag_steps"] for r in after if abs(r["lag_steps"]) <= 0.8 * end})
        by = [[r["gain_nats"] for r in after if r["lag_steps"] == lag] for lag in lags]
        mean, error = (np.array([f(v) for v in by]) for f in (np.mean, lambda v: 1.645 * np.std(v) / len(v) ** 0.5))
        fading.errorbar(np.array(lags) + (i - 1.5) * end / 250, mean, error, color=plot.COLOURS[i], marker=plot.MARKERS[i], linewidth=0.8)
    fading.axvline(0, color="0.5", linewidth=0.6), fading.axhline(0, color="0.5", linewidth=0.6)
    fading.set(title="Before and after: constant rate, mean of the cohorts", xlabel="optimizer steps since the cohort's checkpoint",
               ylabel="difference in differences (nats)")

    for k, schedule in enumerate(NAMES):
        pairs = tables.derive(tables.where(result.tables["correlation"], f"schedule == '{schedule}'")[0], "beside", f"size_ratio * {1 + 0.06 * k}")
        plot.points(alike, pairs, "beside", "pearson", NAMES[schedule], plot.COLOURS[k + 4], plot.MARKERS[k])
    alike.axhline(0.6, color="0.5", linewidth=0.6, linestyle=":")
    plot.log_x(alike).set(title="How alike the profiles of two sizes are", xlabel="factor in parameters between them", ylabel="Pearson's r",
                          ylim=(min(0, alike.get_ylim()[0]), 1.02))
    alike.legend(loc="lower left")
    return fig
