"""Many runs as a base and axes, each axis with its role: fitted (`grid`), tuned (`tune`) or repeated (`repeat`).

The role says what becomes of the axis after training: a fit reads a grid, keeps the best of a tuned axis, and treats
repeats as noise.
"""

from __future__ import annotations

import itertools
import math
import numbers
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeVar

from scalemem.spec import RunSpec, SpecError, from_dict, run_id, to_dict

Value = int | float | str | bool
Cell = Mapping[str, Value]
T = TypeVar("T")

MAX_RUNS = 1_000_000


class TuningWarning(UserWarning):
    """A tuned value that cannot be trusted to be the best: at the edge of its range, or nothing left to choose from."""


@dataclass(frozen=True)
class Axis:
    """Values of one axis and its role; made by `grid`, `tune` and `repeat`."""

    role: Literal["grid", "tune", "repeat"]
    values: tuple[Value | Cell, ...]
    by: str = ""
    best: Literal["lowest", "highest"] = "lowest"

    def __post_init__(self) -> None:
        if not self.values:
            raise SpecError(f"{self.role}(): no values; legal: at least one; name the values of the axis")
        cells = [isinstance(v, Mapping) for v in self.values]
        if any(cells) and not all(cells):
            raise SpecError(f"{self.role}(...): values and cells mixed; legal: all plain values, or all dicts; "
                            "write every value as a dict")
        if self.best not in ("lowest", "highest"):
            raise SpecError(f"tune(best={self.best!r}): must be lowest or highest; choose one of these")
        for cell in self.values:
            for value in cell.values() if isinstance(cell, Mapping) else [cell]:
                if not isinstance(value, (numbers.Real, str)):
                    raise SpecError(f"{self.role}(...): a value of type {type(value).__name__}; legal: number, str, "
                                    "bool or dict {path: value}; unpack a list as grid(*values)")


def grid(*values: Value | Cell) -> Axis:
    """An axis that is fitted: every value is run and every value is a point of the law.

    >>> grid(16, 32).values
    (16, 32)
    """
    return Axis("grid", values)


def tune(*values: Value | Cell, by: str, best: Literal["lowest", "highest"] = "lowest") -> Axis:
    """An axis that is minimised (or maximised) over before the fit, separately for each point of the other axes.

    Args:
      values: what is tried, for example learning rates.
      by: the column of the results that decides.
      best: whether the lowest or the highest `by` wins.

    >>> tune(0.01, 0.02, by="train_loss_nats").best
    'lowest'
    """
    if not isinstance(by, str) or not by:
        raise SpecError(f"tune(by={by!r}): must be the name of a column; name what decides, such as train_loss_nats")
    return Axis("tune", values, by, best)


def repeat(n: int) -> Axis:
    """An axis of n seeds: the base's seed, and the n - 1 after it.

    >>> len(repeat(5).values)
    5
    """
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MAX_RUNS:
        raise SpecError(f"repeat({n!r}): must be a whole number between 1 and {MAX_RUNS}; give the number of seeds")
    return Axis("repeat", tuple(range(n)))


