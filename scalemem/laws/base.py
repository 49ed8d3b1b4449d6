"""What a law is: a plain function with named parameters, units, bounds and starts, and the maths that every fit of it shares.

A parameter has a natural value and an internal one (its logarithm where `log` is set); fits live on the internal values, theta. A law lives
on its scale: `log` compares log y with log f, `linear` compares y with f. Gradients are exact, by a complex step: a law's function must be
analytic (use `np.where(np.real(u) < np.real(v), u, v)` for a minimum).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

Arrays = Mapping[str, np.ndarray]
INFINITY = math.inf


@dataclass(frozen=True)
class Parameter:
    """A parameter: unit in terms of `{y}` and `{predictor}`, natural bounds, starts for the search, and a prior on the internal value."""

    name: str
    unit: str = "1"
    low: float = -INFINITY
    high: float = INFINITY
    log: bool = False
    starts: tuple[float, ...] = ()
    prior: tuple[float, float] | None = None  # mean and sd of a normal

    def __post_init__(self) -> None:
        if self.log and (self.high <= 0 or -INFINITY < self.low <= 0):
            raise ValueError(f"parameter {self.name}: a logarithm already bounds it to positive values; remove low and high")


@dataclass(frozen=True)
class Law:
    """A law y = function(x, p) with x = {predictor: array} (and x["1"], a column of ones) and p = {parameter: array}.

    `linear` names the parameters in which the function is linear (affine) given the others. `guess(x, y)` gives starts that depend on the
    data: {parameter: values} for the grid, or a list of {parameter: value} of all parameters that are not linear, which are the starts.
    The law is defined where a predictor in `zero` is 0. `limits` clip predictions, never fits. `noise_prior` is the standard deviation of
    a run and the degrees of freedom it counts for; it and `misfit_sd` are relative to y: a log is so by itself, on a linear scale they are
    multiplied by `level(y)`.
    """

    name: str
    formula: str
    function: Callable[[Arrays, Arrays], np.ndarray]
    predictors: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    scale: str = "log"
    linear: tuple[str, ...] = ()
    guess: Callable[[Arrays, np.ndarray], Mapping[str, Sequence[float]] | list[dict[str, float]]] | None = None
    zero: tuple[str, ...] = ()
    limits: tuple[float, float] = (-INFINITY, INFINITY)
    noise_prior: tuple[float, float] = (0.0, 0.0)
    misfit_sd: float | None = None  # None: estimated where there are replicates, else 0
    asymptote: str = ""
    unidentifiable: str = ""
    source: str = ""
    names: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(p.name for p in self.parameters))
        shape = [p.name for p in self.parameters if p.prior]
        if shape and (len(shape) != 1 or {*shape, *self.linear} != set(self.names) or self.scale != "linear"):
            raise ValueError(f"law {self.name}: a prior needs scale 'linear' and all other parameters linear (it is integrated out)")

    @property
    def shape(self) -> int | None:
        """The position of the parameter with a prior, which is integrated out; None for a least-squares law."""
        return next((j for j, p in enumerate(self.parameters) if p.prior), None)

    @property
    def floor(self) -> float:
        """What y must be above: 0 under a logarithm."""
        return 0.0 if self.scale == "log" else -INFINITY

    def internal(self, values: Mapping[str, float]) -> np.ndarray:
        """theta, the internal values of natural ones."""
        return np.array([math.log(values[p.name]) if p.log else values[p.name] for p in self.parameters], float)

    def natural(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """The natural values of theta (..., p): {parameter: (...)}."""
        return {p.name: np.exp(theta[..., j]) if p.log else theta[..., j] for j, p in enumerate(self.parameters)}

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds of theta, a logarithm's as logarithms."""
        low, high = np.array([[math.log(v) if p.log and v > 0 else v for v in (p.low, p.high)] for p in self.parameters]).T
        return low, high

    def on_scale(self, y: np.ndarray) -> np.ndarray:
        """y or log y."""
        return np.log(y) if self.scale == "log" else y

    def level(self, y: np.ndarray) -> float:
        """What relative standard deviations are multiplied by: 1 on a log, else the median of |y| over the rows (n,) of a fit."""
        return 1.0 if self.scale == "log" else float(np.median(np.abs(y))) or float(np.abs(y).max()) or 1.0

    def off_scale(self, eta: np.ndarray) -> np.ndarray:
        """The inverse of `on_scale`, clipped to the limits of predictions."""
        with np.errstate(over="ignore"):
            return np.clip(np.exp(eta) if self.scale == "log" else eta, *self.limits)

    def predict(self, x: Arrays, theta: np.ndarray) -> np.ndarray:
        """The law on its scale at n points for theta (..., p): (..., n)."""
        with np.errstate(all="ignore"):
            return self.on_scale(self.function(x, {k: v[..., None] for k, v in self.natural(theta).items()}))

    def gradient(self, x: Arrays, theta: np.ndarray) -> np.ndarray:
        """d predict / d theta for theta (..., p): (..., n, p), exact to rounding (complex step)."""
        steps = theta[..., None, :] + 1e-30j * np.eye(len(self.names))
        return np.nan_to_num(np.swapaxes(np.imag(self.predict(x, steps)) / 1e-30, -1, -2))

    def basis(self, x: Arrays, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Offset (n,) and basis (n, q) of the function at theta: f = offset + basis @ (linear parameters)."""
        p = {k: np.asarray(v) for k, v in self.natural(theta).items()} | {k: np.zeros(()) for k in self.linear}
        with np.errstate(all="ignore"):
            offset = np.real(self.function(x, p)) * np.ones_like(x["1"])
            columns = [np.real(self.function(x, p | {k: np.ones(())})) - offset for k in self.linear]
        return offset, np.stack(columns, -1)

    def starts(self, x: Arrays, y: np.ndarray) -> list[np.ndarray]:
        """Where the search starts: the grid over the parameters that are not linear, the linear ones solved for at each of its points."""
        guess = self.guess(x, y) if self.guess else {}
        low, high = self.bounds()
        grid = ([0.0 if k in self.linear else point[k] for k in self.names] for point in guess) if isinstance(guess, list) else \
            itertools.product(*([0.0] if p.name in self.linear else guess.get(p.name, p.starts) for p in self.parameters))
        found = []
        for values in grid:
            natural = dict(zip(self.names, values, strict=True))
            theta = np.array([math.log(v) if p.log and p.name not in self.linear else v for p, v in zip(self.parameters, values, strict=True)])
            if self.linear:
                offset, basis = self.basis(x, theta)
                weight = 1 / np.abs(y) if self.scale == "log" else np.ones_like(y)
                size = np.linalg.norm(basis * weight[:, None], axis=0)
                if not np.all(np.isfinite(basis)) or not np.all(size > 0):
                    continue
                solved = np.linalg.lstsq(basis * weight[:, None] / size, (y - offset) * weight, rcond=None)[0] / size
                for p_name, value in zip(self.linear, solved, strict=True):
                    p = self.parameters[self.names.index(p_name)]
                    floor = 1e-3 * np.abs(y).min() / np.abs(basis[:, self.linear.index(p_name)]).max() if p.log or p.low == 0 else p.low
                    natural[p_name] = float(np.clip(value, floor, p.high))
                theta = self.internal(natural)
            if np.all(np.isfinite(theta)) and np.all(np.isfinite(self.predict(x, theta))):
                found.append(np.clip(theta, low, high))
        return found
