"""Final models as safetensors files: the weights of one run, and in the header which run it is.

    <store>/models/<run_id>.safetensors

A tensor is named by its path in the tree of parameters, such as `blocks/0/attention/q/kernel`, in the type it was trained in.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scalemem.durable import StoreError, one_line, write_whole
from scalemem.spec import RunSpec, SpecError, canonical_json, from_json, run_id


def check() -> None:
    """Raises SpecError if the package that writes the files is not there."""
    if importlib.util.find_spec("safetensors") is None:
        raise SpecError("--keep-models: the package safetensors is not installed; install it with pip install 'scalemem[hf]'")


def path_of(store: Path, key: str) -> Path:
    """Where the model of a run is kept."""
    return store / "models" / f"{key}.safetensors"


def _named(params: Any) -> dict[str, Any]:
    """Path to leaf, of a tree of parameters."""
    import jax

    return {"/".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def _sealed(content: Mapping[str, bytes], meta: dict[str, str]) -> str:
    """The checksum of all tensors and of what the header says."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode() + b"".join(content[name] for name in sorted(content))).hexdigest()


def save(path: Path, run: RunSpec, params: Any, status: str = "done") -> None:
    """Writes the model of a run, whole or not at all.

    Args:
      path: its file; the folder is made.
      run: what was run.
      params: the weights of the whole model, as `models.apply` takes them.
      status: of the run: "done" or "diverged".
    Raises:
      DiskError: it cannot be written.
    """
    import jax
    import numpy as np
    from safetensors.numpy import save as to_bytes

    from scalemem import __version__

    tensors = {name: np.ascontiguousarray(jax.device_get(leaf)) for name, leaf in _named(params).items()}
    meta = {"run_id": run_id(run), "spec": canonical_json(run), "status": status, "scalemem": __version__}
    data = to_bytes(tensors, meta | {"sha256": _sealed({name: t.tobytes() for name, t in tensors.items()}, meta)})
    with one_line(path):
        path.parent.mkdir(exist_ok=True)
        write_whole(path, data)


def load(path: str | os.PathLike[str]) -> tuple[RunSpec, Any]:
    """(run, params) of a file that `save` wrote: `models.apply(run.model)(params, tokens)` gives the trained model's logits.

    Raises:
      StoreError: no such file, not one of these, or damaged.
      SpecError: the package safetensors is not installed.
    """
    check()
    import jax
    import jax.numpy as jnp
    import numpy as np
    from safetensors import SafetensorError, deserialize

    from scalemem import models
    from scalemem.models import prompts

    path = Path(path)
    with one_line(path):
        data = path.read_bytes()
    try:
        size = int.from_bytes(data[:8], "little")
        meta = json.loads(data[8 : 8 + size])["__metadata__"]
        found = dict(deserialize(data))
        if meta.pop("sha256") != _sealed({name: bytes(t["data"]) for name, t in found.items()}, meta):
            raise ValueError("wrong checksum")
        run = from_json(meta["spec"])
        if run_id(run) != meta["run_id"]:
            raise ValueError("its spec is of another run")
        like = jax.eval_shape(lambda: models.init(run.model, jax.random.key(0)) | prompts.beside(run))
        flat = {name: np.frombuffer(found[name]["data"], jnp.dtype(leaf.dtype)).reshape(leaf.shape) for name, leaf in _named(like).items()}
    except (SafetensorError, SpecError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise StoreError(f"{path}: damaged, or no model of scalemem ({(str(error).splitlines() or ['?'])[0]:.80}); "
                         "run its run again with --keep-models in a new store") from None
    return run, jax.tree.unflatten(jax.tree.structure(like), list(map(jnp.asarray, flat.values())))
