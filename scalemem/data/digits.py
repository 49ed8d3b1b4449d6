"""Handwritten digits, the real data set that comes with scikit-learn: 64 pixels of 17 levels, one token each, then the label.

1,797 images of 8 x 8; 140 of each digit for training and 34 for tests, chosen by a fixed hash of the image's number, so that all keys and seeds
have the same split. Order, initial weights and batches are what seeds differ in.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from scalemem.data import labels, source
from scalemem.data.labels import held_out
from scalemem.spec import RunSpec, SpecError

__all__ = ["check", "entropy_bits", "held_out", "items"]

PIXELS, LEVELS, TRAINING = 64, 17, 140


@functools.cache
def images() -> np.ndarray:
    """Levels of the images, int32 [10 digits, 174, 64]: of each digit 140 for training, then 34 for tests.

    Source: scikit-learn's `load_digits`, a copy of the test set of the UCI data set "Optical recognition of handwritten digits".
    """
    from sklearn.datasets import load_digits

    pixels, digit = (np.asarray(part, np.int32) for part in load_digits(return_X_y=True))
    drawn = source.hashed(0, np.arange(len(digit), dtype=np.uint32))
    order = np.argsort(drawn, kind="stable")
    return np.stack([pixels[order[digit[order] == c]][: TRAINING + labels.TEST_PER_CLASS] for c in range(10)])


def items(run: RunSpec, key: jax.Array, index: Int[Array, " B"]) -> Int[Array, "B 65"]:
    """Images `index` and their labels; numbers as in `labels`.

    Args:
      run: gives the vocabulary, data.per_class, data.task_classes and data.scenario.
      key: not used: the data set is what it is.
      index: item numbers, int32 [B]; may be traced.
    Returns:
      tokens, int32 [B, 65]: 64 levels 0 .. 16, row after row, then the label's token.
    """
    at = labels.place(run, jnp.asarray(index))
    return labels.finish(run, jnp.asarray(images())[at.number, at.row + TRAINING * at.test], at)


def entropy_bits(run: RunSpec) -> float:
    """NaN: nobody knows the entropy of an image."""
    return float("nan")


def check(run: RunSpec) -> None:
    """Raises SpecError, in one line, where the digits do not fit the model or the items are not there."""
    if run.model.seq_len != PIXELS + 1:
        raise SpecError(f"model.seq_len = {run.model.seq_len}: must be {PIXELS + 1} for digits, 64 pixels and a label; write {PIXELS + 1}")
    if run.stages[0].data.per_class > TRAINING:
        raise SpecError(f"data.per_class = {run.stages[0].data.per_class}: must be at most {TRAINING} for digits; lower it")
    labels.check(run, LEVELS)
