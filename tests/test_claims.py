"""Claims: the seven studies that a fits file must express, verdicts, and a strict schema."""

import json
import math
import tomllib
from copy import deepcopy

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from scalemem.claims import Claim, evaluate, verdict
from scalemem.laws import statistics
from scalemem.spec import SpecError
from scalemem.tables import TableError

STUDY = tomllib.loads("""
[[derive]]
name = "bits_per_param"
expression = "memorized_bits / n_params"
unit = "bits/parameter"

[[reduce]]
name = "over_seeds"
group = ["d_model", "n_items"]
column = "bits_per_param"
statistic = "mean"
where = "exposures == 1000 and data_bits > 6 * n_params and dtype == 'float32'"
reason = "beyond saturation"

[[fit]]
name = "convergence"
law = "exposure"
y = "bits_per_param"
x = { exposures = "exposures" }
group = ["d_model", "n_params"]
where = "exposures <= 1000 and data_bits > 6 * n_params and dtype == 'float32'"
reason = "full models; longer runs test the interval"

[[fit]]
name = "line"
law = "power"
y = "memorized_bits"
x = { x = "n_params" }
where = "exposures == 1000 and data_bits > 6 * n_params and dtype == 'float32'"
reason = "full models at one exposure count"

[[fit]]
name = "capacity"
law = "capacity"
y = "memorized_bits"
x = { data_bits = "data_bits", n_params = "n_params" }
where = "exposures == 1000"
reason = "one exposure count"

[[fit]]
name = "converged"
table = "fit.convergence"
law = "bits_linear"
y = "bits"
x = { n_params = "n_params" }

[[derive]]
table = "fit.convergence"
name = "bits"
expression = "a * n_params"
unit = "bits"

[[fit]]
name = "pooled"
law = "membership_sigmoid"
y = "f1"
x = { data_bits = "data_bits", n_params = "n_params" }
where = "exposures == 1000 and d_model < 32"
reason = "the largest size is held out"

[[fit]]
name = "each"
law = "membership_sigmoid"
y = "f1"
x = { data_bits = "data_bits", n_params = "n_params" }
where = "exposures == 1000 and d_model < 32"
reason = "the largest size is held out"
group = "d_model"

[[forecast]]
fit = "converged"
at = { n_params = 124e6 }
label = "124M parameters at convergence"
scale = 1.25e-7
unit = "MB"

[[forecast]]
fit = "convergence"
at = { exposures = 16000 }
group = { d_model = 16, n_params = 6000 }
label = "d16 at 16,000 exposures"

[[claim]]
id = "follows_data"
text = "memorized bits follow the data below capacity"
high = 0.05
[claim.statistic]
of = "memorized_bits / data_bits - 1"
take = "max_abs"
where = "exposures == 1000 and data_bits < 0.7 * capacity.alpha * n_params"

[[claim]]
id = "plateau"
text = "bits do not depend on n beyond saturation"
high = 0.1
statistic = { of = "bits_per_param", take = "spread", table = "over_seeds", group = ["d_model"] }

[[claim]]
id = "exponent"
text = "bits grow as parameters"
low = 0.9
high = 1.1
parameter = "line.b"

[[claim]]
id = "alpha"
text = "bits per parameter at convergence"
low = 3.5
high = 3.9
published = "3.51 +- 0.1 (bf16), 3.83 +- 0.1 (fp32)"
source = "Morris et al. 2025, arXiv 2505.24832"
parameter = "convergence.a"

[[claim]]
id = "interval"
text = "runs 4, 16 and 64 times longer fall in the interval of the short ones"
low = 0.8
coverage = { fit = "convergence", where = "exposures > 1000 and data_bits > 6 * n_params and dtype == 'float32'" }

[[claim]]
id = "precision"
text = "fp32 holds at most a fifth more than bf16"
low = 1.0
high = 1.2
[claim.ratio]
of = "bits_per_param"
numerator_where = "dtype == 'float32'"
denominator_where = "dtype == 'bfloat16'"
paired_by = ["d_model", "seed", "n_items", "exposures"]

[[claim]]
id = "collapse"
text = "one sigmoid serves all sizes"
high = 1.5
collapse = { pooled = "pooled", separate = "each" }

[[claim]]
id = "largest_size"
text = "the sigmoid forecasts the size that was held out"
low = 0.7
coverage = { fit = "pooled", where = "exposures == 1000 and d_model == 32" }
""")


