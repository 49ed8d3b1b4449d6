"""The evidence for every member of every family under every misfit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scalemem.averaging.evidence import Linear, solve, truncate
from scalemem.averaging.rows import Rows
from scalemem.averaging.settings import Settings
from scalemem.averaging.shapes import Family


@dataclass
class Block:
    """Members with as many coefficients: their posteriors under k misfits, and each one's family and member number, (m,)."""

    linear: Linear
    family: np.ndarray
    member: np.ndarray


def weigh(rows: Rows, s: Settings, known: Sequence[Family], numbers: Sequence[int], first: Sequence[int]) -> list[Block]:
    """One batch of linear models for all families with as many columns.

    The evidence includes the prior of the coefficients: A is flat, each share of an asymptote's family is uniform between the least and
    the most that it can be of the level at the frontier, and a change without an asymptote is uniform over the level.

    Args:
      rows, s: the data and the priors.
      known: families, called `numbers`, whose members are counted from `first`.
    """
    whiten, half = _whitening(rows, s)
    target = whiten @ (rows.y / rows.scale)
    columns = [np.nan_to_num(f.columns(rows.z) / rows.scale[:, None], nan=0.0, posinf=0.0, neginf=0.0) for f in known]
    low, high = rows.asymptotes(s)
    blocks = []
    for q in sorted({len(c) for c in columns}):
        group = [i for i, c in enumerate(columns) if len(c) == q]
        design = np.concatenate([columns[i] for i in group], -1)
        found = solve(np.stack([whiten @ d for d in design]), target, half, (s.noise_dof, s.noise_sd))
        found.log_evidence = found.log_evidence - (q - 1) * math.log(rows.level)
        if q > 1 and rows.relative:
            share = np.concatenate([np.full((known[i].members, q - 1), np.nan) if (e := known[i].share) is None else e for i in group])
            bounded = np.all(np.isfinite(share), axis=1)
            truncate(found, np.concatenate([np.ones((len(share), 1)), -share], -1), low, high)
            size = np.log(np.maximum(np.abs(np.where(bounded[:, None], share, 1.0)), 1e-12)).sum(axis=1)
            found.log_evidence = found.log_evidence + np.where(bounded, size - math.log((high - low) / rows.level), 0.0)
        blocks.append(Block(found, np.concatenate([np.full(known[i].members, numbers[i]) for i in group]),
                            np.concatenate([first[i] + np.arange(known[i].members) for i in group])))
    return blocks


def _whitening(rows: Rows, s: Settings) -> tuple[np.ndarray, np.ndarray]:
    """The inverse Cholesky factors (k, n, n) of noise + misfit, and half their log determinants (k,)."""
    roots, half = [], []
    for m in rows.misfits(s):
        root = np.linalg.cholesky(m.covariance(rows.z) + np.diag(1 / rows.count))
        roots.append(np.linalg.inv(root))
        half.append(np.log(np.diag(root)).sum())
    return np.stack(roots), np.array(half)
