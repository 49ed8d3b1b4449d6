"""The compute-optimal model size and number of tokens at a training budget, from a fitted L(N, D)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scalemem import forecasting, laws
from scalemem.fitting import Fit, GroupFit, plain
from scalemem.laws.base import Law
from scalemem.laws.posterior import Estimate, Posterior, Predictive
from scalemem.tables import TableError

FACTOR = 6.0  # C = 6 N D, the usual count of a transformer's training FLOPs: a convention, not a measurement
MOST = 460.0  # |log| of a quantity that is still one: 1e200
WIDEST = 1e30  # the ratio of a parameter's interval above which it is not identified, whatever its status
UNSEEN = "not identified: it depends on what the fitted rows do not say"
LAWS = ("chinchilla", "chinchilla_shared")
_LOG = Law("log", "", lambda x, p: x["1"], (), ())  # what the quantiles of a positive quantity are taken with


@dataclass(frozen=True)
class Allocation:
    """The optimum at a budget, with what it rests on: estimates of n_params, n_tokens, tokens_per_param, the two exponents, and loss.

    An estimate is NaN, and its status says why, where the fit or the groups do not identify it. `groups` and `bias` are approach 2's.
    """

    budget: float
    flops_factor: float
    approach: str
    interval: float
    estimates: dict[str, Estimate]
    extrapolation: float
    warnings: tuple[str, ...]
    groups: tuple[dict[str, Any], ...] = ()
    bias: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; NaN becomes null."""
        return plain({**{k: v for k, v in vars(self).items() if k not in ("estimates", "groups", "bias", "warnings")}, **self.estimates,
                      "warnings": self.warnings} | ({"groups": self.groups, "bias": self.bias} if self.approach == "2" else {}))


def optimum(parameters: Mapping[str, float], compute: float) -> tuple[float, float]:
    """The N and D of least loss among those with N D = compute.

    L = E + A N^-alpha + B D^-beta with D = compute / N is least where dL/dN = 0: alpha A N^-alpha = beta B D^-beta. So

        N = G compute^(beta / (alpha + beta)),   D = compute^(alpha / (alpha + beta)) / G,   G = (alpha A / (beta B))^(1 / (alpha + beta)).

    Args:
      parameters: A, B, alpha and, unless it equals alpha, beta.
      compute: N D, which is C / 6 where C = 6 N D is counted in FLOP.

    >>> n, d = optimum({"A": 482.0, "B": 2085.0, "alpha": 0.3478, "beta": 0.3658}, 1e22 / 6)
    >>> f"{n:.3g} {d:.3g}"
    '9.05e+09 1.84e+11'

    Hoffmann et al. 2022 (arXiv 2203.15556), Approach 3; derived above.
    """
    n = math.exp(float(_log_n({k: math.log(v) for k, v in parameters.items() if k != "E"}, math.log(compute))))
    return n, compute / n


def _log_n(logs: Mapping[str, Any], log_compute: float) -> Any:
    """log N of the optimum, from the logarithms of the parameters."""
    log_beta = logs.get("beta", logs["alpha"])
    alpha, beta = np.exp(logs["alpha"]), np.exp(log_beta)
    return (logs["alpha"] + logs["A"] - log_beta - logs["B"] + beta * log_compute) / (alpha + beta)


def allocate(fit: Fit, budget: float, *, interval: float | None = None, factor: float = FACTOR, group: Any = None) -> Allocation:
    """The optimum of a fitted law at a budget, with intervals from the fit's posterior.

    The values are `optimum` at the fitted parameters. With theta_k the points of the posterior, w_k their weights and C_k their covariances,
    the interval of q in {log N, log D, log D/N, beta / (alpha + beta), alpha / (alpha + beta)} holds the middle of the mixture
    sum_k w_k t_dof(q(theta_k), sqrt(q' C_k q')). That of the loss is the predictive one, of a new run of the size and tokens given.

    Args:
      fit: of chinchilla or chinchilla_shared.
      budget: training compute C in FLOP.
      interval: probability of the intervals, in (0, 1); default: the fit's.
      factor: of C = factor N D; 6 by convention.
      group: which group, where the fit has several.
    Returns:
      estimates in the units of the fitted columns, which `factor` takes to be parameters and tokens.
    Raises:
      TableError: another law, an unknown group, or an option out of range.

    >>> import pyarrow as pa
    >>> from scalemem.fitting import fit
    >>> rows = [(n, d, 1.8 + 480 * n**-0.35 + 2100 * d**-0.37) for n in (1e8, 4e8, 1e9, 8e9) for d in (2e9, 1e10, 8e10)]
    >>> t = pa.Table.from_pylist([dict(zip("NDL", row)) for row in rows])
    >>> law = fit(t, "chinchilla", y="L", x={"n_params": "N", "n_tokens": "D"})
    >>> f"{allocate(law, 1e22).estimates['n_params'].value:.4g}"
    '9.592e+09'
    """
    if fit.law not in LAWS:
        raise TableError(f"allocation: the fit is of law {fit.law}: must be of {' or '.join(LAWS)}; fit one of these to n_params and n_tokens")
    interval = check(budget, fit.interval if interval is None else interval, factor)
    found, law = fit.at(group), laws.get(fit.law)
    notes = list(found.warnings)
    lost = [k for k, e in found.parameters.items() if k != "E" and not (e.status == "ok" and e.low > 0 and e.high / e.low < WIDEST)]
    if lost or found.posterior is None:
        reason = "not identified: the fit does not identify " + ", ".join(lost or found.parameters)
        return _nothing(budget, factor, interval, reason, notes)
    log_compute = math.log(budget / factor)
    with np.errstate(all="ignore"):
        estimates = {k: _estimate(found, law, q, interval) for k, q in _quantities(log_compute).items()}
        n, d = estimates["n_params"].value, estimates["n_tokens"].value
        spread = forecasting.predictive(law, found, {"n_params": np.array([n]), "n_tokens": np.array([d])})
        low, middle, high = (float(spread.quantile(q)[0]) for q in ((1 - interval) / 2, 0.5, (1 + interval) / 2))
    known = all(map(math.isfinite, (low, middle, high)))
    estimates["loss"] = Estimate(middle, low, high, found.parameters["E"].unit, "ok") if known else _unknown(UNSEEN)
    if math.isnan(n):
        return _nothing(budget, factor, interval, estimates["n_params"].status, notes)
    beyond = max(max(v / found.ranges[k][1], found.ranges[k][0] / v, 1.0) for k, v in (("n_params", n), ("n_tokens", d)))
    if beyond > 1:
        notes.append(f"the optimum lies {beyond:.3g} times beyond the fitted rows: the intervals assume that the law holds there")
    return Allocation(budget, factor, "parametric", interval, estimates, beyond, tuple(notes))