@dataclass(frozen=True)
class Sweep:
    """All combinations of the values of `axes`, substituted into `base`; `a + b` is the union of two sweeps.

    Args:
      base: the run that every combination starts from.
      axes: name to axis. Of an axis of plain values the name is the field that they replace: a dotted path
        ("stages.0.exposures") or an end of one that is unique ("exposures", "optimizer.name"). Of an axis of cells
        (dicts {path: value}, fields that change together) and of repeats it is any name.

    Raises:
      SpecError: an unknown or ambiguous path, two axes for one field, or more than a million runs. A combination that
        makes no valid run raises when the runs are listed: validity is checked after all substitutions.

    >>> from scalemem.spec import *
    >>> m = ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=128, seq_len=32)
    >>> s = Stage(data=DataSpec(n_items=128), optimizer=OptimizerSpec(peak_lr=0.02), exposures=125, batch_size=16)
    >>> base = RunSpec(model=m, stages=(s,), probes=(Probe("capacity"),))
    >>> size = grid({"d_model": 16, "n_items": 128}, {"d_model": 32, "n_items": 512})
    >>> sweep = Sweep(base, {"size": size, "exposures": grid(125, 250), "seeds": repeat(3)})
    >>> len(sweep), sweep.runs()[-1].model.d_model, sweep.runs()[-1].seed
    (12, 32, 2)
    """

    base: RunSpec
    axes: Mapping[str, Axis] = field(default_factory=dict)
    others: tuple[Sweep, ...] = ()  # the further parts of a union

    def __post_init__(self) -> None:
        if not isinstance(self.base, RunSpec):
            raise SpecError(f"base = {type(self.base).__name__}: must be a RunSpec; build the base with RunSpec(...)")
        if not isinstance(self.axes, Mapping):
            raise SpecError(f"axes = {type(self.axes).__name__}: must be a dict {{name: axis}}; name every axis")
        for name, axis in self.axes.items():
            if not isinstance(axis, Axis):
                raise SpecError(f"axes[{name!r}] = {type(axis).__name__}: must be an axis; "
                                "write grid(...), tune(...) or repeat(n)")
        total = sum(math.prod(len(axis.values) for axis in part.axes.values()) for part in self._parts)
        if total > MAX_RUNS:
            raise SpecError(f"axes: {total:,} runs; legal: at most {MAX_RUNS:,}; drop values or split the sweep")
        if len({(axis.by, axis.best) for axis in self.axes.values() if axis.role == "tune"}) > 1:
            raise SpecError("axes: tuned axes that differ in by or best; legal: one criterion; tune all by one column")
        _ = self._substitutions  # unknown paths raise here, not when the runs are listed

    def __add__(self, other: Sweep) -> Sweep:
        return Sweep(self.base, self.axes, self.others + other._parts) if isinstance(other, Sweep) else NotImplemented

    def __len__(self) -> int:
        return len(self._points)

    def runs(self) -> list[RunSpec]:
        """The runs, each once: the last axis varies fastest, the parts of a union follow one another."""
        return [point.run for point in self._points.values()]

    def labels(self) -> dict[str, dict[str, int]]:
        """For every `run_id`, the position of the run on each axis of the first part of the sweep that has it."""
        return {key: dict(next(iter(point.places.values()))) for key, point in self._points.items()}

    def reduce_tuned(self, table: T) -> T:
        """Keeps the rows of the best value of every tuned axis, for each combination of the grid axes.

        The repeats of a tuned value are averaged before values are compared. A value is passed over if one of its rows
        diverged or has no finite `by`. Each part of a union is tuned on its own, with all of its runs, those that other
        parts have, too; what any part keeps is kept.

        Args:
          table: a `pyarrow.Table` or a list of dicts with the columns `run_id` and `by`, one row a run.

        Returns:
          The kept rows, all repeats of them, unchanged and in their order; rows of other sweeps are left out.

        Raises:
          SpecError: the table lacks the column `run_id` or `by`.

        Warns:
          TuningWarning: a best value lies at the edge of its range, or no value of a combination is usable.
        """
        rows: list[dict[str, Any]] = table if isinstance(table, list) else table.to_pylist()  # type: ignore[attr-defined]
        places = {row["run_id"]: i for i, row in enumerate(rows)} if _has(rows, "run_id") else {}
        groups: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
        for key, point in self._points.items():
            for part, position in point.places.items() if key in places else ():
                roles = {name: axis.role for name, axis in self._parts[part].axes.items()}
                group = (part, *(i for name, i in position.items() if roles[name] == "grid"))
                value = tuple(i for name, i in position.items() if roles[name] == "tune")
                groups.setdefault(group, {}).setdefault(value, []).append(places[key])
        keep: list[int] = []
        edges: dict[str, int] = {}
        for (part, *_), candidates in groups.items():
            tuned = {name: axis for name, axis in self._parts[part].axes.items() if axis.role == "tune"}
            best = _best_value(candidates, rows, next(iter(tuned.values()))) if tuned else ()
            if best is None:
                n_rows = sum(map(len, candidates.values()))
                warnings.warn(f"no value of {' x '.join(tuned)} could be chosen: all diverged; "
                              f"{n_rows} runs are left out", TuningWarning, stacklevel=2)
                continue
            keep.extend(candidates[best])
            for (name, axis), i in zip(tuned.items(), best, strict=True):
                edges[name] = edges.get(name, 0) + _at_edge(axis.values, i)
        for name, count in edges.items():
            if count:
                warnings.warn(f"the best {name} is at the edge of its range in {count} of {len(groups)} combinations; "
                              "widen the range", TuningWarning, stacklevel=2)
        keep = sorted(set(keep))
        return [rows[i] for i in keep] if isinstance(table, list) else table.take(keep)  # type: ignore[return-value, attr-defined]

    @cached_property
    def _parts(self) -> tuple[Sweep, ...]:
        return (Sweep(self.base, self.axes), *self.others) if self.others else (self,)

    @cached_property
    def _substitutions(self) -> list[list[dict[str, Value]]]:
        """For each axis, what each of its values puts into the base: {full path: value}."""
        legal = _leaves(to_dict(self.base))
        owner: dict[str, str] = {}
        substitutions = []
        for name, axis in self.axes.items():
            if axis.role == "repeat":
                if any(path.endswith(f".{name}") or path == name for path in legal if path != "seed"):
                    raise SpecError(f"axes: {name!r} = repeat(...) would repeat over a field; legal: a name that is "
                                    "no field, since repeats set the seed; call the axis seed")
                cells: list[Cell] = [{"seed": self.base.seed + int(i)} for i in axis.values]  # type: ignore[arg-type]
            else:
                cells = [value if isinstance(value, Mapping) else {name: value} for value in axis.values]
            substitutions.append([{_resolve(path, legal): value for path, value in cell.items()} for cell in cells])
            for path in {path for cell in substitutions[-1] for path in cell}:
                if owner.setdefault(path, name) != name:
                    raise SpecError(f"axes: {owner[path]!r} and {name!r} both set {path}; legal: one axis for a field; "
                                    "leave it out of one of them")
        return substitutions

    @cached_property
    def _points(self) -> dict[str, _Point]:
        points: dict[str, _Point] = {}
        for number, part in enumerate(self._parts):
            for position in itertools.product(*map(range, map(len, part._substitutions))):
                run = part._run(position)
                point = points.setdefault(run_id(run), _Point(run, {}))
                point.places.setdefault(number, dict(zip(part.axes, position, strict=True)))
        return points

    def _run(self, position: tuple[int, ...]) -> RunSpec:
        content = to_dict(self.base)
        for values, i in zip(self._substitutions, position, strict=True):
            for path, value in values[i].items():
                *parents, leaf = path.split(".")
                node = content
                for step in parents:
                    node = node[int(step) if isinstance(node, list) else step]
                node[leaf] = value
        try:
            return from_dict(RunSpec, content)
        except SpecError as error:
            where = ", ".join(f"{name}[{i}]" for name, i in zip(self.axes, position, strict=True))
            raise SpecError(f"{error} (at {where})" if where else str(error)) from None


