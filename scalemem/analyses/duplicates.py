"""Counterfactual memorization of documents of which some are copies of each other, left out one by one: against the number of copies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from scalemem.analyses import counterfactual, roc
from scalemem.analyses import panel as panels

if TYPE_CHECKING:
    import pyarrow as pa

SAME = 1e-3  # nats: copies are scored alike in every run, up to rounding
COLUMNS = ("n_params", "canary", "content", "copies", "duplicates_count", "in_count", "out_count", "in_mean", "out_mean", "memorization",
           "self_influence", "twin_influence", "other_influence", "placebo", "extracted_rate", "memorization_spearman", "extraction_spearman")


def contents(nats: np.ndarray) -> np.ndarray:
    """Which content each sequence has, int [C]: the first sequence that all runs score alike, from scores [R runs, C].

    >>> contents(np.array([[1.0, 2.0, 1.0], [3.0, 3.0, 3.0]])).tolist()
    [0, 1, 0]
    """
    return np.array([int(np.argmax(np.abs(nats - column[:, None]).max(0) < SAME)) for column in nats.T])


def analyse(tables: Mapping[str, pa.Table], *, outcome: str = "top1_fraction", table: str = "likelihood", nats: str = "nats",
            extracted: str = "memorized_rate", extraction: str = "extraction", where: str | None = None) -> pa.Table:
    """mem(x) = infl(x -> x) of each document, with the number of documents of the same content, at the last checkpoint.

    Documents of one content are included independently: the others stay, by their own draws, when one is left out. What is extracted of a
    document is the share of the runs that include it in which it is.

    Args:
      tables: two per-sequence tables of runs whose canaries are shared between seeds, with canaries.include below 1.
      outcome: column of `table`, larger where better known (an accuracy).
      table, where: the table and which of its rows.
      nats: column of `table` by which copies are known: equal, within 1e-3, in every run.
      extracted, extraction: column of 0 or 1, and its table.
    Returns:
      a row for each size and document: content (the first document that has it), copies (of the document in a run that includes it),
      duplicates_count (documents of the content, itself too), in_ and out_count and _mean, memorization (by `counterfactual.analyse`),
      self_influence (by `counterfactual.effects`), twin_influence (mean of its influence on the others of its content; NaN if it has none),
      other_influence (root mean square of those on other contents), placebo (memorization, were each run to include what the next seed
      includes: 0 but for chance), extracted_rate; and, one number a size, Spearman's correlations of memorization and of extracted_rate with
      copies times duplicates.
    Raises:
      SpecError: an unknown table. TableError: a column that is none.

    Source: Zhang et al. 2021 (arXiv 2112.12938): memorization against the number of duplicates.
    """
    chosen = {"t": panels.table_of(tables, table, where), "x": panels.table_of(tables, extraction, where)}
    effect = {(r["n_params"], r["canary"]): r for r in counterfactual.analyse(tables, outcome=outcome, table=table, where=where).to_pylist()}
    other_table = dict((key["n_params"], part) for key, part in panels.by(panels.last(chosen["x"]), ["n_params"]))
    rows = []
    for key, part in panels.by(panels.last(chosen["t"]), ["n_params"]):
        _, canary, (y, planted, copies, code) = panels.grid(part, "seed", "canary", outcome, "planted", "copies", nats)
        hits = panels.grid(other_table[key["n_params"]], "seed", "canary", extracted)[2][0]
        inside, content = planted == 1, contents(code)
        placebo = np.diag(counterfactual.effects(y, np.roll(inside, -1, axis=0)))
        infl, rate, made = counterfactual.effects(y, inside), np.array([_mean(h[i]) for h, i in zip(hits.T, inside.T, strict=True)]), []
        for i in range(len(canary)):
            if (found := effect.get((key["n_params"], int(canary[i])))) is None:
                continue
            same = content == content[i]
            twins, others = infl[i, same & (np.arange(len(canary)) != i)], infl[i, ~same]
            made.append({
                **found, "content": int(canary[content[i]]), "copies": int(copies[:, i].max()), "duplicates_count": int(same.sum()),
                "self_influence": float(infl[i, i]), "twin_influence": _mean(twins), "other_influence": math.sqrt(_mean(others**2)),
                "placebo": float(placebo[i]), "extracted_rate": float(rate[i])})
        dose, memory, recall = (np.array([r[n] for r in made], float) for n in ("copies", "memorization", "extracted_rate"))
        dose = dose * np.array([r["duplicates_count"] for r in made])
        both = {"memorization_spearman": roc.correlation(dose, memory, ranks=True), "extraction_spearman": roc.correlation(dose, recall, ranks=True)}
        rows += [r | both for r in made]
    return panels.rows(rows, COLUMNS)


def _mean(x: np.ndarray) -> float:
    return float(np.mean(x)) if len(x) else math.nan
