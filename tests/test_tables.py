"""Tables: what can be read, what an expression may say, and one line for everything else."""

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalemem import tables
from scalemem.tables import TableError

TABLE = pa.table({
    "d": [8, 16, 32, None], "loss": [2.0, 1.0, 0.5, 0.25], "kind": ["a", "b", None, "b"], "ok": [True, False, None, True],
    "Model Size": [1, 2, 3, 4]})


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    assert "Traceback" not in text
    assert len(text) > 20
    return text


@pytest.mark.parametrize(("expression", "rows"), [
    ("d >= 16", [1, 2]),
    ("not d >= 16", [0, 3]),
    ("8 < d <= 32", [1, 2]),
    ("d in [8, 32]", [0, 2]),
    ("d not in (8, 32)", [1]),
    ("d != 8", [1, 2]),
    ("kind == 'b' and loss < 1", [3]),
    ("kind == 'b' or kind == \"a\"", [0, 1, 3]),
    ("kind in ['a']", [0]),
    ("is_null(d) or is_null(kind)", [2, 3]),
    ("is_null(ok)", [2]),
    ("not is_null(d)", [0, 1, 2]),
    ("ok", [0, 3]),
    ("ok == true and not false", [0, 3]),
    ("d / 2 ** 3 == 1", [0]),
    ("-loss + 3 * (d - 8) > 0", [1, 2]),
    ("2 + 3 * 4 == 14", [0, 1, 2, 3]),
    ("2 ** 3 ** 2 == 512", [0, 1, 2, 3]),
    ("log2(d) == 4 or abs(loss - 2) < 1e-9", [0, 1]),
    ("sqrt(exp(2 * log(loss))) > 0.6", [0, 1]),
    ("`Model Size` > 2", [2, 3]),
    ("kind == '`Model Size`'", []),
    ("loss / 0 > 1e300", [0, 1, 2, 3]),
    ("d in []", []),
    (" \n d > 8", [1, 2]),
])
def test_where(expression, rows):
    kept, dropped = tables.where(TABLE, expression)
    assert kept.column("Model Size").to_pylist() == [r + 1 for r in rows]
    assert dropped == 4 - len(rows)


@pytest.mark.parametrize("expression", [
    "", " ", "d >", "d = 8", "(d", "nothing > 1", "d > 'x'", "kind > 1", "kind + 1 > 2", "d", "d + 1", "'a'", "not d", "d and ok",
    "__import__('os').system('true')", "open('x')", "d.real > 1", "d[0] > 1", "[d for d in ok]", "lambda: d", "d if ok else d", "d is 8",
    "d in 8", "d in kind", "~ok", "d // 2 > 1", "d % 2 == 1", "d & 1 == 1", "ok & ok", "f'{d}' == 'a'", "b'a' == kind", "1j > d",
    "None == d", "... == d",
    "(x := 3) > d", "is_null()", "is_null(d, d)", "is_null(x=d)", "exec('1')", "log(kind) > 1", "max(d) > 1", "d > 8; d", "d\n> 8",
    "yield d", "await d", "*d", "{d: 1}", "(" * 300 + "d" + ")" * 300, "-" * 1900 + "d > 1", "d > 8 " + "or d > 8 " * 500, "\x00",
    "`Model Size > 1", "``> 1", "9" * 1000 + "> d", "fit.alpha > 1", "d > 8 # 'x", "print(d) == 1", 7, None,
])
def test_an_expression_that_is_not_one(expression):
    if expression is None:
        assert tables.mask(TABLE, None).all()
    elif expression in ("d > 8 # 'x",):  # a comment is harmless
        assert tables.mask(TABLE, expression).sum() == 2
    else:
        with pytest.raises(TableError) as error:
            tables.mask(TABLE, expression)
        assert one_line(error).startswith(("expression", "column"))


@given(st.text(alphabet="dloskin '\"`<>=!()[]+-*/.,0123456789and ornt_:\n\t\x00é", max_size=40))
def test_no_text_escapes_as_another_error(text):
    said = ""
    try:
        assert tables.mask(TABLE, text).dtype == bool
    except TableError as caught:
        said = str(caught)
    assert "\n" not in said


def test_huge_powers_cost_nothing():
    assert not tables.mask(TABLE, "9 ** 9 ** 9 ** 9 < d").any()


