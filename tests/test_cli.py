"""The commands, as a user types them: a study of one's own in three files, every command on it, and bad input in one line."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from scalemem import cli

SIM = '''
from scalemem import DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage, Sweep, grid, repeat
BASE = RunSpec(model=ModelSpec(d_model=8, n_layers=1, n_heads=2, vocab_size=16, seq_len=8),
               stages=(Stage(data=DataSpec(n_items=8), exposures=2, batch_size=4, optimizer=OptimizerSpec(peak_lr=1e-2)),),
               probes=(Probe("capacity"),))
SWEEP = {"smoke": Sweep(BASE, {"exposures": grid(2, 4, 8), "seed": repeat(2)})}
'''
FIT = '''
title = "A study of one's own"
source = "this test"
[[fit]]
name = "loss"
law = "power"
y = "train_loss_nats"
x = { x = "exposures" }
[[forecast]]
fit = "loss"
label = "later"
at = { x = 64 }
[[claim]]
id = "falls"
text = "The loss falls with exposures"
high = 0.0
parameter = "loss.b"
[[claim]]
id = "impossible"
text = "The loss rises with exposures"
low = 1.0
parameter = "loss.b"
[[show]]
title = "Loss"
group = ["exposures"]
columns = ["train_loss_nats", "mia_auc"]
'''
FIGURE = '''
import matplotlib.pyplot as plt
from scalemem import plot
def draw(table, result):
    fig, ax = plt.subplots()
    plot.points(ax, table, "exposures", "train_loss_nats")
    plot.law(ax, result.fits["loss"], "x", 1, 100)
    plot.log_x(ax)
    return fig
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the three files of a study, in which it has been run once."""
    path = tmp_path_factory.mktemp("own")
    for name, text in {"sims/own.py": SIM, "fits/own.toml": FIT, "figures/own.py": FIGURE}.items():
        (path / name).parent.mkdir()
        (path / name).write_text(text)
    before = os.getcwd()
    os.chdir(path)
    try:
        assert cli.main(["study", "own", "--scale", "smoke", "--workers", "1", "--json"]) == 0
        yield path
    finally:
        os.chdir(before)


def call(capsys, *argv):
    """(exit status, standard output, standard error) of a command line."""
    try:
        status = cli.main(list(argv))
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    return status, out, err


def test_a_study_of_ones_own_is_three_files(folder, capsys):
    status, out, err = call(capsys, "study", "own", "--scale", "smoke", "--json")
    body = json.loads(out)
    assert status == 0
    assert "Nothing is missing: all 6 runs" in err
    assert (folder / "runs/own/own.smoke.png").stat().st_size > 5000
    assert body["runs"] == {"done": 6, "diverged": 0, "failed": 0}
    assert [c["id"] for c in body["claims"]] == ["falls", "impossible"]
    assert body["claims"][0]["value"] < 0
    assert body["claims"][1]["verdict"] == "FAILS"
    assert body["tables"][0]["rows"][0]["runs"] == 2
    assert body["forecasts"][0]["extrapolation"] == 8
    assert call(capsys, "study", "own", "--scale", "smoke", "--check")[0] == 1  # a claim FAILS
    listed = {s["name"]: s for s in json.loads(call(capsys, "studies", "--json")[1])}
    assert listed["own"]["verdicts"]["impossible"]["verdict"] == "FAILS"
    assert "capacity" in listed  # those of the library beside one's own


