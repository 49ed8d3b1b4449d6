"""Both routes to the compute-optimal size: planted optima, coverage of the intervals, the bias of parabolas, and what is refused."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from scalemem import allocation, cli, fitting, isoflop
from scalemem.tables import TableError, TooFewRows

PLANTED = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}
EVEN = {"E": 1.8, "A": 480.0, "B": 480.0, "alpha": 0.35, "beta": 0.35}
X = {"n_params": "N", "n_tokens": "D"}


def loss(p, n, d):
    return p["E"] + p["A"] * n ** -p["alpha"] + p["B"] * d ** -p["beta"]


def runs(p=PLANTED, noise=0.0, seed=0, budgets=(1e19, 3e19, 1e20, 3e20, 1e21), sizes=7, width=1.5, off=0.0):
    """IsoFLOP groups around the optimum: sizes from e^(off - width) to e^(off + width) times it."""
    c, u = (v.ravel() for v in np.meshgrid(budgets, off + np.linspace(-width, width, sizes), indexing="ij"))
    n = np.array([allocation.optimum(p, v / 6)[0] for v in c]) * np.exp(u)
    y = loss(p, n, c / 6 / n) * np.exp(np.random.default_rng(seed).normal(0, noise, len(n)))
    return pa.table({"C": c, "N": n, "D": c / 6 / n, "loss": y})


def law(table, name="chinchilla"):
    return fitting.fit(table, name, y="loss", x=X)


@given(st.floats(0.05, 2), st.floats(0.05, 2), st.floats(-5, 12), st.floats(-5, 12), st.floats(10, 60))
def test_the_closed_form_is_the_minimum(alpha, beta, a, b, log_compute):
    p = {"E": 0.0, "A": math.exp(a), "B": math.exp(b), "alpha": alpha, "beta": beta}
    n, d = allocation.optimum(p, math.exp(log_compute))
    assert math.log(n) + math.log(d) == pytest.approx(log_compute, rel=1e-12)
    assert alpha * p["A"] * n**-alpha == pytest.approx(beta * p["B"] * d**-beta, rel=1e-9)


def test_the_closed_form_against_a_search():
    n, _ = allocation.optimum(PLANTED, 1e21)
    found = minimize_scalar(lambda u: loss(PLANTED, math.exp(u), 1e21 / math.exp(u)), bounds=(15, 30), method="bounded", options={"xatol": 1e-9})
    assert math.log(n) == pytest.approx(found.x, abs=1e-6)  # type: ignore[attr-defined]


@pytest.mark.parametrize("factor", [6.0, 5.0])
@pytest.mark.parametrize(("name", "p"), [("chinchilla", PLANTED), ("chinchilla_shared", {**EVEN, "B": 2100.0})])
def test_the_parametric_route_recovers_the_optimum_without_noise(name, p, factor):
    found = allocation.allocate(law(runs(p, width=2.5), name), 1e25, factor=factor)
    n, d = allocation.optimum(p, 1e25 / factor)
    for key, truth in {"n_params": n, "n_tokens": d, "tokens_per_param": d / n, "loss": loss(p, n, d),
                       "exponent_n_params": p["beta"] / (p["alpha"] + p["beta"])}.items():
        e = found.estimates[key]
        assert e.status == "ok"
        assert e.value == pytest.approx(truth, rel=1e-6)
        assert e.low <= e.value <= e.high
    assert found.extrapolation > 1
    assert any("beyond the fitted rows" in w for w in found.warnings)


def covered(tables, ask, truth, key="n_params", interval=0.9):
    inside = [e.low <= truth <= e.high for t in tables for e in [ask(t).estimates[key]] if e.status == "ok"]
    assert len(inside) >= 0.9 * len(tables)
    return np.mean(inside)


def test_parametric_intervals_cover_near_nominal():
    truth = allocation.optimum(PLANTED, 1e22 / 6)[0]
    tables = [runs(noise=0.002, seed=i, sizes=5, width=2) for i in range(40)]
    assert 0.78 <= covered(tables, lambda t: allocation.allocate(law(t), 1e22), truth) <= 1.0  # 40 of 90 %: sd 0.047


def test_isoflop_intervals_cover_near_nominal_where_there_is_no_bias():
    tables = [runs(EVEN, noise=0.003, seed=i) for i in range(250)]

    def ask(t):
        return isoflop.allocate(t, 1e22, y="loss", x={"n_params": "N", "train_flops": "C"})

    truth = allocation.optimum(EVEN, 1e22 / 6)[0]
    assert 0.86 <= covered(tables, ask, truth) <= 0.95  # sd 0.019
    assert 0.86 <= covered(tables, ask, 0.5, "exponent_n_params") <= 0.95


def test_isoflop_finds_what_is_symmetric_and_names_its_bias_for_what_is_not():
    x = {"n_params": "N", "train_flops": "C"}
    found = isoflop.allocate(runs(EVEN), 1e22, y="loss", x=x)
    assert found.estimates["n_params"].value == pytest.approx(math.sqrt(1e22 / 6), rel=1e-6)
    for off in (0.0, 1.0):
        p = {**EVEN, "alpha": 0.3, "beta": 0.4}
        found = isoflop.allocate(runs(p, width=2, off=off), 1e22, y="loss", x=x, planted=(0.3, 0.4))
        truth = found.estimates["n_params"].value / allocation.optimum(p, 1e22 / 6)[0]
        assert abs(truth - 1) > 0.02
        assert found.bias["n_params"] == pytest.approx(truth, rel=0.03)  # measured with the optimum at the biased minimum: second order
        assert f"gives {found.bias['n_params']:.3g} times the optimal N" in found.warnings[-1]


@given(st.floats(0.1, 1), st.floats(-1.5, 1.5), st.floats(0.5, 3))
def test_a_lean_mirrors_with_the_exponents(exponent, off, width):
    grid = off + np.linspace(-width, width, 7)
    there, back = isoflop.lean(grid, exponent, 0.3), isoflop.lean(-grid, 0.3, exponent)
    assert (math.isnan(there) and math.isnan(back)) or there == pytest.approx(-back, abs=1e-9)


def test_tokens_stand_for_compute_and_nominal_budgets_for_gaps():
    table = runs(PLANTED, noise=1e-3)
    a = isoflop.allocate(table, 1e22, y="loss", x={"n_params": "N", "train_flops": "C"})
    b = isoflop.allocate(table, 1e22, y="loss", x=X)
    assert a.estimates["n_params"].value == pytest.approx(b.estimates["n_params"].value, rel=1e-9)
    some = isoflop.allocate(table, 1e22, y="loss", x=X, budgets=[1e19, 1e20, 1e21])
    assert [g["n_rows"] for g in some.groups] == [7, 7, 7]
    assert any("14 runs are not within" in w for w in some.warnings)


def test_what_is_not_identified_has_no_digit():
    fixed = runs(EVEN, noise=1e-3, budgets=np.geomspace(1e19, 1e21, 9))
    line = fixed.filter(pa.array(np.tile(np.arange(7) == 3, 9)))  # tokens a fixed multiple of size: alpha and beta are not told apart
    found = allocation.allocate(law(line), 1e22)
    assert all(math.isnan(e.value) and e.status.startswith("not identified") for e in found.estimates.values())
    x = {"n_params": "N", "train_flops": "C"}
    with pytest.raises(TooFewRows, match="1 sizes: needs at least 3"):
        isoflop.allocate(line, 1e22, y="loss", x=x)
    with pytest.raises(TooFewRows, match="no minimum between its sizes"):
        isoflop.allocate(runs(EVEN, off=3.0, width=1.0), 1e22, y="loss", x=x)
    three = isoflop.allocate(runs(EVEN, sizes=3), 1e22, y="loss", x=x)
    assert math.isnan(three.estimates["n_params"].value)
    assert "add a fourth size" in three.estimates["n_params"].status


@pytest.mark.parametrize("options", [{"budget": 0.0}, {"budget": math.nan}, {"budget": 1e22, "interval": 1.0}, {"budget": 1e22, "factor": -6.0}])
def test_options_out_of_range(options):
    with pytest.raises(TableError):
        allocation.allocate(law(runs()), **options)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(35)))
def test_row_order_changes_nothing(order):
    table = runs(noise=1e-3)
    x = {"n_params": "N", "train_flops": "C"}
    a, b = (isoflop.allocate(t, 1e22, y="loss", x=x) for t in (table, table.take(pa.array(order))))
    assert a.estimates["n_params"].value == pytest.approx(b.estimates["n_params"].value, rel=1e-9)


def test_the_command_by_both_routes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    csv.write_csv(runs(noise=1e-3), "runs.csv")
    fit = ["fit", "runs.csv", "--law", "chinchilla", "--y", "loss", "--x", "n_params=N", "--x", "n_tokens=tokens", "--derive", "tokens=C / (6 * N)"]
    assert cli.main([*fit, "--out", "law.json"]) == 0
    capsys.readouterr()
    n = allocation.optimum(PLANTED, 1e22 / 6)[0]
    for source in (["law.json"], ["runs.csv", "--approach", "2", "--y", "loss", "--x", "n_params=N", "--x", "train_flops=C"]):
        assert cli.main(["allocate", *source, "--budget", "1e22", "--interval", "0.8", "--json"]) == 0
        body = json.loads(capsys.readouterr().out)
        assert (body["interval"], body["flops_factor"]) == (0.8, 6.0)
        assert body["n_params"]["low"] < body["n_params"]["value"] < body["n_params"]["high"]
        assert body["n_params"]["value"] == pytest.approx(n, rel=0.2)
    assert body["bias"]["n_params"] != 1
    assert cli.main(["allocate", "law.json", "--budget", "1e22"]) == 0
    assert "tokens_per_param = " in capsys.readouterr().out


@pytest.mark.parametrize("argv", [
    ["runs.csv", "--budget", "1e22"], ["law.json", "--budget", "-1"], ["law.json", "--budget", "nan"], ["law.json", "--budget", "many"], ["law.json"],
    ["law.json", "--budget", "1e22", "--interval", "7"], ["law.json", "--budget", "1e22", "--y", "loss"], ["power.json", "--budget", "1e22"],
    ["law.json", "--budget", "1e22", "--group", "a=1"], ["law.json", "--budget", "1e22", "--approach", "3"],
    ["runs.csv", "--budget", "1e22", "--approach", "2"], ["runs.csv", "--budget", "1e22", "--approach", "2", "--y", "loss", "--x", "n_params=N"],
    ["runs.csv", "--budget", "1e22", "--approach", "2", "--y", "loss", "--x", "n_params=N", "--x", "train_flops=C", "--within", "0.5"],
    ["runs.csv", "--budget", "1e22", "--approach", "2", "--y", "loss", "--x", "n_params=N", "--x", "train_flops=C", "--budgets", "a,b"],
    ["runs.csv", "--budget", "1e22", "--approach", "2", "--y", "loss", "--x", "n_params=N", "--x", "train_flops=C", "--budgets", "1e5"],
    ["runs.csv", "--budget", "1e22", "--approach", "2", "--y", "loss", "--x", "n_params=nothing", "--x", "train_flops=C"],
], ids=" ".join)
def test_bad_input_is_one_line_and_status_2(tmp_path, capsys, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    table = runs(noise=1e-3)
    csv.write_csv(table, "runs.csv")
    (tmp_path / "law.json").write_text(json.dumps(law(table).to_json()))
    (tmp_path / "power.json").write_text(json.dumps(fitting.fit(table, "power", y="loss", x="N").to_json()))
    try:
        status = cli.main(["allocate", *argv])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1), err
