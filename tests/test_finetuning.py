"""Forgetting against fine-tuning loss: planted lines, orders and laws are found, and matched losses are read off by hand."""

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest
from conftest import make_run

from scalemem import analyses, laws
from scalemem.analyses import finetuning
from scalemem.spec import RunSpec, SpecError, canonical_json
from scalemem.tables import RowsError

STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 200)
RANKS = (1, 2, 4, 8, 16)
LAW = {"s": 3.0, "c": 0.5, "a": 50.0, "alpha": 0.2, "beta": 0.3, "rho": 1.5}


def spec(rank, seed, trains="lora"):
    one = make_run(seed=seed, generator="facts", data={"object_tokens": 2}).stages[0]
    two = dataclasses.replace(one, data=dataclasses.replace(one.data, first=100), trains=trains, rank=rank)
    return RunSpec(model=make_run().model, stages=(one, two), probes=make_run().probes, seed=seed)


def forgotten(rank, step):
    """Law (c) at 10 parameters a rank."""
    law, x = laws.get("forgetting_kalajdzievski"), {"n_finetuned": np.array([10.0 * rank]), "steps": np.array([float(step)]), "1": np.ones(1)}
    return float(law.off_scale(law.predict(x, law.internal(LAW)))[0])


def suite(y=forgotten, x=lambda rank, step, f: 4 - f, seeds=(0, 1), ranks=RANKS, steps=STEPS):
    """Runs, curves and facts in which new facts have a loss of x(rank, step, y) nats a token, in two facts that differ."""
    runs, curves, facts = [], [], []
    for seed in seeds:
        for rank in ranks:
            run_id = f"{seed}-{rank}"
            runs.append({"run_id": run_id, "spec": canonical_json(spec(rank, seed)), "n_params": 77, "stage1_trained_params": 10 * rank})
            curves.append({"run_id": run_id, "stage": 0, "stage_step": 5, "forgetting_nats": None, "base_entropy_nats": None, "kl_nats": None})
            for step in (0, *steps):
                f = y(rank, step) if step else 0.5
                curves.append({"run_id": run_id, "stage": 1, "stage_step": step, "forgetting_nats": f, "base_entropy_nats": 0.5, "kl_nats": f - 0.5})
                for source, nats in (("stage1", 2 * x(rank, step, f)), ("stage0", 1.0), ("control", 9.0)):
                    where = {"run_id": run_id, "stage": 1, "stage_step": step, "source": source}
                    facts += [{**where, "memorization_nats": nats + d} for d in (-0.5, 0.5)]
    return {"runs": pa.Table.from_pylist(runs), "curves": pa.Table.from_pylist(curves), "facts": pa.Table.from_pylist(facts)}


def test_rows():
    found = analyses.run("finetuning", suite(), {"after": 2}).to_pylist()
    assert len(found) == 2 * len(RANKS) * (len(STEPS) - 2)
    row = next(r for r in found if (r["seed"], r["rank"], r["stage_step"]) == (1, 4, 16))
    f = forgotten(4, 16)
    assert {k: row[k] for k in finetuning.COLUMNS if not isinstance(row[k], float)} == {
        "run_id": "1-4", "seed": 1, "n_params": 77, "trains": "lora", "rank": 4, "trained_params": 40, "stage_step": 16}
    assert (row["finetuning_loss_nats"], row["old_loss_nats"], row["forgetting_nats"], row["kl_nats"]) == pytest.approx((4 - f, 0.5, f, f - 0.5))


def test_large_losses_and_other_rows_are_left_out():
    found = analyses.run("finetuning", suite(), {"below_nats": 2.0, "where": "rank < 8"})
    assert 0 < found.num_rows < 2 * 3 * len(STEPS)
    assert max(found["finetuning_loss_nats"].to_pylist()) <= 2.0
    assert max(found["rank"].to_pylist()) == 4


def test_a_planted_line_is_found():
    tables = suite(x=lambda rank, step, f: 1.5 - 0.5 * f)
    pooled = analyses.run("finetuning_lines", tables, {"options": {}}).to_pylist()
    assert [(r["seed"], r["points_count"]) for r in pooled] == [(0, 45), (1, 45)]
    assert [r["slope_ratio"] for r in pooled] == pytest.approx([-2.0, -2.0])
    assert [r["explained_fraction"] for r in pooled] == pytest.approx([1, 1])
    each = analyses.run("finetuning_lines", suite(x=lambda rank, step, f: 1.5 - 0.5 * f / rank), {"by": ["rank", "seed"], "options": {}}).to_pylist()
    assert [r["slope_ratio"] for r in each] == pytest.approx([-2.0 * rank for rank in RANKS for _ in range(2)])


