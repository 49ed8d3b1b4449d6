"""The stability gap against curves worked out by hand."""

import math

import numpy as np
import pyarrow as pa
import pytest

from scalemem import analyses
from scalemem.analyses import stability
from scalemem.spec import SpecError
from scalemem.tables import RowsError

# Scores of three tasks, at steps 0, 1, 2, 10 of each of three stages.
STEPS = (0, 1, 2, 10)
TASKS = [
    [[0.1, 0.5, 0.8, 1.0], [1.0, 0.4, 0.6, 0.96], [0.96, 0.7, 0.5, 0.6]],  # task 0: dips to 0.4 and is back at step 10; then not
    [[0.1, 0.1, 0.1, 0.1], [0.1, 0.5, 0.9, 0.8], [0.8, 0.3, 0.7, 0.8]],
    [[0.1, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.2], [0.2, 0.6, 0.5, 0.9]],
]


def table(scores=TASKS, steps=STEPS, **more):
    return pa.Table.from_pylist([{"run_id": "a", "seed": 0, "n_params": 9, "stage": s, "stage_step": step, "task": i, "accuracy_fraction": v, **more}
                                 for i, stages in enumerate(scores) for s, curve in enumerate(stages)
                                 for step, v in zip(steps, curve, strict=True)])


def test_by_hand():
    second, third = analyses.run("stability", {"tasks": table()}, {"window": 2}).to_pylist()
    assert {k: second[k] for k in ("stage", "old_count")} == {"stage": 1, "old_count": 1}
    assert {k: v for k, v in second.items() if k.endswith(("score", "steps", "fraction"))} == pytest.approx({
        "before_score": 1.0, "lowest_score": 0.4, "end_score": 0.96, "depth_score": 0.6, "depth_at_ends_score": 0.04, "recovery_steps": 10,
        "recovered_fraction": 1, "min_acc_score": 0.4, "wc_acc_score": 0.8 / 2 + 0.4 / 2, "windowed_forgetting_score": 0.6,
        "windowed_plasticity_score": 0.4})
    mean = [0.88, 0.5, 0.6, 0.7]  # of tasks 0 and 1
    assert (third["before_score"], third["lowest_score"], third["end_score"]) == pytest.approx((mean[0], 0.5, 0.7))
    assert (third["depth_score"], third["depth_at_ends_score"]) == pytest.approx((0.38, 0.18))
    assert math.isnan(third["recovery_steps"])
    assert third["recovered_fraction"] == 0
    # The lowest score of task 0 since stage 0 is the dip of stage 1; of task 1 since stage 1 that of stage 2.
    assert third["min_acc_score"] == pytest.approx((0.4 + 0.3) / 2)
    assert third["wc_acc_score"] == pytest.approx(0.9 / 3 + (1 - 1 / 3) * 0.35)
    assert third["windowed_forgetting_score"] == pytest.approx(((0.96 - 0.7) + (0.8 - 0.3)) / 2)


def test_losses_turn_over():
    """With a guess of 2 nats, a loss of 2 - score has the same gap."""
    lossy = [[[2 - v for v in curve] for curve in stages] for stages in TASKS]
    found = analyses.run("stability", {"tasks": table(lossy)}, {"guess_loss": 2.0})
    want = analyses.run("stability", {"tasks": table()}, {})
    for name in found.column_names:
        np.testing.assert_allclose([*map(float, found[name].to_pylist())], [*map(float, want[name].to_pylist())]) if name != "run_id" else None


def test_no_dip_has_no_depth_and_recovers_at_once():
    flat = [[[0.5] * 4] * 2, [[0.1] * 4, [0.1, 0.3, 0.5, 0.9]]]
    found = analyses.run("stability", {"tasks": table(flat)}, {}).to_pylist()[0]
    assert (found["depth_score"], found["recovery_steps"], found["recovered_fraction"]) == (0, 0, 1)


def test_recovery_is_counted_from_the_minimum_on():
    """A curve that passes 95 % on its way down, and one that comes back twice."""
    steps = np.array([0, 1, 2, 3, 4, 5])
    assert stability.recovery(steps, np.array([1.0, 0.96, 0.5, 0.94, 0.95, 1.0])) == 4
    assert stability.recovery(steps, np.array([1.0, 0.6, 0.97, 0.2, 0.3, 0.99])) == 5
    assert stability.recovery(steps, np.array([1.0, 0.6, 0.97, 0.2, 0.3, 0.99]), share=0.25) == 4
    assert math.isnan(stability.recovery(steps, np.array([1.0, 0.6, 0.97, 0.2, 0.3, 0.9])))


def test_windows_against_the_slow_way():
    rng = np.random.default_rng(0)
    for window in (1, 2, 5, 40):
        curve = rng.random(30)
        pairs = [(curve[m], curve[n]) for m in range(30) for n in range(m, min(30, m + window))]
        assert stability.windowed(curve, window) == pytest.approx((max(a - b for a, b in pairs), max(b - a for a, b in pairs)))
    with pytest.raises(SpecError, match="window = 0: must be at least 1"):
        stability.windowed(curve, 0)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: table([t[:1] for t in TASKS]), "no stage after stage 0"),
    (lambda: table(steps=(1, 2, 3, 10)), "must begin at stage_step 0"),
    (lambda: table([[c[:1] for c in t] for t in TASKS], steps=(0,)), "must begin at stage_step 0"),
    (lambda: table().slice(0, 35), "task 2 has not one score at each of its 4 steps"),
    (lambda: table([TASKS[0]]).set_column(5, "task", pa.array([7] * 12)), "no task below 1 was measured"),
])
def test_bad_tables_are_one_line(make, message):
    with pytest.raises(RowsError, match=message) as error:
        analyses.run("stability", {"tasks": make()}, {})
    assert "\n" not in str(error.value)
