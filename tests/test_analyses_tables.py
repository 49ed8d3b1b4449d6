"""Profiles, blocks, counterfactuals, shadow attacks, rates, taxonomy and uniques: exact tables, slow references, planted effects, and none."""

import math
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binom, norm

from scalemem import analyses
from scalemem.analyses import counterfactual, lira, np_rates, poisson, profile, taxonomy, unique
from scalemem.spec import SpecError
from scalemem.tables import RowsError


def one_line(error):
    assert "\n" not in str(error.value)


def test_no_accelerator_is_loaded():
    code = "import sys, scalemem.analyses; print([m for m in ('jax', 'flax', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_registry():
    assert analyses.get("lira") is lira.analyse
    for name in analyses.ANALYSES:
        assert {p.annotation for p in analyses.options(name).values()} <= analyses._LEGAL.keys(), name
    with pytest.raises(SpecError, match=r"analysis\.name = 'none': must be one of .*, lira,"):
        analyses.get("none")


@pytest.mark.parametrize(("options", "message"), [
    ({}, r"analysis\.memorized: missing, poisson needs it; must be text; add it"),
    ({"memorized": "x", "block": 3}, r"analysis\.block: unknown option of poisson; legal: memorized, table, where, blocks, position"),
    ({"memorized": 1}, r"analysis\.memorized = '1': must be text"),
    ({"memorized": "x", "blocks": 2.5}, r"analysis\.blocks = '2\.5': must be a whole number"),
    ({"memorized": "x", "blocks": True}, r"analysis\.blocks = 'True': must be a whole number"),
])
def test_options_are_checked(options, message):
    with pytest.raises(SpecError, match=message) as error:
        analyses.run("poisson", {}, options)
    one_line(error)
    analyses.check("matched", {"scores": ["a"], "by": [], "where": None})
    with pytest.raises(SpecError, match="must be a list of text"):
        analyses.check("matched", {"scores": "a"})


# profiles

STEPS = (0, 10, 20, 30, 40)


def panel(effect, n=40, seeds=2, noise=0.0, sizes=(100,), slope=0.3):
    """Additive outcomes unit + time + effect(cohort's checkpoint, step, size) for treated ones; a quarter are controls."""
    rng, rows = np.random.default_rng(0), []
    for size in sizes:
        for s in range(seeds):
            for i in range(n):
                first, own = (-1 if i % 4 == 0 else int(rng.integers(0, 40))), float(rng.normal() + (i % 4 != 0) * 2)
                g = next((t for t in STEPS if t > first), 0)
                for t in STEPS:
                    y = own + slope * t + s + (effect(g, t, size) if first >= 0 and t >= g else 0) + noise * rng.normal()
                    rows.append({"run_id": f"{s}-{size}", "seed": s, "n_params": size, "exposures": t / 40, "step": t, "canary": i,
                                 "planted": first >= 0, "first_step": first, "ll": y})
    return {"likelihood": pa.Table.from_pylist(rows)}


def test_did_is_exact_on_an_additive_panel():
    rows = profile.analyse(panel(lambda g, t, n: 5 - (t - g) / 10), outcome="ll").to_pylist()
    assert {(r["cohort_step"], r["checkpoint_step"]) for r in rows} == {(g, t) for g in STEPS[1:] for t in STEPS if t != g - 10}
    for r in rows:
        g, t = r["cohort_step"], r["checkpoint_step"]
        assert r["did"] == pytest.approx(5 - (t - g) / 10 if t >= g else 0, abs=1e-9)
        assert r["kind"] == ("pre" if t < g else "instantaneous" if t == g else "residual" if t == 40 else "persistent")
        assert abs(r["difference"] - r["did"]) > 1  # the plain difference is biased by what treated ones were before
    assert sum(r["treated_count"] for r in rows if r["kind"] == "instantaneous") == 60
    assert rows[0]["control_count"] == 20


