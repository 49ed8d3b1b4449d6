"""Facts met a known number of times: what each encounter adds, and how it is lost afterwards, by the definitions of Chang et al. 2024.

With l(t) the log probability of a fact's object under the weights before update t, and encounters at t_1 < ... < t_N, of the mean over facts,

    t_LAM(i) = argmax of l over t_i < t <= t_i + window          the local acquisition maximum (and not beyond t_(i+1))
    E(i)     = l(t_LAM(i)) - l(t_i)                              effectivity of encounter i
    R(t)     = (l(t_LAM(N) + t) - l(t_1)) / (l(t_LAM(N)) - l(t_1))    retainability, t steps after the last maximum

and R = r - a log10 t, fitted over t >= 1 up to the first R <= 0.05: a is the decay constant a decade, a / log 10 the one a factor of e, and
10^(r / a) the step at which nothing is left, from which a fact must come again. Every ratio is one of means over the facts of a run ("pooled"), for a
mean of ratios hangs on the facts that gained least. Maxima are looked for, and curves read, at the steps at which a run was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scalemem import tables as columns
from scalemem.analyses import panel as panels
from scalemem.analyses import retention
from scalemem.spec import RunSpec, SpecError, Stage, from_json
from scalemem.tables import RowsError

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = ("memorization", "semantic", "composition")
GONE = 0.05
AGAINST = ("before", "controls")
KEYS = ("run_id", "seed", "n_params", "d_model", "pretrain_steps", "batch_size", "met_count", "sentence_count", "kind", "facts_count")
ACQUIRED = (*KEYS, "effectivity_nats", "first_effectivity_nats", "last_effectivity_nats", "less_than_memorization_nats", "gain_nats", "end_gain_nats",
            "control_gain_nats", "again_effectivity_nats", "decay_per_decade_rate", "decay_per_efold_rate", "intercept_fraction",
            "explained_fraction", "points_count", "gone_steps", "gone_examples", "end_fraction")
ENCOUNTERS = (*KEYS, "encounter", "effectivity_nats", "before_nats", "maximum_nats", "to_maximum_steps")
RETAINED = (*KEYS, "since_steps", "since_examples", "retained_fraction", "object_nats", "control_nats")


class Line(NamedTuple):
    """R = intercept - decay log10(t)."""

    intercept: float
    decay: float
    explained: float
    points: int


class Curve(NamedTuple):
    """One kind of probe, mean over the facts of a group of one run."""

    key: dict[str, Any]
    met: np.ndarray  # steps of the encounters; the last `again` of them left out
    again: np.ndarray
    step: np.ndarray  # ascending, each once
    value: np.ndarray  # mean log probability at these steps, nats
    control: np.ndarray  # that of the controls


def encounters(run: RunSpec) -> dict[int, list[tuple[int, int]]]:
    """When each injected fact is met: {fact: [(step of the run, item number), ...]}, ascending.

    >>> from scalemem.spec import *
    >>> stage = Stage(data=DataSpec(n_items=8), optimizer=OptimizerSpec(peak_lr=0.1), exposures=1, batch_size=4)
    >>> later = Stage(data=DataSpec(n_items=8), optimizer=OptimizerSpec(peak_lr=0.1), exposures=9, batch_size=4,
    ...               inject=InjectSpec(n_items=2, first=100, times=2, interval=5))
    >>> model = ModelSpec(d_model=4, n_layers=0, n_heads=1, vocab_size=4, seq_len=4)
    >>> encounters(RunSpec(model=model, stages=(stage, later), probes=(Probe("facts"),)))
    {100: [(2, 100), (7, 100)], 101: [(2, 101), (7, 101)]}
    """
    found: dict[int, list[tuple[int, int]]] = {}
    before = 0
    for stage in run.stages:
        spec, variants = stage.inject, stage.data.variants
        for f in range(spec.n_items if spec else 0):
            assert spec is not None
            for m in range(spec.times):
                visit = m // spec.views * spec.views
                later = np.float32(spec.interval) * np.float32(visit) ** np.float32(spec.growth) if visit else np.float32(0)
                at = before + spec.start + int(np.floor(np.float32(spec.stagger) * np.float32(f) + later))
                item = spec.first + f * variants + (m % (variants - 1) if spec.paraphrase else 0)
                found.setdefault(item // variants, []).append((at, item))
        before += _steps(stage)
    return {fact: sorted(met) for fact, met in sorted(found.items())}


def analyse(tables: Mapping[str, pa.Table], *, table: str = "facts", window: int = 50, again: int = 0, against: str = "before",
            where: str | None = None) -> pa.Table:
    """A row for each run, number of encounters and kind of probe: effectivity, gain, decay and the step at which nothing is left.

    Args:
      tables: "runs", and that of the measure `facts`.
      table, where: its name, and which of its rows.
      window: steps after an encounter in which its maximum is looked for: what the optimizer's first moment remembers; 1 without one.
      again: so many last encounters of a fact are not part of the schedule but a probe of what is left: their effectivity is given, and R ends there.
      against: "before": R as it is defined. "controls": of l less the mean of the controls at the same step, for what all facts, met or not,
        gain and lose alike.
    Returns:
      met_count (encounters, without those of `again`), sentence_count (different sentences that a fact was met in: 1, duplicates), kind;
      pretrain_steps before the run's first encounter of a fact that is met more often than `again`, and batch_size then; effectivity_nats, mean of E;
      that of the first and of the last encounter;
      less_than_memorization_nats: by how much it is less than that of the kind "memorization"; gain_nats = l(t_LAM(N)) - l(t_1), end_gain_nats at
      the last step measured, control_gain_nats of the controls up to t_LAM(N); again_effectivity_nats, mean of the E of `again`;
      decay_per_decade_rate (a), decay_per_efold_rate, intercept_fraction (r), explained_fraction (R^2 of the line), points_count; gone_steps =
      10^(r / a), and gone_examples, that times the batch; NaN where the line does not fall or has fewer than 3 points; end_fraction: the last R.
    Raises:
      SpecError: another `against`. RowsError: no run meets facts.
    Source: Chang et al. 2024 (arXiv 2406.11813), as shared/literature/forgetting.md 2 has it; the paper's logarithm is taken as that to base 10.
    """
    found = []
    for group in _together(_curves(tables, table, window, again, against, where)):
        memorized = next((_effects(c, window)[0] for c in group if c.key["kind"] == KINDS[0]), None)
        for curve in group:
            effects, _, at, _ = _effects(curve, window)
            since, share = _retained(curve, window)
            drawn, gain = line(since, share), float(curve.value[at[-1]] - _before(curve))
            gone = 10 ** min(drawn.intercept / drawn.decay, 300.0) if drawn.decay > 0 else math.nan
            come_again = _effects(curve._replace(met=curve.again, again=curve.again[:0]), window)[0].mean() if len(curve.again) else math.nan
            found.append({**curve.key, "effectivity_nats": float(effects.mean()), "first_effectivity_nats": float(effects[0]),
                          "last_effectivity_nats": float(effects[-1]),
                          "less_than_memorization_nats": math.nan if memorized is None else float((memorized - effects).mean()),
                          "gain_nats": gain, "end_gain_nats": float(curve.value[_end(curve)] - _before(curve)),
                          "control_gain_nats": float(curve.control[at[-1]] - curve.control[np.searchsorted(curve.step, curve.met[0])]),
                          "again_effectivity_nats": float(come_again),
                          "decay_per_decade_rate": drawn.decay, "decay_per_efold_rate": drawn.decay / math.log(10),
                          "intercept_fraction": drawn.intercept, "explained_fraction": drawn.explained, "points_count": drawn.points,
                          "gone_steps": gone, "gone_examples": gone * curve.key["batch_size"], "end_fraction": float(share[-1])})
    return panels.rows(found, ACQUIRED)


def by_encounter(tables: Mapping[str, pa.Table], *, table: str = "facts", window: int = 50, again: int = 0, against: str = "before",
                 where: str | None = None) -> pa.Table:
    """A row for each encounter of the facts of a group, those of `again` too.

    Args: as those of `analyse`.
    Returns: its keys; encounter, from 1; effectivity_nats; before_nats and maximum_nats, the log probabilities that it is the difference of;
      to_maximum_steps, from the encounter to the maximum.
    """
    found = []
    for curve in _curves(tables, table, window, again, against, where):
        effects, start, at, _ = _effects(curve._replace(met=np.concatenate([curve.met, curve.again]), again=curve.again[:0]), window)
        found += [{**curve.key, "encounter": i + 1, "effectivity_nats": float(e), "before_nats": float(curve.value[s]),
                   "maximum_nats": float(curve.value[a]), "to_maximum_steps": float(curve.step[a] - curve.step[s])}
                  for i, (e, s, a) in enumerate(zip(effects, start, at, strict=True))]
    return panels.rows(found, ENCOUNTERS)


def retained(tables: Mapping[str, pa.Table], *, table: str = "facts", window: int = 50, again: int = 0, against: str = "before",
             where: str | None = None) -> pa.Table:
    """The curves of retainability: a row for each step measured after the last maximum.

    Args: as those of `analyse`.
    Returns: its keys; since_steps after that maximum, since_examples, the same times the batch; retained_fraction (R); object_nats and control_nats,
      mean log probabilities of the facts and of the controls (the first as `against` has it).
    """
    found = []
    for curve in _curves(tables, table, window, again, against, where):
        since, share = _retained(curve, window)
        rows = slice(_end(curve) + 1 - len(since), _end(curve) + 1)
        found += [{**curve.key, "since_steps": float(t), "since_examples": float(t) * curve.key["batch_size"], "retained_fraction": float(r),
                   "object_nats": float(v), "control_nats": float(c)}
                  for t, r, v, c in zip(since, share, curve.value[rows], curve.control[rows], strict=True)]
    return panels.rows(found, RETAINED)


def laws(tables: Mapping[str, pa.Table], *, group: Sequence[str] = ("seed", "n_params", "batch_size", "met_count", "sentence_count", "kind"),
         names: Sequence[str] = ("log_linear", "power", "power_floor", "exponential"), factor: float = 4.0, table: str = "facts", window: int = 50,
         again: int = 0, against: str = "before", where: str | None = None, of: str | None = None) -> pa.Table:
    """Which law retainability follows, each fitted to the first part of a curve and judged by its error on the rest, as `retention` does it.

    Args:
      group: columns of `retained`; each combination of their values is a curve.
      names: of laws.
      factor: how many times longer a curve is than the part that laws are fitted to.
      of: which rows of `retained`.
      table, window, again, against, where: as those of `analyse`.
    Returns:
      as `retention.analyse` of retained_fraction against since_steps.
    """
    curves = retained(tables, table=table, window=window, again=again, against=against, where=where)
    return retention.analyse({"retained": curves}, table="retained", value="retained_fraction", time="since_steps", group=group, laws=names,
                             factor=factor, where=of)


def line(since: np.ndarray, share: np.ndarray) -> Line:
    """Least squares of R on log10 t, t >= 1, up to the first R <= GONE; NaN with fewer than 3 points.

    >>> [round(float(v), 6) for v in line(np.array([0, 1, 10, 100, 1000]), np.array([1, 0.9, 0.6, 0.3, 0.0]))]
    [0.9, 0.3, 1.0, 4.0]
    """
    t, r = since[since >= 1], share[since >= 1]
    low = np.flatnonzero(r <= GONE)
    if len(low):
        t, r = t[: low[0] + 1], r[: low[0] + 1]
    if len(t) < 3:
        return Line(math.nan, math.nan, math.nan, len(t))
    x = np.log10(t)
    slope, at_one = np.polyfit(x, r, 1)
    spread = np.sum((r - r.mean()) ** 2)
    return Line(float(at_one), float(-slope), float(1 - np.sum((r - at_one - slope * x) ** 2) / spread) if spread else math.nan, len(t))


def _before(curve: Curve) -> float:
    return float(curve.value[np.searchsorted(curve.step, curve.met[0])])


def _effects(curve: Curve, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(E, place of t_i, place of the maximum, its value) of each encounter."""
    start = np.searchsorted(curve.step, curve.met)
    until = np.minimum(curve.met + window, np.append(curve.met[1:], curve.again[:1] if len(curve.again) else curve.step[-1]))
    end = np.searchsorted(curve.step, until, side="right")
    at = np.array([s + 1 + np.argmax(curve.value[s + 1 : e]) for s, e in zip(start, end, strict=True)])
    return curve.value[at] - curve.value[start], start, at, curve.value[at]


