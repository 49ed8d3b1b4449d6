"""Exact derivatives of a law's function in one pass: a number that carries its slopes in the parameters through NumPy's functions.

A law stays a plain NumPy function. Called with Duals it gives its value and d value / d theta_j, of which only the slopes that are not
zero are carried, so a sum of power laws costs little more than its value. A function that uses what is not listed here raises TypeError,
and `slopes` takes the complex step instead, which is as exact and several times slower.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from scalemem.laws.base import Arrays, Law

_ONE = {  # ufunc: its derivative from the argument u and the value f
    "exp": lambda u, f: f, "log": lambda u, f: 1 / u, "log1p": lambda u, f: 1 / (1 + u), "expm1": lambda u, f: f + 1,
    "tanh": lambda u, f: 1 - f * f, "sqrt": lambda u, f: 0.5 / f, "square": lambda u, f: 2 * u, "reciprocal": lambda u, f: -f * f,
    "sin": lambda u, f: np.cos(u), "cos": lambda u, f: -np.sin(u), "arctan": lambda u, f: 1 / (1 + u * u),
    "expit": lambda u, f: f * (1 - f), "log10": lambda u, f: 1 / (u * np.log(10)), "log2": lambda u, f: 1 / (u * np.log(2)),
    "exp2": lambda u, f: f * np.log(2), "sinh": lambda u, f: np.cosh(u), "cosh": lambda u, f: np.sinh(u),
}
_COMPARE = {"less", "less_equal", "greater", "greater_equal", "equal", "not_equal", "isfinite", "isnan", "sign"}


class Dual(NDArrayOperatorsMixin):
    """A value, an array of any shape, and its slopes {parameter: array that broadcasts against it}."""

    __slots__ = ("slopes", "value")

    def __init__(self, value: Any, slopes: dict[int, Any]):
        self.value, self.slopes = value, slopes

    @property
    def real(self) -> Any:
        """The value: what a comparison looks at."""
        return self.value

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        name, values = ufunc.__name__, [v.value if isinstance(v, Dual) else v for v in inputs]
        if method != "__call__" or options:
            return NotImplemented
        if name in _COMPARE:
            return ufunc(*values)
        if name in _ONE:
            f = ufunc(values[0])
            slope = _ONE[name](values[0], f)
            return Dual(f, {j: slope * d for j, d in inputs[0].slopes.items()})
        if name == "negative":
            return Dual(-values[0], {j: -d for j, d in inputs[0].slopes.items()})
        return _two(name, ufunc, *values, *(v.slopes if isinstance(v, Dual) else {} for v in inputs)) if len(inputs) == 2 else NotImplemented

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        if function is np.real and len(args) == 1:
            return self.value
        if function is np.where and len(args) == 3 and not options:
            where, *sides = args
            (u, du), (v, dv) = ((s.value, s.slopes) if isinstance(s, Dual) else (s, {}) for s in sides)
            return Dual(np.where(where, u, v), {j: np.where(where, du.get(j, 0.0), dv.get(j, 0.0)) for j in du.keys() | dv.keys()})
        if function in (np.ones_like, np.zeros_like):
            return function(self.value)
        return NotImplemented


def _two(name: str, ufunc: np.ufunc, u: Any, v: Any, du: dict[int, Any], dv: dict[int, Any]) -> Any:
    if name in ("add", "subtract"):
        sign = 1 if name == "add" else -1
        found = dict(du)
        for j, d in dv.items():
            found[j] = ufunc(found[j], d) if j in found else sign * d
        return Dual(ufunc(u, v), found)
    f = ufunc(u, v)
    if name == "multiply":
        left, right = v, u
    elif name in ("divide", "true_divide"):
        left, right = 1 / v, -f / v if dv else None
    elif name in ("power", "float_power"):
        left, right = v * ufunc(u, v - 1) if du else None, f * np.log(u) if dv else None
    elif name == "logaddexp":
        left, right = np.exp(u - f), np.exp(v - f)
    elif name in ("minimum", "maximum"):
        first = f == u
        left, right = first * 1.0, ~first * 1.0
    else:
        return NotImplemented
    found = {j: left * d for j, d in du.items()}
    for j, d in dv.items():
        found[j] = found[j] + right * d if j in found else right * d
    return Dual(f, found)


def slopes(law: Law, x: Arrays, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The law on its scale at n points for theta (B, p), and d / d theta: (B, n) and (B, p, n); a slope that is not finite becomes 0."""
    batch, p = theta.shape
    shape = (batch, len(x["1"]))
    natural = law.natural(theta)
    with np.errstate(all="ignore"):
        try:
            given = {q.name: Dual(v := natural[q.name][:, None], {j: v if q.log else 1.0}) for j, q in enumerate(law.parameters)}
            found = law.on_scale(law.function(x, given))  # type: ignore[arg-type]
        except (TypeError, AttributeError):
            return (np.broadcast_to(np.real(law.predict(x, theta)), shape),
                    np.swapaxes(np.broadcast_to(law.gradient(x, theta), (*shape, p)), 1, 2))
        if not isinstance(found, Dual):
            return np.broadcast_to(found, shape), np.zeros((batch, p, shape[1]))
        jacobian = np.zeros((batch, p, shape[1]))
        for j, d in found.slopes.items():
            jacobian[:, j] = d
    jacobian[~np.isfinite(jacobian)] = 0.0
    return np.broadcast_to(found.value, shape), jacobian
