"""Where the members of a family are drawn, what each stands for, and the weights of all components together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from scalemem.averaging.rows import Rows
from scalemem.averaging.settings import Settings
from scalemem.averaging.shapes import Family, normals
from scalemem.averaging.weighing import Block


@dataclass
class Search:
    """The points (m, p) of a family so far: those of its prior, then those drawn from normals (centre, root, count)."""

    points: np.ndarray
    normals: list[tuple[np.ndarray, np.ndarray, int]]

    @property
    def drawn_from_prior(self) -> int:
        """How many points are of the prior itself."""
        return len(self.points) - sum(k for _, _, k in self.normals)

    def zoom(self, weights: np.ndarray, share: float) -> np.ndarray:
        """Adds points where the weights (m,) lie, `share` of those of the prior, and gives them; none where there is no weight."""
        (m, p), total, k = self.points.shape, weights.sum(), round(share * self.drawn_from_prior)
        if not p or not k or not total > 1e-12:
            return np.zeros((0, p))
        centre = weights @ self.points / total
        off = self.points - centre
        spread = 1.3**2 * (off * weights[:, None]).T @ off / total + m ** (-2 / p) * np.eye(p)
        root = np.linalg.cholesky(spread)
        extra = centre + normals(k, p) @ root.T
        self.points = np.concatenate([self.points, extra])
        self.normals.append((centre, root, k))
        return extra

    def log_mass(self) -> np.ndarray:
        """The log prior mass of each point: prior over the mixture that all points were drawn from."""
        logs = [np.full(len(self.points), math.log(self.drawn_from_prior))]
        for centre, root, k in self.normals:
            inner = np.linalg.solve(root, (self.points - centre).T)
            over_prior = 0.5 * np.sum(self.points**2, axis=1) - 0.5 * np.sum(inner**2, axis=0) - np.log(np.diag(root)).sum()
            logs.append(math.log(k) + over_prior)
        return -np.logaddexp.reduce(logs, axis=0)


class Weighed(NamedTuple):
    """Weights of all components of all blocks, and each one's family, member and misfit."""

    weights: np.ndarray
    family: np.ndarray
    member: np.ndarray
    misfit: np.ndarray


def combine(rows: Rows, s: Settings, searches: list[Search], blocks: list[Block], known: list[Family]) -> Weighed:
    """The weights that evidence and priors give all components; shares of families are then shrunk towards their priors."""
    share = np.array([rows.families(s)[f.name] for f in known])
    share = share / share.sum()
    misfits = np.log([m.prior for m in rows.misfits(s)])
    start, mass = np.cumsum([0, *(len(p.points) for p in searches)]), np.concatenate([p.log_mass() for p in searches])
    logs = np.concatenate([(b.linear.log_evidence + (mass[start[b.family] + b.member] + np.log(share)[b.family]) + misfits[:, None]).ravel()
                           for b in blocks])
    family, member = (np.concatenate([np.tile(of, len(misfits)) for of in each])
                      for each in ([b.family for b in blocks], [b.member for b in blocks]))
    misfit = np.concatenate([np.repeat(np.arange(len(misfits)), len(b.family)) for b in blocks])
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    shares = np.bincount(family, weights, len(known))
    alive = shares > 1e-13
    shrinkage = s.shrinkage[rows.rising]
    wanted = (1 - shrinkage) * shares + shrinkage * np.where(alive, share, 0.0) / share[alive].sum()
    return Weighed(weights * np.where(alive, wanted / np.where(alive, shares, 1.0), 0.0)[family], family, member, misfit)
