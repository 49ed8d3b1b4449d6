"""Fine-tuning that stops where the target's held-out loss is least: what it has cost the old domain by then, and in which form replay helps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from scalemem import tables as columns
from scalemem.analyses import panel
from scalemem.tables import RowsError, TableError

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("run_id", "seed", "n_params", "unique_tokens", "replay_fraction", "base_loss_nats", "old_loss_nats", "increase_nats", "base_target_nats",
           "target_loss_nats", "stop_steps", "last_steps", "removed_fraction", "target_excess_fraction")


def analyse(tables: Mapping[str, pa.Table], *, table: str = "domains", old: int = 0, target: int = 1, stage: int = 1) -> pa.Table:
    """A row a run: both losses where the target's is least, and what replay has removed of the increase without it.

    increase_nats = old_loss_nats - base_loss_nats, at the early stop. removed_fraction = 1 - increase / increase of the run without replay of the
    same seed, size and data, NaN where that one forgot nothing; target_excess_fraction = target loss / target loss of that run - 1.

    Args:
      tables: the measure's table (run_id, seed, n_params, stage, stage_step, domain, loss_nats) and `runs`.
      old, target: domains: the one of before, and the one that is tuned on.
      stage: the stage of tuning.
    Returns:
      COLUMNS; unique_tokens are those of the stage's own items, each counted once.
    Raises:
      SpecError: no such table; RowsError: no such rows; TableError: a column that is not there.
    """
    import pyarrow as pa

    source = panel.table_of(tables, table, f"stage == {stage}")
    about = panel.runs(tables)
    found: list[dict[str, Any]] = []
    for key, rows in panel.by(source, ["run_id"]):
        run = about.get(key["run_id"])
        if run is None:
            continue
        curve = {d: _curve(rows, d) for d in (old, target)}
        if not (len(curve[old][0]) and len(curve[target][0])):
            raise RowsError(f"table {table!r}: no rows of domain {old if not len(curve[old][0]) else target}; measure it, or name another")
        steps, loss = curve[target]
        at = int(np.argmin(loss))
        base, now = float(curve[old][1][0]), float(curve[old][1][at])
        tokens = _known(run, f"stage{stage}_n_items") * _known(run, "seq_len")
        found.append({"run_id": key["run_id"], "seed": run["seed"], "n_params": run["n_params"], "unique_tokens": tokens,
                      "replay_fraction": run.get(f"stage{stage}_replay_fraction") or 0.0, "base_loss_nats": base, "old_loss_nats": now,
                      "increase_nats": now - base, "base_target_nats": float(loss[0]), "target_loss_nats": float(loss[at]),
                      "stop_steps": int(steps[at]), "last_steps": int(steps[-1])})
    without = {(r["seed"], r["n_params"], r["unique_tokens"]): r for r in found if r["replay_fraction"] == 0}
    for row in found:
        plain = without.get((row["seed"], row["n_params"], row["unique_tokens"]))
        known = plain is not None and plain["increase_nats"] > 0
        row["removed_fraction"] = 1 - row["increase_nats"] / plain["increase_nats"] if plain and known else math.nan
        row["target_excess_fraction"] = row["target_loss_nats"] / plain["target_loss_nats"] - 1 if plain else math.nan
    return pa.table({name: [row[name] for row in found] for name in COLUMNS})


def _known(run: Mapping[str, Any], name: str) -> float:
    if run.get(name) is None:
        raise TableError(f"runs: no column {name!r}; take runs of several stages")
    return float(run[name])


def _curve(rows: pa.Table, domain: int) -> tuple[np.ndarray, np.ndarray]:
    part = rows.filter(columns.mask(rows, f"domain == {domain}"))
    steps, loss = panel.number(part, "stage_step"), panel.number(part, "loss_nats")
    order = np.argsort(steps, kind="stable")
    return steps[order], loss[order]


def forms(tables: Mapping[str, pa.Table], *, table: str = "early_stop", where: str = "") -> pa.Table:
    """Which form replay takes: inside the size, (1 + B p) N, or as a term of its own; by AIC, seed by seed.

    coupled: increase = A D^beta ((1 + B p) N)^-alpha; additive: increase = A D^beta N^-alpha - C p, both of four parameters, fitted by least squares
    to the same rows. AIC = n log(RSS / n) + 2 k. aic_gain_nats = (AIC of additive - AIC of coupled) / 2: above 0 where the coupled form is better.

    Args:
      table: with seed, n_params, unique_tokens, replay_fraction, increase_nats.
      where: the rows to fit.
    Returns:
      seed, n_count, coupled_rmse_nats, additive_rmse_nats, aic_gain_nats.
    Source: the coupled law is Bethune et al. 2025 (arXiv 2502.06042) as transcribed in shared/literature/forgetting.md 1.2, which also asks for this
      comparison.
    """
    import pyarrow as pa

    source, found = panel.table_of(tables, table, where or None), []
    for key, rows in panel.by(source, ["seed"]):
        x = [panel.number(rows, name) for name in ("n_params", "unique_tokens", "replay_fraction")]
        y = panel.number(rows, "increase_nats")
        if len(y) < 6:
            raise RowsError(f"seed {key['seed']}: {len(y)} rows; two forms of four parameters need at least 6")
        rss = {name: _least(name, x, y) for name in ("coupled", "additive")}
        gain = 0.5 * len(y) * (math.log(rss["additive"]) - math.log(rss["coupled"]))
        found.append({"seed": key["seed"], "n_count": len(y), **{f"{name}_rmse_nats": math.sqrt(v / len(y)) for name, v in rss.items()},
                      "aic_gain_nats": gain})
    return pa.Table.from_pylist(found)


def _least(form: str, x: list[np.ndarray], y: np.ndarray) -> float:
    """The residual sum of squares of a form at its best, from several starts."""
    from scipy.optimize import least_squares

    n, d, p = x[0] / x[0].max(), x[1] / x[1].max(), x[2]

    def residual(t: np.ndarray) -> np.ndarray:
        alpha, beta, a = np.exp(t[:3])
        if form == "coupled":
            return a * d**beta * ((1 + np.exp(t[3]) * p) * n) ** -alpha - y
        return a * d**beta * n**-alpha - t[3] * p - y

    top = math.log(max(float(np.abs(y).max()), 1e-6))
    starts = [np.array([math.log(alpha), math.log(beta), top, last]) for alpha in (0.2, 0.8) for beta in (0.2, 0.8)
              for last in ((2.0, 5.0) if form == "coupled" else (0.0, 1.0))]
    lower = [math.log(1e-3), math.log(1e-3), top - 12, -3.0 if form == "coupled" else -1e3]
    upper = [math.log(4), math.log(4), top + 12, 12.0 if form == "coupled" else 1e3]
    return max(1e-300, min(2 * float(least_squares(residual, s, bounds=(lower, upper)).cost) for s in starts))
