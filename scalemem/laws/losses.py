"""What a fit minimises: a sum over rows of rho(y_i, f_i), with its slope and curvature in the law's value on the scale of the loss.

| loss | scale | rho, with r = scale(f) - scale(y) |
|---|---|---|
| `squared` | the law's | r^2 |
| `log`, `linear` | as named | r^2 |
| `huber:D` | log | r^2 / 2 where abs(r) <= D, else D (abs(r) - D / 2) |
| `huber` | log | log s + log Z + huber(r / s) with D = 0.001: -log density, s set to its maximum likelihood (nearly least absolute deviations) |
| `asymmetric:T` | log | 2 T r^2 where y > f, else 2 (1 - T) r^2: T = 1/2 is squared error, a smaller T hugs the lowest rows (expectiles) |
| `binomial` | linear | -log likelihood of y successes in t trials, f the probability |
| `beta_binomial` | linear | the same with probabilities that scatter from row to row, variance f (1 - f) / (1 + c), c set to its maximum likelihood |

Sources: Huber 1964; Hoffmann et al. 2022, D.2 (`huber:1e-3`); Besiroglu et al. 2024 (`huber`); Newey and Powell 1987 (`asymmetric`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from scalemem.laws.base import Law
from scalemem.tables import TableError

FREE_DELTA = 1e-3  # of `huber`, in units of its free scale, as Besiroglu et al. have it
LEGAL = "squared, log, linear, huber:DELTA, huber, asymmetric:T, binomial or beta_binomial"
Terms = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Loss:
    """A loss by kind and number. `terms` gives rho / factor, its slope and its curvature, so that squared error is r^2 / 2."""

    kind: str
    number: float = math.nan

    @property
    def name(self) -> str:
        """As one writes it: `huber:0.001`."""
        return self.kind if math.isnan(self.number) else f"{self.kind}:{self.number:.12g}"

    @property
    def counts(self) -> bool:
        """Whether y counts successes and the law gives their probability."""
        return self.kind in ("binomial", "beta_binomial")

    @property
    def squared(self) -> bool:
        """Whether it is squared error on some scale."""
        return self.kind in ("squared", "log", "linear")

    @property
    def likelihood(self) -> bool:
        """Whether a rise of the objective is a log likelihood ratio as it stands."""
        return self.counts

    @property
    def nuisance(self) -> str:
        """The name of the number that is estimated with the law, or ""."""
        return {"beta_binomial": "concentration", "huber": "" if self.number > 0 else "scale"}.get(self.kind, "")

    @property
    def factor(self) -> float:
        """The objective is `factor` times the sum of `terms`."""
        return 2.0 if self.squared or self.kind == "asymmetric" else 1.0

    def law(self, law: Law) -> Law:
        """The law on the scale of the loss. Raises TableError where the law's own scale is part of it."""
        scale = {"squared": law.scale, "linear": "linear", "binomial": "linear", "beta_binomial": "linear"}.get(self.kind, "log")
        if self.kind != "squared" and law.shape is not None:
            raise TableError(f"loss {self.name} with law {law.name}: this law integrates {law.names[law.shape]} out under squared error; "
                             "leave the loss out or choose another law")
        return law if scale == law.scale else replace(law, scale=scale)

    def target(self, eta: np.ndarray, trials: np.ndarray | None) -> Target:
        """What rows (n,) on the scale of the loss are to the terms."""
        return Target(eta, trials, _log_choose(eta, trials) if self.counts and trials is not None else None)

    def stages(self, size: float) -> list[Loss]:
        """Easier losses to pass through, the last this one: Huber's delta falls from `size`, the largest residual, by factors of 3."""
        if self.kind != "huber" or math.isnan(self.number):
            return [self]
        n = max(0, math.ceil(math.log(size / self.number) / math.log(3)))
        return [replace(self, number=self.number * 3.0**k) for k in range(min(n, 18), -1, -1)]

    def terms(self, target: Target, eta: np.ndarray, nuisance: np.ndarray) -> Terms:
        """rho / factor, slope and curvature at eta (B, n); nuisance (B,). Infinite where the law leaves its domain."""
        if self.counts:
            return _counts(target, eta, nuisance[:, None] if self.nuisance else None)
        r = eta - target.eta
        if self.kind == "asymmetric":
            side = 2 * np.where(r < 0, self.number, 1 - self.number)
            return side * r * r / 2, side * r, side
        if self.kind != "huber":
            return r * r / 2, r, np.ones_like(r)
        scale = nuisance[:, None] if self.nuisance else np.ones((len(r), 1))
        delta = FREE_DELTA * scale if self.nuisance else self.number
        size = np.abs(r)
        inside = size <= delta
        rho, slope = np.where(inside, r * r / 2, delta * (size - delta / 2)), np.where(inside, r, delta * np.sign(r))
        curve = np.where(inside, 1.0, 0.1 * delta / np.maximum(size, 1e-300))
        if self.nuisance:
            return rho / scale**2 + np.log(scale) + LOG_Z, slope / scale**2, curve / scale**2
        return rho, slope, curve

    def estimate(self, target: Target, eta: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The nuisance number at its maximum likelihood given eta (B, n) with weights (B, n): (B,), by golden section in its log."""
        if not self.nuisance:
            return np.zeros(len(eta))
        if self.kind == "huber":
            middle = np.log(np.maximum(FREE_DELTA * np.sum(weights * np.abs(eta - target.eta), 1) / np.sum(weights, 1), 1e-16))
            low, high = middle - 2.0, middle + 2.0 - math.log(FREE_DELTA)
        else:
            low, high = np.full(len(eta), -3.0), np.full(len(eta), 18.0)

        def cost(log: np.ndarray) -> np.ndarray:
            return np.sum(weights * self.terms(target, eta, np.exp(log))[0], axis=1)

        golden = (math.sqrt(5) - 1) / 2
        a, b = high - golden * (high - low), low + golden * (high - low)
        fa, fb = cost(a), cost(b)
        for _ in range(50):
            left = fa < fb
            low, high = np.where(left, low, a), np.where(left, b, high)
            a, b, old = high - golden * (high - low), low + golden * (high - low), (a, fa, b, fb)
            new = cost(np.where(left, a, b))
            fa, fb = np.where(left, new, old[3]), np.where(left, old[1], new)
        return np.exp((low + high) / 2)


@dataclass(frozen=True)
class Target:
    """The rows: y on the scale of the loss (counts: the successes), trials, and log of the binomial coefficient."""

    eta: np.ndarray
    trials: np.ndarray | None = None
    choose: np.ndarray | None = None


def parse(text: str | Loss) -> Loss:
    """A loss from its text. Raises TableError for what is none.

    >>> parse("huber:1e-3").name
    'huber:0.001'
    """
    if isinstance(text, Loss):
        return text
    kind, _, number = text.partition(":")
    try:
        value = float(number) if number else math.nan
    except ValueError:
        value = -1.0
    top = {"huber": 1e6, "asymmetric": 1.0}.get(kind, 0.0)
    known = kind in ("squared", "log", "linear", "huber", "binomial", "beta_binomial") and not number
    if not known and not (0 < value < top):
        raise TableError(f"loss {text!r}: must be {LEGAL}, DELTA a positive number and T between 0 and 1; for example huber:1e-3")
    return Loss(kind, value)


def _log_z() -> float:
    from math import erf, exp, log, pi, sqrt
    return log(sqrt(2 * pi) * erf(FREE_DELTA / sqrt(2)) + 2 * exp(-FREE_DELTA**2 / 2) / FREE_DELTA)


LOG_Z = _log_z()


def _log_choose(k: np.ndarray, n: np.ndarray) -> np.ndarray:
    from scipy.special import gammaln
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def _counts(target: Target, p: np.ndarray, concentration: np.ndarray | None) -> Terms:
    from scipy.special import betaln, digamma, xlog1py, xlogy
    k, n, choose = target.eta, target.trials, target.choose
    assert n is not None
    assert choose is not None
    legal = (p >= 0) & (p <= 1) & ((p > 0) | (k == 0)) & ((p < 1) | (k == n))
    q = np.clip(np.where(legal, p, 0.5), 1e-300, 1 - 1e-16)
    information = n / (q * (1 - q))
    if concentration is None:
        rho, slope = -choose - xlogy(k, q) - xlog1py(n - k, -q), (n * q - k) / (q * (1 - q))
    else:
        a, b = q * concentration, (1 - q) * concentration
        rho = -choose - betaln(k + a, n - k + b) + betaln(a, b)
        slope = -concentration * (digamma(k + a) - digamma(a) - digamma(n - k + b) + digamma(b))
        information = information * (1 + concentration) / (n + concentration)
    return np.where(legal, rho, math.inf), slope, np.minimum(information, 1e300)
