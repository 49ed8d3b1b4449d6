"""ACC, BWT, FWT, LCA and the conventions of forgetting, against matrices worked out by hand; and what a table of scores must have."""

import itertools
import math

import numpy as np
import pyarrow as pa
import pytest

from scalemem import analyses
from scalemem.analyses import continual
from scalemem.spec import SpecError
from scalemem.tables import RowsError

# Three tasks. Task 0 falls from 0.9 to 0.5, task 1 from 0.8 to 0.6: the sum of falls is 0.6.
R = np.array([[0.9, 0.3, 0.1], [0.7, 0.8, 0.2], [0.5, 0.6, 0.9]])
B = np.array([0.1, 0.1, 0.1])


def test_golden_backward_transfer():
    """The example of shared/literature/forgetting.md 4.1: -0.30 by the paper's T - 1, -0.20 by the program's T."""
    assert continual.bwt(R) == pytest.approx(-0.30)
    assert continual.bwt(R, "repo") == pytest.approx(-0.20)


def test_by_hand():
    assert continual.acc(R) == pytest.approx((0.5 + 0.6 + 0.9) / 3)
    assert continual.fwt(R, B) == pytest.approx(((0.3 - 0.1) + (0.2 - 0.1)) / 2)
    assert continual.fwt(R, B, "repo") == pytest.approx(0.3 / 3)
    assert {kind: continual.forgetting(R, kind) for kind in continual.FORGETTING} == pytest.approx({
        "gem_bwt": -0.30, "gem_repo": -0.20, "last_minus_first": -0.30, "chaudhry": 0.30, "max_incl_last": 0.30})


def test_where_the_conventions_part():
    """Task 0 is best at the end, task 1 was best before it was learned."""
    scores = np.array([[0.6, 0.9, 0.0], [0.5, 0.7, 0.0], [0.8, 0.65, 1.0]])
    assert continual.forgetting(scores, "last_minus_first") == pytest.approx((0.2 - 0.05) / 2)
    assert continual.forgetting(scores, "gem_repo") == pytest.approx((0.2 - 0.05) / 3)
    assert continual.forgetting(scores, "chaudhry") == pytest.approx(((0.6 - 0.8) + (0.9 - 0.65)) / 2)  # excludes the last row: negative part
    assert continual.forgetting(scores, "max_incl_last") == pytest.approx((0 + (0.9 - 0.65)) / 2)


def test_identities_on_random_matrices():
    rng = np.random.default_rng(0)
    for t in (2, 3, 7):
        scores = rng.random((t, t))
        same = sum(scores[-1, i] - scores[i, i] for i in range(t - 1))
        assert continual.bwt(scores) * (t - 1) == pytest.approx(same)
        assert continual.bwt(scores, "repo") * t == pytest.approx(same)
        assert continual.forgetting(scores, "max_incl_last") >= max(0.0, continual.forgetting(scores, "chaudhry"))
        slow = [max(scores[l, i] for l in range(t - 1)) - scores[t - 1, i] for i in range(t - 1)]  # noqa: E741
        assert continual.forgetting(scores, "chaudhry") == pytest.approx(sum(slow) / (t - 1))
        kept = np.triu(rng.random((t, t)), 1) + np.tril(np.tile(rng.random(t), (t, 1)))
        assert continual.bwt(kept) == pytest.approx(0)  # nothing changes after it was learned


