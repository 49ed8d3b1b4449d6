"""A model over several devices: its weights, their gradients and the optimizer's moments split along the mesh axis "fsdp", and a batch's rows too.

With more devices than a model needs, several runs train at once, one on each row of devices: the mesh has the axes "runs" and "fsdp".

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

RUNS, AXIS = "runs", "fsdp"
WHOLE = 1024  # an array of fewer numbers is kept whole on every device: a bias or a scale is not worth a message


def mesh(devices: Sequence[Any], runs: int = 1) -> Mesh:
    """The devices in so many rows, of a run each. Auto: XLA derives the places of what nothing is said about; under Explicit axes no step traces."""
    return Mesh(np.asarray(devices).reshape(runs, -1), (RUNS, AXIS), axis_types=(AxisType.Auto,) * 2)


def split(shape: Sequence[int], devices: int, packed: bool = False) -> PartitionSpec:
    """Along which dimension an array is split.

    Args:
      shape: of the array.
      devices: how many a run has.
      packed: the first dimension is of the runs of a pack.

    >>> split((4, 512, 2048), 8, packed=True), split((50257, 768), 8), split((7, 1001), 8), split((64,), 8)
    (P('runs', None, 'fsdp'), P(None, 'fsdp'), P(), P())
    """
    runs, own = ((RUNS,), shape[1:]) if packed else ((), shape)
    able = [axis for axis, length in enumerate(own) if length % devices == 0]
    if not able or math.prod(own) < WHOLE:
        return PartitionSpec(*runs)
    axis = max(able, key=lambda a: own[a])
    return PartitionSpec(*runs, *(None,) * axis, AXIS)


def of(tree: Any, over: Mesh, packed: bool = False) -> Any:
    """The sharding of every array of a tree (arrays or their shapes), as `split` says."""
    return jax.tree.map(lambda x: NamedSharding(over, split(x.shape, over.shape[AXIS], packed)), tree)


def placed(tree: Any, over: Mesh, packed: bool = False) -> Any:
    """A traced tree that lies as `of` says."""
    return jax.lax.with_sharding_constraint(tree, of(tree, over, packed))


def placement(over: Mesh) -> train.Placement:
    """What `train.advance` is given: rows and weights split."""
    rows = NamedSharding(over, PartitionSpec(AXIS))
    return train.Placement(lambda tokens: jax.lax.with_sharding_constraint(tokens, rows), lambda tree: placed(tree, over))


def like(tree: Any, over: Mesh) -> Any:
    """Shapes and types of a pack's states with the sharding that they are to have: what a checkpoint is read as."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, of(tree, over, packed=True))