def test_order_in_steps_and_ranks():
    rising = analyses.run("finetuning_order", suite(), {"options": {}}).to_pylist()
    assert all(r["steps_spearman_ratio"] == pytest.approx(1) for r in rising)
    assert [r["rises_fraction"] for r in rising[1:5]] == [1, 1, 1, 1]
    assert math.isnan(rising[0]["rises_fraction"])
    crossing = suite(y=lambda rank, step: 1 + 1 / step + rank * (1e-3 if step < 10 else -1e-3))
    falls = analyses.run("finetuning_order", crossing, {"options": {}}).to_pylist()
    assert falls[0]["steps_spearman_ratio"] == pytest.approx(-1)
    assert [r["rises_fraction"] for r in falls[1:5]] == pytest.approx([4 / 9] * 4)


def test_spearman_with_ties():
    from scipy.stats import spearmanr
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, 40).astype(float), rng.integers(0, 5, 40).astype(float)
    assert finetuning.spearman(x, y) == pytest.approx(spearmanr(x, y)[0])
    assert math.isnan(finetuning.spearman(x, np.ones(40)))


def test_matched_losses_by_hand():
    """Rank 1 goes from a loss of 3 to 1 while forgetting rises from 0 to 2; rank 2 from 4 to 2, from 0 to 1: they share 3 to 2."""
    tables = suite(y=lambda rank, step: (step - 1) / rank if step < 4 else 2.0 / rank, x=lambda rank, step, f: 2 + rank - f * rank, seeds=(0,),
                   ranks=(1, 2), steps=(1, 3))
    found = analyses.run("finetuning_matched", tables, {"levels": 1, "options": {}}).to_pylist()[0]
    assert (found["level_nats"], found["lowest_nats"], found["highest_nats"]) == pytest.approx((2.5, 0.5, 0.75))
    assert (found["mean_nats"], found["spread_fraction"], found["ranks_count"]) == pytest.approx((0.625, 0.4, 2))


def test_matched_on_one_line_has_no_spread():
    found = analyses.run("finetuning_matched", suite(), {"options": {}}).to_pylist()
    assert len(found) == 10
    assert max(r["spread_fraction"] for r in found) < 1e-9
    assert [r["mean_nats"] for r in found] == pytest.approx([4 - r["level_nats"] for r in found])


def test_the_law_forecasts_what_it_made():
    """Ranks above 4 and steps beyond 60 %; and never reads them."""
    tables = suite(seeds=(0,))
    found = analyses.run("finetuning_forecast", tables, {"largest": 4, "options": {}}).to_pylist()
    assert len(found) == 5 * len(STEPS) - 3 * sum(s <= 120 for s in STEPS)
    assert max(r["error_fraction"] for r in found) < 0.02
    late = next(r for r in found if (r["rank"], r["stage_step"]) == (16, 128))
    assert late["persistence_error_fraction"] == pytest.approx(1 - forgotten(4, 64) / forgotten(16, 128))
    other = suite(y=lambda rank, step: 99.0 if rank > 4 or step > 120 else forgotten(rank, step), seeds=(0,))
    again = analyses.run("finetuning_forecast", other, {"largest": 4, "options": {}}).to_pylist()
    assert [r["forecast_nats"] for r in again] == [r["forecast_nats"] for r in found]


@pytest.mark.parametrize(("name", "options", "error", "message"), [
    ("finetuning", {"stage": 2}, RowsError, "no row satisfies"),
    ("finetuning", {"new": "inject1"}, RowsError, "no step of stage 1"),
    ("finetuning", {"where": "rank > 99"}, RowsError, "no row satisfies where = 'rank > 99'"),
    ("finetuning_forecast", {"fraction": 1.0, "options": {}}, SpecError, "between 0 and 1"),
    ("finetuning_forecast", {"largest": 1, "options": {"where": "stage_step < 33"}}, RowsError, "has 5 points of rank 1"),
    ("finetuning_matched", {"options": {"where": "rank == 1"}}, RowsError, "no seed has two ranks"),
])
def test_bad_input_is_one_line(name, options, error, message):
    with pytest.raises(error, match=message) as caught:
        analyses.run(name, suite(), options)
    assert "\n" not in str(caught.value)


def test_two_runs_of_one_rank_are_said():
    tables = suite(seeds=(0,))
    again = {name: t.set_column(0, "run_id", pa.array([f"z{v}" for v in t["run_id"].to_pylist()])) for name, t in tables.items()}
    both = {name: pa.concat_tables([tables[name], again[name]]) for name in tables}
    with pytest.raises(RowsError, match="two runs of 10 trained parameters"):
        analyses.run("finetuning_order", both, {"options": {}})
