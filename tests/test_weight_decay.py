"""Cumulative weight decay: schedules against those that train, the products against loops, and published values."""

import math
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import make_run

from scalemem import analyses, optimizers
from scalemem.analyses import weight_decay
from scalemem.spec import DataSpec, OptimizerSpec, RunSpec, SpecError, Stage, canonical_json
from scalemem.tables import RowsError

OLMO = weight_decay.rates("linear", 615_000, 3e-4, 5000, 0.1)
LLAMA = weight_decay.rates("cosine", 1_200_000, 8e-5, 8000, 0.01)
GPT_15X = weight_decay.rates("cosine", 71_525, 6e-4, 700, 0.1)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "trapezoid"])
def test_schedules_are_those_that_train(schedule):
    spec = OptimizerSpec(peak_lr=0.02, schedule=schedule, warmup_steps=7, decay_fraction=0.4, final_fraction=0.1)
    trained = optimizers.rate(schedule, optimizers.knobs(spec), np.arange(50), 50)
    np.testing.assert_allclose(weight_decay.rates(schedule, 50, 0.02, 7, 0.1, 0.4), trained * np.ones(50), rtol=1e-6)


def test_linear():
    """Warm-up of 2 steps, then from 1 to a tenth, which it would reach at step 20."""
    assert weight_decay.rates("linear", 20, 3.0, 2, 0.1)[[0, 1, 2, 11]] == pytest.approx([1.5, 3.0, 3.0, 3 * 0.55])


PUBLISHED = tomllib.loads((Path(__file__).parents[1] / "fits/reference/bordt2025.toml").read_text())["table"][-1]


@pytest.mark.parametrize("row", PUBLISHED["rows"], ids=lambda row: f"{row[0]} at {row[6]:.0%}")
def test_golden_values(row):
    """Data seen at a fraction of a run, to the digits that are printed in shared/literature/forgetting.md 3; but the last, which says why."""
    _, schedule, peak, final, warmup, steps, fraction, left, printed_to = row
    rate = weight_decay.rates(schedule, steps, peak, warmup, final)
    assert weight_decay.weight_left(rate, 0.1)[int(fraction * steps)] == pytest.approx(left, abs=printed_to)


def test_golden_proposition():
    steps = weight_decay.steps_until(0.01, 0.1, 6e-4)
    assert steps == 76_753
    assert weight_decay.weight_left(np.full(steps, 6e-4), 0.1)[0] == pytest.approx(0.0099985, abs=5e-8)
    for rate in (OLMO, LLAMA, GPT_15X):  # for any schedule with that mean
        left = weight_decay.weight_left(rate, 0.1)[0]
        assert weight_decay.steps_until(left, 0.1, float(rate.mean())) >= len(rate)


def test_golden_deciles():
    """124M at 15 x Chinchilla: 0.052 and 0.049 of the sum are from the first and the last tenth."""
    shares = weight_decay.composition(GPT_15X, 0.1)
    assert shares.sum() == pytest.approx(1)
    assert (shares[0], shares[-1]) == pytest.approx((0.052, 0.049), abs=1e-3)


def test_products_against_loops():
    rng = np.random.default_rng(0)
    rate, decay = rng.uniform(0, 0.1, 12), 0.7
    left = weight_decay.weight_left(rate, decay)
    assert left == pytest.approx([math.prod(1 - decay * r for r in rate[t:]) for t in range(13)])
    theta, directions = rng.normal(), rng.normal(size=12)
    end = theta
    for r, d in zip(rate, directions, strict=True):
        end = end - r * (d + decay * end)
    assert end == pytest.approx(left[0] * theta - np.sum(left[1:] * rate * directions))


def staged(**second):
    """Three steps, then four."""
    run = make_run()
    stages = [Stage(data=DataSpec(n_items=5), optimizer=OptimizerSpec(**o), exposures=e, batch_size=5)
              for o, e in (({"peak_lr": 0.1, "weight_decay": 2.0, "schedule": "constant"}, 3),
                           ({"peak_lr": 0.2, "weight_decay": 0.5, "schedule": "cosine", **second}, 4))]
    return RunSpec(model=run.model, stages=tuple(stages), probes=run.probes)


def table(steps, **more):
    return pa.table({"run_id": ["a"] * len(steps), "stage": [s for s, _ in steps], "stage_step": [k for _, k in steps], **more})


RUNS = pa.table({"run_id": ["a"], "spec": [canonical_json(staged())]})


def test_rows_of_a_run_with_two_stages():
    first, second = np.full(3, 0.2), 0.5 * weight_decay.rates("cosine", 4, 0.2)
    rows = {"runs": RUNS, "facts": table([(0, 0), (0, 2), (0, 3), (1, 0), (1, 2), (1, 4)])}
    found = analyses.run("cumulative_decay", rows, {"since_stage": 0})["weight_left_fraction"].to_pylist()
    after = np.cumprod(1 - np.concatenate([first, second]))
    assert found == pytest.approx([1, after[1], after[2], after[2], after[4], after[6]])
    found = analyses.run("cumulative_decay", rows, {})["weight_left_fraction"].to_pylist()
    assert found[2:] == pytest.approx([1, 1, after[4] / after[2], after[6] / after[2]])
    assert all(map(math.isnan, found[:2]))


def test_a_column_says_since_when():
    rows = {"runs": RUNS, "facts": table([(1, 4), (1, 4), (0, 1)], last_step=[7, 3, 2])}
    found = analyses.run("cumulative_decay", rows, {"since": "last_step"})["weight_left_fraction"].to_pylist()
    assert found[:2] == pytest.approx([1, np.prod(1 - 0.5 * weight_decay.rates("cosine", 4, 0.2))])
    assert math.isnan(found[2])


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: weight_decay.rates("step", 5, 1.0), SpecError, "must be one of constant, linear"),
    (lambda: weight_decay.weight_left(np.ones(3), 1.0), SpecError, "below 1"),
    (lambda: weight_decay.steps_until(0.01, 0.0, 1.0), SpecError, "positive"),
    (lambda: weight_decay.of_run(RunSpec(model=staged().model, probes=staged().probes, stages=(
        Stage(data=DataSpec(n_items=5), optimizer=OptimizerSpec(peak_lr=0.1), exposures=1, batch_size=5, trains="lora"),))),
     RowsError, "train all weights"),
    (lambda: analyses.run("cumulative_decay", {"runs": RUNS, "facts": table([(1, 5)])}, {}), RowsError, "a step of 8; the run has 7"),
    (lambda: analyses.run("cumulative_decay", {"runs": RUNS, "facts": table([(1, 1)])}, {"since_stage": 2}), SpecError, "must be below 2"),
    (lambda: analyses.run("cumulative_decay", {"runs": RUNS.slice(0, 0), "facts": table([(1, 1)])}, {}), RowsError, "not among the runs"),
])
def test_bad_input_is_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
