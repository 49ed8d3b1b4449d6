"""What a spec costs and contains, before anything runs: parameters, steps, tokens, FLOPs and bits, in exact arithmetic.

L, d, V, S: `n_layers`, `d_model`, `vocab_size`, `seq_len`; h: width of the gated MLP; n: `n_items`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from scalemem.spec import ModelSpec, RunSpec, Stage


def mlp_width(model: ModelSpec) -> int:
    """Hidden units of the MLP: 4 d for gelu, and for swiglu 8 d / 3 rounded up to a multiple of 4.

    >>> m = dict(d_model=16, n_layers=1, n_heads=4, vocab_size=128, seq_len=32)
    >>> mlp_width(ModelSpec(**m)), mlp_width(ModelSpec(**m, mlp="swiglu"))
    (64, 44)
    """
    return 4 * model.d_model if model.mlp == "gelu" else 4 * -(-2 * model.d_model // 3)


def n_params(model: ModelSpec) -> int:
    """Trainable scalars of a model, embeddings included.

    P = V d + S d + L (12 d^2 + 13 d) + 2 d for the defaults. Every linear layer has a bias except the head. rmsnorm
    drops the d biases of each norm, rotary the S d positions; swiglu replaces the MLP's 8 d^2 + 5 d by 3 d h + 2 h + d;
    an untied head adds V d. arch "mlp": S V d + d + max(L - 1, 0) (d^2 + d) + d V + V, whatever the other fields say.

    >>> n_params(ModelSpec(d_model=128, n_layers=2, n_heads=4, vocab_size=2048, seq_len=64))
    667136

    Source: Morris et al. 2025 (arXiv 2505.24832); reproduces every parameter count in the capacity table there.
    """
    d, h = model.d_model, mlp_width(model)
    if model.arch == "mlp":
        return model.seq_len * model.vocab_size * d + d + max(model.n_layers - 1, 0) * (d * d + d) + d * model.vocab_size + model.vocab_size
    norm = 2 * d if model.norm == "layernorm" else d
    attention = (d * 3 * d + 3 * d) + (d * d + d)
    mlp = (d * h + h) + (h * d + d) + ((d * h + h) if model.mlp == "swiglu" else 0)
    positions = model.seq_len * d if model.position == "learned" else 0
    head = 0 if model.tied else d * model.vocab_size
    return model.vocab_size * d + positions + model.n_layers * (attention + mlp + 2 * norm) + norm + head


def steps(stage: Stage) -> int:
    """Optimizer steps of a stage: exposures * ceil(n_items / batch_size); the last step of an epoch may be smaller."""
    return stage.exposures * -(-stage.data.n_items // stage.batch_size)


def scored_tokens(model: ModelSpec, stage: Stage) -> int:
    """Tokens whose loss is trained on in a stage: exposures * n_items * (S - 1), for the first is given; of labelled items one each, the label."""
    return stage.exposures * stage.data.n_items * (1 if stage.objective.startswith("label") else model.seq_len - 1)


def tokens(model: ModelSpec, stage: Stage) -> int:
    """Tokens of the sequences read in a stage: exposures * n_items * S; the last of each is only a target."""
    return stage.exposures * stage.data.n_items * model.seq_len


def train_flops(run: RunSpec) -> float:
    """Floating-point operations of training a run: forward and backward matrix products of the S - 1 positions that are fed.

    A position costs 6 (12 L d^2 + V d) + 12 L (S - 1) d; for swiglu 4 d^2 + 3 d h stands in the place of 12 d^2. Norms, softmax
    and the optimizer are not counted, nor is the causal half of attention taken off. Probes are not counted.

    >>> m = ModelSpec(d_model=32, n_layers=1, n_heads=4, vocab_size=128, seq_len=32)
    >>> from scalemem.spec import DataSpec, OptimizerSpec, Probe
    >>> s = Stage(data=DataSpec(n_items=10), optimizer=OptimizerSpec(peak_lr=0.01), exposures=1, batch_size=10)
    >>> train_flops(RunSpec(model=m, stages=(s,), probes=(Probe("capacity"),))) / 310
    110208.0
    """
    return sum(stage_flops(run.model, stage) for stage in run.stages)


def stage_flops(model: ModelSpec, stage: Stage) -> float:
    """Floating-point operations of training one stage, as if everything were trained and nothing done against forgetting.

    An item of arch "mlp" costs 6 ((S - 1) d + max(L - 1, 0) d^2 + V d): the first layer adds a row of its weights for each of S - 1 one-hot tokens.
    """
    d, n_layers, n_items = model.d_model, model.n_layers, stage.exposures * stage.data.n_items
    if model.arch == "mlp":
        return 6.0 * n_items * ((model.seq_len - 1) * d + max(n_layers - 1, 0) * d * d + model.vocab_size * d)
    mlp_matrices = (2 if model.mlp == "gelu" else 3) * d * mlp_width(model)
    matrices = n_layers * (4 * d * d + mlp_matrices) + model.vocab_size * d
    position = 6 * matrices + 12 * n_layers * (model.seq_len - 1) * d
    return float(position * n_items * (model.seq_len - 1))


def of_stages(run: RunSpec) -> dict[str, Any]:
    """What the stages of a run of several are made of, in columns stage0_n_items, stage1_replay_fraction, ...; {} for a run of one.

    A replay's, injection's and strategy's columns are there where a stage has one.
    """
    found: dict[str, Any] = {}
    for i, stage in enumerate(run.stages if len(run.stages) > 1 else ()):
        row = {"first": stage.data.first, "n_items": stage.data.n_items, "exposures": stage.exposures, "batch_size": stage.batch_size,
               "steps": steps(stage), "peak_lr": stage.optimizer.peak_lr, "weight_decay": stage.optimizer.weight_decay,
               "objective": stage.objective, "trains": stage.trains, "continued": stage.continued}
        if stage.trains == "lora":
            row["rank"] = stage.rank
        for name in ("replay", "inject", "strategy"):
            part = getattr(stage, name)
            if part is not None:
                row |= {f"{name}_{f.name}": getattr(part, f.name) for f in dataclasses.fields(part)}
        found |= {f"stage{i}_{name}": value for name, value in row.items()}
    return found


def data_bits(run: RunSpec) -> float:
    """Bits in the scored tokens of a run's first data set, given the first token of each item: n (S - 1) log2 V.

    NaN for items that are not uniform tokens, and where canaries are planted: only the generator knows its entropy. The rows of a store have it from
    there (`execute.work`), whichever generator it is.
    """
    data = run.stages[0].data
    if data.generator != "uniform" or data.canaries:
        return math.nan
    return data.n_items * (run.model.seq_len - 1) * math.log2(run.model.vocab_size)


def data_bits_all_tokens(run: RunSpec) -> float:
    """Bits in all tokens of a run's first data set: n S log2 V, the convention of Morris et al.; NaN as in `data_bits`.

    Larger than `data_bits` by S / (S - 1), although the first token of an item is never predicted.
    """
    return data_bits(run) / (run.model.seq_len - 1) * run.model.seq_len


def summary(run: RunSpec) -> dict[str, Any]:
    """A run as one flat row: what identifies it for a reader and what it costs, with units in the column names.

    Returns:
      `steps`, `train_tokens` (read, S an item), `scored_tokens` and `train_flops` are sums over the stages;
      `data_bits_per_param` = `data_bits` / `n_params`; data and optimizer are those of the first stage.
    """
    model, stage = run.model, run.stages[0]
    return {
        "n_params": n_params(model),
        **{name: getattr(model, name) for name in (
            "arch", "n_layers", "d_model", "n_heads", "vocab_size", "seq_len", "norm", "position", "mlp", "tied",
            "param_dtype", "compute_dtype")},
        "generator": stage.data.generator,
        "n_items": stage.data.n_items,
        "exposures": stage.exposures,
        "batch_size": stage.batch_size,
        "peak_lr": stage.optimizer.peak_lr,
        "optimizer": stage.optimizer.name,
        "schedule": stage.optimizer.schedule,
        "seed": run.seed,
        "steps": sum(steps(s) for s in run.stages),
        "train_tokens": sum(tokens(model, s) for s in run.stages),
        "scored_tokens": sum(scored_tokens(model, s) for s in run.stages),
        "train_flops": train_flops(run),
        "data_bits": data_bits(run),
        "data_bits_all_tokens": data_bits_all_tokens(run),
        "data_bits_per_param": data_bits(run) / n_params(model),
        **of_stages(run),
    }
