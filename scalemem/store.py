"""The store of results: append-only Parquet parts and manifests; the only module that touches run files.

A store is a directory:

    store.json        its format
    parts/            Parquet files, written whole under a temporary name, fsynced, renamed; never changed
    manifest/         one file of checked lines a writing process; a line makes the parts that it lists exist
    sweeps/           the runs that were asked for, by name of the sweep
    leases/, lock     who works on it now; the kernel frees them when a process dies
    checkpoints/      packs in progress
    orders/           what the jobs of a cluster are to do (`orders.py`)
    set-aside/        parts that were found damaged; their runs count as missing

Any process may append at any time; `writer()` is for those that want to be the only one.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import secrets
import shutil
import socket
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalemem import catalogue, columnar, locking
from scalemem.durable import StoreError, StoreWarning, append_line, fsync_dir, one_line, write_whole
from scalemem.spec import RunSpec, canonical_json, from_dict, run_id

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Store", "StoreError", "StoreWarning"]

Rows = Sequence[Mapping[str, Any]] | columnar.Block

FORMAT = 1
STATUSES = ("done", "diverged")  # of a finished run
STATES = (*STATUSES, "running", "failed", "missing")
_FOLDERS = ("parts", "manifest", "sweeps", "leases", "checkpoints", "set-aside")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Store:
    """The results of any number of sweeps; made by `Store.open`.

    >>> import tempfile
    >>> store = Store.open(tempfile.mkdtemp(), create=True)
    >>> curve = [{"run_id": "a", "exposures": 1, "loss_nats": 4.8}, {"run_id": "a", "exposures": 2, "loss_nats": 4.1}]
    >>> store.append_tables({"curves": curve, "runs": [{"run_id": "a", "status": "done", "loss_nats": 4.1}]})
    >>> store.finished(), store.table("curves").num_rows
    ({'a': 'done'}, 2)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._manifests = catalogue.Manifests(path / "manifest")
        self._manifest: tuple[int, Path] | None = None  # pid, and the file in manifest/ that this process appends to
        self._appending = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Store.open, (self.path,)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    @classmethod
    def open(cls, path: str | os.PathLike[str], create: bool = False) -> Store:
        """Opens the store at `path`.

        Args:
          path: its directory.
          create: makes a store if `path` is absent or empty.

        Raises:
          StoreError: nothing there, not a store, or written by a newer version.
        """
        path, meta = Path(path), Path(path) / "store.json"
        with one_line(path):
            if path.exists() and not path.is_dir():
                raise StoreError(f"{path}: a file, not a store; name a directory")
            if create and not meta.exists():
                path.mkdir(parents=True, exist_ok=True)
                foreign = [name for name in os.listdir(path) if not name.startswith(".")]
                if foreign and not meta.exists():
                    raise StoreError(f"{path}: not a store (it holds {foreign[0]} and no store.json); name an empty or a new directory")
                write_whole(meta, json.dumps({"scalemem_store": FORMAT}).encode() + b"\n")
            if not meta.exists():
                what = "not a store (no store.json in it)" if path.exists() else "no such store"
                raise StoreError(f"{path}: {what}; check the path, or make one with scalemem run SIM --store {path}")
            found = _format(meta.read_bytes())
            if found < 1:
                raise StoreError(f"{meta}: damaged; restore it as {{\"scalemem_store\": {FORMAT}}}")
            if found > FORMAT:
                raise StoreError(f"{path}: store format {found}, this version reads up to {FORMAT}; upgrade scalemem")
            for name in _FOLDERS:
                with contextlib.suppress(OSError):  # a store that is only read may be read-only
                    (path / name).mkdir(exist_ok=True)
        return cls(path)

    # -- writing ------------------------------------------------------------------------------------------------------

    def append(self, table: str, rows: Rows, provenance: Mapping[str, Any] | None = None) -> None:
        """Appends rows to one table: `append_tables({table: rows}, provenance)`."""
        self.append_tables({table: rows}, provenance)

    def append_tables(self, tables: Mapping[str, Rows], provenance: Mapping[str, Any] | None = None) -> None:
        """Appends rows to several tables at once: after a kill or an error all of them are there, or none.

        Args:
          tables: name to rows, or to a block of columns. Every row has `run_id`; rows of `runs` are one a run and have `status`, "done" or
            "diverged". Values are numbers, strings, booleans, None or 0-d arrays; columns may differ between calls.
          provenance: what does not belong to a run's identity (pack size, devices, host, versions), as JSON.

        Raises:
          StoreError: malformed rows, or the rows could not be written; what was written before is intact.
        """
        contents = {name: columnar.encode(name, _checked(name, rows)) for name, rows in tables.items() if rows}
        if not contents:
            return
        statuses = {row["run_id"]: row["status"] for row in tables.get("runs", ())}  # type: ignore[index]
        written: list[Path] = []
        parts = []
        with one_line(self.path):
            try:
                for name, content in contents.items():
                    path = self.path / "parts" / f"{name}-{secrets.token_hex(8)}.parquet"
                    write_whole(path, content, sync_dir=False)
                    written.append(path)
                    ids = list(dict.fromkeys(columnar.run_ids(tables[name])))
                    parts.append({"table": name, "part": path.name, "sha256": catalogue.digest(content),
                                  "bytes": len(content), "rows": len(tables[name]), "run_ids": ids})
                fsync_dir(self.path / "parts")
                self._record({"kind": "commit", "parts": parts, "statuses": statuses,
                              "provenance": json.loads(json.dumps(provenance or {}, default=str))})
            except BaseException:
                for path in written:
                    with contextlib.suppress(OSError):
                        os.unlink(path)
                raise

    def fail(self, run_ids: Iterable[str], reason: str, log_tail: str = "") -> None:
        """Records that runs failed, and why; a failed run is still missing, and no longer failed once it finishes."""
        with one_line(self.path):
            self._record({"kind": "failure", "run_ids": list(run_ids), "reason": reason, "log_tail": log_tail})

    def register(self, name: str, runs: Iterable[RunSpec]) -> None:
        """Records what the sweep `name` asks for now, so that `status` knows what is missing; idempotent.

        Raises:
          StoreError: a name that is no file name, or the store cannot be written.
        """
        content = {run_id(run): canonical_json(run) for run in runs}
        body = json.dumps(content, separators=(",", ":")).encode()
        data = json.dumps({"sha256": catalogue.digest(body)}).encode() + b"\n" + body + b"\n"
        with one_line(self.path):
            path = self.path / "sweeps" / f"{_legal(name, 'sweep')}.json"
            if not path.exists() or path.read_bytes() != data:
                write_whole(path, data)

    @contextlib.contextmanager
    def writer(self) -> Iterator[Store]:
        """Holds the store for this process alone, and tidies what killed writers left.

        Raises:
          StoreError: another process holds it; one line with its pid, host and since when.
        """
        with locking.exclusive(self.path / "lock"):
            with one_line(self.path):
                self._tidy()
            yield self

    def lease(self, run_ids: Iterable[str]) -> contextlib.AbstractContextManager[locking.Lease]:
        """Claims runs to work on now, so that they count as running; what another process has claimed is not granted.

        Returns:
          A context with `.run_ids`, those granted, and `.beat()`, to be called at least every 10 minutes.
        """
        return locking.lease(self.path / "leases", run_ids)

    # -- reading ------------------------------------------------------------------------------------------------------

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of a table for finished runs, each run once, sorted by run_id and within a run as written.

        Args:
          name: "runs" (one row a run), "curves" (many), or any other table that was appended.
          columns: which to read, and run_id; all by default.

        Returns:
          A pyarrow.Table; columns that a part lacks are null. Which packs the runs were in, and how often the work was
          interrupted, does not show.

        Raises:
          StoreError: no such table or column.

        Warns:
          StoreWarning: a part is damaged or missing, or a column has values of different types.
        """
        while True:
            with one_line(self.path):
                sources = self._catalogue().sources
                if name not in sources:
                    legal = ", ".join(sorted(sources)) or "none yet, for no run has finished"
                    raise StoreError(f"{self.path}: no table {name!r}; legal: {legal}; choose one of these")
                pieces = []
                for part, ids in sources[name].items():
                    content = catalogue.read(self.path / "parts", part)
                    if content is None:
                        break  # damaged since it was verified: start again without it
                    pieces.append(columnar.decode(content, ids if len(ids) < len(part.run_ids) else None, columns))
                    del content  # as large as what was read of it
                else:
                    return columnar.unite(pieces, f"{self.path}, table {name}", columns or ())

    def tables(self) -> list[str]:
        """Names of the tables that have rows of finished runs."""
        with one_line(self.path):
            return sorted(self._catalogue().sources)

    def finished(self) -> dict[str, str]:
        """run_id to "done" or "diverged", for every run whose rows are all intact."""
        with one_line(self.path):
            return dict(sorted(self._catalogue().statuses.items()))

    def missing(self, runs: Iterable[RunSpec]) -> list[RunSpec]:
        """Those of `runs` that have not finished, in order, each once: what is to be run."""
        finished = self.finished()
        wanted = {run_id(run): run for run in runs}
        return [run for key, run in wanted.items() if key not in finished]

    def provenance(self) -> dict[str, dict[str, Any]]:
        """run_id to the provenance that its rows were appended with."""
        with one_line(self.path):
            return dict(sorted(self._catalogue().provenance.items()))

    def failures(self) -> dict[str, dict[str, Any]]:
        """run_id to reason, log_tail and time of the last failure, for runs that have not finished since."""
        with one_line(self.path):
            finished = self._catalogue().statuses
            records = (r for lines in self._manifests.records().values() for r in lines if r["kind"] == "failure")
            return {key: {name: record[name] for name in ("reason", "log_tail", "time")}
                    for record in sorted(records, key=lambda r: r["time"])
                    for key in record["run_ids"] if key not in finished}

    def registered(self) -> dict[str, dict[str, RunSpec]]:
        """For every registered sweep the runs that it asks for, by run_id.

        Warns:
          StoreWarning: a registration is damaged; it is set aside, and made again by the next `register`.
        """
        with one_line(self.path):
            return {name: {key: from_dict(RunSpec, json.loads(text)) for key, text in content.items()}
                    for name, content in self._registrations().items()}

    def status(self) -> dict[str, Any]:
        """What has become of every run that was asked for or that is here.

        Returns:
          `counts`: {done, diverged, running, failed, missing, total}; a run that finished is never counted as anything
          else, one that is being run again is running rather than failed. `run_ids`: the same keys to sorted lists.
          `sweeps`: registered name to counts. `failures`: as `failures()`. `workers`: living processes, with host, pid,
          since, beat (seconds since the epoch) and run_ids.
        """
        with one_line(self.path):
            finished = self._catalogue().statuses
            asked = {name: set(content) for name, content in self._registrations().items()}
            workers = locking.leases(self.path / "leases")
        failures = self.failures()
        running = {key for worker in workers for key in worker["run_ids"]}

        def state(key: str) -> str:
            return finished.get(key) or ("running" if key in running else "failed" if key in failures else "missing")

        def sorted_by_state(keys: Iterable[str]) -> dict[str, list[str]]:
            lists: dict[str, list[str]] = {name: [] for name in STATES}
            for key in sorted(keys):
                lists[state(key)].append(key)
            return lists

        def counts(lists: Mapping[str, list[str]]) -> dict[str, int]:
            return {**{name: len(keys) for name, keys in lists.items()}, "total": sum(map(len, lists.values()))}

        lists = sorted_by_state(running.union(finished, failures, *asked.values()))
        sweeps = {name: counts(sorted_by_state(keys)) for name, keys in asked.items()}
        return {"store": str(self.path), "counts": counts(lists), "run_ids": lists, "sweeps": sweeps, "failures": failures, "workers": workers}

    def export(self, out: str | os.PathLike[str], table: str = "runs") -> None:
        """Writes a table to a .csv or .parquet file, whole or not at all.

        Raises:
          StoreError: another suffix, no such table, or the file cannot be written.
        """
        out = Path(out)
        if out.suffix not in (".csv", ".parquet"):
            raise StoreError(f"{out}: cannot write {out.suffix or 'a file without suffix'}; legal: .csv, .parquet; name the file with one of these")
        content = columnar.to_bytes(self.table(table), out.suffix)
        with one_line(out):
            write_whole(out, content)

    # -- checkpoints of packs in progress -----------------------------------------------------------------------------

    def checkpoint_dir(self, pack_id: str) -> Path:
        """Where the checkpoints of a pack are kept; the directory itself is made by whoever writes them."""
        return self.path / "checkpoints" / _legal(pack_id, "pack")

    def checkpoints(self) -> list[str]:
        """The packs that have a checkpoint directory."""
        with one_line(self.path):
            return sorted(name for name in os.listdir(self.path / "checkpoints") if _NAME.fullmatch(name))

    def remove_checkpoints(self, pack_id: str) -> None:
        """Removes the checkpoints of a pack, if there are any; a half-removed one is never seen."""
        path = self.checkpoint_dir(pack_id)
        with one_line(path), contextlib.suppress(FileNotFoundError):  # another process may have been faster
            doomed = path.with_name(f".removed-{secrets.token_hex(8)}")
            os.rename(path, doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _catalogue(self) -> catalogue.Catalogue:
        return catalogue.build(self.path, self._manifests.records())

    def _record(self, record: dict[str, Any]) -> None:
        """Appends a line to the manifest of this process; after an error, later lines go to a new file."""
        with self._appending:
            if self._manifest is None or self._manifest[0] != os.getpid():  # a fork writes its own
                name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
                self._manifest = (os.getpid(), self.path / "manifest" / name)
            try:
                append_line(self._manifest[1], {**record, "time": time.time()})
            except BaseException:
                self._manifest = None
                raise

    def _registrations(self) -> dict[str, dict[str, str]]:
        """Registered name to {run_id: canonical JSON}."""
        found = {}
        for path in sorted((self.path / "sweeps").glob("[!.]*.json")):
            head, _, body = path.read_bytes().partition(b"\n")
            try:
                if json.loads(head)["sha256"] != catalogue.digest(body.removesuffix(b"\n")):
                    raise ValueError("wrong checksum")
                found[path.stem] = json.loads(body)
            except (ValueError, KeyError, TypeError):
                with contextlib.suppress(OSError):
                    os.rename(path, self.path / "set-aside" / path.name)
                warnings.warn(f"{path}: damaged, moved to set-aside/; run the sweep {path.stem} again to register it",
                              StoreWarning, stacklevel=3)
        return found

    def _tidy(self) -> None:
        """Repairs damaged manifests and removes temporary files an hour old; only under the lock of `writer`."""
        if not locking.leases(self.path / "leases"):  # another launcher's workers append to theirs
            self._manifests.repair(self.path / "set-aside")
        for path in itertools.chain(*((self.path / name).glob(".[tr][me][mp]*-*") for name in (".", *_FOLDERS))):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > 3600:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _format(content: bytes) -> int:
    """The format that a store.json names; 0 if it is damaged."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return int.__index__(json.loads(content)["scalemem_store"])
    return 0


def _legal(name: str, what: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise StoreError(f"{what} {str(name)[:80]!r}: must be 1 to 128 letters, digits, dots, dashes or underscores; rename it")
    return name


def _checked(table: str, rows: Any) -> Any:
    _legal(table, "table")
    if table == "runs" and isinstance(rows, columnar.Block):
        raise StoreError("table runs: a block of columns; must be rows, one a run; pass a list of dicts")
    seen: set[str] = set()
    for number, key in enumerate(columnar.run_ids(rows)):
        if not isinstance(key, str) or not key:
            number = list(rows.get("run_id", [key])).index(key) if isinstance(rows, columnar.Block) else number
            raise StoreError(f"table {table}, row {number}: run_id = {str(key)[:80]!r}; must be a string; set it to run_id(run)")
        if table == "runs":
            row = rows[number]
            if row.get("status") not in STATUSES:
                raise StoreError(f"table runs, row {number}: status = {str(row.get('status'))[:80]!r}; must be {' or '.join(STATUSES)}; set it")
            if key in seen:
                raise StoreError(f"table runs, row {number}: run_id {key} twice; one row a run; drop one")
            seen.add(key)
    return rows
