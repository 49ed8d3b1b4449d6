"""One worker process on one CPU core: reads packs as lines of JSON, works on them, tells what happens as lines of JSON.

Started by `launch.py` as `python -m scalemem.worker STORE CORE PARENT_PID`. SIGINT and SIGTERM ask it to checkpoint and leave.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalemem.pack import Pack
    from scalemem.store import Store

LEASE_WAIT_S = 5.0  # how long an order waits for runs that another process, such as an orphan of a killed launch, still holds


class Interrupted(Exception):
    """The work was stopped from outside; what was finished is in the store, and the rest in checkpoints."""


def settle(core: int | None, parent: int | None = None) -> None:
    """Gives this process one core's worth of threads, and lets it die with its parent. Before JAX is imported.

    Args:
      core: which core it is pinned to, so that XLA has one thread; None where processes cannot be pinned: XLA is told.
      parent: the process that started this one; if it has died already, this one exits.
    """
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    else:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false".strip()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: from now on; hence the check of before
    if parent is not None and os.getppid() != parent:
        sys.exit(f"process {parent}, which started this worker, has ended")


def cache_folder(name: str) -> Path:
    """What this user keeps between processes: a folder in `scalemem` in XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scalemem" / name


def compilation_cache() -> None:
    """Compiled programs are kept between processes, in the user's cache folder (or JAX_COMPILATION_CACHE_DIR)."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def attempt(p: Pack, store: Store, how: str = "map", devices: int = 0, report: Callable[[dict[str, Any]], None] = lambda event: None,
            stopping: Callable[[], bool] = lambda: False, wait_s: float = LEASE_WAIT_S,
            begin: Callable[[], bool] = lambda: True) -> dict[str, Any]:
    """Works on a pack, in whichever process, under a lease of its runs; what goes wrong is told, not raised.

    Args:
      p, store, how, devices, report, stopping: as for `execute.work`.
      wait_s: how long to wait for runs that another process holds, in seconds.
      begin: asked when the runs are held; if false, there is nothing to do.
    Returns:
      {"event": "done"}, {"event": "stopped"} as `stopping` asked, {"event": "held", "reason"} by another process, or {"event": "raised",
      "reason", "log_tail"}, with "disk": True where the store cannot be written.
    """
    from scalemem import execute, locking
    from scalemem.durable import DiskError

    deadline = time.monotonic() + wait_s
    try:
        while True:
            wanted = [execute.run_id(run) for run in store.missing(p.runs)]
            if not wanted:
                return {"event": "done"}
            with store.lease(wanted) as lease:
                if len(lease.run_ids) == len(wanted):
                    if not begin():
                        return {"event": "done"}

                    def told(event: dict[str, Any]) -> None:
                        lease.beat()
                        report(event)

                    return {"event": "done" if execute.work(p, store, how, devices, told, stopping) else "stopped"}
                held = set(wanted) - set(lease.run_ids)
            if stopping():
                return {"event": "stopped"}
            if time.monotonic() >= deadline:
                who = {f"process {w['pid']} on {w['host']}" for w in locking.leases(store.path / "leases") if held & set(w["run_ids"])}
                return {"event": "held", "reason": f"{len(held)} runs are held by {', '.join(sorted(who)) or 'another process'}"}
            time.sleep(0.2)
    except DiskError as error:  # no other pack could be kept either
        return {"event": "raised", "reason": str(error), "log_tail": traceback.format_exc()[-4000:], "disk": True}
    except Exception as error:  # whatever JAX or a measure raises: the other packs go on
        return {"event": "raised", "reason": execute.reason(error), "log_tail": traceback.format_exc()[-4000:]}


def main() -> int:
    """Serves packs until standard input ends. 0 when it ended, 130 when asked to stop."""
    store_path, core, *parent = sys.argv[1:]
    settle(int(core) if core != "-" else None, *map(int, parent))
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever prints goes to the log; the parent reads only our lines
    stopped = False

    def stop(*_: Any) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)

    def say(event: dict[str, Any]) -> None:
        out.write(json.dumps(event) + "\n")

    from scalemem import execute
    from scalemem.store import Store

    compilation_cache()
    store = Store.open(store_path)
    say({"event": "ready"})
    for line in iter(sys.stdin.readline, ""):
        event = attempt(execute.from_json(json.loads(line)), store, report=say, stopping=lambda: stopped)
        print(event.pop("log_tail", ""), file=sys.stderr, end="", flush=True)
        say(event)
        if stopped:
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
