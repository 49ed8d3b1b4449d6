"""Loss on every domain of a stream: held-out items of each, and how far above what the source itself has."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scalemem.data import domains
from scalemem.measure import drawing, scoring
from scalemem.measure.moment import Moment
from scalemem.models import Params
from scalemem.spec import RunSpec, SpecError


@functools.lru_cache(maxsize=64)
def _drawn(run: RunSpec):
    """The jitted (key, item numbers) -> sequences, and their exact nats a scored token."""
    def make(key, index):
        tokens = domains.items(run, key, index)
        return tokens, domains.nats(run, tokens, index // domains.DOMAIN).mean(-1)

    return jax.jit(make)


def _mean(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array]:
    return (scoring.token_nats(logits, targets).mean(-1),)


def measure(run: RunSpec, params: Params, data_key: Any, fresh_key: Any, moment: Moment) -> dict[str, Any]:
    """A row for each domain of the stream, whether trained on already, later or never.

    Args:
      run: its only stage is the one at hand.
      params: parameters of its model.
      data_key: key of its data.
      fresh_key: not used: the held-out items are items of their own.
      moment: `most` held-out items of each domain are read.
    Returns:
      domain; touched: some range of the run's stages has items of it; loss_nats: mean -log p a scored token; excess_nats: the same less the exact
      -log p of these tokens under the source, in expectation the Kullback-Leibler divergence of the model from it.
    Raises:
      SpecError: another generator.
    """
    del fresh_key
    stage = run.stages[0]
    if stage.data.generator != "domains":
        raise SpecError(f"data.generator = {stage.data.generator!r}: must be domains for the measure 'domains'; change it or leave that out")
    count, each = stage.data.domains, moment.most
    index = (np.arange(count)[:, None] * domains.DOMAIN + domains.HELD_OUT + np.arange(each)).ravel()
    tokens, exact = _drawn(drawing.bare(run))(data_key, jnp.asarray(index))
    (nats,) = scoring.in_chunks(run.model, params, tokens, _mean)
    loss, floor = (np.asarray(x, np.float64).reshape(count, each).mean(1) for x in (nats, exact))
    touched = np.zeros(count, bool)
    for source in moment.sources:
        touched[source.first // domains.DOMAIN : (source.first + source.n_items - 1) // domains.DOMAIN + 1] = True
    return {"domain": np.arange(count), "touched": touched, "loss_nats": loss, "excess_nats": loss - floor}
