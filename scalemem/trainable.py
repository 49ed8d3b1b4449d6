"""What a stage trains: everything, some of the weights, low-rank adapters of them, or prompts beside them.

all        every weight
lora       for each matrix W [i, o] of a block, A [i, r] B [r, o] / sqrt(r) is added; A and B are trained, and W is not. B starts at 0
half       of each block, a random half of the matrices (half fine-tuning); everything else as usual; drawn anew in each stage
head       the final norm and the head (of a tied head: the token embedding)
attention  the blocks' attention
mlp        the blocks' MLPs
prompts    a pool of prompts and their keys (scalemem.models.prompts), of the kind that the stage's strategy names; no weight. Later stages go on
           with the pool

Source: shared/literature/forgetting.md 1.1 (rank-stabilised LoRA), 4.11 (half fine-tuning: 2 of attention's 4 matrices, of which q, k and v
are one here; so here a random half of a block's matrices), 4.18 (attention or MLP only).
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from scalemem import models
from scalemem.models import prompts
from scalemem.spec import ModelSpec, Stage

Weights = Any


def _name(path: tuple) -> str:
    return "/".join(str(getattr(part, "key", part)) for part in path)


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight is a matrix of a block: what adapters are added to."""
    return len(shape) == 2 and name.endswith("/w")


def split(model: ModelSpec, stage: Stage, weights: Weights, key: jax.Array, rank: Any) -> tuple[Any, Any]:
    """(what is trained, what is not) at the start of a stage, of which `join` makes the weights again.

    Args:
      model: the architecture.
      stage: static; of `lora`, stage.rank is the room for adapters.
      weights: of the whole model.
      key: of this stage: which half, and the adapters' start.
      rank: of the adapters, at most stage.rank, may be traced.
    """
    if stage.trains == "all":
        return weights, ()
    if stage.trains == "lora":
        def adapter(path, w):
            if not is_matrix(_name(path), w.shape):
                return ()
            draw = jax.random.normal(jax.random.fold_in(key, zlib.crc32(_name(path).encode())), (w.shape[0], stage.rank)) / math.sqrt(w.shape[0])
            return {"a": jnp.where(jnp.arange(stage.rank) < rank, draw, 0), "b": jnp.zeros((stage.rank, w.shape[1]))}
        return jax.tree_util.tree_map_with_path(adapter, weights), {"weights": weights, "scale": jnp.asarray(rank, jnp.float32) ** -0.5}
    if stage.trains == "prompts":
        strategy = stage.strategy
        assert strategy is not None
        before = weights.get("prompts", {})
        pool = before.get(strategy.name) or prompts.start(model, strategy, jax.random.fold_in(key, zlib.crc32(b"prompts")))
        setting = strategy.chosen if strategy.name == "l2p" else strategy.tasks
        return pool, {"weights": {k: v for k, v in weights.items() if k != "prompts"},
                      "learned": jnp.int32(before.get("learned", 0)) + 1, "setting": jnp.int32(setting)}
    return weights, mask(model, stage, weights, key)


def mask(model: ModelSpec, stage: Stage, weights: Weights, key: jax.Array) -> Any:
    """1 for the arrays that are trained and 0 for the others, a float32 scalar each."""
    leaves = {_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(weights)}
    blocks: dict[str, list[str]] = {}
    for name, shape in leaves.items():
        if is_matrix(name, shape):
            blocks.setdefault("/".join(name.split("/")[:2]), []).append(name)
    frozen: dict[str, Any] = {}
    if stage.trains == "half":
        for block, names in blocks.items():
            shuffled = jax.random.permutation(jax.random.fold_in(key, zlib.crc32(block.encode())), len(names))
            frozen |= {name: shuffled[i] < len(names) // 2 for i, name in enumerate(names)}

    def one(path, leaf):
        name = _name(path)
        if stage.trains == "half":
            return 1.0 - jnp.asarray(frozen.get(name, 0.0), jnp.float32)
        wanted = {"head": name.startswith(("norm/", "head")) or (model.tied and name == "tokens"), "attention": "/attention/" in name,
                  "mlp": "/mlp/" in name}[stage.trains]
        return jnp.float32(wanted)

    return jax.tree_util.tree_map_with_path(one, weights)


def join(stage: Stage, trained: Any, rest: Any, *, training: bool = False) -> Weights:
    """The weights of the whole model; `training`: prompts are told which task they are trained on."""
    if stage.trains == "prompts":
        task = {"task": rest["learned"] - 1} if training else {}
        assert stage.strategy is not None
        return rest["weights"] | {"prompts": {stage.strategy.name: trained, "learned": rest["learned"], "setting": rest["setting"], **task}}
    if stage.trains != "lora":
        return trained
    def add(w, adapter):
        return w + (rest["scale"] * adapter["a"] @ adapter["b"]).astype(w.dtype) if adapter else w
    return jax.tree.map(add, rest["weights"], trained, is_leaf=lambda x: isinstance(x, jax.Array))


def masked(stage: Stage, update: Any, rest: Any) -> Any:
    """An update with the parts that are not trained set to 0."""
    return update if stage.trains in ("all", "lora", "prompts") else jax.tree.map(lambda u, m: u * m, update, rest)


def n_trained(model: ModelSpec, stage: Stage) -> int:
    """Numbers that a stage trains; of `half`, on average.

    >>> m = ModelSpec(d_model=8, n_layers=1, n_heads=2, vocab_size=16, seq_len=8)
    >>> from scalemem.spec import DataSpec, OptimizerSpec
    >>> s = Stage(data=DataSpec(n_items=8), optimizer=OptimizerSpec(peak_lr=0.1), exposures=1, batch_size=4, trains="lora", rank=2)
    >>> n_trained(m, s)  # (8 + 24) + (8 + 8) + (8 + 32) + (32 + 8), times 2
    256
    """
    leaves = {_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(models.shape(model))}
    matrices = {name: shape for name, shape in leaves.items() if is_matrix(name, shape)}
    if stage.trains == "prompts":
        assert stage.strategy is not None
        return prompts.n_params(model, stage.strategy)
    if stage.trains == "lora":
        return sum(stage.rank * (i + o) for i, o in matrices.values())
    total = sum(math.prod(shape) for shape in leaves.values())
    if stage.trains == "all":
        return total
    if stage.trains == "half":
        counts: dict[str, list[int]] = {}
        for name, shape in matrices.items():
            counts.setdefault("/".join(name.split("/")[:2]), []).append(math.prod(shape))
        return round(total - sum(sum(sizes) * (len(sizes) // 2) / len(sizes) for sizes in counts.values()))
    chosen = mask(model, stage, {name: jnp.zeros(shape) for name, shape in leaves.items()}, jax.random.key(0))
    return sum(math.prod(leaves[name]) for name, on in chosen.items() if on)
