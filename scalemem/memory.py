"""What a pack needs of a device's memory, before anything runs, and what there is of it. By formula, in bytes; within a factor of 2 of XLA's count.

R rows a pass, T = S - 1 positions, N = R T; d, h, H, V, L: width, hidden width, heads, vocabulary, blocks; c bytes of a number in a product.

    weights       P numbers as they are kept; of a stage that is not the first, those at its start too, and what its strategy remembers
    optimizer     its moments, float32
    gradients     two of each trained number: the sum over passes, float32, and a pass's own
    copies        of several runs one at a time: the states of all once more, for what comes out, and those of the run at work
    activations   a block keeps c (8 d + 4 h) N and (8 + c) H T N for attention's scores; the logits and their gradient 12 V N.
                  remat: c d N a block, and all else of one block only; gradients, then, also of a copy of the blocks' weights
                  fsdp: of R over the devices of a run, and the weights gathered; with remat those of one block at a time
    data          the table of items, 4 S n, if it is small enough to be one; and the order of an epoch
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scalemem import accounting, optimizers, strategies, train, trainable
from scalemem.pack import Pack
from scalemem.spec import ModelSpec, OptimizerSpec, at_stage

FILLS = 0.9  # of a device's memory that may be planned with: the allocator and what XLA keeps want some


class Memory(NamedTuple):
    """Bytes on each device."""

    weights: float
    optimizer: float
    gradients: float
    copies: float
    activations: float
    data: float

    @property
    def total(self) -> float:
        return float(sum(self))


def of(p: Pack, how: str, devices: int = 1) -> Memory:
    """What a pack needs of each device under an executor; the largest of its stages.

    Args:
      p: as `execute.plan` makes it for this executor.
      how: "map" (one run at a time, the states of all), "vmap", "shard" or "fsdp".
      devices: over how many a pack of "shard" or "fsdp" is spread; of the latter each run over its part of them.
    """
    return max((_of_stage(p, i, how, max(1, devices)) for i in range(len(p.runs[0].stages))), key=lambda m: m.total)


def _of_stage(p: Pack, i: int, how: str, devices: int) -> Memory:
    shape, stage = p.shape.stage(i), p.runs[0].stages[i]
    model, view = shape.run.model, at_stage(p.runs[0], i)
    parts, held = (devices // p.size, 1) if how == "fsdp" else (1, -(-p.size // (devices if how == "shard" else 1)))
    at_once = 1 if how in ("map", "fsdp") or (how == "shard" and jax.default_backend() == "cpu") else held
    wide, total, trained = jnp.dtype(model.param_dtype).itemsize, accounting.n_params(model), trainable.n_trained(model, stage)
    beside = total + trained if stage.trains in ("lora", "prompts") else total  # adapters lie beside the weights
    weights = wide * (beside + (total if i else 0)) + 4 * strategies.costs(view).state_floats  # of a later stage those at its start, too
    swept = beside if stage.trains in ("half", "head", "attention", "mlp") else trained  # of parts, the update of the rest is set to 0
    moments, gradients = 4 * _moments(stage.optimizer.name) * swept, (4 + wide) * swept
    kept = total * wide if how == "fsdp" and parts > 1 else 0.0  # gathered on each device; of blocks computed again one at a time
    if shape.remat and model.n_layers and model.arch != "mlp":
        inside = _in_blocks(model)
        kept = (total - inside + inside / model.n_layers) * wide if kept else 0.0
        gradients += 2 * wide * inside
    active = activations(model, shape.micro_batch / parts, remat=shape.remat) + kept
    table = 4.0 * shape.slots * model.seq_len
    table = table if shape.slots * model.seq_len <= train.MATERIALISE_TOKENS else 0.0
    data = table + 12.0 * shape.slots
    copies = (weights + moments) * (held + 1) if held > at_once else 0.0
    return Memory(weights * held / parts, moments * held / parts, gradients * at_once / parts, copies, active * at_once, data * at_once)


@functools.lru_cache(maxsize=16)
def _moments(name: str) -> int:
    """Numbers that an optimizer keeps for each that it trains."""
    state = jax.eval_shape(optimizers.direction(name, optimizers.knobs(OptimizerSpec(peak_lr=1.0, name=name))).init, jnp.zeros(1000))
    return sum(math.prod(x.shape) for x in jax.tree.leaves(state)) // 1000


def _in_blocks(model: ModelSpec) -> float:
    outside = dataclasses.replace(model, n_layers=0)
    return accounting.n_params(model) - accounting.n_params(outside)


def activations(model: ModelSpec, rows: float, *, remat: bool = False) -> float:
    """Bytes that a pass of so many rows keeps for its gradient.

    >>> m = ModelSpec(d_model=64, n_layers=4, n_heads=4, vocab_size=512, seq_len=65)
    >>> activations(m, 8) / 2**20, activations(m, 8, remat=True) / 2**20
    (21.0, 8.0)
    """
    t, wide = model.seq_len - 1, jnp.dtype(model.compute_dtype).itemsize
    n, d = rows * t, model.d_model
    if model.arch == "mlp":
        return wide * rows * (model.seq_len * model.vocab_size + 3 * d * max(1, model.n_layers)) + 12 * rows * model.vocab_size * t
    block = n * (wide * (8 * d + 4 * accounting.mlp_width(model)) + (8 + wide) * model.n_heads * t)
    kept = model.n_layers * n * d * wide + block if remat else model.n_layers * block
    return kept + 12.0 * model.vocab_size * n


def capacity() -> float:
    """Bytes of a device's memory; of a CPU, the machine's shared by the devices that it is taken for."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / len(jax.local_devices())
