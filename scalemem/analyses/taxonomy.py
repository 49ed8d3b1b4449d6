"""Recitation, reconstruction, recollection: whether three models of what is memorized are better than one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from scalemem import tables as columns
from scalemem.analyses import logistic, roc
from scalemem.analyses import panel as panels
from scalemem.spec import SpecError

if TYPE_CHECKING:
    import pyarrow as pa

CLASSES = ("recitation", "reconstruction", "recollection")
COLUMNS = ("n_params", "class", "model", "train_count", "test_count", "share_fraction", "memorized_share_fraction", "memorized_fraction",
           "auc", "average_precision", "precision", "recall", "f1", "ece_fraction")
BINS = 5  # of confidence, for the calibration error


def label(duplicates: np.ndarray, templating: np.ndarray, threshold: float = 6) -> np.ndarray:
    """The class of each sequence: recitation if duplicates >= threshold, else reconstruction if it follows a template, else recollection.

    >>> label(np.array([6, 1, 1]), np.array([True, True, False])).tolist()
    ['recitation', 'reconstruction', 'recollection']

    Source: Prashanth et al. 2024 (arXiv 2406.17746), the rules in this order and the threshold of more than 5.
    """
    return np.where(duplicates >= threshold, CLASSES[0], np.where(templating, CLASSES[1], CLASSES[2]))


def calibration_error(probability: np.ndarray, truth: np.ndarray) -> float:
    """Expected calibration error: sum_b n_b / n |accuracy - confidence| over 5 equal bins of the confidence max(p, 1 - p) in [1/2, 1].

    >>> calibration_error(np.array([0.9, 0.9]), np.array([True, False]))
    0.4
    """
    confidence, right = np.maximum(probability, 1 - probability), (probability >= 0.5) == truth
    bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    gap = np.bincount(bins, right, BINS) - np.bincount(bins, confidence, BINS)
    return float(np.abs(gap).sum()) / len(truth) if len(truth) else math.nan


def analyse(tables: Mapping[str, pa.Table], *, memorized: str, features: Sequence[str], table: str = "extraction", where: str = "planted",
            duplicates: str = "copies", threshold: float = 6, templating: str = "false", test_fraction: float = 0.2,
            split: int = 1024) -> pa.Table:
    """Held-out quality of one logistic regression of memorized on features, against one for each class of `label`.

    Regressions have standardised features, a ridge of 1 on their coefficients and classes weighted to equal sums. All runs of a size are
    pooled; a random part of the sequences (seed, canary) is held out.

    Args:
      tables: the per-sequence table, at the last checkpoints.
      memorized: column of true/false, or of a score that is 1 where memorized.
      features: columns of numbers.
      table, where: the table and which of its rows.
      duplicates, threshold: column of how often a sequence is in the data, and from how many it is recited.
      templating: expression that is true where a sequence follows a template.
      test_fraction: held out, in (0, 1).
      split: seed of the split.
    Returns:
      a row for each size, class ("all" of them, or one) and model (pooled, or taxonomic: of each class its own; of a class without
      training rows the pooled one), on the same held-out sequences. `share_fraction` is the class's of all, `memorized_share_fraction` of
      the memorized.
    Raises:
      SpecError: an unknown table, no features, a fraction out of range. TableError: a column that is none.

    Source: Prashanth et al. 2024 (arXiv 2406.17746), classes, regressions and metrics.
    """
    if not features:
        raise SpecError("analysis.features = []: must name at least one column; name those that may matter")
    if not 0 < test_fraction < 1:
        raise SpecError(f"analysis.test_fraction = {test_fraction!r}: must be above 0 and below 1; write 0.2")
    rows = []
    for key, part in panels.by(panels.last(panels.table_of(tables, table, where)), ["n_params"]):
        had, x = panels.truth(part, memorized), np.stack([panels.number(part, f) for f in features], -1)
        kind = label(panels.number(part, duplicates), columns.mask(part, templating), threshold)
        keep = ~np.isnan(had) & ~np.isnan(x).any(-1)
        had, x, kind = had[keep] == 1, x[keep], kind[keep]
        test = np.random.default_rng(split).random(len(had)) < test_fraction
        if test.all():
            continue
        pooled = logistic.fit(x[~test], had[~test], balanced=True)
        own = {c: logistic.fit(x[use], had[use], balanced=True) if (use := ~test & (kind == c)).any() else pooled for c in CLASSES}
        p = {"pooled": pooled.probability(x), "taxonomic": np.select([kind == c for c in CLASSES], [own[c].probability(x) for c in CLASSES])}
        for name in ("all", *CLASSES):
            inside = np.ones(len(had), bool) if name == "all" else kind == name
            held = test & inside
            for model, found in p.items():
                rows.append({**key, "class": name, "model": model, "train_count": int(np.sum(inside & ~test)), "test_count": int(held.sum()),
                             "share_fraction": float(inside.mean()),
                             "memorized_share_fraction": float(np.sum(inside & had) / had.sum()) if had.any() else math.nan,
                             "memorized_fraction": float(had[inside].mean()) if inside.any() else math.nan,
                             "auc": roc.evaluate(found[held], had[held])["auc"], "average_precision": roc.average_precision(found[held], had[held]),
                             **roc.agreement(found[held] >= 0.5, had[held]), "ece_fraction": calibration_error(found[held], had[held])})
    return panels.rows(rows, COLUMNS)
