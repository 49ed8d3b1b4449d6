"""Priors of the average, and how they were chosen.

Families, forms of misfit and ranges come from what is known of such curves: they fall to a floor at or above zero, or rise to a level or
without one; exponents are mostly below 1; laws are better near the frontier than far behind it; what falls flattens. The numbers were
found by a random search (`benchmarks/tuning.py` says what its score is): on the curves of Alabdulmohsin et al. 2022 and nanoGPT with
their own splits, on earlier origins of those, on other public runs, and on synthetic curves with noise; then rounded to two digits and
moved by hand in small steps, on the same scores. The settings for several predictors (`several`, `many`, `sum`) were chosen
by hand on the Chinchilla and Gadre tables, those of rising curves by hand on power laws, synthetic curves and the Pythia counts. No other
data were read. One set of settings serves all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scalemem.averaging.misfit import Misfit


@dataclass(frozen=True)
class Settings:
    """Prior weights of families and misfits; (median, log spread) of exponents, (low, high) of widths; the noise prior.

    `falling`, `rising` and `several` are the families' weights for one predictor and y that falls or rises with it, and for several.
    `noise_sd` counts for `noise_dof` degrees of freedom. `forward` slows the misfit beyond the frontier, `shrinkage` moves the share of
    each family towards its prior, `doubt` (falling, rising) is the standard deviation of what damping takes away, in units of it, `zoom`
    is how many members, of those of the prior, are added where the weight lies, `focus` where it lies with the stiffest misfit.
    """

    falling: Mapping[str, float]
    rising: Mapping[str, float]
    several: Mapping[str, float]
    one: tuple[Misfit, ...]
    many: tuple[Misfit, ...]
    power: tuple[float, float]
    growth: tuple[float, float]
    floor: tuple[float, float]
    plateau: tuple[float, float]
    plateau_width: tuple[float, float]
    broken: tuple[float, float]
    broken_width: tuple[float, float]
    latest_break: float
    noise_sd: float
    noise_dof: float
    forward: float
    shrinkage: tuple[float, float]
    exponential: tuple[float, float] = (0.2, 12.0)
    turn_exponent: tuple[float, float] = (0.1, 1.5)
    turn_share: tuple[float, float] = (0.01, 2.0)
    sum: tuple[float, float] = (0.35, 0.35)
    highest: float = 4.0
    doubt: tuple[float, float] = (0.8, 0.7)
    zoom: float = 0.6
    focus: float = 0.4
    members: Mapping[str, int] = field(default_factory=lambda: {
        "power": 50, "growth": 40, "power_floor": 100, "offset": 50, "plateau": 200, "broken": 400, "exponential": 50, "turn": 120,
        "product": 200, "sum": 250, "shared": 60})

    def weights(self, predictors: int, rising: bool) -> Mapping[str, float]:
        """The prior weights of the families for as many predictors, and for y that rises with one of them or does not."""
        return self.several if predictors > 1 else self.rising if rising else self.falling



SETTINGS = Settings(
    falling={"constant": 0.32, "power": 0.075, "growth": 0.0024, "log_linear": 0.011, "power_floor": 0.023, "exponential": 0.015,
             "plateau": 0.045, "broken": 0.5, "turn": 0.0092},
    rising={"constant": 0.02, "growth": 0.35, "log_linear": 0.14, "offset": 0.28, "power_floor": 0.04, "exponential": 0.02,
            "plateau": 0.05, "broken": 0.08, "turn": 0.02},
    several={"constant": 0.01, "product": 0.09, "sum": 0.5, "shared": 0.4},
    one=(
        Misfit("walk", 0.0, 0.065), Misfit("drift", 1.0, 0.32), Misfit("drift", 10.0, 0.2, 0.047), Misfit("drift", 100.0, 0.13, 0.19),
        Misfit("drift", 1000.0, 0.085, 0.42), Misfit("drift", 10000.0, 0.055, 0.75), Misfit("walk", 1.0, 0.00084, 0.35),
        Misfit("walk", 10.0, 0.0019, 0.53), Misfit("walk", 100.0, 0.0042, 0.7), Misfit("walk", 1000.0, 0.0094, 0.88),
        Misfit("memory", 1.0, 0.042, 0.81, 0.6), Misfit("memory", 10.0, 0.042, 0.81, 0.6), Misfit("memory", 100.0, 0.042, 0.81, 0.6)),
    many=(Misfit("walk", 1.0, 0.4), Misfit("memory", 5.0, 0.3, 0.0, 0.5), Misfit("memory", 5.0, 0.3)),
    power=(1.3, 1.1), growth=(0.25, 1.0), floor=(1.5, 1.8), plateau=(2.2, 1.4), plateau_width=(0.48, 0.18),
    broken=(0.34, 1.3), broken_width=(0.13, 0.88), latest_break=0.7, noise_sd=0.0018, noise_dof=0.36,
    forward=0.093, shrinkage=(0.12, 0.2),
)