def test_did_is_the_slow_one():
    tables = panel(lambda g, t, n: 1.0, noise=1.0, seeds=1)
    cells = {(r["canary"], r["step"]): r for r in tables["likelihood"].to_pylist()}
    for row in profile.analyse(tables, outcome="ll").to_pylist():
        g, t = row["cohort_step"], row["checkpoint_step"]
        change = {i: cells[i, t]["ll"] - cells[i, g - 10]["ll"] for i in range(40)}
        treated = [change[i] for i in change if g - 10 <= cells[i, 0]["first_step"] < g]
        control = [change[i] for i in change if not cells[i, 0]["planted"]]
        error = math.sqrt(np.var(treated, ddof=1) / len(treated) + np.var(control, ddof=1) / len(control))
        assert (row["did"], row["did_se"]) == (pytest.approx(np.mean(treated) - np.mean(control)), pytest.approx(error))
        assert row["did_t_ratio"] == pytest.approx(row["did"] / row["did_se"])


def test_profiles_of_sizes_are_compared():
    shape = lambda g, t, n: (g * 1.0 if n < 300 else 100 - g)  # noqa: E731
    rows = profile.between_sizes(panel(shape, sizes=(100, 200, 300)), outcome="ll").to_pylist()
    found = {(r["first_n_params"], r["second_n_params"]): r["pearson"] for r in rows}
    assert found == {(100, 200): pytest.approx(1), (100, 300): pytest.approx(-1), (200, 300): pytest.approx(-1)}
    assert rows[0]["cells_count"] == 4 + 3 + 2 + 1
    with pytest.raises(RowsError, match="no cohort has a checkpoint before it and controls beside it") as error:
        profile.analyse(panel(shape), outcome="ll", where="planted")
    one_line(error)


# blocks

def trained(memorized, last_step):
    n = len(memorized)
    return {"extraction": pa.table({"run_id": ["a"] * n, "seed": [0] * n, "n_params": [7] * n, "exposures": [1.0] * n, "planted": [True] * n,
                                    "last_step": last_step, "exact": memorized})}


def test_blocks_by_hand():
    had = [True, False, False, False, True, True, False, False, True, True, True, False]
    row = poisson.analyse(trained(had[::-1], np.arange(12)[::-1]), memorized="exact", blocks=3).to_pylist()[0]
    assert (row["n_count"], row["blocks_count"], row["memorized_count"]) == (12, 3, 6)  # 1, 2, 3 of 4
    assert row["dispersion_ratio"] == pytest.approx(np.var([1, 2, 3], ddof=1) / 2)
    assert row["binomial_dispersion_ratio"] == pytest.approx(1.0)
    assert row["homogeneity_probability"] == pytest.approx(math.exp(-1))
    r = float(np.corrcoef(np.arange(12), had)[0, 1])
    assert row["trend_z_ratio"] == pytest.approx(r * math.sqrt(12))
    assert row["trend_probability"] == pytest.approx(2 * norm.sf(r * math.sqrt(12)))
    assert (row["first_half_fraction"], row["second_half_fraction"]) == (3 / 6, 3 / 6)


def test_blocks_find_what_there_is_and_no_more():
    rng, step = np.random.default_rng(0), np.arange(1000)
    null = [poisson.analyse(trained(rng.random(1000) < 0.2, step), memorized="exact").to_pylist()[0] for _ in range(100)]
    assert np.mean([r["binomial_dispersion_ratio"] for r in null]) == pytest.approx(1, abs=0.12)
    assert np.mean([r["dispersion_ratio"] for r in null]) == pytest.approx(0.8, abs=0.12)
    for name in ("trend_probability", "homogeneity_probability"):
        assert binom.cdf(sum(r[name] < 0.1 for r in null), 100, 0.1) < 0.999
    late = poisson.analyse(trained(rng.random(1000) < step / 2000, step), memorized="exact").to_pylist()[0]
    assert late["trend_z_ratio"] > 5
    assert late["homogeneity_probability"] < 1e-4
    assert late["second_half_fraction"] > late["first_half_fraction"]
    nothing = poisson.analyse(trained(np.zeros(9, bool), np.arange(9)), memorized="exact").to_pylist()[0]
    assert nothing["memorized_count"] == 0
    assert math.isnan(nothing["dispersion_ratio"])
    with pytest.raises(SpecError, match=r"analysis\.blocks = 1: must be at least 2"):
        poisson.analyse(trained([True], [0]), memorized="exact", blocks=1)


