"""The public tables of several runs: what `--law auto` forecasts for the largest ones from the smaller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from scalemem import tables
from scalemem.averaging import average

GADRE = "loss_c4_val_shard-{0000000..0000010}.tar"


def _told(x: dict[str, np.ndarray], y: np.ndarray, out: np.ndarray) -> dict[str, Any]:
    """Errors and intervals of the rows `out`, forecast from the others."""
    spread = average({k: v[~out] for k, v in x.items()}, y[~out]).predict({k: v[out] for k, v in x.items()})
    low, median, high = (spread.quantile(p) for p in (0.05, 0.5, 0.95))
    inside = (low <= y[out]) & (y[out] <= high)
    return {"n_fit": int(np.sum(~out)), "n_test": int(np.sum(out)), "mean_abs_error": float(np.mean(np.abs(median / y[out] - 1))),
            "inside": int(np.sum(inside)), "half_width": float(np.mean((high - low) / 2 / median)),
            "rows": [{**{k: float(v[out][i]) for k, v in x.items()}, "y": float(y[out][i]), "median": float(median[i]), "low": float(low[i]),
                      "high": float(high[i])} for i in range(len(median))]}


def chinchilla(folder: Path) -> dict[str, Any]:
    """Runs of at least 1e21 FLOP from those below; the 5 highest losses are left out."""
    table = tables.read(folder / "chinchilla_extracted.csv")
    n, flop, loss = (tables.column(table, k) for k in ("Model Size", "Training FLOP", "loss"))
    keep = np.sort(np.argsort(loss)[:-5])
    n, flop, loss = n[keep], flop[keep], loss[keep]
    return _told({"n_params": n, "n_tokens": flop / (6 * n)}, loss, flop >= 1e21)


def gadre(folder: Path) -> dict[str, Any]:
    """The nine runs of N >= 1.4B from the smaller ones, each data set apart: loss on C4's validation split."""
    table = tables.read(folder / "gadre_models_losses.csv")
    parts = {}
    for key, rows in tables.groups(table, "dataset", np.ones(table.num_rows, bool)):
        n, d, y = (tables.column(table, k)[rows] for k in ("N", "D", GADRE))
        parts[key["dataset"]] = _told({"n_params": n, "n_tokens": d}, y, n >= 1.4e9)
    total = sum(p["n_test"] for p in parts.values())
    return {"n_test": total, "mean_abs_error": sum(p["mean_abs_error"] * p["n_test"] for p in parts.values()) / total,
            "inside": sum(p["inside"] for p in parts.values()), "data_sets": parts}


def pythia(folder: Path) -> dict[str, Any]:
    """Memorized sequences: 12B of the duplicated suite from the sizes up to 1.4B."""
    table = tables.read(folder / "pythia_memorized_counts.csv")
    suite = np.array(tables.load(table, "suite"), str) == "duped"
    n, y = tables.column(table, "params")[suite], tables.column(table, "memorized")[suite]
    keep = (n <= 1.4e9) | (n == n.max())
    return _told({"n_params": n[keep]}, y[keep], n[keep] > 1.4e9)
