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
BEND_WEIGHT = 4.0  # back-tests that the prior counts as
WIDTH, WIDTH_WEIGHT = 0.4, 2.0  # prior of the width, in log copies, and the canaries that it counts as
SEED_SD = 0.3  # prior of the differences between the thresholds of seeds
COLUMNS = ("seed", "target_n_params", "predictor_n_params", "n_count", "forecast_count", "low_count", "high_count", "threshold_copies_count",
           "low_threshold_count", "high_threshold_count", "memorized_count", "inside", "backtests_count", "extrapolation_ratio")


class Dose(NamedTuple):
    """P(memorized) = 1 / (1 + exp(-(log copies - middle) / width)) of each size, all its seeds together."""

    middle: np.ndarray  # [K], log of the copies that half of the canaries need; NaN where the ladder does not show it
    width: np.ndarray  # [K]
    error: np.ndarray  # [K], standard error of the middle


def analyse(tables: Mapping[str, pa.Table], *, memorized: str, table: str = "extraction", where: str = "planted", targets: Sequence[float] = (),
            sizes: Sequence[float] = (), interval: float = 0.9, least: float = 5) -> pa.Table:
    """The number of planted canaries that a fully trained target memorizes, from the copies that smaller models need.

    A canary of c copies is memorized by size N with probability sigmoid((log c - m(N)) / s(N)), fitted to each size (`fit`). With h =
    log(N_t / N_k), gap = log(N_k / N_(k-1)) and b the slope between these two sizes,

        m(N_t) = m(N_k) + b h + kappa u,    u = h (h + gap),

    exact for a parabola of curvature 2 kappa. A back-test is what the line misses of a size at or below k from the two below it, over its u;
    kappa and its variance are those of J back-tests e and of a prior that counts as W of them:

        kappa = (W k0 + sum e) / (W + J),    sd^2 = (W s0^2 + sum (e - kappa)^2) / (W + J) (1 + 1 / (W + J)),    nu = W + J.

    The interval of the count is that of m (t_nu, with the standard errors of the two middles) and the binomial noise of the canaries, added
    as squares. The width is that of size k.

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
                         "memorized_count": truth, "inside": float(below <= truth <= above), "backtests_count": int(dof - BEND_WEIGHT),
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


def forecast(panel: Panel, known: Dose, k: int, t: int) -> tuple[float, float, float] | None:
    """(threshold of size t, its sd, degrees of freedom) from the sizes up to k; None where k or all below it show no threshold."""
    shown = [j for j in range(k + 1) if not math.isnan(known.middle[j])]
    if len(shown) < 2 or shown[-1] != k:
        return None
    bends = [(known.middle[to] - _line(panel, known, before, here, to)) / _bend(panel, before, here, to)
             for before, here, to in zip(shown, shown[1:], shown[2:], strict=False)]
    weight = BEND_WEIGHT + len(bends)
    kappa = (BEND_WEIGHT * BEND[0] + sum(bends)) / weight
    variance = (BEND_WEIGHT * BEND[1] ** 2 + sum((e - kappa) ** 2 for e in bends)) / weight * (1 + 1 / weight)
    before, u = shown[-2], _bend(panel, shown[-2], k, t)
    lever = math.log(panel.sizes[t] / panel.sizes[k]) / math.log(panel.sizes[k] / panel.sizes[before])
    noise = (known.error[k] * (1 + lever)) ** 2 + (known.error[before] * lever) ** 2
    return _line(panel, known, before, k, t) + kappa * u, math.sqrt(variance * u**2 + noise), weight


def _line(panel: Panel, known: Dose, before: int, here: int, to: int) -> float:
    slope = (known.middle[here] - known.middle[before]) / math.log(panel.sizes[here] / panel.sizes[before])
    return float(known.middle[here] + slope * math.log(panel.sizes[to] / panel.sizes[here]))


def _bend(panel: Panel, before: int, here: int, to: int) -> float:
    h = math.log(panel.sizes[to] / panel.sizes[here])
    return h * (h + math.log(panel.sizes[here] / panel.sizes[before]))
