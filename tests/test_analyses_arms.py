"""Strategies beside one another: names, costs and gains against hand-computed numbers."""

import json

import numpy as np
import pyarrow as pa
import pytest

from scalemem import analyses
from scalemem.analyses import arms
from scalemem.spec import DataSpec, ModelSpec, OptimizerSpec, Probe, ReplaySpec, RunSpec, Stage, StrategySpec, run_id, to_dict
from scalemem.tables import RowsError

MODEL = ModelSpec(d_model=4, n_layers=0, n_heads=1, vocab_size=8, seq_len=4)
FIELDS = ("name", "kind", "flops_ratio", "state_floats", "stored_tokens")


def run_of(seed=0, **second):
    plain = {"optimizer": OptimizerSpec(peak_lr=0.1), "exposures": 2, "batch_size": 4}
    stages = tuple(Stage(data=DataSpec(n_items=8, first=8 * i), **plain, **(second if i else {})) for i in range(2))
    return RunSpec(model=MODEL, stages=stages, probes=(Probe("tasks", at="stages"),), seed=seed)


def row(run, costs=()):
    """A run as the store has it."""
    found = {"run_id": run_id(run), "seed": run.seed, "n_params": 50, "seq_len": 4, "vocab_size": 8, "spec": json.dumps(to_dict(run))}
    for i, stage in enumerate(run.stages):
        found |= {f"stage{i}_n_items": 8, f"stage{i}_exposures": 2, f"stage{i}_trains": stage.trains}
        if stage.replay:
            found |= {f"stage{i}_replay_fraction": stage.replay.fraction, f"stage{i}_replay_n_items": stage.replay.n_items}
        if stage.strategy:
            found |= {f"stage{i}_strategy_name": stage.strategy.name, f"stage{i}_strategy_kind": stage.strategy.kind}
            found |= dict(zip((f"stage{i}_strategy_{name}" for name in FIELDS[2:]), costs, strict=True))
    return found


def scores(run, matrix):
    """Rows of the tasks' table: before everything 0, after stage i row i of the matrix."""
    made = [(0, 0, (0.0, 0.0)), (0, 4, matrix[0]), (1, 0, matrix[0]), (1, 4, matrix[1])]
    return [{"run_id": run_id(run), "seed": run.seed, "n_params": 50, "stage": stage, "stage_step": step, "task": t, "accuracy_fraction": v}
            for stage, step, values in made for t, v in enumerate(values)]


RUNS = {
    "none": (run_of(), (), ((1.0, 0.0), (0.2, 1.0))),
    "joint": (run_of(replay=ReplaySpec(fraction=0.5, n_items=8)), (), ((1.0, 0.0), (0.8, 1.0))),
    "replay": (run_of(replay=ReplaySpec(fraction=0.5, n_items=2, every=4)), (), ((1.0, 0.0), (0.5, 0.9))),
    "ewc sample": (run_of(strategy=StrategySpec("ewc", kind="sample")), (0.5, 100, 0), ((1.0, 0.0), (0.4, 1.0))),
    "gem+lora": (run_of(strategy=StrategySpec("gem"), trains="lora"), (2.0, 50, 256), ((1.0, 0.0), (0.9, 0.9))),
}


def tables(names):
    some = [RUNS[name] for name in names]
    rows = [row(run, costs) for run, costs, _ in some]
    names = list(dict.fromkeys(name for one in rows for name in one))  # a run without a strategy has nulls, as in a store
    return {"runs": pa.table({name: [one.get(name) for one in rows] for name in names}),
            "tasks": pa.Table.from_pylist([one for run, _, matrix in some for one in scores(run, matrix)])}


