"""Time and memory of per-fact curves: 10,000 facts at 1,000 probe steps written to a store, read back and fitted, in one process.

    python benchmarks/fact_curves.py [--facts 10000] [--steps 1000] [--out benchmarks/results/fact_curves.json]

A block of rows a probe step, as a measure of staged runs gives it: run_id, stage, stage_step, step, exposures, seed, n_params, fact, source,
nats, mean_nats, gap_nats and exact. Every fact forgets by a straight line in log steps with noise. Fitted are, to every fact by itself, a
straight line in log steps and a power law, to all steps and to the first quarter, judged on the rest: by `scalemem.analyses.retention`, which
fits thousands of curves at once. Some facts are also fitted by `scalemem.fitting`, which must agree. The checkpoint of a run in progress with
these curves is timed, too.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

NOISE_NATS, CHECKED = 0.1, 5
LAWS = ("log_linear", "power")
LIMIT_S, LIMIT_GIB = 120, 2.0  # asked for by the issue


def truth(facts: int) -> tuple[np.ndarray, np.ndarray]:
    """The intercept and slope of every fact, nats and nats an e-fold of steps."""
    rng = np.random.default_rng(0)
    return rng.uniform(0.5, 3, facts), rng.uniform(0.05, 0.6, facts)


def blocks(facts: int, steps: int) -> list[dict[str, Any]]:
    """The rows of each probe step."""
    from scalemem.columnar import repeated

    (a, b), rng, number = truth(facts), np.random.default_rng(1), np.arange(facts)
    found = []
    for step in range(1, steps + 1):
        nats = a + b * math.log(step) + NOISE_NATS * rng.standard_normal(facts)
        same = {"run_id": "0123456789abcdef", "stage": 1, "stage_step": step, "step": 5_000 + step, "exposures": step / steps, "seed": 0,
                "n_params": 55_232}
        found.append({name: repeated(value, facts) for name, value in same.items()}
                     | {"fact": number, "source": repeated("inject0", facts), "nats": nats, "mean_nats": nats / 3, "gap_nats": nats - a,
                        "exact": nats < 1})
    return found


class Watch:
    """Seconds and the peak of memory, phase by phase."""

    def __init__(self) -> None:
        self.phases: dict[str, dict[str, float]] = {}
        self.since = time.perf_counter()

    def lap(self, name: str) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        self.phases[name] = {"seconds": round(time.perf_counter() - self.since, 2), "peak_gib_so_far": round(peak / 2**30, 3)}
        self.since = time.perf_counter()


def work(facts: int, steps: int, folder: Path) -> dict[str, Any]:
    """All phases, in this process."""
    import pyarrow as pa

    from scalemem import analyses, columnar
    from scalemem.fitting import fit
    from scalemem.store import Store

    watch = Watch()
    rows = blocks(facts, steps)
    watch.lap("make")
    store = Store.open(folder / "store", create=True)
    store.append_tables({"runs": [{"run_id": "0123456789abcdef", "status": "done"}], "facts": columnar.unite_blocks(rows)})
    del rows
    watch.lap("write")
    table = Store.open(folder / "store").table("facts")
    watch.lap("read")
    assert table.num_rows == facts * steps
    some, table = table.filter(pa.array(table["fact"].to_numpy() < CHECKED)), table.select(["fact", "stage_step", "nats"])
    found = analyses.run("retention", {"facts": table}, {"value": "nats", "group": ["fact"], "laws": list(LAWS)})
    watch.lap("fit")
    straight = found.filter(pa.array([law == LAWS[0] for law in found["law"].to_pylist()]))
    assert straight["fact"].to_pylist() == list(range(facts))
    b, spread = straight["b"].to_numpy(), np.log(np.arange(1, steps + 1)).std() * math.sqrt(steps)
    z = (b - truth(facts)[1]) * spread / NOISE_NATS
    watch.since = time.perf_counter()
    found = fit(some, LAWS[0], y="nats", x={"x": "stage_step"}, group=["fact"])
    apart = max(abs(g.parameters["b"].value - b[i]) for i, g in enumerate(found.groups))
    watch.lap(f"{CHECKED} facts one by one")
    return {"phases": watch.phases, "bytes": sum(p.stat().st_size for p in (folder / "store" / "parts").iterdir()),
            "slope_z_sd": float(z.std()), "slope_z_mean": float(z.mean()), "slopes_apart_from_those_of_one_fit_a_fact": float(apart),
            "straight_line_wins_fraction": float(straight["wins_fraction"].to_numpy().mean())}


def saved(facts: int, steps: int, folder: Path) -> dict[str, Any]:
    """A checkpoint with these curves, written and read."""
    from scalemem import checkpoint

    curves, watch = {"0123456789abcdef": {"facts": blocks(facts, steps)}}, Watch()
    states = {"x": np.zeros(1)}
    checkpoint.save(folder / "none", 1, states, {}, {})
    watch.lap("states alone")
    checkpoint.save(folder / "pack", 1, states, curves, {})
    watch.lap("save")
    curves.clear()
    assert checkpoint.load(folder / "pack", lambda epoch: states)
    watch.lap("load")
    return {"phases": watch.phases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--phase", choices=("work", "saved"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.phase:
        print(json.dumps({"work": work, "saved": saved}[options.phase](options.facts, options.steps, options.folder)))
        return
    made = {}
    for phase in ("work", "saved"):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--facts", str(options.facts), "--steps", str(options.steps), "--phase", phase, "--folder", folder]
            made[phase] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    phases = made["work"]["phases"]
    seconds, peak = sum(phases[name]["seconds"] for name in ("write", "read", "fit")), phases["fit"]["peak_gib_so_far"]
    result = {
        "facts": options.facts, "probe_steps": options.steps, "rows": options.facts * options.steps,
        "fit": f"{' and '.join(LAWS)} to every fact, by the analysis retention",
        "seconds_write_read_fit": round(seconds, 2), "peak_gib": peak, "within_limits": seconds < LIMIT_S and peak < LIMIT_GIB, **made["work"],
        "checkpoint": made["saved"],
        "machine": f"{platform.system()} {platform.machine()}, one process, load average {os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numpy", "pyarrow")}}
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
