"""Matched membership: AUC by counting pairs, strata that take a confounder away, tables put side by side, and refusals."""

import math

import numpy as np
import pyarrow as pa
import pytest

from scalemem import analyses
from scalemem.analyses import matched
from scalemem.spec import SpecError

RNG = np.random.default_rng(0)


def table(n=60, runs=2, confounded=False):
    rows = []
    for r in range(runs):
        for c in range(n):
            planted = c < n // 2
            level = RNG.normal(planted if confounded else 0, 1)
            rows.append({"run_id": f"r{r}", "seed": r, "n_params": 10, "exposures": 1.0, "canary": c, "planted": planted, "group": c % 2,
                         "copies": (1 + c % 2) * planted, "level": level, "nats": (0 if confounded else RNG.normal()) + level})
    return pa.Table.from_pylist(rows)


def pairs(member, other):
    return np.mean([(m > o) + 0.5 * (m == o) for m in member for o in other])


def test_each_stratum_is_what_counting_pairs_gives():
    t = table()
    made = matched.analyse({"likelihood": t}, scores=["-nats", "level"], by=["copies"], match="2 * level", strata=3).to_pylist()
    assert len(made) == 2 * 2 * 3 * 2
    for row in made:
        run = [r for r in t.to_pylist() if r["seed"] == row["seed"]]
        low, high = np.quantile([r["level"] for r in run if not r["planted"]], [1 / 3, 2 / 3])
        bounds = [(-math.inf, low), (low, high), (high, math.inf)][row["stratum"] - 1]
        sides = [[-r["nats"] if row["attack"] == "-nats" else r["level"] for r in run if r["planted"] == planted
                  and bounds[0] <= r["level"] < bounds[1] and r["copies"] in (0, row["copies"])] for planted in (True, False)]
        assert (row["n_members_count"], row["n_others_count"]) == tuple(map(len, sides))
        assert math.isnan(row["auc"]) if not sides[0] else row["auc"] == pytest.approx(pairs(*sides))


def test_strata_take_a_confounder_away():
    tables = {"likelihood": table(4000, 1, confounded=True)}
    plain, close = (np.nanmean(matched.analyse(tables, scores=["nats"], match="level", strata=k)["auc"].to_pylist()) for k in (1, 40))
    assert plain > 0.7
    assert abs(close - 0.5) < 0.1


def test_a_table_beside_another_whatever_the_order():
    t = table()
    order = RNG.permutation(t.num_rows)
    other = t.select(["run_id", "exposures", "canary", "copies"]).append_column("twice", [(2 * t["level"].to_numpy()).tolist()]).take(order)
    encoded = other.set_column(0, "run_id", other["run_id"].dictionary_encode())
    a, b = (matched.analyse({"likelihood": t, "more": m}, scores=["twice"], joined="more").to_pylist() for m in (other, encoded))
    assert a == b == [r | {"attack": "twice"} for r in matched.analyse({"likelihood": t}, scores=["level"]).to_pylist()]


def test_runs_of_one_seed_and_size_are_not_mixed():
    t = table(runs=1)
    at = t.column_names.index("nats")
    shifted = t.set_column(0, "run_id", [["other"] * t.num_rows]).set_column(at, "nats", [[x + 100 for x in t["nats"].to_pylist()]])
    alone = matched.analyse({"likelihood": t}, scores=["-nats"])["auc"].to_pylist()
    both = matched.analyse({"likelihood": pa.concat_tables([t, shifted])}, scores=["-nats"])["auc"].to_pylist()
    assert both == pytest.approx(alone * 2)


def test_members_that_were_never_planted():
    t = table().to_pylist()
    rows = pa.Table.from_pylist([r | {"planted": False, "copies": 0} for r in t])
    found = matched.analyse({"likelihood": rows}, scores=["-nats"], members="group == 0", others="group == 1", by=["copies"]).to_pylist()
    assert [(r["copies"], r["n_members_count"], r["n_others_count"]) for r in found] == [(0, 30, 30)] * 2


def test_registry_and_refusals():
    assert analyses.get("matched") is matched.analyse
    with pytest.raises(SpecError, match=r"analysis\.strata = 0: must be at least 1"):
        matched.analyse({"likelihood": table()}, scores=["nats"], strata=0)
    with pytest.raises(SpecError, match="must be one of likelihood"):
        matched.analyse({"likelihood": table()}, scores=["nats"], table="none")
