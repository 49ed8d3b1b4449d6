"""A frozen decoder that reads prompts of a pool: which of them, each position asks by what the model without prompts makes of the tokens so far.

The query of position t is the final hidden state (after the final norm) at t: it has read the tokens up to t and no later one, so nothing leaks into
a next-token loss, and at the last place of a labelled sequence it is the query of the whole input, as in the sources. Positions attend to prompts
beside the tokens before them; text keeps its places and the head is as it was: only prompts and their keys are trained.

l2p          `chosen` of M prompts, the nearest by cosine; tokens before the text, which pass through all blocks
dualprompt   keys and values of attention: general ones in the lower half of the blocks, an expert's in the upper half, one expert a task
coda_prompt  keys and values in all blocks: a sum over M components, weighted by cos(query * attention_m, key_m)

Params of a model have a member "prompts": {NAME: the trained pool, learned: stages trained so far, setting: chosen (l2p), parts (coda_prompt)}, and
while a stage is trained also "task", from 0.

Source: shared/literature/forgetting.md 4.22 (brief), the rest from memory, unverified: Wang et al. 2022 (L2P, DualPrompt), Smith et al. 2023 (CODA).
There the backbone is a vision transformer and a head is trained, too; here answers are tokens and the head knows them already. Two things of L2P are
ours: prompts of one choice do not attend to one another (so a pool passes through the blocks once, whatever is chosen), and they have no position.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scalemem import models
from scalemem.models import Params
from scalemem.models.gpt import GPT
from scalemem.models.layers import Attention
from scalemem.spec import ModelSpec, RunSpec, StrategySpec

KINDS = ("l2p", "dualprompt", "coda_prompt")


class Read(NamedTuple):
    """Keys and values beside those of the tokens, in one block."""

    keys: Float[Array, "M L H K"]
    values: Float[Array, "M L H K"]
    weight: Float[Array, "B T M"]  # of each prompt for each position
    summed: bool  # True: a prompt is the weighted sum of the M; False: each of weight above 0 is read, the others are not


def shape(model: ModelSpec, strategy: StrategySpec) -> dict[str, tuple[int, ...]]:
    """The arrays of a pool.

    >>> m = ModelSpec(d_model=8, n_layers=2, n_heads=2, vocab_size=16, seq_len=8)
    >>> shape(m, StrategySpec("l2p", pool=5, length=3))
    {'keys': (5, 8), 'prompts': (5, 3, 8)}
    """
    d, m, length, layers = model.d_model, strategy.pool, strategy.length, model.n_layers
    if strategy.name == "l2p":
        return {"keys": (m, d), "prompts": (m, length, d)}
    if strategy.name == "dualprompt":
        return {"keys": (m, d), "general": (general(layers), 2, length, d), "expert": (layers - layers // 2, m, 2, length, d)}
    return {"keys": (m, d), "attention": (m, d), "components": (m, layers, 2, length, d)}


def general(layers: int) -> int:
    """Blocks that read DualPrompt's general prompts: the first half, rounded up; the second half, rounded up, reads an expert's."""
    return -(-layers // 2)


def start(model: ModelSpec, strategy: StrategySpec, key: jax.Array) -> dict[str, Array]:
    """A pool before training: prompts like embeddings (std `init_std`), keys of unit length; coda_prompt: orthonormal rows, where they fit."""
    pool = {}
    for i, (name, size) in enumerate(shape(model, strategy).items()):
        draw = jax.random.normal(jax.random.fold_in(key, i), size)
        rows = draw.reshape(size[0], -1)
        if strategy.name == "coda_prompt":
            draw = (jnp.linalg.qr(rows.T)[0].T if len(rows) <= rows.shape[1] else rows / jnp.linalg.norm(rows, axis=1, keepdims=True)).reshape(size)
        else:
            draw = draw / jnp.linalg.norm(draw, axis=-1, keepdims=True) if name == "keys" else model.init_std * draw
        pool[name] = draw
    return pool


def beside(run: RunSpec) -> dict[str, Any]:
    """What the weights of a finished run have beside those of its model: {"prompts": arrays of their shapes} where its last stage trains prompts."""
    strategy = run.stages[-1].strategy
    if run.stages[-1].trains != "prompts" or strategy is None:
        return {}
    return {"prompts": {strategy.name: {name: jnp.zeros(size) for name, size in shape(run.model, strategy).items()},
                        "learned": jnp.int32(0), "setting": jnp.int32(0)}}


def n_params(model: ModelSpec, strategy: StrategySpec) -> int:
    """Numbers of a pool."""
    return sum(math.prod(size) for size in shape(model, strategy).values())


def query(spec: ModelSpec, params: Params, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """What positions ask with: the final hidden states of the model without prompts; no gradient."""
    return _query(models.module(spec, {k: v for k, v in params.items() if k != "prompts"}), tokens)


def _query(module: GPT, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    return jax.lax.stop_gradient(module.norm(module.features(tokens)).astype(jnp.float32))


def cosine(queries: Float[Array, "*L D"], keys: Float[Array, "M D"]) -> Float[Array, "*L M"]:
    """Cosines of queries and keys."""
    unit = lambda x: x * jax.lax.rsqrt((x * x).sum(-1, keepdims=True) + 1e-12)  # noqa: E731
    return unit(queries) @ unit(keys).T


def nearest(cosines: Float[Array, "*L M"], chosen: Any) -> Float[Array, "*L M"]:
    """1 for the `chosen` largest of each row (which may be traced), 0 for the others.

    >>> nearest(jnp.array([[0.1, 0.9, -0.5, 0.3]]), 2).tolist()
    [[0.0, 1.0, 0.0, 1.0]]
    """
    least = jnp.take(jnp.sort(cosines, -1, descending=True), jnp.asarray(chosen, jnp.int32) - 1, axis=-1)
    return (cosines >= least[..., None]).astype(jnp.float32)


def weights(prompts: dict[str, Any], queries: Float[Array, "B T D"]) -> Float[Array, "B T M"]:
    """The weight of each prompt of the pool, or of each expert or component, for each position.

    l2p: 1 for the chosen. dualprompt: 1 for the task's own while it is trained, else for the nearest key of the tasks learned. coda_prompt:
    cos(query * attention_m, key_m) of the components of the tasks learned so far, 0 for the others.
    """
    kind = kind_of(prompts)
    pool, learned = prompts[kind], prompts["learned"]
    m = jnp.arange(len(pool["keys"]))
    if kind == "coda_prompt":
        product = jnp.einsum("btd,md->btm", queries, pool["attention"] * pool["keys"])
        size = jnp.einsum("btd,md->btm", queries**2, pool["attention"] ** 2) * (pool["keys"] ** 2).sum(-1)
        return jnp.where(m < parts(prompts)[1], product * jax.lax.rsqrt(size + 1e-12), 0)
    near = cosine(queries, pool["keys"])
    if kind == "l2p":
        return nearest(near, prompts["setting"])
    if "task" in prompts:
        return jnp.broadcast_to((m == prompts["task"]).astype(jnp.float32), near.shape)
    return nearest(jnp.where(m < learned, near, -2.0), 1)


def parts(prompts: dict[str, Any]) -> tuple[Any, Any]:
    """coda_prompt: (components of earlier tasks, which stay as they are; those and this task's), of a pool cut into `setting` equal parts."""
    size, count = len(prompts["coda_prompt"]["keys"]), jnp.asarray(prompts["setting"], jnp.int32)
    task = jnp.clip(jnp.asarray(prompts["learned"], jnp.int32), 1, count)
    return size * (task - 1) // count, size * task // count


def kind_of(prompts: dict[str, Any]) -> str:
    """The kind of prompts that params have."""
    return next(kind for kind in KINDS if kind in prompts)


def _reads(module: GPT, prompts: dict[str, Any], queries: Float[Array, "B T D"]) -> list[list[Read]]:
    """What each block reads."""
    kind = kind_of(prompts)
    pool, layers = prompts[kind], len(module.blocks)
    if kind == "coda_prompt":  # components of earlier tasks have no gradient
        old = jnp.arange(len(pool["keys"])) < parts(prompts)[0]
        pool = {name: jnp.where(old.reshape(-1, *(1,) * (x.ndim - 1)), jax.lax.stop_gradient(x), x) for name, x in pool.items()}
    weight = weights(prompts | {kind: pool}, queries)
    heads = lambda x: x.reshape(*x.shape[:-1], module.blocks[0].attention.n_heads, -1).astype(module.dtype)  # noqa: E731
    if kind == "coda_prompt":
        return [[Read(heads(c[:, 0]), heads(c[:, 1]), weight, True)] for c in jnp.moveaxis(pool["components"], 1, 0)]
    if kind == "dualprompt":
        always = jnp.ones((*queries.shape[:2], 1))
        found: list[list[Read]] = [[] for _ in range(layers)]
        for i, both in enumerate(pool["general"]):
            found[i].append(Read(heads(both[None, 0]), heads(both[None, 1]), always, False))
        for i, both in enumerate(pool["expert"]):
            found[layers // 2 + i].append(Read(heads(both[:, 0]), heads(both[:, 1]), weight, False))
        return found
    x, found = pool["prompts"].astype(module.dtype), []
    for block in module.blocks:
        x, (k, v) = block.prefix(x)
        found.append([Read(k.swapaxes(1, 2), v.swapaxes(1, 2), weight, False)])
    return found


def attend(attention: Attention, x: Float[Array, "B T D"], reads: list[Read]) -> Float[Array, "B T D"]:
    """Attention to the tokens so far and to what is read beside them, in one softmax."""
    b, t, _ = x.shape
    q, k, v = attention.heads(x)
    causal = jnp.tril(jnp.ones((t, t), bool))
    scores = [jnp.where(causal, jnp.einsum("bthk,bshk->bhts", q, k).astype(jnp.float32), -1e30)]
    for read in reads:
        each = jnp.einsum("bthk,mlhk->bhtml", q, read.keys).astype(jnp.float32)
        on = read.weight[:, None, :, :, None] > 0
        each = jnp.einsum("bhtml,btm->bhtl", each, read.weight) if read.summed else jnp.where(on, each, -1e30)
        scores.append(each.reshape(*each.shape[:3], -1))
    ends = [0]
    for some in scores:
        ends.append(ends[-1] + some.shape[-1])
    probs = jax.nn.softmax(jnp.concatenate(scores, -1), -1).astype(x.dtype)
    y = jnp.einsum("bhts,bshk->bthk", probs[..., :t], v)
    for read, low, high in zip(reads, ends[1:-1], ends[2:], strict=True):
        p = probs[..., low:high]
        if read.summed:
            y += jnp.einsum("bhtl,btm,mlhk->bthk", p, read.weight.astype(x.dtype), read.values)
        else:
            y += jnp.einsum("bhtml,mlhk->bthk", p.reshape(*p.shape[:3], *read.keys.shape[:2]), read.values)
    return attention.out(y.reshape(b, t, -1))


def forward(module: GPT, prompts: dict[str, Any], tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
    """Next-token logits, float32, of a decoder with prompts."""
    x = module.embed(tokens)
    for block, reads in zip(module.blocks, _reads(module, prompts, _query(module, tokens)), strict=True):
        x = x + attend(block.attention, block.norm_1(x), reads)
        x = x + block.mlp(block.norm_2(x))
    return module.logits(x)
