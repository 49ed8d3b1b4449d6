"""The rows of one group, sorted, with their replicates; and the covariance that replicates share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scalemem.laws.base import Arrays, Law


@dataclass(frozen=True)
class Sample:
    """x and y of n runs, y on the law's scale as `eta`, sorted so that runs of equal x, and replicates among them, lie together."""

    x: dict[str, np.ndarray]
    y: np.ndarray
    eta: np.ndarray
    blocks: np.ndarray  # first row of each distinct x, whose runs share their misfit
    sets: np.ndarray  # first row of each set of replicates
    trials: np.ndarray | None = None  # of which y succeeded

    @classmethod
    def of(cls, law: Law, x: Arrays, y: np.ndarray, also: Sequence[np.ndarray] = (),
           trials: np.ndarray | None = None) -> Sample:
        """Sorts the rows, so that their order changes nothing, not even rounding; replicates are rows of equal x and equal `also`."""
        keys = [x[k] for k in law.predictors]
        order = np.lexsort((*([] if trials is None else [trials]), y, *reversed([*keys, *also])))

        def firsts(columns: Sequence[np.ndarray]) -> np.ndarray:
            change = np.zeros(len(y), bool)
            change[:1] = True
            for c in columns:
                change[1:] |= c[order][1:] != c[order][:-1]
            return np.flatnonzero(change)

        rows = {k: x[k][order] for k in law.predictors} | {"1": np.ones(len(y))}
        return cls(rows, y[order], law.on_scale(y[order]), firsts(keys), firsts([*keys, *also]),
                   None if trials is None else trials[order])

    def __len__(self) -> int:
        return len(self.y)

    @staticmethod
    def _means(r: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sizes = np.diff(np.append(starts, r.shape[-1]))
        return np.add.reduceat(r, starts, axis=-1) / sizes, sizes

    def pure_error(self) -> tuple[float, int]:
        """Sum of squares of replicates about their means and its degrees of freedom; (0, 0) where all replicates are exact copies."""
        means, sizes = self._means(self.eta, self.sets)
        ss = float(np.sum((self.eta - np.repeat(means, sizes)) ** 2))
        return (ss, len(self) - len(self.sets)) if ss > 1e-26 * float(np.sum(self.eta**2)) else (0.0, 0)

    def copies(self) -> int:
        """How many rows repeat another one's x and y exactly."""
        same = np.ones(max(len(self) - 1, 0), bool)
        same[self.sets[1:] - 1] = False
        return int(np.sum(same & (np.diff(self.y) == 0)))

    def whiten(self, r: np.ndarray, ratio: float) -> np.ndarray:
        """W r along the last axis, where W'W is the inverse of I + ratio Z Z' and Z marks the rows of equal x.

        In a block of m rows W = I - (1 - (1 + m ratio)^-1/2) 11'/m.
        """
        if ratio == 0:
            return r
        means, sizes = self._means(r, self.blocks)
        return r - np.repeat((1 - 1 / np.sqrt(1 + sizes * ratio)) * means, sizes, axis=-1)