def test_arms_by_hand():
    found = {r["strategy"]: r for r in analyses.run("arms", tables(RUNS), {"by": ["stages.0.data.generator"]}).to_pylist()}
    assert set(found) == set(RUNS)
    np.testing.assert_allclose([found[n]["acc_fraction"] for n in RUNS], [0.6, 0.9, 0.7, 0.7, 0.9])
    np.testing.assert_allclose([found[n]["gain_fraction"] for n in RUNS], [0, 0.3, 0.1, 0.1, 0.3], atol=1e-12)
    np.testing.assert_allclose([found[n]["closed_fraction"] for n in RUNS], [0, 1, 1 / 3, 1 / 3, 1], atol=1e-12)
    np.testing.assert_allclose([found[n]["bwt_gain_fraction"] for n in RUNS], [0, 0.6, 0.3, 0.2, 0.7], atol=1e-12)
    np.testing.assert_allclose([found[n]["extra_flops_ratio"] for n in RUNS], [0, 0, 0, 0.25, 1.0])  # half of the steps are stage 1's
    np.testing.assert_allclose([found[n]["state_floats_per_param"] for n in RUNS], [0, 0, 0, 2, 1])
    np.testing.assert_allclose([found[n]["stored_tokens_count"] for n in RUNS], [0, 32, 8, 0, 256])
    np.testing.assert_allclose([found[n]["stored_bits"] for n in RUNS], [0, 96, 24, 0, 768])
    assert arms.costs(row(run_of()) | {"stage1_strategy_stored_bits": 5.0})["stored_bits"] == 5
    assert {r["generator"] for r in found.values()} == {"uniform"}


def test_without_the_ends_there_is_no_gain():
    found = analyses.run("arms", tables(["replay", "ewc sample"]), {"by": ["stages.0.data.generator"]})
    assert np.isnan(found["gain_fraction"].to_numpy()).all()
    assert np.isnan(found["closed_fraction"].to_numpy()).all()
    with pytest.raises(analyses.SpecError, match="at least one field"):
        arms.analyse(tables(["none"]), by=[])


def test_frontier_by_hand():
    """Plain tuning keeps .4 of what it knew and learns all: half of that learned is .7 kept on the line."""
    ends = {"none": (0.2, 1.0), "replay": (0.45, 0.5), "ewc sample": (0.3, 0.25)}
    found = tables(ends)
    means = {name: ((0, "stage0", 0.5), (4, "stage0", old), (0, "stage1", 0), (4, "stage1", new)) for name, (old, new) in ends.items()}
    items = [{"run_id": run_id(RUNS[name][0]), "seed": 0, "n_params": 50, "stage": 1, "stage_step": step, "source": source, "recalled": v}
             for name in ends for step, source, mean in means[name] for v in (mean * 2, 0.0)]
    made = {r["strategy"]: r for r in analyses.run("frontier", found | {"facts": pa.Table.from_pylist(items)}, {}).to_pylist()}
    np.testing.assert_allclose([made[n]["kept_fraction"] for n in ends], [0.4, 0.9, 0.6])
    np.testing.assert_allclose([made[n]["learned_fraction"] for n in ends], [1.0, 0.5, 0.25])
    np.testing.assert_allclose([made[n]["above_line_fraction"] for n in ends], [0, 0.2, -0.25], atol=1e-12)
    np.testing.assert_allclose([made[n]["gained_kept_fraction"] for n in ends], [0, 0.5, 0.2], atol=1e-12)
    np.testing.assert_allclose([made[n]["compute_ratio"] for n in ends], [1, 1, 1.5])
    np.testing.assert_allclose([made[n]["strength"] for n in ends], [0, 0.5, 0])
    before = [row | {"stage": 0, "stage_step": 9, "recalled": 0.25} for row in items if row["source"] == "stage0"]
    again = analyses.run("frontier", found | {"facts": pa.Table.from_pylist(before + items)}, {}).to_pylist()
    assert {row["old_before_fraction"] for row in again} == {0.25}  # at the end of the stage before, where that was measured
    with pytest.raises(RowsError, match="no row of source 'stage7'"):
        arms.frontier(found | {"facts": pa.Table.from_pylist(items)}, old="stage7")
