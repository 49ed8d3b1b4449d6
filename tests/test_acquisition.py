"""Acquisition and retention of facts: planted curves are read back, whatever their schedule."""

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest
from conftest import make_run

from scalemem import analyses
from scalemem.analyses import acquisition
from scalemem.spec import InjectSpec, Probe, RunSpec, SpecError, canonical_json, run_id
from scalemem.tables import RowsError

VARIANTS = 4


def run_of(*, seed=0, batch=5, encounters=3, paraphrase=False, again=True) -> RunSpec:
    """Pre-training of 40 steps; encounters of facts 100 and 101 every 10 steps; then 500 steps, and once more."""
    base = make_run(n_items=10 * batch, batch_size=batch, seed=seed, generator="facts", data={"variants": VARIANTS})
    first = dataclasses.replace(base.stages[0], exposures=4, segments=10)
    stages = [first]
    for m in range(encounters + again):
        inject = InjectSpec(n_items=2, first=100 * VARIANTS + (m % 2 if paraphrase else 0))
        stages.append(dataclasses.replace(first, exposures=50 if m == encounters - 1 else 1, inject=inject))
    return dataclasses.replace(base, stages=tuple(stages), probes=(Probe("facts", at="log"),))


def tables_of(*runs, decay=0.3, pull=0.0, drift=0.0):
    """Log probability -4 before; after each encounter +1 within three steps, lost but for 0.5 by the next; R = 0.99 - decay log10(t) at the end.

    A second fact is lower by 1 throughout. Semantic is half as far from -4; composition never moves; all drift by `drift` a step.
    """
    rows = []
    for run in runs:
        last = 40 + 10 * (sum(bool(stage.inject) for stage in run.stages) - 2)
        steps = sorted({*range(last + 30), *(last + 3 + round(10 ** (j / 8)) for j in range(8, 22)), last + 500, last + 502, last + 510})
        for step in steps:
            since, met = step - 40, max(0, min((step - 40) // 10, (last - 40) // 10))
            value = -4.0
            if since > 0 and step <= last:
                into = since - 10 * met if since % 10 else 10
                met = met - (since % 10 == 0)
                value += 0.5 * met + (into / 3 if into <= 3 else 1 - 0.5 * (into - 3) / 7)
            elif last < step <= last + 500:
                top = 0.5 * (last - 40) / 10 + 1
                into = step - last
                value += top - 1 + into / 3 if into <= 3 else top * (0.99 - decay * math.log10(into - 3))
            elif step > last + 500:
                value = -1.0 if step == last + 502 else -1.5
            for fact, source, moved in ((100, "inject1", value + 4), (101, "inject1", value + 4), (7, "stage0", 0.0), (9999, "control", 0.0)):
                nats = {"memorization_nats": 4 - moved, "semantic_nats": 4 - moved / 2, "composition_nats": 4.0}
                nats = {k: v - drift * step + pull + (fact == 101) for k, v in nats.items()}
                rows.append({"run_id": run_id(run), "step": step, "fact": fact, "source": source, "n_params": 1000, "seed": run.seed, **nats})
    return {"facts": pa.Table.from_pylist(rows), "runs": pa.Table.from_pylist([{"run_id": run_id(r), "spec": canonical_json(r)} for r in runs])}


def only(table, kind="memorization"):
    found = [row for row in table.to_pylist() if row["kind"] == kind]
    assert len(found) == 1
    return found[0]


def test_planted_effectivity_decay_and_intercept_are_read_back():
    table = analyses.run("acquisition", tables_of(run_of()), {"window": 10, "again": 1})
    memorized, semantic, composed = (only(table, kind) for kind in acquisition.KINDS)
    assert memorized["met_count"] == 3
    assert memorized["sentence_count"] == 1
    assert memorized["facts_count"] == 2
    assert memorized["pretrain_steps"] == 40
    assert memorized["effectivity_nats"] == pytest.approx(1)
    assert memorized["gain_nats"] == pytest.approx(2)
    assert memorized["decay_per_decade_rate"] == pytest.approx(0.3)
    assert memorized["decay_per_efold_rate"] == pytest.approx(0.3 / math.log(10))
    assert memorized["intercept_fraction"] == pytest.approx(0.99)
    assert memorized["explained_fraction"] == pytest.approx(1)
    assert memorized["gone_steps"] == pytest.approx(10 ** (0.99 / 0.3))
    assert memorized["gone_examples"] == pytest.approx(5 * 10 ** (0.99 / 0.3))
    assert memorized["end_fraction"] == pytest.approx(0.99 - 0.3 * math.log10(497))
    assert memorized["end_gain_nats"] == pytest.approx(2 * (0.99 - 0.3 * math.log10(497)))
    assert memorized["again_effectivity_nats"] == pytest.approx(-1 - (-4 + 2 * (0.99 - 0.3 * math.log10(497))))
    assert memorized["control_gain_nats"] == 0
    assert semantic["effectivity_nats"] == pytest.approx(0.5)
    assert semantic["less_than_memorization_nats"] == pytest.approx(0.5)
    assert semantic["decay_per_decade_rate"] == pytest.approx(0.3)
    assert composed["effectivity_nats"] == 0
    assert math.isnan(composed["gone_steps"])


def test_encounters_one_by_one():
    table = analyses.run("acquisition_by_encounter", tables_of(run_of()), {"window": 10, "again": 1})
    rows = [row for row in table.to_pylist() if row["kind"] == "memorization"]
    assert [row["encounter"] for row in rows] == [1, 2, 3, 4]
    np.testing.assert_allclose([row["effectivity_nats"] for row in rows[:3]], 1)
    np.testing.assert_allclose([row["before_nats"] for row in rows[:3]], [-4.5, -4, -3.5])  # the second fact is lower by 1
    assert [row["to_maximum_steps"] for row in rows] == [3, 3, 3, 2]


def test_a_shorter_window_finds_what_it_can_see():
    table = analyses.run("acquisition", tables_of(run_of()), {"window": 2, "again": 1})
    assert only(table)["effectivity_nats"] == pytest.approx(2 / 3)


def test_a_window_ends_at_the_next_encounter():
    table = analyses.run("acquisition", tables_of(run_of()), {"window": 25, "again": 1})
    assert only(table)["effectivity_nats"] == pytest.approx(1)


def test_drift_that_all_facts_share_is_taken_off_against_controls():
    tables = tables_of(run_of(), drift=0.001, pull=2.0)
    options = {"window": 10, "again": 1}
    shared, own = (only(analyses.run("acquisition", tables, options | {"against": against})) for against in acquisition.AGAINST)
    assert own["decay_per_decade_rate"] == pytest.approx(0.3)
    assert own["gain_nats"] == pytest.approx(2)
    assert shared["gain_nats"] == pytest.approx(2 + 0.001 * 23)
    assert shared["decay_per_decade_rate"] < 0.25
    assert shared["control_gain_nats"] == pytest.approx(0.001 * 23)


def test_the_line_ends_where_nothing_is_left():
    steep = only(analyses.run("acquisition", tables_of(run_of(), decay=0.6), {"window": 10, "again": 1}))
    since, share = (np.array(x) for x in ((1, 10, 100, 1000, 10_000), (1.0, 0.5, 0.0, -3.0, -9.0)))
    assert acquisition.line(since, share) == pytest.approx((1, 0.5, 1, 3))
    assert steep["decay_per_decade_rate"] == pytest.approx(0.6)
    assert steep["end_fraction"] < 0
    assert math.isnan(acquisition.line(since[:2], share[:2]).decay)


def test_paraphrases_seeds_and_batches_are_told_apart():
    runs = [run_of(seed=s, paraphrase=p, batch=b) for s in (0, 1) for p in (False, True) for b in (5, 8)]
    table = analyses.run("acquisition", tables_of(*runs), {"window": 10, "again": 1, "where": "fact != 101"})
    rows = [row for row in table.to_pylist() if row["kind"] == "memorization"]
    assert sorted((row["seed"], row["sentence_count"], row["batch_size"]) for row in rows) == [
        (s, n, b) for s in (0, 1) for n in (1, 2) for b in (5, 8)]
    assert {row["gone_examples"] / row["gone_steps"] for row in rows} == {5, 8}


def test_the_law_that_was_planted_wins():
    table = analyses.run("acquisition_laws", tables_of(run_of()), {"window": 10, "again": 1, "of": "kind == 'memorization'"})
    rows = {row["law"]: row for row in table.to_pylist()}
    assert rows["log_linear"]["wins_fraction"] == 1
    assert rows["log_linear"]["tail_error"] < 1e-9
    assert rows["exponential"]["margin_ratio"] < 0.1


def test_what_was_not_measured_is_said():
    tables = tables_of(run_of())
    with pytest.raises(SpecError, match=r"analysis.against = 'nothing': must be one of before, controls"):
        analyses.run("acquisition", tables, {"against": "nothing"})
    with pytest.raises(RowsError, match="not measured at step 50"):
        analyses.run("acquisition", tables, {"window": 10, "again": 1, "where": "step != 50"})
    with pytest.raises(RowsError, match="no run meets facts more than 4 times"):
        analyses.run("acquisition", tables, {"again": 4})


def test_encounters_of_a_schedule_within_a_stage():
    run = make_run(n_items=40, batch_size=5, generator="facts", data={"variants": 4})
    inject = InjectSpec(n_items=2, first=400, times=3, start=2, interval=2, growth=2, stagger=1.5, paraphrase=True)
    run = dataclasses.replace(run, stages=(dataclasses.replace(run.stages[0], inject=inject),))
    assert acquisition.encounters(run) == {100: [(2, 400), (4, 401), (10, 402)], 101: [(3, 404), (5, 405), (11, 406)]}
