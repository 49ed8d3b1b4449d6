"""What the tests of training share: one small model, so that few programs are compiled, and a compilation cache of the session."""

import dataclasses
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

# Before JAX is imported, and inherited by the workers that tests start. Programs are compiled once a session, in whichever process.
_CACHE = tempfile.TemporaryDirectory(prefix="scalemem-tests-xla-") if "PYTEST_XDIST_WORKER" not in os.environ else None
if _CACHE:  # the processes that this one starts share it
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
# And without optimisation, as each runs for a moment. XLA ends a process that gives it a flag it does not know.
_QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
if _CACHE and "XLA_FLAGS" not in os.environ:
    known = subprocess.run([sys.executable, "-c", "import jax; jax.devices()"], env={**os.environ, "XLA_FLAGS": _QUICK, "JAX_PLATFORMS": "cpu"},
                           capture_output=True, check=False).returncode == 0
    os.environ["XLA_FLAGS"] = _QUICK if known else ""
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))

from scalemem.spec import DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage  # noqa: E402
from scalemem.store import Store  # noqa: E402

MODEL = ModelSpec(d_model=8, n_layers=1, n_heads=2, vocab_size=32, seq_len=8)
SLOTS, ROWS, SIZE = 16, 5, 8  # the one program: room for 16 items, 5 rows a pass, 8 runs; what execute.plan makes of these runs


# The files that take longest, largely by waiting for other processes: begun first, so that no core is left alone with one of them at the end.
LONG = ("execute", "reliability", "hosts", "sharding", "disks", "slurm_jobs", "fuzz_tables", "studies", "contracts", "losses", "canaries")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONG.index(name) if (name := item.path.stem.removeprefix("test_")) in LONG else len(LONG))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """A test marked `optimised` compares programs that are cut differently to their last bits: it has a process with XLA as users have it."""
    if pyfuncitem.get_closest_marker("optimised") is None or os.environ["XLA_FLAGS"] != _QUICK:
        return None
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", pyfuncitem.nodeid]
    done = subprocess.run(command, cwd=pyfuncitem.config.rootpath, env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    return True


def pytest_unconfigure(config):
    if _CACHE:
        _CACHE.cleanup()


def make_run(model=MODEL, *, n_items=13, batch_size=5, exposures=4, seed=0, probes=("capacity",), order="permuted",
             objective="next_token", generator="uniform", data=None, **optimizer):
    """A run of the small model; keywords that are no stage's are the optimizer's."""
    optimizer = {"peak_lr": 2e-2, "b1": 0.95, "b2": 0.95, "warmup_steps": 5, **optimizer}
    stage = Stage(data=DataSpec(n_items=n_items, generator=generator, **(data or {})), optimizer=OptimizerSpec(**optimizer), exposures=exposures,
                  batch_size=batch_size, order=order, objective=objective)
    return RunSpec(model=model, stages=(stage,), probes=tuple(map(Probe, probes)), seed=seed)


def longer(run, exposures):
    """The run with other exposures."""
    return dataclasses.replace(run, stages=(dataclasses.replace(run.stages[0], exposures=exposures),))


def make_pack(runs, slots=SLOTS, rows=ROWS, size=SIZE):
    """The runs as a pack of the one program."""
    from scalemem import pack, train

    return pack.Pack(train.Shape.of(runs[0], slots, rows), tuple(runs), size)


def trained(runs, *calls, how="map", program=None, **shape):
    """The states of runs, stacked, after calls of so many epochs each (one call to the end by default)."""
    import jax

    from scalemem import pack

    p = make_pack(runs, **shape)
    program, k = program or pack.program(p.shape, how), pack.knobs(p)
    states = program.start(k)
    for epochs in calls or (1 << 20,):
        states = program.advance(states, k, epochs)
    return jax.device_get(states)


def one(states, i):
    """The state of run i."""
    import jax

    return jax.tree.map(lambda x: x[i], states)


@pytest.fixture
def store(tmp_path):
    return Store.open(tmp_path / "store", create=True)
