"""Membership F1 and AUC against data bits per parameter: sizes on one sigmoid, the held-out size, the published curve."""

import matplotlib.pyplot as plt
import numpy as np

from scalemem import plot, tables


def draw(table, result):
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.8), sharex=True)
    sizes = sorted(set(table["n_params"].to_pylist()))
    held_out = {r["n_params"] for r in table.to_pylist() if r["d_model"] == 32}
    for i, p in enumerate(sizes):
        rows, _ = tables.where(table, f"n_params == {p}")
        label = f"{p:,}" + (" (held out)" if p in held_out else "")
        plot.points(left, rows, "data_bits_per_param", "mia_f1", label, plot.COLOURS[i], plot.MARKERS[i])
        plot.points(right, rows, "data_bits_per_param", "mia_auc", label, plot.COLOURS[i], plot.MARKERS[i])
    load = np.geomspace(min(table["data_bits_per_param"].to_pylist()), 1.5 * max(table["data_bits_per_param"].to_pylist()), 200)
    if "sigmoid" in result.fits:
        plot.law(left, result.fits["sigmoid"], "data_bits", load[0], load[-1], at={"n_params": sizes[0]},
                 x_unit=sizes[0], colour="0.2", label="sigmoid (smaller sizes)")
    published = np.minimum(1, 0.5 * (1 + 1.34 / (1 + np.exp(0.034 * (load - 33.14)))))
    left.plot(load, published, color="0.5", linestyle=":", label="published")
    for axis in (left, right):
        axis.axhline(0.5, color="0.6", linewidth=0.6)
        plot.log_x(axis).set_xlabel("data bits per parameter")
    left.set(ylabel="F1, half called members", title="Membership against load: law and 90 % band")
    right.set(ylabel="AUC of the loss threshold", title="The same attack's AUC")
    left.legend(title="parameters", loc="lower left")
    return fig
