"""What is written of a run: the points of its curves, the rows of its measures, and its final row."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from scalemem import accounting, data, measure, pack, train
from scalemem.spec import RunSpec, canonical_json, run_id

DIVERGED_LOSS = 2.0  # a final training loss above this many times log V, the loss of guessing, is a diverged run

Block = dict[str, Any]  # column -> list of values, all of one length
Taken = dict[str, dict[str, Any]]  # measure -> what it gave of a run's parameters as they are now


def point(run: RunSpec, states: train.State, i: int, segment: int, taken: Taken) -> dict[str, Block]:
    """What is recorded of run i of a pack after so many segments: a row of `curves`, and rows of the measures that are due.

    The measures of the probes at "segments" are due always, those at "powers_of_two" after 1, 2, 4, ... segments; the arrays of the last
    segment are left to `final`, which takes from `taken` what was measured here.
    """
    due = [p.measure for p in run.probes if p.at == "segments" or (p.at == "powers_of_two" and segment & (segment - 1) == 0 < segment)]
    values, blocks = _measured(run, pack.unpack(states, i).params, due, segment, taken)
    row = {**_when(run, segment), "loss_nats": float(states.loss_nats[i]), **values}
    if segment < run.stages[0].exposures * run.stages[0].segments:
        taken.clear()
        return {"curves": {name: [value] for name, value in row.items()}} | blocks
    return {"curves": {name: [value] for name, value in row.items()}}


def final(run: RunSpec, state: train.State, taken: Taken) -> tuple[dict[str, Any], dict[str, Block]]:
    """The row of a finished run, and the rows of its measures. A diverged one has none: its numbers would be averaged by mistake."""
    loss, limit = float(state.loss_nats), DIVERGED_LOSS * math.log(run.model.vocab_size)
    diverged = bool(state.diverged) or loss > limit or not all(np.isfinite(np.asarray(p, np.float32)).all()
                                                               for p in jax.tree.leaves(state.params))
    stage, values, blocks = run.stages[0], {}, {}
    if not diverged:
        values, blocks = _measured(run, state.params, [p.measure for p in run.probes], int(state.segment), taken)
    diverged = diverged or not values.get("train_loss_nats", 0.0) <= limit  # lost in the last steps, after the loss was taken
    bits = math.nan if stage.data.canaries else data.get(stage.data.generator).entropy_bits(run) * stage.data.n_items
    known = {"data_bits": bits, "data_bits_per_param": bits / accounting.n_params(run.model)}  # of any generator; accounting knows one
    row = {"run_id": run_id(run), "status": "diverged" if diverged else "done", "spec": canonical_json(run), **accounting.summary(run), **known,
           "exposures_done": int(state.segment) // stage.segments, "loss_nats": loss, **({} if diverged else values)}
    return row, {} if diverged else blocks


def _when(run: RunSpec, segment: int) -> dict[str, Any]:
    """Which run, and how far it is; exposures are whole where segments are epochs."""
    stage = run.stages[0]
    return {"run_id": run_id(run), "exposures": segment // stage.segments if segment % stage.segments == 0 else segment / stage.segments}


def _measured(run: RunSpec, params: Any, names: list[str], segment: int, taken: Taken) -> tuple[dict[str, float], dict[str, Block]]:
    """The numbers of measures, and the arrays of each as a block of its table."""
    values: dict[str, float] = {}
    blocks: dict[str, Block] = {}
    stage = run.stages[0]
    for name in names:
        if name not in taken:
            taken[name] = measure.get(name)(run, params, train.key(run.seed, "data"), train.key(run.seed, "probe"))
        found = taken[name]
        arrays = {column: np.asarray(value) for column, value in found.items() if np.ndim(value)}
        values |= {column: value for column, value in found.items() if column not in arrays}
        if arrays:
            steps = -(-stage.data.n_items // stage.batch_size)
            epoch, part = divmod(segment, stage.segments)
            same = {**_when(run, segment), "exposures": segment / stage.segments, "step": epoch * steps + steps * part // stage.segments,
                    "seed": run.seed, "n_params": accounting.n_params(run.model)}
            count = len(next(iter(arrays.values())))
            blocks[name] = {k: [v] * count for k, v in same.items()} | {k: v.tolist() for k, v in arrays.items()}
    return values, blocks
