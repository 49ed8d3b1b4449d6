"""What each command does: a function of the parsed arguments to (JSON body, exit status), which prints for a person unless --json."""

from scalemem.commands.allocation import allocate
from scalemem.commands.curves import backtest, fit, forecast
from scalemem.commands.lifelong import lifelong
from scalemem.commands.studies import export, figure, plan, run, status, studies, study
from scalemem.commands.terminal import Stopped
from scalemem.durable import StoreError
from scalemem.spec import SpecError
from scalemem.tables import TableError

BAD_INPUT = (SpecError, StoreError, TableError)

__all__ = ["BAD_INPUT", "Stopped", "allocate", "backtest", "export", "figure", "fit", "forecast", "lifelong", "plan", "run", "status", "studies",
           "study"]
