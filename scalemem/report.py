"""A report of a fit that fills in the checklist of scaling-law fits by itself: what was fitted, to what, how, and how far it can be trusted.

The items are those that the project's issue 3 names after (Mis)Fitting (Li et al. 2025). What no table says, such as how parameters were
counted, is taken from notes, and is otherwise reported as not stated: nothing is guessed. The text depends on the fit alone: no clock.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from scalemem import tables
from scalemem.averaging import AUTO, law_of
from scalemem.fitting import Fit, plain
from scalemem.laws import refit
from scalemem.laws.base import Law
from scalemem.tables import TableError

NOT_STATED = "not stated by the table"
COUNTED = {"n": "how parameters (N) were counted", "d": "how data (D) were counted", "c": "how compute (C) was counted"}
KEYS = (*COUNTED, "exclusions")
SOFTWARE = ("scalemem", "numpy", "scipy", "pyarrow")
SQUARES = "the sum over rows of ({scale}(y) - {scale}(f))^2"
LOSSES = {  # the formulas of `laws.losses`, by kind
    "log": SQUARES.format(scale="log"), "linear": "the sum over rows of (y - f)^2",
    "huber": "the sum over rows of Huber's function of log f - log y",
    "asymmetric": "the sum over rows of (log y - log f)^2, weighted T above the law and 1 - T below it, twice",
    "binomial": "the binomial -log likelihood of the counts", "beta_binomial": "the beta-binomial -log likelihood of the counts",
}
SEARCH = {"optimizer": "Levenberg-Marquardt steps with exact slopes, float64, from every start of the law (scalemem.laws.refit)",
          "stopping": f"a step that promises less than 1e-14 of the objective, or {refit.MOST} steps"}
INTEGRATED = {"optimizer": "none: the parameter with a prior is integrated out, the linear ones in closed form (scalemem.laws.quadrature)",
              "stopping": "not applicable"}
AVERAGED = "no search: {tried} curves weighed by their evidence, {kept} of them kept (scalemem.averaging)"


def notes(given: Mapping[str, str]) -> dict[str, str]:
    """Notes with the checklist's keys in lower case. Raises TableError for text that is too long for a line.

    >>> notes({"N": "without embeddings"})
    {'n': 'without embeddings'}
    """
    for key, text in given.items():
        if len(text) > 1000 or not key.strip():
            raise TableError(f"--note {key[:40]!r}: must be a key and at most 1000 characters of text; shorten it")
    return {key.lower() if key.lower() in KEYS else key: " ".join(text.split()) for key, text in given.items()}


def check(path: str) -> None:
    """Refuses a report file of another kind, before anything is fitted."""
    if Path(path).suffix not in (".md", ".json"):
        raise TableError(f"--report {path!r}: must end in .md or .json; rename it")


def report(found: Fit, table: Mapping[str, Any]) -> dict[str, Any]:
    """The checklist of a fit as plain JSON, a section an item.

    Args:
      found: the fit, with its back-test where there is one.
      table: what was done to its table: `prepare.Prepared.to_json`, the counts of `repeats.count`, and "notes" {key: text}.
    Returns:
      {section: {item: value}}; in the sections of the fit, a list with a row for each group.

    >>> import pyarrow as pa
    >>> from scalemem.fitting import fit
    >>> t = pa.table({"n": [1., 2., 4., 8.], "bits": [3.1, 5.9, 12.2, 23.9]})
    >>> r = report(fit(t, "power", y="bits", x="n"), {"source": "a.csv", "rows": 4, "used": 4})
    >>> r["form"]["formula"], r["counting"]["how parameters (N) were counted"]
    ('y = a x^b', 'not stated by the table')
    """
    law, said = law_of(found.law, found.x), dict(table.get("notes") or {})
    kind = found.loss.partition(":")[0]
    kind = law.scale if kind == "squared" else kind
    made = sorted({g.interval_by for g in found.groups if g.interval_by}) or ["not stated by the fit"]
    groups = [{"group": tables.key_text(g.key), **plain(g)} for g in found.groups]
    return plain({
        "form": {"law": law.name, "formula": law.formula, "y": found.y, "predictors": dict(found.x), "parameters": list(law.names),
                 "as the predictors grow": law.asymptote or "not stated by the law",
                 "not identified by": law.unidentifiable or "not stated by the law", "source of the law": law.source or "not stated by the law"},
        "data": {"source": table.get("source", NOT_STATED), "rows": table.get("rows"), "rows used": sum(g.n_rows for g in found.groups),
                 "derived columns": dict(table.get("derived") or {}), "units given": dict(table.get("units") or {}),
                 "fitted apart by": list(found.group), "fingerprint": found.fingerprint},
        "ranges": [{"group": g["group"], "rows": g["n_rows"], **g["ranges"]} for g in groups],
        "exclusions": {"filters": [f"{f['filter']}: {f['dropped']} rows dropped" for f in table.get("filters") or ()],
                       "rows dropped": found.dropped, "reasons": said.pop("exclusions", NOT_STATED if found.dropped else "nothing was excluded"),
                       "rows that repeat another in every column": table.get("duplicates"),
                       "rows that repeat another in group, x and y": table.get("copies"),
                       "rows counted as replicates (equal x, another y)": table.get("replicates")},
        "counting": {text: said.pop(key, NOT_STATED) for key, text in COUNTED.items()},
        "notes": said,
        "loss": {"name": found.loss, "minimised": LOSSES.get(kind, found.loss), "column of trials": found.trials,
                 "at the optimum": sum(g.objective for g in found.groups if g.posterior is not None),
                 "estimated with the law": {g["group"] or "all rows": g["nuisance"] for g in groups if g["nuisance"]} or "nothing"},
        "search": _search(found, law),
        "parameters": [{"group": g["group"], "parameter": k, **e} for g in groups for k, e in g["parameters"].items()],
        "bounds hit": [f"{g['group']}: {e['status']}".removeprefix(": ") for g in groups for e in g["parameters"].values()
                       if e["status"].startswith("on bound")],
        "intervals": {"probability": found.interval, "made by": "; ".join(made),
                      "p-value of lack of fit": {g["group"] or "all rows": g["lack_of_fit"] for g in groups}},
        "correlation": [{"group": g["group"], "parameter": k, **row} for g in groups for k, row in g["correlation"].items()],
        "validation": found.backtest or "none",
        "warnings": list(found.warnings),
        "software": {name: metadata.version(name) if name != "scalemem" else __import__("scalemem").__version__ for name in SOFTWARE}
        | {"python": platform.python_version()},
    })


def _search(found: Fit, law: Law) -> dict[str, Any]:
    tried, agreeing = sum(g.tried for g in found.groups), sum(g.agreeing for g in found.groups)
    if law.name == AUTO:
        return {"optimizer": AVERAGED.format(tried=tried, kept=agreeing), "stopping": "not applicable", "starts": "none"}
    starts = ", ".join(f"{p.name} in {list(p.starts)}" for p in law.parameters if p.starts) or "chosen from the data"
    again = sorted({g.interval_by for g in found.groups if g.interval_by.startswith("bootstrap")})
    refits = {"refits": f"{'; '.join(again)}: rows drawn with replacement (seed 0), each fitted from the optimum by the same steps"} if again else {}
    return {**(INTEGRATED if law.shape is not None else SEARCH), "starts": starts, "tried": tried, "agreeing": agreeing, **refits}


def text(content: Mapping[str, Any], suffix: str) -> str:
    """A report as JSON or, for the suffix .md, as Markdown.

    >>> print(text({"loss": {"at the optimum": 0.25}}, ".md"))
    # Fit report
    <BLANKLINE>
    ## Loss
    <BLANKLINE>
    - at the optimum: 0.25
    <BLANKLINE>
    """
    if suffix == ".json":
        return json.dumps(content, indent=1) + "\n"
    lines = ["# Fit report"]
    for title, body in content.items():
        lines += ["", f"## {title[0].upper()}{title[1:]}", "", *_section(body)]
    return "\n".join(lines) + "\n"


def _section(body: Any) -> list[str]:
    if isinstance(body, Mapping):
        return [f"- {k}: {_show(v)}" for k, v in body.items()] or ["- none"]
    if isinstance(body, list) and body and isinstance(body[0], Mapping):
        columns = [k for k in body[0] if any(row[k] not in ("", None) for row in body) or k != "group"]
        rows = [" | ".join(_show(row.get(k)).replace("|", "\\|") for k in columns) for row in body]
        return ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns), *(f"| {row} |" for row in rows)]
    return [f"- {_show(v)}" for v in body] or ["- none"] if isinstance(body, list) else [f"- {_show(body)}"]


def _show(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, Mapping):
        return "; ".join(f"{k} = {_show(v)}" for k, v in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        numbers = len(value) == 2 and all(isinstance(v, (int, float)) for v in value)
        return " to ".join(map(_show, value)) if numbers else "; ".join(map(_show, value)) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
