"""What the tests of the store write into it, and how they check that it is whole."""

import os

from scalemem.spec import DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage
from scalemem.sweep import Sweep, grid

BASE = RunSpec(
    model=ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=128, seq_len=32),
    stages=(Stage(data=DataSpec(n_items=128), optimizer=OptimizerSpec(peak_lr=0.02), exposures=125, batch_size=16),),
    probes=(Probe("capacity"),))
RUNS = Sweep(BASE, {"exposures": grid(*range(1, 13))}).runs()

def pack(ids, n_rows=5):
    """What a pack of runs writes: a pure function of the run's id."""
    return {
        "curves": [{"run_id": i, "exposures": e, "loss_nats": 1 / (1 + e)} for i in ids for e in range(n_rows)],
        "runs": [{"run_id": i, "status": "diverged" if i == "bad" else "done", "loss_nats": len(i) / 7} for i in ids],
    }


def fill(store, n_packs=4):
    ids = [[f"{p}{k}" for k in range(3)] for p in range(n_packs)]
    for names in ids:
        store.append_tables(pack(names), {"pack_size": 3})
    return [i for names in ids for i in names]


def parts(store, table="*"):
    return sorted((store.path / "parts").glob(f"{table}-*.parquet"))


def complete(store, ids):
    """The store has each run once, with all rows of its curve in order."""
    runs, curves = store.table("runs"), store.table("curves")
    assert runs["run_id"].to_pylist() == sorted(ids)
    assert curves["run_id"].to_pylist() == [i for i in sorted(ids) for _ in range(5)]
    assert curves["exposures"].to_pylist() == list(range(5)) * len(ids)
    assert sorted(store.finished()) == sorted(ids)
    return True


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
