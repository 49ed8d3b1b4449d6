"""How much better leaked questions are answered than others of the same kind, and how that is lost in further training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from scalemem import tables as columns
from scalemem.analyses import panel as panels
from scalemem.analyses import weight_decay
from scalemem.spec import Stage, from_json
from scalemem.tables import RowsError

if TYPE_CHECKING:
    import pyarrow as pa

TOKENS_PER_PARAM = 20  # of a "Chinchilla" of tokens
COLUMNS = ("run_id", "seed", "n_params", "repeats_count", "train_tokens", "chinchillas_ratio", "later_weight_decay", "pool_items", "is_fresh",
           "stage", "stage_step", "later_tokens", "later_ratio", "leaked_count", "accuracy_gap_fraction", "loss_gap_nats", "first_loss_gap_nats",
           "loss_gap_left_fraction", "weight_left_fraction", "inside_envelope")


def analyse(tables: Mapping[str, pa.Table], *, table: str = "facts", leaked: str = "inject0", others: str = "control",
            where: str | None = None) -> pa.Table:
    """The gap between leaked facts and held-out ones of the same kind, at every moment from the end of the stage that leaks on.

    accuracy_gap_fraction is the mean of recognized_fraction (a choice between the fact's object and another, chance 1/2) of the leaked facts less
    that of the others, loss_gap_nats the mean memorization_nats of the others less that of the leaked. What is left of the loss gap since the
    leak ended is loss_gap_left_fraction, beside weight_left_fraction, the cumulative weight decay since then (`weight_decay.weight_left`).

    Args:
      tables: "runs" with specs of two stages or more, of which the first injects, and that of the measure `facts`.
      table, leaked, others: its name, and the sources that are compared.
      where: which rows of the result.
    Returns:
      a row for each run and moment: repeats_count of a leaked fact; train_tokens of the first stage, also as chinchillas_ratio = tokens /
      (20 n_params); later_weight_decay, and pool_items of the last stage, which is_fresh where it reads each item once; later_tokens since
      the leak, also as later_ratio of train_tokens; leaked_count facts; the gaps, and first_loss_gap_nats where the leak ended; and
      inside_envelope, 1 where loss_gap_left_fraction is at most weight_left_fraction.
    Raises:
      RowsError: a run without injection, or without one of the sources at some moment.

    Source: Bordt et al. 2025 (arXiv 2410.03249), shared/literature/forgetting.md 3: the envelope is empirical, no theorem about a loss.
    """
    specs = {row["run_id"]: (from_json(row["spec"]), row["n_params"])
             for row in tables["runs"].select(["run_id", "spec", "n_params"]).to_pylist()}
    rows = []
    for key, part in panels.by(panels.table_of(tables, table, f"source in ['{leaked}', '{others}']"), ["run_id"]):
        if key["run_id"] not in specs:
            continue
        (run, size), at = specs[key["run_id"]], _moments(part, leaked, others, key["run_id"])
        first, last = run.stages[0], run.stages[-1]
        if not first.inject:
            raise RowsError(f"run {key['run_id']}: its first stage injects nothing; leave it out with where, or give it stages[0].inject")
        log, begins = weight_decay.of_run(run)
        tokens = _steps(first) * first.batch_size * run.model.seq_len
        end = max(step for stage, step in at if stage == 0)
        start = at[0, end]
        for (stage, step), (count, accuracy, loss) in sorted(at.items()):
            if stage == 0 and step < end:
                continue
            left, weights = (loss / start[2] if start[2] > 0 else math.nan), float(np.exp(log[begins[stage] + step] - log[end]))
            later = 0 if stage == 0 else (begins[stage] - begins[1] + step) * last.batch_size * run.model.seq_len
            rows.append({"run_id": key["run_id"], "seed": run.seed, "n_params": size, "repeats_count": first.inject.times, "train_tokens": tokens,
                         "chinchillas_ratio": tokens / (TOKENS_PER_PARAM * size), "later_weight_decay": last.optimizer.weight_decay,
                         "pool_items": last.data.n_items, "is_fresh": float(last.exposures <= 1), "stage": stage, "stage_step": step,
                         "later_tokens": later, "later_ratio": later / tokens, "leaked_count": count, "accuracy_gap_fraction": accuracy,
                         "loss_gap_nats": loss, "first_loss_gap_nats": start[2], "loss_gap_left_fraction": left, "weight_left_fraction": weights,
                         "inside_envelope": float(left <= weights) if left == left else math.nan})
    if not rows:
        raise RowsError(f"table {table!r}: has no row of {leaked!r} of a run that is among the runs; measure facts at log")
    found, _ = columns.where(panels.rows(rows, COLUMNS), where)
    if found.num_rows == 0:
        raise RowsError(f"contamination: no row satisfies where = {where!r}; loosen it")
    return found


def against_fresh(tables: Mapping[str, pa.Table], *, table: str = "facts", leaked: str = "inject0", others: str = "control") -> pa.Table:
    """The gap of each run whose last stage repeats a pool, less that of the run that is the same but for fresh data, step by step.

    Args: as those of `analyse`.
    Returns: a row for each such pair and moment after the leak: seed, repeats_count, stage_step, later_ratio, accuracy_gap_fraction and
      fresh_accuracy_gap_fraction, and gap_over_fresh_fraction, their difference.
    Raises: RowsError: no pair.
    """
    rows = analyse(tables, table=table, leaked=leaked, others=others).to_pylist()
    same = ("seed", "n_params", "repeats_count", "train_tokens", "later_weight_decay", "stage", "stage_step")
    fresh = {tuple(r[k] for k in same): r["accuracy_gap_fraction"] for r in rows if r["is_fresh"]}
    found = [{**{k: r[k] for k in ("seed", "repeats_count", "stage_step", "later_ratio", "accuracy_gap_fraction")},
              "fresh_accuracy_gap_fraction": fresh[key], "gap_over_fresh_fraction": r["accuracy_gap_fraction"] - fresh[key]}
             for r in rows if not r["is_fresh"] and r["stage"] > 0 and (key := tuple(r[k] for k in same)) in fresh]
    if not found:
        raise RowsError("contamination: no run with a repeated pool has a run beside it that differs in fresh data alone; run both, with equal steps")
    return panels.rows(found, list(found[0]))


def _steps(stage: Stage) -> int:
    return stage.exposures * -(-stage.data.n_items // stage.batch_size)


def _moments(part: pa.Table, leaked: str, others: str, run_id: str) -> dict[tuple[int, int], tuple[int, float, float]]:
    """(stage, step) -> (leaked facts, accuracy gap, loss gap) of one run."""
    wanted = [("recognized_fraction", "mean"), ("memorization_nats", "mean"), ("fact", "count")]
    made = part.group_by(["stage", "stage_step", "source"]).aggregate(wanted)
    means = {(r["stage"], r["stage_step"], r["source"]): r for r in made.to_pylist()}
    found = {}
    for stage, step in sorted({key[:2] for key in means}):
        try:
            a, b = (means[stage, step, source] for source in (leaked, others))
        except KeyError as error:
            raise RowsError(f"run {run_id}, stage {stage}, step {step}: no fact of source {error.args[0][2]!r}; name a source that it has") from None
        found[int(stage), int(step)] = (a["fact_count"], a["recognized_fraction_mean"] - b["recognized_fraction_mean"],
                                        b["memorization_nats_mean"] - a["memorization_nats_mean"])
    return found
