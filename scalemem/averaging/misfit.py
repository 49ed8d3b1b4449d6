"""The misfit of a law: how far, and in what way, runs may lie off it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Misfit(NamedTuple):
    """A process in log x, its variance `rho` in units of the noise variance, and its prior probability.

    "walk" (a random walk) and "drift" (an integrated one: the slope walks) are tied to zero at the frontier, the largest fitted value of
    each predictor, with variance rho per unit of log x. "memory" stays as large everywhere and is forgotten over `length` of log x.
    A law that was seen to be wrong is trusted less ahead: of the fall that it predicts beyond the frontier, the share `damping` is
    taken away, give or take as much (of a rise nothing is taken, but the doubt stays).
    """

    kind: str
    rho: float
    prior: float
    damping: float = 0.0
    length: float = 1.0

    def covariance(self, z: np.ndarray, other: np.ndarray | None = None) -> np.ndarray:
        """rho sum_k c(z_ik, w_jk), (n, m), for log x below the frontier, z (n, d) <= 0 and `other` w (m, d), by default z.

        With s = min(-z_i, -w_j) and t = max(-z_i, -w_j): c = s for a walk, s^2 t / 2 - s^3 / 6 for its integral, and
        exp(-(t - s) / length) for a memory.
        """
        other = z if other is None else other
        total = np.zeros((len(z), len(other)))
        for s, t in zip(-z.T, -other.T, strict=True):
            near, far = np.minimum(s[:, None], t), np.maximum(s[:, None], t)
            if self.kind == "memory":
                total += np.exp((near - far) / self.length) / z.shape[1]
            else:
                total += near if self.kind == "walk" else near**2 * (far / 2 - near / 6)
        return self.rho * total

    def beyond(self, z: np.ndarray, forward: float) -> np.ndarray:
        """The variance (m,) at points z (m, d): the same process forwards from the frontier, `forward` times as fast."""
        ahead = np.maximum(z, 0.0)
        if self.kind == "memory":
            return np.full(len(z), self.rho)
        return forward * self.rho * np.sum(ahead if self.kind == "walk" else ahead**3 / 3, axis=1)
