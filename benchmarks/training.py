"""Tokens a second of training the reference models a, b, c on the cores of this machine: scalemem and its peers, in turn.

    python benchmarks/training.py [--rounds 5] [--seconds 4] [--models a b c] [--json] [--out benchmarks/results/training.json]

Ours: one pinned process a core, each training a pack of 2 runs through `scalemem.pack`. Peers: benchmarks/peers.py. All processes are
started and warmed first and sleep until it is their turn; a round measures each once, so drifts of the machine hit all alike.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peers import PEAK_SIDE, SHAPES, Shape, serve, settle

HERE = Path(__file__).parent
PEERS = {
    "PyTorch GPT, eager": ("torch", "together"),
    "PyTorch GPT, one process a core": ("torch", "apart"),
    "transformers GPT-2, eager": ("transformers", "together"),
}
OURS = "scalemem"


def run_of(shape: Shape, dtype: str = "float32", seed: int = 0) -> Any:
    """A run of a reference model, of 8 batches and as many epochs as anybody wants."""
    from scalemem.spec import DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage

    model = ModelSpec(d_model=shape.d, n_layers=shape.layers, n_heads=shape.heads, vocab_size=shape.vocab, seq_len=shape.length + 1,
                      compute_dtype=dtype)
    stage = Stage(data=DataSpec(n_items=8 * shape.batch), optimizer=OptimizerSpec(peak_lr=1e-3, schedule="constant"), exposures=1_000_000,
                  batch_size=shape.batch)
    return RunSpec(model=model, stages=(stage,), probes=(Probe("capacity"),), seed=seed)


def ours(shape: Shape) -> Callable[[], float]:
    """Advances a pack of 2 runs by about half a second; gives the tokens scored."""
    import time

    import jax

    from scalemem import execute, pack

    runs = tuple(run_of(shape, seed=seed) for seed in range(2))
    scored = runs[0].stages[0].data.n_items * shape.length
    both = pack.Pack(execute.plan(runs)[0].shape, runs, 2)
    program, k = pack.program(both.shape, "map"), pack.knobs(both)
    state = [jax.block_until_ready(program.advance(program.start(k), k, 1))]
    began = time.perf_counter()
    state[0] = jax.block_until_ready(program.advance(state[0], k, 1))
    epochs = max(1, int(0.5 / (time.perf_counter() - began)))

    def step() -> float:
        state[0] = jax.block_until_ready(program.advance(state[0], k, epochs))
        return 2 * epochs * scored

    return step


def peak() -> Callable[[], float]:
    """Products of square float32 matrices in XLA; gives the FLOPs."""
    import jax

    b = jax.random.normal(jax.random.key(0), (PEAK_SIDE, PEAK_SIDE)) / PEAK_SIDE**0.5
    chain = jax.jit(lambda a: jax.lax.fori_loop(0, 20, lambda i, a: a @ b, a))

    def step() -> float:
        jax.block_until_ready(chain(b))
        return 20 * 2 * PEAK_SIDE**3

    return step


class Contender:
    """Processes that work at once; `measure` gives their summed rate."""

    def __init__(self, script: str, kind: str, model: str, places: list[str]):
        self.processes = [subprocess.Popen([sys.executable, str(HERE / script), kind, model, cores], stdin=subprocess.PIPE,
                                           stdout=subprocess.PIPE, text=True) for cores in places]

    def wait(self) -> None:
        for process in self.processes:
            assert process.stdout
            if process.stdout.readline().strip() != "ready":
                raise SystemExit(f"{process.args}: did not start; see its message above")

    def measure(self, seconds: float) -> float:
        for process in self.processes:
            assert process.stdin
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()
        said = [json.loads(process.stdout.readline()) for process in self.processes if process.stdout]
        return sum(answer["done"] / answer["seconds"] for answer in said)

    def end(self) -> None:
        for process in self.processes:
            process.communicate()


@contextlib.contextmanager
def contenders(team: dict[str, Contender]) -> Iterator[dict[str, Contender]]:
    try:
        for contender in team.values():
            contender.wait()
        yield team
    finally:
        for contender in team.values():
            contender.end()


def places(how: str) -> list[str]:
    cores = [str(core) for core in sorted(os.sched_getaffinity(0))]
    return cores if how == "apart" else [",".join(cores)]


def summary(rates: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(rates), "low": min(rates), "high": max(rates), "all": rates}


def alternate(team: dict[str, Contender], rounds: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Each peer follows a measurement of ours: ours, peer, ours, peer, ...; the peaks have nothing of ours between them."""
    rates: dict[str, list[float]] = {name: [] for name in team}
    for _ in range(rounds):
        for name in [n for n in team if n != OURS]:
            if OURS in team:
                rates[OURS].append(team[OURS].measure(seconds))
            rates[name].append(team[name].measure(seconds))
    return {name: summary(measured) for name, measured in rates.items()}


def machine() -> str:
    with contextlib.suppress(OSError):
        fields = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines())
        fields = {name.strip(): value.strip() for name, value in fields.items()}
        return f"{fields['model name']}, family {fields['cpu family']}, {len(os.sched_getaffinity(0))} cores"
    return f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def main() -> None:
    if len(sys.argv) == 4 and sys.argv[1] in ("ours", "xla_peak"):
        kind, model, cores = sys.argv[1:]
        settle(cores)
        serve(peak() if kind == "xla_peak" else ours(SHAPES[model]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()

    peaks = {"XLA": Contender("training.py", "xla_peak", "-", places("apart")),
             "PyTorch": Contender("peers.py", "torch_peak", "-", places("apart"))}
    with contenders(peaks) as team:
        peak_flops = alternate(team, options.rounds, options.seconds)
    result: dict[str, Any] = {
        "machine": machine(), "rounds": options.rounds, "seconds": options.seconds, "python": platform.python_version(),
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "numpy")},
        "peak_flops_per_s": peak_flops, "models": {}}
    for name in options.models:
        shape = SHAPES[name]
        started = {OURS: Contender("training.py", "ours", name, places("apart"))}
        started |= {label: Contender("peers.py", kind, name, places(how)) for label, (kind, how) in PEERS.items()}
        with contenders(started) as team:
            rates = alternate(team, options.rounds, options.seconds)
        us = rates[OURS]["median"]
        result["models"][name] = {
            "shape": vars(shape), "flops_per_token": shape.flops_per_token, "tokens_per_s": rates,
            "times_faster": {label: us / rates[label]["median"] for label in PEERS},
            "share_of_xla_peak": us * shape.flops_per_token / peak_flops["XLA"]["median"]}
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1) if options.json else table(result))


def table(result: dict[str, Any]) -> str:
    peaks = {name: f"{value['median'] / 1e9:.0f} GFLOP/s" for name, value in result["peak_flops_per_s"].items()}
    lines = [f"{result['machine']}; matrix peak of all cores: " + ", ".join(f"{name} {value}" for name, value in peaks.items()),
             f"tokens/s, medians of {result['rounds']} rounds of {result['seconds']:g} s (lowest - highest)", ""]
    for name, model in result["models"].items():
        shape = model["shape"]
        lines.append(f"{name}: L{shape['layers']} d{shape['d']} V{shape['vocab']} T{shape['length']} batch {shape['batch']}; "
                     f"{100 * model['share_of_xla_peak']:.0f} % of XLA's peak")
        for label, rate in model["tokens_per_s"].items():
            times = f"{model['times_faster'][label]:6.2f} x" if label in model["times_faster"] else ""
            lines.append(f"  {label:<34}{rate['median']:>12,.0f}  ({rate['low']:,.0f} - {rate['high']:,.0f}) {times}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
