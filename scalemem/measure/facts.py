"""What a model knows of facts: log probabilities of their objects, whether it recalls them, whether it recognises them."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scalemem.data import facts
from scalemem.measure import drawing, scoring
from scalemem.measure.moment import Moment
from scalemem.models import Params
from scalemem.spec import RunSpec, SpecError

FOILS = 2  # other objects that a fact's own is held against
KINDS = ("memorization", "semantic", "composition")


def chosen(run: RunSpec, moment: Moment) -> list[tuple[str, np.ndarray]]:
    """Fact numbers of each source, at most `moment.most`, evenly spread; then "control": as many controls as the largest source has facts here.

    A fact of several sources is one of the first of them. Where a source has facts without structure, controls without structure follow, as
    "control_random".
    """
    variants, found, known = run.stages[0].data.variants, [], np.zeros(0, int)
    for source in moment.sources:
        low, high = source.first // variants, (source.first + source.n_items - 1) // variants
        count = min(moment.most, high - low + 1)
        fact = np.setdiff1d(low + np.arange(count) * (high - low + 1) // count, known)
        found.append((source.name, fact))
        known = np.concatenate([known, fact])
    ordinary = [len(fact) for _, fact in found if len(fact) and not facts.unstructured(run, fact).all()]
    without = [len(fact) for _, fact in found if facts.unstructured(run, fact).any()]
    first = facts.first_control(run)
    for name, counts, start in (("control", ordinary, first), ("control_random", without, first + facts.first_random(run))):
        if counts:
            found.append((name, start + np.arange(max(counts))))
    return found


@functools.lru_cache(maxsize=64)
def _sequences(run: RunSpec):
    """The jitted (key, fresh key, facts) -> sequences [kinds + FOILS, B, S]: probes, then the first sentence with other objects."""
    count = run.stages[0].data.object_tokens

    def make(key, fresh, fact):
        made = facts.probes(run, key, fact)
        first = made["memorization"]
        foils = [jnp.concatenate([first[:, :-count], facts.objects(run, fresh, fact, 1 + f)], 1) for f in range(FOILS)]
        return jnp.stack([*made.values(), *foils])

    return jax.jit(make)


@functools.lru_cache(maxsize=16)
def _judge(count: int):
    """Of the last `count` tokens: their -log p, and whether all are the likeliest."""
    def judged(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, targets = logits[:, -count:], targets[:, -count:]
        return scoring.token_nats(logits, targets).sum(-1), (logits.argmax(-1) == targets).all(-1)

    return judged


def measure(run: RunSpec, params: Params, data_key: Any, fresh_key: Any, moment: Moment) -> dict[str, Any]:
    """A row for each fact of the sources, and for as many controls.

    Args:
      run: its only stage is the one at hand.
      params: parameters of its model.
      data_key: key of its facts.
      fresh_key: key of the foils: the same ones at all moments of a run.
      moment: which sources, and how many facts of each.
    Returns:
      source; fact; memorization_nats, semantic_nats, composition_nats: -log p of the object's tokens, summed, at the end of each sentence of
      `data.facts.probes` (the last two are NaN for one variant, and for facts without structure); recalled: greedy decoding of the first sentence
      gives the object, all of it; recognized_fraction: of FOILS other objects (uniform as the fact's own), how many are less likely than it (equal
      ones count half), 1/2 for a model that knows nothing; margin_nats: the mean -log p of these less that of its own.
    Raises:
      SpecError: another generator.
    Source: the three probes are those of Chang et al. 2024 (arXiv 2406.11813); a paired test against a foil is recognition, and decoding from a cue
      recall, in Orhan 2023 (arXiv 2303.17557), as the literature file has them; a foil here differs from what was studied in its object alone.
    """
    if run.stages[0].data.generator != "facts":
        raise SpecError(f"data.generator = {run.stages[0].data.generator!r}: must be facts for the measure 'facts'; change it or leave that out")
    found = chosen(run, moment)
    fact = np.concatenate([numbers for _, numbers in found])
    room = -len(fact) % 8  # few shapes to compile
    tokens = _sequences(drawing.bare(run))(data_key, fresh_key, jnp.asarray(np.pad(fact, (0, room))))
    tokens = np.asarray(tokens)[:, : len(fact)]
    nats, right = scoring.in_chunks(run.model, params, tokens.reshape(-1, tokens.shape[-1]), _judge(run.stages[0].data.object_tokens))
    nats, right = nats.astype(np.float64).reshape(-1, len(fact)), right.reshape(-1, len(fact))
    kinds = len(nats) - FOILS
    known = dict(zip(KINDS, nats[:kinds], strict=False))
    missing, random = np.full(len(fact), math.nan), facts.unstructured(run, fact)
    columns = {f"{kind}_nats": known.get(kind, missing) if kind == "memorization" else np.where(random, math.nan, known.get(kind, missing))
               for kind in KINDS}
    foils = nats[kinds:]
    same = (tokens[kinds:] == tokens[0]).all(-1)  # a foil that is the object by chance says nothing
    beaten = np.where(same, 0.5, (foils > nats[0]) + 0.5 * (foils == nats[0]))
    return {"source": np.concatenate([np.full(len(numbers), name, dtype=object) for name, numbers in found]), "fact": fact, **columns,
            "recalled": right[0], "recognized_fraction": beaten.mean(0), "margin_nats": foils.mean(0) - nats[0]}
