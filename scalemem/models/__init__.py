"""Architectures: one file each, behind `init(spec, key) -> params` and `apply(spec) -> (params, tokens) -> logits`."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scalemem.models.gpt import GPT
from scalemem.spec import ModelSpec, SpecError

ARCHITECTURES: dict[str, Callable[[ModelSpec], nnx.Module]] = {"gpt": GPT}

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


def apply(spec: ModelSpec) -> Callable[[Params, jax.Array], jax.Array]:
    """The pure function (params, tokens [B, T]) -> logits [B, T, V] of an architecture."""
    graph, state = _split(spec)

    def forward(params: Params, tokens: jax.Array) -> jax.Array:
        filled = jax.tree.map(lambda x: x, state)
        nnx.replace_by_pure_dict(filled, params)
        return nnx.merge(graph, filled)(tokens)

    return forward
