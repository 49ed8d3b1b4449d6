"""Extraction by n samples with probability p: what share of sequences, beside greedy decoding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from scalemem.analyses import panel as panels
from scalemem.spec import SpecError

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("seed", "n_params", "exposures", "planted", "n_sequences_count", "n_samples_count", "p_probability", "extractable_fraction",
           "greedy_fraction", "maximum_fraction", "samples_to_match_greedy_count")


def samples_needed(log_probability: np.ndarray, p: float) -> np.ndarray:
    """The fewest samples of which one is the sequence with probability p: n >= log(1 - p) / log(1 - p_z), at least 1.

    Args:
      log_probability: log p_z, at most 0, in nats; minus infinity where it is never drawn.
      p: in (0, 1).
    Returns:
      whole numbers as float [N]; infinite for p_z = 0, and where the number is above 1e308.

    >>> samples_needed(np.log([0.162, 1.0]), 0.9).tolist()
    [14.0, 1.0]

    Source: Hayes et al. 2024 (arXiv 2410.19482).
    """
    log_p = np.minimum(np.asarray(log_probability, float), 0.0)
    with np.errstate(divide="ignore", over="ignore"):
        rate = np.where(log_p < -30, log_p, np.log(-np.log1p(-np.exp(log_p))))  # log(-log(1 - p_z)); p_z itself where it is tiny
        needed = np.exp(math.log(-math.log1p(-p)) - rate)
    return np.maximum(np.ceil(needed * (1 - 1e-12)), 1.0)  # what is whole but for rounding stays whole


def analyse(tables: Mapping[str, pa.Table], *, log_probability: str, greedy: str, table: str = "probabilistic", where: str | None = None,
            samples: Sequence[float] = (1, 10, 100, 1000, 10000), probabilities: Sequence[float] = (0.1, 0.5, 0.9, 0.999)) -> pa.Table:
    """Share of sequences that are (n, p)-extractable, 1 - (1 - p_z)^n >= p, on a grid of n and p, planted ones and controls apart.

    Args:
      tables: the per-sequence table.
      log_probability: column of log p_z of the suffix under a sampling scheme, in nats.
      greedy: column of true/false, or of a score that is 1, where greedy decoding gives the suffix.
      table, where: the table and which of its rows.
      samples: n, at least 1 each.
      probabilities: p, each in (0, 1).
    Returns:
      a row for each run, checkpoint, planted or not, n and p; `maximum_fraction` has p_z > 0, the limit of many samples;
      `samples_to_match_greedy_count` is the fewest n at which the share is that of greedy decoding, infinite where it never is.
    Raises:
      SpecError: an unknown table, n or p out of range. TableError: a column that is none.

    Source: Hayes et al. 2024 (arXiv 2410.19482).
    """
    for name, values, low, high in (("samples", samples, 1, math.inf), ("probabilities", probabilities, 0, 1)):
        wrong = [v for v in values if not (low <= v < high and v > 0)]
        if wrong or not values:
            raise SpecError(f"analysis.{name} = {[*values]!r}: must be {'1 or more' if low else 'above 0 and below 1'} each; correct them")
    rows = []
    for key, part in panels.by(panels.table_of(tables, table, where), ["seed", "n_params", "exposures", "planted"]):
        log_p, had = panels.number(part, log_probability), panels.truth(part, greedy)
        log_p, had = log_p[keep := ~np.isnan(log_p) & ~np.isnan(had)], had[keep]
        if not len(log_p):
            continue
        for p in probabilities:
            needed = np.sort(samples_needed(log_p, p))
            match = float(needed[int(had.sum()) - 1]) if had.sum() else 1.0
            rows += [{**key, "n_sequences_count": len(log_p), "n_samples_count": float(n), "p_probability": float(p),
                      "extractable_fraction": float(np.mean(needed <= n)), "greedy_fraction": float(had.mean()),
                      "maximum_fraction": float(np.mean(log_p > -math.inf)), "samples_to_match_greedy_count": match} for n in samples]
    return panels.rows(rows, COLUMNS)
