"""Recognition, recall and retention: what is known of a set of facts when its study ends, and how much of that is left later.

The study set of a run is the data of one of its stages. A fact is recalled if greedy decoding from all that stands before its object gives the
object; it is recognised, in a test against a foil, if its own object is likelier; of that 1/2 is chance, and 2 (share - 1/2) is the score above it.
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

RANDOM, CONTROL = 1 << 28, 1 << 29  # item numbers of `data.facts`, which needs JAX: without structure, and controls
KEYS = ("run_id", "seed", "n_params", "d_model", "pretrain_steps", "pretrain_random", "study_exposures", "random_set")
WHAT = ("recall_fraction", "recognition_fraction", "above_chance_fraction", "gain_nats")
CURVES = (*KEYS, "facts_count", "stage", "since_steps", *WHAT, "control_recall_fraction", "control_recognition_fraction", "pool_recall_fraction")
KEPT = (*KEYS, "before_recall_fraction", "before_recognition_fraction", "study_recall_fraction", "study_recognition_fraction", "study_gain_nats",
        "early_recall_fraction", "early_recognition_fraction", "end_recall_fraction", "end_recognition_fraction", "end_since_steps",
        "recall_kept_fraction", "recognition_kept_fraction", "recognition_longer_fraction", "early_loss_fraction", "pool_kept_fraction")
MATCHED = ("seed", "n_params", "pretrain_steps", "pretrain_random", "level_fraction", "kept_fraction", "more_than_untrained_fraction",
           "more_than_strings_fraction", "compared", "longest")


class _Of(NamedTuple):
    """The rows of one run, from the beginning of the study on."""

    key: dict[str, Any]
    count: int
    stage: np.ndarray  # [N], of each time measured
    since: np.ndarray  # steps since the end of the study; negative in it
    value: dict[str, np.ndarray]  # [N] each


def curves(tables: Mapping[str, pa.Table], *, table: str = "facts", study: int = 1) -> pa.Table:
    """What is known of the study set at each time measured: a row a run and time, from the end of the study on.

    Args:
      tables: "runs", and that of the measure `facts`.
      table: its name.
      study: the stage whose data are the study set.
    Returns:
      pretrain_steps before the study and study_exposures in it; random_set, whether the set has no structure; facts_count; the stage, and
      since_steps, the steps since the study ended; recall_fraction, recognition_fraction, above_chance_fraction, and gain_nats, mean log
      probability of the object less what it was before the study; recall and recognition of controls of the same kind, and
      pool_recall_fraction of the facts of stage 0.
    Raises:
      RowsError: no run has a stage after the study, or is measured there.
    """
    found = []
    for run in _runs(tables, table, study):
        for i in np.flatnonzero(run.since >= 0):
            found.append({**run.key, "facts_count": run.count, "stage": int(run.stage[i]), "since_steps": float(run.since[i]),
                          **{name: float(v[i]) for name, v in run.value.items()}})
    return panels.rows(found, CURVES)


def kept(tables: Mapping[str, pa.Table], *, table: str = "facts", study: int = 1, early: float = 10.0, after: int = 0) -> pa.Table:
    """A row a run: recall and recognition before and after the study, after a few steps of other things, and at the end.

    Args:
      table, study: as those of `curves`.
      early: steps after the study that count as the first ones.
      after: the last stage that is read, as a number of stages after the study; 0 is all.
    Returns:
      the keys of `curves`; before_, study_, early_ and end_ recall and recognition; study_gain_nats; recall_kept_fraction, end over study;
      recognition_kept_fraction, the same of the score above chance; recognition_longer_fraction, their difference; early_loss_fraction, which part
      of the recall that is lost at the end was lost in the first `early` steps; pool_kept_fraction, the recall of the facts of stage 0 at the
      end over that before the study. NaN where nothing was there to be kept or lost.
    Source: the three are those of Orhan 2023 (arXiv 2303.17557), as shared/literature/memorization.md 14.1 has it.
    """
    if not early > 0:
        raise SpecError(f"analysis.early = {early!r}: must be above 0, in steps; write 10")
    found = []
    for run in _runs(tables, table, study):
        read = run.since >= 0 if not after else (run.since >= 0) & (run.stage <= study + after)
        begin, first, end = 0, int(np.flatnonzero(run.since >= 0)[0]), int(np.flatnonzero(read)[-1])
        soon = int(np.flatnonzero(run.since <= early)[-1])
        recall, recognition, pool = (run.value[name] for name in ("recall_fraction", "recognition_fraction", "pool_recall_fraction"))
        above = 2 * recognition - 1
        recalled, recognised = _over(recall[end], recall[first]), _over(above[end], above[first])
        found.append({**run.key, "before_recall_fraction": float(recall[begin]), "before_recognition_fraction": float(recognition[begin]),
                      "study_recall_fraction": float(recall[first]), "study_recognition_fraction": float(recognition[first]),
                      "study_gain_nats": float(run.value["gain_nats"][first]), "early_recall_fraction": float(recall[soon]),
                      "early_recognition_fraction": float(recognition[soon]), "end_recall_fraction": float(recall[end]),
                      "end_recognition_fraction": float(recognition[end]), "end_since_steps": float(run.since[end]),
                      "recall_kept_fraction": recalled, "recognition_kept_fraction": recognised,
                      "recognition_longer_fraction": recognised - recalled,
                      "early_loss_fraction": _over(recall[first] - recall[soon], recall[first] - recall[end]),
                      "pool_kept_fraction": _over(pool[end], pool[begin])})
    return panels.rows(found, KEPT)


def laws(tables: Mapping[str, pa.Table], *, value: str = "gain_nats", table: str = "facts", study: int = 1, factor: float = 4.0,
         group: Sequence[str] = ("seed", "n_params", "study_exposures", "random_set"),
         names: Sequence[str] = ("log_linear", "power", "power_floor", "exponential", "exponential_decay_double"),
         of: str | None = None) -> pa.Table:
    """Which law a curve of retention follows, each fitted to its first part and judged by its error on the rest, as `retention` does it.

    Args:
      value: a column of `curves`.
      table, study: as those of `curves`.
      factor: how many times longer a curve is than the part that laws are fitted to.
      group: columns of `curves`; each combination of their values is a curve.
      names: of laws.
      of: which rows of `curves`.
    Returns:
      as `retention.analyse` of the value against since_steps.
    """
    if value not in WHAT:
        raise SpecError(f"analysis.value = {value!r}: must be one of {', '.join(WHAT)}; choose one of these")
    return retention.analyse({"curves": curves(tables, table=table, study=study)}, table="curves", value=value, time="since_steps", group=group,
                             laws=names, factor=factor, where=of)


def matched(tables: Mapping[str, pa.Table], *, levels: Sequence[float] = (0.5, 0.7, 0.9), table: str = "facts", study: int = 1,
            after: int = 1) -> pa.Table:
    """What is kept of the study set, at equal recall when the study ends: pre-training of several lengths, of facts and of strings, side by side.

    Runs of one seed, size and pre-training differ in the exposures of the study. The recall after `after` more stages is a function of that at the
    end of the study, by straight lines between these runs (and none at none), and is read at each of `levels`.

    Args:
      levels: recall at the end of the study, each in (0, 1].
      table, study, after: as those of `kept`.
    Returns:
      a row for each seed, size, pre-training and level that its runs reach: kept_fraction, recall afterwards over the level; more_than_untrained_ and
      more_than_strings_fraction, that less kept_fraction of no pre-training and of the longest on strings without structure, NaN where these do not
      reach the level; compared, 1 where both are there; longest, 1 for the longest pre-training on facts.
    Source: the comparison that shared/literature/forgetting.md 4.20 asks for.
    """
    if not levels or not all(0 < level <= 1 for level in levels):
        raise SpecError(f"analysis.levels = {list(levels)!r}: must be above 0 and at most 1; write the recall at which runs are compared")
    rows = kept(tables, table=table, study=study, after=after)
    found: dict[tuple, dict[str, Any]] = {}
    for key, one in panels.by(rows, MATCHED[:4]):
        recall, later = panels.number(one, "study_recall_fraction"), panels.number(one, "end_recall_fraction")
        order = np.argsort(recall, kind="stable")
        for level in levels:
            if recall.max() >= level:
                then = np.interp(level, np.append(0.0, recall[order]), np.append(0.0, later[order]))
                found[(*key.values(), level)] = {**key, "level_fraction": level, "kept_fraction": float(then / level)}
    longest = {random: max((k[2] for k in found if k[3] == random), default=None) for random in (0, 1)}

    def less(key: tuple, steps: int | None, random: int) -> float:
        other = found.get((*key[:2], steps, random, key[4]))
        return math.nan if other is None else found[key]["kept_fraction"] - other["kept_fraction"]

    for key, row in found.items():
        row["more_than_untrained_fraction"], row["more_than_strings_fraction"] = less(key, 0, 0), less(key, longest[1], 1)
        row["compared"] = float(not (math.isnan(row["more_than_untrained_fraction"]) or math.isnan(row["more_than_strings_fraction"])))
        row["longest"] = float(key[2:4] == (longest[0], 0))
    if not found:
        raise RowsError(f"table {table!r}: no run recalls {min(levels):g} of its set when stage {study} ends; study for longer, or lower the levels")
    return panels.rows(list(found.values()), MATCHED)


def _pretrained_on(run: RunSpec) -> int:
    """The first item of what stage 0 reads."""
    first = run.stages[0]
    return first.replay.first if first.replay and first.replay.fraction == 1 else first.data.first


def _over(a: float, b: float) -> float:
    return float(a / b) if b > 0 else math.nan


def _steps(stage: Stage) -> int:
    return stage.exposures * -(-stage.data.n_items // stage.batch_size)


def _runs(tables: Mapping[str, pa.Table], table: str, study: int) -> list[_Of]:
    runs, rows = panels.table_of(tables, "runs"), panels.table_of(tables, table)
    specs = dict(zip(runs.column("run_id").to_pylist(), runs.column("spec").to_pylist(), strict=True))
    found = []
    for key, one in panels.by(rows, ("run_id",)):
        run = from_json(specs[key["run_id"]])
        if study < len(run.stages) - 1:
            found.append(_of_run(run, key["run_id"], one, study))
    if not found:
        raise RowsError(f"table {table!r}: no run has a stage after stage {study}; train on something else after the study")
    return found


def _of_run(run: RunSpec, name: str, rows: pa.Table, study: int) -> _Of:
    """The curves of one run, from the beginning of its study."""
    data, source = run.stages[study].data, columns.load(rows, "source")
    step, stage, fact = (panels.number(rows, c).astype(np.int64) for c in ("step", "stage", "fact"))
    first, last = data.first // data.variants, (data.first + data.n_items - 1) // data.variants
    own = (fact >= first) & (fact <= last)
    random = data.first % CONTROL >= RANDOM
    controls, pool = source == ("control_random" if random else "control"), source == "stage0"
    starts = np.cumsum([0, *map(_steps, run.stages)])
    later = (stage > study) | ((stage == study) & (step == starts[study]))  # the end of the study is the beginning of the next stage
    place, at = np.unique(np.stack([stage[later], step[later]], 1), axis=0, return_inverse=True)
    if not (own & later).any() or place[0, 0] != study:
        raise RowsError(f"run {name}: the facts of stage {study} were not measured at its beginning; probe at \"stages\" or \"log\"")

    def mean(column: str, of: np.ndarray) -> np.ndarray:
        values, chosen = panels.number(rows, column), of[later]
        total = np.bincount(at.ravel()[chosen], values[later][chosen], minlength=len(place))
        with np.errstate(divide="ignore", invalid="ignore"):
            return total / np.bincount(at.ravel()[chosen], minlength=len(place))

    nats = mean("memorization_nats", own)
    value = {"recall_fraction": mean("recalled", own), "recognition_fraction": mean("recognized_fraction", own), "gain_nats": nats[0] - nats,
             "control_recall_fraction": mean("recalled", controls), "control_recognition_fraction": mean("recognized_fraction", controls),
             "pool_recall_fraction": mean("recalled", pool & ~own)}
    value["above_chance_fraction"] = 2 * value["recognition_fraction"] - 1
    strings = starts[study] > 0 and _pretrained_on(run) % CONTROL >= RANDOM
    key = {"run_id": name, "seed": run.seed, "n_params": int(panels.number(rows, "n_params")[0]), "d_model": run.model.d_model,
           "pretrain_steps": int(starts[study]), "pretrain_random": int(strings), "study_exposures": run.stages[study].exposures,
           "random_set": int(random)}
    return _Of(key, len(np.unique(fact[own])), place[:, 0], place[:, 1] - starts[study + 1], value)
