"""What is to be done and how: packs of the runs that the store lacks, and the work on one pack."""

from __future__ import annotations

import functools
import os
import socket
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from scalemem import (
    __version__,
    accounting,
    checkpoint,
    columnar,
    data,
    export_model,
    hosts,
    keeping,
    locking,
    measure,
    objectives,
    optimizers,
    record,
    strategies,
    train,
)
from scalemem.data import schedule
from scalemem.durable import DiskError
from scalemem.models import attention
from scalemem.pack import Pack
from scalemem.spec import RunSpec, SpecError, at_stage, from_dict, run_id, to_dict
from scalemem.store import Store, StoreWarning

FLOPS_PER_CORE = 25e9  # the training rate of small models on a CPU core, where a store has timed none
SHORT_RUN_S = 2.0  # runs shorter than this share a pack on a CPU
PACK_SIZE = 8
CHUNK_S = 2.0  # a call of the program lasts about this long: progress, interrupts and checkpoints come between calls
CHECKPOINT_S = float(os.environ.get("SCALEMEM_CHECKPOINT_S", 20.0))

Report = Callable[[dict[str, Any]], None]


def check(runs: Sequence[RunSpec]) -> None:
    """Raises SpecError if a run names a generator, objective, optimizer, measure or architecture that does not exist."""
    from scalemem import models

    for run in {pack_key(run): run for run in runs}.values():
        for stage in run.stages:
            objectives.get(stage.objective)
            optimizers.get(stage.optimizer.name)
        strategies.check(run)
        measure.check(run)
        models.shape(run.model)
    for run in runs:
        for i, stage in enumerate(run.stages):
            view, steps = at_stage(run, i), accounting.steps(stage)
            data.check(view)
            if steps >= 1 << 31:
                raise SpecError(f"stage.exposures = {stage.exposures}: must be fewer than 2^31 steps in all (now {steps}); lower the exposures or "
                                "raise the batch")
            schedule.check(view, steps)


@functools.lru_cache(maxsize=1 << 14)
def pack_key(run: RunSpec) -> tuple[RunSpec, tuple[int, ...]]:
    """What runs of one compiled program have in common; those of several stages are as long in each, too, so that they end it together."""
    return train.Shape.of(run).run, tuple(record.segments(run, i) for i in range(len(run.stages))) if len(run.stages) > 1 else ()


