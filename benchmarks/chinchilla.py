"""The Chinchilla fit: random starts that reach the stated optimum, both published parameter sets, and seconds for starts and refits.

    python benchmarks/chinchilla.py [--starts 1000] [--refits 4000] [--rounds 3] [--data DIR] [--json] [--out FILE]

240 runs of `chinchilla_extracted.csv` (../shared/benchmarks, not shipped), the 5 highest losses dropped, D = FLOP / (6 N), Huber's loss with
delta 0.001 on log L, summed. Starts are drawn from the box of Hoffmann et al.'s grid: log A and log B in 0-25, log E in -1-1, exponents in
0-2. A step of all refits is also timed in JAX, to see what a compiled program would gain; its double precision is local to that call.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from training import machine

from scalemem import laws
from scalemem.fitting import fit
from scalemem.laws import losses
from scalemem.laws.problem import Problem
from scalemem.laws.project import project
from scalemem.laws.refit import refit
from scalemem.laws.sample import Sample

DATA = Path(__file__).parents[2] / "shared" / "benchmarks"
OPTIMUM = 0.00101827402
STATED = {"huber:1e-3": {"A": 477.84, "B": 2143.9, "E": 1.81724, "alpha": 0.34731, "beta": 0.36718},
          "huber": {"A": 482.0, "B": 2085.0, "E": 1.8169, "alpha": 0.3478, "beta": 0.3658}}
INTERVALS = {"A": (285, 744), "B": (1042, 5810), "E": (1.769, 1.871), "alpha": (0.317, 0.373), "beta": (0.331, 0.415)}
X = {"n_params": "N", "n_tokens": "D"}


def read(folder: Path) -> pa.Table:
    path = folder / "chinchilla_extracted.csv"
    if not path.exists():
        raise SystemExit(f"{path}: not there; give the folder that holds it with --data")
    with path.open() as file:
        rows = [[float(row[k]) for k in ("Model Size", "Training FLOP", "loss")] for row in csv.DictReader(file)]
    n, flop, loss = np.array(sorted(rows, key=lambda row: row[2])[:-5]).T
    return pa.table({"N": n, "D": flop / (6 * n), "L": loss})


def seconds(work: Callable[[], Any], rounds: int) -> tuple[Any, float]:
    """What the work gives, and its median time."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        found = work()
        taken.append(time.perf_counter() - began)
    return found, statistics.median(taken)


