"""Precision, recall and correlation of memorization between all sizes, or all checkpoints of a size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from scalemem.analyses import panel as panels
from scalemem.analyses import roc
from scalemem.analyses.panel import Panel
from scalemem.spec import SpecError

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("seed", "predictor_n_params", "predictor_fraction", "target_n_params", "target_fraction", "n_count", "predictor_memorized_fraction",
           "target_memorized_fraction", "precision", "recall", "f1", "pearson", "spearman")
BETWEEN = ("sizes", "checkpoints", "all")


def analyse(tables: Mapping[str, pa.Table], *, value: str, memorized: str, table: str = "extraction", where: str = "planted",
            between: str = "sizes") -> pa.Table:
    """How far the sequences that one run memorized are those of another, for all ordered pairs of runs of a seed.

    precision = |both| / |predictor's|, recall = |both| / |target's|; `pearson` and `spearman` are of the value. Both are symmetric, and
    precision of (a, b) is recall of (b, a).

    Args:
      tables: the per-sequence table.
      value: column of a continuous value.
      memorized: column of true/false, or of a score that is 1 where memorized.
      table, where: the table and which of its rows.
      between: sizes (their last checkpoints), checkpoints (of one size), or all (any size and checkpoint).
    Returns:
      a row for each seed and ordered pair, a run with itself as well.
    Raises:
      SpecError: an unknown table or `between`. TableError: a column that is none.

    Source: Biderman et al. 2023 (arXiv 2304.11158).
    """
    if between not in BETWEEN:
        raise SpecError(f"analysis.between = {between!r}: must be one of {', '.join(BETWEEN)}; choose one of these")
    panel = Panel.of(panels.table_of(tables, table, where), value, memorized)
    at = [(k, f) for k in range(len(panel.sizes)) for f in range(len(panel.fractions)) if between != "sizes" or f == panel.final]
    rows = []
    for first in at:
        for second in at:
            if between == "checkpoints" and first[0] != second[0]:
                continue
            common = panel.known(first, second)
            for r, seed in enumerate(panel.seeds):
                if not (keep := common[r]).any():
                    continue
                (x, a), (y, b) = ((panel.value[r, keep, k, f], panel.memorized[r, keep, k, f] == 1) for k, f in (first, second))
                rows.append({
                    "seed": int(seed), "predictor_n_params": int(panel.sizes[first[0]]), "predictor_fraction": float(panel.fractions[first[1]]),
                    "target_n_params": int(panel.sizes[second[0]]), "target_fraction": float(panel.fractions[second[1]]), "n_count": len(x),
                    "predictor_memorized_fraction": float(a.mean()), "target_memorized_fraction": float(b.mean()), **roc.agreement(a, b),
                    "pearson": roc.correlation(x, y), "spearman": roc.correlation(x, y, ranks=True)})
    return panels.rows(rows, COLUMNS)
