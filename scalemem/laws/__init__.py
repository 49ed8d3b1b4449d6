"""The laws, one file a family; `get(name)` and `names()`. A new law is one file here and one line in this registry."""

from __future__ import annotations

from scalemem.laws import capacity, constant, exposure, membership, power
from scalemem.laws.base import Law, Parameter

_LAWS: dict[str, Law] = {law.name: law for law in (
    power.POWER, power.POWER_FLOOR,
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


def get(name: str | Law) -> Law:
    """The law of a name; a Law is returned as it is. Raises TableError for an unknown name.

    >>> get("power").formula
    'y = a x^b'
    """
    if isinstance(name, Law):
        return name
    if name not in _LAWS:
        from scalemem.tables import TableError
        raise TableError(f"law {name!r}: unknown; legal: {', '.join(_LAWS)}; choose one of these")
    return _LAWS[name]


__all__ = ["Law", "Parameter", "get", "names"]
