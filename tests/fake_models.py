"""Models that are functions of the tokens, for the tests of measures, and runs with canaries."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from conftest import MODEL, make_run

from scalemem import generate, models, train
from scalemem.data import canaries
from scalemem.measure import scoring
from scalemem.spec import CanarySpec

SEED = 3  # of which the canaries and controls of kind "random" all begin with different tokens


def make_canaries(model=MODEL, *, n_items=16, generator="uniform", seed=SEED, **canary):
    """A run of the small model with 4 canaries, each planted once, and 4 controls, unless told otherwise."""
    run = make_run(model, n_items=n_items, seed=seed, generator=generator)
    stage = run.stages[0]
    spec = CanarySpec(**{"per_group": 4, "controls": 4, **canary})
    return dataclasses.replace(run, stages=(dataclasses.replace(stage, data=dataclasses.replace(stage.data, canaries=spec)),))


def forget():
    """No program of a false model is kept."""
    for cached in (scoring._program, generate._program):
        cached.cache_clear()


def fake(monkeypatch, logits):
    """The measures see logits(tokens [B, T]) -> [B, T, V], which must be causal, in place of a model; params are {}."""
    def decode(spec):
        def prefill(params, tokens, total):
            return logits(tokens)[:, -1], jnp.pad(tokens, ((0, 0), (0, total - tokens.shape[1])))

        def step(params, token, position, cache):
            cache = jax.lax.dynamic_update_slice(cache, token[:, None], (0, position))
            return jnp.take(logits(cache), position, axis=1), cache

        return prefill, step

    monkeypatch.setattr(models, "apply", lambda spec: lambda params, tokens: logits(tokens))
    monkeypatch.setattr(models, "decode", decode)
    forget()


def constant(log_p):
    """Logits that do not look at the tokens."""
    return lambda tokens: jnp.broadcast_to(jnp.asarray(log_p, jnp.float32), (*tokens.shape, len(log_p)))


def lookup(known, vocab_size=MODEL.vocab_size, sure=60.0):
    """Logits `sure` for what comes next in the sequences known [N, S] that begin as the tokens do; 0 for all else."""
    known = jnp.asarray(known)
    following = jax.nn.one_hot(known[:, 1:], vocab_size)

    def logits(tokens):
        same = jnp.cumprod(tokens[:, None, : known.shape[1] - 1] == known[None, :, : min(tokens.shape[1], known.shape[1] - 1)], -1)
        found = sure * jnp.einsum("bnt,ntv->btv", same.astype(jnp.float32), following[:, : same.shape[2]])
        return jnp.pad(found, ((0, 0), (0, tokens.shape[1] - found.shape[1]), (0, 0)))

    return logits


def planted(run):
    """The probes of a run, and the sequences of those that are planted."""
    probes = canaries.probes(run, train.key(run.seed, "data"))
    return probes, np.asarray(probes.tokens)[probes.planted]