def runs(alpha=3.0, exponent=1.0, shortfall=0.99, bf16=1.09, drift=0.0, per_size=0.0, odd_one=0.0, seeds=4):
    """A made-up store: three sizes, an exposure ladder, data on both sides of saturation, seeds, two precisions, F1 on a sigmoid."""
    rng, rows = np.random.default_rng(0), []
    for size, (d, n_params) in enumerate(((8, 2000), (16, 6000), (32, 18000))):
        for seed in range(seeds):
            for e in (125, 250, 500, 1000, 4000, 16000, 64000):
                for k in (1.0, 1.5, 6.5, 9.0, 14.0):
                    reading = alpha - 9 * e**-0.5 + 0.02 * rng.standard_normal() + drift * (e > 1000)
                    full = reading * n_params * (n_params / 6000) ** (exponent - 1)
                    f1 = 0.5 * (1 + 1.3 / (1 + math.exp(0.4 * (k - 5)))) + per_size * size + odd_one * (size == 2)
                    f1 += 0.004 * rng.standard_normal()
                    row = {"d_model": d, "n_params": n_params, "seed": seed, "exposures": e, "n_items": round(100 * k), "f1": f1,
                           "data_bits": k * n_params, "memorized_bits": min(shortfall * k * n_params, full), "dtype": "float32"}
                    rows.append(row)
                    if e == 250:
                        half = row["memorized_bits"] / bf16 * (1 + 0.01 * rng.standard_normal())
                        rows.append(row | {"dtype": "bfloat16", "memorized_bits": half})
    return pa.Table.from_pylist(rows)


@pytest.fixture(scope="module")
def study():
    return evaluate(STUDY, runs())


def verdicts(result):
    return {c.id: v.verdict for c, v in result.verdicts}


def of(result, name):
    return next(v for c, v in result.verdicts if c.id == name)


def test_the_study_as_it_should_come_out(study):
    assert study.problems == {}
    assert verdicts(study) == {"follows_data": "HOLDS", "plateau": "HOLDS", "exponent": "HOLDS", "alpha": "FAILS",
                               "interval": "INCONCLUSIVE", "precision": "HOLDS", "collapse": "HOLDS", "largest_size": "HOLDS"}
    assert of(study, "follows_data").value == pytest.approx(0.01)
    assert of(study, "exponent").value == pytest.approx(1, abs=0.02)
    assert of(study, "precision").value == pytest.approx(1.09, abs=0.01)
    interval = of(study, "interval")  # all rows inside, but three curves say no more than 37 %
    assert (interval.n, interval.value, interval.low) == (3, 1.0, pytest.approx(0.05 ** (1 / 3)))
    assert [p.id for p in of(study, "alpha").parts] == [f"d_model = {d}, n_params = {n}" for d, n in ((8, 2000), (16, 6000), (32, 18000))]


@pytest.mark.parametrize(("change", "claim", "want"), [
    ({"shortfall": 0.93}, "follows_data", "FAILS"), ({"exponent": 1.2}, "exponent", "FAILS"),
    ({"exponent": 1.1}, "exponent", "INCONCLUSIVE"),
    ({"exponent": 1.2}, "plateau", "HOLDS"), ({"alpha": 3.7}, "alpha", "INCONCLUSIVE"), ({"drift": 0.5}, "interval", "FAILS"),
    ({"bf16": 1.3}, "precision", "FAILS"), ({"bf16": 0.95}, "precision", "FAILS"), ({"per_size": 0.05}, "collapse", "FAILS"),
    ({"odd_one": 0.1}, "largest_size", "FAILS"),
])
def test_a_claim_that_is_false_does_not_hold(change, claim, want):
    needs = {"follows_data": ["capacity"], "exponent": ["line"], "alpha": ["convergence"], "interval": ["convergence"],
             "collapse": ["pooled", "each"], "largest_size": ["pooled"]}.get(claim, [])
    toml = {"derive": STUDY["derive"], "reduce": STUDY["reduce"], "fit": [f for f in STUDY["fit"] if f["name"] in needs],
            "claim": [c for c in STUDY["claim"] if c["id"] == claim]}
    assert verdicts(evaluate(toml, runs(**change))) == {claim: want}


