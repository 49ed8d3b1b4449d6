"""An analysis of some runs at a time: of each schedule, of each seed, of whatever a study varies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scalemem import tables as columns
from scalemem.spec import SpecError, from_json, to_dict

if TYPE_CHECKING:
    import pyarrow as pa


def analyse(tables: Mapping[str, pa.Table], *, analysis: str, by: Sequence[str], options: Mapping[str, Any]) -> pa.Table:
    """Another analysis, of the runs of each combination of values by itself.

    Args:
      tables: "runs", and measures by name.
      analysis: of `ANALYSES`.
      by: columns of the runs, or fields of their specs, such as "placement"; a name that several fields end in must be written longer.
      options: of that analysis.
    Returns:
      its rows, combination after combination, with the values of `by` as columns; a combination whose rows allow no answer is left out.
    Raises:
      SpecError: an unknown analysis, option or name. RowsError: of the last combination, if none has an answer.
    """
    import pyarrow as pa

    from scalemem import analyses

    analyses.check(analysis, options)
    found, empty = [], columns.RowsError("no run has finished; run the sweep")
    for key, part in parts(tables, by):
        try:
            made = analyses.run(analysis, part, options)
        except columns.RowsError as error:  # runs of another suite, say, that `where` leaves out
            empty = error
            continue
        for name, value in reversed(key.items()):
            if name not in made.column_names:
                made = made.add_column(0, name, pa.array([value] * made.num_rows, pa.array([value]).type))
        found.append(made)
    if not found:
        raise empty
    return pa.concat_tables(found, promote_options="permissive")


def parts(tables: Mapping[str, pa.Table], by: Sequence[str]) -> Iterator[tuple[dict[str, Any], Mapping[str, pa.Table]]]:
    """({name: value}, the tables of the runs that have it), in sorted order."""
    import pyarrow as pa

    runs = tables["runs"]
    if not by:
        raise SpecError("analysis.by = []: must name at least one column of the runs or field of their specs; name one")
    for name in by:
        if name not in runs.column_names:
            runs = runs.append_column(name, pa.array([_field(spec, name) for spec in runs["spec"].to_pylist()]))
    for key, rows in columns.groups(runs, by, np.ones(runs.num_rows, bool)):
        own = runs["run_id"].combine_chunks().take(pa.array(rows))
        yield key, _Part(tables, own)


class _Part(Mapping):
    """The rows of some runs in each table, chosen when a table is asked for: it may be one that another analysis of the study has yet to make."""

    def __init__(self, tables: Mapping[str, pa.Table], runs: pa.Array):
        self.tables, self.runs, self.chosen = tables, runs, {}

    def __getitem__(self, name: str) -> pa.Table:
        import pyarrow.compute as pc

        if name not in self.chosen:
            table = self.tables[name]
            if "run_id" not in table.column_names:
                raise columns.TableError(f"table {name!r}: has no column run_id, so its rows are of no run; name another")
            self.chosen[name] = table.filter(pc.is_in(table["run_id"], value_set=self.runs))  # type: ignore[attr-defined]
        return self.chosen[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tables)

    def __len__(self) -> int:
        return len(self.tables)

    def __contains__(self, name: object) -> bool:
        return name in self.tables


def _field(spec: str, name: str) -> Any:
    """The value of a field of a run, from the JSON of its spec, by its path or the end of it that is unique."""
    leaves = dict(_leaves(to_dict(from_json(spec))))
    ends = [path for path in leaves if f".{path}".endswith(f".{name}")]
    if len(ends) != 1:
        legal = f"one of {', '.join(ends)}" if ends else "a column of the runs or a field of their specs"
        raise SpecError(f"analysis.by = {name!r}: must be {legal}; correct the name")
    return leaves[ends[0]]


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, (dict, list)):
        for name, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _leaves(child, f"{path}.{name}" if path else str(name))
    else:
        yield path, node
