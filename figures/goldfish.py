"""Second halves of documents that come back word for word, and held-out loss, against the goldfish loss's K."""

import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa

from scalemem import plot

KINDS = {"hashed": ("hashed mask", "o"), "static": ("static mask", "s"), "random": ("mask drawn anew each time", "D")}


def draw(table, result):
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.9))
    losses = result.tables["losses"].to_pylist()
    hashed = sorted({r["left_out_count"] for r in losses if "hashed" in r["objective"]})
    none = 2 * hashed[-1]  # the place of the standard loss on the axis
    usual = {r["batch_size"] for r in losses if r["objective"] == "next_token"}
    for i, (kind, (label, marker)) in enumerate(KINDS.items()):
        rows = [r for r in losses if kind in r["objective"]]
        same = [r for r in rows if r["batch_size"] in usual]
        _points(left, same, "memorized_fraction_planted", label, plot.COLOURS[i], marker)
        _points(right, same, "held_out_loss_nats", label, plot.COLOURS[i], marker)
        if kind == "hashed":
            _points(right, [r for r in rows if r not in same], "held_out_loss_nats", "hashed, equal supervised tokens", plot.COLOURS[4], "^")
    standard = [{**r, "left_out_count": none} for r in losses if r["objective"] == "next_token" and r["include"] == 1]
    _points(left, standard, "memorized_fraction_planted", "standard loss", "black", "*")
    _points(right, standard, "held_out_loss_nats", "standard loss", "black", "*")
    without = [{**r, "left_out_count": none} for r in losses if r["include"] < 1]
    _points(right, without, "held_out_loss_nats", "standard, no documents", "0.6", "x")
    _points(left, [{**r, "left_out_count": none} for r in losses if r["objective"] == "next_token"], "memorized_fraction_controls",
            "standard, never planted", "0.6", "x")
    k = np.geomspace(hashed[0], hashed[-1], 200)
    first = losses[0]
    expected = (1 - (1 - 1 / first["vocab_size"]) / k) ** (first["seq_len"] / 2)
    left.plot(k, expected, color="0.4", linewidth=0.9, label="if left-out tokens are guessed")
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_xticks([*hashed, none], [*(f"{h:.0f}" for h in hashed), "none"])
        axis.set_xticks([], minor=True)
        axis.set_xlabel("K: one target in K is left out")
    seen = min(r["copies"] for r in losses)
    left.set(ylabel="second halves word for word", ylim=(-0.03, 1.03), title=f"{first['seq_len'] // 2} tokens, seen {seen} times")
    right.set(ylabel="held-out loss [nats a token]", title="Text that no document stands in")
    fig.legend(*_all(left, right), loc="outside lower center", ncols=4)
    return fig


def _points(axis, rows, column, label, colour, marker):
    if rows:
        plot.points(axis, pa.Table.from_pylist(rows), "left_out_count", column, label, colour, marker)


def _all(*axes):
    """Handles and labels of all axes, each label once."""
    found = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    return list(found.values()), list(found)