def _micro_batch(runs: Sequence[RunSpec], how: str, split: int, most: int) -> int:
    """Rows a forward pass: on a CPU those that leave least padding near what the caches like, elsewhere the largest batch; `most`, if not 0."""
    if most or how == "fsdp":
        rows = min(most or 1 << 30, max(stage.batch_size for run in runs for stage in run.stages))
        return -(-rows // split) * split if how == "fsdp" else rows
    batches = {stage.batch_size for run in runs for stage in run.stages}
    if how != "map":
        return max(batches)
    most = max(1, 2 * train.MICRO_BATCH_TOKENS // runs[0].model.seq_len)
    return min(range(1, min(most, max(batches)) + 1), key=lambda rows: sum(-(-b // rows) * (rows + 1) / b for b in batches))


def seconds(run: RunSpec) -> float:
    """Estimated time of a run on one core. Plans rest on it, so it depends on the run alone, not on what a store has timed."""
    return accounting.train_flops(run) / FLOPS_PER_CORE + sum(map(accounting.steps, run.stages)) * 3e-5 + 0.05


def plan(runs: Sequence[RunSpec], store: Store | None = None, how: str = "map", devices: int = 1, micro_batch: int = 0,
         remat: bool = False, sizes: Callable[[Sequence[RunSpec], train.Shape], int] | None = None, split: int = 0) -> list[Pack]:
    """Packs of the runs that the store lacks, longest first: one compilation for every model shape.

    Args:
      runs: the whole sweep; it fixes how much room a shape's data sets get, whatever has been done already.
      store: whose finished runs are left out, and whose packs with a checkpoint of this executor go on first, as they were, with
        their finished runs in their places. `left` counts what there is to do.
      how: "map", "vmap", "shard" or "fsdp"; all but "map" keep runs of one number of items and batch together.
      devices: for "shard": pack sizes are multiples of it; for "fsdp": there are as many.
      micro_batch: most rows a forward pass; a step sums the gradients of as many passes as its batch needs. 0: as suits the executor.
      remat: each block's activations are computed again in the backward pass, and not kept.
      sizes: of (runs, shape) gives how many share a pack, for "vmap" and "shard", such as `packsize.choose`; 8 by default.
      split: for "fsdp": over how many devices each run is split, of which the rows of a pass are a multiple; there is a run of a pack on each so
        many. All by default.
    Returns:
      packs that have every missing run once.
    Raises:
      SpecError: a name in a run that does not exist, or a run too long to count.
      StoreError: the store cannot be read.
    """
    check(runs)
    split = split or devices
    todo = {run_id(run): run for run in (store.missing(runs) if store else runs)}
    resumed = []
    for name in store.checkpoints() if store else ():
        p = _checkpointed(store, name, how, devices)  # type: ignore[arg-type]
        if p and any(run_id(run) in todo for run in p.runs):
            resumed.append(p)
            for run in p.runs:
                todo.pop(run_id(run), None)
    sweep: dict[Any, list[RunSpec]] = {}
    for run in runs:
        sweep.setdefault(pack_key(run), []).append(run)
    groups: dict[Any, list[RunSpec]] = {}
    for run in todo.values():
        together = () if how == "map" else tuple((stage.data.n_items, stage.batch_size) for stage in run.stages)
        groups.setdefault((pack_key(run), together), []).append(run)
    packs = []
    for (key, _), members in groups.items():
        members.sort(key=seconds, reverse=True)
        short = how != "map" or seconds(members[len(members) // 2]) < SHORT_RUN_S
        slots, *later = (max(r.stages[i].data.n_items for r in sweep[key]) for i in range(len(members[0].stages)))
        shape = train.Shape.of(members[0], slots, _micro_batch(sweep[key], how, split, micro_batch), tuple(later), remat)
        size = sizes(members, shape) if sizes and how in ("vmap", "shard") else PACK_SIZE if short else 1
        size = devices // split if how == "fsdp" else -(-size // devices) * devices
        packs += [Pack(shape, tuple(members[i : i + size]), size) for i in range(0, len(members), size)]
    return resumed + sorted(packs, key=pack_seconds, reverse=True)


def pack_seconds(p: Pack) -> float:
    """Estimated time of a pack on one core."""
    return sum(map(seconds, p.runs))


class Left(NamedTuple):
    """What is left to do."""

    runs: int
    flops: float
    seconds: float  # one pack after another


def left(packs: Sequence[Pack], store: Store | None = None, how: str = "map", devices: int = 1) -> Left:
    """What is left of packs: their runs that the store lacks, from the segments on that their checkpoints have.

    Args:
      packs: as planned.
      store: their store, if there is one yet; where it has timed this executor on this machine, its median rate gives the seconds.
      how, devices: the executor, as for `plan`.
    """
    finished, rate = (store.finished(), _rate(store, how, devices)) if store else ({}, None)
    runs, flops, time_s = 0, 0.0, 0.0
    for p in packs:
        folder = store.checkpoint_dir(p.id) if store else None
        done = checkpoint.epochs(folder)[-1] if folder and _suits(checkpoint.load_pack(folder), how, devices) else 0
        for run in p.runs:
            if run_id(run) not in finished:
                work = _flops(run, done, _total(run))
                share = work / max(1.0, accounting.train_flops(run))
                runs, flops, time_s = runs + 1, flops + work, time_s + (work / rate if rate else share * seconds(run))
    return Left(runs, flops, time_s)


def _rate(store: Store, how: str, devices: int) -> float | None:
    """FLOPs a second of this executor on this machine: the median of the packs that the store has timed, None if there are none."""
    wanted = {"host": socket.gethostname(), "executor": how, "devices": max(1, devices)}
    timed = [made for made in store.provenance().values() if made.get("work_seconds") and wanted.items() <= made.items()]
    timed.sort(key=lambda made: made["work_seconds"])  # the last of a pack is of all of it
    rates = {made["pack"]: made["work_flops"] / made["work_seconds"] for made in timed}
    return statistics.median(rates.values()) if rates else None


def to_json(p: Pack) -> dict[str, Any]:
    """A pack as JSON; `from_json` is the inverse."""
    later = {"later_slots": p.shape.later_slots} if p.shape.later_slots else {}
    again = {"remat": True} if p.shape.remat else {}
    return {"runs": [to_dict(run, defaults=False) for run in p.runs], "size": p.size, "slots": p.shape.slots,
            "micro_batch": p.shape.micro_batch, **later, **again}


def from_json(value: dict[str, Any]) -> Pack:
    """The pack of `to_json`."""
    runs = tuple(from_dict(RunSpec, run) for run in value["runs"])
    shape = train.Shape.of(runs[0], value["slots"], value["micro_batch"], tuple(value.get("later_slots", ())), value.get("remat", False))
    return Pack(shape, runs, value["size"])


def _suits(saved: dict[str, Any] | None, how: str, devices: int) -> bool:
    """Whether an executor can go on with a checkpoint: one of another executor has states of other places or on other devices."""
    return saved is not None and (saved.get("how", "map"), saved.get("devices", 1)) == (how, max(1, devices))


def _checkpointed(store: Store, name: str, how: str = "", devices: int = 1) -> Pack | None:
    """The pack of a checkpoint, if it is whole and suits the executor (any by default)."""
    saved = checkpoint.load_pack(store.checkpoint_dir(name))
    try:
        return from_json(saved) if saved and (not how or _suits(saved, how, devices)) else None
    except (SpecError, KeyError, TypeError, IndexError, AttributeError):
        return None


def tidy(store: Store) -> None:
    """Removes checkpoints that nothing goes on from: those of packs whose runs have all finished, and, where nobody works, half-written ones."""
    finished, alone = store.finished(), not locking.leases(store.path / "leases")
    for name in store.checkpoints():
        checkpoint.discard_unreadable(store.checkpoint_dir(name), store.path / "set-aside",
                                      lambda text: warnings.warn(text, StoreWarning, stacklevel=3))
        p = _checkpointed(store, name)
        if (alone and not checkpoint.epochs(store.checkpoint_dir(name))) or (p and all(run_id(run) in finished for run in p.runs)):
            store.remove_checkpoints(name)


def work(p: Pack, store: Store, how: str = "map", devices: int = 0, report: Report = lambda event: None,
         stopping: Callable[[], bool] = lambda: False, checkpoint_s: float = CHECKPOINT_S) -> bool:
    """Trains a pack, measures each run when it is finished and writes it to the store at once; goes on from a checkpoint.

    A run whose measure raises, or whose row cannot be written, is recorded as failed; the others go on.

    Args:
      p: the pack.
      store: where results and checkpoints go.
      how, devices: the executor and, for "shard" and "fsdp", on how many devices.
      report: called with {"event": "progress", "flops": of this call}, {"event": "run", "run_id", "status"}, {"event": "failed", "run_ids",
        "reason"} and {"event": "warning", "text"}.
      stopping: asked after every call of the program; if true, the pack is checkpointed and left.
      checkpoint_s: seconds between checkpoints.
    Returns:
      whether the pack is finished.
    Raises:
      StoreError: the store or a checkpoint cannot be written.
      Exception: whatever JAX raises for a program that does not compile or fit.
    """
    stages = hosts.stages(p, how, devices, to_json(p))
    folder, began = store.checkpoint_dir(p.id), time.monotonic()
    aside, keep = store.path / "set-aside", keeping.asked(store.path)

    def told(text: str) -> None:
        report({"event": "warning", "text": text})

    checkpoint.discard_unreadable(folder, aside, told)
    if not _suits(checkpoint.load_pack(folder), how, devices):
        store.remove_checkpoints(p.id)
    loaded = checkpoint.load(folder, stages.like, aside, told)
    states: train.State = stages.restored(loaded[1]) if loaded else stages.start()
    segment, curves = (loaded[0], loaded[2]) if loaded else (0, {})  # segments are counted over all stages
    del loaded  # as large as the states
    stage = stages.of(segment)
    finished = store.finished()
    open_ = {i: run for i, run in enumerate(p.runs) if run_id(run) not in finished}
    taken: dict[int, record.Taken] = {i: {} for i in open_}
    timed = dict.fromkeys(("work_seconds", "work_flops", "first_seconds", "measure_seconds", "checkpoint_seconds"), 0.0)  # first: compiles
    provenance = {"pack": p.id, "pack_size": p.size, "executor": how, "devices": max(1, devices), "host": socket.gethostname(),
                  "device": jax.devices()[0].device_kind, "jax": jax.__version__, "scalemem": __version__,
                  "attention": attention.kind(p.shape.run.model)}

    def failed(run: RunSpec, error: Exception) -> None:
        store.fail([run_id(run)], reason(error), traceback.format_exc()[-4000:])
        report({"event": "failed", "run_ids": [run_id(run)], "reason": reason(error)})

    def trace() -> None:
        """A point of the curve of every run that goes on; the last one is `close`'s."""
        local = segment - stages.begins[stage]
        for i, run in list(open_.items()):
            try:
                if local <= record.segments(run, stage) and record.is_point(run, stage, local):
                    weights, loss = functools.partial(stages.weights, states, i, stage, local), float(jax.device_get(states.loss_nats)[i])
                    reference = stages.reference(states, i) if stage else None
                    for name, rows in record.point(run, stage, local, loss, weights, reference, taken[i]).items():
                        curves.setdefault(run_id(run), {}).setdefault(name, []).append(rows)
            except Exception as error:  # whatever a measure raises
                failed(open_.pop(i), error)

    def close() -> None:
        """Measure and write the runs that are through."""
        stopped_at, gone = jax.device_get((states.segment, states.diverged))
        last = stage == len(stages.begins) - 2
        through = [i for i, run in open_.items() if gone[i] or (last and stopped_at[i] >= record.segments(run, stage))]
        for i in through:
            run = open_.pop(i)
            if segment < _total(run):  # diverged: the rest of its work is done, too
                report({"event": "progress", "flops": _flops(run, segment, _total(run))})
            try:
                weights = functools.partial(stages.weights, states, i, stage, segment - stages.begins[stage])
                row, rest = record.final(run, stages.run(states, i), weights, taken[i])
                if keep.models:  # before the row, which makes the run finished
                    export_model.save(export_model.path_of(store.path, row["run_id"]), run, weights(), row["status"])
                tables = curves.get(run_id(run), {})
                for name, rows in rest.items():
                    tables.setdefault(name, []).append(rows)
                united = {name: columnar.unite_blocks(blocks) for name, blocks in tables.items()}
                store.append_tables({"runs": [row], **united}, {**provenance, "pack_seconds": round(time.monotonic() - began, 3), **timed})
            except DiskError:
                raise
            except Exception as error:
                failed(run, error)
            else:
                report({"event": "run", "run_id": row["run_id"], "status": row["status"]})

    def measured(act: Callable[[], None]) -> None:
        tick = time.monotonic()
        act()
        timed["measure_seconds"] += time.monotonic() - tick

    if segment == 0 and any(record.due(run, 0, 0) for run in p.runs):
        measured(trace)
    measured(close)
    chunk, saved, compiled = 1, time.monotonic(), False
    named, made = keep.moments(stages.begins, p.runs[0].stages[-1].segments), {**to_json(p), "how": how, "devices": max(1, devices)}
    with checkpoint.Writer(folder, made) as writer:
        while open_:
            if segment == stages.begins[stage + 1] and stage + 1 < len(p.runs[0].stages):
                stage, states, compiled, chunk = stage + 1, stages.switch(states, stage + 1), False, 1
                if any(record.due(run, stage, 0) for run in p.runs):
                    measured(trace)
                measured(close)
                continue
            local = segment - stages.begins[stage]
            stop_at = min([record.next_point(run, stage, local) for run in open_.values()]
                          + [moment - stages.begins[stage] for moment in named if moment > segment])
            ahead = min(chunk, stop_at - local)
            tick = time.monotonic()
            states = jax.block_until_ready(stages.advance(states, stage, ahead))
            took = time.monotonic() - tick
            flops = sum(_flops(run, segment, segment + ahead) for run in open_.values())
            report({"event": "progress", "flops": flops})
            if compiled:
                timed["work_seconds"] += took
                timed["work_flops"] += flops
            else:
                timed["first_seconds"] += took
            segment, compiled, local = segment + ahead, True, local + ahead
            chunk = max(1, min(2 * local, int(ahead * CHUNK_S / max(took, 1e-3))))
            if segment in named:
                checkpoint.save(keeping.folder(store.path, named[segment], p.id), segment, stages.kept(states), {}, made)
            if local == stop_at:
                measured(trace)
            measured(close)
            leave = bool(open_) and stopping()  # asked once: what leaves has been saved
            tick = time.monotonic()
            writer.check()
            if open_ and (leave or (tick - saved > checkpoint_s and not writer.busy)):
                writer.save(segment, stages.kept(states), curves)
                saved = time.monotonic()
                timed["checkpoint_seconds"] += saved - tick
            if leave:
                return False
    store.remove_checkpoints(p.id)
    return True


def reason(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _total(run: RunSpec) -> int:
    """Segments of all stages of a run."""
    return sum(record.segments(run, i) for i in range(len(run.stages)))


def _flops(run: RunSpec, first: int, last: int) -> float:
    """FLOPs of segments first + 1 .. last of a run, counted over its stages."""
    found, begin = 0.0, 0
    for i, stage in enumerate(run.stages):
        count = record.segments(run, i)
        done = max(0, min(last, begin + count) - max(first, begin))
        found += accounting.stage_flops(run.model, stage) * done / max(1, count)
        begin += count
    return found
