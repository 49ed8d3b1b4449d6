"""States of training that a launch kept under a name (`--checkpoint-at`): which there are, and one of them read.

    scalemem run capacity --checkpoint-at 10,100,stages

keeps the states of each run after 10 and 100 exposures of its last stage as "exposures-10" and "exposures-100", and at the end of its stages as
"stage-1" and so on, in <store>/named/. They stay when the run has finished.
"""

from __future__ import annotations

from scalemem import checkpoint, execute, keeping, pack, train
from scalemem.durable import one_line
from scalemem.spec import RunSpec, run_id
from scalemem.stages import Stages
from scalemem.store import Store, StoreError


def names(store: Store, key: str) -> dict[str, str]:
    """Name to pack, of all that was kept of the run with this run_id."""
    with one_line(store.path):
        packs = sorted((store.path / "named").glob("*/*"))
    found = {}
    for path in packs:
        saved = checkpoint.load_pack(path)
        if saved and any(run_id(run) == key for run in execute.from_json(saved).runs):
            found.setdefault(path.parent.name, path.name)
    return found


def load(store: Store, key: str, name: str) -> tuple[RunSpec, train.State]:
    """The run with this run_id, and its state as it was kept under a name: parameters, optimizer, where it was.

    A run that had ended by then is as it ended: `state.segment` says after how many segments of its stage.

    Raises:
      StoreError: nothing was kept under that name, or it is damaged: then it has been set aside.
    """
    found = names(store, key)
    if name not in found:
        raise StoreError(f"{store.path}: nothing was kept of run {key} under {name!r}; legal: {', '.join(sorted(found)) or 'none'}; "
                         "choose one of these, or run with --checkpoint-at in a new store")
    folder = keeping.folder(store.path, name, found[name])
    saved = checkpoint.load_pack(folder) or {}
    p, said = execute.from_json(saved), []
    like = Stages(p, saved.get("how", "map"), saved.get("devices", 1) if saved.get("how") in ("shard", "fsdp") else 0).like
    loaded = checkpoint.load(folder, like, store.path / "set-aside", said.append)
    if loaded is None:
        raise StoreError(f"{said[0]}; run it again in a new store")
    i = [run_id(run) for run in p.runs].index(key)
    return p.runs[i], pack.unpack(loaded[1], i)