def test_forecasts_are_scaled_and_say_how_far(study):
    (label, unit, far), (_, _, near) = study.forecasts
    assert (label, unit) == ("124M parameters at convergence", "MB")
    assert far.low < 3.0 * 124e6 / 8e6 < far.high
    assert far.extrapolation == pytest.approx(124e6 / 18000)
    assert near.low < 3 - 9 * 16000**-0.5 < near.high
    assert near.far == "16x"


def test_json_is_plain(study):
    value = json.loads(json.dumps(study.to_json(), allow_nan=False))
    assert set(value) == {"fits", "claims", "problems", "forecasts"}
    assert {"id", "text", "verdict", "value", "low", "high", "claim", "published", "source", "n", "method", "reason", "parts"} <= set(
        value["claims"][0])
    assert value["claims"][3]["published"].startswith("3.51")
    assert value["fits"]["line"]["where"] == "exposures == 1000 and data_bits > 6 * n_params and dtype == 'float32'"
    assert value["fits"]["line"]["dropped"] > 0
    assert value["fits"]["line"]["backtest"]["n_groups"] == 1


def test_a_smoke_run_is_inconclusive_with_reasons():
    table = runs()
    few = table.filter(pa.array([e in (125, 1000) and s == 0 and d == 8 and t == "float32" for e, s, d, t in zip(
        *(table[c].to_pylist() for c in ("exposures", "seed", "d_model", "dtype")), strict=True)]))
    result = evaluate(STUDY, few)
    for name in ("exponent", "interval", "precision", "largest_size", "follows_data"):
        assert of(result, name).verdict == "INCONCLUSIVE"
        assert of(result, name).reason
    assert "converged" in result.problems  # one size makes no line
    json.dumps(result.to_json(), allow_nan=False)


def test_an_empty_table_is_inconclusive():
    result = evaluate(STUDY, runs().slice(0, 0))
    assert set(verdicts(result).values()) == {"INCONCLUSIVE"}
    assert set(result.problems) == {"convergence", "line", "capacity", "converged", "pooled", "each", *(
        f"forecast {f['label']}" for f in STUDY["forecast"])}


@pytest.mark.parametrize("columns", [
    {}, {name: pa.array([], pa.null()) for name in runs(seeds=1).column_names}], ids=["no columns", "no types"])
def test_a_table_without_rows_needs_no_columns_and_no_types(columns):
    result = evaluate(STUDY, pa.table(columns))
    assert set(verdicts(result).values()) == {"INCONCLUSIVE"}
    assert all(v.reason for _, v in result.verdicts)


def only(*fits, claims=("exponent", "alpha")):
    """The study with some of its fits, a fit on the values of another, and the claims on them."""
    second = {"id": "converged", "text": "bits per parameter, all sizes", "low": 2.5, "high": 3.5, "parameter": "converged.alpha"}
    return {"derive": STUDY["derive"], "reduce": STUDY["reduce"], "fit": [f for f in STUDY["fit"] if f["name"] in fits],
            "claim": [*(c for c in STUDY["claim"] if c["id"] in claims), second]}


def test_a_group_with_one_exposure_count_is_left_out_of_the_fit_on_the_others():
    table = runs()
    table = table.filter(pa.array([d != 8 or e == 1000 for d, e in zip(*(table[c].to_pylist() for c in ("d_model", "exposures")),
                                                                       strict=True)]))
    result = evaluate(only("convergence", "line", "converged"), table)
    assert result.problems == {}
    assert math.isnan(result.fits["convergence"].at({"d_model": 8, "n_params": 2000}).parameters["a"].value)
    note = result.fits["converged"].warnings[0]
    assert note.startswith("1 of 3 groups of fit.convergence have no value and are left out: d_model = 8, n_params = 2000: not identified")
    assert result.fits["converged"].at().n_rows == 2
    assert verdicts(result)["converged"] == "HOLDS"
    assert of(result, "alpha").parts[0].verdict == "INCONCLUSIVE"


