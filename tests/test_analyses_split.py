"""Analyses of some runs at a time; effects of a profile by hand, against the trainer's own rates, and forecasts of planted profiles."""

import dataclasses
import json
import math

import numpy as np
import pyarrow as pa
import pytest

from scalemem import analyses, optimizers
from scalemem.analyses import effects, profile, split
from scalemem.spec import CanarySpec, DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, SpecError, Stage, canonical_json

STEPS = range(0, 81, 10)


def spec(schedule="trapezoid", placement="anywhere", seed=0):
    canaries = CanarySpec(per_group=4, placement=placement)
    optimizer = OptimizerSpec(peak_lr=0.1, schedule=schedule, decay_fraction=1.0, final_fraction=0.2)
    return RunSpec(ModelSpec(d_model=4, n_layers=1, n_heads=1, vocab_size=8, seq_len=4),
                   (Stage(DataSpec(80, canaries=canaries), optimizer, 1, 1),), (Probe("likelihood"),), seed)


def suite(effect, noise=0.0, sizes=(100,), seeds=1, **settings):
    """Runs, and additive losses that training at step `first` lowers by effect(its checkpoint, step, size, run) from there on."""
    rng, rows, runs = np.random.default_rng(0), [], []
    for values in [dict(zip(settings, v, strict=True)) for v in zip(*settings.values(), strict=True)] or [{}]:
        for seed in range(seeds):
            own, first = rng.normal(size=200), np.where(np.arange(200) % 5 == 0, -1, rng.integers(0, 80, 200))
            for size in sizes:
                run = spec(**values, seed=seed)
                name = f"{seed}-{size}-{values}"
                runs.append({"run_id": name, "seed": seed, "n_params": size, "steps": 80, "schedule": run.stages[0].optimizer.schedule,
                             "spec": canonical_json(run)})
                for i in range(200):
                    g = first[i] // 10 * 10 + 10
                    same = {"run_id": name, "seed": seed, "n_params": size, "canary": i, "planted": bool(first[i] >= 0), "first_step": int(first[i])}
                    for t in STEPS:
                        gain = effect(g, t, size, run) if first[i] >= 0 and t >= g else 0.0
                        rows.append({**same, "exposures": t / 80, "step": t, "nats": own[i] - t / 9 - gain + noise * rng.normal()})
    return {"runs": pa.Table.from_pylist(runs), "likelihood": pa.Table.from_pylist(rows)}


@pytest.mark.parametrize("schedule", ["constant", "trapezoid", "cosine"])
@pytest.mark.parametrize("warmup", [0, 7, 1000])
def test_the_rate_is_the_trainers(schedule, warmup):
    o = OptimizerSpec(peak_lr=0.5, schedule=schedule, warmup_steps=warmup, decay_fraction=0.6, final_fraction=0.1)
    steps = np.arange(90)
    assert effects.rate_fraction(o, steps, 90) == pytest.approx(np.asarray(optimizers.rate(schedule, optimizers.knobs(o), steps, 90)) / 0.5, rel=1e-5)


def test_effects_by_hand():
    made = effects.analyse(suite(lambda g, t, n, run: 5 - g / 20 if t == g else g / 100), outcome="nats", sign=-1).to_pylist()
    assert len(made) == 1
    row, cells = made[0], [(g, c) for g in STEPS[1:] for c in STEPS if c > g]
    assert (row["n_params"], row["cohorts_count"]) == (100, 8)
    assert row["pre"] == pytest.approx(0, abs=1e-9)
    assert row["instantaneous"] == pytest.approx(5 - 45 / 20)
    assert row["instantaneous_late"] == pytest.approx(5 - 75 / 20)
    assert row["persistent"] == pytest.approx(np.mean([g / 100 for g, _ in cells]))
    assert row["residual"] == pytest.approx(0.4)  # of the cohorts 10 .. 70; the last has no later checkpoint
    assert row["recency"] == pytest.approx(0.70 - 0.25)
    assert row["rate_pearson"] == pytest.approx(1)  # both fall linearly
    flipped = effects.analyse(suite(lambda g, t, n, run: 5 - g / 20 if t == g else g / 100), outcome="nats").to_pylist()[0]
    assert (flipped["instantaneous"], flipped["rate_pearson"]) == (pytest.approx(-row["instantaneous"]), pytest.approx(-1))


