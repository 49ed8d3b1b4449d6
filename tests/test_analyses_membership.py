"""All attacks on the same runs, and documents that are copies of each other: slow references, planted effects, and none."""

import math

import numpy as np
import pyarrow as pa
import pytest

from scalemem import analyses
from scalemem.analyses import duplicates, membership
from scalemem.measure import attacks
from scalemem.spec import SpecError
from scalemem.tables import RowsError


def suite(effect, runs=8, canaries=40, sizes=(100,), items=(512,), seed=0):
    """Runs and likelihoods: nats = difficulty of the sequence - effect of having trained on it + noise; the source knows the difficulty."""
    rng, rows, made = np.random.default_rng(seed), [], []
    hard = rng.normal(40, 8, canaries)
    for p in sizes:
        for n in items:
            for s in range(runs):
                name = f"{p}-{n}-{s}"
                made.append({"run_id": name, "seed": s, "n_params": p, "n_items": n})
                inside, nats = rng.random(canaries) < 0.5, hard + rng.normal(0, 1, canaries)
                rows += [{"run_id": name, "seed": s, "n_params": p, "exposures": e, "canary": c, "planted": bool(inside[c]),
                          "nats": nats[c] - effect * e * inside[c], "source_nats": hard[c], "zlib_bits": 100.0,
                          "min_k_nats": nats[c] / 3, "min_kpp_ratio": -nats[c]} for c in range(canaries) for e in (0, 1)]
    return {"runs": pa.Table.from_pylist(made), "likelihood": pa.Table.from_pylist(rows)}


def pairs(score, member):
    """AUC, pair by pair."""
    return np.mean([(a > b) + (a == b) / 2 for a in score[member] for b in score[~member]])


def test_references_are_the_next_run_that_left_it_out():
    rng = np.random.default_rng(1)
    inside = rng.random((6, 50)) < 0.7
    found = membership.references(inside)
    for r in range(6):
        for c in range(50):
            later = [(r + k) % 6 for k in range(1, 6) if not inside[(r + k) % 6, c]]
            assert found[r, c] == (later[0] if later else -1)


def test_scores_against_the_functions_of_the_attacks():
    rng = np.random.default_rng(2)
    inside, nats = rng.random((10, 30)) < 0.5, rng.normal(30, 5, (10, 30))
    columns = {"nats": nats, "zlib_bits": rng.uniform(80, 120, (10, 30)), "min_k_nats": nats, "min_kpp_ratio": nats, "source_nats": nats + 1}
    made = membership.scores(columns, inside)
    assert tuple(made) == membership.ATTACKS
    next_out = membership.references(inside)
    for r in range(10):
        others = np.arange(10) != r
        want = attacks.lira_online(-nats[r], -nats[others], inside[others], pooled=True)
        np.testing.assert_allclose(made["lira_online"][r], want, rtol=1e-9)
        for c in range(30):
            want = nats[next_out[r, c], c] - nats[r, c] if next_out[r, c] >= 0 else math.nan
            assert made["reference"][r, c] == pytest.approx(want, nan_ok=True)
    np.testing.assert_allclose(made["zlib"], attacks.zlib(nats[..., None].reshape(-1, 1), columns["zlib_bits"].ravel()).reshape(10, 30))
    np.testing.assert_allclose(made["source_reference"], 1)


def test_a_planted_effect_is_found_by_who_knows_the_difficulty():
    tables = suite(2.0, sizes=(100, 200), items=(512, 1024))
    rows = analyses.run("membership", tables, {"settings": ["n_items"]}).to_pylist()
    assert len(rows) == 2 * 2 * 2 * 8 * len(membership.ATTACKS)
    assert {(r["n_params"], r["n_items"], r["exposures"]) for r in rows} == {(p, n, e) for p in (100, 200) for n in (512, 1024) for e in (0, 1)}
    mean = {(a, e): np.mean([r["auc"] for r in rows if r["attack"] == a and r["exposures"] == e]) for a in membership.ATTACKS for e in (0, 1)}
    assert mean["source_reference", 1] > 0.9 > mean["reference", 1] > mean["loss", 1] + 0.15
    assert mean["lira_online", 1] > mean["loss", 1] + 0.2
    assert all(abs(mean[a, 0] - 0.5) < 0.06 for a in membership.ATTACKS)
    assert abs(np.mean([r["placebo_auc"] for r in rows if r["exposures"] == 1]) - 0.5) < 0.05
    for r in rows[:: len(membership.ATTACKS)]:
        assert (r["attack"], r["auc_gain"], r["tpr_gain_at_fpr_1pct"], r["shadows_count"]) == ("loss", 0, 0, 7)


