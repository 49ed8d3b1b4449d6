"""A model over several devices: its weights, their gradients and the optimizer's moments split along the mesh axis "fsdp", and a batch's rows too.

Fully sharded data parallelism. Where arrays lie is all that is said here: XLA puts in the collectives (it gathers a layer's weights where they are
needed, and sums and scatters their gradients), and the step is that of `train.py`. Numbers agree with those of one device but for rounding.

    an array of the state   split along its largest dimension that the devices divide; whole where there is none, or where it is small
    rows of a pass          split; `train.Shape.micro_batch` is a multiple of the devices
    items, order, knobs     whole on every device

Source: Xu et al. 2021 (arXiv 2105.04663) for what XLA does; Rajbhandari et al. 2020 (arXiv 1910.02054), stage 3, for what is split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from scalemem import train

AXIS = "fsdp"
WHOLE = 1024  # an array of fewer numbers is kept whole on every device: a bias or a scale is not worth a message


def mesh(devices: Sequence[Any]) -> Mesh:
    """The devices as a mesh of one axis. Auto: XLA derives the places of what nothing is said about; under Explicit axes the step would not trace."""
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def split(shape: Sequence[int], devices: int, first: int = 0) -> PartitionSpec:
    """Along which dimension an array is split.

    Args:
      shape: of the array.
      devices: how many there are.
      first: dimensions before this one are never split.

    >>> split((4, 512, 2048), 8, 1), split((50257, 768), 8), split((7, 1001), 8), split((64,), 8)
    (P(None, None, 'fsdp'), P(None, 'fsdp'), P(), P())
    """
    able = [axis for axis in range(first, len(shape)) if shape[axis] % devices == 0]
    if not able or math.prod(shape[first:]) < WHOLE:
        return PartitionSpec()
    axis = max(able, key=lambda a: shape[a])
    return PartitionSpec(*(None,) * axis, AXIS)


def of(tree: Any, over: Mesh, first: int = 0) -> Any:
    """The sharding of every array of a tree (arrays or their shapes), as `split` says."""
    return jax.tree.map(lambda x: NamedSharding(over, split(x.shape, over.size, first)), tree)


def placed(tree: Any, over: Mesh, first: int = 0) -> Any:
    """A traced tree that lies as `of` says."""
    return jax.lax.with_sharding_constraint(tree, of(tree, over, first))


def placement(over: Mesh) -> train.Placement:
    """What `train.advance` is given: rows and weights split."""
    rows = NamedSharding(over, PartitionSpec(AXIS))
    return train.Placement(lambda tokens: jax.lax.with_sharding_constraint(tokens, rows), lambda tree: placed(tree, over))


def like(tree: Any, over: Mesh, first: int = 0) -> Any:
    """Shapes and types with the sharding that the arrays are to have: what a checkpoint is read as."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, of(tree, over, first))