def test_without_an_effect_there_is_none():
    row = effects.analyse(suite(lambda *_: 0.0, noise=1.0, seeds=3), outcome="nats").to_pylist()[0]
    assert row["quiet_fraction"] > 0.85
    assert abs(row["instantaneous"]) < 0.3
    constant = effects.analyse(suite(lambda *_: 0.0, noise=1.0, schedule=["constant"]), outcome="nats").to_pylist()[0]
    assert math.isnan(constant["rate_pearson"])


def test_effects_want_one_schedule():
    tables = suite(lambda *_: 1.0, schedule=["constant", "trapezoid"])
    with pytest.raises(SpecError, match=r"runs: 2 kinds of schedule and number of steps; must be 1") as error:
        effects.analyse(tables, outcome="nats")
    assert "\n" not in str(error.value)
    with pytest.raises(SpecError, match=r"analysis\.sign = 0: must be 1 or -1"):
        effects.analyse(tables, outcome="nats", sign=0)


def test_split_is_the_analysis_of_each_part():
    tables = suite(lambda g, t, n, run: 1.0 + run.seed + 3 * (run.stages[0].optimizer.schedule == "constant"), seeds=2,
                   schedule=["constant", "trapezoid"], sizes=(100, 200))
    options = {"outcome": "nats", "sign": -1}
    made = analyses.run("split", tables, {"analysis": "effects", "by": ["schedule", "seed"], "options": options}).to_pylist()
    assert list(made[0])[:3] == ["schedule", "seed", "n_params"]
    assert [(r["schedule"], r["seed"], r["n_params"], round(r["instantaneous"], 6)) for r in made] == [
        (schedule, seed, n, 1 + seed + 3 * (schedule == "constant")) for schedule in ("constant", "trapezoid") for seed in (0, 1) for n in (100, 200)]
    one = {name: table.filter([str(v).startswith("1-") and "constant" in v for v in table["run_id"].to_pylist()]) for name, table in tables.items()}
    alone = analyses.run("effects", one, options).to_pylist()
    same = [{k: r[k] for k in alone[0]} for r in made if (r["schedule"], r["seed"]) == ("constant", 1)]
    assert len(same) == len(alone) == 2
    for a, b in zip(same, alone, strict=True):
        assert a == pytest.approx(b, nan_ok=True)


def test_split_reads_fields_of_specs():
    tables = suite(lambda g, t, n, run: 1.0 + (run.stages[0].data.canaries.placement == "massed"), placement=["massed", "anywhere"])
    for name in ("placement", "canaries.placement", "stages.0.data.canaries.placement"):
        made = analyses.run("split", tables, {"analysis": "effects", "by": [name], "options": {"outcome": "nats", "sign": -1}}).to_pylist()
        assert [(r[name], round(r["instantaneous"], 6)) for r in made] == [("anywhere", 1), ("massed", 2)]  # a default is not in the JSON
    for by, message in (("colour", r"analysis\.by = 'colour': must be a column of the runs or a field of their specs; correct the name"),
                        ("optimizer", "must be a column")):
        with pytest.raises(SpecError, match=message):
            analyses.run("split", tables, {"analysis": "effects", "by": [by], "options": {"outcome": "nats"}})
    with pytest.raises(SpecError, match=r"analysis\.by = \[\]: must name at least one"):
        analyses.run("split", tables, {"analysis": "effects", "by": [], "options": {"outcome": "nats"}})
    with pytest.raises(SpecError, match=r"analysis\.outcomes: unknown option of effects"):
        analyses.run("split", tables, {"analysis": "effects", "by": ["seed"], "options": {"outcomes": "nats"}})
    with pytest.raises(SpecError, match=r"analysis\.options = 'nats': must be a table of options"):
        analyses.run("split", tables, {"analysis": "effects", "by": ["seed"], "options": "nats"})


