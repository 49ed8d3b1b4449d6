"""What measuring costs: its share of the time of training in studies of memorization, from the provenance of their runs.

    python benchmarks/measuring.py [STUDY ...] [--scale laptop] [--out benchmarks/results/measuring.json]

Each study is run into a store of its own, with an empty cache of compiled programs, as on a machine that has never run it. Measuring is all
time in probes, at checkpoints and at the end, with the compiling of their programs and the writing of the rows to the store. Training is the
rest of a pack's time: its program's compiling, its steps, and checkpoints of it. Asked for is a share of at most 20 %.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

STUDIES = ("memorization_forecast", "extraction", "membership_attacks")
LIMIT = 0.2


def share(provenance: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Sums over packs, of each the last row's numbers, which count all of it.

    >>> one = {"pack": "a", "measure_seconds": 1.0, "pack_seconds": 5.0, "work_seconds": 3.0}
    >>> share({"x": one | {"measure_seconds": 0.5, "pack_seconds": 4.0}, "y": one})["measuring_of_training_ratio"]
    0.25
    """
    packs: dict[str, dict[str, Any]] = {}
    for made in provenance.values():
        if made["pack_seconds"] >= packs.get(made["pack"], made)["pack_seconds"]:
            packs[made["pack"]] = made
    measuring, whole, steps = (sum(made[name] for made in packs.values()) for name in ("measure_seconds", "pack_seconds", "work_seconds"))
    return {"packs_count": len(packs), "measuring_seconds": round(measuring, 2), "training_seconds": round(whole - measuring, 2),
            "of_that_steps_after_the_first_call_seconds": round(steps, 2), "measuring_of_training_ratio": round(measuring / (whole - measuring), 4)}


def seconds_a_run(provenance: dict[str, dict[str, Any]]) -> float:
    """Median over packs of the measuring seconds a run: little of it is compiling."""
    packs: dict[str, list[float]] = {}
    for made in provenance.values():
        packs.setdefault(made["pack"], []).append(made["measure_seconds"])
    return round(statistics.median(max(found) / len(found) for found in packs.values()), 4)


def study(name: str, scale: str) -> dict[str, Any]:
    """A study's runs, and what was measured of them."""
    from scalemem.store import Store

    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "scalemem", "run", name, "--scale", scale, "--store", f"{folder}/store"], check=True,
                       stdout=subprocess.DEVNULL, env={**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/xla"})
        provenance = Store.open(f"{folder}/store").provenance()
        return {"runs_count": len(provenance), "wall_seconds": round(time.perf_counter() - began, 1), **share(provenance),
                "measuring_seconds_a_run_median": seconds_a_run(provenance)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", default=STUDIES)
    parser.add_argument("--scale", default="laptop")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    found = {name: study(name, options.scale) for name in options.studies}
    result = {"scale": options.scale, "limit_ratio": LIMIT, "studies": found,
              "within_limit": {name: one["measuring_of_training_ratio"] <= LIMIT for name, one in found.items()},
              "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, load average {load:.1f} when it began",
              "python": platform.python_version(), "versions": {name: version(name) for name in ("jax", "jaxlib", "numpy")}}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
