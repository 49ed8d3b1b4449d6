"""A study is three files of one name: `sims/NAME.py`, `fits/NAME.toml`, `figures/NAME.py`. They are found, run and judged here."""

from __future__ import annotations

import json
import math
import runpy
import tomllib
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scalemem import claims, tables
from scalemem.durable import write_whole
from scalemem.expressions import missing
from scalemem.spec import SpecError, run_id
from scalemem.store import Store
from scalemem.sweep import Sweep

if TYPE_CHECKING:
    import pyarrow as pa

SCALES = ("smoke", "laptop", "hour", "gpu")
_SUFFIX = {"sims": ".py", "fits": ".toml", "figures": ".py"}
CONVERGED = 0.95  # of the limit
_SHOW = "title:text! group:list! columns:list! where:text limit:text of:text best:text table:text"


def folders() -> list[Path]:
    """Where studies are looked for: here, then the checkout that this package is in, then what its wheel carries."""
    package = Path(__file__).parent
    return [Path.cwd(), package.parent, package / "studies"]


def find(name: str, kind: str) -> Path:
    """The file of a study; `name` may also be a path to a .py or .toml file of one's own. SpecError if there is none."""
    direct = Path(name)
    if direct.suffix == _SUFFIX[kind] and direct.is_file():
        return direct
    for folder in folders():
        path = folder / kind / f"{name}{_SUFFIX[kind]}"
        if path.is_file():
            return path
    raise SpecError(f"study = {name!r}: must be one of {', '.join(names()) or 'none found'}, or a path to a {_SUFFIX[kind]} file; "
                    "check the name (scalemem studies lists them)")


def names() -> list[str]:
    """Names of the studies that are found, each with its sims and fits files."""
    found: dict[str, None] = {}
    for folder in folders():
        for path in sorted((folder / "sims").glob("*.py")):
            if any((f / "fits" / f"{path.stem}.toml").is_file() for f in folders()):
                found[path.stem] = None
    return list(found)


