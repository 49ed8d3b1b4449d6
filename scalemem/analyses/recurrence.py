"""Facts that come back: what is kept of earlier ones when old ones recur by some law, and which interval between encounters keeps most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from scalemem import tables as columns
from scalemem.analyses import panel
from scalemem.tables import RowsError

if TYPE_CHECKING:
    import pyarrow as pa


def environment(tables: Mapping[str, pa.Table], *, table: str = "facts", value: str = "recalled", prefix: str = "stage") -> pa.Table:
    """What is kept of earlier phases after each phase, by the law of recurrence.

    Phase k is stage k, and the facts that it teaches are those of the source `stagek`. A row of `table` is a fact at a moment; the last moment of
    each stage counts.

    Args:
      tables: `table`, as the measure facts gives it, and `runs`, which say the law and the fraction that is replayed.
      value: what is averaged over facts; recalled gives a fraction.
      prefix: of the names of the sources.
    Returns:
      a row a run and phase k >= 1: seed, n_params, law (none where nothing is replayed), phases = k + 1, kept_fraction (mean over the facts of phases
      0 .. k - 1), oldest_fraction (of phase 0), learned_fraction (of phase k).
    Raises:
      SpecError: no such table; RowsError: a phase whose facts are not measured.
    """
    source, found = panel.table_of(tables, table), []
    about = panel.runs(tables)
    for key, rows in panel.by(source, ["run_id"]):
        run = about.get(key["run_id"])
        if run is None:
            continue
        stage, step, score = (panel.number(rows, name) for name in ("stage", "stage_step", value))
        names = np.asarray(columns.load(rows, "source"))
        for k in range(1, int(stage.max()) + 1):
            end = (stage == k) & (step == step[stage == k].max())
            means = {j: score[end & (names == f"{prefix}{j}")] for j in range(k + 1)}
            empty = [j for j, values in means.items() if not len(values)]
            if empty:
                raise RowsError(f"table {table!r}: no fact of source {prefix}{empty[0]} after stage {k}; measure facts at stages")
            replayed = run.get(f"stage{k}_replay_fraction") or 0.0
            found.append({"seed": run["seed"], "n_params": run["n_params"], "law": run[f"stage{k}_replay_law"] if replayed else "none",
                          "phases": k + 1, "kept_fraction": float(np.mean([means[j].mean() for j in range(k)])),
                          "oldest_fraction": float(means[0].mean()), "learned_fraction": float(means[k].mean())})
    if not found:
        raise RowsError(f"table {table!r}: no run with a second stage; run several phases")
    return panel.rows(found, tuple(found[0]))


def spacing(tables: Mapping[str, pa.Table], *, table: str = "facts", value: str = "memorization_nats", source: str = "inject1",
            stage: int = 2) -> pa.Table:
    """What is left of facts that were met a few times, by the steps between encounters, at each lag after the last one.

    Every run meets its facts as often, and the last time at the same step, the last of the stage before; so the lag is the steps of this stage.

    Args:
      tables: `table`, as the measure facts gives it, and `runs`.
      value: a code length, in nats.
      source: of the facts that were met; controls are the source `control`.
      stage: in which nothing is met.
    Returns:
      a row a run and moment: seed, n_params, interval_steps, times_count, lag_steps, kept_nats (mean of the controls less mean of the facts),
      recalled_fraction.
    Raises:
      SpecError: no such table; RowsError: no such rows.
    """
    met = panel.table_of(tables, table, f"stage == {stage}")
    about, found = panel.runs(tables), []
    for key, rows in panel.by(met, ["run_id", "stage_step"]):
        run = about.get(key["run_id"])
        if run is None:
            continue
        names, nats, right = np.asarray(columns.load(rows, "source")), panel.number(rows, value), panel.number(rows, "recalled")
        mine, others = names == source, names == "control"
        if not (mine.any() and others.any()):
            raise RowsError(f"table {table!r}: no fact of source {source if not mine.any() else 'control'}; correct the name")
        found.append({"seed": run["seed"], "n_params": run["n_params"], "interval_steps": float(run[f"stage{stage - 1}_inject_interval"]),
                      "times_count": int(run[f"stage{stage - 1}_inject_times"]), "lag_steps": int(key["stage_step"]),
                      "kept_nats": float(nats[others].mean() - nats[mine].mean()), "recalled_fraction": float(right[mine].mean())})
    return panel.rows(found, tuple(found[0]))


def best_interval(tables: Mapping[str, pa.Table], *, table: str = "spacing", value: str = "kept_nats") -> pa.Table:
    """The interval that keeps most at each lag, seed by seed, and whether it is neither the shortest nor the longest tried.

    Returns:
      seed, n_params, lag_steps, best_interval_steps, log_best_interval, interior (0 or 1), best_over_shortest_nats, best_over_longest_nats.
    Raises:
      SpecError: no such table; RowsError: fewer than 3 intervals.
    """
    source, found = panel.table_of(tables, table), []
    for key, rows in panel.by(source, ["seed", "n_params", "lag_steps"]):
        interval, kept = panel.number(rows, "interval_steps"), panel.number(rows, value)
        if len(interval) < 3:
            raise RowsError(f"table {table!r}: {len(interval)} intervals at lag {key['lag_steps']}; a best one needs at least 3; run more")
        order = np.argsort(interval)
        best = int(np.argmax(kept[order]))
        found.append({**key, "best_interval_steps": float(interval[order][best]), "log_best_interval": math.log(interval[order][best]),
                      "interior": int(0 < best < len(order) - 1), "best_over_shortest_nats": float(kept[order][best] - kept[order][0]),
                      "best_over_longest_nats": float(kept[order][best] - kept[order][-1])})
    return panel.rows(found, tuple(found[0]))


def lead(tables: Mapping[str, pa.Table], *, table: str = "environment", law: str = "power", others: str = "exponential") -> pa.Table:
    """By how much one law of recurrence keeps more than another, seed by seed and after each number of phases.

    Returns:
      seed, n_params, phases, lead_fraction (kept_fraction under `law` less under `others`), oldest_lead_fraction.
    Raises:
      SpecError: no such table; RowsError: no pair.
    """
    source, found = panel.table_of(tables, table), []
    rows: dict[tuple[Any, ...], dict[str, Any]] = {(r["seed"], r["n_params"], r["phases"], r["law"]): r for r in source.to_pylist()}
    for (seed, n, phases, name), row in rows.items():
        other = rows.get((seed, n, phases, others))
        if name == law and other:
            found.append({"seed": seed, "n_params": n, "phases": phases, "lead_fraction": row["kept_fraction"] - other["kept_fraction"],
                          "oldest_lead_fraction": row["oldest_fraction"] - other["oldest_fraction"]})
    if not found:
        raise RowsError(f"table {table!r}: no run of the law {law} beside one of {others}; run both")
    return panel.rows(found, tuple(found[0]))
