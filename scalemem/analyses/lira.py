"""Likelihood-ratio membership inference: a run against the other seeds, some of which planted the same canary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from scalemem.analyses import panel as panels
from scalemem.analyses import roc
from scalemem.spec import SpecError

if TYPE_CHECKING:
    import pyarrow as pa

ATTACKS = ("score", "lira_offline", "lira_online")
COLUMNS = ("seed", "n_params", "attack", "shadows_count", "n_members_count", "n_others_count", "auc", "auc_se", "f1", "f1_best",
           "tpr_at_fpr_1pct", "tpr_at_fpr_0p1pct")
VARIANCES = ("pooled", "own")


def scores(phi: np.ndarray, inside: np.ndarray, target: int, variance: str = "pooled") -> tuple[np.ndarray, np.ndarray]:
    """(offline, online) scores of every canary in one run, from the other runs as its shadows; higher is more likely a member.

    offline = (phi - mu_out) / s_out, of which the p-value is a monotone function; online = log N(phi; mu_in, s_in) - log N(phi; mu_out, s_out).

    Args:
      phi: score of a canary in a run, [R, C], higher where better known; near-normal over runs (a logit, or minus nats).
      inside: bool [R, C], whether the run planted it.
      target: which run is attacked.
      variance: pooled, one s_in and one s_out for all canaries, or own, one for each; which needs shadows by the dozen.
    Returns:
      [C] each, NaN where shadows are missing: one in and one out of a canary, two each for `own`.

    Source: Carlini et al. 2022, Membership inference attacks from first principles (from memory, unverified).
    """
    others = np.arange(len(phi)) != target
    x, moments = phi[target], []
    for mask in (inside[others], ~inside[others]):
        values = np.where(mask, phi[others], 0.0)
        n = mask.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(n > 0, values.sum(0) / n, np.nan)
            squares = np.sum(np.where(mask, phi[others] - mean, 0.0) ** 2, 0)
            own = np.where(n > 1, squares / (n - 1), np.nan)
            s2 = own if variance == "own" else np.full(len(n), np.nansum(squares) / np.maximum(n - 1, 0).sum())
        moments.append((mean, np.where(s2 > 0, s2, np.nan)))
    (mu_in, v_in), (mu_out, v_out) = moments
    online = ((x - mu_out) ** 2 / v_out - (x - mu_in) ** 2 / v_in + np.log(v_out / v_in)) / 2
    return (x - mu_out) / np.sqrt(v_out), online


def analyse(tables: Mapping[str, pa.Table], *, score: str, table: str = "likelihood", where: str | None = None,
            variance: str = "pooled") -> pa.Table:
    """How well the plain score and LiRA tell the canaries that a run planted from those that it left out, with all other seeds as shadows.

    Args:
      tables: the per-sequence table of runs whose canaries are shared between seeds, with canaries.include below 1.
      score: column, higher where better known, near-normal over runs; at the last checkpoint.
      table, where: the table and which of its rows; canaries without a shadow of each kind are left out of all three attacks.
      variance: as in `scores`.
    Returns:
      a row for each run and attack, with the columns of `roc.evaluate`.
    Raises:
      SpecError: an unknown table or variance. TableError: a column that is none.
    """
    if variance not in VARIANCES:
        raise SpecError(f"analysis.variance = {variance!r}: must be one of {', '.join(VARIANCES)}; choose one of these")
    rows = []
    for key, part in panels.by(panels.last(panels.table_of(tables, table, where)), ["n_params"]):
        seeds, _, (phi, planted) = panels.grid(part, "seed", "canary", score, "planted")
        complete = ~np.isnan(phi).any(0)
        phi, inside = phi[:, complete], planted[:, complete] == 1
        for r, seed in enumerate(seeds):
            offline, online = scores(phi, inside, r, variance)
            keep = np.isfinite(offline) & np.isfinite(online)
            for attack, found in zip(ATTACKS, (phi[r], offline, online), strict=True):
                rows.append({"seed": int(seed), **key, "attack": attack, "shadows_count": len(seeds) - 1,
                             **roc.evaluate(found[keep], inside[r, keep])})
    return panels.rows(rows, COLUMNS)