# counterfactuals and attacks by shadow runs

def shadows(seeds=16, n=60, noise=0.1, gain=1.0, spread=3.0, spill=0.0, table="extraction", seed=0):
    """Outcome = difficulty_i + gain if planted + spill if the canary before is planted; the last ten are controls."""
    rng = np.random.default_rng(seed)
    inside, hard = rng.random((seeds, n)) < 0.5, spread * rng.normal(size=n)
    inside[:, -10:] = False
    y = hard + gain * inside + spill * np.roll(inside, 1, 1) + noise * rng.normal(size=(seeds, n))
    s, c = np.meshgrid(np.arange(seeds), np.arange(n), indexing="ij")
    columns = {"run_id": s.astype(str), "seed": s, "n_params": np.full_like(s, 5), "exposures": np.ones_like(s), "canary": c,
               "planted": inside, "y": y}
    return {table: pa.table({k: v.ravel() for k, v in columns.items()})}, y, inside


def test_counterfactuals_are_the_slow_ones():
    tables, y, inside = shadows(seeds=12)
    rows = {r["canary"]: r for r in counterfactual.analyse(tables, outcome="y").to_pylist()}
    assert set(rows) == {i for i in range(60) if inside[:, i].any() and not inside[:, i].all()}
    for i, row in rows.items():
        a, b = y[inside[:, i], i], y[~inside[:, i], i]
        assert row["memorization"] == pytest.approx(a.mean() - b.mean())
        assert (row["in_count"], row["out_count"]) == (len(a), len(b))
    effect = counterfactual.effects(y, inside)
    assert np.diag(effect)[list(rows)] == pytest.approx([r["memorization"] for r in rows.values()])  # mem(x) = infl(x -> x)
    assert effect[3, 7] == pytest.approx(y[inside[:, 3], 7].mean() - y[~inside[:, 3], 7].mean())


def test_influence_finds_the_neighbour():
    tables, _, _ = shadows(seeds=200, spill=0.5, noise=0.02, spread=0)
    rows = counterfactual.influence(tables, outcome="y", least=0.3).to_pylist()
    planted = [(i, i + 1) for i in range(50)]
    assert [(r["source_canary"], r["target_canary"]) for r in rows if abs(r["influence"] - 0.5) < 0.25] == planted
    assert rows[0]["split_half_pairs_count"] == 50 * 59
    memory = counterfactual.analyse(tables, outcome="y").to_pylist()
    assert np.mean([r["memorization"] for r in memory]) == pytest.approx(1, abs=0.05)


def test_reliability_of_halves():
    rng = np.random.default_rng(1)
    tables, y, inside = shadows(seeds=40, noise=0.0, gain=0.0, spread=0.0)
    table = tables["extraction"]
    gains = rng.random(60)
    real = table.set_column(table.column_names.index("y"), "y", pa.array((y + gains * inside + 0.05 * rng.normal(size=y.shape)).ravel()))
    none = table.set_column(table.column_names.index("y"), "y", pa.array(rng.normal(size=y.size)))
    assert counterfactual.analyse({"extraction": real}, outcome="y").to_pylist()[0]["split_half_spearman"] > 0.9
    assert abs(counterfactual.analyse({"extraction": none}, outcome="y").to_pylist()[0]["split_half_spearman"]) < 0.4


