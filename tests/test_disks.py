"""Disks that are full, read-only or gone while a sweep runs: one clear line and exit status 2, nothing written is lost, the same command goes on."""

import contextlib
import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import make_run

from scalemem import cli
from scalemem.spec import run_id
from scalemem.store import Store

RUNS = [make_run(exposures=e, seed=i) for i, e in enumerate((24, 24, 6))]
MANY = [make_run(exposures=600, seed=i) for i in range(16)]
SIM = """
import sys
sys.path[:0] = [{!r}]
from test_disks import MANY, RUNS
from scalemem import Sweep
class Given(Sweep):
    def runs(self):
        return RUNS if self.base == RUNS[0] else MANY
SWEEP = {{"smoke": Given(RUNS[0], {{}}), "laptop": Given(MANY[0], {{}})}}
"""


@pytest.fixture(scope="module")
def sim(tmp_path_factory):
    path = tmp_path_factory.mktemp("sim") / "sim.py"
    path.write_text(SIM.format(str(Path(__file__).parent)))
    return str(path)


def command(sim, store):
    return ["run", sim, "--scale", "smoke", "--executor", "vmap", "--store", str(store), "--keep-models"]


def content(path, runs=RUNS):
    store = Store.open(path)
    assert sorted(store.finished()) == sorted(map(run_id, runs))
    assert store.failures() == {}
    return json.dumps([store.table(name).to_pylist() for name in ("runs", "curves")])


class Disk:
    """Counts the calls that write below a path, and from the n-th on refuses them."""

    def __init__(self, patch, path, after=1 << 30, act=None, number=errno.ENOSPC):
        self.path, self.calls, self.after, self.number, self.act = str(path), 0, after, number, act
        for name in ("open", "write", "fsync", "rename"):
            patch.setattr(os, name, self.guarded(name, getattr(os, name)))

    def ours(self, name, target, flags):
        if isinstance(target, int):
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/self/fd/{target}")
        return str(target).startswith(self.path) and (name != "open" or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))

    def guarded(self, name, real):
        def call(target, *args, **kwargs):
            if self.ours(name, target, args[0] if name == "open" and args else 0):
                self.calls += 1
                if self.calls > self.after:
                    if self.act is None:
                        raise OSError(self.number, os.strerror(self.number))
                    self.act()
            return real(target, *args, **kwargs)
        return call


@pytest.fixture(scope="module")
def undisturbed(sim, tmp_path_factory):
    """What a whole run gives, and how many calls it writes with."""
    path = tmp_path_factory.mktemp("undisturbed") / "store"
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, path)
        assert cli.main(command(sim, path)) == 0
    return content(path), disk.calls


@pytest.mark.skipif(sys.platform != "linux", reason="files are looked up in /proc")
@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "the disk is full; free some space"), (errno.EROFS, "the file system is read-only")])
def test_a_disk_that_refuses_at_any_call_ends_the_run_in_one_line(sim, undisturbed, tmp_path, capsys, monkeypatch, number, said):
    expected, calls = undisturbed
    assert calls > 30
    every = range(calls) if "SCALEMEM_KILLS" in os.environ else range(number % 7, calls, 7)
    for after in every:
        path = tmp_path / f"store-{after}"
        with monkeypatch.context() as patch:
            Disk(patch, path, after, number=number)
            status = cli.main(command(sim, path))
            captured = capsys.readouterr()
        if status == 0:  # the last calls only remove what is no longer needed
            assert content(path) == expected
            continue
        assert status == 2, after
        (line,) = captured.err.splitlines()
        assert line.startswith(f"scalemem: error: {path}"), line
        assert said in line
        assert "then run the same command again: nothing already written is lost" in line
        before = Store.open(path, create=True).finished()
        assert cli.main(command(sim, path)) == 0
        assert Store.open(path).finished().items() >= before.items()
        assert content(path) == expected
        capsys.readouterr()


@pytest.mark.skipif(sys.platform != "linux", reason="files are looked up in /proc")
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_path_that_vanishes_ends_the_run_in_one_line(sim, undisturbed, tmp_path, capsys, monkeypatch, share):
    expected, calls = undisturbed
    path, away = tmp_path / "store", tmp_path / "away"

    rename = os.rename

    def vanish():
        if path.exists():
            rename(path, away)

    with monkeypatch.context() as patch:
        Disk(patch, path, int(share * calls), act=vanish)
        assert cli.main(command(sim, path)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"scalemem: error: {path}"), line
    assert "vanished" in line
    assert not path.exists()
    away.rename(path)
    assert cli.main(command(sim, path)) == 0
    assert content(path) == expected


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 3 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    if sys.platform != "linux" or os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", path], check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.parametrize("cause", ["full", pytest.param("read-only", marks=pytest.mark.skipif(
    "SCALEMEM_KILLS" not in os.environ, reason="a minute: before a release; the errors of a read-only disk are made above"))])
def test_a_real_disk_that_refuses_ends_workers_and_launch(sim, small_disk, cause):
    """Worker processes, with a checkpoint every moment, so that Orbax meets it too."""
    path = small_disk / "store"
    args = [sys.executable, "-m", "scalemem", "run", sim, "--scale", "laptop", "--executor", "cpu", "--workers", "2", "--store", str(path)]
    env = {**os.environ, "SCALEMEM_CHECKPOINT_S": "0.01"}
    process = subprocess.Popen(args, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(small_disk.glob("store/checkpoints/*/*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    ballast = small_disk / "ballast"
    if cause == "full":
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    else:  # a file system with files that are open for writing cannot be remounted: those were interrupted before
        process.terminate()
        process.communicate(timeout=120)
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
        process = subprocess.Popen(args, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _, err = process.communicate(timeout=120)
    (line,) = err.splitlines()
    assert (process.returncode, line.startswith(f"scalemem: error: {path}")) == (2, True), err
    assert {"full": "the disk is full; free", "read-only": "the file system is read-only"}[cause] in line
    assert "Traceback" not in err
    before = Store.open(path).finished()
    if cause == "full":
        ballast.unlink()
    else:
        subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    done = subprocess.run(args, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "Traceback" not in done.stdout
    assert Store.open(path).finished().items() >= before.items()
    assert len(json.loads(content(path, MANY))[0]) == len(MANY)
