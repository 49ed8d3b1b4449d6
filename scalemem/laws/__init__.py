"""The laws, one file a family; `get(name)`, `names()` and `describe()`. A new law is one file here and one line in this registry."""

from __future__ import annotations

from scalemem.laws import (
    broken,
    capacity,
    constant,
    exponential,
    exposure,
    forgetting,
    linear,
    logarithmic,
    loss,
    membership,
    power,
    repeated,
    saturating,
    ushaped,
)
from scalemem.laws.base import Law, Parameter

_LAWS: dict[str, Law] = {law.name: law for law in (
    power.POWER, power.POWER_FLOOR, power.SHIFTED_POWER, power.M3, power.M4,
    broken.ONE, broken.TWO, broken.THREE, ushaped.U_SHAPED,
    linear.LINEAR, logarithmic.LOG_LINEAR, logarithmic.LOGARITHMIC_DECAY,
    saturating.SATURATING_POWER, saturating.HILL, saturating.SIGMOID_LOG,
    exponential.SATURATING_EXPONENTIAL, exponential.EXPONENTIAL, exponential.EXPONENTIAL_DECAY, exponential.EXPONENTIAL_DECAY_DOUBLE,
    loss.CHINCHILLA, loss.CHINCHILLA_SHARED, loss.KAPLAN, loss.GADRE, repeated.REPEATED_DATA, repeated.DATA_CONSTRAINED,
    forgetting.KALAJDZIEVSKI, forgetting.FINETUNING, forgetting.BETHUNE, logarithmic.EXTRACTION_LOG_LINEAR,
    capacity.HARD, capacity.SMOOTH, capacity.BITS_LINEAR,
    exposure.EXPOSURE,
    membership.MEMBERSHIP,
    constant.CONSTANT,
)}


def names() -> tuple[str, ...]:
    """The names of all laws.

    >>> "capacity" in names()
    True
    """
    return tuple(_LAWS)


def describe() -> list[dict[str, str]]:
    """What one chooses a law by: `{name, formula, predictors}` of each, predictors as text to write --x NAME=COLUMN from.

    >>> describe()[0]
    {'name': 'power', 'formula': 'y = a x^b', 'predictors': 'x'}
    """
    return [{"name": law.name, "formula": law.formula, "predictors": ", ".join(law.predictors) or "none"} for law in _LAWS.values()]


def get(name: str | Law) -> Law:
    """The law of a name; a Law is returned as it is. Raises TableError for an unknown name.

    >>> get("power").formula
    'y = a x^b'
    """
    if isinstance(name, Law):
        return name
    if name not in _LAWS:
        from scalemem.tables import TableError
        each = ", ".join(f"{d['name']} ({d['predictors']})" for d in describe())
        raise TableError(f"law {name!r}: unknown; legal, with predictors: {each}; choose one, with NAME=COLUMN for each predictor")
    return _LAWS[name]


__all__ = ["Law", "Parameter", "describe", "get", "names"]
