"""Approach 2: the optimum from isoFLOP groups, a parabola in log N for each and a power law through their minima. It is biased.

A parabola is symmetric about its minimum. The loss along N D = constant is not: with u = log(N / N_opt) it is a constant plus a multiple of

    exp(-alpha u) / alpha + exp(beta u) / beta,

which leans where alpha != beta and has even terms beyond the second where it does not. A least-squares parabola then puts its minimum off
u = 0, the more so the wider and the further off centre the sizes of a group are. `lean` gives by how much, without noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scalemem import tables
from scalemem.allocation import FACTOR, Allocation, check
from scalemem.laws.posterior import Estimate
from scalemem.tables import TableError, TooFewRows

if TYPE_CHECKING:
    import pyarrow as pa

PLANTED = (0.34731, 0.36718)  # alpha and beta of Chinchilla's runs, shared/benchmarks/README.md: what the bias is measured with
DRAWS, FAILED, LACK_OF_FIT = 2000, 0.05, 0.1  # bootstrap refits; the share that may have no minimum; p-value below which minima scatter
OWN = 6  # degrees of freedom from which a group's own residuals are enough; those with fewer share theirs


@dataclass(frozen=True)
class _Group:
    """An isoFLOP group: log C, log N (n,), loss (n,), and its least-squares parabola."""

    log_c: float
    log_n: np.ndarray
    loss: np.ndarray
    fitted: np.ndarray
    solve: np.ndarray  # (3, n), of a loss the parabola's coefficients about the mean of log N
    residual: np.ndarray  # adjusted for leverage; only where rows exceed coefficients

    @classmethod
    def of(cls, log_c: float, log_n: np.ndarray, loss: np.ndarray) -> _Group:
        basis = np.vander(log_n - log_n.mean(), 3)
        solve = np.linalg.pinv(basis)
        leverage = np.einsum("ij,ji->i", basis, solve)
        fitted = basis @ (solve @ loss)
        spare = len(loss) > 3
        adjusted = (loss - fitted) / np.sqrt(np.maximum(1 - leverage, 1e-9)) if spare else np.zeros(0)
        return cls(log_c, log_n, loss, fitted, solve, adjusted[leverage < 1 - 1e-6] if spare else adjusted)

    def minimum(self, loss: np.ndarray, inside: bool = True) -> np.ndarray:
        """log N of the least loss for losses (..., n): NaN where the parabola has no minimum or, unless told so, not between the sizes."""
        c, b, _ = np.moveaxis(loss @ self.solve.T, -1, 0)
        with np.errstate(all="ignore"):
            at = np.where(c > 1e-12 * np.abs(loss).max(axis=-1), -b / (2 * c), math.nan) + self.log_n.mean()
        return np.where((at >= self.log_n.min()) & (at <= self.log_n.max()) | (not inside), at, math.nan)


def lean(log_n: Sequence[float] | np.ndarray, alpha: float = PLANTED[0], beta: float = PLANTED[1]) -> float:
    """How far a parabola's minimum lies from that of a noise-free law, in log N.

    Args:
      log_n: log(N / N_opt) of a group's sizes.
      alpha, beta: exponents of L = E + A N^-alpha + B D^-beta; E, A and B do not matter.

    Measured, in N, on nine sizes that span a factor of 64: on a centred grid -5.2 % with alpha = .3 and beta = .4, none with equal exponents
    and -1.1 % with Chinchilla's; on one whose middle is four times the optimum +11.9 %, +7.7 % and +8.8 %.

    >>> grid = math.log(64) * np.linspace(-0.5, 0.5, 9)
    >>> [round(100 * math.expm1(lean(grid + math.log(c), a, b)), 1) + 0.0 for c in (1, 4) for a, b in ((0.3, 0.4), (0.35, 0.35), PLANTED)]
    [-5.2, 0.0, -1.1, 11.9, 7.7, 8.8]
    """
    u = np.asarray(log_n, float)
    loss = np.exp(-alpha * u) / alpha + np.exp(beta * u) / beta
    return float(_Group.of(0.0, u, loss).minimum(loss))


def allocate(table: pa.Table, budget: float, *, y: str, x: Mapping[str, str], keep: np.ndarray | None = None, interval: float = 0.9,
             factor: float = FACTOR, within: float = 1.05, budgets: Sequence[float] | None = None,
             planted: tuple[float, float] = PLANTED) -> Allocation:
    """The optimum at a budget by Approach 2, with bootstrap intervals and its bias on this grid.

    In each group L = c (log N)^2 + b log N + a is fitted by least squares; N_opt = exp(-b / 2c). Through the minima goes
    log N_opt = k + a log C, and D = C / (factor N). The bootstrap redraws the losses from the parabolas with residuals, of the group where
    it has nine rows and else pooled, adjusted for leverage and multiplied by sqrt(dof / chi^2_dof); where minima scatter about the power law
    by more than that (p < 0.1) the intervals are widened by the ratio.

    Args:
      table: of runs.
      budget: training compute C in FLOP.
      y, x: columns: the loss, and {"n_params": N and "train_flops": C or "n_tokens": D}, from which C = factor N D.
      keep: (rows,) booleans: rows to use.
      interval: probability of the intervals, in (0, 1).
      factor: of C = factor N D; 6 by convention.
      within: runs whose compute agrees to this factor, one after the other in order of size, are a group.
      budgets: the groups' nominal compute; runs further than `within` from each are left out. Default: groups are where runs are.
      planted: (alpha, beta) that the bias is measured with.
    Returns:
      estimates; `groups` {compute, n_rows, n_params of the minimum, reason if it has none}; `bias` {n_params: N found / N true, ...} on
      noise-free losses of a law with the planted exponents whose optimum is at each group's minimum, with the same sizes. Nothing is
      corrected for it.
    Raises:
      TableError: a column or option that is none. RowsError: a value that cannot be. TooFewRows: fewer than two groups have a minimum.

    >>> import pyarrow as pa
    >>> runs = [(c, n, 1.8 + 400 * n**-0.35 + 400 * (c / 6 / n)**-0.35) for c in (6e18, 6e19, 6e20)
    ...         for n in np.sqrt(c / 6) * np.array([0.2, 0.5, 1, 2, 5])]
    >>> t = pa.Table.from_pylist([dict(zip("CNL", row)) for row in runs])
    >>> found = allocate(t, 6e21, y="L", x={"n_params": "N", "train_flops": "C"})
    >>> f"{found.estimates['n_params'].value:.4g}, truly {1e21**0.5:.4g}"
    '3.162e+10, truly 3.162e+10'

    Hoffmann et al. 2022 (arXiv 2203.15556), Approach 2.
    """
    check(budget, interval, factor)
    if not 1 < within < 1e6:
        raise TableError(f"within = {within!r}: must be a factor above 1; write 1.05")
    if budgets is not None and not all(0 < b < 1e60 for b in budgets):
        raise TableError(f"budgets = {list(budgets)}: must be positive numbers; write 1e19,1e20,1e21")
    keep = np.ones(table.num_rows, bool) if keep is None else keep
    loss = tables.column(table, y, keep=keep)
    columns = {k: tables.column(table, c, above=0.0, keep=keep, why=f" ({k})") for k, c in x.items()}
    with np.errstate(all="ignore"):
        log_n = np.log(columns["n_params"])
        log_c = np.log(columns["train_flops"]) if "train_flops" in columns else math.log(factor) + log_n + np.log(columns["n_tokens"])
    labels = _labels(log_c, within, budgets)
    found, shown = [], []
    for label in range(labels.max(initial=-1) + 1):
        rows, middle = labels == label, math.nan
        if not rows.any():
            continue
        group, reason = None, f"{len(np.unique(log_n[rows]))} sizes: needs at least 3"
        if len(np.unique(log_n[rows])) >= 3:
            group = _Group.of(float(log_c[rows].mean()), log_n[rows], loss[rows])
            middle, reason = float(group.minimum(group.loss)), "no minimum between its sizes"
        if group is not None and not math.isnan(middle):
            found.append(group)
        shown.append({"compute": math.exp(log_c[rows].mean()), "n_rows": int(rows.sum()), "n_params": math.exp(middle)}
                     | ({"reason": reason} if math.isnan(middle) else {}))
    if len(found) < 2:
        why = "; ".join(f"C = {g['compute']:.3g}: {g['reason']}" for g in shown if "reason" in g)
        raise TooFewRows(f"approach 2: {len(found)} of {len(shown)} isoFLOP groups have a minimum: needs at least 2"
                         f"{f' ({why[:300]})' if why else ''}; widen the groups with a larger factor, or add runs")
    notes = [f"{int((labels < 0).sum())} runs are not within {within:g} times a nominal budget: left out"] * bool((labels < 0).any())
    notes += [f"group C = {g['compute']:.3g} is left out: {g['reason']}" for g in shown if "reason" in g]
    at = math.log(budget)
    (a, n), draws, said = _line(found, at)
    status = "ok" if len(draws) else f"not identified: {said}"
    if status == "ok":
        notes += [said] * bool(said)
        ends = np.quantile(draws, [(1 - interval) / 2, (1 + interval) / 2], axis=0)  # of (exponent, log N)
    else:
        a, n, ends = math.nan, math.nan, np.full((2, 2), math.nan)
    log_nd = at - math.log(factor)

    def estimate(value: float, low: float, high: float) -> Estimate:
        return Estimate(*(math.exp(min(max(v, -700.0), 700.0)) if math.isfinite(v) else v for v in (value, low, high)), "1", status)  # type: ignore

    estimates = {"n_params": estimate(n, ends[0, 1], ends[1, 1]), "n_tokens": estimate(log_nd - n, log_nd - ends[1, 1], log_nd - ends[0, 1]),
                 "tokens_per_param": estimate(log_nd - 2 * n, log_nd - 2 * ends[1, 1], log_nd - 2 * ends[0, 1]),
                 "exponent_n_params": Estimate(a, ends[0, 0], ends[1, 0], "1", status),
                 "exponent_n_tokens": Estimate(1 - a, 1 - ends[1, 0], 1 - ends[0, 0], "1", status)}
    beyond = math.exp(max(at - max(g.log_c for g in found), min(g.log_c for g in found) - at, 0.0))
    bias = _bias(found, at, *planted)
    notes.append(f"approach 2 is biased (parabolas in log N are symmetric, the loss is not, and sizes are off centre): without noise, with "
                 f"alpha = {planted[0]:g} and beta = {planted[1]:g}, it gives {bias['n_params']:.3g} times the optimal N on these sizes and at this "
                 "budget; nothing is corrected for it")
    return Allocation(budget, factor, "2", interval, estimates, beyond, tuple(notes), tuple(shown), bias)


def _labels(log_c: np.ndarray, within: float, budgets: Sequence[float] | None) -> np.ndarray:
    """The group of each run from 0, in order of compute; -1 for none."""
    step = math.log(within)
    if budgets is not None:
        nominal = np.sort(np.log(np.array(budgets, float)))
        nearest = np.abs(log_c[:, None] - nominal).argmin(axis=1)
        return np.where(np.abs(log_c - nominal[nearest]) <= step * (1 + 1e-9), nearest, -1)
    order = np.argsort(log_c)
    labels = np.zeros(len(log_c), int)
    labels[order[1:]] = np.cumsum(np.diff(log_c[order]) > step * (1 + 1e-9))
    return labels


def _line(found: list[_Group], at: float) -> tuple[tuple[float, float], np.ndarray, str]:
    """Exponent and log N at a log budget; bootstrap draws of both (m, 2), none, and why, where they cannot be had; a note."""
    from scipy.special import chdtrc

    log_c = np.array([g.log_c for g in found])
    minima = np.array([g.minimum(g.loss) for g in found])
    off = log_c - log_c.mean()
    slope = off / (off @ off)
    read = np.stack([slope, 1 / len(found) + (at - log_c.mean()) * slope], axis=-1)  # (groups, 2): of minima, exponent and log N
    best = minima @ read
    dof = sum(max(len(g.loss) - 3, 0) for g in found)
    none = np.zeros((0, 2))
    if dof < 1:
        return (best[0], best[1]), none, "no group has more rows than a parabola has coefficients, so no scatter is seen: add a fourth size"
    rng, small = np.random.default_rng(0), [g for g in found if len(g.loss) - 3 < OWN]
    shared = sum(max(len(g.loss) - 3, 0) for g in small)
    if small and shared < OWN:
        small, shared = found, dof
    pool = np.concatenate([g.residual for g in small]) if small else np.zeros(1)
    wide = np.sqrt(shared / rng.chisquare(shared, DRAWS))[:, None] if small else np.ones((DRAWS, 1))

    def redrawn(g: _Group) -> np.ndarray:
        own = len(g.loss) - 3
        if own < OWN:
            return rng.choice(pool - pool.mean(), (DRAWS, len(g.loss))) * wide
        return rng.choice(g.residual - g.residual.mean(), (DRAWS, len(g.loss))) * np.sqrt(own / rng.chisquare(own, DRAWS))[:, None]

    refits = np.stack([g.minimum(g.fitted + redrawn(g), inside=False) for g in found], axis=-1)
    whole = np.isfinite(refits).all(axis=-1)
    if (~whole).mean() > FAILED:
        return (best[0], best[1]), none, f"in {(~whole).mean():.0%} of the refits a group has no minimum: the runs are too noisy"
    draws, note = refits[whole] @ read, ""
    spare = len(found) - 2
    if spare > 0:
        left = np.eye(len(found)) - 1 / len(found) - np.outer(slope, off)
        expected = np.mean(((refits[whole] - minima) @ left.T) ** 2) * len(found) / spare
        seen = float(np.sum((left @ minima) ** 2)) / spare
        if seen > expected + 1e-18 and chdtrc(spare, spare * seen / max(expected, 1e-300)) < LACK_OF_FIT:
            ratio = math.sqrt(seen / max(expected, 1e-300))
            draws = best + (draws - best) * min(ratio, 1e6)
            note = (f"minima scatter about the power law {ratio:.3g} times as much as the residuals say: the intervals are widened by that")
    return (best[0], best[1]), draws, note


def _bias(found: list[_Group], at: float, alpha: float, beta: float) -> dict[str, Any]:
    """N found / N true at a log budget, and exponent found - true, on noise-free losses whose optimum is at each group's minimum."""
    log_c = np.array([g.log_c for g in found])
    leans = np.array([lean(g.log_n - g.minimum(g.loss), alpha, beta) for g in found])
    off = log_c - log_c.mean()
    slope = float(off @ leans / (off @ off))
    return {"n_params": math.exp(leans.mean() + slope * (at - log_c.mean())), "exponent_n_params": slope, "alpha": alpha, "beta": beta}
