"""What measuring costs: its share of the time of training in studies of memorization.

    python benchmarks/measuring.py [STUDY ...] [--scale laptop] [--out benchmarks/results/measuring.json]

Each study's packs are worked on by a process a core, with an empty cache of compiled programs, as on a machine that has never run it. Measuring
is all time that a worker spends on points of curves and on final rows: looking at the weights, compiling the programs of measures, and writing
rows to the store. Training is the rest of its time: compiling the training programs, their steps, and checkpoints. Time is a worker's processor
time, so that other work on the machine does not count. Asked for is a ratio of at most .2.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

STUDIES = ("memorization_forecast", "extraction", "membership_attacks")
LIMIT = 0.2


def dealt(packs: list[Any], workers: int) -> list[list[Any]]:
    """The packs of each worker, as the launcher gives them out if each takes the time that is estimated."""
    from scalemem import execute, launch

    shapes: dict[Any, int] = {}
    queue = [(p, execute.pack_seconds(p), shapes.setdefault(p.shape, len(shapes))) for p in packs]
    given, free, own = [[] for _ in range(workers)], [0.0] * workers, [set() for _ in range(workers)]
    while queue:
        w = free.index(min(free))
        p, seconds, shape = queue.pop(launch.suited([each[1:] for each in queue], own[w], set().union(*own)))
        given[w].append(p)
        own[w].add(shape)
        free[w] += seconds
    return given


def worker(name: str, scale: str, number: int, workers: int, folder: Path) -> dict[str, float]:
    """Works on a worker's packs of a study on one core; gives seconds, and runs."""
    from scalemem.worker import compilation_cache, settle

    settle(number)
    compilation_cache()
    from scalemem import execute, record, study
    from scalemem.store import Store

    spent = {"measuring_seconds": 0.0, "first_looks_seconds": 0.0}
    seen = set()

    def timed(function: Any, first: Any = None) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            began = time.process_time()
            try:
                return function(*args, **more)
            finally:
                took = time.process_time() - began
                spent["measuring_seconds"] += took
                if first and (size := first(args)) not in seen:  # the first look of a process at a model size compiles
                    seen.add(size)
                    spent["first_looks_seconds"] += took
        return call

    store = Store.open(folder / "store", create=True)
    packs = dealt(execute.plan(study.sweep(name, scale).runs()), workers)[number]
    record.point, record.final = (timed(f, lambda args, f=f: (f.__name__, args[0].model)) for f in (record.point, record.final))
    store.append_tables = timed(store.append_tables)
    began = time.process_time()
    for pack in packs:
        execute.work(pack, store)
    whole = time.process_time() - began
    return spent | {"training_seconds": whole - spent["measuring_seconds"], "runs_count": sum(len(p.runs) for p in packs)}


def study_cost(name: str, scale: str, workers: int) -> dict[str, Any]:
    """A study's runs, and what looking at them cost."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/xla"}
        started = [subprocess.Popen([sys.executable, __file__, name, "--scale", scale, "--worker", str(i), str(workers), folder], env=env,
                                    stdout=subprocess.PIPE, text=True) for i in range(workers)]
        found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]
        total = {key: sum(one[key] for one in found) for key in found[0]}
        return {"runs_count": int(total["runs_count"]), "wall_seconds": round(time.perf_counter() - began, 1),
                **{key: round(value, 2) for key, value in total.items() if key.endswith("_seconds")},
                "measuring_of_training_ratio": round(total["measuring_seconds"] / total["training_seconds"], 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", default=STUDIES)
    parser.add_argument("--scale", default="laptop")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        number, workers, folder = options.worker
        print(json.dumps(worker(options.studies[0], options.scale, int(number), int(workers), Path(folder))))
        return
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    found = {name: study_cost(name, options.scale, cores) for name in options.studies}
    result = {"scale": options.scale, "limit_ratio": LIMIT, "studies": found,
              "within_limit": {name: one["measuring_of_training_ratio"] <= LIMIT for name, one in found.items()},
              "machine": f"{platform.system()} {platform.machine()}, {cores} cores, load average {load:.1f} when it began",
              "python": platform.python_version(), "versions": {name: version(name) for name in ("jax", "jaxlib", "numpy")}}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
