"""Bits per parameter of each shape against the base shape, with 90 % intervals over seeds; and the bits that no model can know."""

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from scalemem import plot, tables

BASE = {"n_layers": 1, "d_model": 24, "n_heads": 6, "vocab_size": 128, "seq_len": 32, "norm": "layernorm", "position": "learned",
        "mlp": "gelu", "tied": True}
NAMES = {"n_layers": "L", "d_model": "d", "n_heads": "heads", "vocab_size": "V", "seq_len": "S", "norm": "", "position": "", "mlp": ""}


def name(shape: dict) -> str:
    """What differs from the base; heads and width only where nothing else does."""
    changed = {k: v for k, v in shape.items() if v != BASE[k]}
    main = {k: v for k, v in changed.items() if k not in ("d_model", "n_heads")}
    if "d_model" in changed and main:
        main["d_model"] = changed["d_model"]
    text = ", ".join("untied head" if k == "tied" else f"{NAMES[k]} {v}".strip() for k, v in (main or changed).items())
    return text or "base: L 1, d 24, heads 6, V 128, S 32"


def draw(table, result):
    fig, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.4), width_ratios=[2, 1])
    rows = [r for r in table.to_pylist() if not (r["d_model"] == 32 and r["n_items"] == 256)]
    longest = max(r["exposures"] for r in rows)
    shapes = {}
    for r in rows:
        if r["exposures"] == longest:
            shapes.setdefault(tuple(r[k] for k in BASE), []).append(r["bits_per_param"])
    ordered = sorted(shapes.items(), key=lambda item: np.mean(item[1]))
    for i, (shape, bits) in enumerate(ordered):
        half = stats.t.ppf(0.95, len(bits) - 1) * np.std(bits, ddof=1) / len(bits) ** 0.5 if len(bits) > 2 else 0
        colour = plot.COLOURS[1] if shape == tuple(BASE.values()) else plot.COLOURS[0]
        left.errorbar(np.mean(bits), i, xerr=half, fmt="o", color=colour, capsize=1.5, elinewidth=0.8)
        if shape == tuple(BASE.values()):
            left.axvline(np.mean(bits), color=colour, linewidth=0.6, linestyle=":")
    left.set_yticks(range(len(ordered)), [name(dict(zip(BASE, s, strict=True))) for s, _ in ordered])
    left.set(xlabel="bits per parameter", title=f"What moves bits per parameter\n({longest} exposures, 90 % intervals over seeds)")

    few, _ = tables.where(table, "d_model == 32 and n_items == 256")
    if few.num_rows:
        few = tables.derive(few, "unknown", "(data_bits - memorized_bits) / n_items")
        plot.points(right, few, "seq_len", "unknown", "measured")
    right.axhline(1.408, color="0.4", linewidth=0.8, linestyle=":", label="E log2(sequences that\nshare the first token)")
    right.set(xticks=[4, 8, 16], xlabel="sequence length", ylabel="bits a sequence that were not stored", ylim=(0, 2),
              title="Far below capacity: what\ncannot be known")
    right.legend(loc="lower left")
    return fig
