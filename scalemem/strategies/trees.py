"""Arithmetic of weights: nested dicts of arrays as vectors."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp


def dot(a: Any, b: Any) -> jax.Array:
    """Inner product of two pytrees of one structure, in float32.

    >>> float(dot({"w": jnp.array([1.0, 2.0])}, {"w": jnp.array([3.0, 4.0])}))
    11.0
    """
    products = jax.tree.map(lambda x, y: jnp.vdot(x.astype(jnp.float32), y.astype(jnp.float32)), a, b)
    return functools.reduce(jnp.add, jax.tree.leaves(products), jnp.float32(0))


def wide(tree: Any) -> Any:
    """The same numbers in float32."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def plus(a: Any, b: Any, times: Any = 1.0) -> Any:
    """a + times b, in the types of a."""
    return jax.tree.map(lambda x, y: (x + times * y).astype(x.dtype), a, b)


def between(a: Any, b: Any, share: Any) -> Any:
    """(1 - share) a + share b, in the types of a; exactly a and b at shares 0 and 1.

    >>> between({"w": jnp.array(1.0)}, {"w": jnp.array(3.0)}, 0.25)["w"].item()
    1.5
    """
    return jax.tree.map(lambda x, y: ((1 - share) * x + share * y).astype(x.dtype), a, b)


def distance(weights: Any, anchor: Any, importance: Any) -> jax.Array:
    """sum_i importance_i (weights_i - anchor_i)^2, in float32; the last two may have a leading axis, of several anchors."""
    squares = jax.tree.map(lambda w, a, f: (f * (w.astype(jnp.float32) - a.astype(jnp.float32)) ** 2).sum(), weights, anchor, importance)
    return functools.reduce(jnp.add, jax.tree.leaves(squares), jnp.float32(0))
