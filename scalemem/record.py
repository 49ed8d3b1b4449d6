"""What is written of a run: the points of its curves, the rows of its measures, and its final row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from scalemem import accounting, columnar, data, measure, quick, strategies, train, trainable
from scalemem.data.load import load_ratio
from scalemem.measure.moment import Moment, sources
from scalemem.spec import RunSpec, at_stage, canonical_json, run_id

DIVERGED_LOSS = 2.0  # a final training loss above this many times log V, the loss of guessing, is a diverged run
AN_OCTAVE = 4  # points of "log"

Block = dict[str, Any]  # column -> list or array of values, all of one length
Taken = dict[str, dict[str, Any]]  # measure -> what it gave of a run's weights as they are now
Weights = Callable[[], Any]  # the weights of the whole model, made when a measure asks for them


def segments(run: RunSpec, stage: int = 0) -> int:
    """Segments of a stage of a run: what its training is counted in."""
    return run.stages[stage].exposures * run.stages[stage].segments


def is_log_point(segment: int) -> bool:
    """Whether a point of "log" is due after so many segments: 0, 1, ..., 8, 10, 11, 13, 16, ..., round(2^(j / 4)).

    >>> [n for n in range(33) if is_log_point(n)]
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 16, 19, 23, 27, 32]
    """
    return segment <= 8 or segment == round(2 ** (round(AN_OCTAVE * math.log2(segment)) / AN_OCTAVE))


def due(run: RunSpec, stage: int, segment: int) -> list[str]:
    """The measures that are taken after so many segments of a stage, but for those of the end of the run."""
    ends = segment in (0, segments(run, stage))
    when = {"end": False, "segments": True, "powers_of_two": segment & (segment - 1) == 0 < segment, "stages": ends,
            "log": ends or is_log_point(segment)}
    return [probe.measure for probe in run.probes if when[probe.at]]


def is_point(run: RunSpec, stage: int, segment: int) -> bool:
    """Whether the curves of a run have a point after so many segments of a stage: after 1, 2, 4, ..., and when its probes say."""
    return segment & (segment - 1) == 0 < segment or bool(due(run, stage, segment))


def next_point(run: RunSpec, stage: int, segment: int) -> int:
    """The next segment of a stage after which the curves have a point, or its last."""
    kinds = {probe.at for probe in run.probes}
    after = segment + 1 if "segments" in kinds else 1 << segment.bit_length()
    if "log" in kinds:  # far fewer are passed over than there are segments up to the next power of two
        after = min(after, next(n for n in range(segment + 1, after + 1) if n == after or is_log_point(n)))
    return min(after, segments(run, stage))


def point(run: RunSpec, stage: int, segment: int, loss_nats: float, weights: Weights, reference: Any, taken: Taken) -> dict[str, Block]:
    """What is recorded of a run after so many segments of a stage: a row of `curves`, and rows of the measures that are due.

    The arrays at the end of the last stage are left to `final`, which takes from `taken` what was measured here.
    """
    values, blocks = _measured(run, stage, segment, weights, reference, due(run, stage, segment), taken)
    row = {**_when(run, stage, segment), "loss_nats": loss_nats, **values}
    if stage == len(run.stages) - 1 and segment >= segments(run, stage):
        blocks = {}
    else:
        taken.clear()
    return {"curves": {name: [value] for name, value in row.items()}} | blocks


def final(run: RunSpec, state: train.State, weights: Weights, taken: Taken) -> tuple[dict[str, Any], dict[str, Block]]:
    """The row of a finished run, and the rows of its measures. A diverged one has none: its numbers would be averaged by mistake."""
    loss, limit = float(state.loss_nats), DIVERGED_LOSS * math.log(run.model.vocab_size)
    diverged = bool(state.diverged) or loss > limit or not all(np.isfinite(np.asarray(p, np.float32)).all()
                                                               for p in jax.tree.leaves(state.params))
    stage, last, values, blocks = run.stages[0], len(run.stages) - 1, {}, {}
    if not diverged:
        values, blocks = _measured(run, last, int(state.segment), weights, state.reference, [p.measure for p in run.probes], taken)
    diverged = diverged or not values.get("train_loss_nats", 0.0) <= limit  # lost in the last steps, after the loss was taken
    bits = math.nan if stage.data.canaries else data.get(stage.data.generator).entropy_bits(run) * stage.data.n_items
    known = {"data_bits": bits, "data_bits_per_param": bits / accounting.n_params(run.model)}  # of any generator; accounting knows one
    row = {"run_id": run_id(run), "status": "diverged" if diverged else "done", "spec": canonical_json(run), **accounting.summary(run), **known,
           **_costs(run), "exposures_done": int(state.segment) // run.stages[last].segments, "loss_nats": loss, **({} if diverged else values)}
    return row, {} if diverged else blocks


def _costs(run: RunSpec) -> dict[str, float]:
    """Of a run of several stages: its load, what each of them trains, and what its strategy costs beside plain training."""
    found = {"capacity_load_ratio": load_ratio(run)} if len(run.stages) > 1 else {}
    for i, stage in enumerate(run.stages if len(run.stages) > 1 else ()):
        found[f"stage{i}_trained_params"] = trainable.n_trained(run.model, stage)
        if stage.strategy:
            found |= {f"stage{i}_strategy_{name}": value for name, value in strategies.costs(at_stage(run, i))._asdict().items()}
    return found


def _when(run: RunSpec, stage: int, segment: int) -> dict[str, Any]:
    """Which run, and how far it is; exposures are whole where segments are epochs."""
    spec = run.stages[stage]
    exposures = segment // spec.segments if segment % spec.segments == 0 else segment / spec.segments
    row = {"run_id": run_id(run), "exposures": exposures}
    if len(run.stages) > 1:
        row |= {"stage": stage, "stage_step": _step(run, stage, segment), "step": _total(run, stage, segment)}
    return row


def _step(run: RunSpec, stage: int, segment: int) -> int:
    """Optimizer steps of a stage after so many segments of it."""
    spec = run.stages[stage]
    steps = -(-spec.data.n_items // spec.batch_size)
    epoch, part = divmod(segment, spec.segments)
    return epoch * steps + steps * part // spec.segments


def _total(run: RunSpec, stage: int, segment: int) -> int:
    return sum(accounting.steps(before) for before in run.stages[:stage]) + _step(run, stage, segment)


def _measured(run: RunSpec, stage: int, segment: int, weights: Weights, reference: Any, names: list[str],
              taken: Taken) -> tuple[dict[str, float], dict[str, Block]]:
    """The numbers of measures, and the arrays of each as a block of its table."""
    values: dict[str, float] = {}
    blocks: dict[str, Block] = {}
    view, most = at_stage(run, stage), {probe.measure: probe.most for probe in run.probes}
    params = weights() if any(name not in taken for name in names) else None
    at_end = all(probe.at == "end" for probe in run.probes)
    for name in names:
        if name not in taken:
            at = (Moment(stage, None if stage == 0 else reference, sources(run), most[name]),) if name in measure.OF_STAGES else ()
            with quick.once(at_end):
                taken[name] = measure.get(name)(view, params, train.key(run.seed, "data"), train.key(run.seed, "probe"), *at)
        arrays = {column: np.asarray(value) for column, value in taken[name].items() if np.ndim(value)}
        values |= {column: value for column, value in taken[name].items() if column not in arrays}
        if arrays:
            same = {**_when(run, stage, segment), "exposures": segment / run.stages[stage].segments, "step": _total(run, stage, segment),
                    "seed": run.seed, "n_params": accounting.n_params(run.model)}
            count = len(next(iter(arrays.values())))
            kept = {k: v.tolist() if v.dtype == object else v for k, v in arrays.items()}
            blocks[name] = {k: columnar.repeated(v, count) for k, v in same.items()} | kept
    return values, blocks
