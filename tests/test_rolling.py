"""Rolling-origin back-tests."""

import json

import numpy as np
import pyarrow as pa
import pytest

from scalemem import cli
from scalemem.forecasting import backtest
from scalemem.rolling import rolling
from scalemem.tables import TableError

N = 2.0 ** np.arange(12)


def table(noise=0.005):
    rng = np.random.default_rng(3)
    return pa.table({"g": np.repeat(["a", "b"], 12), "n": np.concatenate([N, 10 * N]),
                     "loss": np.tile(2 + 5 * N**-0.4, 2) * np.exp(noise * rng.standard_normal(24))})


def test_each_origin_is_the_back_test_of_the_rows_up_to_twice_it():
    t = table()
    found = rolling(t, "power_floor", y="loss", x="n", group="g", origins=3)
    assert [(r["group"]["g"], round(r["origin"])) for r in found.rows] == [
        (g, round(m * N[-1] / 2**k)) for k in (1, 2, 3) for g, m in (("a", 1), ("b", 10))]
    n = t["n"].to_numpy()
    one = t.filter(pa.array(t["g"].to_numpy(zero_copy_only=False) == "b"))
    by_hand = backtest(one, "power_floor", y="loss", x="n", holdout="n > 5120", where="n <= 10240")
    mine = next(r for r in found.rows if r["group"] == {"g": "b"} and round(r["origin"]) == 5120)
    assert mine["rmse_log"] == by_hand.rows[0]["rmse_log"]
    assert (mine["n_fit"], mine["n_test"]) == (10, 1)
    assert found.summary["n_test"] == len(found.rows) == 6
    assert n.max() == 10 * N[-1]


def test_an_origin_before_the_rows_begin_says_so_and_does_not_enter_the_summary():
    found = rolling(table(), "power_floor", y="loss", x="n", group="g", origins=11)
    small = [r for r in found.rows if "reason" in r]
    assert small
    assert all(r["n_fit"] < 4 for r in small)
    assert found.summary["n_failed"] == len(small)
    assert np.isfinite(found.summary["rmse_log_mean"])


@pytest.mark.parametrize("origins", [0, -1, 41, 2.5, True])
def test_origins_out_of_range_are_refused(origins):
    with pytest.raises(TableError, match="whole number from 1 to 40"):
        rolling(table(), y="loss", x="n", origins=origins)


def test_a_law_without_predictors_has_nothing_to_roll_along():
    with pytest.raises(TableError, match="no predictor"):
        rolling(table(), "constant", y="loss")


def test_origins_with_nothing_ahead_are_left_out():
    far = pa.table({"n": [1.0, 2.0, 4.0, 8.0, 1e6], "loss": [4.0, 3.0, 2.0, 1.5, 1.0]})
    found = rolling(far, "power", y="loss", x="n", origins=3)
    assert [r["origin"] for r in found.rows] == [5e5]
    assert found.rows[0]["n_fit"] == 4


def test_the_command(tmp_path, capsys):
    import pyarrow.csv as csv

    csv.write_csv(table(), tmp_path / "t.csv")
    args = ["backtest", str(tmp_path / "t.csv"), "--y", "loss", "--x", "n", "--group", "g", "--rolling", "2"]
    assert cli.main([*args, "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert [r["law"] for r in body["rows"]] == ["auto"] * 4
    assert body["summary"]["n_test"] == 4
    assert cli.main([*args, "--holdout", "n > 10"]) == 2
    assert "--rolling" in capsys.readouterr().err
