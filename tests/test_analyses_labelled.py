"""Arms by expressions of the runs."""

import pyarrow as pa
import pytest

from scalemem import analyses
from scalemem.spec import SpecError
from scalemem.tables import RowsError

RUNS = pa.table({"run_id": ["a", "b", "c"], "stage1_replay_fraction": [0.5, None, 0.9], "stage1_first": [8, 0, 8]})
LABELS = {"same": "stage1_first == 0", "none": "is_null(stage1_replay_fraction)", "full": "stage1_replay_fraction == 0.5"}


def test_the_first_true_expression_names_the_arm():
    rows = pa.table({"run_id": ["c", "b", "a", "b"], "y": [1, 2, 3, 4]})
    found = analyses.run("labelled", {"runs": RUNS, "gap": rows}, {"table": "gap", "labels": LABELS})
    assert [(r["run_id"], r["y"], r["arm"]) for r in found.to_pylist()] == [("b", 2, "same"), ("a", 3, "full"), ("b", 4, "same")]


def test_what_cannot_be_told_is_one_line():
    with pytest.raises(RowsError, match="no run of table 'runs'"):
        analyses.run("labelled", {"runs": RUNS}, {"labels": {"none": "stage1_first > 9"}})
    with pytest.raises(SpecError, match="at least one arm"):
        analyses.run("labelled", {"runs": RUNS}, {"labels": {}})
