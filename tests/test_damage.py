"""Every kind of file in a store, cut, flipped or emptied, under the commands as a user types them: named, set aside and done again."""

import json
import shutil
import socket
import subprocess
import sys

import pytest
from conftest import make_run
from store_rows import flip, truncate

from scalemem import cli, execute, locking
from scalemem.durable import checked_line
from scalemem.spec import run_id
from scalemem.store import Store

pytestmark = pytest.mark.filterwarnings("always::scalemem.durable.StoreWarning")
RUNS = [make_run(exposures=e, seed=i) for i, e in enumerate((24, 24, 6))]
SIM = """
import sys
sys.path[:0] = [{!r}]
from test_damage import RUNS
from scalemem import Sweep
class Given(Sweep):
    def runs(self):
        return RUNS
SWEEP = {{"smoke": Given(RUNS[0], {{}})}}
"""
NOBODY = 1 << 22  # no process: the largest number that Linux gives is one less


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study, and a store in which one of its runs has finished, the others are in a checkpoint, and a process died with its lease."""
    path = tmp_path_factory.mktemp("damage")
    (path / "sim.py").write_text(SIM.format(__file__.rpartition("/")[0]))
    store = Store.open(path / "store", create=True)
    store.register("sim.smoke", RUNS)
    (p,) = execute.plan(RUNS, store, "vmap")
    assert not execute.work(p, store, "vmap", stopping=lambda: store.finished() != {})
    assert list(store.finished()) == [run_id(RUNS[2])]
    (manifest,) = (store.path / "manifest").iterdir()
    manifest.rename(manifest.with_name(f"{socket.gethostname()}-{NOBODY}-0.jsonl"))  # of another process, which has ended
    with store.writer(), store.lease(["another"]):  # which makes the files of both locks
        pass
    dead = {"host": socket.gethostname(), "pid": NOBODY, "since": 0.0, "run_ids": [run_id(r) for r in RUNS]}
    (store.path / "leases" / f"{socket.gethostname()}-0.json").write_bytes(checked_line(dead))
    return path


@pytest.fixture(scope="module")
def undisturbed(folder):
    shutil.copytree(folder / "store", folder / "whole")
    assert cli.main(["run", str(folder / "sim.py"), "--scale", "smoke", "--executor", "vmap", "--store", str(folder / "whole")]) == 0
    return content(folder / "whole")


def content(path):
    store = Store.open(path)
    assert store.status()["counts"] == {"done": 3, "diverged": 0, "running": 0, "failed": 0, "missing": 0, "total": 3}
    assert store.checkpoints() == []
    return json.dumps([store.table(name).to_pylist() for name in ("runs", "curves")])


def empty(path):
    path.write_bytes(b"")


# kind -> which files, whether `status` names it, whether `run` sets it aside
KINDS = {"runs": ("parts/runs-*", True, True), "curves": ("parts/curves-*", True, True), "manifest": ("manifest/*", True, True),
         "sweep": ("sweeps/*", True, True), "states": ("checkpoints/*/*/**/d/*", False, True), "metadata": ("checkpoints/*/*/_METADATA", False, True),
         "checkpoint": ("checkpoints/*/[0-9]*.json", False, True), "measured": ("checkpoints/*/*.curves", False, True),
         "pack": ("checkpoints/*/pack.json", False, True), "lease": ("leases/*.json", True, True), "lock": ("lock", False, False),
         "leases' lock": ("leases/lock", False, False)}


@pytest.mark.parametrize("harm", [truncate, flip, empty])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_named_set_aside_and_done_again(folder, undisturbed, tmp_path, capsys, kind, harm):
    pattern, named, aside = KINDS[kind]
    path = tmp_path / "store"
    shutil.copytree(folder / "store", path)
    victim = max(path.glob(pattern), key=lambda p: p.stat().st_size)
    before = victim.read_bytes()
    assert before  # an empty file has nothing to flip
    harm(victim)
    said = ""
    for command in (["status", str(path)], ["export", str(path), str(tmp_path / "out.csv")], ["status", str(path), "--json"]):
        assert cli.main(command) in (0, 2)  # there may be no run left to export
        captured = capsys.readouterr()
        said += captured.out + captured.err
    assert "Traceback" not in said
    assert (victim.name in said) or not named
    assert cli.main(["run", str(folder / "sim.py"), "--scale", "smoke", "--executor", "vmap", "--store", str(path)]) == 0
    captured = capsys.readouterr()
    said += captured.out + captured.err
    assert content(path) == undisturbed
    assert victim.name in said or not aside
    moved = [p for p in (path / "set-aside").rglob("*") if p.name == victim.name]
    assert len(moved) == aside
    assert cli.main(["status", str(path)]) == 0
    captured = capsys.readouterr()
    assert "warning" not in captured.out + captured.err  # all is whole again


@pytest.mark.parametrize("harm", [truncate, flip, empty])
def test_a_damaged_store_json_is_refused_in_one_line_that_says_how_to_restore_it(folder, undisturbed, tmp_path, capsys, harm):
    path = tmp_path / "store"
    shutil.copytree(folder / "store", path)
    harm(path / "store.json")
    run = ["run", str(folder / "sim.py"), "--scale", "smoke", "--executor", "vmap", "--store", str(path)]
    for command in (["status", str(path)], ["export", str(path), str(tmp_path / "out.csv")], run,
                    ["fit", str(path), "--y", "loss_nats", "--x", "exposures"]):
        assert cli.main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"scalemem: error: {path}/store.json: damaged; restore it as {{")
    (path / "store.json").write_text(line.partition("restore it as ")[2])
    assert cli.main(run) == 0
    assert content(path) == undisturbed


def test_the_damaged_lease_of_a_living_process_keeps_its_runs_until_it_is_written_again(tmp_path):
    code = ("import sys\nfrom scalemem.store import Store\nstore = Store.open(sys.argv[1])\n"
            "with store.lease(['a']) as lease:\n    for line in sys.stdin:\n        lease.beat()\n        print('beat', flush=True)\n")
    store = Store.open(tmp_path / "store", create=True)
    holder = subprocess.Popen([sys.executable, "-c", code, str(store.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdin is not None
    assert holder.stdout is not None

    def beat():
        print("beat", file=holder.stdin, flush=True)
        assert holder.stdout.readline() == "beat\n"  # type: ignore[union-attr]

    beat()
    (path,) = (store.path / "leases").glob("*.json")
    before = path.read_bytes()
    for harm in (truncate, flip, empty):
        harm(path)
        with pytest.warns(match=f"{path.name}: damaged; its process lives"), store.lease(["a", "b"]) as lease:
            assert lease.run_ids == ()
        with pytest.warns(match="damaged"):
            assert [w["pid"] for w in store.status()["workers"]] == [locking.UNKNOWN]
        beat()
        assert path.read_bytes() == before
        with store.lease(["a", "b"]) as lease:
            assert lease.run_ids == ("b",)
    holder.kill()
    holder.communicate()
    with store.lease(["a"]) as lease:
        assert lease.run_ids == ("a",)