def test_an_ambiguous_name_is_refused():
    run = dataclasses.replace(spec(), probes=(Probe("likelihood"), Probe("extraction")))
    tables = {"runs": pa.table({"run_id": ["a"], "spec": [json.dumps(json.loads(canonical_json(run)))]})}
    with pytest.raises(SpecError, match=r"must be one of probes\.0\.measure, probes\.1\.measure; correct the name"):
        analyses.run("split", tables, {"analysis": "effects", "by": ["measure"], "options": {"outcome": "nats"}})


def test_a_power_law_in_size_is_forecast_exactly():
    shape = lambda g, t, n, run: n**0.3 * (1 + np.sin(g)) / (1 + t - g)  # noqa: E731
    rows = effects.forecast(suite(shape, sizes=(10, 30, 80, 500)), outcome="nats").to_pylist()
    assert [(r["target_n_params"], r["predictor_n_params"]) for r in rows] == [(80, 30), (500, 30), (500, 80)]
    assert [r["scale_ratio"] for r in rows] == pytest.approx([3**0.3, 3**0.3, (8 / 3) ** 0.3])
    assert all(r["skill_fraction"] == pytest.approx(1) and r["pearson"] == pytest.approx(1) and r["cells_count"] == 36 for r in rows)
    assert all(r["copy_skill_fraction"] < 1 - 1e-3 for r in rows)


def test_skill_is_the_slow_one():
    tables = suite(lambda g, t, n, run: n / 100, noise=1.0, sizes=(100, 200, 400))
    row, = effects.forecast(tables, outcome="nats").to_pylist()
    cells = {n: {} for n in (100, 200, 400)}
    for r in profile.analyse(tables, outcome="nats").to_pylist():
        if r["checkpoint_step"] >= r["cohort_step"]:
            cells[r["n_params"]][r["cohort_step"], r["checkpoint_step"]] = r["did"]
    s = sum(cells[100][k] * cells[200][k] for k in cells[100]) / sum(v**2 for v in cells[100].values())
    mean = sum(cells[400].values()) / 36
    around = sum((v - mean) ** 2 for v in cells[400].values())
    assert row["skill_fraction"] == pytest.approx(1 - sum((cells[400][k] - s * cells[200][k]) ** 2 for k in cells[400]) / around)
    assert row["copy_skill_fraction"] == pytest.approx(1 - sum((cells[400][k] - cells[200][k]) ** 2 for k in cells[400]) / around)


def test_what_has_no_answer_is_nan():
    falling = effects.forecast(suite(lambda g, t, n, run: 1.0 if n != 20 else -1.0, sizes=(10, 20, 40)), outcome="nats").to_pylist()[0]
    assert falling["scale_ratio"] < 0
    assert math.isnan(falling["skill_fraction"])


def test_a_combination_without_an_answer_is_left_out(monkeypatch):
    from scalemem import analyses
    from scalemem.tables import RowsError

    runs = pa.table({"run_id": ["a", "b"], "seed": [1, 2]})

    def picky(tables, *, only: float):
        if tables["runs"]["seed"].to_pylist() != [only]:
            raise RowsError("no rows")
        return pa.table({"x": [1.0]})

    monkeypatch.setattr(analyses, "check", lambda name, given: None)
    monkeypatch.setattr(analyses, "run", lambda name, tables, given: picky(tables, **given))
    assert split.analyse({"runs": runs}, analysis="picky", by=["seed"], options={"only": 2}).to_pylist() == [{"seed": 2, "x": 1.0}]
    for table, said in ((runs, "no rows"), (runs.slice(0, 0), "no run has finished")):
        with pytest.raises(RowsError, match=said):
            split.analyse({"runs": table}, analysis="picky", by=["seed"], options={"only": 3})
