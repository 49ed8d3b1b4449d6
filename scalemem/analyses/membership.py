"""Membership inference by every attack on the same runs, sequences and checkpoints: which of them tells members best, and by how much?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from scalemem.analyses import lira, roc
from scalemem.analyses import panel as panels
from scalemem.spec import SpecError
from scalemem.tables import RowsError

if TYPE_CHECKING:
    import pyarrow as pa

ATTACKS = ("loss", "zlib", "min_k", "min_kpp", "reference", "source_reference", "lira_offline", "lira_online")
EACH = ("run", "setting")
COLUMNS = ("attack", "shadows_count", *roc.RATES, "auc_gain", "tpr_gain_at_fpr_1pct", "placebo_auc")
READ = ("nats", "planted", "zlib_bits", "min_k_nats", "min_kpp_ratio", "source_nats")


def references(inside: np.ndarray) -> np.ndarray:
    """For each run and sequence the next run, in cyclic order, that left the sequence out, int [R, C]; -1 if no other run did.

    >>> references(np.array([[True], [True], [False]])).ravel().tolist()
    [2, 2, -1]
    """
    runs = len(inside)
    found = np.full(inside.shape, -1)
    for step in range(runs - 1, 0, -1):  # the nearest last, so that it stays
        other = (np.arange(runs) + step) % runs
        found = np.where(inside[other], found, other[:, None])
    return found


def scores(columns: Mapping[str, np.ndarray], inside: np.ndarray) -> dict[str, np.ndarray]:
    """The score of every attack, [R, C], higher is more likely a member; NaN where shadows are missing.

    loss: -nats. zlib: -nats / zlib_bits. min_k: -min_k_nats. min_kpp: min_kpp_ratio. reference: the nats of the next run that left the
    sequence out, less the run's own. source_reference: source_nats - nats. lira_offline, lira_online: `lira.scores` of -nats, pooled.

    Args:
      columns: matrices [R, C] of the names above.
      inside: bool [R, C], whether the run planted the sequence.
    """
    nats, next_out = columns["nats"], references(inside)
    other = np.where(next_out >= 0, np.take_along_axis(nats, np.maximum(next_out, 0), 0), math.nan)
    offline, online = (np.array(x) for x in zip(*(lira.scores(-nats, inside, r) for r in range(len(nats))), strict=True))
    return dict(zip(ATTACKS, (-nats, -nats / columns["zlib_bits"], -columns["min_k_nats"], columns["min_kpp_ratio"], other - nats,
                              columns["source_nats"] - nats, offline, online), strict=True))


def analyse(tables: Mapping[str, pa.Table], *, settings: Sequence[str] = (), each: str = "run", table: str = "likelihood",
            where: str | None = None) -> pa.Table:
    """AUC, F1 and true-positive rates of all attacks of `scores`, and what each gains over the loss on the same sequences.

    Args:
      tables: the per-sequence table of runs whose canaries are shared between seeds, with canaries.include below 1; "runs".
      settings: columns of the runs; those that agree on them and in size are each other's shadows and references.
      each: a row for each "run", or for each "setting", with the sequences of all its runs ranked together: what a rate of .1 % needs.
      table, where: the table and which of its rows; every checkpoint is a question of its own.
    Returns:
      a row for each size, setting, checkpoint, run (if so) and attack: n_params, the settings, exposures, seed, attack, shadows_count, the
      columns of `roc.evaluate`, auc_gain and tpr_gain_at_fpr_1pct (less those of the loss), and placebo_auc: the AUC where the members are
      those of the next run, so .5 but for chance. Sequences that some attack cannot score are left out of all.
    Raises:
      SpecError: an unknown table or `each`. RowsError: two runs of one seed, size and setting. TableError: a column that is none.

    Source: the attacks: `measure.attacks`, `lira`; the placebo and the paired gains: our own.
    """
    if each not in EACH:
        raise SpecError(f"analysis.each = {each!r}: must be one of {', '.join(EACH)}; choose one of these")
    keys, rows = ("n_params", *settings, "exposures"), []
    for key, part in panels.by(_with(panels.table_of(tables, table, where), tables["runs"], settings), keys):
        seeds, _, found = panels.grid(part, "seed", "canary", *READ)
        columns: dict[str, np.ndarray] = dict(zip(READ, found, strict=True))
        if np.isnan(columns["planted"]).any():
            raise RowsError(f"table {table!r}: the runs of {key} do not measure the same sequences; give the settings that they differ in")
        inside = columns["planted"] == 1
        made = scores(columns, inside)
        known = np.all([np.isfinite(x) for x in made.values()], axis=0)
        placebo = np.roll(inside, -1, axis=0)
        for seed, chosen in zip(seeds, np.eye(len(seeds), dtype=bool), strict=True) if each == "run" else ((None, np.ones(len(seeds), bool)),):
            keep = known & chosen[:, None]
            rates = {name: roc.evaluate(score[keep], inside[keep]) for name, score in made.items()}
            rows += [{**key, "seed": None if seed is None else int(seed), "attack": name, "shadows_count": len(seeds) - 1, **rates[name],
                      "auc_gain": rates[name]["auc"] - rates["loss"]["auc"],
                      "tpr_gain_at_fpr_1pct": rates[name]["tpr_at_fpr_1pct"] - rates["loss"]["tpr_at_fpr_1pct"],
                      "placebo_auc": roc.evaluate(score[keep], placebo[keep])["auc"]} for name, score in made.items()]
    return panels.rows(rows, (*keys, *(["seed"] if each == "run" else []), *COLUMNS))


def _with(table: pa.Table, runs: pa.Table, names: Sequence[str]) -> pa.Table:
    """A table with columns of the runs that its rows belong to."""
    for name in names:
        of_run = dict(zip(runs["run_id"].to_pylist(), panels.number(runs, name).tolist(), strict=True))
        kept = table.drop_columns([name]) if name in table.column_names else table
        table = kept.append_column(name, [[of_run.get(r, math.nan) for r in table["run_id"].to_pylist()]])
    return table
