"""The families of curves that are averaged: their exponents and breaks as functions of standard normal values, which are their prior.

Each curve is written by its value at the frontier and its changes over the fitted range, which mean the same in every family and so
may have the same flat prior: f = A h_0 + sum_k B_k h_k, h_0 = 1 and h_k = 0 at the frontier, h_k = 1 at the far end of the range. With
z = log(x / frontier) the families of one predictor are

    constant        A                                    log_linear    A + B z
    power           A x^-c, c > 0                        growth        A x^c, c > 0
    power_floor     e + a x^-c                           offset        e + a x^c, where y rises
    exponential     e + a exp(-k x)                      turn          e + a (x^-c + k x^d)
    plateau         e + a (1 + (x / d)^(1 / f))^(-c f)     broken        e + a x^-c0 (1 + (x / d)^(1 / f))^((c0 - c1) f)

and of several: constant; product, A prod_k x_k^-c_k; sum, e + sum_k a_k x_k^-c_k; shared, the same with one exponent for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from scalemem.averaging.settings import Settings

Columns = Callable[[np.ndarray], np.ndarray]
Built = tuple[Columns, "np.ndarray | None"]
Make = Callable[[np.ndarray, np.ndarray, Settings], Built]
STEEPEST = 200.0


@dataclass(frozen=True)
class Family:
    """Members at `points` (m, p) of a p-dimensional normal prior.

    `columns(z)` gives h, (q, n, m), at z (n, d). The asymptote is A - sum_k share_k B_k; `share` (m, q - 1), or None without one.
    """

    name: str
    points: np.ndarray
    columns: Columns
    share: np.ndarray | None

    @property
    def members(self) -> int:
        """How many curves there are."""
        return len(self.points)


@lru_cache(maxsize=32)
def normals(n: int, p: int) -> np.ndarray:
    """n quasi-random points of a p-dimensional standard normal distribution (a Halton sequence)."""
    from scipy.special import ndtri
    from scipy.stats import qmc
    return ndtri(qmc.Halton(p, scramble=False).random(n + 1)[1:]) if p else np.zeros((1, 0))


def _between(v: np.ndarray, low: float, high: float) -> np.ndarray:
    """Uniform values from standard normal ones."""
    from scipy.special import ndtr
    return low + ndtr(v) * (high - low)


def _log_normal(v: np.ndarray, prior: tuple[float, float]) -> np.ndarray:
    return prior[0] * np.exp(prior[1] * v)


def _log_uniform(v: np.ndarray, prior: tuple[float, float]) -> np.ndarray:
    return np.exp(_between(v, *np.log(prior)))


def _fall(z: np.ndarray, c: np.ndarray) -> np.ndarray:
    """exp(-c z), kept finite."""
    return np.exp(np.minimum(-z * c, STEEPEST))


def _affine(curve: Columns, far: float) -> Built:
    """e + a phi(z), by its value at the frontier and its change: h_1 = (phi(z) - phi(0)) / (phi(far) - phi(0))."""
    start, end = curve(np.array([[far], [0.0]]))
    span = start - end

    def columns(z: np.ndarray) -> np.ndarray:
        h = (curve(z) - end) / span
        return np.stack([np.ones_like(h), h])

    return columns, (end / span)[:, None]


def _alone(exponents: np.ndarray) -> Built:
    """A prod_k x_k^-c_k for exponents (m, d)."""
    return lambda z: np.exp(np.minimum(-z @ exponents.T, STEEPEST))[None], None


def _sum(c: np.ndarray, far: np.ndarray) -> Built:
    """e + sum_k a_k x_k^-c_k for exponents (m, d)."""
    span = _fall(far, c) - 1

    def columns(z: np.ndarray) -> np.ndarray:
        h = (_fall(z[:, None], c) - 1) / span
        return np.concatenate([np.ones((1, len(z), len(c))), np.moveaxis(h, -1, 0)])

    return columns, 1 / span


def _bend(z: np.ndarray, at: np.ndarray, width: np.ndarray) -> np.ndarray:
    """width log(1 + exp((z - at) / width)): zero before a break, z - at after it."""
    return width * np.logaddexp(0.0, (z - at) / width)


def _falling(c: np.ndarray, far: np.ndarray) -> Built:
    """e + a x^-c."""
    return _affine(lambda z: _fall(z, c), far[0])


def _exponential(v: np.ndarray, far: np.ndarray, s: Settings) -> Built:
    k = _log_uniform(v[:, 0], s.exponential)
    return _affine(lambda z: np.exp(-k * np.exp(np.minimum(z, STEEPEST))), far[0])


def _plateau(v: np.ndarray, far: np.ndarray, s: Settings) -> Built:
    c, at, width = _log_normal(v[:, 0], s.plateau), _between(v[:, 1], far[0], s.latest_break), _log_normal(v[:, 2], s.plateau_width)
    return _affine(lambda z: np.exp(-c * _bend(z, at, width)), far[0])


def _broken(v: np.ndarray, far: np.ndarray, s: Settings) -> Built:
    before, after = _log_normal(v[:, 0], s.broken), _log_normal(v[:, 1], s.broken)
    at, width = _between(v[:, 2], far[0], s.latest_break / 2), _log_uniform(v[:, 3], s.broken_width)
    return _affine(lambda z: np.exp(np.minimum(-before * z - (after - before) * _bend(z, at, width), STEEPEST)), far[0])


def _turn(v: np.ndarray, far: np.ndarray, s: Settings) -> Built:
    c, d, k = _log_normal(v[:, 0], s.floor), _log_uniform(v[:, 1], s.turn_exponent), _log_uniform(v[:, 2], s.turn_share)
    return _affine(lambda z: _fall(z, c) + k * np.exp(np.minimum(z * d, STEEPEST)), far[0])


def _product(v: np.ndarray, far: np.ndarray, s: Settings) -> Built:
    """Exponents of either sign: the sign of v, and the size a log-normal value at its distance from the middle."""
    from scipy.special import ndtr, ndtri
    return _alone(np.sign(v) * _log_normal(ndtri(np.clip(np.abs(2 * ndtr(v) - 1), 1e-9, 1 - 1e-9)), s.power))


# name: the number of shape parameters, given the number of predictors, and the curves at their normal values
_ONE: dict[str, tuple[int, Make]] = {
    "constant": (0, lambda v, far, s: _alone(np.zeros((len(v), 1)))),
    "power": (1, lambda v, far, s: _alone(_log_normal(v, s.power))),
    "growth": (1, lambda v, far, s: _alone(-_log_normal(v, s.growth))),
    "log_linear": (0, lambda v, far, s: (lambda z: np.stack([np.ones_like(z), z / far[0]]), None)),
    "power_floor": (1, lambda v, far, s: _falling(_log_normal(v[:, 0], s.floor), far)),
    "offset": (1, lambda v, far, s: (_falling(-_log_normal(v[:, 0], s.growth), far)[0], None)),
    "exponential": (1, _exponential),
    "plateau": (3, _plateau),
    "broken": (4, _broken),
    "turn": (3, _turn),
}
_SEVERAL: dict[str, Make] = {"constant": lambda v, far, s: _alone(np.zeros((len(v), len(far)))), "product": _product,
                             "sum": lambda v, far, s: _sum(_log_normal(v, s.sum), far),
                             "shared": lambda v, far, s: _sum(np.repeat(_log_normal(v, s.sum), len(far), axis=1), far)}
_SIZES = {"constant": lambda d: 0, "product": lambda d: d, "sum": lambda d: d, "shared": lambda d: 1}


def build(name: str, points: np.ndarray, far: np.ndarray, s: Settings) -> Family:
    """The members of a family at points (m, p) of its prior, for rows that reach back to z = far, (d,), below the frontier."""
    make = _ONE[name][1] if len(far) == 1 else _SEVERAL[name]
    columns, share = make(points, far, s)
    return Family(name, points, columns, share)


def families(far: np.ndarray, s: Settings, rising: bool) -> list[Family]:
    """The families for as many predictors as `far` has, each at its prior's points."""
    sizes = {name: _ONE[name][0] if len(far) == 1 else _SIZES[name](len(far)) for name in s.weights(len(far), rising)}
    return [build(name, normals(s.members[name] if p else 1, p), far, s) for name, p in sizes.items()]