@pytest.mark.parametrize(("call", "message"), [
    (lambda: continual.forgetting(R, "forgetting"), "must be one of gem_bwt, gem_repo, last_minus_first, chaudhry, max_incl_last"),
    (lambda: continual.bwt(R, "T"), "must be paper"),
    (lambda: continual.acc(R[:2]), r"shape \(2, 3\)"),
    (lambda: continual.acc(R[:1, :1]), "T of at least 2"),
    (lambda: continual.fwt(R, B[:2]), "for each of the 3 tasks"),
])
def test_bad_input_is_one_line(call, message):
    with pytest.raises(SpecError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def rows(scores, start, run="a", seed=0, offset=0, steps=(0, 1, 2, 40)):
    """A task table: before each stage, at some steps and at its end; scores go from the row before to the row of the stage in equal parts."""
    found = []
    for stage, step in itertools.product(range(len(scores)), steps):
        before = start if stage == 0 else scores[stage - 1]
        now = before + (scores[stage] - before) * steps.index(step) / (len(steps) - 1)
        found += [{"run_id": run, "stage": stage + offset, "stage_step": step, "step": 100 * stage + step, "task": i, "seed": seed, "n_params": 50,
                   "accuracy_fraction": float(v)} for i, v in enumerate(now)]
    return found


def test_a_table_of_scores():
    other = np.array([[1.0, 0.5, 0.5], [1.0, 1.0, 0.5], [1.0, 1.0, 1.0]])
    table = pa.Table.from_pylist([*reversed(rows(R, B)), *rows(other, B, "b", 1)])
    first, second = analyses.run("continual", {"tasks": table}, {}).to_pylist()
    assert {k: first[k] for k in ("run_id", "seed", "n_params", "tasks_count")} == {"run_id": "a", "seed": 0, "n_params": 50, "tasks_count": 3}
    numbers = {k: v for k, v in first.items() if k.endswith("fraction") and k != "lca_fraction"}
    assert numbers == pytest.approx({
        "acc_fraction": 2 / 3, "bwt_fraction": -0.3, "bwt_repo_fraction": -0.2, "fwt_fraction": 0.15, "fwt_repo_fraction": 0.1,
        "last_minus_first_fraction": -0.3, "chaudhry_forgetting_fraction": 0.3, "max_incl_last_forgetting_fraction": 0.3})
    assert math.isnan(first["lca_fraction"])  # steps 3 to 10 were not measured
    assert (second["acc_fraction"], second["bwt_fraction"], second["fwt_fraction"]) == pytest.approx((1, 0, 0.4))


def test_learning_curve_area_of_a_table():
    table = pa.Table.from_pylist(rows(R, B))
    found = analyses.run("continual", {"tasks": table}, {"beta": 2}).to_pylist()[0]
    pairs = ((0.1, 0.9), (0.3, 0.8), (0.2, 0.9))  # of each task: before its stage, after it
    slow = [np.mean([a + (b - a) * i / 3 for a, b in pairs]) for i in range(3)]
    assert found["lca_fraction"] == pytest.approx(np.mean(slow))


def test_pretraining_comes_before_the_first_task():
    table = pa.Table.from_pylist([{**row, "stage": 0} for row in rows(R, B)[:3]] + rows(R, B, offset=1))
    assert analyses.run("continual", {"tasks": table}, {"first_stage": 1})["fwt_fraction"].to_pylist() == pytest.approx([0.15])


@pytest.mark.parametrize(("drop", "message"), [
    (lambda r: r["stage"] == 2 and r["task"] == 1, "0 scores of task 1 in stage 2"),
    (lambda r: r["stage"] == 2, "0 scores of task 0 in stage 2"),
    (lambda r: r["stage_step"] == 0, "0 scores of task 0 in stage 0 at step 0"),
    (lambda r: r["task"] > 0, "has 1 task"),
])
def test_a_missing_score_is_said(drop, message):
    table = pa.Table.from_pylist([r for r in rows(R, B) if not drop(r)])
    with pytest.raises(RowsError, match=message) as error:
        analyses.run("continual", {"tasks": table}, {})
    assert "\n" not in str(error.value)


def test_two_scores_of_one_cell_are_an_error():
    table = pa.Table.from_pylist(rows(R, B) + rows(R, B)[:3])
    with pytest.raises(RowsError, match="2 scores of task 0 in stage 0"):
        analyses.run("continual", {"tasks": table}, {})
