"""The studies that ship, at every scale: fits file, figure and tables work on rows such as the sweep would give, and each claim has rows.

The rows are made up from a known law, not trained: what is tested is that the three files of a study belong together. Studies of canaries, which
read a row a canary, are run at smoke scale by `.ci/run`; here their sweeps can be run, their analyses have the options that they are given, and
the result that is kept is of the claims that are there now.
"""

import json
import math
import tomllib

import numpy as np
import pyarrow as pa
import pytest

from scalemem import accounting, analyses, execute, study
from scalemem.spec import run_id

SHIPPED = ("capacity", "capacity_precision", "capacity_shape", "membership_law")
OF_CANARIES = tuple(name for name in study.names() if name not in SHIPPED)
CASES = [(name, scale) for name in SHIPPED for scale in study.SCALES]
# claims that a smaller scale has no runs for, by study and scale
ABSENT = {("capacity", "laptop"): {"interval_held"}}


def row(run, rng):
    """A row as `execute` writes it, from bits = min(98 % of the data, P (3 - 10 exposures^-.6)) and the published membership law."""
    flat = accounting.summary(run)
    p, bits, seq = flat["n_params"], flat["data_bits"], flat["seq_len"]
    full = p * (3 - 10 * max(flat["exposures"], 16) ** -0.6) * math.exp(0.005 * rng.standard_normal())
    held = 1 / (1 / (0.999 * bits) ** 40 + 1 / full**40) ** (1 / 40)
    if flat["d_model"] == 32 and flat["n_items"] == 256:
        held = bits - 1.4 * 256 * math.exp(0.01 * rng.standard_normal())
    f1 = 0.5 * (1 + 1.34 / (1 + math.exp(0.034 * (bits / p - 33.14)))) + 0.004 * rng.standard_normal()
    measures = {
        "memorized_bits": held, "memorized_bits_paper": held * seq / (seq - 1), "bits_per_param": held / p,
        "bits_per_param_paper": held * seq / (seq - 1) / p, "memorized_fraction": held / bits, "null_se_bits": 1.0, "train_loss_nats": 1.0,
        "test_loss_nats": 9.0, "exact_recall_fraction": 0.0, "mia_auc": min(1.0, f1), "mia_auc_se": 0.01, "mia_f1": min(1.0, f1),
        "mia_f1_best": min(1.0, f1 + 0.05), "mia_tpr_at_fpr_1pct": 0.5, "memorized_bits_bf16": 0.99 * held,
        "memorized_bits_int8": 0.98 * held, "memorized_bits_int4": 0.3 * held}
    return {"run_id": run_id(run), "status": "done", "loss_nats": 1.0, **flat, **measures}


@pytest.fixture(scope="module")
def tables():
    made = {}
    for name, scale in CASES:
        rng = np.random.default_rng(0)
        made[name, scale] = pa.Table.from_pylist([row(run, rng) for run in study.sweep(name, scale).runs()])
    return made


def test_every_study_is_three_files():
    sims = {path.stem for path in (study.folders()[1] / "sims").glob("*.py")}
    assert set(SHIPPED) < sims == set(study.names())
    for name in sims:
        assert study.find(name, "figures").exists()
        assert study.definition(name)["source"]


@pytest.mark.parametrize(("name", "scale"), CASES)
def test_the_files_of_a_study_belong_together(tables, tmp_path, name, scale):
    table = tables[name, scale]
    result = study.evaluate(name, scale, table)
    body = study.save(tmp_path / "result.json", name, scale, table, result)
    assert study.figure(name, table, result, tmp_path / "figure.png").stat().st_size > 10_000
    assert body["tables"][0]["rows"]
    if scale != "smoke":
        assert not result.problems
        without = {claim.id for claim, said in result.verdicts if not said.n or math.isnan(said.value)}
        assert without == ABSENT.get((name, scale), set())
        for label, _, forecast in result.forecasts:
            assert math.isfinite(forecast.low), label


@pytest.mark.parametrize("name", SHIPPED)
def test_nothing_finished_is_no_traceback(tables, name):
    empty = tables[name, "laptop"].slice(0, 0)
    assert {said.verdict for _, said in study.evaluate(name, "laptop", empty).verdicts} == {"INCONCLUSIVE"}


@pytest.mark.parametrize("name", OF_CANARIES)
def test_a_study_of_canaries_can_be_run(name):
    path = study.find(name, "sims")
    for scale in ("smoke", "laptop", "gpu"):
        runs = study.sweep(str(path), scale).runs()
        execute.check(runs)
        for entry in study.definition(name, scale).get("analysis", ()):
            analyses.check(entry["kind"], entry.get("options", {}))
    assert len(path.read_text().splitlines()) <= 60
    assert len(study.find(name, "figures").read_text().splitlines()) <= 70


@pytest.mark.parametrize("path", sorted((study.folders()[1] / "fits/results").glob("*.json")), ids=lambda path: path.stem)
def test_a_result_that_is_kept_is_of_the_claims_as_they_are(path):
    """Same claims, thresholds and texts; a result of earlier ones is no result."""
    body = json.loads(path.read_text())
    now = {c["id"]: (c["text"], c.get("low"), c.get("high")) for c in study.definition(body["study"], body["scale"])["claim"]}
    assert {c["id"]: (c["text"], *c["claim"]) for c in body["claims"]} == now
    assert path.stat().st_size < 400_000


def test_true_claims_can_hold(tables):
    """On rows that obey the published laws, the claims that say so hold; on these rows alpha is 3, so that one fails."""
    said = {(name, claim.id): v.verdict for name in SHIPPED for claim, v in study.evaluate(name, "laptop", tables[name, "laptop"]).verdicts}
    for key in (("capacity", "follows_data"), ("capacity", "plateau"), ("capacity", "linear_measured"), ("capacity", "linear_converged"),
                ("capacity_shape", "shortfall_8"), ("capacity_shape", "norm"), ("capacity_precision", "int8_after"),
                ("capacity_precision", "int4_after"), ("membership_law", "collapse")):
        assert said[key] == "HOLDS", key
    assert said["capacity", "published_alpha"] == "FAILS"
    assert said["membership_law", "largest_size"] != "FAILS"


def test_the_published_constants_are_those_of_the_claims():
    reference = tomllib.loads((study.folders()[1] / "fits/reference/morris2025.toml").read_text())
    constants = {c["name"]: c["value"] for c in reference["constant"]}
    claims = {c["id"]: c for c in study.definition("membership_law")["claim"]}
    assert claims["published_c2"]["published"] == constants["membership_c2"]
    assert claims["published_c3"]["published"] == constants["membership_c3"]
    rows = {t["name"]: [dict(zip(t["columns"], r, strict=True)) for r in t["rows"]] for t in reference["table"]}
    ratios = [r["bits_fp32"] / r["n_params"] for r in rows["capacity"]]
    assert np.mean(ratios) == pytest.approx(constants["bits_per_param_fp32"], abs=0.1)
    for r in rows["membership"]:
        z = constants["membership_c2"] * (r["n_items"] * 64 * math.log2(50257) / r["n_params"] + constants["membership_c3"])
        assert 0.5 * (1 + constants["membership_c1"] / (1 + math.exp(-z))) == pytest.approx(r["f1_law"], abs=0.0015)
