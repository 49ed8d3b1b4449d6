"""Text from a model: greedy or sampled, with cached keys and values, as one program a shape; and the probabilities it samples from."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from scalemem import models, quick
from scalemem.accounting import n_params
from scalemem.models import Params
from scalemem.spec import ModelSpec

CHUNK_FLOATS = {"cpu": 1 << 21}  # numbers held at once for the prompts of a chunk, about: the caches of a CPU are small,
MOST_FLOATS = 1 << 26  # and elsewhere 256 MiB are few


def processed_log_probs(logits: Float[Array, "*L V"], temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Float[Array, "*L V"]:
    """Log probabilities, in nats, that `generate` samples from: temperature, then top-k, then nucleus; -inf for a token left out.

    1. q = softmax(logits / temperature); temperature 0 is greedy: probability 1 for the first of the largest logits.
    2. top_k > 0 keeps the k largest of q (of equal ones the first) and renormalises.
    3. top_p < 1 keeps, from the largest down, every token before which less than top_p has been kept, and renormalises: the fewest
       of the largest tokens that have at least top_p together, and never none.

    Args:
      logits: [..., V]; -inf is allowed, for a token that is banned.
      temperature: at least 0, dimensionless.
      top_k: tokens kept; 0 keeps all.
      top_p: probability kept, above 0; 1 keeps all.
    Returns:
      float32 [..., V]; the sum over a sequence's tokens is the log of p_z, the chance that one sample is that sequence.
    Raises:
      ValueError: a setting outside its range.
    Source: (n, p)-discoverable extraction, Hayes et al. 2024 (arXiv 2410.19482), takes p_z from such probabilities.

    >>> p = jnp.exp(processed_log_probs(jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05])), top_k=3, top_p=0.6))
    >>> [round(float(x), 3) for x in p]
    [0.625, 0.375, 0.0, 0.0]
    """
    _check(temperature, top_k, top_p)
    logits = jnp.asarray(logits, jnp.float32)
    if temperature == 0:
        return jnp.where(jnp.arange(logits.shape[-1]) == logits.argmax(-1)[..., None], 0.0, -jnp.inf)
    kept, token = _support(logits, temperature, top_k, top_p if top_p < 1 else None)
    if token is None:
        return kept
    return jnp.put_along_axis(jnp.full_like(logits, -jnp.inf), token, kept, axis=-1, inplace=False)


def _check(temperature: float, top_k: int, top_p: float) -> None:
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature = {temperature}: must be at least 0 and finite; 0 is greedy, 1 samples from the model")
    if top_k != int(top_k) or top_k < 0:
        raise ValueError(f"top_k = {top_k}: must be a whole number, at least 0; 0 keeps all tokens")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p = {top_p}: must be above 0 and at most 1; 1 keeps all tokens")


def _support(logits: Float[Array, "*L V"], temperature: Any, top_k: int,
             top_p: Any) -> tuple[Float[Array, "*L K"], Int[Array, "*L K"] | None]:
    """Log probabilities of the K largest tokens, from the largest down, and these tokens; of all, in their order, if none is left out."""
    scaled = logits / temperature
    if not top_k and top_p is None:
        return jax.nn.log_softmax(scaled), None
    largest, token = lax.top_k(scaled, min(top_k, scaled.shape[-1]) or scaled.shape[-1])
    kept = jax.nn.log_softmax(largest)
    if top_p is not None:
        before = jnp.cumsum(jnp.exp(kept), -1) - jnp.exp(kept)
        kept = jax.nn.log_softmax(jnp.where((before < top_p) | (jnp.arange(kept.shape[-1]) == 0), kept, -jnp.inf))
    return kept, token


def _best(logits: Float[Array, "B V"], banned: Any) -> Int[Array, " B"]:
    """The best token of each row that is not banned, or the best of all if every one is: the best is asked about, then the next, ..."""
    best = logits.argmax(-1).astype(jnp.int32)
    if banned is None:
        return best

    def strike(state):
        left, token, struck = state
        left = jnp.where((jnp.arange(left.shape[-1]) == token[:, None]) & struck[:, None], -jnp.inf, left)
        token = left.argmax(-1).astype(jnp.int32)
        return left, token, banned(token[:, None])[:, 0] & (left.max(-1) > -jnp.inf)

    left, token, _ = lax.while_loop(lambda state: state[2].any(), strike, (logits, best, banned(best[:, None])[:, 0]))
    return jnp.where(left.max(-1) > -jnp.inf, token, best)


@functools.lru_cache(maxsize=64)
def _program(model: ModelSpec, new_tokens: int, sampled: bool, top_k: int, nucleus: bool, quickly: bool):
    """The jitted function of one shape. Temperature, top_p, the rows' keys and the ban's arrays are traced."""
    prefill, step = models.decode(model)

    def choose(logits, sequence, position, keys, temperature, top_p, ban):
        if not sampled:
            return _best(logits, None if ban is None else functools.partial(ban, sequence, position))
        if ban is not None:
            left_out = ban(sequence, position, jnp.broadcast_to(jnp.arange(model.vocab_size), logits.shape))
            logits = jnp.where(left_out & ~left_out.all(-1, keepdims=True), -jnp.inf, logits)
        kept, token = _support(logits, temperature, top_k, top_p if nucleus else None)
        at = jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, position), row))(keys, kept)
        return (at if token is None else jnp.take_along_axis(token, at[:, None], -1)[:, 0]).astype(jnp.int32)

    def program(params: Params, prompts: Int[Array, "C P"], keys, temperature, top_p, ban) -> Int[Array, "C new"]:
        length = prompts.shape[1]
        sequence = jnp.pad(prompts, ((0, 0), (0, new_tokens)))

        def pick(logits, sequence, position):
            token = choose(logits, sequence, position, keys, temperature, top_p, ban)
            return token, lax.dynamic_update_slice(sequence, token[:, None], (0, position))

        def advance(carry, position):
            token, sequence, cache = carry
            logits, cache = step(params, token, position - 1, cache)
            token, sequence = pick(logits, sequence, position)
            return (token, sequence, cache), None

        with jax.default_matmul_precision("highest"):
            logits, cache = prefill(params, prompts, length + new_tokens - 1)
            token, sequence = pick(logits, sequence, jnp.int32(length))
            sequence = lax.scan(advance, (token, sequence, cache), jnp.arange(length + 1, length + new_tokens))[0][1]
        return sequence[:, length:]

    return jax.jit(program, compiler_options=quick.options(quickly))


def generate(model: ModelSpec, params: Params, prompts: Int[Array, "N P"] | np.ndarray, new_tokens: int, key: jax.Array | None = None,
             temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, ban: Any = None) -> np.ndarray:
    """Continues each prompt by `new_tokens` tokens: greedily (the first of equal logits), or by sampling if temperature > 0.

    In float32 at the highest matmul precision, whatever the model was trained in. A token is drawn from `processed_log_probs`;
    the draws of prompt i depend on (key, i) alone.

    Args:
      model: the architecture.
      params: its parameters.
      prompts: int32 [N, P], P >= 1 tokens.
      new_tokens: tokens to add to each; P + new_tokens may not exceed the model's seq_len.
      key: a PRNG key, needed if temperature > 0.
      temperature, top_k, top_p: as in `processed_log_probs`; a greedy choice is the same with any top_k and top_p.
      ban: which tokens may not come next: a callable pytree (tokens [B, P + new_tokens], position, candidates [B, C]) -> bool [B, C],
        where the tokens before `position` are written; `decoding.memfree.build` gives one, and `jax.tree_util.Partial` makes one
        of a function. Banned tokens go before temperature, top-k and nucleus; where all of the vocabulary is banned, none is.
    Returns:
      int32 [N, new_tokens].
    Raises:
      ValueError: a setting outside its range, prompts that are not [N, P] tokens of the vocabulary, more tokens than positions.
    Source: greedy decoding of a suffix from its prefix is extraction as in Carlini et al. 2022 (from memory, unverified).

    >>> model = ModelSpec(d_model=4, n_layers=1, n_heads=1, vocab_size=8, seq_len=6)
    >>> params = models.init(model, jax.random.key(0))
    >>> generate(model, params, np.array([[3, 1], [2, 2]]), 4).shape
    (2, 4)
    """
    _check(temperature, top_k, top_p)
    prompts = np.asarray(prompts)
    if prompts.ndim != 2 or prompts.shape[1] == 0 or prompts.dtype.kind not in "iu":
        raise ValueError(f"prompts = {prompts.dtype} {list(prompts.shape)}: must be whole numbers [N, P] with P at least 1; give a first token")
    if prompts.size and not 0 <= prompts.min() <= prompts.max() < model.vocab_size:
        raise ValueError(f"prompts from {prompts.min()} to {prompts.max()}: must be tokens 0..{model.vocab_size - 1}; use the model's vocabulary")
    (n, length), room = prompts.shape, model.seq_len - prompts.shape[1]
    if not 1 <= new_tokens <= room:
        raise ValueError(f"new_tokens = {new_tokens}: must be at least 1 and at most {room}, the positions that model.seq_len = {model.seq_len} "
                         f"leaves after {length} tokens; generate fewer or shorten the prompts")
    sampled = temperature > 0
    if sampled and key is None:
        raise ValueError(f"key = None with temperature = {temperature}: must be a PRNG key; give one, or temperature 0 for greedy decoding")
    exact = dataclasses.replace(model, compute_dtype="float32", param_dtype="float32")
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    quickly = quick.worth(2.0 * n_params(model) * n * (length + new_tokens))
    program = _program(exact, int(new_tokens), sampled, int(top_k) if sampled else 0, sampled and top_p < 1, quickly)
    chunk = min(_rows(model, length, new_tokens), 1 << max(n - 1, 0).bit_length())  # a power of two: few shapes to compile
    padded = jnp.pad(jnp.asarray(prompts, jnp.int32), ((0, -n % chunk), (0, 0)))
    keys = None if key is None else jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(len(padded)))
    settings = jnp.float32(temperature), jnp.float32(top_p), ban
    parts = [program(params, padded[i : i + chunk], None if keys is None else keys[i : i + chunk], *settings)
             for i in range(0, len(padded), chunk)]
    return np.concatenate([np.zeros((0, new_tokens), np.int32), *map(np.asarray, parts)])[:n]


def _rows(model: ModelSpec, length: int, new_tokens: int) -> int:
    """Prompts of a chunk: the largest power of two whose caches, activations and logits are at most CHUNK_FLOATS numbers."""
    cache = 2 * model.n_layers * (length + new_tokens) * model.d_model
    activations = length * (8 * model.d_model + model.n_heads * length)
    floats = CHUNK_FLOATS.get(jax.default_backend(), MOST_FLOATS)
    return 1 << max(0, (floats // (cache + activations + 2 * model.vocab_size)).bit_length() - 1)
