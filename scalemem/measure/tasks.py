"""Accuracy on the tasks of a stream of labelled items, under the scenario that the data name."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scalemem.data import labels
from scalemem.measure import drawing, scoring
from scalemem.measure.moment import Moment
from scalemem.models import Params
from scalemem.objectives.label import allowed
from scalemem.spec import RunSpec, SpecError

GENERATORS = ("digits", "prototypes")


@functools.lru_cache(maxsize=16)
def _judge(scenario: str, task_classes: int):
    """Of the label: its -log p, and whether it is the likeliest, among all tokens or those of its task."""
    def judged(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, label = logits[:, -1], targets[:, -1]
        if scenario == "task":
            logits = jnp.where(allowed(label, logits.shape[-1], task_classes), logits, -jnp.inf)
        return scoring.token_nats(logits, label), logits.argmax(-1) == label

    return judged


def touched(run: RunSpec, moment: Moment) -> list[tuple[int, int]]:
    """(transform, task) of each task that some range of the run touches, in the order in which they come."""
    return list(dict.fromkeys(task for source in moment.sources for task in labels.tasks(run, source.first, source.n_items)))


def measure(run: RunSpec, params: Params, data_key: Any, fresh_key: Any, moment: Moment) -> dict[str, Any]:
    """A row for each task that the run touches, also those still to come.

    Args:
      run: its only stage is the one at hand.
      params: parameters of its model.
      data_key: key of its data.
      fresh_key: not used: test items are items of their own.
      moment: at most `most` test items of a task are read.
    Returns:
      transform, task: which (a task of a permuted stream is a transform); n_test_count; accuracy_fraction: the likeliest answer is the label, among
      all tokens, or in the scenario "task" among the labels of the task; loss_nats: mean -log p of the label, with a softmax over the same.
    Raises:
      SpecError: another generator.
    Source: scenarios as in van de Ven & Tolias 2019, see `data.labels`.
    """
    del fresh_key
    spec = run.stages[0].data
    if spec.generator not in GENERATORS:
        raise SpecError(f"data.generator = {spec.generator!r}: must be one of {', '.join(GENERATORS)} for the measure 'tasks'; change it or leave "
                        "that out")
    found = touched(run, moment)
    index = [labels.test_items(run, *task, moment.most) for task in found]
    tokens = drawing.items(run, data_key, np.concatenate(index))
    nats, right = scoring.in_chunks(run.model, params, tokens, _judge(spec.scenario, spec.task_classes))
    ends = np.cumsum([len(i) for i in index])[:-1]
    mean = lambda x: np.array([part.mean() for part in np.split(x.astype(np.float64), ends)])  # noqa: E731
    transform, task = np.array(found).T
    return {"transform": transform, "task": task, "n_test_count": np.array([len(i) for i in index]), "accuracy_fraction": mean(right),
            "loss_nats": mean(nats)}
