"""A model in two parts: what its first layers make of tokens, and what the others make of that."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from scalemem import models
from scalemem.models import Params
from scalemem.models.mlp import MLP
from scalemem.spec import ModelSpec


def lower(spec: ModelSpec, layer: int) -> Callable[[Params, Int[Array, "B T"]], Float[Array, "B T D"]]:
    """The pure function (params, tokens) -> hidden states after `layer` layers.

    gpt: the residual stream after so many blocks; 0 is the embeddings. mlp: the units after so many ReLUs, 0 before the first; it has them at the
    last place alone, and 0 at the others.

    >>> spec = ModelSpec(d_model=4, n_layers=2, n_heads=1, vocab_size=8, seq_len=4)
    >>> params, tokens = models.init(spec, jax.random.key(0)), jnp.array([[3, 1, 5]])
    >>> whole = upper(spec, 1)(params, lower(spec, 1)(params, tokens))
    >>> bool(jnp.allclose(whole, models.apply(spec)(params, tokens), atol=1e-6))
    True
    """
    def forward(params: Params, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        module = models.module(spec, params)
        if isinstance(module, MLP):
            x = module.first(tokens)
            for i in range(layer):
                x = jax.nn.relu(module.hidden[i - 1](x) if i else x)
            return jnp.pad(x[:, None], ((0, 0), (tokens.shape[1] - 1, 0), (0, 0)))
        x = module.embed(tokens)
        for block in module.blocks[:layer]:
            x = block(x)
        return x

    return forward


def upper(spec: ModelSpec, layer: int) -> Callable[[Params, Float[Array, "B T D"]], Float[Array, "B T V"]]:
    """The pure function (params, hidden states after `layer` layers) -> logits, float32."""
    def forward(params: Params, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        module = models.module(spec, params)
        if isinstance(module, MLP):
            length, x = x.shape[1], x[:, -1]
            for i in range(layer, spec.n_layers):
                x = jax.nn.relu(module.hidden[i - 1](x) if i else x)
            return module.answer(x, length)
        for block in module.blocks[layer:]:
            x = block(x)
        return module.logits(x)

    return forward


def is_lower(path: str, layer: int) -> bool:
    """Whether a parameter, by the names of its path, is read by `lower` of a layer: also a tied token embedding, which the head reads, too.

    >>> [is_lower(name, 1) for name in ("tokens", "blocks/0/mlp/up/w", "blocks/1/mlp/up/w", "norm/scale", "hidden/0/w")]
    [True, True, False, False, False]
    """
    first, *rest = path.split("/")
    if first in ("blocks", "hidden"):
        return int(rest[0]) < layer - (first == "hidden")
    return first in ("tokens", "positions", "places", "bias")
