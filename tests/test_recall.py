"""Recognition, recall and retention: planted shares are read back, and compared at equal recall."""

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest
from conftest import make_run

from scalemem import analyses
from scalemem.analyses import recall
from scalemem.spec import Probe, ReplaySpec, RunSpec, SpecError, canonical_json, run_id
from scalemem.tables import RowsError

RANDOM = 1 << 28


def run_of(*, exposures=2, seed=0, before=4, first=1000, pretrained=0) -> RunSpec:
    """Pre-training of 8 steps for `before` = 4; a study of 4 facts, 2 steps an exposure; then 100 steps, and 10 more in a last stage."""
    base = make_run(n_items=4, batch_size=2, seed=seed, generator="facts")
    data = base.stages[0].data
    replay = ReplaySpec(fraction=1.0, n_items=50, first=pretrained)
    stages = (dataclasses.replace(base.stages[0], exposures=before, replay=replay, data=dataclasses.replace(data, first=pretrained)),
              dataclasses.replace(base.stages[0], exposures=exposures, data=dataclasses.replace(data, first=first)),
              dataclasses.replace(base.stages[0], exposures=50), dataclasses.replace(base.stages[0], exposures=5))
    return dataclasses.replace(base, stages=stages, probes=(Probe("facts", at="log"),))


def steps(run, since):
    """Facts recalled so long after the study."""
    return 4 if since < 5 else 2 if since < 100 else 1


def tables_of(runs, remembered=steps, left=lambda since: 2.0 - math.log10(max(since, 1)) / 2):
    """Of 4 facts so many are recalled; every one is recognised with half the foils more than chance; the pool is lost when the study ends."""
    rows = []
    for run in runs:
        begin, end = 2 * run.stages[0].exposures, 2 * run.stages[0].exposures + 2 * run.stages[1].exposures
        later = [(2, end + t) for t in (0, 1, 2, 3, 5, 8, 10, 20, 40, 60, 80, 100)]
        times = [(0, 0), (0, begin), (1, begin), (1, end), *later, (3, end + 100), (3, end + 110)]
        random = run.stages[1].data.first >= RANDOM
        for stage, step in times:
            since, studied = step - end, (stage, step) >= (1, end)
            known = remembered(run, since) if studied else 0
            common = {"run_id": run_id(run), "stage": stage, "step": step, "n_params": 500, "seed": run.seed}
            for f in range(4):
                rows.append(common | {"fact": run.stages[1].data.first + f, "source": "stage1", "recalled": f < known,
                                      "recognized_fraction": 0.75 if studied else 0.5, "memorization_nats": 4 - (left(since) if studied else 0.0)})
                rows.append(common | {"fact": run.stages[0].data.first + f, "source": "stage0", "recalled": not studied, "recognized_fraction": 1.0,
                                      "memorization_nats": 0.0})
                rows.append(common | {"fact": (1 << 29) + f + random * RANDOM, "source": "control_random" if random else "control", "recalled": f < 1,
                                      "recognized_fraction": 0.25, "memorization_nats": 4.0})
    return {"facts": pa.Table.from_pylist(rows), "runs": pa.Table.from_pylist([{"run_id": run_id(r), "spec": canonical_json(r)} for r in runs])}


def test_planted_shares_are_read_back():
    row, = analyses.run("recall_kept", tables_of([run_of()]), {}).to_pylist()
    assert (row["pretrain_steps"], row["study_exposures"], row["random_set"], row["pretrain_random"]) == (8, 2, 0, 0)
    assert [row[f"{when}_recall_fraction"] for when in ("before", "study", "early", "end")] == [0, 1, 0.5, 0.25]
    assert row["study_gain_nats"] == pytest.approx(2)
    assert (row["recall_kept_fraction"], row["recognition_kept_fraction"], row["recognition_longer_fraction"]) == (0.25, 1, 0.75)
    assert row["early_loss_fraction"] == pytest.approx(0.5 / 0.75)
    assert row["end_since_steps"] == 110
    assert row["pool_kept_fraction"] == 0
    one, = analyses.run("recall_kept", tables_of([run_of()]), {"after": 1, "early": 3}).to_pylist()
    assert (one["end_since_steps"], one["end_recall_fraction"], one["early_recall_fraction"]) == (100, 0.25, 1)