def test_read_tells_files_apart_by_content(tmp_path):
    want = pa.table({"d": [8, 16], "loss": [1.5, 2.5]})
    csv.write_csv(want, tmp_path / "a.csv")
    (tmp_path / "b.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    pq.write_table(want, tmp_path / "c.parquet")
    pq.write_table(want, tmp_path / "d.csv")
    for name in ("a.csv", "b.gz", "c.parquet", "d.csv"):
        assert tables.read(tmp_path / name).equals(want)


@pytest.mark.parametrize(("name", "content"), [
    ("absent.csv", None), ("empty.csv", b""), ("empty.parquet", b""), ("blank.csv", b"\n\n"), ("ragged.csv", b"a,b\n1,2\n1\n"),
    ("long.csv", b"a,b\n1,2,3\n"), ("twice.csv", b"a,a\n1,2\n"), ("fake.parquet", b"a,b\n1,2\n"), ("cut.parquet", b"PAR1aaaaPAR1"),
    ("bad.gz", b"\x1f\x8b\x08\x00garbage"), ("cut.csv.gz", gzip.compress(b"a,b\n1,2\n" * 500, mtime=0)[:40]),
    ("flipped.gz", gzip.compress(b"a,b\n1,2\n" * 9, mtime=0)[:-6] + b"zzzzzz"), ("utf16.csv", "a,b\n1,2\n".encode("utf-16")),
    ("latin.csv", b"a\xff,b\n1,2\n"), ("quote.csv", b'a,b\n"1,2\n'), ("binary.csv", bytes(range(256)) * 4),
])
def test_a_file_that_is_no_table(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TableError) as error:  # of some bytes pyarrow makes a table, in which no cell is a number to fit
        tables.column(tables.read(tmp_path / name), "b")
    one_line(error)


@given(st.binary(max_size=200))
def test_no_bytes_escape_as_another_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "a.csv"
    path.write_bytes(content)
    said = ""
    try:
        table = tables.read(path)
        for name in table.column_names:
            tables.column(table, name)
    except TableError as caught:
        said = str(caught)
    assert "\n" not in said


@pytest.mark.parametrize(("cells", "says"), [
    ([1.0, None, 2.0], "row 2 = missing"), ([1.0, float("nan")], "row 2 = missing"), ([1.0, float("inf")], "row 2 = inf"),
    (["1", "x"], "row 2 = 'x'"), (["1", "2"], "stored as text"), ([None, None], "row 1 = missing"), ([1.0, -2.0], "row 2 = -2"),
    ([0.0, 1.0], "row 1 = 0"), ([b"a"], "binary"), ([[1]], "list"), ([{"a": 1}], "struct"),
])
def test_a_column_that_cannot_be_fitted(cells, says):
    with pytest.raises(TableError, match=says) as error:
        tables.column(pa.table({"v": pa.array(cells)}), "v", above=0.0)
    assert "'v'" in one_line(error)


def test_a_column_is_checked_only_where_it_is_used_and_rows_keep_their_number():
    table = pa.table({"v": [1.0, None, 3.0, None]})
    assert tables.column(table, "v", keep=np.array([True, False, True, False])).tolist() == [1, 3]
    with pytest.raises(TableError, match="row 4"):
        tables.column(table, "v", keep=np.array([True, False, True, True]))


def test_a_missing_column_lists_those_that_exist():
    with pytest.raises(TableError, match="d, loss, kind, ok, Model Size"):
        tables.column(TABLE, "lost")


def test_derive_keeps_the_unit_and_refuses_a_name_that_exists():
    table = tables.derive(TABLE, "bits", "loss / log(2)", unit="bits")
    assert np.allclose(table.column("bits").to_numpy(), np.array([2, 1, 0.5, 0.25]) / np.log(2))
    assert tables.unit(table, "bits") == "bits"
    assert tables.unit(table, "loss") == "loss"
    with pytest.raises(TableError, match="is in the table already"):
        tables.derive(table, "bits", "loss")


def test_groups_are_sorted_and_need_their_values():
    table = pa.table({"d": [16, 8, 16], "seed": ["b", "a", "a"]})
    found = tables.groups(table, ["d", "seed"], np.ones(3, bool))
    assert [(k, r.tolist()) for k, r in found] == [
        ({"d": 8, "seed": "a"}, [1]), ({"d": 16, "seed": "a"}, [2]), ({"d": 16, "seed": "b"}, [0])]
    with pytest.raises(TableError, match="row 4 = missing"):
        tables.groups(TABLE, ["d"], np.ones(4, bool))
