"""Tables made ready for a fit and its report: filters counted, repetitions told apart, units carried, nothing invented."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from scalemem import cli, prepare, repeats, report, tables
from scalemem.tables import TableError, TooFewRows

ROWS = [{"N": 2**i, "flop": 6.0 * 4**i, "loss": 5.0 * 2 ** (-0.2 * i) * (1 + 0.01 * (-1) ** i), "seed": 0} for i in range(8)]
ROWS += [ROWS[3], {**ROWS[4], "seed": 1}, {**ROWS[5], "loss": 2.6}]  # a duplicate, a copy, a replicate
FIT = ("--law", "power", "--y", "loss", "--x", "x=N")


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    csv.write_csv(pa.Table.from_pylist(ROWS), "runs.csv")
    return "runs.csv"


def call(capsys, *argv):
    try:
        status = cli.main(list(argv))
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


def fitted(capsys, path, *argv):
    status, out, err = call(capsys, "fit", path, *FIT, *argv, "--json")
    assert status == 0, err
    return json.loads(out), err


def test_filters_are_counted_one_by_one_and_duplicates_told_apart(path, capsys):
    body, said = fitted(capsys, path, "--where", "N > 1", "--where", "loss < 4.2", "--where", "seed in [0, 1]")
    assert body["table"]["filters"] == [{"filter": "N > 1", "dropped": 1}, {"filter": "loss < 4.2", "dropped": 1},
                                        {"filter": "seed in [0, 1]", "dropped": 0}]
    assert (body["dropped"], body["n_rows"], body["where"]) == (2, 9, "(N > 1) and (loss < 4.2) and (seed in [0, 1])")
    assert [body["table"][k] for k in ("duplicates", "copies", "replicates")] == [1, 2, 2]
    assert "1 of 9 rows repeat an earlier one in every column" in body["warnings"][0]
    assert "--distinct" in body["warnings"][0]
    assert "1 of 9 rows repeat an earlier one in group, x and y but not in every column" in body["warnings"][1]
    assert "1 of 11 rows were left out by --where 'N > 1'" in said
    assert "2 rows share group and x with rows of another y: they count as replicates" in said
    body, said = fitted(capsys, path, "--distinct")
    assert (body["n_rows"], body["where"], body["table"]["duplicates"]) == (10, None, 0)
    assert "1 of 11 rows were left out by --distinct" in said


def test_a_backtest_says_the_same(path, capsys):
    status, out, _ = call(capsys, "backtest", path, *FIT, "--where", "N > 1", "--holdout", "N >= 64", "--json")
    body = json.loads(out)
    assert (status, body["rows"][0]["n_test"], body["rows"][0]["n_fit"]) == (0, 2, 8)
    assert body["table"]["filters"] == [{"filter": "N > 1", "dropped": 1}]
    assert len(body["warnings"]) == 2
    status, out, _ = call(capsys, "backtest", path, *FIT, "--where", "N > 1", "--holdout", "N >= 64")
    assert "1 of 11 rows were left out by --where 'N > 1'" in out
    assert "repeat an earlier one in every column" in out


def test_columns_are_derived_in_order_and_units_reach_the_parameters(path, capsys):
    status, out, _ = call(capsys, "fit", path, "--law", "power", "--y", "bits", "--x", "x=D", "--derive", "D=flop / (6 * N)",
                          "--derive", "bits=loss / log(2)", "--derive", "small=D < 100", "--where", "small", "--unit", "D=tokens",
                          "--unit", "bits=bits/token", "--json")
    body = json.loads(out)
    assert status == 0
    assert body["parameters"]["a"]["unit"] == "(bits/token)/tokens^b"
    assert body["table"]["derived"]["D"] == "flop / (6 * N)"
    assert body["ranges" if "ranges" in body else "groups"][0]["ranges"]["x"] == [1, 64]


def test_a_parquet_file_a_gzip_and_a_commented_csv_give_the_same_fit(path, capsys, tmp_path):
    want, _ = fitted(capsys, path)
    pq.write_table(tables.read(path), "runs.parquet")
    (tmp_path / "runs.csv.gz").write_bytes(__import__("gzip").compress(b"# a comment\n# another\n" + (tmp_path / path).read_bytes()))
    for other in ("runs.parquet", "runs.csv.gz"):
        got, _ = fitted(capsys, other)
        assert got["fingerprint"] == want["fingerprint"]
        assert got["parameters"] == want["parameters"]


def test_repetitions_by_group():
    table = pa.table({"g": ["a", "b", "a", None], "n": [1.0, 1.0, 1.0, float("nan")], "y": [2.0, 3.0, 2.0, 2.0], "ok": [True, None, True, None]})
    keep = np.array([True, True, True, False])
    assert repeats.count(table, keep, "y", {"x": "n"}, ["g"]) == {"duplicates": 1, "copies": 1, "replicates": 0}
    assert repeats.count(table, keep, "y", {"x": "n"}, []) == {"duplicates": 1, "copies": 1, "replicates": 3}
    assert repeats.count(table, keep, "y", {}, [])["replicates"] == 0
    odd = pa.table({"l": [[1], [1], [2]], "b": [b"x", b"x", b"x"], "d": pa.array([1, 1, 1], pa.duration("s"))})
    assert repeats.repeated(odd, odd.column_names, np.ones(3, bool)).tolist() == [False, True, False]


def test_what_prepare_refuses():
    table = pa.table({"n": [1.0], "loss": [2.0]})
    with pytest.raises(TooFewRows, match=r"0 of 1 rows are left by where = 'n > 1'"):
        prepare.prepare(table, where=["n > 1"])
    for derive, units in (({"n": "loss"}, {}), ({"m": "loss +"}, {}), ({}, {"m": "bits"}), ({}, {"n": ""}), ({}, {"n": "a\nb"})):
        with pytest.raises(TableError) as caught:
            prepare.prepare(table, derive=derive, units=units)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("argv", [
    ["--derive", "D"], ["--derive", "loss=N"], ["--derive", "D=__import__('os')"], ["--derive", "D=N.real"], ["--derive", "D=N", "--derive", "D=N"],
    ["--derive", "D=N if N else 1"], ["--unit", "nothing=bits"], ["--unit", "N"], ["--note", "n"], ["--report", "out.txt"],
    ["--report", "nowhere/out.md"], ["--group", "seed,seed"], ["--group", "loss"], ["--x", "x=loss"], ["--where", "N > 1", "--where", "N < 1"],
    ["--where", "seed == 0", "--where", "N"],
], ids=" ".join)
def test_bad_options_are_one_line_and_status_2(path, capsys, argv):
    given = [v for v in FIT if "--x" not in argv or v not in ("--x", "x=N")]
    status, out, err = call(capsys, "fit", path, *given, *argv)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("scalemem: error: ")


def test_the_report_fills_in_the_checklist_and_invents_nothing(path, capsys, tmp_path):
    argv = ("--where", "N > 1", "--derive", "D=flop / 6", "--note", "N=without embeddings", "--note", "hardware=2 cores")
    body, _ = fitted(capsys, path, *argv, "--report", "a.json", "--out", "fit.json")
    fitted(capsys, path, *argv, "--report", "b.json")
    fitted(capsys, path, *argv, "--report", "a.md")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()  # no clock
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["counting"] == {"how parameters (N) were counted": "without embeddings", "how data (D) were counted": report.NOT_STATED,
                                 "how compute (C) was counted": report.NOT_STATED}
    assert found["notes"] == {"hardware": "2 cores"}
    assert found["exclusions"]["filters"] == ["N > 1: 1 rows dropped"]
    assert found["exclusions"]["reasons"] == report.NOT_STATED
    assert found["data"]["fingerprint"] == body["fingerprint"]
    assert (found["data"]["rows"], found["data"]["rows used"]) == (11, 10)
    assert found["search"]["tried"] == body["starts"]["tried"]
    assert found["validation"]["held_out"] == "largest predictor value of each group"
    assert {"scalemem", "numpy", "scipy", "python"} <= found["software"].keys()
    text = (tmp_path / "a.md").read_text()
    for section in ("Form", "Data", "Ranges", "Exclusions", "Counting", "Loss", "Search", "Parameters", "Bounds hit", "Intervals", "Correlation",
                    "Validation", "Warnings", "Software"):
        assert f"\n## {section}\n" in text
    for said in ("how parameters (N) were counted: without embeddings", "how data (D) were counted: not stated by the table", "y = a x^b",
                 "N > 1: 1 rows dropped", "derived columns: D = flop / 6", "| a | "):
        assert said in text
    assert json.loads((tmp_path / "fit.json").read_text())["table"]["notes"] == {"n": "without embeddings", "hardware": "2 cores"}
    status, out, _ = call(capsys, "forecast", "fit.json", "--at", "x=500", "--json")
    assert (status, json.loads(out)["extrapolation"]) == (0, pytest.approx(500 / 128))


def test_the_report_says_how_an_average_and_a_bootstrap_were_made(path, capsys, tmp_path):
    for argv, name in ((("--bootstrap", "40"), "b.json"), (("--law", "auto"), "a.json"), ((), "c.json")):
        call(capsys, "fit", path, *FIT, *argv, "--report", name)
    boot, average, plain = (json.loads((tmp_path / name).read_text()) for name in ("b.json", "a.json", "c.json"))
    assert boot["search"]["refits"].startswith("bootstrap of 40 refits: rows drawn with replacement")
    assert boot["intervals"]["made by"] == "bootstrap of 40 refits"
    assert "refits" not in plain["search"]
    assert average["search"]["optimizer"].startswith("no search: ")
    assert average["search"]["stopping"] == "not applicable"
    assert average["form"]["formula"] == "an average over laws of x"


def test_a_report_of_several_groups_has_a_row_for_each(path, capsys, tmp_path):
    fitted(capsys, path, "--derive", "late=N > 8", "--group", "late", "--report", "g.md")
    text = (tmp_path / "g.md").read_text()
    assert "| group | rows | x |" in text
    assert "| late = True | " in text


def test_help_names_the_options(capsys):
    for command, words in {"fit": ("--derive", "--unit", "--report", "--note", "--distinct"), "backtest": ("--derive", "--distinct"),
                           "allocate": ("--budget", "--approach", "--flops-factor", "--within")}.items():
        status, out, _ = call(capsys, command, "--help")
        assert status == 0
        assert all(word in out for word in words)