def test_curves_begin_where_the_study_ends():
    table = analyses.run("recall_curves", tables_of([run_of()]), {})
    rows = table.to_pylist()
    assert [row["since_steps"] for row in rows] == [0, 1, 2, 3, 5, 8, 10, 20, 40, 60, 80, 100, 100, 110]
    np.testing.assert_allclose([row["gain_nats"] for row in rows[1:8]], [2 - math.log10(t) / 2 for t in (1, 2, 3, 5, 8, 10, 20)])
    assert {row["control_recall_fraction"] for row in rows} == {0.25}
    assert {row["control_recognition_fraction"] for row in rows} == {0.25}
    assert {row["above_chance_fraction"] for row in rows} == {0.5}
    strings = analyses.run("recall_curves", tables_of([run_of(first=RANDOM)]), {}).to_pylist()
    assert {row["random_set"] for row in strings} == {1}
    assert {row["control_recall_fraction"] for row in strings} == {0.25}


def test_the_law_that_was_planted_wins():
    rows = {row["law"]: row for row in analyses.run("recall_laws", tables_of([run_of()]), {}).to_pylist()}
    assert rows["log_linear"]["wins_fraction"] == 1
    with pytest.raises(SpecError, match=r"analysis.value = 'seed': must be one of recall_fraction"):
        analyses.run("recall_laws", tables_of([run_of()]), {"value": "seed"})


def test_retention_is_compared_at_equal_recall():
    # at the end of the study e facts of 4; after it, as many halved without pre-training, all with it, and none after strings
    def remembered(run, since):
        learned = run.stages[1].exposures
        return learned if since < 50 else {0: learned / 2, 4: learned, 8: learned}[run.stages[0].exposures] * (run.stages[0].data.first == 0)

    runs = [run_of(exposures=e, before=b, pretrained=p, seed=s) for s in (0, 1) for e in (2, 4) for b, p in ((0, 0), (4, 0), (8, 0), (8, RANDOM))]
    table = analyses.run("recall_matched", tables_of(runs, remembered), {"levels": [0.5, 0.75, 1.0]})
    rows = {(row["seed"], row["pretrain_steps"], row["pretrain_random"], row["level_fraction"]): row for row in table.to_pylist()}
    assert len(rows) == 2 * 4 * 3
    for seed in (0, 1):
        for level in (0.5, 0.75, 1.0):
            row = rows[seed, 16, 0, level]
            assert (row["kept_fraction"], row["more_than_untrained_fraction"], row["more_than_strings_fraction"]) == pytest.approx((1, 0.5, 1))
            assert (row["longest"], row["compared"]) == (1, 1)
            assert rows[seed, 8, 0, level]["longest"] == 0
            assert rows[seed, 0, 0, level]["kept_fraction"] == pytest.approx(0.5)
            assert rows[seed, 16, 1, level]["kept_fraction"] == 0


def test_what_was_not_run_is_said():
    run = run_of()
    short = dataclasses.replace(run, stages=run.stages[:2])
    with pytest.raises(RowsError, match="no run has a stage after stage 1"):
        analyses.run("recall_kept", tables_of([run]) | {"runs": pa.Table.from_pylist([{"run_id": run_id(run), "spec": canonical_json(short)}])}, {})
    with pytest.raises(RowsError, match="no run recalls"):
        analyses.run("recall_matched", tables_of([run], lambda run, since: 1), {"levels": [0.5]})
    with pytest.raises(SpecError, match=r"analysis.levels = \[0\]"):
        analyses.run("recall_matched", tables_of([run]), {"levels": [0]})
    assert recall.CONTROL == 2 * recall.RANDOM