@pytest.mark.parametrize("variance", ["pooled", "own"])
def test_lira_scores_are_the_slow_ones(variance):
    _, y, inside = shadows(seeds=14, n=30)
    offline, online = lira.scores(y, inside, 4, variance)
    others = [r for r in range(14) if r != 4]
    parts = {m: [np.array([y[r, i] for r in others if inside[r, i] == m]) for i in range(30)] for m in (True, False)}
    sd = {m: [np.std(p, ddof=1) if len(p) > 1 else math.nan for p in ps] for m, ps in parts.items()}
    if variance == "pooled":
        squares = {m: sum(((p - p.mean()) ** 2).sum() for p in ps if len(p)) for m, ps in parts.items()}
        sd = {m: [math.sqrt(squares[m] / sum(max(len(p) - 1, 0) for p in ps))] * 30 for m, ps in parts.items()}
    for i in range(20):
        mean = {m: parts[m][i].mean() for m in parts}
        want = norm.logpdf(y[4, i], mean[True], sd[True][i]) - norm.logpdf(y[4, i], mean[False], sd[False][i])
        assert online[i] == pytest.approx(want)
        assert offline[i] == pytest.approx((y[4, i] - mean[False]) / sd[False][i])
    assert np.isnan(online[-10:]).all()  # controls have no shadow that planted them


def test_lira_knows_how_hard_a_canary_is():
    rows = lira.analyse(shadows(gain=0.3, table="likelihood")[0], score="y").to_pylist()
    auc = {attack: np.mean([r["auc"] for r in rows if r["attack"] == attack]) for attack in lira.ATTACKS}
    assert auc["lira_online"] > 0.9
    assert auc["lira_offline"] > 0.9 > 0.65 > auc["score"]
    blind = lira.analyse(shadows(gain=0.0, table="likelihood")[0], score="y").to_pylist()
    assert np.mean([r["auc"] for r in blind]) == pytest.approx(0.5, abs=0.05)
    with pytest.raises(SpecError, match=r"analysis\.variance = 'none'"):
        lira.analyse(shadows(table="likelihood")[0], score="y", variance="none")


# rates

def test_samples_needed():
    assert np_rates.samples_needed(np.log([0.162, 1.0]), 0.9).tolist() == [14, 1]
    assert np_rates.samples_needed(np.array([-math.inf]), 0.9)[0] == math.inf
    assert np_rates.samples_needed(np.array([-600.0]), 0.5)[0] == pytest.approx(math.log(2) * math.exp(600))
    rng = np.random.default_rng(0)
    for p_z, p in rng.uniform(0.001, 0.999, (300, 2)):
        n = int(np_rates.samples_needed(np.array([math.log(p_z)]), p)[0])
        assert 1 - (1 - p_z) ** n >= p - 1e-12
        assert (n == 1 or 1 - (1 - p_z) ** (n - 1) < p)


def test_rates_are_shares():
    p_z, greedy = np.array([0.9, 0.5, 0.01, 0.0, 0.3]), [True, True, False, False, False]
    table = pa.table({"seed": [0] * 5, "n_params": [1] * 5, "exposures": [1.0] * 5, "planted": [True] * 5, "greedy": greedy,
                      "log_p": [math.log(p) if p else -math.inf for p in p_z]})
    rows = np_rates.analyse({"probabilistic": table}, log_probability="log_p", greedy="greedy", samples=[1, 2, 10, 1e6],
                            probabilities=[0.5, 0.9]).to_pylist()
    for r in rows:
        n, p = r["n_samples_count"], r["p_probability"]
        assert r["extractable_fraction"] == np.mean(1 - (1 - p_z) ** n >= p)
        assert (r["greedy_fraction"], r["maximum_fraction"]) == (0.4, 0.8)
    assert rows[0]["samples_to_match_greedy_count"] == 1
    assert rows[4]["samples_to_match_greedy_count"] == 4
    assert rows[-1]["extractable_fraction"] == rows[-1]["maximum_fraction"]
    with pytest.raises(SpecError, match=r"analysis\.probabilities = \[1\]: must be above 0 and below 1"):
        np_rates.analyse({"probabilistic": table}, log_probability="log_p", greedy="greedy", probabilities=[1])
    with pytest.raises(SpecError, match=r"analysis\.samples = \[0\]: must be 1 or more"):
        np_rates.analyse({"probabilistic": table}, log_probability="log_p", greedy="greedy", samples=[0])


# taxonomy

