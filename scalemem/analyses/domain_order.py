"""Domains learned one after another: what each stage does to the others, by their distance, and what the order leaves at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from scalemem.analyses import panel
from scalemem.spec import from_json
from scalemem.tables import RowsError, TableError

if TYPE_CHECKING:
    import pyarrow as pa

DOMAIN = 1 << 20  # items of a domain, as in scalemem.data.domains


def _learned(spec: str) -> list[int]:
    """The domain that each stage of a run learns."""
    return [stage.data.first // DOMAIN for stage in from_json(spec).stages]


def _runs(tables: Mapping[str, pa.Table], table: str, value: str) -> list[tuple[dict[str, Any], list[int], np.ndarray]]:
    """Of each run: its row, the domains in the order in which they were learned, and losses [stages + 1, domains]."""
    source, found = panel.table_of(tables, table), []
    about = panel.runs(tables)
    for key, rows in panel.by(source, ["run_id"]):
        if key["run_id"] not in about:
            continue
        run = about[key["run_id"]]
        order = _learned(run["spec"])
        stage, step, domain, loss = (panel.number(rows, name) for name in ("stage", "stage_step", "domain", value))
        count = int(domain.max()) + 1
        losses = np.full((len(order) + 1, count), np.nan)
        for s in range(len(order)):
            for row, at in ((0, 0.0), (s + 1, step[stage == s].max(initial=0.0))):
                if row or s == 0:
                    here = (stage == s) & (step == at)
                    losses[row, domain[here].astype(int)] = loss[here]
        if np.isnan(losses).any():
            raise RowsError(f"table {table!r}, run {key['run_id']}: a domain was not measured before and after every stage; probe at stages")
        found.append((run, order, losses))
    if not found:
        raise TableError(f"table {table!r}: no run of it is in the table of runs; measure some")
    return found


def _kind(order: list[int]) -> str:
    """similar: each domain is next to the one before; else shuffled."""
    return "similar" if all(abs(a - b) == 1 for a, b in zip(order[1:], order, strict=False)) else "shuffled"


def analyse(tables: Mapping[str, pa.Table], *, table: str = "domains", value: str = "excess_nats") -> pa.Table:
    """A row a run: what a sequence of domains leaves of them, in nats a token above the source.

    With L[t, d] the value on domain d after the t-th stage, t = 1..T, and d_t the domain that it learned:
    last_nats = mean over the domains learned of L[T, d]; just_trained_nats = mean of L[t, d_t]; backward_nats = mean over t < T of
    L[T, d_t] - L[t, d_t], forgetting where it is above 0; learned_nats = mean of L[t - 1, d_t] - L[t, d_t]; forward_nats = mean over t > 1 of
    L[0, d_t] - L[t - 1, d_t], what the stages before had given a domain; forgotten_fraction = backward_nats / learned_nats.

    Args:
      tables: `table` as the measure domains gives it, and `runs`.
      value: a loss, lower is better.
    Returns:
      seed, n_params, order (similar or shuffled), shuffled (0 or 1), and the above.
    Raises:
      SpecError: no such table; RowsError: a domain not measured before and after every stage; TableError: no run of the table of runs.
    Source: what is compared is of Yildiz et al. 2024 (arXiv 2402.17400), shared/literature/forgetting.md 4.17: perplexity on the domain just trained,
      that of the last checkpoint, and backward transfer.
    """
    rows = []
    for run, order, losses in _runs(tables, table, value):
        t, d = np.arange(len(order)), np.asarray(order)
        just, before = losses[t + 1, d], losses[t, d]
        backward = (losses[-1, d] - just)[:-1].mean()
        rows.append({"seed": run["seed"], "n_params": run["n_params"], "order": _kind(order), "shuffled": int(_kind(order) == "shuffled"),
                     "last_nats": losses[-1, np.unique(d)].mean(), "just_trained_nats": just.mean(), "backward_nats": backward,
                     "learned_nats": (before - just).mean(), "forward_nats": (losses[0, d] - before)[1:].mean(),
                     "forgotten_fraction": backward / (before - just).mean()})
    return panel.rows(rows, tuple(rows[0]))


def transfer(tables: Mapping[str, pa.Table], *, table: str = "domains", value: str = "excess_nats") -> pa.Table:
    """The transfer matrix: what learning one domain does to each other one, a row a run, stage after the first, and domain.

    change_nats = L[t, d] - L[t - 1, d]: above 0 is harm. `seen` is 1 for domains that an earlier stage had learned; distance = |d_t - d|.

    Args:
      as of `analyse`.
    Returns:
      seed, n_params, order, stage, learned (d_t), domain, distance, seen, change_nats.
    Raises:
      as `analyse`.
    """
    rows = []
    for run, order, losses in _runs(tables, table, value):
        for t in range(1, len(order)):
            for d in range(losses.shape[1]):
                rows.append({"seed": run["seed"], "n_params": run["n_params"], "order": _kind(order), "stage": t, "learned": order[t], "domain": d,
                             "distance": abs(order[t] - d), "seen": int(d in order[:t]), "change_nats": losses[t + 1, d] - losses[t, d]})
    return panel.rows(rows, tuple(rows[0]))
