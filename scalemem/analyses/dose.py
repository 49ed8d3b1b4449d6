"""How many canaries of a ladder of copies will a large model memorize? By the number of copies that it takes, which falls with size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from scalemem.analyses import panel as panels
from scalemem.analyses import which
from scalemem.analyses.panel import Panel
from scalemem.spec import SpecError
from scalemem.tables import RowsError

if TYPE_CHECKING:
    import pyarrow as pa

BEND = (0.1, 0.12)  # prior mean and sd of the bend of the threshold's log in log size: what falls to a floor bends upwards
DRIFT = 0.08  # sd of the change of the bend beyond the largest model known
MISFIT = 0.05  # sd of what a parabola leaves of a size's threshold, in log copies
WIDTH, WIDTH_WEIGHT = 0.4, 2.0  # prior of the width, in log copies, and the canaries that it counts as
SEED_SD = 0.3  # prior of the differences between the thresholds of seeds
COLUMNS = ("seed", "target_n_params", "predictor_n_params", "n_count", "forecast_count", "low_count", "high_count", "threshold_copies_count",
           "low_threshold_count", "high_threshold_count", "memorized_count", "inside", "sizes_count", "extrapolation_ratio")


class Dose(NamedTuple):
    """P(memorized) = 1 / (1 + exp(-(log copies - middle) / width)) of each size, all its seeds together."""

    middle: np.ndarray  # [K], log of the copies that half of the canaries need; NaN where the ladder does not show it
    width: np.ndarray  # [K]
    error: np.ndarray  # [K], standard error of the middle


def analyse(tables: Mapping[str, pa.Table], *, memorized: str, table: str = "extraction", where: str = "planted", targets: Sequence[float] = (),
            sizes: Sequence[float] = (), interval: float = 0.9, least: float = 5) -> pa.Table:
    """The number of planted canaries that a fully trained target memorizes, from the copies that smaller models need.

    A canary of c copies is memorized by size N with probability sigmoid((log c - m(N)) / s(N)), fitted to each size (`fit`). The thresholds of all
    sizes up to N_k are a parabola in x = log(N / N_k),

        m = a + b x + kappa x^2,    kappa ~ N(BEND),    errors: those of the fits, and MISFIT,

    a least-squares problem with a prior. At h = log(N_t / N_k) the forecast has the variance of a + b h + kappa h^2, of MISFIT and of
    (DRIFT h^2): the bend may change. The interval of the count is that of m, by t with a degree of freedom a size, and the binomial noise of
    the canaries, added as squares. The width is that of size k.

    Args:
      tables: the per-sequence table.
      memorized: column of true/false, or of a score that is 1 where memorized.
      table, where: the table and which of its rows; the last checkpoint of each run is read.
      targets: parameter counts, fully trained; default the largest.
      sizes: parameter counts of the largest model known; default all below the target.
      interval: probability of the interval.
      least: a size is used where its seeds memorize so many canaries together, and as many are left.
    Returns:
      a row for each seed, target and predictor that has a usable smaller size; `inside` is 1 where the truth is in the interval,
      `threshold_copies_count` the forecast e^m, with `low_` and `high_`.
    Raises:
      SpecError: an unknown table or size, or an interval outside (0, 1). RowsError: all canaries have the same copies.

    Source: derived; that what is extracted grows with the log of the copies is Carlini et al. 2022 (arXiv 2202.07646).
    """
    from scipy.special import expit, ndtri, stdtrit

    if not 0 < interval < 1:
        raise SpecError(f"analysis.interval = {interval!r}: must be between 0 and 1; write 0.9")
    ends = panels.last(panels.table_of(tables, table, where))
    panel = Panel.of(ends, memorized, memorized)
    if np.ptp(panel.log_copies[~np.isnan(panel.log_copies)]) == 0:
        raise RowsError("copies: the same for all canaries; a threshold needs a ladder of copies; plant groups of different copies")
    known = fit(panel, least)
    rows = []
    for t, k, _ in which.questions(panel, targets, sizes, ()):
        made = forecast(panel, known, k, t)
        if made is None:
            continue
        middle, sd, dof = made
        reach = float(stdtrit(dof, (1 + interval) / 2)) * sd
        for r, seed in enumerate(panel.seeds):
            had = panel.memorized[r, :, t, panel.final]
            on = ~np.isnan(had)
            if not on.any():
                continue
            p, low, high = (expit((_log(panel)[r, on] - m) / known.width[k]) for m in (middle, middle + reach, middle - reach))
            noise = float(ndtri((1 + interval) / 2)) * math.sqrt(float(np.sum(p * (1 - p))))
            centre, truth, n = float(p.sum()), int(had[on].sum()), int(on.sum())
            below = max(0, math.floor(centre - math.hypot(centre - low.sum(), noise)))
            above = min(n, math.ceil(centre + math.hypot(high.sum() - centre, noise)))
            rows.append({"seed": int(seed), "target_n_params": int(panel.sizes[t]), "predictor_n_params": int(panel.sizes[k]), "n_count": n,
                         "forecast_count": centre, "low_count": below, "high_count": above, "threshold_copies_count": math.exp(middle),
                         "low_threshold_count": math.exp(middle - reach), "high_threshold_count": math.exp(middle + reach),
                         "memorized_count": truth, "inside": float(below <= truth <= above), "sizes_count": dof,
                         "extrapolation_ratio": float(panel.sizes[t] / panel.sizes[k])})
    return panels.rows(rows, COLUMNS)


def thresholds(tables: Mapping[str, pa.Table], *, memorized: str, table: str = "extraction", where: str = "planted", least: float = 5) -> pa.Table:
    """The copies that half of the canaries need to be memorized, by size, at the end of training.

    Args: as those of `analyse`.
    Returns: a row for each size: n_params, threshold_copies_count, low_ and high_threshold_count (a standard error apart times 1.64), the width
      in log copies, NaN where the ladder of copies does not show it, and memorized_fraction.
    """
    panel = Panel.of(panels.last(panels.table_of(tables, table, where)), memorized, memorized)
    known = fit(panel, least)
    share = np.nanmean(panel.memorized[:, :, :, panel.final], (0, 1))
    return panels.rows([{"n_params": int(n), "threshold_copies_count": math.exp(m), "low_threshold_count": math.exp(m - 1.64 * e),
                         "high_threshold_count": math.exp(m + 1.64 * e), "width_ratio": float(w), "memorized_fraction": float(f)}
                        for n, m, w, e, f in zip(panel.sizes, known.middle, known.width, known.error, share, strict=True)],
                       ("n_params", "threshold_copies_count", "low_threshold_count", "high_threshold_count", "width_ratio", "memorized_fraction"))


def _log(panel: Panel) -> np.ndarray:
    return np.log(np.maximum(np.expm1(panel.log_copies), 1e-9))


def fit(panel: Panel, least: float) -> Dose:
    """The threshold of each size, with a shift a seed, by penalised maximum likelihood.

    NaN where fewer than `least` canaries show it, or where it lies outside the ladder of copies.
    """
    from scipy.optimize import minimize
    from scipy.special import expit, log_expit

    log_copies = _log(panel)
    middle, width, error = (np.full(len(panel.sizes), math.nan) for _ in range(3))
    for k in range(len(panel.sizes)):
        had = panel.memorized[:, :, k, panel.final]
        seed, canary = np.nonzero(~np.isnan(had))
        x, y = log_copies[seed, canary], had[seed, canary] == 1
        if min(y.sum(), (~y).sum()) < least:
            continue
        which_seed = np.unique(seed, return_inverse=True)[1]

        def loss(theta: np.ndarray, x: np.ndarray = x, y: np.ndarray = y, of: np.ndarray = which_seed) -> float:
            z = (x - theta[0] - theta[2:][of]) / math.exp(theta[1])
            return float(0.5 * WIDTH_WEIGHT * (theta[1] - math.log(WIDTH)) ** 2 + 0.5 * np.sum((theta[2:] / SEED_SD) ** 2)
                         - np.sum(log_expit(np.where(y, z, -z))))

        start = np.sort(x)[len(x) - int(y.sum())]
        found = minimize(loss, np.r_[start, math.log(WIDTH), np.zeros(which_seed.max() + 1)], method="L-BFGS-B").x
        if x.min() <= found[0] <= x.max():
            middle[k], width[k] = found[0], math.exp(found[1])
            p = expit((x - found[0] - found[2:][which_seed]) / width[k])
            spread = found[2:].var(ddof=1) / len(found[2:]) if len(found) > 3 else 0.0
            error[k] = math.sqrt(width[k] ** 2 / float(np.sum(p * (1 - p))) + spread)
    return Dose(middle, width, error)


def forecast(panel: Panel, known: Dose, k: int, t: int) -> tuple[float, float, int] | None:
    """(threshold of size t, its sd, sizes that it is from), those up to k; None where k or all below it show no threshold."""
    shown = [j for j in range(k + 1) if not math.isnan(known.middle[j])]
    if len(shown) < 2 or shown[-1] != k:
        return None
    x, h = np.log(panel.sizes[shown] / panel.sizes[k]), math.log(panel.sizes[t] / panel.sizes[k])
    precision = 1 / (known.error[shown] ** 2 + MISFIT**2)
    design = np.stack([np.ones_like(x), x, x**2], 1)
    prior = np.diag([0.0, 0.0, 1 / BEND[1] ** 2])
    covariance = np.linalg.inv((design * precision[:, None]).T @ design + prior)
    mean = covariance @ (design.T @ (precision * known.middle[shown]) + prior @ [0.0, 0.0, BEND[0]])
    at = np.array([1.0, h, h**2])
    return float(at @ mean), math.sqrt(float(at @ covariance @ at) + MISFIT**2 + (DRIFT * h**2) ** 2), len(shown)
