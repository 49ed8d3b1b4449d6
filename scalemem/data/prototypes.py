"""Labelled sequences of known likelihood: each class has a prototype, an item is its class's prototype with noise, then the label.

Prototypes are uniform tokens that data.language draws; the key draws the noise. data.noise 0 makes all items of a class the same, 1 leaves nothing
to learn. Numbers, labels and scenarios are those of `labels`.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from scalemem.data import labels, source
from scalemem.data.labels import held_out
from scalemem.spec import RunSpec

__all__ = ["check", "entropy_bits", "held_out", "items"]

LEAST = 2  # tokens beside the labels


def items(run: RunSpec, key: jax.Array, index: Int[Array, " B"]) -> Int[Array, "B S"]:
    """Sequences `index`: S - 1 tokens, each the prototype's with probability 1 - noise and else drawn uniformly, then the label.

    Args:
      run: gives the vocabulary V, the sequence length S, data.classes, data.per_class, data.task_classes, data.noise, data.language and
        data.scenario. The V - classes first tokens are those of prototypes and noise.
      key: the data set's PRNG key: of the noise.
      index: item numbers, int32 [B]; may be traced.
    Returns:
      tokens, int32 [B, S]; item i depends on (key, i) alone.
    """
    data, places, tokens = run.stages[0].data, run.model.seq_len - 1, run.model.vocab_size - labels.classes(run)
    at = labels.place(run, jnp.asarray(index))
    prototype = source.hashed(data.language, at.number[:, None].astype(jnp.uint32), jnp.arange(places, dtype=jnp.uint32)) % tokens

    def noise(i):
        which, drawn = jax.random.split(jax.random.fold_in(key, i))
        return jax.random.bernoulli(which, data.noise, (places,)), jax.random.randint(drawn, (places,), 0, tokens, jnp.int32)

    replaced, by = jax.vmap(noise)(index)
    return labels.finish(run, jnp.where(replaced, by, prototype.astype(jnp.int32)), at)


def entropy_bits(run: RunSpec) -> float:
    """Exact entropy of one item's scored tokens, given its first, the language and its class: (S - 2) H.

    H is that of a token which is the prototype's with probability 1 - noise + noise / K and each of the K - 1 others with noise / K, where K =
    V - classes. The label follows from the item's number: 0 bits.
    """
    noise, tokens = run.stages[0].data.noise, run.model.vocab_size - labels.classes(run)
    other, own = noise / tokens, 1 - noise + noise / tokens
    each = -(own * math.log2(own) + ((tokens - 1) * other * math.log2(other) if other else 0.0))
    return (run.model.seq_len - 2) * each


def check(run: RunSpec) -> None:
    """Raises SpecError, in one line, where classes, tasks and labels do not fit."""
    labels.check(run, LEAST)