def test_every_command_has_json_on_standard_output_alone(folder, capsys):
    store = "runs/own/store"
    plan = json.loads(call(capsys, "plan", "own", "--scale", "smoke", "--json")[1])
    assert (plan["runs"], plan["total_runs"]) == (0, 6)
    assert json.loads(call(capsys, "run", "own", "--scale", "smoke", "--json")[1])["done"] == 6
    assert json.loads(call(capsys, "status", store, "--json")[1])["counts"]["done"] == 6
    fit = ["--law", "power", "--y", "train_loss_nats", "--x", "x=exposures"]
    kept = json.loads(call(capsys, "fit", store, *fit, "--out", "fit.json", "--json")[1])
    assert kept["parameters"]["b"]["low"] < kept["parameters"]["b"]["value"] < kept["parameters"]["b"]["high"]
    found = json.loads(call(capsys, "forecast", "fit.json", "--at", "x=80", "--interval", "0.8", "--json")[1])
    assert found["low"] < found["median"] < found["high"]
    assert found["extrapolation"] == 10
    tested = json.loads(call(capsys, "backtest", store, *fit, "--holdout", "exposures >= 8", "--json")[1])
    assert tested["rows"][0]["n_test"] == 2
    assert json.loads(call(capsys, "export", store, "runs.csv", "--json")[1])["out"] == "runs.csv"
    from_csv = json.loads(call(capsys, "fit", "runs.csv", *fit, "--json")[1])
    assert from_csv["parameters"]["b"]["value"] == pytest.approx(kept["parameters"]["b"]["value"], rel=1e-9)
    assert json.loads(call(capsys, "figure", "own", "--scale", "smoke", "--out", "again.png", "--json")[1])["runs"] == 6


def test_people_see_tables_and_verdicts(folder, capsys):
    status, out, _ = call(capsys, "study", "own", "--scale", "smoke")
    assert status == 0
    for text in ("A study of one's own", "train loss", "extrapolation=8x", "FAILS", "figure runs/own/own.smoke.png"):
        assert text in out


@pytest.mark.parametrize("argv", [
    [], ["nonsense"], ["study"], ["study", "nowhere"], ["study", "own", "--scale", "huge"], ["plan", "own", "--scale"],
    ["run", "own", "--scale", "smoke", "--workers", "0"], ["run", "own", "--scale", "smoke", "--workers", "two"],
    ["run", "own", "--scale", "smoke", "--executor", "abacus"], ["run", "own", "--scale", "smoke", "--store", "sims/own.py"],
    ["run", "own", "--scale", "smoke", "--store", "sims"], ["status", "nowhere"], ["status", "sims"],
    ["fit", "nowhere.csv", "--law", "power", "--y", "a", "--x", "x=b"], ["fit", "runs/own/store", "--law", "magic", "--y", "loss_nats"],
    ["fit", "runs/own/store", "--law", "power", "--y", "loss_nats", "--x", "exposures:x"],
    ["fit", "runs/own/store", "--law", "power", "--y", "nothing", "--x", "x=exposures"],
    ["fit", "runs/own/store", "--law", "power", "--y", "loss_nats", "--x", "x=exposures", "--where", "__import__('os')"],
    ["fit", "runs/own/store", "--law", "power", "--y", "loss_nats", "--x", "x=exposures", "--where", "exposures >"],
    ["fit", "runs/own/store", "--law", "power", "--y", "loss_nats", "--x", "x=exposures", "--interval", "2"],
    ["fit", "runs/own/store", "--law", "power", "--y", "loss_nats", "--x", "x=exposures", "--out", "nowhere/fit.json"],
    ["forecast", "nowhere.json", "--at", "x=1"], ["forecast", "sims/own.py", "--at", "x=1"], ["forecast", "fit.json", "--at", "x=large"],
    ["forecast", "fit.json"], ["forecast", "fit.json", "--at", "x=-1"], ["forecast", "fit.json", "--at", "x=1", "--interval", "90"],
    ["backtest", "runs/own/store", "--law", "power", "--y", "loss_nats", "--x", "x=exposures"],
    ["export", "runs/own/store", "runs.xls"], ["export", "runs/own/store", "runs.csv", "--table", "nothing"],
    ["figure", "own", "--scale", "smoke", "--store", "nowhere"], ["figure", "nowhere"], ["figure", "own", "--scale", "smoke", "--out", "a.foo"],
], ids=" ".join)
def test_bad_input_is_one_line_and_status_2(folder, capsys, argv):
    status, out, err = call(capsys, *argv)
    assert status == 2, (out, err)
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("scalemem: error: ")


