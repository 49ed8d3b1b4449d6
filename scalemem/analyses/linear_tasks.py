"""Closed forms of forgetting when tasks of over-parameterised linear regression are learned one after another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from scalemem import tables as columns
from scalemem.analyses import panel as panels
from scalemem.spec import SpecError

if TYPE_CHECKING:
    import pyarrow as pa


def shared(tasks: int, similarity: float) -> np.ndarray:
    """||w_i - w_j||^2 of unit vectors with w_i w_j = similarity for every two tasks, [T, T].

    >>> shared(2, 0.25).tolist()
    [[0.0, 1.5], [1.5, 0.0]]
    """
    return 2 * (1 - similarity) * (1 - np.eye(tasks))


def expected_loss(p: int, n: int, noise: float, norms: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """E ||w_t - w*_i||^2 after t tasks, exact, [T, T]: row t - 1 after task t, column i - 1 of task i.

    Task t has X_t [p, n] of independent N(0, 1), y_t = X_t' w*_t + z_t with z_t ~ N(0, noise^2); w_0 = 0, and w_t is the nearest point to w_(t-1)
    with X_t' w = y_t, where gradient descent ends. With r = 1 - n/p

        E L_i(w_t) = r^t ||w*_i||^2 + (1 - r) sum_(k<=t) r^(t-k) ||w*_k - w*_i||^2 + p noise^2 / (p - n - 1) (1 - r^t).

    Args:
      p: weights; n: examples of a task, n + 1 < p.
      noise: standard deviation of z.
      norms: ||w*_i||^2 [T].
      distances: ||w*_i - w*_j||^2 [T, T].
    Raises:
      SpecError: p <= n + 1, where the noise has no finite expectation.

    >>> expected_loss(60, 20, 0.0, np.ones(2), shared(2, 1.0)).round(3).tolist()
    [[0.667, 0.667], [0.444, 0.444]]

    Source: Lin et al. 2023, Theory on forgetting and generalization of continual learning (ICML), shared/literature/forgetting.md 4.6, where it
    was derived again.
    """
    r, floor = _ratio(p, n), _floor(p, n, noise)
    t = np.arange(1, len(norms) + 1)
    old = np.tril(r ** np.maximum(t[:, None] - t[None, :], 0))  # [t, k], r^(t-k) for k <= t
    return r ** t[:, None] * norms + (1 - r) * old @ distances + floor * (1 - r ** t[:, None])


def expected_forgetting(p: int, n: int, noise: float, norms: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """The three terms of E F_T, F_T = mean over i < T of L_i(w_T) - L_i(w_i), [3]: of the norms, the distances and the noise; their sum is E F_T.

        E F_T = 1/(T-1) {sum_(i<T) (r^T - r^i) ||w*_i||^2 + sum_(i<j<=T) c_ij ||w*_i - w*_j||^2 + p noise^2/(p-n-1) sum_(i<T) (r^i - r^T)},
        c_ij = (1 - r) (r^(T-i) - r^(j-i) + r^(T-j))

    Args, raises and source: as of `expected_loss`. The first term is never positive: what is common to all tasks is learned on.

    >>> expected_forgetting(60, 20, 0.0, np.ones(2), shared(2, 1.0)).round(3).tolist()
    [-0.222, 0.0, 0.0]
    """
    tasks = len(norms)
    if tasks < 2:
        raise SpecError(f"norms: of {tasks} task; forgetting needs at least two; give ||w*_i||^2 of each")
    r, i = _ratio(p, n), np.arange(1, tasks + 1)
    later = i[None, :] > i[:, None]
    c = (1 - r) * (r ** (tasks - i[:, None]) - r ** np.maximum(i[None, :] - i[:, None], 0) + r ** (tasks - i[None, :]))
    fallen = (r**tasks - r**i)[:-1]
    return np.array([fallen @ norms[:-1], np.sum(np.where(later, c * distances, 0.0)), -_floor(p, n, noise) * fallen.sum()]) / (tasks - 1)


def expected_generalisation(p: int, n: int, noise: float, norms: np.ndarray, distances: np.ndarray) -> float:
    """E G_T = mean over all tasks i of E L_i(w_T); arguments as of `expected_loss`."""
    return float(expected_loss(p, n, noise, norms, distances)[-1].mean())


def _ratio(p: int, n: int) -> float:
    if not 1 <= n < p - 1:
        raise SpecError(f"n = {n}, p = {p}: must have 1 <= n < p - 1, or the noise has no finite expectation; lower n")
    return 1 - n / p


def _floor(p: int, n: int, noise: float) -> float:
    return p * noise**2 / (p - n - 1)


def analyse(tables: Mapping[str, pa.Table], *, table: str = "runs", where: str | None = None) -> pa.Table:
    """Simulated forgetting beside its closed form, for every run that measured `linear_tasks`.

    Args:
      tables: that of runs, with d_model (p), n_items (n) and the columns of `scalemem.measure.linear_tasks`.
      table, where: its name, and which of its rows.
    Returns:
      its rows with: params_per_item_ratio (p / n), forgetting_theory_ratio and generalisation_theory_ratio, in units of ||w*||^2;
      forgetting_noise_ratio, the part of the first that comes of noise; forgetting_difference_fraction and
      generalisation_difference_fraction = (simulated - theory) / scale, the scale of G being its theory, that of F the sum of the absolute
      values of its three terms, which may cancel; forgetting_error_fraction and generalisation_error_fraction, the Monte-Carlo standard
      errors on the same scales; forgetting_difference_errors_ratio and generalisation_difference_errors_ratio, the differences in
      standard errors; and inside_error, 1 where both are within 1.96.
    Raises:
      SpecError: p <= n + 1. RowsError: a missing number.
    """
    import pyarrow as pa

    found = panels.table_of(tables, table, where)
    names = ("d_model", "n_items", "tasks_count", "noise_ratio", "similarity_fraction")
    rows = []
    for p, n, tasks, noise, similarity in zip(*(columns.column(found, c) for c in names), strict=True):
        terms = expected_forgetting(int(p), int(n), noise, np.ones(int(tasks)), shared(int(tasks), similarity))
        overall = expected_generalisation(int(p), int(n), noise, np.ones(int(tasks)), shared(int(tasks), similarity))
        rows.append((float(p / n), float(terms.sum()), overall, float(terms[2]), float(np.abs(terms).sum())))
    ratio, forgotten, overall, noisy, scale = (np.array(v) for v in zip(*rows, strict=True))
    made = {"params_per_item_ratio": ratio, "forgetting_theory_ratio": forgotten, "generalisation_theory_ratio": overall,
            "forgetting_noise_ratio": noisy}
    for name, theory, size in (("forgetting", forgotten, scale), ("generalisation", overall, overall)):
        gap = columns.column(found, f"{name}_simulated_ratio") - theory
        error = columns.column(found, f"{name}_error_ratio", above=0)
        made |= {f"{name}_difference_fraction": gap / size, f"{name}_error_fraction": error / size, f"{name}_difference_errors_ratio": gap / error}
    z = np.maximum(*(np.abs(made[f"{name}_difference_errors_ratio"]) for name in ("forgetting", "generalisation")))
    made["inside_error"] = np.where(np.isnan(z), math.nan, z < 1.96)
    for name, values in made.items():
        found = found.append_column(name, pa.array(values))
    return found
