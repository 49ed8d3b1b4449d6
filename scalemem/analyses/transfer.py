"""From what small or early models know of a sequence to the probability that a larger or later one memorizes it.

A map is learned among the runs that are known: from checkpoint f of size j to the end of size j' (j < j'; j = j' where the question is
about the end of a run that has begun). It is then applied to checkpoint f of size k, to forecast the end of size t. What is known at
(k, f) are all sizes below k to their end, and size k up to f: `visible` blanks all else, so that a forecast cannot see its target.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from scalemem.analyses import logistic
from scalemem.analyses.panel import Panel

KNOTS = (0.5, 0.8)  # quantiles at which the effect of the value may bend
PENALTY = 3.0  # of standardised coefficients: a few sequences' worth of shrinkage


def visible(panel: Panel, k: int, f: int) -> Panel:
    """The panel as it is known when size k has been trained to checkpoint f and all smaller ones to their end."""
    hidden = np.zeros((len(panel.sizes), len(panel.fractions)), bool)
    hidden[k + 1 :] = True
    hidden[k, f + 1 :] = True
    return panel._replace(value=np.where(hidden, math.nan, panel.value), memorized=np.where(hidden, math.nan, panel.memorized))


def pairs(panel: Panel, k: int, f: int, t: int) -> list[tuple[int, int]]:
    """The (predictor, target) sizes from which a map for size k at checkpoint f to size t can be learned."""
    ended = k if f == panel.final else k - 1  # the last size whose end is known
    if t == k:
        return [(j, j) for j in range(ended + 1)]
    return [(j, to) for j in range(ended + 1) for to in range(j + 1, ended + 1)]


class Map(NamedTuple):
    """A pooled logistic regression on what is known of a sequence."""

    regression: logistic.Logistic
    knots: np.ndarray  # of the value
    previous: bool  # the next smaller size is used, too
    distance: bool  # the effect of the factor in size was learned

    def probability(self, panel: Panel, k: int, f: int, t: int) -> np.ndarray:
        """P(size t memorizes it at the end), [R, C]; NaN where a feature is."""
        return self.regression.probability(self._features(panel, k, f, t))

    def _features(self, panel: Panel, k: int, f: int, t: int) -> np.ndarray:
        x, h = panel.value[:, :, k, f], math.log(panel.sizes[t] / panel.sizes[k])
        seen = panel.seen[:, :, f]
        found = [x, *(np.maximum(x - knot, 0) for knot in self.knots), panel.memorized[:, :, k, f], panel.log_copies, panel.position,
                 seen, seen * x]
        if self.previous:
            below, gap = panel.value[:, :, k - 1, f], math.log(panel.sizes[k] / panel.sizes[k - 1])
            found.append((x - below) / gap * (h or 1.0))  # the sequence's own trend, continued
            if f < panel.final:
                found.append(panel.value[:, :, k - 1, panel.final])
        if self.distance:
            found += [np.full(x.shape, h), h * x]
        return np.stack(found, -1)


def learn(panel: Panel, k: int, f: int, t: int) -> Map | None:
    """The map from size k at checkpoint f to the end of size t, learned from smaller sizes only.

    Features of a sequence: the value, bent at two quantiles, and whether it is memorized already; log(1 + copies); its place in the first
    epoch and whether it was seen by then; where there are two sizes to learn from, its own trend in log size continued to the target
    and, for an early checkpoint, its value at the end of the next smaller size; log of the factor in size where that varies.

    Args:
      panel: of which only what `visible` leaves is used.
      k, f: size and checkpoint of the predictor, as indices.
      t: size of the target, at least k.
    Returns:
      None where no smaller size can teach it.
    """
    panel = visible(panel, k, f)
    available = pairs(panel, k, f, t)
    previous = k > 0 and any(j > 0 for j, _ in available)
    available = [(j, to) for j, to in available if j > 0 or not previous]
    if not available:
        return None
    x = np.concatenate([panel.value[:, :, j, f].ravel() for j, _ in available])
    if np.isnan(x).all():
        return None
    steps = {round(math.log(panel.sizes[to] / panel.sizes[j]), 1) for j, to in available}
    shape = Map(logistic.Logistic(0.0, *np.zeros((3, 0))), np.unique(np.nanquantile(x, KNOTS)), previous, len(steps) > 1)
    features = np.concatenate([(made := shape._features(panel, j, f, to)).reshape(-1, made.shape[-1]) for j, to in available])
    outcome = np.concatenate([panel.memorized[:, :, to, panel.final].ravel() for _, to in available])
    keep = ~np.isnan(outcome) & ~np.isnan(features).any(-1)
    return shape._replace(regression=logistic.fit(features[keep], outcome[keep], PENALTY)) if keep.any() else None
