"""Fuzzed tables: `fit` and `backtest` give one line and status 2, or a sound result. Never a traceback, never a digit for what is not known."""

import contextlib
import gzip
import io
import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from scalemem import cli, laws

FIT = ("--y", "loss", "--x", "x=n")
GOOD = [(2**i, 3.0 * 2 ** (-0.3 * i) * (1 + 0.01 * (-1) ** i)) for i in range(8)]
LINES = ["n,loss,g", *(f"{n},{y!r},{'ab'[i % 2]}" for i, (n, y) in enumerate(GOOD))]


def command(*argv):
    """(exit status, standard output, standard error), with warnings as errors, as nothing may warn on a user's table."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            status = cli.main([*map(str, argv), "--json"])
        except SystemExit as stop:
            status = stop.code
    return status, out.getvalue(), err.getvalue()


def strict(text):
    def refuse(value):
        raise AssertionError(f"{value} is not JSON")
    return json.loads(text, parse_constant=refuse)


def sound(e):
    """A parameter is known, with its interval around it, or it has no digit and a reason."""
    known = [v for v in (e["value"], e["low"], e["high"]) if v is not None]
    if e["status"] == "ok":
        assert len(known) == 3, e
        assert e["low"] <= e["value"] <= e["high"] or math.isclose(e["low"], e["high"], rel_tol=1e-6), e
    else:
        assert not known, e


def check(*argv) -> tuple[int, dict[str, Any]]:
    """Runs a command on a table and judges what it says; the exit status and, where it is 0, the JSON."""
    status, out, err = command(*argv)
    assert "Traceback" not in err
    if status == 2:
        assert out == "", out
        assert err.count("\n") == 1, err
        assert err.startswith("scalemem: error: "), err
        assert len(err) < 1500, err
        return 2, {"error": err}
    assert status == 0, (status, err)
    body = strict(out)
    if "parameters" in body:
        for g in body["groups"]:
            for e in g["parameters"].values():
                sound(e)
            if g["n_rows"] < len(g["parameters"]):
                assert all(e["status"] != "ok" for e in g["parameters"].values()), g
    else:
        for r in body["rows"]:
            scores = [r["log_likelihood"], *r["coverage"].values()]
            assert ("reason" in r) == all(v is None for v in scores), r
            assert all(v is None or 0 <= v <= 1 for v in r["coverage"].values()), r
            assert r["rmse_log"] is None or r["rmse_log"] >= 0
    return 0, body


def both(path, law="power", *more):
    """Fit and back-test of a file."""
    fit = check("fit", path, "--law", law, *FIT, *more)
    return fit, check("backtest", path, "--law", law, *FIT, *more, "--holdout", "n > 20")


def lines(*extra, head="n,loss,g"):
    return "\n".join([head, *LINES[1:], *extra, ""])


# name: (content, what `fit` must say, None for a sound result, "" for either)
CORPUS = {
    "empty": (b"", "cannot be read"), "only newlines": (b"\n\n\n", "cannot be read"), "only a comment": (b"# nothing", "cannot be read"),
    "only a header": (b"n,loss,g\n", "0 of 0 rows"), "header without newline": (b"n,loss,g", "cannot be read"), "space": (b" ", ""),
    "one row": (b"n,loss\n1,2\n", "1 rows"), "two rows": (b"n,loss\n1,2\n2,1\n", "2 rows"),
    "one distinct x": (b"n,loss\n" + b"8,2\n8,3\n8,4\n8,5\n", "column 'n', rows 1 to 4 = 8: one distinct value"),
    "BOM": ("\ufeff" + lines(), None), "BOM and comments": ("\ufeff# a\n# b\n" + lines(), None), "CRLF": (lines().replace("\n", "\r\n"), None),
    "comments": ("# from the paper\n#\n" + lines(), None), "comments and CR": ("# a\r" + lines().replace("\n", "\r"), None),
    "a comment below": (lines("# the end"), ""), "no last newline": (lines().rstrip(), None), "gzip": (gzip.compress(lines().encode()), None),
    "gzip with comments": (gzip.compress(b"# a\n" + lines().encode()), None),
    "semicolons": (lines().replace(",", ";"), "separated by commas, not ';'"), "tabs": (lines().replace(",", "\t"), r"commas, not '\t'"),
    "pipes": (lines().replace(",", "|"), "commas, not '|'"), "spaces": (lines().replace(",", " "), "not in the table"),
    "decimal commas": (lines().replace(",", ";").replace(".", ","), ""), "ragged short": (lines("3"), "cannot be read"),
    "ragged long": (lines("3,4,a,5"), "cannot be read"), "a trailing comma": ("\n".join(v + "," for v in lines().split("\n") if v), None),
    "duplicate columns": (lines(head="n,loss,n"), "'n' appears 2 times"), "duplicate unnamed": ("n,loss,,\n1,2,3,4\n", "appears 2 times"),
    "quoted newlines": (lines('64,"0.9","a\nb"'), None), "a quote left open": (lines('64,"0.9,a'), "cannot be read"),
    "quoted numbers": (lines('"64","0.9",a'), None), "a quoted header": (lines(head='"n","loss","g"'), None),
    "mixed": (lines("x,2,a"), "row 9 = 'x'"), "text": ("n,loss\na,b\nc,d\n", ""), "words for numbers": (lines("2.8B,2,a"), "row 9 = '2.8B'"),
    "thousands": (lines('"1,000",2,a'), "row 9 = '1,000'"), "currency": (lines("$5,2,a"), "row 9 = '$5'"), "percent": (lines("64,5%,a"), "'5%'"),
    "missing x": (lines(",2,a"), "column 'n', row 9 = missing"), "missing y": (lines("64,,a"), "column 'loss', row 9 = missing"),
    "NaN": (lines("64,NaN,a"), "column 'loss', row 9 = missing"), "NA": (lines("64,NA,a"), "row 9 = missing"),
    "inf": (lines("64,inf,a"), "column 'loss', row 9 = inf"), "-inf": (lines("64,-inf,a"), "row 9 = -inf"),
    "inf x": (lines("inf,1,a"), "row 9 = inf"),
    "zero y": (lines("64,0,a"), "column 'loss', row 9 = 0"), "negative y": (lines("64,-1,a"), "column 'loss', row 9 = -1: must be above 0"),
    "zero x": (lines("0,1,a"), "column 'n', row 9 = 0"), "negative x": (lines("-4,1,a"), "column 'n', row 9 = -4"),
    "huge": (lines("64,1e300,a"), "row 9 = 1e+300"), "tiny": (lines("64,1e-300,a"), "row 9 = 1e-300"),
    "too huge": (lines("64,1e999,a"), "row 9 = inf"),
    "tiny x": (lines("1e-310,1,a"), "row 9 = 1e-310"), "minus zero": (lines("64,-0.0,a"), "row 9 = -0"),
    "booleans": ("n,loss\n1,true\n2,false\n3,true\n", ""), "missing booleans": ("n,loss\n1,true\n2,\n3,true\n4,true\n", "row 2 = missing"),
    "dates": ("n,loss\n1,2020-01-01\n2,2020-01-02\n", "row 1 = '2020-01-01'"), "times": ("n,loss\n1,12:30:00\n2,12:31:00\n", "row 1 = '12:30:00'"),
    "hexadecimal": (lines("0x10,1,a"), None), "a header of numbers": ("1,2\n3,4\n5,6\n", "not in the table"),
    "spaces in the header": (lines(head=" n, loss, g"), "not in the table"), "long lines": ("n,loss," + "g" * 100_000 + "\n1,2,3\n", ""),
    "long cell": (lines("64," + "9" * 5000 + ",a"), ""), "many digits": (lines("64,1." + "0" * 400 + "1,a"), None),
    "UTF-16": (lines().encode("utf-16"), ""), "UTF-32": (lines().encode("utf-32"), ""), "latin-1": (lines("64,1,é").encode("latin-1"), ""),
    "null bytes": (lines().replace("8", "\0"), ""), "binary": (bytes(range(256)) * 64, ""), "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(64), ""),
    "a cut gzip": (gzip.compress(lines().encode())[:-8], "cannot be read"), "gzip of nothing": (gzip.compress(b""), "cannot be read"),
    "a false parquet": (b"PAR1" + bytes(64) + b"PAR1", "cannot be read"), "HTML": (b"<!doctype html><p>404</p>", ""), "JSON": (b'[{"n": 1}]', ""),
    "exact": ("n,loss\n" + "".join(f"{2**i},{2.0 ** -i}\n" for i in range(8)), None),
    "constant y": ("n,loss\n" + "".join(f"{2**i},3\n" for i in range(8)), None),
    "all duplicates": ("n,loss\n" + "1,2\n2,1\n" * 4, ""),
    "x nearly one": ("n,loss\n" + "".join(f"{1 + i * 1e-15!r},{2 + i}\n" for i in range(8)), ""),
    "wide": ("n,loss\n" + "".join(f"{10.0 ** (8 * i - 28)!r},{10.0 ** (7 * i - 28)!r}\n" for i in range(8)), None),
}


@pytest.mark.parametrize("law", ["power", "power_floor"])
@pytest.mark.parametrize("name", CORPUS)
def test_the_corpus(tmp_path, name, law):
    content, says = CORPUS[name]
    path = tmp_path / "table.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    (status, body), _ = both(path, law)
    if says is None:
        assert status == 0, body
    elif says:
        assert status == 2, body
        assert says in body["error"]


SLOW = settings(max_examples=60, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate],
                suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
NUMBERS = st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.floats(1e-3, 1e3), st.integers(-3, 10**12),
                    st.sampled_from([0, 1, 2, 1e59, 1e-59]))
ORDINARY = st.floats(1e-6, 1e6)
CELLS = st.one_of(NUMBERS.map(repr), st.sampled_from(["", "NaN", "inf", "true", "x", "1;2", "'", '"a"', "#", "2.8B", "2020-01-01"]),
                  st.text("ab1,.-e \"'\n;", max_size=5))


def written(tmp_path, rows, head="n,loss,g"):
    path = tmp_path / "table.csv"
    path.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]))
    return path


@SLOW
@given(st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=8), st.booleans())
def test_any_cells(tmp_path, cells, good):
    both(written(tmp_path, [*([(n, y, "a") for n, y in GOOD] if good else []), *cells]))


@SLOW
@given(st.lists(st.tuples(ORDINARY, ORDINARY, st.sampled_from("ab")), min_size=1, max_size=9), st.sampled_from(["power", "power_floor", "constant"]),
       st.booleans())
def test_any_numbers(tmp_path, rows, law, grouped):
    path = written(tmp_path, rows)
    x = ("--y", "loss") if law == "constant" else FIT
    more = ("--group", "g") if grouped else ()
    status, body = check("fit", path, "--law", law, *x, *more)
    check("backtest", path, "--law", law, *x, *more, "--holdout", "n > 20")
    if status == 0 and law == "power":
        for g in body["groups"]:
            mine = {n for n, _, k in rows if not grouped or k == g["key"]["g"]}
            assert len(mine) > 1 or g["parameters"]["b"]["status"] != "ok"


TRIPLES = st.lists(st.tuples(ORDINARY, ORDINARY, ORDINARY), min_size=1, max_size=10)
CHINCHILLA = ("--law", "chinchilla", "--y", "loss", "--x", "n_params=n", "--x", "n_tokens=d")


@pytest.mark.parametrize("law", [law.name for law in map(laws.get, laws.names()) if law.predictors == ("x",)])
@settings(SLOW, max_examples=8)
@given(rows=st.lists(st.tuples(ORDINARY, ORDINARY, st.just("a")), min_size=1, max_size=16))
def test_every_law_of_one_predictor(tmp_path, law, rows):
    both(written(tmp_path, rows), law)


@settings(SLOW, max_examples=30)
@given(TRIPLES)
def test_two_predictors(tmp_path, rows):
    path = written(tmp_path, rows, "n,d,loss")
    check("fit", path, *CHINCHILLA)
    check("backtest", path, *CHINCHILLA, "--holdout", "n > 20")


@settings(SLOW, max_examples=30)
@given(TRIPLES)
def test_an_allocation_of_anything(tmp_path, rows):
    path, kept = written(tmp_path, rows, "n,d,loss"), tmp_path / "fit.json"
    kept.unlink(missing_ok=True)
    command("fit", path, *CHINCHILLA, "--out", kept)
    asked = [(path, "--approach", "2", *CHINCHILLA[2:], "--budget", "1e9", "--within", "10")] + [(kept, "--budget", "1e22")] * kept.exists()
    for argv in asked:
        status, out, err = command("allocate", *argv)
        assert status in (0, 2), err
        assert status == 0 or (out == "" and err.count("\n") == 1), err
        assert "Traceback" not in err
        for e in strict(out).values() if status == 0 else ():
            if isinstance(e, dict) and "status" in e:
                sound(e)


@settings(SLOW, max_examples=150)
@given(st.binary(max_size=300), st.sampled_from([b"", b"n,loss\n", b"n,loss\n1,2\n2,1\n4,0.5\n", b"# a\nn,loss\n", b"PAR1", b"\x1f\x8b"]))
def test_any_bytes(tmp_path, junk, head):
    path = tmp_path / "table.csv"
    path.write_bytes(head + junk)
    both(path)


@SLOW
@given(st.data())
def test_any_bytes_of_a_good_file_changed(tmp_path, data):
    content = bytearray(lines().encode())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=6)):
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "table.csv"
    path.write_bytes(bytes(content))
    both(path)


@settings(SLOW, max_examples=100)
@given(st.text("nlosg 0123456789.+-*/()<>=`'\",[]eandortis_", max_size=30), st.text("nloxabc`=' ", max_size=6))
def test_any_expression_and_name(tmp_path, expression, name):
    path = written(tmp_path, [(n, y, "a") for n, y in GOOD])
    for option, value in (("--derive", f"{name}={expression}"), ("--where", expression), ("--unit", f"{name}={expression}"),
                          ("--x", f"{name}={expression}"), ("--group", expression), ("--note", f"{name}={expression}")):
        command_line = ("fit", path, "--law", "power", *FIT, f"{option}={value}")
        status, out, err = command(*command_line)
        assert status in (0, 2), (command_line, err)
        assert (status == 0) == bool(out)
        assert "Traceback" not in err
        assert status == 0 or err.count("\n") == 1, err
    check("backtest", path, "--law", "power", *FIT, f"--holdout={expression}")


def test_a_sound_fit_is_sound(tmp_path):
    (status, fit), (_, tested) = both(written(tmp_path, [(n, y, "a") for n, y in GOOD]))
    assert status == 0
    assert np.isclose(fit["parameters"]["b"]["value"], -0.3, atol=0.02)
    assert tested["rows"][0]["n_test"] == 3
