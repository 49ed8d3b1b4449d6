"""How many sequences will a large model memorize? A forecast with an interval, and whether the truth lies inside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from scalemem.analyses import panel as panels
from scalemem.analyses import transfer, which
from scalemem.analyses.panel import Panel
from scalemem.spec import SpecError

if TYPE_CHECKING:
    import pyarrow as pa

PRIOR_SD = 0.2  # of the bend of a logit in log size, per unit of h (h + gap), or of a logit for later checkpoints; it counts as one back-test
COLUMNS = ("seed", "target_n_params", "predictor_n_params", "predictor_fraction", "predictor_exposures", "n_count", "forecast_count",
           "low_count", "high_count", "map_count", "law_count", "backtests_count", "memorized_count", "inside")


def analyse(tables: Mapping[str, pa.Table], *, value: str, memorized: str, table: str = "extraction", where: str = "planted",
            targets: Sequence[float] = (), sizes: Sequence[float] = (), fractions: Sequence[float] = (), interval: float = 0.9) -> pa.Table:
    """The number of sequences that a fully trained target memorizes, forecast from what is known at each predictor.

    Two forecasts of the logit L of the memorized fraction (s + 1/2) / (n + 1) are averaged, by the inverse of their mean squares in the
    back-tests below: of the sum of the probabilities of
    `transfer.learn`; and of a law, L_t = L_k + b h with h = log(n_t / n_k) and b the slope between size k and the next smaller one, mean over
    seeds (for an early checkpoint plus what the next smaller size gained from there to its end, mean over seeds). The interval is

        L +- t_nu(interval) u sqrt(m^2 + w^2 (1 - 1/R)),   u = h (h + gap), the error that a bend makes, or 1 for h = 0

    from the errors e / u of the same forecast of every size whose end is known from the sizes below it: leave a size out, forwards. m^2 is
    the mean square over sizes of their mean over R seeds, with PRIOR_SD^2 as one more, w^2 the variance between seeds, and nu
    Satterthwaite's degrees of freedom.

    Args:
      tables, value, memorized, table, where, targets, sizes, fractions: as in `which.analyse`.
      interval: probability of the interval.
    Returns:
      a row for each seed, target and predictor that has a smaller size below it; `map_count` is NaN where there is no map.
    Raises:
      SpecError: an unknown table, size or fraction, or an interval outside (0, 1). TableError: a column that is none.

    Source: derived.
    """
    from scipy.special import expit, stdtrit

    if not 0 < interval < 1:
        raise SpecError(f"analysis.interval = {interval!r}: must be between 0 and 1; write 0.9")
    panel = Panel.of(panels.table_of(tables, table, where), value, memorized)
    rows = []
    for t, k, f in which.questions(panel, targets, sizes, fractions):
        if k == 0:
            continue
        both, (weight, sd, dof, tests) = forecast(panel, k, f, t), spread(panel, k, f, t)
        centre = average(both, weight)
        half = float(stdtrit(dof, (1 + interval) / 2)) * sd
        for r, seed in enumerate(panel.seeds):
            known = panel.known((k, f), (t, panel.final))[r]
            n = int(known.sum())
            if n == 0 or math.isnan(centre[r]):
                continue

            def number(logit: float, n: int = n) -> float:
                return float(np.clip(expit(logit) * (n + 1) - 0.5, 0, n))

            low, high = math.floor(number(centre[r] - half)), math.ceil(number(centre[r] + half))
            truth = int(panel.memorized[r, known, t, panel.final].sum())
            rows.append({
                "seed": int(seed), "target_n_params": int(panel.sizes[t]), "predictor_n_params": int(panel.sizes[k]),
                "predictor_fraction": float(panel.fractions[f]), "predictor_exposures": float(panel.exposures[k, f]), "n_count": n,
                "forecast_count": number(centre[r]), "low_count": low, "high_count": high, "map_count": number(both[0, r]),
                "law_count": number(both[1, r]), "backtests_count": tests, "memorized_count": truth, "inside": low <= truth <= high})
    return panels.rows(rows, COLUMNS)


def logits(panel: Panel, k: int, f: int) -> np.ndarray:
    """Logit of the memorized fraction of each seed, kept from infinity by half a sequence, [R]; NaN where nothing was measured."""
    had = panel.memorized[:, :, k, f]
    n, s = np.sum(~np.isnan(had), 1), np.nansum(had, 1)
    return np.where(n > 0, np.log((s + 0.5) / (n - s + 0.5)), math.nan)


def forecast(panel: Panel, k: int, f: int, t: int) -> np.ndarray:
    """Logits of the fraction that size t memorizes, by the map and by the law, [2, R]; from what is known at (k, f), k > 0."""
    panel = transfer.visible(panel, k, f)
    here, below = logits(panel, k, f), logits(panel, k - 1, f)
    h, gap = math.log(panel.sizes[t] / panel.sizes[k]), math.log(panel.sizes[k] / panel.sizes[k - 1])
    law = here + h * _mean((here - below) / gap)
    if f < panel.final:
        law = law + _mean(logits(panel, k - 1, panel.final) - below)
    found, mapped = transfer.learn(panel, k, f, t), np.full(len(panel.seeds), math.nan)
    if found is not None:
        p = found.probability(panel, k, f, t)
        n, s = np.sum(~np.isnan(p), 1), np.nansum(p, 1)
        mapped = np.where(n > 0, np.log((s + 0.5) / (n - s + 0.5)), math.nan)
    return np.stack([mapped, law])


def average(both: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The weighted mean of map and law, [2, R] -> [R]; the law alone where there is no map."""
    return np.where(np.isnan(both[0]), both[1], weight @ np.where(np.isnan(both), 0.0, both))


