"""Imports point one way (DESIGN.md), and what needs no accelerator does not load one."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[1] / "scalemem"

# What a module may import is what its row lists, and what those may import in turn. A new module needs a row.
MAY_IMPORT = {
    "checked": [],
    "spec": ["checked"],
    # what is run
    "sweep": ["spec"],
    "controls": ["spec"],
    "accounting": ["spec"],
    "data": ["sweep", "accounting", "quick"],
    "models": ["sweep", "accounting"],
    "objectives": ["sweep", "accounting"],
    "optimizers": ["sweep", "accounting"],
    "strategies": ["objectives", "trainable", "accounting"],
    "trainable": ["models"],
    "measure": ["data", "models", "generate", "decoding", "objectives"],  # DESIGN.md has them side by side; a measure draws items and applies a model
    "train": ["data", "models", "objectives", "optimizers", "measure", "strategies", "trainable"],
    "sharding": ["train"],
    "pack": ["sharding"],
    "stages": ["record"],
    "hosts": ["stages"],
    "memory": ["pack"],
    "paths": ["execute", "memory"],
    "checkpoint": ["columnar"],
    "export_model": ["models", "durable"],
    "keeping": ["export_model", "store"],
    "quick": [],
    "generate": ["models", "quick"],
    "decoding": ["sweep"],
    "record": ["pack", "columnar"],
    "execute": ["hosts", "store", "checkpoint", "keeping"],
    "named": ["execute"],
    "worker": ["execute"],
    "orders": ["execute", "worker"],
    "sbatch": ["orders"],
    "cluster": ["sbatch", "paths"],
    "packsize": ["worker", "memory"],
    "launch": ["cluster", "packsize", "paths"],
    # what came of it
    "durable": [],
    "locking": ["durable"],
    "columnar": ["durable"],
    "catalogue": ["durable"],
    "store": ["spec", "locking", "columnar", "catalogue"],
    "expressions": [],
    "tables": ["store", "expressions"],
    "repeats": ["tables"],
    "prepare": ["repeats"],
    "laws": ["tables"],
    "analyses": ["laws"],
    "averaging": ["laws"],
    "fitted": ["averaging"],
    "fitting": ["fitted"],
    "forecasting": ["fitting"],
    "rolling": ["forecasting"],
    "schema": ["spec"],
    "claims": ["forecasting", "schema", "analyses"],
    "plot": ["claims"],
    # both
    "study": ["launch", "plot"],
    "show": ["averaging"],
    "allocation": ["forecasting"],
    "isoflop": ["allocation"],
    "report": ["fitting"],
    "picture": ["plot", "show"],
    "commands": ["study", "show", "prepare", "isoflop", "report", "picture", "rolling"],
    "cli": ["commands", "laws"],
    "__main__": ["cli"],
}
NEVER = {"sims", "figures", "fits", "tests", "benchmarks"}


def reachable(name):
    return set().union(*({other} | reachable(other) for other in MAY_IMPORT.get(name, ())))


def unit(path):
    """The top-level module or package of a file: what has a row in the table; "" is scalemem itself."""
    return path.relative_to(LIBRARY).with_suffix("").parts[0].replace("__init__", "")


def imported(path):
    """(line, module) for every import in a file, also those inside functions."""
    module = ("scalemem", *path.relative_to(LIBRARY).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*module[:-node.level], node.module or ""]).rstrip(".") if node.level else node.module
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def offences(path):
    own = unit(path)
    allowed = reachable(own) | {own} if own else set(MAY_IMPORT)
    for line, name in imported(path):
        root, *rest = name.split(".")
        if root in NEVER:
            yield f"{path.name}:{line} imports {name}"
        if root == "scalemem" and rest and rest[0] in MAY_IMPORT and rest[0] not in allowed:
            yield f"{path.name}:{line}: {own} must not import {rest[0]}"


FILES = sorted(path for path in LIBRARY.rglob("*.py") if "studies" not in path.relative_to(LIBRARY).parts)


def test_every_module_has_a_place():
    assert {unit(path) for path in FILES} - {""} <= MAY_IMPORT.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_imports_point_one_way(path):
    assert list(offences(path)) == []


@pytest.mark.parametrize(("name", "source", "wrong"), [
    ("spec.py", "from scalemem.sweep import grid", True),
    ("spec.py", "def f():\n    from scalemem import store", True),
    ("data/uniform.py", "from ..train import step", True),
    ("data/uniform.py", "from .. import pack", True),
    ("data/uniform.py", "from scalemem import models", True),
    ("laws/capacity.py", "import scalemem.fitting", True),
    ("tables.py", "import scalemem.store as s, scalemem.laws", True),
    ("cli.py", "from sims.capacity import SWEEP", True),
    ("cli.py", "import figures", True),
    ("train.py", "from scalemem import store", True),
    ("models/gpt.py", "from scalemem import measure", True),
    ("execute.py", "from scalemem import store, pack", False),
    ("laws/capacity.py", "from .base import Law", False),
    ("laws/capacity.py", "from scalemem import laws, tables", False),
    ("study.py", "from scalemem import execute, forecasting", False),
])
def test_this_test_notices(tmp_path, monkeypatch, name, source, wrong):
    monkeypatch.setitem(globals(), "LIBRARY", tmp_path)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
    assert bool(list(offences(path))) == wrong


LIGHT = ("spec", "sweep", "accounting", "store", "tables", "analyses", "laws", "fitting", "forecasting", "claims", "plot")
LIGHT = [name for name in LIGHT
         if (LIBRARY / f"{name}.py").exists() or (LIBRARY / name).exists()]


@pytest.mark.parametrize("name", ["scalemem", *(f"scalemem.{name}" for name in LIGHT)])
def test_what_needs_no_accelerator_loads_none(name):
    heavy = ["jax", "jaxlib", "flax", "optax", "orbax", "torch"]
    if name in ("scalemem", "scalemem.spec", "scalemem.sweep", "scalemem.accounting", "scalemem.store"):
        heavy += ["numpy", "scipy", "pyarrow", "matplotlib"]
    code = f"import sys; sys.path.insert(0, {str(LIBRARY.parent)!r}); import {name}; " \
           f"print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stderr, done.stdout.strip()) == ("", "[]")
