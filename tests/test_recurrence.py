"""What is kept of phases and the best interval, by hand."""

import pyarrow as pa
import pytest

from scalemem.analyses import recurrence
from scalemem.tables import RowsError


def phases(law="power", fraction=0.5):
    """Three phases of two facts each; after the last, 1, 2 and 2 of them are recalled, after the second 2 and 1."""
    recalled = {1: {0: (1, 1), 1: (1, 0)}, 2: {0: (0, 1), 1: (1, 1), 2: (1, 1)}}
    rows = [{"run_id": law, "stage": k, "stage_step": step, "source": f"stage{j}", "recalled": bool(r) and step > 0}
            for k, of in recalled.items() for j, facts in of.items() for r in facts for step in (0, 9)]
    run = {"run_id": law, "seed": 0, "n_params": 10, **{f"stage{k}_replay_{n}": v for k in (1, 2) for n, v in (("law", law), ("fraction", fraction))}}
    return rows, run


def test_what_is_kept_of_phases():
    rows, run = phases()
    found = recurrence.environment({"facts": pa.Table.from_pylist(rows), "runs": pa.Table.from_pylist([run])}).to_pylist()
    assert [(r["phases"], r["kept_fraction"], r["oldest_fraction"], r["learned_fraction"]) for r in found] == [
        (2, 1.0, 1.0, 0.5), (3, 0.75, 0.5, 1.0)]
    assert {r["law"] for r in found} == {"power"}
    rows, run = phases(fraction=0.0)
    found = recurrence.environment({"facts": pa.Table.from_pylist(rows), "runs": pa.Table.from_pylist([run])})
    assert set(found["law"].to_pylist()) == {"none"}
    with pytest.raises(RowsError, match="stage1"):
        recurrence.environment({"facts": pa.Table.from_pylist([r for r in rows if r["source"] != "stage1"]), "runs": pa.Table.from_pylist([run])})


def test_the_lead_of_one_law_over_another():
    table = pa.Table.from_pylist([{"seed": s, "n_params": 10, "phases": 3, "law": law, "kept_fraction": kept, "oldest_fraction": kept / 2}
                                  for s in (0, 1) for law, kept in (("power", 0.8), ("exponential", 0.5 + s / 10))])
    found = recurrence.lead({"environment": table}).to_pylist()
    assert [round(r["lead_fraction"], 6) for r in found] == [0.3, 0.2]
    assert [round(r["oldest_lead_fraction"], 6) for r in found] == [0.15, 0.1]
    with pytest.raises(RowsError, match="run both"):
        recurrence.lead({"environment": table}, others="recent")


def spaced(interval, kept):
    rows = [{"run_id": f"{interval}", "stage": 2, "stage_step": step, "source": source,
             "memorization_nats": 4.0 - (k if source == "inject1" else 0.0), "recalled": source == "inject1"}
            for step, k in kept.items() for source in ("inject1", "control")]
    return rows, {"run_id": f"{interval}", "seed": 0, "n_params": 10, "stage1_inject_interval": float(interval), "stage1_inject_times": 8}


def test_the_best_interval_at_each_lag():
    given = [spaced(1, {1: 3.0, 64: 0.5}), spaced(4, {1: 2.0, 64: 1.0}), spaced(16, {1: 1.0, 64: 0.75})]
    tables = {"facts": pa.Table.from_pylist([r for rows, _ in given for r in rows]), "runs": pa.Table.from_pylist([run for _, run in given])}
    table = recurrence.spacing(tables)
    assert {(r["interval_steps"], r["lag_steps"]): r["kept_nats"] for r in table.to_pylist()}[4.0, 64] == 1.0
    assert set(table["recalled_fraction"].to_pylist()) == {1.0}
    short, long = recurrence.best_interval({"spacing": table}).to_pylist()
    assert (short["lag_steps"], short["best_interval_steps"], short["interior"], short["best_over_shortest_nats"]) == (1, 1.0, 0, 0.0)
    assert (long["lag_steps"], long["best_interval_steps"], long["interior"], long["best_over_longest_nats"]) == (64, 4.0, 1, 0.25)
    with pytest.raises(RowsError, match="at least 3"):
        recurrence.best_interval({"spacing": table.slice(0, 2)})