def spread(panel: Panel, k: int, f: int, t: int) -> tuple[np.ndarray, float, float, int]:
    """(weights of map and law [2], sd of the forecast's logit, its degrees of freedom, sizes it was tested on), by back-tests at (k, f)."""
    panel = transfer.visible(panel, k, f)
    h = math.log(panel.sizes[t] / panel.sizes[k])
    origins: dict[int, int] = {}  # a size whose end is known -> the one to forecast it from
    for j, to in transfer.pairs(panel, k, f, t):
        asked = math.log(panel.sizes[to] / panel.sizes[j])
        if j > 0 and (to not in origins or abs(asked - h) < abs(math.log(panel.sizes[to] / panel.sizes[origins[to]]) - h)):
            origins[to] = j
    errors = [(logits(panel, to, panel.final) - forecast(panel, j, f, to)) / _scale(panel, j, to) for to, j in origins.items()]
    errors = [e for e in (e[:, ~np.isnan(e[1])] for e in errors) if e.size]
    tested = [[float(np.mean(e[i] ** 2)) for e in errors if not np.isnan(e[i]).any()] for i in range(2)]
    risk = [float(np.mean([PRIOR_SD**2, *squares])) for squares in (tested[0] or tested[1], tested[1])]  # an untested map is no better than the law
    weight = np.array(risk[::-1]) / sum(risk)
    squares, within, seeds = [PRIOR_SD**2], 0.0, [e.shape[1] for e in errors]
    for error in (average(e, weight) for e in errors):
        squares.append(float(error.mean()) ** 2)
        within += float(np.sum((error - error.mean()) ** 2))
    shared, free = float(np.mean(squares)), sum(seeds) - len(seeds)
    noise = within / free * (1 - len(seeds) / sum(seeds)) if free else 0.0
    dof = (shared + noise) ** 2 / (shared**2 / len(squares) + (noise**2 / free if free else 0.0))
    return weight, _scale(panel, k, t) * math.sqrt(shared + noise), dof, len(seeds)


def _scale(panel: Panel, k: int, t: int) -> float:
    h = math.log(panel.sizes[t] / panel.sizes[k])
    return h * (h + math.log(panel.sizes[k] / panel.sizes[k - 1])) if t > k else 1.0


def _mean(x: np.ndarray) -> float:
    return float(np.mean(x[~np.isnan(x)])) if not np.isnan(x).all() else math.nan