def test_one_run_worse_than_guessing_costs_only_what_is_fitted_to_it():
    table = runs()
    bits = table["memorized_bits"].to_numpy().copy()
    row = next(i for i, r in enumerate(table.to_pylist()) if r["exposures"] == 1000 and r["n_items"] > 600 and r["dtype"] == "float32")
    bits[row] = -3.0
    table = table.set_column(table.column_names.index("memorized_bits"), "memorized_bits", pa.array(bits))
    result = evaluate(only("convergence", "line", "converged"), table)
    assert list(result.problems) == ["line"]
    assert f"row {row + 1} = -3: must be above 0" in result.problems["line"]
    assert verdicts(result)["exponent"] == "INCONCLUSIVE"
    assert of(result, "exponent").reason == result.problems["line"]
    assert "converged" in result.fits


def test_a_value_that_cannot_be_makes_a_claim_inconclusive():
    claim = {"id": "log", "text": "", "low": 0, "statistic": {"of": "log(seed)", "take": "mean"}}
    found = of(evaluate({"claim": [claim]}, runs(seeds=1)), "log")
    assert found.verdict == "INCONCLUSIVE"
    assert "row 1 = -inf" in found.reason


def test_a_reduce_without_rows_is_no_circle():
    reduce = {**STUDY["reduce"][0], "where": "exposures == 7"}
    spread = {"of": "bits_per_param", "take": "spread", "table": "over_seeds"}
    claims = [{"id": i, "text": "", "high": 0.1, "statistic": spread} for i in "ab"]
    result = evaluate({"derive": STUDY["derive"], "reduce": [reduce], "claim": claims}, runs(seeds=1))
    assert all("0 rows are left" in v.reason for _, v in result.verdicts)


@pytest.mark.parametrize(("numbers", "want"), [
    ((1.0, 0.95, 1.05, 0.9, 1.1), "HOLDS"), ((1.0, 0.9, 1.1, 0.9, 1.1), "HOLDS"), ((1.2, 1.15, 1.3, 0.9, 1.1), "FAILS"),
    ((0.5, 0.4, 0.8, 0.9, 1.1), "FAILS"), ((1.1, 1.0, 1.2, 0.9, 1.1), "INCONCLUSIVE"), ((1.0, 0.5, 1.5, 0.9, 1.1), "INCONCLUSIVE"),
    ((1.0, 0.5, 1.5, -math.inf, 2.0), "HOLDS"), ((math.nan, math.nan, math.nan, 0.9, 1.1), "INCONCLUSIVE"),
    ((1.0, math.nan, math.nan, 0.9, 1.1), "INCONCLUSIVE"),
])
def test_verdict(numbers, want):
    found, reason = verdict(*numbers)
    assert found == want
    assert bool(reason) == (want != "HOLDS")


def broken(section, index, change):
    """The study without its two membership fits (they are slow), and with some keys of one entry changed or, by None, removed."""
    toml = deepcopy(STUDY) | {"fit": deepcopy(STUDY["fit"][:4]), "claim": deepcopy(STUDY["claim"][:6])}
    for key, value in change.items():
        if value is None:
            del toml[section][index][key]
        else:
            toml[section][index][key] = value
    return toml


