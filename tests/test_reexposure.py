"""Re-exposure: savings by hand, the runs that are made for them, and the retrained reference."""

import dataclasses
import math

import pyarrow as pa
import pytest

from scalemem import accounting, analyses, controls
from scalemem.execute import check
from scalemem.measure.moment import sources
from scalemem.spec import (
    DataSpec,
    InjectSpec,
    ModelSpec,
    OptimizerSpec,
    Probe,
    ReplaySpec,
    RunSpec,
    SpecError,
    Stage,
    StrategySpec,
)
from scalemem.tables import RowsError


def rows(scores, nats):
    """Rows of one run: {source: [score at steps 0, 4, 8]} of two items each, one below and one above the mean."""
    found = []
    for source in scores:
        for step, s, v in zip((0, 4, 8), scores[source], nats[source], strict=True):
            found += [{"run_id": "a", "seed": 0, "n_params": 9, "stage": 2, "stage_step": step, "exposures": step / 4, "source": source,
                       "recalled": s, "memorization_nats": v + d} for d in (-1.0, 1.0)]
    return {"facts": pa.Table.from_pylist(found)}


def test_savings_by_hand():
    """Lost items are at one half after 2 steps and new ones after 6: two thirds are saved."""
    table = rows({"stage0": [0.25, 0.75, 1.0], "stage2": [0.0, 0.25, 0.75], "control": [0.0, 0.0, 0.0]},
                 {"stage0": [5.0, 2.0, 1.0], "stage2": [6.0, 5.0, 3.0], "control": [6.0, 6.0, 6.0]})
    (row,) = analyses.run("reexposure", table, {}).to_pylist()
    assert row == {"run_id": "a", "seed": 0, "n_params": 9, "met_exposures": 2.0, "before_savings_nats": 1.0, "savings_nats": 2.0,
                   "lost_recalled_fraction": 0.25, "new_recalled_fraction": 0.0, "end_lost_recalled_fraction": 1.0,
                   "end_new_recalled_fraction": 0.75, "lost_steps": 2.0, "new_steps": 6.0, "savings_fraction": pytest.approx(2 / 3),
                   "relearned_ratio": 3.0}
    (never,) = analyses.run("reexposure", table, {"criterion": 0.9}).to_pylist()
    assert math.isnan(never["savings_fraction"])
    assert never["lost_steps"] == 4 + 4 * (0.9 - 0.75) / 0.25
    with pytest.raises(RowsError, match="source 'stage1'"):
        analyses.run("reexposure", table, {"new": "stage1"})
    with pytest.raises(SpecError, match=r"criterion = 1\.5: must be above 0"):
        analyses.run("reexposure", table, {"criterion": 1.5})


def staged(**changes):
    learn = Stage(data=DataSpec(n_items=16, generator="facts"), optimizer=OptimizerSpec(peak_lr=0.02, b2=0.95, schedule="constant"), exposures=60,
                  batch_size=16)
    forget = dataclasses.replace(learn, data=DataSpec(n_items=16, first=1000, generator="facts"), exposures=30, **changes)
    model = ModelSpec(d_model=16, n_layers=1, n_heads=2, vocab_size=64, seq_len=8)
    return RunSpec(model=model, stages=(learn, forget), probes=(Probe("facts", at="log"),))


def test_runs_beside_a_run_can_be_trained_and_are_as_long():
    """The stage of re-exposure has the lost items and as many new ones; the reference has other items and the same steps."""
    run = staged()
    again, reference = controls.reexposed(run, 24), controls.without(run)
    check([again, reference])
    assert again.stages[:2] == run.stages
    assert (again.stages[2].data.first, again.stages[2].data.n_items) == (0, 32)
    assert [s.name for s in sources(again)] == ["stage0", "stage1", "stage2"]
    assert [s.data.first for s in reference.stages] == [1016, 1000]
    assert [accounting.steps(s) for s in reference.stages] == [accounting.steps(s) for s in run.stages]


def test_ranges_that_are_taken_are_one_line_and_all_that_reads_old_items_moves():
    run = staged(inject=InjectSpec(n_items=2, first=20))
    with pytest.raises(SpecError, match=r"stages\[0\].data.n_items = 16: the 16 item numbers from 16 on must be free") as error:
        controls.reexposed(run, 3)
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(SpecError, match="from 0 to 1"):
        controls.without(run, 2)
    found = controls.without(staged(replay=ReplaySpec(fraction=0.5, n_items=4, first=4), strategy=StrategySpec("ewc", first=2)))
    later = found.stages[1]
    assert later.replay is not None
    assert later.strategy is not None
    assert (later.data.first, later.replay.first, later.strategy.first) == (1000, 1020, 1018)
