"""Which sequences will a large model memorize? Forecasts from smaller sizes and earlier checkpoints of the same seed, and how good they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scalemem import tables as columns
from scalemem.analyses import panel as panels
from scalemem.analyses import roc, transfer
from scalemem.analyses.panel import Panel
from scalemem.spec import SpecError

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("seed", "target_n_params", "predictor_n_params", "predictor_fraction", "predictor_exposures", "n_count", "base_rate_fraction",
           "memorized_fraction", "precision", "recall", "f1", "spearman", "value_recall_matched", "value_average_precision", "learned_count",
           "forecast_recall_matched", "forecast_average_precision", "forecast_precision", "forecast_recall", "forecast_f1",
           "forecast_brier_fraction", "train_flops", "forecast_train_flops")


def analyse(tables: Mapping[str, pa.Table], *, value: str, memorized: str, table: str = "extraction", where: str = "planted",
            targets: Sequence[float] = (), sizes: Sequence[float] = (), fractions: Sequence[float] = ()) -> pa.Table:
    """How well each smaller size and earlier checkpoint forecasts which sequences a fully trained target memorizes.

    Baseline: the sequences that the predictor memorized are those that the target will. precision = |both| / |predictor's|, recall =
    |both| / |target's|. Forecast: P(target memorizes it), by the map of `transfer.learn`, which never sees the target size's end; a
    sequence is forecast where P >= 1/2 (`forecast_precision`, `_recall`, `_f1`). Matched recalls compare rankings: sequences by P, or by
    the predictor's value alone, the longest prefix whose precision is at least the baseline's, so that a ranking that is no better has the
    baseline's recall; the cut is made in hindsight for both. Where no smaller size can teach a map, the ranking is by value and the
    columns of P are NaN (learned_count = 0).

    Args:
      tables: the per-sequence table, and "runs" for costs.
      value: column of a continuous value, larger where better known (a score in [0, 1], or minus nats).
      memorized: column of true/false, or of a score that is 1 where memorized.
      table, where: the table and which of its rows.
      targets: parameter counts, fully trained; default the largest.
      sizes: parameter counts of predictors; default all up to the target.
      fractions: checkpoints of predictors as fractions of training; default all above 0.
    Returns:
      a row for each seed, target and predictor (size, checkpoint); `spearman` is of the value at the predictor and at the target,
      learned_count the (size, size) pairs that taught the map, `train_flops` those of the predictor up to its checkpoint,
      `forecast_train_flops` with the smaller sizes that the forecast uses, too; costs are NaN without a table of runs.
    Raises:
      SpecError: an unknown table, size or fraction. TableError: a column that is none.

    Source: precision, recall and the roles of predictor and target: Biderman et al. 2023 (arXiv 2304.11158).
    """
    source = panels.table_of(tables, table, where)
    panel, flops = Panel.of(source, value, memorized), _flops(tables, source)
    rows = [row for t, k, f in questions(panel, targets, sizes, fractions) for row in _rows(panel, t, k, f, flops)]
    return panels.rows(rows, COLUMNS)


def questions(panel: Panel, targets: Sequence[float], sizes: Sequence[float], fractions: Sequence[float]) -> list[tuple[int, int, int]]:
    """(target size, predictor size, checkpoint) of every forecast that was asked for, as indices."""
    wanted = [_index("targets", v, panel.sizes) for v in targets] or [len(panel.sizes) - 1]
    small = [_index("sizes", v, panel.sizes) for v in sizes] or range(len(panel.sizes))
    when = [_index("fractions", v, panel.fractions) for v in fractions] or np.flatnonzero(panel.fractions > 0).tolist()
    return [(t, k, f) for t in wanted for k in small for f in when if k < t or (k == t and f < panel.final)]


def _index(name: str, value: Any, legal: np.ndarray) -> int:
    near = np.flatnonzero(np.abs(legal - value) <= 1e-6 * np.abs(legal))
    if not len(near):
        shown = ", ".join(f"{v:g}" for v in legal[:12])
        raise SpecError(f"analysis.{name} = {value!r}: must be one of {shown}; choose what was measured")
    return int(near[0])


def _rows(panel: Panel, t: int, k: int, f: int, flops: Callable[[float, float], float]) -> list[dict[str, Any]]:
    found = transfer.learn(panel, k, f, t)
    forecast = np.full(panel.log_copies.shape, math.nan) if found is None else found.probability(transfer.visible(panel, k, f), k, f, t)
    rows = []
    for r, seed in enumerate(panel.seeds):
        known = panel.known((k, f), (t, panel.final))[r] & (np.isfinite(forecast[r]) if found else True)
        if not known.any():
            continue
        value, end = panel.value[r, known, k, f], panel.value[r, known, t, panel.final]
        had, truth = panel.memorized[r, known, k, f] == 1, panel.memorized[r, known, t, panel.final] == 1
        p = forecast[r, known]
        base = roc.agreement(had, truth)
        own, score = np.where(had, math.inf, value), p if found else value
        chosen = roc.agreement(p >= 0.5, truth) if found else dict.fromkeys(("precision", "recall", "f1"), math.nan)
        cost = flops(seed, panel.sizes[k]) * panel.fractions[f]
        rows.append({
            "seed": int(seed), "target_n_params": int(panel.sizes[t]), "predictor_n_params": int(panel.sizes[k]),
            "predictor_fraction": float(panel.fractions[f]), "predictor_exposures": float(panel.exposures[k, f]), "n_count": len(truth),
            "base_rate_fraction": float(truth.mean()), "memorized_fraction": float(had.mean()), **base,
            "spearman": roc.correlation(value, end, ranks=True),
            "value_recall_matched": roc.recall_at(own, truth, base["precision"]), "value_average_precision": roc.average_precision(own, truth),
            "learned_count": len(transfer.pairs(panel, k, f, t)) if found else 0,
            "forecast_recall_matched": roc.recall_at(score, truth, base["precision"]),
            "forecast_average_precision": roc.average_precision(score, truth),
            **{f"forecast_{name}": number for name, number in chosen.items()},
            "forecast_brier_fraction": float(np.mean((p - truth) ** 2)),
            "train_flops": cost, "forecast_train_flops": cost + sum(flops(seed, n) for n in panel.sizes[:k]),
        })
    return rows


def _flops(tables: Mapping[str, pa.Table], source: pa.Table) -> Callable[[float, float], float]:
    """(seed, n_params) -> FLOPs of its whole training, NaN where not known."""
    if "runs" not in tables:
        return lambda seed, n: math.nan
    runs = tables["runs"]
    cost = dict(zip(columns.load(runs, "run_id"), columns.load(runs, "train_flops"), strict=True))
    names = zip(columns.load(source, "seed"), columns.load(source, "n_params"), columns.load(source, "run_id"), strict=True)
    known = {(seed, n): cost.get(run, math.nan) for seed, n, run in names}
    return lambda seed, n: float(known.get((seed, n), math.nan))
