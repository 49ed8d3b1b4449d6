"""What streams of labelled items share: how items are numbered, the three scenarios, the label's token, permuted places.

Item i is under transform T = i // 2^22: 0 leaves the places of a sequence as they are, T > 0 permutes them, by a fixed hash of T. Within a
transform, j = i mod 2^22: training items from 0, class after class, `data.per_class` of each; test items from 2^20, TEST_PER_CLASS of each class;
numbers beyond these are training items again, so that a replay pool can span transforms. Task t of a split stream is the classes t task_classes ..
(t + 1) task_classes - 1; a task of a permuted stream is a transform, with task_classes = classes.

The last token of a sequence is its label, token V - 1 - label: labels are counted from the end of the vocabulary. data.scenario says what is asked:

class   the label is the class; an answer is one of all tokens
task    the label is the class; the task is known, so that an answer is one of the labels of its task
domain  the label is the class mod task_classes, the same for all tasks; an answer is one of all tokens

The three scenarios are those of van de Ven & Tolias 2019, as the literature file has them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from scalemem.data import source
from scalemem.spec import RunSpec, SpecError

TRANSFORM = 1 << 22  # item numbers of a transform
TEST = 1 << 20  # the first of them that is a test item
TEST_PER_CLASS = 34  # test items of a class: what the rarest digit has beside 140 for training
LABELS = 10  # classes of digits


class Place(NamedTuple):
    """What an item number says."""

    transform: Any
    number: Any  # the class
    row: Any  # which of the class, from 0
    test: Any  # whether it is a test item


def split(t: int, task_classes: int = 2, per_class: int = 140, transform: int = 0) -> tuple[int, int]:
    """Training items of task t of a split stream: (first, n_items) for a DataSpec.

    >>> split(1), split(0, 5), split(0, 10, transform=2)
    ((280, 280), (0, 700), (8388608, 1400))
    """
    return transform * TRANSFORM + t * task_classes * per_class, task_classes * per_class


def permuted(t: int, classes: int = 10, per_class: int = 140) -> tuple[int, int]:
    """Training items of task t of a permuted stream, all classes under transform t: (first, n_items) for a DataSpec with task_classes = classes.

    >>> permuted(1)
    (4194304, 1400)
    """
    return split(0, classes, per_class, t)


def held_out_split(t: int, task_classes: int = 2, transform: int = 0) -> tuple[int, int]:
    """Test items of task t of a split stream under a transform: (first, n_items).

    >>> held_out_split(1)
    (1048644, 68)
    """
    return transform * TRANSFORM + TEST + t * task_classes * TEST_PER_CLASS, task_classes * TEST_PER_CLASS


def classes(run: RunSpec) -> int:
    """How many classes there are: 10 digits, or data.classes."""
    data = run.stages[0].data
    return LABELS if data.generator == "digits" else data.classes


def place(run: RunSpec, index: Any) -> Place:
    """Transform, class, row and split of item numbers: a Python integer or an array."""
    xp = np if isinstance(index, (int, np.ndarray, np.integer)) else jnp
    count, j, per_class = classes(run), index % TRANSFORM, run.stages[0].data.per_class
    test = (j >= TEST) & (j < TEST + count * TEST_PER_CLASS)
    of_class, row = xp.where(test, (j - TEST) // TEST_PER_CLASS, j // per_class % count), xp.where(test, (j - TEST) % TEST_PER_CLASS, j % per_class)
    return Place(index // TRANSFORM, of_class, row, test)


def token(run: RunSpec, of_class: Any) -> Any:
    """The label token of a class: V - 1 - class, or V - 1 - (class mod task_classes) where the scenario is "domain"."""
    data = run.stages[0].data
    return run.model.vocab_size - 1 - (of_class % data.task_classes if data.scenario == "domain" else of_class)


def finish(run: RunSpec, pixels: Int[Array, "B S-1"], at: Place) -> Int[Array, "B S"]:
    """Sequences: the tokens in the places that their transform gives them, then the label."""
    moved = jax.vmap(lambda row, t: row[jnp.where(t == 0, jnp.arange(len(row)), permutation(t, len(row)))])(pixels, at.transform)
    return jnp.concatenate([moved, token(run, at.number)[:, None]], 1).astype(jnp.int32)


def permutation(transform: Any, places: int) -> Int[Array, " P"]:
    """The places that a transform above 0 takes tokens from: the order of a hash of (transform, place); the same for all keys."""
    part = jnp.asarray(transform).astype(jnp.uint32)
    return jnp.argsort(source.hashed(0, part, jnp.arange(places, dtype=jnp.uint32)))


def test_items(run: RunSpec, transform: int, task: int, most: int) -> np.ndarray:
    """At most `most` test items of a task, evenly spread over its classes."""
    first, n_items = held_out_split(task, run.stages[0].data.task_classes, transform)
    count = min(most, n_items)
    return first + np.arange(count) * n_items // count


def tasks(run: RunSpec, first: int, n_items: int) -> list[tuple[int, int]]:
    """(transform, task) of each task that a range of training items touches."""
    low, high = place(run, first), place(run, first + n_items - 1)
    each, size = run.stages[0].data.task_classes, classes(run)
    if low.transform != high.transform:
        return [(t, task) for t in range(low.transform, high.transform + 1) for task in range(size // each)]
    return [(int(low.transform), task) for task in range(int(low.number) // each, int(high.number) // each + 1)]


def held_out(run: RunSpec, first: int, n_items: int, count: int) -> np.ndarray:
    """Test items of the tasks of a range of training items, evenly spread over the tasks."""
    found = tasks(run, first, n_items)
    return np.concatenate([test_items(run, *task, max(1, count // len(found))) for task in found])


def check(run: RunSpec, pixels: int) -> None:
    """Raises SpecError, in one line, for a vocabulary without room for `pixels` tokens and the labels, or items of no class."""
    data, count = run.stages[0].data, classes(run)
    if data.canaries is not None:
        raise SpecError(f"data.canaries: must be None for labelled items ({data.generator}); leave them out")
    if run.model.vocab_size < pixels + count:
        raise SpecError(f"model.vocab_size = {run.model.vocab_size}: must be at least {pixels + count}, {pixels} tokens and {count} labels; raise it")
    if count % data.task_classes:
        raise SpecError(f"data.task_classes = {data.task_classes}: must divide the {count} classes; try "
                        f"{max(k for k in range(1, data.task_classes) if count % k == 0)}")
    if count * data.per_class > TEST:
        raise SpecError(f"data.per_class = {data.per_class}: must be at most {TEST // count} for {count} classes; lower it")
    for i, stage in enumerate(run.stages):
        objective = stage.objective
        if objective.startswith("label_in_task") and objective != f"label_in_task_{data.task_classes}":
            raise SpecError(f"stages[{i}].objective = {objective!r}: must be label_in_task_{data.task_classes} where data.task_classes = "
                            f"{data.task_classes}; write that")
        for name, part in (("data", stage.data), ("inject", stage.inject)):
            if part and part.first % TRANSFORM + part.n_items > count * data.per_class:
                raise SpecError(f"stages[{i}].{name}.n_items = {part.n_items}: items from {part.first} on end at {count * data.per_class} within a "
                                f"transform, {count} classes of {data.per_class}; lower it (scalemem.data.labels.split gives ranges of tasks)")