def _end(curve: Curve) -> int:
    """The last place before the encounters of `again`."""
    return int(np.searchsorted(curve.step, curve.again[0])) if len(curve.again) else len(curve.step) - 1


def _retained(curve: Curve, window: int) -> tuple[np.ndarray, np.ndarray]:
    """(t, R) from the last maximum on."""
    top = _effects(curve, window)[2][-1]
    before, rows = _before(curve), slice(top, _end(curve) + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return curve.step[rows] - curve.step[top], (curve.value[rows] - before) / (curve.value[top] - before)


def _steps(stage: Stage) -> int:
    return stage.exposures * -(-stage.data.n_items // stage.batch_size)


def _together(curves: Sequence[Curve]) -> list[list[Curve]]:
    """The kinds of probe of one group of facts of one run, together."""
    found: dict[tuple, list[Curve]] = {}
    for curve in curves:
        found.setdefault(tuple(v for k, v in curve.key.items() if k != "kind"), []).append(curve)
    return list(found.values())


def _curves(tables: Mapping[str, pa.Table], table: str, window: int, again: int, against: str, where: str | None) -> list[Curve]:
    """All curves of all runs that meet facts."""
    if against not in AGAINST:
        raise SpecError(f"analysis.against = {against!r}: must be one of {', '.join(AGAINST)}; choose one of these")
    runs = panels.table_of(tables, "runs")
    rows = panels.table_of(tables, table, where)
    specs = dict(zip(runs.column("run_id").to_pylist(), runs.column("spec").to_pylist(), strict=True))
    found: list[Curve] = []
    for key, one in panels.by(rows, ("run_id",)):
        run = from_json(specs[key["run_id"]])
        found += _of_run(run, key["run_id"], one, window, again, against)
    if not found:
        raise RowsError(f"table {table!r}: no run meets facts more than {again} times that are then measured; inject facts, and measure every stage")
    return found


def _of_run(run: RunSpec, name: str, rows: pa.Table, window: int, again: int, against: str) -> list[Curve]:
    step, fact = (panels.number(rows, c).astype(np.int64) for c in ("step", "fact"))
    steps, column = np.unique(step, return_inverse=True)
    facts, row = np.unique(fact, return_inverse=True)
    control = np.zeros(len(facts), bool)
    control[row[columns.load(rows, "source") == "control"]] = True
    values = {}
    for kind in KINDS:
        values[kind] = np.full((len(facts), len(steps)), math.nan)
        values[kind][row, column] = -panels.number(rows, f"{kind}_nats")
    schedules: dict[tuple[int, ...], list[int]] = {}
    met = encounters(run)
    for i, number in enumerate(facts.tolist()):
        if number in met and len(met[number]) > again:
            schedules.setdefault(tuple(at for at, _ in met[number]), []).append(i)
    begun = min((at[0] for at in schedules), default=0)
    starts = np.cumsum([0, *map(_steps, run.stages)])
    known = {"run_id": name, "seed": run.seed, "n_params": int(panels.number(rows, "n_params")[0]), "d_model": run.model.d_model,
             "pretrain_steps": begun, "batch_size": run.stages[int(np.searchsorted(starts, begun, side="right")) - 1].batch_size}
    found = []
    for at, members in schedules.items():
        cut = len(at) - again
        sentences = max(len({item for _, item in met[int(facts[i])][:cut]}) for i in members)
        for kind, all_of in values.items():
            mean, controls = all_of[members].mean(0), all_of[control].mean(0) if control.any() else np.full(len(steps), math.nan)
            on = ~np.isnan(mean)
            if not on.any():
                continue
            value = mean - controls if against == "controls" else mean
            key = {**known, "met_count": cut, "sentence_count": sentences, "kind": kind, "facts_count": len(members)}
            curve = Curve(key, np.array(at[:cut]), np.array(at[cut:], int), steps[on], value[on], controls[on])
            _check(curve, window)
            found.append(curve)
    return found


def _check(curve: Curve, window: int) -> None:
    """RowsError where the curve was not measured at an encounter, or never after it in its window."""
    for at in (*curve.met, *curve.again):
        place = int(np.searchsorted(curve.step, at))
        if place >= len(curve.step) - 1 or curve.step[place] != at or curve.step[place + 1] > at + window:
            raise RowsError(f"run {curve.key['run_id']}: not measured at step {at}, where a fact is met, and within {window} steps after it; probe "
                            "every step, or begin a stage there and probe at \"log\"")
