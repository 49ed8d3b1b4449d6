"""What is to be done and how: packs of the runs that the store lacks, and the work on one pack."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from scalemem import accounting, checkpoint, data, measure, objectives, optimizers, pack, train
from scalemem.pack import Pack
from scalemem.spec import RunSpec, SpecError, canonical_json, from_dict, run_id, to_dict
from scalemem.store import Store

FLOPS_PER_CORE = 25e9  # a first guess of the training rate of small models, before the store has measured any
SHORT_RUN_S = 2.0  # runs shorter than this share a pack on a CPU
PACK_SIZE = 8
CHUNK_S = 2.0  # a call of the program lasts about this long: progress, interrupts and checkpoints come between calls
CHECKPOINT_S = float(os.environ.get("SCALEMEM_CHECKPOINT_S", 20.0))
DIVERGED_LOSS = 2.0  # a final training loss above this many times log V, the loss of guessing, is a diverged run

Report = Callable[[dict[str, Any]], None]


def check(runs: Sequence[RunSpec]) -> None:
    """Raises SpecError if a run names a generator, objective, optimizer, measure or architecture that does not exist."""
    from scalemem import models

    for run in {pack_key(run): run for run in runs}.values():
        stage = run.stages[0]
        data.get(stage.data.generator), objectives.get(stage.objective)
        optimizers.get(stage.optimizer.name)
        for probe in run.probes:
            measure.get(probe.measure)
        models.shape(run.model)
    for run in runs:
        if accounting.steps(run.stages[0]) >= 1 << 31:
            raise SpecError(f"stage.exposures = {run.stages[0].exposures}: must be fewer than 2^31 steps in all (now "
                            f"{accounting.steps(run.stages[0])}); lower the exposures or raise the batch")


def pack_key(run: RunSpec) -> RunSpec:
    """What runs of one compiled program have in common."""
    return train.Shape.of(run).run


def _micro_batch(runs: Sequence[RunSpec], how: str) -> int:
    """Rows a forward pass: on a CPU those that leave least padding near what the caches like, elsewhere the largest batch."""
    batches = {run.stages[0].batch_size for run in runs}
    if how != "map":
        return max(batches)
    most = max(1, 2 * train.MICRO_BATCH_TOKENS // runs[0].model.seq_len)
    return min(range(1, min(most, max(batches)) + 1), key=lambda rows: sum(-(-b // rows) * (rows + 1) / b for b in batches))


def seconds(run: RunSpec, flops_per_s: float = FLOPS_PER_CORE) -> float:
    """Estimated time of a run on one core."""
    return accounting.train_flops(run) / flops_per_s + accounting.steps(run.stages[0]) * 3e-5 + 0.05


def plan(runs: Sequence[RunSpec], store: Store | None = None, how: str = "map", devices: int = 1) -> list[Pack]:
    """Packs of the runs that the store lacks, longest first: one compilation for every model shape.

    Args:
      runs: the whole sweep; it fixes how much room a shape's data sets get, whatever has been done already.
      store: whose finished runs are left out, and whose checkpointed packs go on first, as they were.
      how: the executor; "vmap" and "shard" keep runs of one number of items and batch together.
      devices: for "shard": pack sizes are multiples of it.
    Raises:
      SpecError: a name in a run that does not exist, or a run too long to count.
    """
    check(runs)
    todo = {run_id(run): run for run in (store.missing(runs) if store else runs)}
    resumed = [p for p in (_checkpointed(store, name) for name in store.checkpoints()) if p] if store else []
    resumed = [p for p in resumed if any(run_id(run) in todo for run in p.runs)]
    for p in resumed:
        for run in p.runs:
            todo.pop(run_id(run), None)
    sweep: dict[Any, list[RunSpec]] = {}
    for run in runs:
        sweep.setdefault(pack_key(run), []).append(run)
    groups: dict[Any, list[RunSpec]] = {}
    for run in todo.values():
        together = () if how == "map" else (run.stages[0].data.n_items, run.stages[0].batch_size)
        groups.setdefault((pack_key(run), together), []).append(run)
    packs = []
    for (key, _), members in groups.items():
        members.sort(key=seconds, reverse=True)
        short = how != "map" or seconds(members[len(members) // 2]) < SHORT_RUN_S
        size = PACK_SIZE if short else 1
        size = -(-size // devices) * devices
        shape = train.Shape.of(members[0], max(r.stages[0].data.n_items for r in sweep[key]), _micro_batch(sweep[key], how))
        packs += [Pack(shape, tuple(members[i : i + size]), size) for i in range(0, len(members), size)]
    return resumed + sorted(packs, key=pack_seconds, reverse=True)


def pack_seconds(p: Pack) -> float:
    """Estimated time of a pack on one core."""
    return sum(map(seconds, p.runs))


def to_json(p: Pack) -> dict[str, Any]:
    """A pack as JSON; `from_json` is the inverse."""
    return {"runs": [to_dict(run, defaults=False) for run in p.runs], "size": p.size, "slots": p.shape.slots,
            "micro_batch": p.shape.micro_batch}


def from_json(value: dict[str, Any]) -> Pack:
    """The pack of `to_json`."""
    runs = tuple(from_dict(RunSpec, run) for run in value["runs"])
    return Pack(train.Shape.of(runs[0], slots=value["slots"], micro_batch=value["micro_batch"]), runs, value["size"])


def _checkpointed(store: Store, name: str) -> Pack | None:
    saved = checkpoint.load_pack(store.checkpoint_dir(name))
    try:
        return from_json(saved) if saved else None
    except (SpecError, KeyError, TypeError, IndexError):
        return None


def work(p: Pack, store: Store, how: str = "map", devices: int = 0, report: Report = lambda event: None,
         stopping: Callable[[], bool] = lambda: False, checkpoint_s: float = CHECKPOINT_S) -> bool:
    """Trains a pack, measures each run when it is finished and writes it to the store at once; goes on from a checkpoint.

    Args:
      p: the pack.
      store: where results and checkpoints go.
      how, devices: the executor and, for "shard", on how many devices.
      report: called with {"event": "progress", "flops": of this call} and {"event": "run", "run_id", "status"}.
      stopping: asked after every call of the program; if true, the pack is checkpointed and left.
      checkpoint_s: seconds between checkpoints.
    Returns:
      whether the pack is finished.
    """
    program, k = pack.program(p.shape, how, devices), pack.knobs(p)
    folder, began = store.checkpoint_dir(p.id), time.monotonic()
    loaded = checkpoint.load(folder, jax.eval_shape(program.start, k)) if checkpoint.epochs(folder) else None
    epoch, states, curves = loaded or (0, program.start(k), {})
    finished = store.finished()
    open_ = {i: run for i, run in enumerate(p.runs) if run_id(run) not in finished}
    provenance = {"pack": p.id, "pack_size": p.size, "executor": how, "devices": max(1, devices), "jax": jax.__version__,
                  "device": jax.devices()[0].device_kind}
    chunk, saved = 1, time.monotonic()

    def close() -> None:
        """Measure and write the runs that are through."""
        stopped_at, gone = jax.device_get((states.epoch, states.diverged))
        through = [i for i, run in open_.items() if gone[i] or stopped_at[i] >= run.stages[0].exposures]
        for i in through:
            run, state = open_.pop(i), jax.device_get(pack.unpack(states, i))
            row = _row(run, state)
            rows = {"runs": [row], "curves": curves.get(run_id(run), [])}
            store.append_tables(rows, {**provenance, "pack_seconds": round(time.monotonic() - began, 3)})
            report({"event": "run", "run_id": row["run_id"], "status": row["status"]})

    close()
    while open_:
        stop_at = min([_next_power_of_two(epoch)] + [r.stages[0].exposures for r in open_.values() if r.stages[0].exposures > epoch])
        ahead = min(chunk, stop_at - epoch)
        tick = time.monotonic()
        states = jax.block_until_ready(program.advance(states, k, ahead))
        took = time.monotonic() - tick
        report({"event": "progress", "flops": sum(_flops(run, epoch, epoch + ahead) for run in open_.values())})
        epoch += ahead
        chunk = max(1, min(2 * epoch, int(ahead * CHUNK_S / max(took, 1e-3))))
        if epoch & (epoch - 1) == 0:
            _curve_rows(open_, states, epoch, curves)
        close()
        leave = bool(open_) and stopping()  # asked once: what leaves has been saved
        if open_ and (leave or time.monotonic() - saved > checkpoint_s):
            checkpoint.save(folder, epoch, states, curves, to_json(p))
            saved = time.monotonic()
        if leave:
            return False
    store.remove_checkpoints(p.id)
    return True


def _next_power_of_two(epoch: int) -> int:
    return 1 << epoch.bit_length()


def _flops(run: RunSpec, first: int, last: int) -> float:
    """FLOPs of epochs first + 1 .. last of a run."""
    exposures = run.stages[0].exposures
    return accounting.train_flops(run) * max(0, min(last, exposures) - first) / max(1, exposures)


def _curve_rows(open_: dict[int, RunSpec], states: train.State, epoch: int, curves: dict[str, list]) -> None:
    """One row a run: the mean training loss of the epoch, and the measures of its probes at powers of two."""
    losses = states.loss_nats
    for i, run in open_.items():
        if epoch <= run.stages[0].exposures:
            row = {"run_id": run_id(run), "exposures": epoch, "loss_nats": float(losses[i])}
            for probe in run.probes:
                if probe.at == "powers_of_two":
                    row |= _measure(run, pack.unpack(states, i).params, probe.measure)
            curves.setdefault(run_id(run), []).append(row)


def _measure(run: RunSpec, params: Any, name: str) -> dict[str, float]:
    return measure.get(name)(run, params, train.key(run.seed, "data"), train.key(run.seed, "probe"))


def _row(run: RunSpec, state: train.State) -> dict[str, Any]:
    """The row of a finished run. A diverged one has no measures: its numbers would be averaged by mistake."""
    loss, limit = float(state.loss_nats), DIVERGED_LOSS * math.log(run.model.vocab_size)
    diverged = bool(state.diverged) or loss > limit or not all(np.isfinite(np.asarray(p, np.float32)).all()
                                                               for p in jax.tree.leaves(state.params))
    measures: dict[str, float] = {}
    for probe in () if diverged else run.probes:
        measures |= _measure(run, state.params, probe.measure)
    diverged = diverged or not measures.get("train_loss_nats", 0.0) <= limit  # lost in the last steps, after the loss was taken
    return {"run_id": run_id(run), "status": "diverged" if diverged else "done", "spec": canonical_json(run),
            **accounting.summary(run), "exposures_done": int(state.epoch), "loss_nats": loss, **({} if diverged else measures)}
