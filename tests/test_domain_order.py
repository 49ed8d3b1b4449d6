"""Orders of domains and the transfer matrix, by hand."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from conftest import make_run

from scalemem.analyses import domain_order
from scalemem.spec import canonical_json
from scalemem.tables import RowsError

LOSSES = np.array([[3.0, 3.0, 3.0], [1.0, 2.5, 3.5], [1.4, 1.2, 2.0], [2.0, 1.6, 1.0]])  # before, and after each of three stages


def tables(order, losses=LOSSES):
    run = make_run()
    stages = [dataclasses.replace(run.stages[0], data=dataclasses.replace(run.stages[0].data, first=d * domain_order.DOMAIN)) for d in order]
    spec = canonical_json(dataclasses.replace(run, stages=tuple(stages)))
    rows = []
    for t in range(len(order)):
        for step, row in ((0, t), (8, t + 1)):
            rows += [{"run_id": "a", "stage": t, "stage_step": step, "domain": d, "excess_nats": losses[row, d]} for d in range(3)]
    return {"runs": pa.table({"run_id": ["a"], "seed": [0], "n_params": [10], "spec": [spec]}), "domains": pa.Table.from_pylist(rows)}


def test_similar_order_by_hand():
    (found,) = domain_order.analyse(tables([0, 1, 2])).to_pylist()
    assert found["order"] == "similar"
    assert found["last_nats"] == pytest.approx((2.0 + 1.6 + 1.0) / 3)
    assert found["just_trained_nats"] == pytest.approx((1.0 + 1.2 + 1.0) / 3)
    assert found["backward_nats"] == pytest.approx((1.0 + 0.4) / 2)
    assert found["learned_nats"] == pytest.approx((2.0 + 1.3 + 1.0) / 3)
    assert found["forward_nats"] == pytest.approx((0.5 + 1.0) / 2)
    assert found["forgotten_fraction"] == pytest.approx(0.7 / (4.3 / 3))


def test_another_order_is_read_by_what_each_stage_learned():
    (found,) = domain_order.analyse(tables([0, 2, 1])).to_pylist()
    assert found["order"] == "shuffled"
    assert found["backward_nats"] == pytest.approx(((2.0 - 1.0) + (1.0 - 2.0)) / 2)


def test_transfer_matrix_by_hand():
    found = domain_order.transfer(tables([0, 1, 2])).to_pylist()
    assert len(found) == 6
    cell = {(row["learned"], row["domain"]): row for row in found}
    assert cell[1, 0]["change_nats"] == pytest.approx(0.4)
    assert (cell[1, 0]["seen"], cell[1, 2]["seen"], cell[2, 0]["distance"]) == (1, 0, 2)
    assert cell[2, 0]["change_nats"] == pytest.approx(0.6)
    assert cell[1, 2]["change_nats"] == pytest.approx(-1.5)


def test_what_was_not_measured_is_named():
    losses = LOSSES.copy()
    losses[2, 1] = np.nan
    with pytest.raises(RowsError, match="probe at stages"):
        domain_order.analyse(tables([0, 1, 2], losses))
