"""The memory of a pack by formula is XLA's count within a factor of 2, and decides the path that runs take."""

import dataclasses
import json
from typing import Any

import jax
import pytest
from conftest import MODEL, longer, make_run

from scalemem import launch, memory, pack, paths, train
from scalemem.cli import main
from scalemem.spec import SpecError


def model(**change):
    return dataclasses.replace(MODEL, **change)


CASES = {
    "attention": (model(n_heads=4, seq_len=64), 32, "map", 1, False),
    "vocabulary": (model(vocab_size=1024, seq_len=16, compute_dtype="bfloat16"), 16, "map", 1, False),
    "weights": (model(d_model=64, vocab_size=512, seq_len=4), 2, "map", 2, False),
    "at once": (model(seq_len=32), 16, "vmap", 4, False),
    "again": (model(n_layers=4, seq_len=32, mlp="swiglu"), 32, "map", 1, True),
}


@pytest.mark.parametrize("case", CASES)
def test_the_formula_is_within_a_factor_of_2_of_the_compiler(case):
    spec, rows, how, size, remat = CASES[case]
    run = make_run(spec, n_items=64, batch_size=rows)
    p = pack.Pack(train.Shape.of(run, 64, rows, remat=remat), (run,) * size, size)
    program, k = pack.Program(p.shape, how), pack.knobs(p)
    used: Any = program.advance.lower(jax.eval_shape(program.start, k), k, 1).compile().memory_analysis()
    counted = used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes - used.alias_size_in_bytes
    found = memory.of(p, how)
    assert counted / 2 < found.total < counted * 2
    held = sum(x.nbytes if hasattr(x, "nbytes") else x.size * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(program.start, k)))
    assert found.weights + found.optimizer == pytest.approx(held, rel=0.01)  # exactly, but for counters


def test_a_split_state_takes_its_part():
    large = make_run(model(d_model=512, n_layers=8), n_items=64, batch_size=64)
    (one,), (eight,) = (paths.of([large], how, n) for how, n in (("vmap", 0), ("fsdp", 8)))
    assert eight.memory.weights == one.memory.weights / 8
    assert eight.memory.optimizer == one.memory.optimizer / 8
    assert eight.memory.gradients == one.memory.gradients / 8


def test_what_is_too_large_for_a_device_is_split_or_said(monkeypatch, capsys, tmp_path):
    small, large = make_run(), make_run(model(d_model=256, n_layers=4))
    monkeypatch.setattr(memory, "capacity", lambda device=None: 30e6)
    fits, lost = paths.of([small], "vmap", 0)[0], paths.of([large], "vmap", 0, auto=1)[0]
    assert (fits.fits, fits.complaint(), lost.executor, lost.fits) == (True, "", "vmap", False)
    assert lost.never_fits
    assert "\n" not in lost.complaint()
    assert "must be at most 90% of the 0.03 GB that it has" in lost.complaint()
    room = 1.2 * paths.of([large], "fsdp", 8, paths.Passes(split=4))[0].memory.total
    monkeypatch.setattr(memory, "capacity", lambda device=None: room)
    many = [small, longer(small, 9), *(dataclasses.replace(large, seed=i) for i in range(4))]
    ways = paths.of(many, "vmap", 0, auto=8)  # as few devices a model as have the memory
    assert [(way.executor, way.devices, way.split, way.runs, way.fits) for way in ways] == [
        ("vmap", 0, 0, tuple(many[:2]), True), ("fsdp", 8, 4, tuple(many[2:]), True)]
    assert paths.of(many, "vmap", 0, paths.Passes(split=8), auto=8)[1].split == 8  # as asked
    (alone,) = paths.of([large], "vmap", 0, auto=8)  # no device is left without a run
    assert (alone.split, alone.memory.total < ways[1].memory.total) == (8, True)
    assert [way.executor for way in paths.of([large], "vmap", 0)] == ["vmap"]  # as asked


def test_a_plan_says_path_and_memory(monkeypatch, capsys, tmp_path, store):
    sim = tmp_path / "one.py"
    sim.write_text("from conftest import make_run\nfrom scalemem import Sweep\nSWEEP = Sweep(make_run(), {})\n")
    assert main(["plan", str(sim), "--json", "--executor", "vmap", "--micro-batch", "2", "--remat", "--store", str(tmp_path / "none")]) == 0
    (row,) = json.loads(capsys.readouterr().out)["paths"]
    assert (row["path"], row["devices"], row["runs"], row["fits"]) == ("vmap", 1, 1, True)
    assert row["memory_bytes"] == sum(row[f"{name}_bytes"] for name in memory.Memory._fields)
    monkeypatch.setattr(memory, "capacity", lambda device=None: 1e3)
    assert main(["plan", str(sim), "--executor", "vmap", "--store", str(tmp_path / "none")]) == 0
    assert "does not fit: a model of" in capsys.readouterr().out
    with pytest.raises(SpecError, match="needs about"):
        launch.run([make_run()], store, "vmap")
    assert main(["plan", str(sim), "--micro-batch", "-1"]) == 2
    assert "--micro-batch -1: must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(("split", "executor", "devices", "auto", "message"), [
    (-1, "fsdp", 8, 0, "--split -1: must be at least 1 device"),
    (3, "fsdp", 8, 0, "--split 3: must divide the number of devices, 8; choose one of 1, 2, 4, 8"),
    (2, "vmap", 0, 1, "--split 2: must divide the number of devices, 1; choose one of 1"),
    (2, "cpu", 0, 0, "--split 2: is of --executor fsdp or auto, not cpu"),
])
def test_a_split_that_cannot_be_is_one_line(split, executor, devices, auto, message):
    with pytest.raises(SpecError) as caught:
        paths.of([make_run()], executor, devices, paths.Passes(split=split), auto)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
