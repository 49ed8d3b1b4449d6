"""Strategies beside one another: what each has kept and learned over a sequence of tasks, and what it costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scalemem.analyses import continual
from scalemem.analyses import panel as panels
from scalemem.analyses.split import parts
from scalemem.spec import SpecError
from scalemem.tables import RowsError

if TYPE_CHECKING:
    import pyarrow as pa

NONE, ALL = "none", "joint"


def name_of(run: Mapping[str, Any]) -> str:
    """What a run does against forgetting, from its row, by its last stage.

    The strategy, or what is trained if that is not all (lora, half, ...), or "replay", or "joint" for a replay of all items before; with a "+" where
    there are several. "none" is none of them.

    >>> name_of({"stage0_n_items": 8, "stage1_n_items": 8, "stage1_trains": "all", "stage1_strategy_name": None})
    'none'
    >>> name_of({"stage0_n_items": 8, "stage1_n_items": 8, "stage1_trains": "all", "stage1_replay_fraction": 0.5, "stage1_replay_n_items": 8})
    'joint'
    """
    last = _stages(run) - 1
    of = lambda field: run.get(f"stage{last}_{field}")  # noqa: E731
    before = sum(run[f"stage{i}_n_items"] for i in range(last))
    found = [" ".join(filter(None, (of("strategy_name"), of("strategy_kind")))), of("trains") or "all"]
    if of("replay_fraction"):
        found.append(ALL if (of("replay_n_items") or 0) >= before else "replay")
    return "+".join(part for part in found if part not in ("", "all")) or NONE


def costs(run: Mapping[str, Any]) -> dict[str, float]:
    """What a run costs beside plain training of the same stages, from its row.

    Returns:
      extra_flops_ratio: FLOPs of strategies over those of training all stages, each weighted by its steps and batch; state_floats_per_param: the most
      that is kept beside weights and moments, over the weights; stored_tokens_count: the most old tokens that are stored, those of replay pools, too;
      stored_bits: these at log2 V bits a token, and what is stored in another form.
    """
    stages = range(_stages(run))
    get = lambda i, field: run.get(f"stage{i}_{field}") or 0.0  # noqa: E731
    weight = [get(i, "n_items") * get(i, "exposures") for i in stages]
    pools = [get(i, "replay_n_items") * run["seq_len"] if get(i, "replay_fraction") else 0.0 for i in stages]
    tokens = [max(get(i, "strategy_stored_tokens"), pools[i]) for i in stages]
    return {"extra_flops_ratio": sum(w * get(i, "strategy_flops_ratio") for i, w in enumerate(weight)) / max(sum(weight), 1),
            "state_floats_per_param": max(get(i, "strategy_state_floats") for i in stages) / run["n_params"],
            "stored_tokens_count": max(tokens),
            "stored_bits": max(n * math.log2(run["vocab_size"]) + get(i, "strategy_stored_bits") for i, n in enumerate(tokens))}


def _stages(run: Mapping[str, Any]) -> int:
    return next(i for i in itertools.count() if run.get(f"stage{i}_n_items") is None)


def analyse(tables: Mapping[str, pa.Table], *, table: str = "tasks", value: str = "accuracy_fraction", task: str = "task",
            by: Sequence[str] = ("stages.0.data.scenario",), where: str | None = None, first_stage: int = 0) -> pa.Table:
    """A row a run: what it does (`name_of`), what it costs (`costs`), what a sequence of tasks leaves (`continual.analyse`), and against the ends.

    gain_fraction is ACC less that of the run of the same seed that does nothing, and closed_fraction the same over what `joint` gains: 1 is as good
    as training on everything. bwt_gain_fraction is BWT less that of doing nothing.

    Args:
      tables: "runs", and that of scores.
      table, value, task, where, first_stage: as in `continual`.
      by: fields of the runs within which runs are compared, by their path or an end of it that is unique.
    Returns:
      run_id, seed, n_params, the fields of `by` under the last part of their paths, strategy, and the columns above.
    Raises:
      SpecError: no such table or field; RowsError: as `continual`.
    """
    if not by:
        raise SpecError("analysis.by = []: must name at least one field within which runs are compared; write 'generator'")
    rows: list[dict[str, Any]] = []
    for key, part in parts(tables, by):
        about = panels.runs(part)
        scores = continual.analyse(part, table=table, value=value, task=task, where=where, first_stage=first_stage).to_pylist()
        ends = {(name_of(about[row["run_id"]]), row["seed"], row["n_params"]): row for row in scores}
        for row in scores:
            none, joint = (ends.get((name, row["seed"], row["n_params"])) for name in (NONE, ALL))
            gain = row["acc_fraction"] - none["acc_fraction"] if none else math.nan
            room = joint["acc_fraction"] - none["acc_fraction"] if joint and none else math.nan
            run = about[row["run_id"]]
            fields = {path.rsplit(".", 1)[-1]: v for path, v in key.items()}
            rows.append({**row, **fields, "strategy": name_of(run), **costs(run), "gain_fraction": gain,
                         "bwt_gain_fraction": row["bwt_fraction"] - none["bwt_fraction"] if none else math.nan,
                         "closed_fraction": gain / room if room > 0 else math.nan})
    return panels.rows(rows, tuple(rows[0]))


def frontier(tables: Mapping[str, pa.Table], *, table: str = "facts", value: str = "recalled", old: str = "stage0", new: str = "stage1",
             stage: int = 1) -> pa.Table:
    """A row a run of old knowledge, then new: what is kept of the old and learned of the new, and how far above the straight line of doing less.

    kept_fraction is the score on old items at the end of the stage over that at the end of the stage before (before its own first step where that was
    not measured: prompts change a model before they are trained); learned_fraction the score on new items at its end. Plain tuning ends at
    (learned_0, kept_0), no tuning at (0, 1), and what lies on the line between them could be had by tuning less:

        above_line_fraction = kept - 1 - (kept_0 - 1) learned / learned_0,

    with the plain run of the same seed and size; where a strategy learns more than plain tuning the line goes on.

    Args:
      tables: "runs", and that of items (run_id, seed, n_params, stage, stage_step, source, a column of scores).
      table, value: its name, and the column of scores from 0 to 1, higher is better.
      old, new: sources.
      stage: the stage of tuning.
    Returns:
      run_id, seed, n_params, strategy (`name_of`), strength (of a strategy, else of a replay, else of its adapters' rank; 0 without), the scores,
      gained_kept_fraction and gained_learned_fraction over the plain run, `costs`, and compute_ratio: FLOPs of the stage over those of the plain run.
    Raises:
      SpecError: no such table. RowsError: a run without rows of a source.
    """
    items = panels.table_of(tables, table, f"stage == {stage}")
    about, earlier = panels.runs(tables), _ends(panels.table_of(tables, table), value, old, stage - 1)
    rows: list[dict[str, Any]] = []
    for key, part in panels.by(items, ["run_id", "seed", "n_params"]):
        run = about.get(key["run_id"])
        if run is None:
            continue
        step, score, source = panels.number(part, "stage_step"), panels.number(part, value), part["source"].to_pylist()

        def mean(name: str, at: float, step=step, score=score, source=source, key=key) -> float:
            chosen = (step == at) & np.array([s == name for s in source])
            if not chosen.any():
                raise RowsError(f"table {table!r}, run {key['run_id']}: no row of source {name!r} at step {at:g}; measure it before and after stages")
            return float(score[chosen].mean())

        get = lambda field, run=run: run.get(f"stage{stage}_{field}")  # noqa: E731
        strength = next((v for v in (get("strategy_strength"), get("replay_fraction"), get("rank")) if v is not None), 0.0)
        work = get("n_items") * get("exposures") * (1 + (get("strategy_flops_ratio") or 0.0))
        first, last = step.min(), step.max()
        before = earlier.get(key["run_id"], mean(old, first))
        rows.append({**key, "strategy": name_of(run), "strength": float(strength), "kept_fraction": mean(old, last) / max(before, 1e-9),
                     "learned_fraction": mean(new, last), "old_before_fraction": before, **costs(run), "work": work})
    plain = {(row["seed"], row["n_params"]): row for row in rows if row["strategy"] == NONE}
    nothing = {"kept_fraction": math.nan, "learned_fraction": math.nan}
    works = {key: row["work"] for key, row in plain.items()}
    for row in rows:
        base = plain.get((row["seed"], row["n_params"]), nothing)
        kept, learned = row["kept_fraction"], row["learned_fraction"]
        slope = (base["kept_fraction"] - 1) / base["learned_fraction"] if base["learned_fraction"] else math.nan
        row |= {"above_line_fraction": kept - 1 - slope * learned, "gained_kept_fraction": kept - base["kept_fraction"],
                "gained_learned_fraction": learned - base["learned_fraction"],
                "compute_ratio": row.pop("work") / works.get((row["seed"], row["n_params"]), math.nan)}
    if not rows:
        raise RowsError(f"table {table!r}: no run of its rows has finished; run the sweep")
    return panels.rows(rows, tuple(rows[0]))


def _ends(items: pa.Table, value: str, source: str, stage: int) -> dict[str, float]:
    """The mean score of a source at the end of a stage, by run; of runs that were measured there."""
    found = {}
    at, of = panels.number(items, "stage"), np.array(items["source"].to_pylist())
    chosen = items.filter((at == stage) & (of == source))
    if chosen.num_rows:
        for key, part in panels.by(chosen, ["run_id"]):
            step = panels.number(part, "stage_step")
            found[key["run_id"]] = float(panels.number(part, value)[step == step.max()].mean())
    return found
