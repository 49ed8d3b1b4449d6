"""What a launch keeps beside rows: final models and named states; and checkpoints written beside the training."""

import jax
import numpy as np
import pytest
from conftest import make_pack, make_run, one, trained

from scalemem import checkpoint, execute, export_model, keeping, launch, named, pack
from scalemem.durable import StoreError
from scalemem.spec import run_id
from scalemem.store import Store

RUNS = [make_run(exposures=12), make_run(exposures=5, seed=1)]


def weights(store, run):
    found, params = export_model.load(export_model.path_of(store.path, run_id(run)))
    assert found == run
    return params


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_final_models_and_named_states_are_those_of_the_training(store):
    keeping.ask(store.path, keeping.Keep(models=True, at=(3, 7, 100), stages=True))
    assert execute.work(make_pack(RUNS), store)
    final = trained(RUNS)
    for i, run in enumerate(RUNS):
        assert equal(weights(store, run), one(final, i).params)
        assert named.names(store, run_id(run)).keys() == {"exposures-3", "exposures-7", "stage-1"}
        for name, after in (("exposures-3", 3), ("exposures-7", 7), ("stage-1", 12)):
            found, state = named.load(store, run_id(run), name)
            assert found == run
            assert int(state.segment) == min(after, run.stages[0].exposures)
            assert equal(state, one(trained(RUNS, after), i))
    assert store.checkpoints() == []
    assert {p.name for p in (store.path / "models").iterdir()} == {f"{run_id(run)}.safetensors" for run in RUNS}


def test_a_damaged_named_state_is_named_and_an_unknown_name_says_which_there_are(store):
    keeping.ask(store.path, keeping.Keep(at=(3,)))
    assert execute.work(make_pack(RUNS), store)
    key = run_id(RUNS[0])
    with pytest.raises(StoreError, match=r"nothing was kept of run .* under 'exposures-4'; legal: exposures-3; choose"):
        named.load(store, key, "exposures-4")
    states = next(p for p in (store.path / "named").rglob("d/*") if p.stat().st_size > 100)
    states.write_bytes(states.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"is damaged; moved to set-aside/checkpoint-.*; run it again in a new store"):
        named.load(store, key, "exposures-3")


def test_a_kill_between_model_and_row_loses_and_doubles_nothing(store, monkeypatch):
    """The row is not written: the run is not finished, its model is there, and both are made again."""
    keeping.ask(store.path, keeping.Keep(models=True))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "append_tables", killed)
        with pytest.raises(KeyboardInterrupt):
            execute.work(make_pack(RUNS), store)
    assert len(list((store.path / "models").iterdir())) == 1
    assert store.finished() == {}
    assert execute.work(make_pack(RUNS), store)
    assert len(list((store.path / "models").iterdir())) == len(store.finished()) == store.table("runs").num_rows == 2


def test_runs_that_finished_without_their_models_are_told_of_and_not_run_again(store):
    events = []
    assert execute.work(make_pack(RUNS[:1]), store)
    assert launch.run(RUNS, store, "vmap", report=events.append, keep=keeping.Keep(models=True)) == {"done": 2, "diverged": 0, "failed": 0}
    (told,) = [e["text"] for e in events if e["event"] == "warning"]
    assert told.startswith(f"1 runs finished earlier without --keep-models ({run_id(RUNS[0])}): their models are not kept")
    assert [e["run_id"] for e in events if e["event"] == "run"] == [run_id(RUNS[1])]
    assert [p.stem for p in (store.path / "models").iterdir()] == [run_id(RUNS[1])]
    launch.run(RUNS, store, "vmap", report=events.append)
    assert keeping.asked(store.path) == keeping.Keep()


def test_a_checkpoint_is_written_while_training_goes_on(tmp_path, monkeypatch):
    """The states that are written are those that were given, though their buffers have been used for the next steps since."""
    p = make_pack(RUNS)
    program, k = pack.program(p.shape, "map"), pack.knobs(p)
    states = program.advance(program.start(k), k, 2)
    expected, save, waits = jax.tree.map(np.array, states), checkpoint.save, []

    def slowly(*args):
        while not waits:
            pass
        save(*args)

    monkeypatch.setattr(checkpoint, "save", slowly)
    with checkpoint.Writer(tmp_path / "pack", execute.to_json(p)) as writer:
        writer.save(2, states, {})
        states = jax.block_until_ready(program.advance(states, k, 2))
        assert writer.busy
        waits.append(True)
        writer.wait()
        assert not writer.busy
    found = checkpoint.load(tmp_path / "pack", lambda epoch: expected)
    assert found is not None
    assert found[0] == 2
    assert equal(found[1], expected)
