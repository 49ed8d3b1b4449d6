"""One worker process on one CPU core: reads packs as lines of JSON, works on them, tells what happens as lines of JSON.

Started by `launch.py` as `python -m scalemem.worker STORE CORE`. SIGINT and SIGTERM ask it to checkpoint and leave.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any


def settle(core: int | None) -> None:
    """Pins this process to a core, lets XLA use one thread, and dies with its parent. Before JAX is imported."""
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def compilation_cache() -> None:
    """Compiled programs are kept between processes, in the user's cache folder (or JAX_COMPILATION_CACHE_DIR)."""
    import jax

    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path(root) / "scalemem" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def main() -> int:
    """Serves packs until standard input ends. 0 when it ended, 130 when asked to stop."""
    store_path, core = sys.argv[1], sys.argv[2]
    settle(int(core) if core != "-" else None)
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
        order = json.loads(line)
        try:
            with store.lease([execute.run_id(run) for run in execute.from_json(order).runs]):
                finished = execute.work(execute.from_json(order), store, report=say, stopping=lambda: stopped)
            say({"event": "done" if finished else "stopped"})
        except Exception as error:
            traceback.print_exc()
            say({"event": "failed", "reason": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"})
        if stopped:
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