# ways to spoil a sim: (what is replaced, by what)
SPOILED = [(old, new) for old, news in {
    "d_model=8": ["d_model=-8", "d_model='8'", "d_model=8.5", "d_model=None", "d_model=7", "d_model=0", "d_model=float('nan')", "d_modle=8",
                  "d_model=10**9", "d_model=[8]", "d_model=True"],
    "n_layers=1": ["n_layers=-1", "n_layers=1000", "n_layers='one'", "n_layers=1.5", "n_layers=None", ""],
    "n_heads=2": ["n_heads=3", "n_heads=0", "n_heads=-2", "n_heads=16", "n_heads='2'", "position='rotary', n_heads=8"],
    "vocab_size=16": ["vocab_size=1", "vocab_size=-16", "vocab_size=1e99", "vocab_size='a'", "vocab_size=16, colour=3", "vocab_size=10**400"],
    "seq_len=8": ["seq_len=1", "seq_len=0", "seq_len=-8", "seq_len=8.25", "seq_len=[]", "seq_len=8, norm='batch'", "seq_len=8, mlp=3",
                  "seq_len=8, tied='yes'", "seq_len=8, position='absolute'", "seq_len=8, arch='rnn'", "seq_len=8, init_std=-1",
                  "seq_len=8, param_dtype='float8'", "seq_len=8, init_std=float('inf')", "seq_len=8, arch=None"],
    "n_items=8": ["n_items=0", "n_items=-8", "n_items='8'", "n_items=2**40", "n_items=None", "n_items=8, generator='web'", "n_items=3",
                  "n_items=8, generator=5", "items=8", "n_items=8, generator=''"],
    "exposures=2": ["exposures=-2", "exposures='2'", "exposures=2.5", "exposures=2**50", "exposures=None", "epochs=2",
                    "exposures=2, order='random'", "exposures=2, objective='goldfish'", "exposures=2, objective=None"],
    "batch_size=4": ["batch_size=0", "batch_size=9", "batch_size=-4", "batch_size='4'", "batch_size=4.5", "batch=4", "batch_size=None"],
    "peak_lr=1e-2": ["peak_lr=0", "peak_lr=-1", "peak_lr='fast'", "peak_lr=float('nan')", "peak_lr=1e300", "peak_lr=1e-2, name='magic'",
                     "peak_lr=1e-2, schedule='step'", "peak_lr=1e-2, b1=1", "peak_lr=1e-2, b2=2", "peak_lr=1e-2, eps=0", "lr=1e-2",
                     "peak_lr=1e-2, weight_decay=-1", "peak_lr=1e-2, warmup_steps=-5", "peak_lr=1e-2, decay_fraction=1.5"],
    '(Probe("capacity"),)': ["()", '(Probe("intelligence"),)', "('capacity',)", "None", '(Probe("capacity", at="noon"),)', "(Probe(3),)",
                             'Probe("capacity")', "(Probe(),)"],
    "grid(2, 4, 8)": ["grid()", "grid(2, 'x')", "grid(-1)", "grid(None)", "grid({'d_model': 3})", "grid({'nothing': 3})", "repeat(0)",
                      "repeat('x')", "repeat(2.5)", "[2, 4]", "grid(float('nan'))", "grid([1])"],
    '"exposures": grid': ['"exposure": grid', '"stages.1.exposures": grid', '"model": grid', '"": grid', '3: grid', '"stages.0": grid'],
    "repeat(2)": ["repeat(-1)", "repeat(10**7)", "grid(-1)", "grid('a')", "grid(2**40)"],
    'SWEEP = {"smoke": Sweep(': ['SWEEP = {"laptop": Sweep(', 'SWEEPS = {"smoke": Sweep(', 'SWEEP = {"smoke": list('],
    "SWEEP = ": ["SWEEP = 3 if True else ", "SWEEP = None if True else ", "raise ValueError('no'); SWEEP = ", "import nothing_of_the_kind; SWEEP = ",
                 "1 / 0; SWEEP = ", "SWEEP == ", "def (; SWEEP = ", "raise SystemExit(7); SWEEP = ", "SWEEP = undefined or "],
    "RunSpec(model": ["RunSpec(modle", "RunSpec(3, model", "RunSpec(seed=-1, model", "RunSpec(seed='a', model", "RunSpec(seed=2**40, model",
                      "RunSpec(stages=(), model", "ModelSpec(model"],
    "stages=(Stage(": ["stages=2 * (Stage(", "stages=[] and (Stage(", "stages=(3, Stage("],
}.items() for new in news]


