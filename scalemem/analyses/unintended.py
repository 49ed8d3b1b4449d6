"""Unintended memorization against a reference model: what a model says of the sequences it was trained on beyond what another one knows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scalemem import tables as columns
from scalemem.analyses import panel as panels
from scalemem.analyses import roc
from scalemem.spec import SpecError, from_json, to_dict
from scalemem.tables import RowsError

if TYPE_CHECKING:
    import pyarrow as pa

FREE = {"copies", "ratio", "include", "placement"}  # what canaries may differ in and be the same sequences
NUMBERS = {"per_group", "groups", "controls"}  # and these, where no ladder of temperatures is laid over a group
COLUMNS = ("n_count", "controls_count", "references_count", "reference_bits", "memorized_bits", "control_bits", "signed_bits",
           "memorized_fraction", "total_bits", "excess_total_bits", "data_bits", "data_bits_per_param", "held_out_nats", "loss_auc", "loss_f1",
           "reference_auc")


def analyse(tables: Mapping[str, pa.Table], *, reference: str, table: str = "likelihood", where: str | None = None, match: Sequence[str] = (),
            carry: Sequence[str] = ()) -> pa.Table:
    """Bits of the tracked sequences that a run holds beyond its reference, the larger of the two probabilities taken for a whole sequence.

    With p the run's probability of a sequence and q the reference's (the mean of the probabilities of several references),

        memorized = max(0, log2 p - log2 q),    signed = log2 p - log2 q,    reference = -log2 q,

    averaged over the planted sequences; control_bits is the first of those that the run never saw: what the maximum makes of chance.
    total = n memorized and excess_total = n (memorized - control) extend the means to the n_items sequences of the training set, of which
    planted ones of one copy are a sample; data_bits = n reference.

    Args:
      tables: "runs", with their specs, and a table with run_id, exposures, canary, planted and nats; canaries are shared.
      reference: which of the runs are references, an expression on their columns; the last checkpoint of each is taken, and of a
        sequence that a reference was itself trained on nothing.
      table, where: the table of the other runs' sequences, and which of its rows.
      match: columns of the runs in which a run and its references must be equal.
      carry: further columns of the runs to be taken along.
    Returns:
      a row for each checkpoint of the other runs that planted any: run_id, seed, n_params, n_items, exposures, the carried, n_count
      planted, controls_count, references_count; reference_bits, memorized_bits, control_bits and signed_bits a sequence;
      memorized_fraction, memorized over reference; total_bits, excess_total_bits, data_bits, data_bits_per_param; held_out_nats a
      control sequence; loss_auc and loss_f1 of a threshold on the loss, reference_auc of one on signed, planted against controls
      (`roc.evaluate`). NaN without any.
    Raises:
      SpecError: no such table. TableError: a column that is none. RowsError: no reference, or one of other sequences.
    Source: Morris et al. 2025 (arXiv 2505.24832), definitions in the plug-in form; the subtraction of controls: derived.
    """
    runs = panels.runs(tables)
    for name in (*match, *carry):
        columns.load(tables["runs"], name)  # its errors
    chosen = {key for key, is_one in zip(tables["runs"]["run_id"].to_pylist(), columns.mask(tables["runs"], reference), strict=True) if is_one}
    known = _references(tables, table, runs, chosen, match, reference)
    rows = []
    for key, part in panels.by(panels.table_of(tables, table, where), ["run_id", "exposures"]):
        run = runs.get(key["run_id"])
        if run is None or key["run_id"] in chosen or not (panels.truth(part, "planted") == 1).any():
            continue
        which = tuple(run[name] for name in match)
        if which not in known:
            raise RowsError(f"run {key['run_id']}: no reference ({reference}) has its {', '.join(match)} = {', '.join(map(str, which))}; "
                            "run one, or loosen match")
        sequences, log_q = known[which]
        if sequences[0] != (own := _sequences(run)):
            raise RowsError(f"run {key['run_id']}: tracks other sequences than its reference: {_difference(own, sequences[0])}; make them equal")
        rows.append({**key, **{name: run[name] for name in ("seed", "n_params", "n_items", *carry)}, "references_count": sequences[1],
                     **_compared(part, log_q, run)})
    rows.sort(key=lambda row: (row["n_params"], row["n_items"], row["seed"], row["exposures"]))
    return panels.rows(rows, ("run_id", "seed", "n_params", "n_items", "exposures", *carry, *COLUMNS))


def _references(tables: Mapping[str, pa.Table], table: str, runs: Mapping[str, Any], chosen: set[str], match: Sequence[str],
                reference: str) -> dict[tuple[Any, ...], tuple[Any, dict[int, float]]]:
    """{values of match: ((sequences, number of references), {canary: log2 of its mean probability})}."""
    found: dict[tuple[Any, ...], list[tuple[str, dict[int, float]]]] = {}
    for key, part in panels.by(panels.last(panels.table_of(tables, table)), ["run_id"]):
        if (name := key["run_id"]) in chosen:
            fresh = part.filter(panels.truth(part, "planted") == 0)
            bits = dict(zip(panels.number(fresh, "canary").astype(int).tolist(), (-panels.number(fresh, "nats") / math.log(2)).tolist(), strict=True))
            found.setdefault(tuple(runs[name][m] for m in match), []).append((name, bits))
    if not found:
        raise RowsError(f"runs: no reference: none satisfies {reference!r} and has rows in {table!r}; run one, or correct the expression")
    made = {}
    for which, members in found.items():
        sequences = [_sequences(runs[name]) for name, _ in members]
        for other in sequences[1:]:
            if other != sequences[0]:
                raise RowsError(f"run {members[0][0]}: another reference tracks other sequences: {_difference(other, sequences[0])}; "
                                "split them by match")
        common = set.intersection(*(set(bits) for _, bits in members))
        log_q = {i: float(np.logaddexp2.reduce([bits[i] for _, bits in members]) - math.log2(len(members))) for i in common}
        made[which] = (sequences[0], len(members)), log_q
    return made


def _sequences(run: Mapping[str, Any]) -> dict[str, Any]:
    """What decides which sequences a run tracks, beyond their numbers."""
    spec = from_json(run["spec"])
    data = to_dict(spec.stages[0].data)
    canaries = data.pop("canaries")
    if not canaries or not canaries["shared"] or canaries["offset"] > 0:
        raise SpecError("data.canaries: must be shared by all runs and begin their sequences for a comparison with a reference; "
                        "write shared = true and offset = 0")
    free = FREE if canaries["kind"] == "trap" else FREE | NUMBERS
    del data["n_items"]
    return {**data, **{f"canaries.{k}": v for k, v in canaries.items() if k not in free}, "vocab_size": spec.model.vocab_size,
            "seq_len": spec.model.seq_len}


def _difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {a.get(name)!r} and {b.get(name)!r}" for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name))


def _compared(part: pa.Table, log_q: Mapping[int, float], run: Mapping[str, Any]) -> dict[str, float]:
    q = np.array([log_q.get(int(i), math.nan) for i in panels.number(part, "canary")])
    keep = np.isfinite(q)
    log_p, q, planted = -panels.number(part, "nats")[keep] / math.log(2), q[keep], panels.truth(part, "planted")[keep] == 1
    signed, n = log_p - q, int(run["n_items"])
    held = np.maximum(signed, 0)
    memorized, control, bits = _mean(held[planted]), _mean(held[~planted]), _mean(-q[planted])
    loss = roc.evaluate(log_p, planted)
    return {"n_count": int(planted.sum()), "controls_count": int((~planted).sum()), "reference_bits": bits, "memorized_bits": memorized,
            "control_bits": control, "signed_bits": _mean(signed[planted]), "memorized_fraction": memorized / bits if bits else math.nan,
            "total_bits": n * memorized, "excess_total_bits": n * (memorized - control), "data_bits": n * bits,
            "data_bits_per_param": n * bits / run["n_params"], "held_out_nats": -_mean(log_p[~planted]) * math.log(2), "loss_auc": loss["auc"],
            "loss_f1": loss["f1"], "reference_auc": roc.evaluate(signed, planted)["auc"]}


def _mean(x: np.ndarray) -> float:
    return float(np.mean(x)) if len(x) else math.nan
