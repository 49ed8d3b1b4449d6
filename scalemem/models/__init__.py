"""Architectures: one file each, behind `init(spec, key) -> params` and `apply(spec) -> (params, tokens) -> logits`."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scalemem.models.gpt import GPT
from scalemem.models.mlp import MLP
from scalemem.spec import ModelSpec, SpecError

ARCHITECTURES: dict[str, Callable[[ModelSpec], nnx.Module]] = {"gpt": GPT, "mlp": MLP}

Params = Any  # a nested dict of arrays


def shape(spec: ModelSpec) -> Params:
    """The parameters of a model as a nested dict of shapes, made without computing anything; SpecError for an unknown arch."""
    return nnx.to_pure_dict(_split(spec)[1])


@functools.lru_cache(maxsize=64)
def _split(spec: ModelSpec) -> tuple[Any, Any]:
    if spec.arch not in ARCHITECTURES:
        raise SpecError(f"model.arch = {spec.arch!r}: must be one of {', '.join(ARCHITECTURES)}; choose one of these")
    return nnx.split(nnx.eval_shape(lambda: ARCHITECTURES[spec.arch](spec)))


def init(spec: ModelSpec, key: jax.Array) -> Params:
    """Initial parameters; each array has a key folded from its own path, so adding one changes no other.

    Args:
      spec: the model's shape.
      key: a PRNG key.
    Returns:
      a nested dict of arrays in `spec.param_dtype`.
    """
    dtype = jnp.dtype(spec.param_dtype)

    def start(path: tuple, var: nnx.Variable) -> jax.Array:
        std, shape = var.get_metadata("std"), var.get_value().shape
        if std is None:
            return jnp.full(shape, var.get_metadata("fill"), dtype)
        name = "/".join(map(str, path))
        return (std * jax.random.normal(jax.random.fold_in(key, zlib.crc32(name.encode())), shape)).astype(dtype)

    flat = {path: start(path, var) for path, var in nnx.to_flat_state(_split(spec)[1])}
    return nnx.to_pure_dict(nnx.from_flat_state(flat))


@dataclass(frozen=True)
class Forward:
    """(weights, tokens [B, T]) -> logits [B, T, V]; and its two halves, for losses that never hold all logits at once."""

    whole: Callable[[Params, jax.Array], jax.Array]
    features: Callable[[Params, jax.Array], jax.Array] | None = None  # (weights, tokens [B, T]) -> [B, T, D]; None: it has no halves
    head: Callable[[Params, jax.Array], jax.Array] | None = None  # (weights, features [N, D]) -> logits [N, V]

    def __call__(self, params: Params, tokens: jax.Array) -> jax.Array:
        return self.whole(params, tokens)

    def after(self, first: Callable[[Any], Params], halves: bool = True) -> Forward:
        """The same, of the weights that `first` makes of what is given; without halves if they would leave something out."""
        def of(f: Callable[[Params, jax.Array], jax.Array]) -> Callable[[Any, jax.Array], jax.Array]:
            return lambda given, x: f(first(given), x)

        if not halves or self.features is None or self.head is None:
            return Forward(of(self.whole))
        return Forward(of(self.whole), of(self.features), of(self.head))


def apply(spec: ModelSpec, *, remat: bool = False) -> Forward:
    """The pure function (params, tokens [B, T]) -> logits [B, T, V] of an architecture.

    `remat`: a gradient keeps what enters each block, and computes the block again (`jax.checkpoint`): less memory for a third more work.
    An architecture without blocks does not heed it.
    """
    def made(params: Params) -> Any:
        found = module(spec, params)
        found.remat = remat
        return found

    def forward(params: Params, tokens: jax.Array) -> jax.Array:
        if "prompts" in params:
            from scalemem.models import prompts

            return prompts.forward(module(spec, {k: v for k, v in params.items() if k != "prompts"}), params["prompts"], tokens)
        return made(params)(tokens)

    _split(spec)  # an unknown architecture is an error here, not when it is applied
    if not hasattr(ARCHITECTURES[spec.arch], "features"):
        return Forward(forward)
    return Forward(forward, lambda params, tokens: made(params).features(tokens), lambda params, x: made(params).logits(x))


def decode(spec: ModelSpec) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Two pure functions, `prefill` and `step`: the logits of `apply`, token by token, from cached keys and values.

    prefill(params, tokens [B, P], length) -> (logits [B, V] after the last token, cache with room for `length` >= P positions);
    step(params, token [B], position, cache) -> (logits [B, V] after it, cache). `position` is an int32 array, the token's place,
    from 0: P for the first token after a prefix of P. A step costs what one position costs, and reads the cache once.

    >>> spec = ModelSpec(d_model=4, n_layers=1, n_heads=1, vocab_size=8, seq_len=4)
    >>> params, (prefill, step) = init(spec, jax.random.key(0)), decode(spec)
    >>> logits, cache = prefill(params, jnp.array([[3, 1]]), 4)
    >>> logits, cache = step(params, jnp.array([5]), jnp.array(2), cache)
    >>> bool(jnp.allclose(logits, apply(spec)(params, jnp.array([[3, 1, 5]]))[:, -1], atol=1e-6))
    True
    """
    def prefill(params: Params, tokens: jax.Array, length: int) -> tuple[jax.Array, Any]:
        return module(spec, params).prefill(tokens, length)

    def step(params: Params, token: jax.Array, position: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        return module(spec, params).step(token, position, cache)

    _split(spec)
    if not hasattr(ARCHITECTURES[spec.arch], "prefill"):
        raise SpecError(f"model.arch = {spec.arch!r}: must be one that writes token after token, such as gpt, to be decoded; choose gpt")
    return prefill, step


def module(spec: ModelSpec, params: Params) -> Any:
    """The architecture with these parameters."""
    if "prompts" in params:
        raise SpecError("stage.trains = 'prompts': must be something else where a model is decoded token by token, or looked into; choose another "
                        "measure, or lora")
    graph, state = _split(spec)
    filled = jax.tree.map(lambda x: x, state)
    nnx.replace_by_pure_dict(filled, params)
    return nnx.merge(graph, filled)
