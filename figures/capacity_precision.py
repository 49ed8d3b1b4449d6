"""Bits per parameter by precision of training, and what is left after rounding the trained weights."""

import matplotlib.pyplot as plt
import numpy as np

from scalemem import plot, tables

TRAINED = {"float32": "param_dtype == 'float32' and compute_dtype == 'float32'", "bf16 products": "compute_dtype == 'bfloat16'",
           "bf16 weights": "param_dtype == 'bfloat16'"}
ROUNDED = {"as trained": "memorized_bits", "bf16": "memorized_bits_bf16", "int8": "memorized_bits_int8", "int4": "memorized_bits_int4"}


def draw(table, result):
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.7))
    for i, (label, where) in enumerate(TRAINED.items()):
        rows, _ = tables.where(table, where)
        plot.points(left, rows, "n_params", "bits_per_param", label, plot.COLOURS[i], plot.MARKERS[i])
    plot.log_x(left).set(xlabel="parameters", ylabel="bits per parameter", title="Precision of training")
    left.legend(title="trained with")
    full, _ = tables.where(table, TRAINED["float32"])
    for i, p in enumerate(sorted(set(full["n_params"].to_pylist()))):
        rows, _ = tables.where(full, f"n_params == {p}")
        means = [np.mean(rows[c].to_pylist()) / p for c in ROUNDED.values()]
        right.plot(range(len(ROUNDED)), means, f"{plot.MARKERS[i]}-", color=plot.COLOURS[i], label=f"{p:,}")
    right.axhline(0, color="0.4", linewidth=0.8)
    right.set_xticks(range(len(ROUNDED)), list(ROUNDED))
    right.set(ylabel="bits per parameter", xlabel="weights rounded to, after training in float32", title="Precision of what is kept")
    right.legend(title="parameters")
    return fig