def in_jax(problem: Problem, theta: np.ndarray, weights: np.ndarray, rounds: int) -> dict[str, float]:
    """The time of one step's evaluation of all refits (value, gradient, curvature) in JAX: compiling, and after."""
    import jax
    import jax.numpy as jnp
    with jax.enable_x64(True):
        n, d, y = (jnp.asarray(v) for v in (np.log(problem.s.x["n_params"]), np.log(problem.s.x["n_tokens"]), problem.s.eta))

        def curve(t: Any) -> Any:
            return jnp.log(t[0] + jnp.exp(t[1] - jnp.exp(t[3]) * n) + jnp.exp(t[2] - jnp.exp(t[4]) * d))

        def one(t: Any, w: Any) -> Any:
            r, jacobian = curve(t) - y, jax.jacfwd(curve)(t)
            inside = jnp.abs(r) <= 1e-3
            value = jnp.where(inside, r * r / 2, 1e-3 * (jnp.abs(r) - 5e-4))
            slope, curvature = jnp.clip(r, -1e-3, 1e-3), jnp.where(inside, 1.0, 1e-4 / jnp.abs(r))
            return jnp.sum(w * value), jacobian.T @ (w * slope), (jacobian.T * (w * curvature)) @ jacobian

        program, given = jax.jit(jax.vmap(one)), (jnp.asarray(theta), jnp.asarray(weights))
        _, first = seconds(lambda: jax.block_until_ready(program(*given)), 1)
        _, later = seconds(lambda: jax.block_until_ready(program(*given)), 4 * rounds)
    return {"compile_s": first - later, "step_s": later}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=1000)
    parser.add_argument("--refits", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3, help="of each timing; the median is kept")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()

    table, loss = read(options.data), losses.parse("huber:1e-3")
    law = loss.law(laws.get("chinchilla"))
    sample = Sample.of(law, {k: table[c].to_numpy() for k, c in X.items()}, table["L"].to_numpy())
    problem, rng = Problem(law, sample, loss), np.random.default_rng(0)
    u = rng.uniform([-1, 0, 0, 0, 0], [1, 25, 25, 2, 2], (options.starts, 5))
    starts = np.column_stack([np.exp(u[:, 0]), u[:, 1:3], np.log(u[:, 3:])])

    ends, starts_s = seconds(lambda: refit(problem.rows, project(law, sample.x, problem.level, starts)), options.rounds)
    bare = refit(problem.rows, starts)
    best = ends.theta[int(np.argmin(ends.cost))]
    weights = rng.multinomial(len(sample), np.full(len(sample), 1 / len(sample)), options.refits).astype(float)
    many = np.tile(best, (options.refits, 1))
    boot, refits_s = seconds(lambda: refit(problem.rows, many, weights=weights, near=True), options.rounds)
    block = np.array_split(np.arange(options.refits), max(1, options.refits // 80))
    zero = np.zeros(options.refits)
    _, step_s = seconds(lambda: [problem.rows.evaluate(many[b], weights[b], zero[b]) for b in block], 4 * options.rounds)

    natural = law.natural(boot.theta)
    found = {name: fit(table, "chinchilla", y="L", x=X, loss=name, interval=0.95).at() for name in STATED}
    clean = table.append_column("clean", pa.array(np.exp(law.predict({k: sample.x[k] for k in (*X, "1")}, best))))
    ordered = pa.table({**{c: sample.x[k] for k, c in X.items()}, "clean": clean["clean"].to_numpy()})
    back = fit(ordered, "chinchilla", y="clean", x=X, loss="huber:1e-3").at().parameters
    truth = {k: float(v) for k, v in law.natural(best).items()}
    result = {
        "machine": machine(), "python": platform.python_version(), "versions": {k: version(k) for k in ("numpy", "scipy", "jax")},
        "rows": len(sample), "stated_optimum": OPTIMUM, "optimum": float(ends.cost.min()),
        "starts": {"tried": options.starts, "reached": int(np.sum(ends.cost <= OPTIMUM * (1 + 1e-6))), "seconds": starts_s,
                   "reached_without_solving_for_linear_parameters": int(np.sum(bare.cost <= OPTIMUM * (1 + 1e-6)))},
        "parameters": {name: {k: {"value": e.value, "low": e.low, "high": e.high, "stated": STATED[name][k],
                                  "relative_error": e.value / STATED[name][k] - 1} for k, e in g.parameters.items()}
                       for name, g in found.items()},
        "noise_free_relative_error": max(abs(back[k].value / truth[k] - 1) for k in truth),
        "bootstrap": {"refits": options.refits, "settled": int(boot.settled.sum()), "seconds": refits_s, "interval": 0.95,
                      "intervals": {k: [float(v) for v in np.quantile(natural[k], (0.025, 0.975))] for k in INTERVALS},
                      "stated": INTERVALS},
        "one_step_of_all_refits": {"numpy_s": step_s, "jax": in_jax(problem, many, weights, options.rounds)},
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1) if options.json else lines(result))


def lines(r: dict[str, Any]) -> str:
    starts, boot, step = r["starts"], r["bootstrap"], r["one_step_of_all_refits"]
    said = [r["machine"],
            f"optimum {r['optimum']:.11f} (stated {r['stated_optimum']:.11f}) from {starts['reached']} of {starts['tried']} random starts "
            f"in {starts['seconds']:.2f} s ({starts['reached_without_solving_for_linear_parameters']} without solving for A, B, E first)"]
    for name, values in r["parameters"].items():
        said.append(f"{name}: " + ", ".join(f"{k} {v['value']:.6g} ({v['low']:.4g} - {v['high']:.4g})" for k, v in values.items())
                    + f"; at most {100 * max(abs(v['relative_error']) for v in values.values()):.3f} % from the stated")
    said += [f"noise-free recovery: {r['noise_free_relative_error']:.1e}",
             f"{boot['refits']} bootstrap refits in {boot['seconds']:.2f} s, {boot['settled']} settled; 95 %: "
             + ", ".join(f"{k} {low:.4g} - {high:.4g} (stated {boot['stated'][k][0]:g} - {boot['stated'][k][1]:g})"
                         for k, (low, high) in boot["intervals"].items()),
             f"a step of all refits: NumPy {1e3 * step['numpy_s']:.0f} ms, JAX {1e3 * step['jax']['step_s']:.0f} ms after "
             f"{step['jax']['compile_s']:.2f} s of compiling"]
    return "\n".join(said)


if __name__ == "__main__":
    main()