def sweep(name: str, scale: str) -> Sweep:
    """The sweep of a study at a scale.

    Raises:
      SpecError: no such study, no SWEEP in the file, no such scale, or an error in the file, with its line.
    """
    path = find(name, "sims")
    try:
        defined = runpy.run_path(str(path)).get("SWEEP")
    except (SpecError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise _in_file(path, error) from None
    scales = tuple(map(str, defined)) if isinstance(defined, Mapping) else SCALES
    if scale not in scales:
        raise SpecError(f"scale = {scale!r}: must be one of {', '.join(scales)} for {name}; choose one of these")
    if isinstance(defined, Mapping):
        defined = defined[scale]
    if not isinstance(defined, Sweep):
        raise SpecError(f"{path}: SWEEP = {defined!r:.60}: must be a Sweep, or a dict of scale to Sweep; define it")
    return defined


def _in_file(path: Path, error: BaseException) -> SpecError:
    """An error that a study's own file raised, in one line with the file's line."""
    lines = [t.lineno for t in traceback.extract_tb(error.__traceback__) if t.filename == str(path)]
    line = lines[-1] if lines else getattr(error, "lineno", None)
    return SpecError(f"{path}, line {line}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}; mend the file")


def definition(name: str, scale: str = "laptop") -> dict[str, Any]:
    """The parsed fits file of a study: what `claims.evaluate` reads, and its `title`, `source` and `show` tables.

    Args:
      name: the study.
      scale: sections that are for other scales (`scales = ["gpu"]`) are left out.
    Raises:
      SpecError: no such study, or a malformed file.
    """
    path = find(name, "fits")
    try:
        found = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: {error}; mend the TOML") from None
    for key, entries in found.items():
        if isinstance(entries, list):
            kept = [e for e in entries if not isinstance(e, dict) or scale in e.get("scales", SCALES)]
            found[key] = [{k: v for k, v in e.items() if k != "scales"} if isinstance(e, dict) else e for e in kept]
    claims.check(_judged(found))
    for i, section in enumerate(found.get("show", [])):
        claims.check_keys(f"show[{i}]", section, _SHOW)
    return found


def _judged(found: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a fits file that `claims` reads; the others are the study's own."""
    return {k: v for k, v in found.items() if k not in ("title", "source", "show")}


def runs_table(store: Store, sweep: Sweep) -> pa.Table:
    """The finished, not diverged runs of a sweep as a table; of a tuned axis, those at the best value.

    Raises:
      StoreError: no run has finished.
    """
    table, wanted = store.table("runs"), {run_id(run) for run in sweep.runs()}
    table = sweep.reduce_tuned(table.filter([key in wanted for key in table["run_id"].to_pylist()]))
    return table.filter([status == "done" for status in table["status"].to_pylist()])


class Measured(Mapping):
    """The tables of the measures of a study's runs, by name, each read when it is first asked for."""

    def __init__(self, store: Store, runs: pa.Table):
        self.store, self.runs = store, runs
        self.names = [name for name in store.tables() if name != "runs"]
        self.read: dict[str, pa.Table] = {}

    def __getitem__(self, name: str) -> pa.Table:
        import pyarrow.compute as pc

        if name not in self.names:
            raise KeyError(name)
        if name not in self.read:
            table = self.store.table(name)
            self.read[name] = table.filter(pc.is_in(table["run_id"], value_set=self.runs["run_id"].combine_chunks()))  # type: ignore[attr-defined]
        return self.read[name]

    def __iter__(self):
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names


def evaluate(name: str, scale: str, table: pa.Table, measured: Mapping[str, pa.Table] | None = None) -> claims.StudyResult:
    """Fits, forecasts and verdicts of a study at a scale, on the table of its runs and those of their measures."""
    return claims.evaluate(_judged(definition(name, scale)), table, measured)


def shown(name: str, scale: str, table: pa.Table, result: claims.StudyResult) -> list[dict[str, Any]]:
    """The tables of the `show` sections: {"title", "columns", "rows"}; means over seeds, and the number of rows behind each.

    A section has title, group, columns, where, and `table`: the runs, or what an analysis or a reduce made; `limit` = "fit.parameter" with `of`
    adds `converged`; `best` marks the largest row a size.
    """
    head = definition(name, scale)
    for entry in head.get("derive", []):
        if entry.get("table", "runs") == "runs":
            table = tables.derive(table, entry["name"], entry["expression"], entry.get("unit", ""))
    sources = {**result.tables, "runs": table}
    sections = [section for section in head.get("show", []) if section.get("table", "runs") in sources]
    made = (_show(section, sources[section.get("table", "runs")], result) for section in sections)
    return [content for content in made if content["rows"]]


def _show(section: dict[str, Any], table: pa.Table, result: claims.StudyResult) -> dict[str, Any]:
    keep = tables.mask(table, section.get("where"))
    columns = {}
    for name in section["columns"]:
        known = keep & ~missing(tables.load(table, name))  # a mean is over the rows that have a value
        columns[name] = np.full(table.num_rows, np.nan)
        columns[name][known] = tables.column(table, name, keep=known)
    rows, counted = [], "runs" if section.get("table", "runs") == "runs" else "rows"
    for key, index in sorted(tables.groups(table, section["group"], keep), key=lambda kr: tuple(kr[0].values())):
        row = dict(key) | {name: _mean(values[index]) for name, values in columns.items()} | {counted: len(index)}
        if "limit" in section:
            row["converged"] = _converged(section, row, result)
        rows.append(row)
    if "best" in section:
        size = section["group"][:-1]
        for row in rows:
            same = [r[section["best"]] for r in rows if all(r[k] == row[k] for k in size)]
            row["largest"] = "yes" if row[section["best"]] == max(same) else ""
    return {"title": section["title"], "columns": list(rows[0]) if rows else [], "rows": rows}


def _mean(values: np.ndarray) -> float:
    """The mean of those that are numbers, NaN if none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _converged(section: dict[str, Any], row: dict[str, Any], result: claims.StudyResult) -> str:
    fit_name, parameter = section["limit"].split(".")
    fit = result.fits.get(fit_name)
    for group in fit.groups if fit else ():
        if all(row.get(k) == v for k, v in group.key.items()):
            limit = group.parameters[parameter].value
            if math.isfinite(limit):
                share = row[section["of"]] / limit
                return f"yes, {share:.0%}" if share >= CONVERGED else f"no, {share:.0%}"
    return "unknown"


def save(path: Path, name: str, scale: str, table: pa.Table, result: claims.StudyResult) -> dict[str, Any]:
    """Writes and returns the result of a study as JSON: definition, fits, forecasts, claims with verdicts, tables."""
    head = definition(name, scale)
    body = {"study": name, "scale": scale, "title": head.get("title", ""), "source": head.get("source", ""), "n_runs": table.num_rows,
            "command": f"scalemem study {name} --scale {scale}", **result.to_json(), "tables": shown(name, scale, table, result)}
    for fit in body["fits"].values():  # what a forecast needs is made again from the store; here it would be most of the file
        fit["groups"] = [{k: v for k, v in group.items() if k != "posterior"} for group in fit["groups"]]
    write_whole(path, json.dumps(body, indent=1).encode() + b"\n")
    return body


def last(name: str) -> dict[str, Any]:
    """The last result of a study: of this folder's runs, or else of those kept in `fits/results`, the largest scale first; or {}."""
    for folder in [Path("runs") / name, *(f / "fits" / "results" for f in folders())]:
        for scale in reversed(SCALES):
            try:
                return json.loads((folder / f"{name}.{scale}.json").read_bytes())
            except (OSError, ValueError):
                continue
    return {}


def figure(name: str, table: pa.Table, result: claims.StudyResult, out: Path) -> Path:
    """Draws the figure of a study: its file defines `draw(table, result) -> matplotlib Figure`.

    Raises:
      SpecError: an error in that file, with its line, or a name whose ending is no format of pictures.
    """
    from scalemem import plot

    path = find(name, "figures")
    with plot.style():
        try:
            runpy.run_path(str(path))["draw"](table, result).savefig(out, dpi=200)
        except (OSError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise _in_file(path, error) from None
    return out
