"""What the tests of training share: one small model, so that few programs are compiled, and a compilation cache of the session."""

import dataclasses
import os
import tempfile
from pathlib import Path

import pytest

# Before JAX is imported, and inherited by the workers that tests start. Programs are compiled once a session, in whichever process.
_CACHE = tempfile.TemporaryDirectory(prefix="scalemem-tests-xla-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))

from scalemem.spec import DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage
from scalemem.store import Store

MODEL = ModelSpec(d_model=8, n_layers=1, n_heads=2, vocab_size=32, seq_len=8)
SLOTS, ROWS = 16, 5  # the one shape: room for 16 items, 5 rows a pass


def pytest_unconfigure(config):
    _CACHE.cleanup()


def make_run(model=MODEL, *, n_items=13, batch_size=5, exposures=4, seed=0, probes=("capacity",), order="permuted",
             objective="next_token", generator="uniform", **optimizer):
    """A run of the small model; keywords that are no stage's are the optimizer's."""
    optimizer = {"peak_lr": 2e-2, "b1": 0.95, "b2": 0.95, "warmup_steps": 5, **optimizer}
    stage = Stage(data=DataSpec(n_items=n_items, generator=generator), optimizer=OptimizerSpec(**optimizer), exposures=exposures,
                  batch_size=batch_size, order=order, objective=objective)
    return RunSpec(model=model, stages=(stage,), probes=tuple(map(Probe, probes)), seed=seed)


def longer(run, exposures):
    """The run with other exposures."""
    return dataclasses.replace(run, stages=(dataclasses.replace(run.stages[0], exposures=exposures),))


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store", create=True)
