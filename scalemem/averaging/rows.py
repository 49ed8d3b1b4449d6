"""The rows of a curve or grid as the average sees them: below the frontier, sorted, thinned, and scaled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from scalemem.averaging.misfit import Misfit
from scalemem.averaging.settings import Settings

MOST = 48  # rows of one predictor beyond which neighbours are averaged


@dataclass(frozen=True)
class Rows:
    """z (n, d) <= 0, log x below the frontier, which is log x at the largest fitted value of each predictor; y (n,) and how many runs each
    row stands for. Noise is relative to y where all y are positive, else absolute; `level` is the size of y at the frontier."""

    names: tuple[str, ...]
    frontier: np.ndarray
    z: np.ndarray
    y: np.ndarray
    count: np.ndarray
    relative: bool
    level: float
    rising: bool

    @classmethod
    def of(cls, x: Mapping[str, np.ndarray], y: np.ndarray) -> Rows:
        """Sorts the rows, so that their order changes nothing, merges copies, and averages neighbours over equal steps of log x where there
        are many. Rows of equal x and y, to the last digit, are one row that stands for all: as replicates they would say that runs have no noise."""
        names = tuple(x)
        logs = np.log(np.stack([np.asarray(x[k], float) for k in names], -1))
        order = np.lexsort((y, *logs.T[::-1]))
        logs, y = logs[order], np.asarray(y, float)[order]
        new = np.ones(len(y), bool)
        new[1:] = np.any(np.diff(logs, axis=0) != 0, axis=1) | (np.diff(y) != 0)
        times = np.diff(np.append(np.flatnonzero(new), len(y))).astype(float)
        logs, y = logs[new], y[new]
        frontier, relative = logs.max(axis=0), bool(np.all(y > 0))
        z, y, count = _thin(logs - frontier, y, times, relative)
        third = max(len(y) // 3, 1)
        if relative:
            level = float(y[-1]) if len(names) == 1 else float(np.exp(np.mean(np.log(y))))
        else:
            level = float(np.median(np.abs(y)) or np.abs(y).max() or 1.0)
        return cls(names, frontier, z, y, count, relative, level, bool(np.mean(y[-third:]) > np.mean(y[:third])))

    @property
    def far(self) -> np.ndarray:
        """How far the rows reach back, (d,) < 0."""
        return np.minimum(self.z.min(axis=0), -1e-9)

    @property
    def scale(self) -> np.ndarray:
        """What y is divided by so that all runs have the same noise, (n,)."""
        return self.y if self.relative else np.full(len(self.y), self.level)

    def below(self, x: Mapping[str, np.ndarray]) -> np.ndarray:
        """Points {predictor: (m,)} as z, (m, d)."""
        return np.log(np.stack([np.asarray(x[k], float) for k in self.names], -1)) - self.frontier

    def families(self, s: Settings) -> Mapping[str, float]:
        """The prior weights of the families that these rows may follow."""
        return s.weights(len(self.names), self.rising)

    def misfits(self, s: Settings) -> tuple[Misfit, ...]:
        """The misfits that are averaged over."""
        return s.one if len(self.names) == 1 else s.many

    def asymptotes(self, s: Settings) -> tuple[float, float]:
        """Where an asymptote may lie: between zero and the level, or above it for one predictor that raises y."""
        return (self.level, s.highest * self.level) if self.rising and len(self.names) == 1 else (0.0, self.level)


def _thin(z: np.ndarray, y: np.ndarray, times: np.ndarray, relative: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if z.shape[1] > 1 or len(z) <= MOST:
        return z, y, times
    cell = np.minimum(((z[:, 0] - z[0, 0]) / max(-z[0, 0], 1e-300) * MOST).astype(int), MOST - 1)
    count = np.bincount(cell, times, MOST)
    full = count > 0
    value = np.bincount(cell, times * (np.log(y) if relative else y), MOST)[full] / count[full]
    return (np.bincount(cell, times * z[:, 0], MOST)[full] / count[full])[:, None], np.exp(value) if relative else value, count[full]
