"""NIST's certified nonlinear regressions: the fits reproduce certified parameters, standard errors and sums of squares.

Statistical Reference Datasets, nonlinear regression (https://www.itl.nist.gov/div898/strd/nls/nls_main.shtml), of the US government and in
the public domain. Data and certified values as printed in the tests of Eigen (unsupported/test/NonLinearOptimization.cpp) and, for DanWood,
Misra1b and Misra1c, in copies of NIST's files, read in a stored index of public repositories; NIST's site was not reached from here. A wrong digit in
the data would show: the certified values are the optimum of these data and of no others.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from scalemem import laws
from scalemem.laws.base import Law
from scalemem.laws.least_squares import least_squares
from scalemem.laws.sample import Sample

MISRA_X = [77.6, 114.9, 141.1, 190.8, 239.9, 289.0, 332.8, 378.4, 434.8, 477.3, 536.8, 593.1, 689.1, 760.0]
MISRA_Y = [10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05, 61.01, 66.40, 75.47, 81.78]
RAT42_X, RAT42_Y = [9.0, 14, 21, 28, 42, 57, 63, 70, 79], [8.93, 10.80, 18.59, 22.33, 39.35, 56.11, 61.73, 64.62, 67.08]
RAT43_Y = [16.08, 33.83, 65.80, 97.20, 191.55, 326.20, 386.87, 520.53, 590.03, 651.92, 724.93, 699.56, 689.96, 637.56, 717.41]
MGH17_Y = [.844, .908, .932, .936, .925, .908, .881, .850, .818, .784, .751, .718, .685, .658, .628, .603, .580, .558, .538, .522, .506, .490,
           .478, .467, .457, .448, .438, .431, .424, .420, .414, .411, .406]
BENNETT5_X = np.array([
    7.447168, 8.102586, 8.452547, 8.711278, 8.916774, 9.087155, 9.232590, 9.359535, 9.472166, 9.573384, 9.665293, 9.749461, 9.827092, 9.899128,
    9.966321, 10.02928, 10.08851, 10.14443, 10.19738, 10.24767, 10.29556, 10.34125, 10.38495, 10.42682, 10.467, 10.50564, 10.54283, 10.57869,
    10.61331, 10.64678, 10.67915, 10.71052, 10.74092, 10.77044, 10.7991, 10.82697, 10.85408, 10.88047, 10.90619, 10.93126, 10.95572, 10.97959,
    11.00291, 11.0257, 11.04798, 11.06977, 11.0911, 11.11198, 11.13244, 11.15248, 11.17213, 11.19141, 11.21031, 11.22887, 11.24709, 11.26498,
    11.28256, 11.29984, 11.31682, 11.33352, 11.34994, 11.3661, 11.382, 11.39766, 11.41307, 11.42824, 11.4432, 11.45793, 11.47244, 11.48675,
    11.50086, 11.51477, 11.52849, 11.54202, 11.55538, 11.56855, 11.58156, 11.59442, 11.607121, 11.61964, 11.632, 11.64421, 11.65628, 11.6682,
    11.67998, 11.69162, 11.70313, 11.71451, 11.72576, 11.73688, 11.74789, 11.75878, 11.76955, 11.7802, 11.79073, 11.80116, 11.81148, 11.8217,
    11.83181, 11.84182, 11.85173, 11.86155, 11.87127, 11.88089, 11.89042, 11.89987, 11.90922, 11.91849, 11.92768, 11.93678, 11.94579, 11.95473,
    11.96359, 11.97237, 11.98107, 11.9897, 11.99826, 12.00674, 12.01515, 12.02349, 12.03176, 12.03997, 12.0481, 12.05617, 12.06418, 12.07212,
    12.08001, 12.08782, 12.09558, 12.10328, 12.11092, 12.1185, 12.12603, 12.1335, 12.14091, 12.14827, 12.15557, 12.16283, 12.17003, 12.17717,
    12.18427, 12.19132, 12.19832, 12.20527, 12.21217, 12.21903, 12.22584, 12.2326, 12.23932, 12.24599, 12.25262, 12.2592, 12.26575, 12.27224,
])
BENNETT5_Y = -np.array([
    34.834702, 34.3932, 34.152901, 33.979099, 33.845901, 33.732899, 33.640301, 33.5592, 33.486801, 33.4231, 33.365101, 33.313, 33.260899,
    33.2174, 33.176899, 33.139198, 33.101601, 33.066799, 33.035, 33.003101, 32.971298, 32.942299, 32.916302, 32.890202, 32.864101, 32.841,
    32.817799, 32.797501, 32.7743, 32.757, 32.733799, 32.7164, 32.6991, 32.678799, 32.6614, 32.644001, 32.626701, 32.612202, 32.597698,
    32.583199, 32.568699, 32.554298, 32.539799, 32.525299, 32.510799, 32.499199, 32.487598, 32.473202, 32.461601, 32.435501, 32.435501, 32.4268,
    32.4123, 32.400799, 32.392101, 32.380501, 32.366001, 32.3573, 32.348598, 32.339901, 32.3284, 32.319698, 32.311001, 32.2994, 32.290699,
    32.282001, 32.2733, 32.264599, 32.256001, 32.247299, 32.238602, 32.2299, 32.224098, 32.215401, 32.2038, 32.198002, 32.1894, 32.183601,
    32.1749, 32.169102, 32.1633, 32.154598, 32.145901, 32.140099, 32.131401, 32.125599, 32.119801, 32.111198, 32.1054, 32.096699, 32.0909,
    32.088001, 32.0793, 32.073502, 32.067699, 32.061901, 32.056099, 32.050301, 32.044498, 32.038799, 32.033001, 32.027199, 32.0243, 32.018501,
    32.012699, 32.004002, 32.001099, 31.9953, 31.9895, 31.9837, 31.9779, 31.972099, 31.969299, 31.963501, 31.957701, 31.9519, 31.9461, 31.9403,
    31.937401, 31.931601, 31.9258, 31.922899, 31.917101, 31.911301, 31.9084, 31.902599, 31.8969, 31.893999, 31.888201, 31.8853, 31.882401,
    31.8766, 31.873699, 31.867901, 31.862101, 31.8592, 31.8563, 31.8505, 31.8447, 31.841801, 31.8389, 31.833099, 31.8302, 31.827299, 31.8216,
    31.818701, 31.812901, 31.809999, 31.8071, 31.8013, 31.798401, 31.7955, 31.7897, 31.7868,
])


@dataclass(frozen=True)
class Case:
    """A law, some of its parameters tied to a number or to others, that is a NIST model after a change of parameters."""

    law: str
    x: list[float] | np.ndarray
    y: list[float] | np.ndarray
    certified: dict[str, float]  # of the free parameters, from NIST's b1, b2 ...
    squares: float
    tied: dict[str, float | Callable] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)  # standard errors; relative ones where the parameter is a logarithm

    def model(self) -> Law:
        law, tied = laws.get(self.law), self.tied

        def function(x, p):
            return law.function(x, {**p, **{k: v(p) if callable(v) else np.asarray(v) for k, v in tied.items()}})

        return replace(law, scale="linear", function=function, parameters=tuple(q for q in law.parameters if q.name not in tied),
                       linear=tuple(k for k in law.linear if k not in tied))

    def sample(self) -> Sample:
        return Sample.of(self.model(), {"x": np.array(self.x)}, np.array(self.y))


def misra_shifted(b1: float, d: float, power: float, squares: float) -> Case:
    """y = b1 - b1 (1 + x/d)^-power, as -y = e + a (1 + x/d)^-b with e = -a."""
    return Case("shifted_power", MISRA_X, [-v for v in MISRA_Y], {"a": b1, "d": d}, squares, {"e": lambda p: -p["a"], "b": power})


CASES = {
    "Misra1a": Case("saturating_exponential", MISRA_X, MISRA_Y, {"a": 2.3894212918e2, "t": 1 / 5.5015643181e-4}, 1.2455138894e-1,
                    errors={"a": 2.7070075241, "t": 7.2668688436e-6 / 5.5015643181e-4}),
    "Misra1b": misra_shifted(3.3799746163e2, 2 / 3.9039091287e-4, 2.0, 7.5464681533e-2),
    "Misra1c": misra_shifted(6.3642725809e2, 0.5 / 2.0813627256e-4, 0.5, 4.0966836971e-2),
    "Misra1d": Case("hill", MISRA_X, MISRA_Y, {"a": 4.3736970754e2, "d": 1 / 3.0227324449e-4}, 5.6419295283e-2, {"b": 1.0}),
    "BoxBOD": Case("saturating_exponential", [1.0, 2, 3, 5, 7, 10], [109.0, 149, 149, 191, 213, 224],
                   {"a": 2.1380940889e2, "t": 1 / 5.4723748542e-1}, 1.1680088766e3),
    "DanWood": Case("power", [1.309, 1.471, 1.490, 1.565, 1.611, 1.680], [2.138, 3.421, 3.597, 4.340, 4.882, 5.660],
                    {"a": 7.6886226176e-1, "b": 3.8604055871}, 4.3173084083e-3,
                    errors={"a": 1.8281973860e-2 / 7.6886226176e-1, "b": 5.1726610913e-2}),
    "Rat42": Case("hill", np.exp(RAT42_X), RAT42_Y, {"a": 7.2462237576e1, "d": math.exp(2.6180768402 / 6.7359200066e-2), "b": 6.7359200066e-2},
                  8.0565229338, errors={"a": 1.7340283401, "b": 3.4465663377e-3 / 6.7359200066e-2}),
    "Rat43": Case("broken_1", np.exp(np.arange(1.0, 16)), RAT43_Y,
                  {"b": 6.9964151270e2 * math.exp(-5.2771253025 / 1.2792483859), "c0": -7.5962938329e-1 / 1.2792483859,
                   "d1": math.exp(5.2771253025 / 7.5962938329e-1), "f1": 1 / 7.5962938329e-1}, 8.7864049080e3,
                  {"a": 0.0, "c1": lambda p: -p["c0"]}),
    "MGH17": Case("exponential_decay_double", np.arange(0.0, 330, 10), MGH17_Y,
                  {"e": 3.7541005211e-1, "a1": -1.4646871366, "t1": 1 / 2.2122699662e-2, "a2": 1.9358469127, "t2": 1 / 1.2867534640e-2},
                  5.4648946975e-5),
    "Bennett5": Case("shifted_power", BENNETT5_X, -BENNETT5_Y,
                     {"a": 2.5235058043e3 * 4.6736564644e1 ** (-1 / 9.3218483193e-1), "d": 4.6736564644e1, "b": 1 / 9.3218483193e-1},
                     5.2404744073e-4, {"e": 0.0}),
}


@pytest.mark.parametrize("name", CASES)
def test_certified_parameters_come_back(name):
    """From the law's own starts, to six digits; the sum of squares to eight."""
    case = CASES[name]
    found = least_squares(case.model(), case.sample(), interval=0.9, noise_sd=None, misfit_sd=None)
    assert {k: e.value for k, e in found.estimates.items()} == pytest.approx(case.certified, rel=1e-6)
    assert found.objective == pytest.approx(case.squares, rel=1e-8)
    assert 2 * found.agreeing > found.tried


@pytest.mark.parametrize("name", CASES)
def test_the_certified_values_are_where_the_law_has_its_least_squares(name):
    """The law at the certified parameters has the certified sum of squares, and a gradient of 0 there: both without any search."""
    case = CASES[name]
    model, sample = case.model(), case.sample()
    theta = model.internal(case.certified)
    residual, slopes = model.predict(sample.x, theta) - sample.eta, model.gradient(sample.x, theta)
    assert float(np.sum(residual**2)) == pytest.approx(case.squares, rel=1e-7)
    cosine = slopes.T @ residual / np.linalg.norm(slopes, axis=0) / np.linalg.norm(residual)
    assert np.abs(cosine).max() < 1e-4


@pytest.mark.parametrize("name", [k for k, c in CASES.items() if c.errors])
def test_certified_standard_errors_come_back(name):
    case = CASES[name]
    model, sample = case.model(), case.sample()
    slopes = model.gradient(sample.x, model.internal(case.certified))
    errors = np.sqrt(np.diag(np.linalg.inv(slopes.T @ slopes)) * case.squares / (len(sample) - len(model.names)))
    assert {k: e for k, e in zip(model.names, errors, strict=True) if k in case.errors} == pytest.approx(case.errors, rel=1e-6)
