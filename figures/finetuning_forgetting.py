"""Forgetting against fine-tuning loss by rank, against steps with the forecasts of law (c), and what ranks have forgotten at one loss."""

import matplotlib.pyplot as plt
import numpy as np

from scalemem import plot, tables


def draw(table, result):
    fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.9))
    points, forecast = result.tables["points"], result.tables.get("forecast")
    ranks = sorted(set(tables.where(points, "trains == 'lora'")[0]["rank"].to_pylist()))
    shown = sorted({ranks[0], ranks[len(ranks) // 2 - 1], ranks[-1]})
    series = [(f"trains == 'lora' and rank == {rank}", f"rank {rank}") for rank in shown] + [("trains == 'all'", "all weights")]

    for i, (where, label) in enumerate(series):
        part = tables.where(points, where)[0]
        x, y = (np.array(part[name].to_pylist(), float) for name in ("finetuning_loss_nats", "forgetting_nats"))
        axes[0].plot(x, y, plot.MARKERS[i], color=plot.COLOURS[i], markersize=1.6, label=label)
    if "line" in result.fits:
        fit = result.fits["line"].at(None)
        x = np.array(fit.ranges["x"])
        b = fit.parameters["b"]
        axes[0].plot(x, fit.parameters["a"].value + b.value * x, color="0.3", linewidth=0.9)
        axes[0].set_title(f"Line of ranks: slope {b.value:.2f}")
        top = max(tables.where(points, "trains == 'lora'")[0]["forgetting_nats"].to_pylist())
        axes[0].set_ylim(None, top * 1.35)
    axes[0].set(xlabel="loss on new facts, nats a token", ylabel="forgetting $L_f$, nats a token")
    axes[0].legend(loc="upper right", markerscale=2)

    for i, rank in enumerate(shown):
        plot.points(axes[1], tables.where(points, f"trains == 'lora' and rank == {rank}")[0], "stage_step", "forgetting_nats", f"rank {rank}",
                    plot.COLOURS[i], plot.MARKERS[i])
        made = forecast and tables.where(forecast, f"rank == {rank}")[0]
        if made and made.num_rows:
            steps = sorted(set(made["stage_step"].to_pylist()))
            mean = [np.mean(tables.where(made, f"stage_step == {s}")[0]["forecast_nats"].to_pylist()) for s in steps]
            axes[1].plot(steps, mean, color=plot.COLOURS[i], linestyle="--")
    plot.log_x(axes[1])
    axes[1].set(xlabel="step of fine-tuning", ylabel="forgetting $L_f$, nats a token", title="Dashed: forecast by law (c)")

    if "matched" in result.tables:
        for i, (name, label) in enumerate((("highest_nats", "rank of most"), ("lowest_nats", "rank of least"))):
            part = result.tables["matched"]
            axes[2].plot(part["level_nats"].to_pylist(), part[name].to_pylist(), plot.MARKERS[i], color=plot.COLOURS[i], markersize=2.5, label=label)
        axes[2].legend()
    axes[2].set(xlabel="loss on new facts, nats a token", ylabel="forgetting $L_f$, nats a token", title="All ranks stopped at one loss")
    return fig
