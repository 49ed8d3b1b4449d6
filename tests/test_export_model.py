"""Final models as safetensors: whole, named, and the same numbers when they are applied again."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
from conftest import MODEL, make_run

from scalemem import export_model, keeping, models
from scalemem.durable import StoreError
from scalemem.spec import SpecError, run_id

TOKENS = jax.numpy.arange(14).reshape(2, 7) % 32


@pytest.mark.parametrize("kept_in", ["float32", "bfloat16"])
def test_a_model_comes_back_with_its_run_and_its_logits(tmp_path, kept_in):
    model = dataclasses.replace(MODEL, param_dtype=kept_in)
    run, params = make_run(model, seed=3), models.init(model, jax.random.key(1))
    path = export_model.path_of(tmp_path, run_id(run))
    export_model.save(path, run, params, "diverged")
    found, again = export_model.load(path)
    assert found == run
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert {x.dtype.name for x in jax.tree.leaves(again)} == {kept_in}
    assert np.array_equal(models.apply(model)(again, TOKENS), models.apply(model)(params, TOKENS))
    meta = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])["__metadata__"]
    assert (meta["run_id"], meta["status"]) == (run_id(run), "diverged")
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("harm", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b[:-5] + bytes([b[-5] ^ 1]) + b[-4:],
                                  lambda b: b.replace(b"embed", b"embad", 1) if b"embed" in b else b"\xff" * 40, lambda b: b"\xff" * 40,
                                  lambda b: b.replace(b'seed\\":3', b'seed\\":4')])
def test_a_damaged_model_is_named(tmp_path, harm):
    path = tmp_path / "models" / "x.safetensors"
    export_model.save(path, make_run(seed=3), models.init(MODEL, jax.random.key(1)))
    before = path.read_bytes()
    path.write_bytes(harm(before))
    assert path.read_bytes() != before
    with pytest.raises(StoreError, match=r"x.safetensors: damaged, or no model") as error:
        export_model.load(path)
    assert str(error.value).isprintable()


def test_no_file_and_no_package_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(StoreError, match="vanished"):
        export_model.load(tmp_path / "none.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(SpecError, match=r"the package safetensors is not installed; install it with pip install 'scalemem\[hf\]'"):
        keeping.ask(tmp_path, keeping.Keep(models=True))
    assert list(tmp_path.iterdir()) == []


def test_what_a_launch_keeps_is_read_as_it_was_asked(tmp_path):
    assert keeping.asked(tmp_path) == keeping.Keep()
    for keep in (keeping.Keep(models=True), keeping.Keep(at=(3, 10), stages=True)):
        keeping.ask(tmp_path, keep)
        assert keeping.asked(tmp_path) == keep
    content = (tmp_path / "keep.json").read_bytes()
    for harmed in (b"", content[:20], content.replace(b"3", b"4", 1)):
        (tmp_path / "keep.json").write_bytes(harmed)
        with pytest.raises(StoreError, match=r"keep.json: damaged; run the same command again"):
            keeping.asked(tmp_path)
    keeping.ask(tmp_path, keeping.Keep())
    assert keeping.asked(tmp_path) == keeping.Keep()


@pytest.mark.parametrize("text", ["0", "-1", "ten", "1.5", "stage"])
def test_moments_that_are_none(text):
    with pytest.raises(SpecError, match=r"--checkpoint-at '.*': must be a number of exposures, or stages"):
        keeping.parse(False, f"10,{text}")