class _Point(NamedTuple):
    run: RunSpec
    places: dict[int, dict[str, int]]  # for every part of a union that has the run: axis name to position on that axis


def _leaves(value: Any, path: str = "") -> list[str]:
    if not isinstance(value, (dict, list)):
        return [path]
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return [leaf for key, child in items for leaf in _leaves(child, f"{path}.{key}" if path else str(key))]


def _resolve(name: str, legal: list[str]) -> str:
    """The one legal path that is `name` or ends in it."""
    found = [path for path in legal if path == name] or [path for path in legal if path.endswith(f".{name}")]
    if len(found) == 1:
        return found[0]
    what = f"ambiguous: {', '.join(found)}" if found else "unknown field"
    raise SpecError(f"axes: {' '.join(str(name).split())[:80]!r}: {what}; legal: {', '.join(legal)}; "
                    "use one of these paths or an end of one that is unique")


def _has(rows: list[dict[str, Any]], column: str) -> bool:
    if rows and column not in rows[0]:
        raise SpecError(f"table: no column {column!r}; legal: {', '.join(map(str, rows[0]))}; name one of these")
    return True


def _best_value(candidates: Mapping[tuple[int, ...], list[int]], rows: list[dict[str, Any]],
                axis: Axis) -> tuple[int, ...] | None:
    """The candidate with the best mean of `axis.by` among those whose rows are all finite; the first of equals."""
    _has(rows, axis.by)
    means = {}
    for value, places in candidates.items():
        scores = [rows[i][axis.by] for i in places if rows[i].get("status") != "diverged"]
        if len(scores) == len(places) and all(s is not None and math.isfinite(s) for s in scores):
            means[value] = math.fsum(scores) / len(scores)
    pick = min if axis.best == "lowest" else max
    return pick(means, key=means.__getitem__) if means else None


def _at_edge(values: Sequence[Value | Cell], i: int) -> bool:
    """Whether values[i] is the smallest or largest of several numbers; other values have no order and no edge."""
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in values) or len(set(map(float, values))) < 2:  # type: ignore[arg-type]
        return False
    return values[i] in (min(values), max(values))  # type: ignore[type-var]