@pytest.mark.parametrize(("toml", "says"), [
    ({"fits": []}, "fits: unknown section"), ({"fit": {}}, r"write \[\[fit\]\]"), ({"fit": [3]}, "must be a table"),
    (broken("fit", 0, {"colour": "red"}), r"fit\[0\].colour: unknown key; legal: name, law"),
    (broken("fit", 0, {"law": None}), r"fit\[0\].law: missing"), (broken("fit", 0, {"law": 3}), "must be a text"),
    (broken("fit", 0, {"reason": None}), "needs a reason"), (broken("reduce", 0, {"reason": ""}), "needs a reason"),
    (broken("fit", 1, {"name": "convergence"}), "appears twice"), (broken("fit", 0, {"misfit_sd": "big"}), "must be a number"),
    (broken("fit", 0, {"misfit_sd": True}), "must be a number"), (broken("reduce", 0, {"statistic": "mode"}), "must be one of mean"),
    (broken("claim", 0, {"high": None}), "must have low, high or both"), (broken("claim", 2, {"low": 2}), "low < high"),
    (broken("claim", 2, {"coverage": {"fit": "line", "where": "seed == 0"}}), "has parameter and coverage; must have exactly one"),
    (broken("claim", 2, {"parameter": None}), "has no quantity"), (broken("claim", 2, {"parameter": "line.c"}), "line has a, b"),
    (broken("claim", 2, {"parameter": "lime.b"}), "fit 'lime': not in the file"),
    (broken("claim", 2, {"parameter": "line"}), "no such parameter"),
    (broken("claim", 0, {"statistic": {"of": "seed", "take": "mode"}}), "must be one of mean"),
    (broken("claim", 0, {"statistic": {"of": "seed"}}), "take: missing"),
    (broken("claim", 0, {"statistic": {"of": "seed", "take": "mean", "table": "lost"}}), "reduce 'lost': not in the file"),
    (broken("claim", 0, {"statistic": {"of": "convergence.a", "take": "mean"}}), "3 values, one a group"),
    (broken("derive", 0, {"expression": "line.b * n_params"}), "refers to itself"),
    (broken("fit", 3, {"table": "fit.converged"}), "refers to itself"),
])
def test_a_fits_file_that_is_wrong_is_one_line(toml, says):
    with pytest.raises(SpecError, match=says) as error:
        evaluate(toml, runs(seeds=2))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("section", "index", "change", "says"), [
    ("fit", 0, {"y": "bits"}, "its columns are: d_model"), ("fit", 0, {"law": "expo"}, r"exposure \(exposures\)"),
    ("fit", 0, {"x": {}}, "must name a column"),
    ("fit", 0, {"where": "exposures <="}, "cannot be read"), ("derive", 0, {"expression": "__import__('os')"}, "not part of the language"),
    ("derive", 0, {"name": "f1"}, "is in the table already"), ("forecast", 0, {"at": {"m": 1}}, "must give a value"),
    ("forecast", 1, {"group": 16}, "must be one of"),
    ("claim", 0, {"statistic": {"of": "dtype", "take": "mean"}}, "must be a finite number"),
])
def test_a_fits_file_that_does_not_suit_its_table_is_one_line(section, index, change, says):
    with pytest.raises(TableError, match=says) as error:
        evaluate(broken(section, index, change), runs(seeds=2))
    assert "\n" not in str(error.value)


def test_statistics_against_textbook_values():
    v = np.random.default_rng(1).normal(2, 1, 25)
    mean = statistics.statistic(v, "mean", 0.9)
    assert mean[:3] == pytest.approx((v.mean(), *stats.t.interval(0.9, 24, v.mean(), stats.sem(v))))
    median = statistics.statistic(v, "median", 0.9)
    assert (median.low, median.high) == (np.sort(v)[7], np.sort(v)[17])  # P(8 <= B(25, 1/2) <= 17) = 0.957
    exact = stats.binomtest(7, 20).proportion_ci(0.9, "exact")
    assert statistics.proportion(7, 20, 0.9)[:3] == pytest.approx((0.35, exact.low, exact.high))
    assert statistics.proportion(0, 20, 0.9)[:2] == (0.0, 0.0)
    ratio = statistics.sd_ratio((30.0, 10), (20.0, 20), 0.9)
    assert ratio.value**2 == pytest.approx(3)
    assert (ratio.low**2, ratio.high**2) == pytest.approx((3 / stats.f.ppf(0.95, 10, 20), 3 / stats.f.ppf(0.05, 10, 20)))
    top = statistics.statistic(v, "max", 0.9)
    assert top.low < top.high == top.value == v.max()