def test_there_are_enough_spoiled_sims():
    assert len(SPOILED) >= 130  # and 300 malformed specs in test_spec.py, 32 command lines above


@pytest.mark.parametrize(("old", "new"), SPOILED)
def test_a_malformed_sim_is_one_line_and_status_2(tmp_path, capsys, old, new):
    assert SIM.count(old) == 1 or old in ("SWEEP = ", "exposures=2")
    path = tmp_path / "spoiled.py"
    path.write_text(SIM.replace(old, new, 1))
    status, out, err = call(capsys, "run", str(path), "--scale", "smoke", "--store", str(tmp_path / "store"))
    assert status == 2, (out, err)
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert not (tmp_path / "store").exists()  # nothing was begun


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"", b"SWEEP"], ids=["absent", "binary", "empty", "undefined"])
def test_a_sim_that_is_no_sim(tmp_path, capsys, content):
    path = tmp_path / "sim.py"
    if content is not None:
        path.write_bytes(content)
    status, _, err = call(capsys, "plan", str(path), "--scale", "smoke")
    assert (status, err.count("\n")) == (2, 1), err


def test_a_fits_file_that_is_no_toml(folder, capsys):
    kept = (folder / "fits/own.toml").read_text()
    try:
        for text in ("[[fit", "[[fit]]\nname = 3\n", "[nonsense]\na = 1\n", kept + "[[show]]\ntitle = 'x'\ngroup = ['nothing']\ncolumns = []\n",
                     kept + "[[show]]\ntitle = 'x'\n"):
            (folder / "fits/own.toml").write_text(text)
            status, _, err = call(capsys, "study", "own", "--scale", "smoke", "--json")
            assert status == 2, text
            assert err.splitlines()[-1].startswith("scalemem: error: "), err
            assert "Traceback" not in err
    finally:
        (folder / "fits/own.toml").write_text(kept)


