"""scalemem: how many bits a language model holds, what it memorizes, when it forgets."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from scalemem.spec import (
    CanarySpec,
    DataSpec,
    InjectSpec,
    ModelSpec,
    OptimizerSpec,
    Probe,
    ReplaySpec,
    RunSpec,
    SpecError,
    Stage,
    StrategySpec,
)
from scalemem.sweep import Sweep, grid, repeat, tune

if TYPE_CHECKING:
    from scalemem.fitting import fit
    from scalemem.forecasting import backtest, forecast
    from scalemem.launch import run
    from scalemem.store import Store

__version__ = "0.1.0"

_LAZY = {"Store": "store", "run": "launch", "fit": "fitting", "forecast": "forecasting", "backtest": "forecasting"}

__all__ = ["CanarySpec", "DataSpec", "InjectSpec", "ModelSpec", "OptimizerSpec", "Probe", "ReplaySpec", "RunSpec", "SpecError", "Stage", "Store",
           "StrategySpec", "Sweep", "backtest", "fit", "forecast", "grid", "repeat", "run", "tune"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"scalemem.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'scalemem' has no attribute {name!r}")
