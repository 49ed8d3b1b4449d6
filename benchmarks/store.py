"""How fast the store is: 2,000 runs of 100 curve rows in packs of 8, planned, appended, counted and read. Prints a table.

    python benchmarks/store.py [--folder DIRECTORY] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scalemem import execute
from scalemem.durable import write_whole
from scalemem.spec import DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, canonical_json, run_id
from scalemem.store import Store
from scalemem.sweep import Sweep, grid, repeat

RUNS, ROWS, PACK = 2_000, 100, 8
FRESH = "from scalemem.store import Store; import time; t = time.perf_counter(); s = Store.open({path!r}); {what}; " \
        "print(time.perf_counter() - t)"


def _sweep() -> Sweep:
    model = ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=128, seq_len=32)
    stage = Stage(data=DataSpec(n_items=128), optimizer=OptimizerSpec(peak_lr=0.02), exposures=125, batch_size=16)
    base = RunSpec(model=model, stages=(stage,), probes=(Probe("capacity"),))
    return Sweep(base, {"exposures": grid(*range(1, RUNS // 5 + 1)), "seeds": repeat(5)})


def _rows(runs: list[RunSpec]) -> dict[str, list[dict[str, object]]]:
    draw = random.Random(0).random
    measures = ("memorized_bits", "train_loss_nats", "test_loss_nats", "auc", "exact_recall", "seconds")
    curves = [{"run_id": run_id(run), "exposures": i, "step": 8 * i, **{name: draw() for name in measures}}
              for run in runs for i in range(ROWS)]
    return {"curves": curves, "runs": [{"run_id": run_id(run), "status": "done", "spec": canonical_json(run),
                                        **{f"measure_{i}": draw() for i in range(30)}} for run in runs]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where the store is made (default: the folder for temporary files)")
    parser.add_argument("--out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = str(Path(folder) / "store")
        begin, start = time.perf_counter(), time.process_time()
        runs = _sweep().runs()
        execute.plan(runs)
        planned, used = time.perf_counter(), time.process_time()
        packs = [_rows(runs[i:i + PACK]) for i in range(0, RUNS, PACK)]
        store = Store.open(path, create=True)
        ready, before = time.perf_counter(), time.process_time()
        store.register("bench", runs)
        for pack in packs:
            store.append_tables(pack, {"pack_size": PACK})
        done, after = time.perf_counter(), time.process_time()
        fresh = {what: float(subprocess.run([sys.executable, "-c", FRESH.format(path=path, what=what)], check=True,
                                            capture_output=True, text=True).stdout)
                 for what in ("s.status()", "s.finished()", "s.table('runs')", "s.table('curves')")}
        n_bytes = sum(file.stat().st_size for file in (Path(path) / "parts").iterdir())
    print(f"{RUNS:,} runs x {ROWS} rows in packs of {PACK}, {n_bytes / 1e6:.1f} MB of parts")
    rows = [("list and plan the sweep", planned - begin), ("the same, of the processor", used - start),
            ("register and append, fsynced", done - ready), ("the same, of the processor", after - before),
            *((f"{what}, fresh process", seconds) for what, seconds in fresh.items())]
    for name, seconds in rows:
        print(f"  {name:<34}{seconds:6.2f} s")
    if args.out:
        body = {"command": "python benchmarks/store.py", "machine": f"{os.cpu_count()} cores, {platform.machine()}", "load": os.getloadavg()[0],
                "runs": RUNS, "rows": ROWS, "pack": PACK, "seconds": rows}
        write_whole(Path(args.out), json.dumps(body, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
