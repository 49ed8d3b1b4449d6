"""The gap of leaked facts, by hand: at the end of the leak, what is left of it later, and beside the decay of the weights."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from conftest import make_run

from scalemem import analyses
from scalemem.spec import InjectSpec, RunSpec, canonical_json
from scalemem.tables import RowsError


def spec(seed=0, pool=False, decay=0.5, inject=True):
    """4 steps of 5 items with a leak, then 8 steps: 40 fresh items, or 10 four times."""
    one = make_run(n_items=20, exposures=1, generator="facts", weight_decay=0.1, schedule="constant", peak_lr=0.1, warmup_steps=0).stages[0]
    one = dataclasses.replace(one, inject=InjectSpec(n_items=2, first=1000, times=3) if inject else None)
    two = dataclasses.replace(one, inject=None, exposures=4 if pool else 1, data=dataclasses.replace(one.data, first=500, n_items=10 if pool else 40),
                              optimizer=dataclasses.replace(one.optimizer, weight_decay=decay))
    return RunSpec(model=make_run().model, stages=(one, two), probes=make_run().probes, seed=seed)


# (stage, step) -> accuracies of the two leaked facts, of the two controls; losses of both
AT = {(0, 0): ((0.5, 0.5), (0.5, 0.5), (3, 3), (3, 3)), (0, 4): ((1, 0.75), (0.5, 0.25), (1, 2), (4, 3)),
      (1, 0): ((1, 0.75), (0.5, 0.25), (1, 2), (4, 3)), (1, 1): ((1, 0.5), (0.5, 0.5), (2, 2), (4, 3.9)),
      (1, 8): ((0.5, 0.5), (0.5, 0.25), (3, 3), (3, 3.5))}


def tables(*specs, later=lambda i, v: v):
    runs = [{"run_id": str(i), "spec": canonical_json(s), "n_params": 10} for i, s in enumerate(specs)]
    facts = [{"run_id": str(i), "stage": stage, "stage_step": step, "source": source, "fact": f, "recognized_fraction": later(i, a),
              "memorization_nats": n} for i in range(len(specs)) for (stage, step), (hit, chance, low, high) in AT.items()
             for source, accuracy, nats in (("inject0", hit, low), ("control", chance, high), ("stage1", (0.9, 0.9), (9, 9)))
             for f, (a, n) in enumerate(zip(accuracy, map(float, nats), strict=True))]
    return {"runs": pa.Table.from_pylist(runs), "facts": pa.Table.from_pylist(facts)}


def test_by_hand():
    found = analyses.run("contamination", tables(spec()), {}).to_pylist()
    assert [(r["stage"], r["stage_step"]) for r in found] == [(0, 4), (1, 0), (1, 1), (1, 8)]
    assert [r["accuracy_gap_fraction"] for r in found] == pytest.approx([0.5, 0.5, 0.25, 0.125])
    assert [r["loss_gap_nats"] for r in found] == pytest.approx([2.0, 2.0, 1.95, 0.25])
    assert [r["loss_gap_left_fraction"] for r in found] == pytest.approx([1, 1, 0.975, 0.125])
    assert [r["weight_left_fraction"] for r in found] == pytest.approx([1, 1, 0.95, 0.95**8])
    assert [r["inside_envelope"] for r in found] == [1, 1, 0, 1]
    assert [r["later_tokens"] for r in found] == [0, 0, 5 * 8, 8 * 5 * 8]
    last = found[-1]
    assert {k: last[k] for k in ("repeats_count", "train_tokens", "leaked_count", "pool_items", "is_fresh", "later_weight_decay")} == {
        "repeats_count": 3, "train_tokens": 160, "leaked_count": 2, "pool_items": 40, "is_fresh": 1, "later_weight_decay": 0.5}
    assert (last["chinchillas_ratio"], last["later_ratio"]) == pytest.approx((160 / 200, 2.0))


def test_a_pool_against_fresh_data():
    """Runs of a pool answer leaked and held-out facts a little differently; pairs are of one seed and decay."""
    both = tables(spec(), spec(pool=True), spec(seed=1, pool=True), spec(pool=True, decay=0.1), later=lambda i, v: v * (1 + (i == 1)))
    found = analyses.run("contamination_pool", both, {}).to_pylist()
    assert [(r["seed"], r["stage_step"]) for r in found] == [(0, 0), (0, 1), (0, 8)]
    assert [r["gap_over_fresh_fraction"] for r in found] == pytest.approx([0.5, 0.25, 0.125])
    with pytest.raises(RowsError, match="no run with a repeated pool has a run beside it"):
        analyses.run("contamination_pool", tables(spec(), spec(seed=1, pool=True)), {})


@pytest.mark.parametrize(("make", "options", "message"), [
    (lambda: tables(spec(inject=False)), {}, "injects nothing"),
    (lambda: tables(spec()), {"leaked": "inject3"}, "no fact of source 'inject3'"),
    (lambda: tables(spec()), {"where": "stage > 1"}, "no row satisfies where"),
    (lambda: tables(spec()) | {"runs": tables(spec())["runs"].slice(0, 0)}, {}, "of a run that is among the runs"),
])
def test_bad_input_is_one_line(make, options, message):
    with pytest.raises(RowsError, match=message) as error:
        analyses.run("contamination", make(), options)
    assert "\n" not in str(error.value)


def test_order_of_rows_does_not_matter():
    found = tables(spec(), spec(seed=1))
    shuffled = found | {"facts": found["facts"].take(np.random.default_rng(0).permutation(found["facts"].num_rows))}
    assert analyses.run("contamination", shuffled, {}).equals(analyses.run("contamination", found, {}))
