"""Tokens a second of packs of 1 to 512 reference models on one accelerator, beside PyTorch training one at a time; and what binds.

    python benchmarks/packs.py [--models a b c] [--sizes 1 4 16 64 256 512] [--dtypes bfloat16 float32] [--seconds 1] [--rounds 3] [--out FILE.json]

Ours: `vmap` over the runs of a pack, until one no longer fits. Peers (where PyTorch is installed): eager, torch.compile, and eager under bfloat16
autocast, on the same device. Each round measures every contender once, in turn; medians are reported.

    traffic roof   bandwidth of a large copy over bytes a token: what a pass keeps (`memory.activations`) written and read in both directions, 4 times
                   in all, and 32 bytes a parameter and step of optimizer and gradient
    matrix roof    rate of a large product in the same type over FLOPs a token
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peers need room on the same device

import jax
import jax.numpy as jnp
from peers import SHAPES, Shape, on_device
from training import run_of

from scalemem import accounting, execute, memory, packsize
from scalemem.models import attention

PEERS = {"PyTorch, eager": "eager", "PyTorch, compiled": "compiled", "PyTorch, bfloat16 autocast": "autocast"}


def rate(step: Callable[[], Any], done: float, seconds: float) -> float:
    """Of what a step does, a second."""
    jax.block_until_ready(step())
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        jax.block_until_ready(step())
        count += 1
    return done * count / (time.perf_counter() - began)


def roofs(dtype: str, seconds: float) -> dict[str, float]:
    """Bytes a second of a copy, read and written, and FLOPs a second of a product."""
    gpu = jax.default_backend() != "cpu"
    long, side = jnp.zeros(1 << (28 if gpu else 24), jnp.float32), 8192 if gpu else 1024
    square = jnp.ones((side, side), dtype)
    copy, product = jax.jit(lambda x: x + 1), jax.jit(lambda a: a @ a)
    return {"bytes_per_s": rate(lambda: copy(long), 2.0 * long.nbytes, seconds), "flops_per_s": rate(lambda: product(square), 2.0 * side**3, seconds)}


def ours(shape: Shape, dtype: str, sizes: list[int], roof: dict[str, float], rounds: int) -> list[dict[str, Any]]:
    """A row of each size that fits."""
    run, tokens, rows = run_of(shape, dtype), shape.batch * shape.length, []
    program = execute.plan([run], None, "vmap")[0].shape
    traffic = 4 * memory.activations(run.model, shape.batch) / tokens + 32 * accounting.n_params(run.model) / tokens
    for size in sizes:
        try:
            tried = [packsize.measured(program, size, run, "vmap", 1) for _ in range(rounds)]
        except Exception as error:  # of XLA: no room
            rows.append({"pack": size, "error": (str(error).splitlines() or [type(error).__name__])[0][:200]})
            break
        each = accounting.stage_flops(run.model, run.stages[0]) / (run.stages[0].exposures * run.stages[0].data.n_items * shape.length)
        rates = [t.flops_per_second / each for t in tried]
        speed = statistics.median(rates)
        shares = {"memory traffic": speed * traffic / roof["bytes_per_s"], "matrix products": speed * shape.flops_per_token / roof["flops_per_s"]}
        most = max(shares, key=lambda name: shares[name])
        rows.append({"pack": size, "tokens_per_s": speed, "low": min(rates), "high": max(rates), "device_bytes": tried[0].device_bytes,
                     "share_of_traffic_roof": shares["memory traffic"], "share_of_matrix_roof": shares["matrix products"],
                     "binds": most if shares[most] > 0.3 else "launches: the pack is too small to fill the device"})
        print(f"  {dtype} pack {size}: {speed:,.0f} tokens/s", flush=True)
    return rows


def peers(shape: Shape, seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    """Median rates of those that can be had here."""
    found: dict[str, list[float]] = {}
    for name, mode in PEERS.items():
        try:
            step, wait = on_device(shape, mode)
            for _ in range(5):
                step()
            wait()
            for _ in range(rounds):
                count, began = 0, time.perf_counter()
                while time.perf_counter() - began < seconds:
                    step()
                    count += 1
                wait()
                found.setdefault(name, []).append(count * shape.batch * shape.length / (time.perf_counter() - began))
        except Exception as error:  # PyTorch is not here, or cannot compile here
            print(f"  {name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}", flush=True)
    return {name: {"tokens_per_s": statistics.median(r), "low": min(r), "high": max(r)} for name, r in found.items()}


def versions() -> dict[str, str]:
    found = {}
    for name in ("jax", "jaxlib", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 4, 16, 64, 256, 512])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--seconds", type=float, default=1.0, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    packsize.TRIAL_S = options.seconds
    device = jax.devices()[0]
    body: dict[str, Any] = {"command": "python benchmarks/packs.py", "device": device.device_kind, "device_bytes": memory.capacity(),
                            "python": platform.python_version(), "versions": versions(), "rounds": options.rounds, "seconds": options.seconds,
                            "roofs": {dtype: roofs(dtype, options.seconds) for dtype in options.dtypes}, "models": {}}
    for name in options.models:
        shape = SHAPES[name]
        print(f"{name}: {vars(shape)}", flush=True)
        packs = {dtype: ours(shape, dtype, options.sizes, body["roofs"][dtype], options.rounds) for dtype in options.dtypes}
        others = peers(shape, options.seconds, options.rounds)
        best = max((row["tokens_per_s"] for rows in packs.values() for row in rows if "tokens_per_s" in row), default=0.0)
        body["models"][name] = {"packs": packs, "peers": others, "attention": {d: attention.kind(run_of(shape, d).model) for d in options.dtypes},
                                "times_faster": {peer: best / row["tokens_per_s"] for peer, row in others.items()}}
        if options.out:  # after each model: what was measured is kept
            options.out.write_text(json.dumps(body, indent=1) + "\n")
    print(json.dumps(body, indent=1))


if __name__ == "__main__":
    main()
