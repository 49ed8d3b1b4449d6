"""A stream of domains, from one language to another in equal steps: two Markov sources of which each domain takes a share of the contexts.

Domain d of D follows, in a context c, the language A = data.language if u_c >= d / (D - 1), and else B = A + 1 (modulo 2^31); u_c is a hash of the
context, uniform on [0, 1). So domain 0 is A, domain D - 1 is B, and two domains differ in |d - e| / (D - 1) of the contexts: the similarity is the
same wherever in the stream two neighbours stand. Item i is of domain i // 2^20; within a domain items from 2^19 on are held out.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from scalemem.data import markov, source
from scalemem.spec import RunSpec, SpecError

DOMAIN = 1 << 20  # items of a domain
HELD_OUT = 1 << 19  # the first of them that nothing trains on
_WHICH = 0x57484943


def items(run: RunSpec, key: jax.Array, index: Int[Array, " B"]) -> Int[Array, "B S"]:
    """Sequences `index`: x_t = (r_t + h_d(x_(t-k) .. x_(t-1))) mod V, r_t independent and of Zipf's law, as in `markov`, d the item's domain.

    Args:
      run: gives the vocabulary V, the sequence length S, data.context (k), data.zipf, data.language and data.domains.
      key: the data set's PRNG key; the languages do not depend on it.
      index: item numbers, int32 [B]; may be traced.
    Returns:
      tokens, int32 [B, S]; item i depends on (key, i) alone.
    """
    return _items(run, key, index, None)


def tempered(run: RunSpec, key: jax.Array, index: Int[Array, " B"], temperature: Float[Array, " B"]) -> Int[Array, "B S"]:
    """As `items`, item b with ranks of p^(1 / temperature[b]), renormalised; at temperature 1 exactly `items`."""
    return _items(run, key, index, temperature)


def _items(run, key, index, temperature):
    return markov.chain(run, key, index, temperature, lambda context: _shift(run, index // DOMAIN, context))


def _shift(run, domain, context):
    """h_d, 0..V-1, of contexts: a tuple of `data.context` arrays of tokens from 1, 0 where there is none, the oldest first."""
    data = run.stages[0].data
    a, b = ((source.hashed((data.language + other) % 2**31, *context) % run.model.vocab_size).astype(jnp.int32) for other in (0, 1))
    u = (source.hashed(data.language, _WHICH, *context) >> 8).astype(jnp.float32) * 2.0**-24
    return jnp.where(u >= domain / (data.domains - 1), a, b)


def nats(run: RunSpec, tokens: Int[Array, "B S"], domain: Any = 0) -> Float[Array, "B S-1"]:
    """-log p(x_t | x_<t) in nats for t = 2..S, exact, as the items of a domain are drawn.

    Args:
      run: as in `items`.
      tokens: int32 [B, S].
      domain: which, a number or int32 [B].
    """
    which = jnp.broadcast_to(jnp.asarray(domain), (len(tokens),))[:, None]
    return markov.chain_nats(run, tokens, lambda context: _shift(run, which, context))


def entropy_bits(run: RunSpec) -> float:
    """Exact entropy of one item's scored tokens given the first: (S - 1) H bits, H that of a rank, in every domain."""
    return markov.entropy_bits(run)


def held_out(run: RunSpec, first: int, n_items: int, count: int) -> np.ndarray:
    """Held-out item numbers of the domain of item `first`."""
    return first // DOMAIN * DOMAIN + HELD_OUT + np.arange(count)


def check(run: RunSpec) -> None:
    """Raises SpecError, in one line, for items that are held out or of no domain.

    A replay pool may span domains, and then has their held-out items too: of them a measure reads the first few, each of which is replayed with a
    probability of 2^-20 a row and domain of the pool.
    """
    for i, stage in enumerate(run.stages):
        for name, part in (("data", stage.data), ("replay", stage.replay), ("inject", stage.inject)):
            if part is None:
                continue
            last = part.first + part.n_items - 1
            if last // DOMAIN >= stage.data.domains:
                raise SpecError(f"stages[{i}].{name}.first = {part.first}: its last item is of domain {last // DOMAIN}, and data.domains = "
                                f"{stage.data.domains}; lower first or n_items, or raise domains")
            if name != "replay" and (last // HELD_OUT != part.first // HELD_OUT or part.first // HELD_OUT % 2):
                raise SpecError(f"stages[{i}].{name}.first = {part.first}: items {part.first} .. {last} are not all of the first 2^19 of a domain, "
                                "the ones that may be trained on; lower first or n_items")
