"""What the executor costs beside training and measuring, and how long training waits for a checkpoint.

    python benchmarks/overhead.py [--runs 200] [--out benchmarks/results/overhead.json]

A sweep of runs of about a second goes through worker processes, twice: first to fill the cache of compiled programs, then to be measured.
Counted as overhead are the seconds of a worker within packs that are neither in the compiled program nor in measures, and those between packs.
A checkpoint is written of states of three sizes, in the foreground, as before it was written beside the training, and by `checkpoint.Writer`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from scalemem import checkpoint, execute, launch, pack, train
from scalemem.durable import write_whole
from scalemem.spec import DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage
from scalemem.store import Store


def _run(seed: int, exposures: int, model: ModelSpec | None = None) -> RunSpec:
    model = model or ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=128, seq_len=32)
    stage = Stage(data=DataSpec(n_items=128), optimizer=OptimizerSpec(peak_lr=0.02), exposures=exposures, batch_size=16)
    return RunSpec(model=model, stages=(stage,), probes=(Probe("capacity"),), seed=seed)


def executor(n_runs: int, exposures: int) -> dict[str, float]:
    """Seconds of all workers together: of training, measuring, and the rest."""
    runs = [_run(seed, exposures) for seed in range(n_runs)]
    with tempfile.TemporaryDirectory() as folder:
        launch.run(runs[:16], Store.open(Path(folder) / "warm", create=True), "cpu")
        store = Store.open(Path(folder) / "store", create=True)
        began = time.perf_counter()
        launch.run(runs, store, "cpu")
        wall = time.perf_counter() - began
        packs: dict[str, dict[str, float]] = {}
        for made in store.provenance().values():
            if made["pack_seconds"] > packs.get(made["pack"], {"pack_seconds": -1.0})["pack_seconds"]:
                packs[made["pack"]] = made
    workers = min(len(launch.cores()), len(packs))
    names = ("pack_seconds", "work_seconds", "first_seconds", "measure_seconds", "checkpoint_seconds")
    total = {name: sum(p[name] for p in packs.values()) for name in names}
    training = total["work_seconds"] + total["first_seconds"]
    return {"runs": n_runs, "packs": len(packs), "workers": workers, "wall_seconds": wall, "training_seconds": training,
            "measure_seconds": total["measure_seconds"], "checkpoint_seconds": total["checkpoint_seconds"],
            "overhead_seconds_in_packs": total["pack_seconds"] - training - total["measure_seconds"],
            "overhead_share_in_packs": (total["pack_seconds"] - training - total["measure_seconds"]) / training,
            "start_end_and_idle_seconds_a_worker": wall - total["pack_seconds"] / workers}


def checkpoints() -> list[dict[str, float]]:
    """How long training waits for a checkpoint, median of 7, in seconds."""
    found = []
    for width, size in ((16, 8), (64, 8), (256, 1)):
        run = _run(0, 10, ModelSpec(d_model=width, n_layers=2, n_heads=4, vocab_size=128, seq_len=32))
        p = pack.Pack(train.Shape.of(run), (run,) * size, size)
        states = pack.program(p.shape, "map").start(pack.knobs(p))
        n_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(states))
        waits: dict[str, list[float]] = {"foreground": [], "beside": []}
        with tempfile.TemporaryDirectory() as folder:
            for epoch in range(1, 8):
                began = time.perf_counter()
                checkpoint.save(Path(folder) / "a", epoch, states, {}, execute.to_json(p))
                waits["foreground"].append(time.perf_counter() - began)
                with checkpoint.Writer(Path(folder) / "b", execute.to_json(p)) as writer:
                    began = time.perf_counter()
                    writer.save(epoch, states, {})
                    waits["beside"].append(time.perf_counter() - began)
        found.append({"megabytes": n_bytes / 1e6, **{f"{name}_seconds": sorted(each)[3] for name, each in waits.items()}})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--exposures", type=int, default=200, help="of a run: about a second of one core")
    parser.add_argument("--out")
    args = parser.parse_args()
    body = {"command": "python benchmarks/overhead.py", "machine": f"{len(launch.cores())} cores, {platform.machine()}", "load": os.getloadavg()[0],
            "checkpoints": checkpoints(), "executor": executor(args.runs, args.exposures)}
    print(json.dumps(body, indent=1))
    if args.out:
        write_whole(Path(args.out), json.dumps(body, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
