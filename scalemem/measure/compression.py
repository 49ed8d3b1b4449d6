"""Adversarial compression: the shortest prompt after which a model says a sequence word for word, by greedy coordinate gradient."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from scalemem import models
from scalemem.data import canaries
from scalemem.measure import scoring
from scalemem.models import Params
from scalemem.spec import ModelSpec, RunSpec

TARGETS = 8  # canaries that `measure` searches for, and as many that the run did not plant
FIRST, STRIDE = 5, 5  # tokens of the first prompt, and by how many a failure lengthens it
STEPS, GROWTH = 200, 1.2  # moves of the first search, and by what a failure multiplies them
CANDIDATES, TOP_K = 100, 250  # prompts that a move looks at, and tokens that it draws from at a place


def slopes(apply: Callable[..., Any], params: Params, prompt: Int[Array, " N"], target: Int[Array, " T"], n: Any) -> Float[Array, "N V"]:
    """The gradient of the target's mean cross-entropy in the one-hot code of each token of a prompt, in nats.

    The prompt's embeddings are appended to the table of embeddings as rows of its own, so d loss / d one-hot = (d loss / d row) E^T,
    from nothing but `apply`.

    Args:
      apply: (params, tokens [B, L]) -> logits [B, L, V], causal.
      params: with the table of embeddings as params["tokens"], [V, D].
      prompt: int32 [N], of which the first n count.
      target: int32 [T].
      n: tokens of the prompt, 1..N, traced or not.
    Returns:
      float32 [N, V]; rows from n on are 0.
    """
    table = params["tokens"]
    place = jnp.arange(len(prompt) + len(target) - 1)
    inputs = jnp.where(place < n, len(table) + place, _laid(prompt, target, n))

    def nats(rows: Float[Array, "N D"]) -> Float[Array, ""]:
        logits = apply({**params, "tokens": jnp.concatenate([table, rows])}, inputs[None])[0, :, : len(table)]
        return _judged(logits, target, n)[0]

    return jax.grad(nats)(table[prompt]) @ table.T


def _laid(prompt: Int[Array, " N"], target: Int[Array, " T"], n: Any) -> Int[Array, " N+T-1"]:
    """The first n tokens of the prompt, the target but its last token where n = N, then zeros, which nothing before them sees."""
    after = jnp.arange(len(prompt) + len(target) - 1) - n
    before = jnp.resize(prompt, after.shape)  # what lies beyond the prompt is not taken from here
    return jnp.where(after < 0, before, jnp.where(after < len(target), target[jnp.clip(after, 0, len(target) - 1)], 0))


def _judged(logits: Float[Array, "L V"], target: Int[Array, " T"], n: Any) -> tuple[Float[Array, ""], Any]:
    """The target's mean cross-entropy in nats, and whether greedy decoding says all of it."""
    said = lax.dynamic_slice_in_dim(logits, n - 1, len(target))
    picked = jnp.take_along_axis(said, target[:, None], 1)
    return jax.nn.logsumexp(said - picked, -1).mean(), (said.argmax(-1) == target).all()


@functools.partial(jax.jit, static_argnames=("apply", "longest", "candidates", "top_k"))
def _attempt(params: Params, target: Int[Array, " T"], n: Any, steps: Any, key: jax.Array, *, apply, longest: int, candidates: int, top_k: int):
    """(found, prompt [longest]) of one search at n tokens. n and steps are traced: one compilation for all lengths of prompt."""
    with jax.default_matmul_precision("highest"):
        chunk = scoring.at_once((longest + len(target)) * len(params["tokens"]))

        def judged(prompt):
            return _judged(apply(params, _laid(prompt, target, n)[None])[0], target, n)

        def move(carry):
            step, key, prompt, _ = carry
            key, where, what = jax.random.split(key, 3)
            likely = lax.top_k(-slopes(apply, params, prompt, target, n), top_k)[1]
            place = jax.random.randint(where, (candidates,), 0, n)
            token = likely[place, jax.random.randint(what, (candidates,), 0, top_k)]
            tried = jnp.tile(prompt, (candidates, 1)).at[jnp.arange(candidates), place].set(token)
            nats, found = lax.map(judged, tried, batch_size=chunk)
            best = jnp.argmin(jnp.where(found, -1, nats))
            return step + 1, key, tried[best], found[best]

        key, seed = jax.random.split(key)
        prompt = jax.random.randint(seed, (longest,), 0, len(params["tokens"]), jnp.int32)
        last = lax.while_loop(lambda c: (c[0] < steps) & ~c[3], move, (jnp.int32(0), key, prompt, jnp.bool_(False)))
        return last[3], last[2]