def _nothing(budget: float, factor: float, interval: float, reason: str, notes: list[str]) -> Allocation:
    none = {k: _unknown(reason) for k in (*_quantities(0.0), "loss")}
    return Allocation(budget, factor, "parametric", interval, none, math.nan, (*notes, reason))


def check(budget: float, interval: float, factor: float) -> float:
    """Refuses options out of range; the interval."""
    for name, v, legal in (("budget", budget, "1e22"), ("flops_factor", factor, "6")):
        if not 0 < v < 1e60:
            raise TableError(f"{name} = {v!r}: must be a positive number below 1e60; write {legal}")
    if not 0 < interval < 1:
        raise TableError(f"interval = {interval!r}: must lie between 0 and 1; write 0.9")
    return interval


def _quantities(log_compute: float) -> dict[str, Any]:
    """Each quantity as the logarithm of a positive one, a function of {parameter: its logarithm}."""
    def share(logs: Mapping[str, Any], sign: int) -> Any:  # of beta (1) or alpha (-1) in their sum, as a logarithm
        return -np.log1p(np.exp(sign * (logs["alpha"] - logs.get("beta", logs["alpha"]))))

    return {"n_params": lambda p: _log_n(p, log_compute), "n_tokens": lambda p: log_compute - _log_n(p, log_compute),
            "tokens_per_param": lambda p: log_compute - 2 * _log_n(p, log_compute),
            "exponent_n_params": lambda p: share(p, 1), "exponent_n_tokens": lambda p: share(p, -1)}


def _unknown(reason: str) -> Estimate:
    return Estimate(math.nan, math.nan, math.nan, "1", reason)


def _estimate(found: GroupFit, law: Law, q: Any, interval: float) -> Estimate:
    post = found.posterior
    assert isinstance(post, Posterior)  # of LAWS, never an average of laws
    best = float(q({k: math.log(e.value) for k, e in found.parameters.items() if k != "E"}))

    def at(theta: np.ndarray) -> np.ndarray:
        return q({p.name: theta[..., j] if p.log else np.log(theta[..., j]) for j, p in enumerate(law.parameters) if p.name != "E"})

    slope = np.imag(at(post.points[:, None, :] + 1e-30j * np.eye(len(law.names)))) / 1e-30
    mean, sd = at(post.points), np.sqrt(np.maximum(np.einsum("kp,kpq,kq->k", slope, post.covariances, slope), 0))
    usable = np.isfinite(mean) & np.isfinite(sd) & np.isfinite(slope).all(axis=1) & (np.abs(mean) < MOST)
    if not abs(best) < MOST or post.weights[~usable].sum() > 0.01:
        return _unknown("not identified: the fit allows sizes beyond all bounds")
    if np.abs(post.unseen @ slope[usable].T).max(initial=0) > 1e-9 * np.abs(slope[usable]).max():
        return _unknown(UNSEEN)
    mixture = Predictive(_LOG, post.weights[usable] / post.weights[usable].sum(), mean[usable, None], np.maximum(sd[usable, None], 1e-13), post.dof)
    low, high = (float(mixture.quantile(p)[0]) for p in ((1 - interval) / 2, (1 + interval) / 2))
    return Estimate(math.exp(best), min(low, math.exp(best)), max(high, math.exp(best)), "1")