@pytest.fixture
def counts(tmp_path, monkeypatch):
    """A table of counts that rise with size and tokens, in two groups."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{g},{n},{d},{int(1000 * a * n**0.3 * d**0.1)},100000" for g, a in (("a", 1), ("b", 1.3)) for i, n in enumerate((1, 2, 4, 8, 16, 32))
            for d in (1 + i % 2, 4)]
    (tmp_path / "counts.csv").write_text("suite,n,d,hits,tried\n" + "\n".join(rows) + "\n")
    return tmp_path


def test_the_default_law_averages_over_any_predictors(counts, capsys):
    one = json.loads(call(capsys, "fit", "counts.csv", "--y", "hits", "--x", "n", "--where", "d == 4", "--group", "suite", "--json")[1])
    assert (one["law"], one["x"], one["n_groups"]) == ("auto", {"n": "n"}, 2)
    kept = json.loads(call(capsys, "fit", "counts.csv", "--y", "hits", "--x", "size=n", "--x", "d", "--where", "suite == 'a'", "--out", "f.json",
                           "--report", "r.md", "--json")[1])
    assert kept["x"] == {"size": "n", "d": "d"}
    assert f"no search: {kept['starts']['tried']} curves weighed by their evidence" in (counts / "r.md").read_text()
    found = json.loads(call(capsys, "forecast", "f.json", "--at", "size=64", "--at", "d=4", "--json")[1])
    assert len(found["laws"]) > 1
    assert sum(found["laws"].values()) == pytest.approx(1, abs=0.01)
    assert found["low"] < found["median"] < found["high"]
    assert found["median"] == pytest.approx(1000 * 64**0.3 * 4**0.1, rel=0.05)
    status, out, _ = call(capsys, "forecast", "f.json", "--at", "size=64", "--at", "d=4")
    assert status == 0
    for text in ("  laws: ", "extrapolation=2x", "back-test, largest predictor value of each group held out", "rmse of the log"):
        assert text in out
    status, out, _ = call(capsys, "fit", "--help")
    assert "auto (default): an average over laws, for any predictors" in " ".join(out.split())
    assert "an average over laws, each weighed by its evidence" in out


def test_several_points_of_one_predictor(counts, capsys):
    call(capsys, "fit", "counts.csv", "--law", "power", "--y", "hits", "--x", "n", "--where", "d == 4 and suite == 'a'", "--out", "f.json")
    each = [json.loads(call(capsys, "forecast", "f.json", "--at", f"x={v}", "--json")[1]) for v in (64, 128)]
    both = json.loads(call(capsys, "forecast", "f.json", "--at", "x=64", "--at", "x=128", "--json")[1])
    assert both == {"forecasts": each}
    assert each[0]["median"] < each[1]["median"]
    assert call(capsys, "forecast", "f.json", "--at", "x=64", "--at", "x=128", "--at", "y=1", "--at", "y=2")[0] == 2


def test_losses_trials_starts_and_bootstrap_reach_the_fit_and_its_backtest(counts, capsys):
    fit = ("counts.csv", "--law", "power", "--y", "hits", "--x", "n", "--where", "d == 4", "--group", "suite")
    loss = ("--loss", "beta_binomial", "--trials", "tried")
    kept = json.loads(call(capsys, "fit", *fit, *loss, "--starts", "3", "--json")[1])
    assert (kept["loss"], kept["trials"]) == ("beta_binomial", "tried")
    assert kept["backtest"]["rmse_log_mean"] < 0.01  # a probability against a share: against the count it would be 11
    plain = json.loads(call(capsys, "fit", *fit, *loss, "--json")[1])
    assert kept["starts"]["tried"] == plain["starts"]["tried"] + 6
    again = json.loads(call(capsys, "fit", *fit, "--bootstrap", "30", "--json")[1])
    assert {g["interval_by"] for g in again["groups"]} == {"bootstrap of 30 refits"}
    tested = json.loads(call(capsys, "backtest", *fit, *loss, "--holdout", "n > 8", "--json")[1])
    assert [r["n_test"] for r in tested["rows"]] == [2, 2]
    assert tested["summary"]["rmse_log_mean"] < 0.01
    for row in tested["rows"]:  # of the count, whose binomial sd is about 55: log density -0.9 - log 55; of the share it would be 11.5 more
        assert -8 < row["log_likelihood"] < -4


@pytest.mark.parametrize("argv", [
    ["--loss", "huber:1e-3"], ["--starts", "5"], ["--bootstrap", "100"], ["--trials", "tried"], ["--loss", "binomial", "--trials", "tried"],
    ["--law", "power", "--loss", "binomial"], ["--law", "power", "--loss", "magic"], ["--law", "power", "--bootstrap", "3"],
    ["--law", "power", "--starts", "-1"], ["--law", "power", "--loss", "binomial", "--trials", "nothing"], ["--law", "power", "--x", "d"],
], ids=" ".join)
def test_bad_fitting_options_are_one_line_and_status_2(counts, capsys, argv):
    status, out, err = call(capsys, "fit", "counts.csv", "--y", "hits", "--x", "n", *argv)
    assert (status, out, err.count("\n")) == (2, "", 1), err


def test_the_readme_forecasts_as_it_says(tmp_path, monkeypatch, capsys):
    root = Path(__file__).parents[1]
    text = (root / "README.md").read_text().partition("## Forecast a model you cannot train")[2].partition("\n## ")[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fits").symlink_to(root / "fits")
    commands = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("    scalemem ")]
    assert [c[0] for c in commands] == ["fit", "forecast", "forecast"]

    def numbers(lines):
        """Each forecast's x, median, low and high."""
        return [[float(v.replace(",", "")) for v in re.findall(r"\d[\d,]+\d", line)] for line in lines if line.strip().startswith("forecast ")]

    printed = []
    for command in commands:
        status, out, err = call(capsys, *command)
        assert status == 0, err
        printed += numbers(out.splitlines())
    stated = numbers(text.splitlines())
    assert [len(row) for row in stated] == [4] * 5
    for want, got in zip(stated, printed, strict=True):
        assert got == pytest.approx(want, rel=0.01)
    for f, counted in zip(printed[3:], (1_675_077, 2_382_326), strict=True):
        assert f[2] < counted < f[3]
        assert f"{counted:,}" in text
    assert (tmp_path / "pythia.png").stat().st_size > 10_000