def test_a_row_by_hand_and_pooled():
    tables = suite(3.0, runs=5, canaries=30)
    one = {(r["seed"], r["exposures"]): r for r in membership.analyse(tables).to_pylist() if r["attack"] == "loss"}
    table = tables["likelihood"].to_pylist()
    planted = {s: np.array([r["planted"] for r in table if r["seed"] == s and r["exposures"] == 1]) for s in range(5)}
    every = np.array([planted[s] for s in range(5)])
    for s in range(5):
        others = np.delete(every, s, 0)
        keep = others.any(0) & ~others.all(0)
        score = -np.array([r["nats"] for r in table if r["seed"] == s and r["exposures"] == 1])[keep]
        assert one[s, 1]["auc"] == pytest.approx(pairs(score, planted[s][keep]))
        assert one[s, 1]["placebo_auc"] == pytest.approx(pairs(score, planted[(s + 1) % 5][keep]))
        assert one[s, 1]["n_members_count"] == planted[s][keep].sum()
    pooled = membership.analyse(tables, each="setting", where="exposures == 1").to_pylist()
    assert len(pooled) == len(membership.ATTACKS)
    assert "seed" not in pooled[0]
    assert pooled[0]["n_members_count"] == sum(one[s, 1]["n_members_count"] for s in range(5))


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"each": "seed"}, SpecError, "analysis.each = 'seed': must be one of run, setting; choose one of these"),
    ({"table": "none"}, SpecError, "analysis.table = 'none'"),
    ({"where": "canary < 0"}, RowsError, "no row satisfies"),
    ({}, RowsError, "a second one of seed"),
    ({"settings": ["n_items"], "where": "canary > 0 or seed > 0"}, RowsError, "do not measure the same sequences"),
])
def test_membership_errors(options, error, message):
    with pytest.raises(error, match=message) as found:
        membership.analyse(suite(1.0, runs=3, canaries=4, items=(8, 16)), **options)
    assert "\n" not in str(found.value)


def documents(runs=12, contents=5, count=14, noise=0.0, seed=3):
    """Documents of a few contents: accuracy 1 - 2^-(included documents of the content)."""
    rng, one, two = np.random.default_rng(seed), [], []
    content = rng.integers(0, contents, count)
    for s in range(runs):
        inside = rng.random(count) < 0.5
        for c in range(count):
            dose = int(inside[content == content[c]].sum())
            own = {"run_id": f"r{s}", "seed": s, "n_params": 100, "exposures": 4, "canary": c, "planted": bool(inside[c])}
            accuracy = 1 - 2.0**-dose + noise * (s % 2)
            one.append(own | {"copies": int(inside[c]), "top1_fraction": accuracy, "nats": 30.0 + content[c] - dose + 1e-5 * c})
            two.append(own | {"memorized_rate": float(dose > 2)})
    return content, {"likelihood": pa.Table.from_pylist(one), "extraction": pa.Table.from_pylist(two), "runs": pa.table({"run_id": ["r0"]})}


def test_duplicates_against_a_loop():
    content, tables = documents()
    found = {r["canary"]: r for r in analyses.run("duplicates", tables, {}).to_pylist()}
    one, two = tables["likelihood"].to_pylist(), tables["extraction"].to_pylist()

    def difference(source, target, column="top1_fraction"):
        chosen = {r["run_id"]: r["planted"] for r in one if r["canary"] == source}
        values = [(r[column], chosen[r["run_id"]]) for r in one if r["canary"] == target]
        return np.mean([v for v, i in values if i]) - np.mean([v for v, i in values if not i])

    for c, row in found.items():
        twins = [d for d in range(len(content)) if content[d] == content[c]]
        others = [d for d in range(len(content)) if content[d] != content[c]]
        assert (row["duplicates_count"], row["content"], row["copies"]) == (len(twins), twins[0], 1)
        assert row["memorization"] == pytest.approx(difference(c, c)) == pytest.approx(row["self_influence"])
        assert row["other_influence"] == pytest.approx(math.sqrt(np.mean([difference(c, d) ** 2 for d in others])))
        if len(twins) > 1:
            assert row["twin_influence"] == pytest.approx(row["memorization"])  # equal sequences have equal outcomes
        assert row["extracted_rate"] == pytest.approx(np.mean([r["memorized_rate"] for r in two if r["canary"] == c and r["planted"]]))
    assert found[0]["memorization_spearman"] < 0 < found[0]["extraction_spearman"]


def test_a_document_alone_has_no_twin_and_the_placebo_finds_nothing():
    content, tables = documents(runs=200, contents=40, count=12)
    rows = duplicates.analyse(tables).to_pylist()
    alone = [r for r in rows if r["duplicates_count"] == 1]
    assert alone
    assert all(math.isnan(r["twin_influence"]) and r["memorization"] == pytest.approx(0.5) for r in alone)
    assert abs(np.mean([r["placebo"] for r in rows])) < 0.05
    assert len(set(content.tolist())) == len({r["content"] for r in rows})


def test_duplicates_errors():
    _, tables = documents()
    with pytest.raises(SpecError, match=r"analysis\.table = 'none'"):
        duplicates.analyse(tables, extraction="none")
