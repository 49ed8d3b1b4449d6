"""Where a search starts: random points, with the parameters in which a law is linear solved for."""

from __future__ import annotations

import numpy as np

from scalemem.laws.base import Arrays, Law

LEAST = 0.1  # what a term that must be positive is given at least: its share of y in the root mean square over rows


def project(law: Law, x: Arrays, y: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """theta (B, p) with its linear parameters at their least squares, relative to y on a log; positive ones at least LEAST of y.

    Those that fall below are put there and the rest solved again. Rows of theta where this cannot be done stay as they are.
    """
    if not law.linear:
        return theta
    index, batch, n = [law.names.index(k) for k in law.linear], len(theta), len(y)
    weight = 1 / np.abs(y) if law.scale == "log" else np.full(n, 1 / max(float(np.sqrt(np.mean(y * y))), 1e-300))
    with np.errstate(all="ignore"):
        given = {k: np.zeros((batch, 1)) if k in law.linear else v[:, None] for k, v in law.natural(theta).items()}
        offset = np.real(law.function(x, given)) * np.ones((batch, n))
        one = np.ones((batch, 1))
        basis = np.stack([(np.real(law.function(x, given | {k: one})) - offset) * weight for k in law.linear], axis=1)
        size = np.linalg.norm(basis, axis=2)
        basis, target = basis / size[:, :, None], (1 - offset / y if law.scale == "log" else (y - offset) * weight)
        usable = np.isfinite(basis).all(axis=(1, 2)) & (size > 0).all(axis=1) & np.isfinite(target).all(axis=1)
        basis[~usable], target[~usable], size[~usable] = 0.0, 0.0, 1.0
        gram, right = basis @ np.swapaxes(basis, 1, 2), (basis @ target[:, :, None])[:, :, 0]
        positive = np.array([law.parameters[j].log or law.parameters[j].low == 0 for j in index])
        held, least = np.zeros(size.shape, bool), LEAST * n**0.5
        for _ in range(len(index) + 1):
            g = np.where(held[:, :, None] | held[:, None, :], 0.0, gram) + np.where(held, 1.0, 1e-12)[:, :, None] * np.eye(len(index))
            rest = right - (gram @ np.where(held, least, 0.0)[:, :, None])[:, :, 0]
            solved = np.where(held, least, np.linalg.solve(g, rest[:, :, None])[:, :, 0])
            below = positive & ~held & (solved < least)
            if not below.any():
                break
            held |= below
        found = theta.copy()
        for i, j in enumerate(index):
            value = solved[:, i] / size[:, i]
            found[:, j] = np.log(np.maximum(value, 1e-300)) if law.parameters[j].log else value
    good = usable & np.isfinite(found).all(axis=1)
    return np.clip(np.where(good[:, None], found, theta), *law.bounds())


def scatter(law: Law, x: Arrays, y: np.ndarray, starts: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """n random starts (n, p), uniform over the box of the law's own starts widened by half its width on each side, then projected."""
    low, high = starts.min(axis=0), starts.max(axis=0)
    width = np.where(high > low, high - low, 1.0)
    drawn = np.random.default_rng(seed).uniform(low - width / 2, high + width / 2, (n, len(low)))
    return project(law, x, y, np.clip(drawn, *law.bounds()))