def search(apply: Callable[..., Any], params: Params, target: Any, key: jax.Array, *, longest: int, steps: int = STEPS,
           candidates: int = CANDIDATES, top_k: int = TOP_K) -> np.ndarray | None:
    """The shortest prompt found after which greedy decoding says the target; None if none was.

    x* = argmin |x| over x with M(x) = y. One move of the search at n tokens: of each place, the top_k tokens whose one-hot slope is
    steepest downhill; `candidates` prompts, each with one place at random set to one of its tokens at random; go to the one of least
    loss, also where it is worse than the prompt it came from. The lengths: n = 5 first; n - 1 after a success; n + 5 and 1.2 times the
    moves after a failure; the end is a length at or below one that failed, or at or above one that succeeded.

    It differs from the authors' code in that a candidate that says the target ends the search even if another has a lower loss; top_k
    is at most V; n + 5 stops at the longest prompt still open, which is tried, where theirs is not; and `longest` is given, where
    theirs is 5 |y|. As in theirs, no length below one that failed is tried, though a shorter prompt may do where positions are learned.
    Prompts are tokens, start uniform, and no token stands before them. What it finds bounds |x*| from above.

    Args:
      apply: (params, tokens [B, L]) -> logits [B, L, V], causal; the same function each time, or it is compiled each time.
      params: with the table of embeddings as params["tokens"], [V, D]; in the precision of the search.
      target: the sequence y, int [T].
      key: of the search.
      longest: tokens of the longest prompt tried; longest + T tokens must fit the model.
      steps: moves at the first length.
      candidates: prompts a move looks at.
      top_k: tokens it draws from at each place.
    Returns:
      the prompt, int32 [n], or None.
    Raises:
      ValueError: no target, a longest prompt of no tokens, or parameters without params["tokens"].
    Source: Schwarzschild et al. 2024 (arXiv 2404.15146), schedule and sizes of the official code; the move is Zou et al.'s, as used there.
    """
    target = jnp.asarray(target, jnp.int32)
    if longest < 1 or target.ndim != 1 or not len(target):
        raise ValueError(f"longest = {longest}, target of shape {target.shape}: both must hold at least 1 token; give a longer sequence")
    if "tokens" not in params:
        raise ValueError(f"params has {', '.join(sorted(params))}: must have the embeddings as params['tokens']; name the table so")
    attempt = functools.partial(_attempt, apply=apply, longest=longest, candidates=candidates, top_k=min(top_k, len(params["tokens"])))
    failed, open_to, n, best = 0, longest + 1, min(FIRST, longest), None
    while failed < n < open_to:
        found, prompt = attempt(params, target, n, steps, jax.random.fold_in(key, n))
        if found:
            best, open_to, n = np.asarray(prompt)[:n], n, n - 1
        else:
            failed, steps, n = n, int(steps * GROWTH), min(n + STRIDE, open_to - 1)
    return best


def ratio(target_tokens: Any, prompt_tokens: Any) -> Any:
    """ACR = |y| / |x*| of two lengths in tokens, numbers or arrays; a target is memorized where it is above 1.

    >>> ratio(12, 4), round(ratio(26, 45), 3)
    (3.0, 0.578)
    """
    return target_tokens / prompt_tokens


@functools.lru_cache(maxsize=64)
def _apply(model: ModelSpec) -> Callable[..., Any]:
    return models.apply(dataclasses.replace(model, compute_dtype="float32", param_dtype="float32"))


def _even(count: int) -> np.ndarray:
    """At most TARGETS of the numbers 0 .. count - 1, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, TARGETS)).round().astype(int))


def measure(run: RunSpec, params: Params, data_key: Any, fresh_key: Any) -> dict[str, Any]:
    """Adversarial compression ratios of planted canaries, and of canaries that were not planted.

    At most 8 of each, evenly spaced by number, so that every number of copies is among them. The target is a canary's last
    t = min(length, S // 2 + 1) tokens: a prompt for it, of at most min(5 t, S - t), then shows a longer canary compressible where there
    is one, and the longest prompt leaves a target that ends its sequence in the place where it was trained.

    Args:
      run: the run that was trained, with canaries.
      params: its parameters; searched in float32 at the highest matmul precision.
      data_key: key of its training set.
      fresh_key: key of the search.
    Returns:
      A row a canary: canary, group, planted, copies, temperature, first_step, last_step, target_tokens, shortest_prompt_tokens (nan if no
      prompt was found), acr_ratio (nan likewise: it is then unknown, and low) and compressible (acr_ratio > 1). For the run:
      acr_compressible_fraction of the planted and acr_compressible_fraction_control of the others (nan where there are none).
    Raises:
      SpecError: a run without canaries.
    Source: Schwarzschild et al. 2024 (arXiv 2404.15146): tau = 1; all targets count in the fractions, found or not.
    """
    probes = canaries.probes(run, data_key)
    sides = (np.flatnonzero(probes.planted), np.flatnonzero(~probes.planted))
    chosen = np.sort(np.concatenate([side[_even(len(side))] for side in sides]))
    seq_len = run.model.seq_len
    length = min(probes.length, seq_len // 2 + 1, seq_len - 1)
    last = probes.first + probes.length
    targets = np.asarray(probes.tokens)[chosen, last - length : last]
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    apply, longest = _apply(run.model), min(5 * length, seq_len - length)
    prompts = [search(apply, params, target, jax.random.fold_in(fresh_key, int(c)), longest=longest)
               for c, target in zip(probes.canary[chosen], targets, strict=True)]
    shortest = np.array([np.nan if p is None else len(p) for p in prompts])
    ratios, planted = ratio(length, shortest), probes.planted[chosen]
    share = lambda side: float((ratios[side] > 1).mean()) if side.any() else float("nan")  # noqa: E731
    return {**{name: column[chosen] for name, column in probes.columns().items()},
            "target_tokens": np.full(len(chosen), length), "shortest_prompt_tokens": shortest, "acr_ratio": ratios,
            "compressible": ratios > 1, "acr_compressible_fraction": share(planted), "acr_compressible_fraction_control": share(~planted)}