def test_three_models_beat_one_where_classes_differ():
    rng, n = np.random.default_rng(0), 3000
    copies, template, x = rng.choice([1, 8], n), rng.random(n) < 0.4, rng.normal(size=n)
    kind = taxonomy.label(copies, template)
    slope = np.select([kind == c for c in taxonomy.CLASSES], [3.0, -3.0, 0.0])
    had = rng.random(n) < 1 / (1 + np.exp(-slope * x))
    table = pa.table({"run_id": ["a"] * n, "n_params": [1] * n, "exposures": [1.0] * n, "planted": [True] * n, "copies": copies, "template": template,
                      "x": x, "exact": had})
    made = taxonomy.analyse({"extraction": table}, memorized="exact", features=["x"], templating="template").to_pylist()
    rows = {(r["class"], r["model"]): r for r in made}
    one, three = rows["all", "pooled"], rows["all", "taxonomic"]
    assert three["auc"] > one["auc"] + 0.1
    assert three["f1"] > one["f1"]
    assert one["test_count"] == three["test_count"] == sum(
        rows[c, "pooled"]["test_count"] for c in taxonomy.CLASSES)
    assert rows["reconstruction", "taxonomic"]["auc"] > 0.85 > 0.3 > rows["reconstruction", "pooled"]["auc"]
    assert rows["recollection", "taxonomic"]["auc"] == pytest.approx(0.5, abs=0.1)
    assert rows["recitation", "pooled"]["share_fraction"] == np.mean(copies == 8)
    assert sum(rows[c, "pooled"]["memorized_share_fraction"] for c in taxonomy.CLASSES) == pytest.approx(1)
    with pytest.raises(SpecError, match=r"analysis\.features"):
        taxonomy.analyse({"extraction": table}, memorized="exact", features=[])
    with pytest.raises(SpecError, match=r"analysis\.test_fraction = 0"):
        taxonomy.analyse({"extraction": table}, memorized="exact", features=["x"], test_fraction=0)


def test_calibration_error_by_hand():
    p, truth = np.array([0.95, 0.95, 0.1, 0.55]), np.array([True, False, False, False])
    # confidences .95, .95, .9 in the last bin with 2 of 3 right, and .55 in the first with none
    assert taxonomy.calibration_error(p, truth) == pytest.approx((abs(2 - 2.8) + 0.55) / 4)
    rng = np.random.default_rng(0)
    q = rng.random(20000)
    assert taxonomy.calibration_error(q, rng.random(20000) < q) < 0.01


# uniques

def test_estimates_by_hand():
    found = unique.estimate(np.array([1, 1, 1, 2, 4, 0]))
    assert (found["found_count"], found["unique_count"], found["once_count"], found["twice_count"]) == (9, 5, 3, 1)
    zero = 8 / 9 * 9 / 2
    assert found["chao1_count"] == pytest.approx(5 + zero)
    assert found["good_toulmin_count"] == 5 + 3 - 1 - 1
    assert found["doubled_count"] == pytest.approx(5 + zero * (1 - (1 - 3 / (9 * zero + 3)) ** 9))
    assert found["unseen_probability"] == 1 / 3
    assert unique.estimate(np.array([3, 3]))["chao1_count"] == unique.estimate(np.array([3, 3]))["doubled_count"] == 2
    assert unique.estimate(np.zeros(4))["unique_count"] == 0
    assert math.isnan(unique.estimate(np.zeros(4))["unseen_probability"])
    assert unique.estimate(np.array([1]))["chao1_count"] == 1


def test_the_first_half_forecasts_both():
    rng = np.random.default_rng(0)
    rate = rng.gamma(0.7, 1.0, 800)
    table = pa.table({"seed": [0] * 800, "n_params": [1] * 800, "exposures": [1.0] * 800, "first": rng.poisson(rate), "second": rng.poisson(rate)})
    row = unique.analyse({"unprompted": table}, count="first", second="second").to_pylist()[0]
    assert abs(row["doubled_error_fraction"]) < 0.1
    assert row["good_toulmin_count"] == pytest.approx(row["doubled_true_count"], rel=0.1)
    assert row["unique_count"] < row["doubled_true_count"] < row["chao1_count"] < 900
    assert math.isnan(unique.analyse({"unprompted": table}, count="first").to_pylist()[0]["doubled_error_fraction"])