def test_an_extreme_allows_for_the_noise_of_the_values():
    """A spread of 9 % over means of two runs is no proof of less than 10 %: the runs say how far the means may be off."""
    means, sizes = np.array([1.0, 1.045, 1.09]), np.full(3, 2)
    sharp, noisy = (statistics.statistic(means, "spread", 0.9, statistics.noise_of_means(np.full(3, sd), sizes)) for sd in (1e-6, 0.05))
    assert sharp.value == noisy.value == pytest.approx(0.09 / 1.045)
    assert (sharp.low, sharp.high) == pytest.approx((sharp.value, sharp.value), abs=1e-5)
    assert noisy.low < 0.05
    assert noisy.high > 0.15
    assert noisy == statistics.statistic(means[::-1], "spread", 0.9, statistics.noise_of_means(np.full(3, 0.05), sizes))  # no luck in it
    blind = statistics.statistic(means, "spread", 0.9)
    assert blind.high < 1.02 * blind.value
    assert "noise is unknown" in blind.method
    rng, cells = np.random.default_rng(0), np.repeat(np.arange(20), 3)
    rows = 0.1 * rng.standard_normal(60)
    noise = statistics.noise_of_rows(rows, cells)
    assert noise is not None
    assert (noise.sd, noise.dof) == (pytest.approx(0.1, rel=0.2), 40)
    for take, sign in (("max_abs", 1), ("max", 1), ("min", -1)):
        found = statistics.statistic(rows, take, 0.9, noise)
        assert sign * (found.high if sign > 0 else found.low) > sign * found.value
        assert found.low < found.value < found.high
    assert statistics.noise_of_means(np.full(3, np.nan), np.ones(3, int)) is None
    assert statistics.noise_of_rows(rows, np.arange(60)) is None


def test_the_noise_of_an_extreme_holds_at_its_level():
    """Five cells of three runs whose true means spread by 10 %: the upper end lies below that in no more than a twentieth of studies."""
    rng, truth, below, inside = np.random.default_rng(1), np.linspace(0.95, 1.05, 5), 0, 0
    for _ in range(200):
        cells = truth + 0.03 * rng.standard_normal((3, 5))
        noise = statistics.noise_of_means(cells.std(0, ddof=1), np.full(5, 3))
        found = statistics.statistic(cells.mean(0), "spread", 0.9, noise)
        below += found.high < 0.1
        inside += found.low <= 0.1 <= found.high
    assert below <= stats.binom.ppf(0.9999, 200, 0.05)
    assert inside >= stats.binom.ppf(1e-4, 200, 0.9)


def test_a_reduced_mean_and_replicates_bring_their_noise():
    far = "exposures == 1000 and dtype == 'float32' and data_bits < 2 * n_params"
    replicates = {"of": "bits_per_param", "take": "max_abs", "where": far, "replicates": ["d_model", "n_items"]}
    claims = [{"id": "rows", "text": "", "high": 9, "statistic": replicates},
              {"id": "cells", "text": "", "high": 9, "statistic": {"of": "bits_per_param", "take": "spread", "table": "over_seeds"}}]
    result = evaluate({"derive": STUDY["derive"], "reduce": STUDY["reduce"], "claim": claims}, runs())
    rows, cells = of(result, "rows"), of(result, "cells")
    assert "18 degrees of freedom" in rows.method  # 3 sizes x 2 data sizes x 4 seeds
    assert "27 degrees of freedom" in cells.method  # 3 sizes x 3 data sizes x 4 seeds
    assert cells.high > cells.value


@pytest.mark.parametrize("take", ["mean", "median", "min", "max", "max_abs", "spread"])
def test_too_few_rows_have_no_interval_and_a_reason(take):
    for n in (0, 1):
        found = statistics.statistic(np.ones(n), take, 0.9)
        assert math.isnan(found.low)
        assert found.reason


def test_a_claim_has_a_quantity():
    assert Claim("a", "b", {"parameter": "line.b"}, 0.0, 1.0).published is None
