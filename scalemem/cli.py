"""The commands. Bad input is one line on standard error and exit status 2; a failed run, or FAILS under --check, is 1."""

from __future__ import annotations

import argparse
import json
import sys
from typing import NoReturn

EPILOG = """examples:
  scalemem study capacity                       sweep, fit, forecast, verdicts and a figure, in about 6 minutes on 2 cores
  scalemem plan capacity --scale hour           what that would cost, before anything is spent
  scalemem fit runs.csv --y loss --x n_params --out fit.json
  scalemem forecast fit.json --at n_params=7e9 --interval 0.9 --figure forecast.png
  scalemem fit runs.csv --law chinchilla --y loss --x n_params=N --x n_tokens=D --derive "D=flop / (6 * N)" --out law.json --report law.md
  scalemem allocate law.json --budget 1e22      the size and the tokens to spend it on
"""
ALLOCATE = """compute-optimal: the least loss at C = K N D, with N parameters, D tokens and K = 6 unless --flops-factor says otherwise.
  parametric   of L = E + A N^-alpha + B D^-beta, N = G (C/K)^(beta/(alpha+beta)) with G = (alpha A / (beta B))^(1/(alpha+beta))
  2            a parabola in log N for each compute group, a power law through their minima; biased, and the output says by how much
"""


class _Parser(argparse.ArgumentParser):
    """Errors in one line: what is wrong, what is legal, how to mend it."""

    def error(self, message: str) -> NoReturn:
        text = " ".join(message.replace("invalid choice", "no such choice").split())
        self.exit(2, f"scalemem: error: {text}; see {self.prog} --help\n")


def parser(laws: str = "") -> argparse.ArgumentParser:
    """The parser of all commands; `laws` is the list that ends the help of those that fit."""
    top = _Parser(prog="scalemem", description=__import__("scalemem").__doc__, epilog=EPILOG, allow_abbrev=False,
                  formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--version", action="version", version=f"scalemem {__import__('scalemem').__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, text: str, *positional: tuple[str, str]) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
        for arg, about in positional:
            sub.add_argument(arg.lower(), metavar=arg, help=about)
        sub.add_argument("--json", action="store_true", help="machine output on standard output, and nothing else there")
        return sub

    def running(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--scale", default="laptop", help="smoke, laptop, hour or gpu, as the study defines them (default: laptop)")
        sub.add_argument("--store", metavar="DIR", help="where results are kept (default: runs/NAME/store)")

    def stepping(sub: argparse.ArgumentParser) -> None:
        running(sub)
        sub.add_argument("--executor", default="auto",
                         help="cpu (a pinned process a core), vmap, shard, fsdp (each model over several devices), or auto (default)")
        sub.add_argument("--micro-batch", type=int, metavar="ROWS", help="most rows a forward pass; a step sums the gradients of as many passes as "
                         "its batch needs (default: as suits the executor)")
        sub.add_argument("--remat", action="store_true", help="compute each block again in the backward pass: less memory, a third more work")
        sub.add_argument("--split", type=int, metavar="N", help="devices that fsdp splits each model over, with a run on each so many (default: all; "
                         "where auto chooses fsdp, as few as have the memory)")

    def executing(sub: argparse.ArgumentParser) -> None:
        stepping(sub)
        sub.add_argument("--workers", type=int, metavar="N", help="processes of the cpu executor (default: the cores there are)")
        sub.add_argument("--keep-models", action="store_true",
                         help="keep the final model of each run that finishes, as STORE/models/RUN_ID.safetensors (pip install 'scalemem[hf]')")
        sub.add_argument("--checkpoint-at", default="", metavar="E,E",
                         help="keep the states of training after so many exposures, or with `stages` at the end of each stage: 10,100,stages")
        several = sub.add_argument_group("started as several processes", "by srun, mpirun or on a TPU slice they find one another, and each takes "
                                         "packs of the same plan on its own devices; elsewhere, say in each:")
        several.add_argument("--coordinator", metavar="HOST:PORT", help="where the first process listens")
        several.add_argument("--processes", type=int, metavar="N", help="how many there are")
        several.add_argument("--process-id", type=int, metavar="I", help="which this one is, from 0")
        several.add_argument("--across-hosts", action="store_true", help="split each model over the devices of all processes instead")
        sub.add_argument("--launcher", choices=("local", "slurm"), default="local", help="this machine (default), or jobs of a Slurm cluster")
        jobs = sub.add_argument_group("with --launcher slurm", "Ctrl-C cancels the jobs, which checkpoint first; when this command is killed "
                                      "they go on, and the same command attaches to them.")
        jobs.add_argument("--partition", help="of the cluster (default: its own)")
        jobs.add_argument("--time", metavar="LIMIT", help="of a job: minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS; when it is reached, the job "
                          "checkpoints and is queued again")
        jobs.add_argument("--gpus", type=int, metavar="N", help="of a job (default 0): vmap on one, shard on several")
        jobs.add_argument("--gpu-memory", type=float, metavar="GB", help="of each GPU: models too large for one are split over a job's, and no "
                          "pack is larger than fits (default: not known, and neither is done)")
        jobs.add_argument("--cpus", type=int, metavar="N", help="cores of a job (default 1); without GPUs a process on each")
        jobs.add_argument("--array-limit", type=int, metavar="N", help="most jobs at once (default 16)")
        jobs.add_argument("--pack-size", type=int, metavar="N", help="runs of a pack on each GPU (default 64): no size can be tried from here")
        jobs.add_argument("--slurm", action="append", default=[], metavar="KEY=VALUE",
                          help="any other parameter of submitit (mem, qos, constraint, setup, signal_delay_s) or long option of sbatch; repeat")

    def preparing(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--derive", action="append", default=[], metavar="NAME=EXPRESSION",
                         help='a new column, such as "D=`Training FLOP` / (6 * `Model Size`)"; repeat')
        sub.add_argument("--unit", action="append", default=[], metavar="COLUMN=UNIT", help="the unit of a column, for those of parameters; repeat")
        sub.add_argument("--where", action="append", default=[], metavar="EXPRESSION",
                         help='rows to use, such as "exposures == 1000 and n_params < 1e5"; repeat: all must hold')
        sub.add_argument("--distinct", action="store_true", help="leave out rows that repeat an earlier one in every column")

    def fitting(sub: argparse.ArgumentParser) -> None:
        sub.formatter_class, sub.epilog = argparse.RawDescriptionHelpFormatter, laws
        sub.add_argument("--law", default="auto", help="auto (default): an average over laws, for any predictors; or a law from the list below")
        sub.add_argument("--y", required=True, metavar="COLUMN", help="the column that is fitted")
        sub.add_argument("--x", action="append", default=[], metavar="NAME=COLUMN",
                         help="a predictor of the law and its column; COLUMN alone is a predictor of that name, or the law's only one; repeat")
        sub.add_argument("--group", default="", metavar="A,B", help="fit each combination of these columns apart")
        preparing(sub)
        sub.add_argument("--loss", default="squared", metavar="TEXT",
                         help="squared (default, on the law's scale), log, linear, huber:DELTA, huber, asymmetric:T, binomial or beta_binomial")
        sub.add_argument("--trials", metavar="COLUMN", help="of counts (binomial, beta_binomial): out of how many; the law gives the probability")
        sub.add_argument("--starts", type=int, default=0, metavar="N", help="random starts besides the law's own")
        sub.add_argument("--bootstrap", type=int, default=0, metavar="N", help="intervals from refits to N resamples of the rows")
        sub.add_argument("--interval", type=float, default=0.9, help="probability of the intervals (default 0.9)")

    s = command("study", "run, fit, draw and judge one study", ("NAME", "a study; `scalemem studies` lists them"))
    executing(s)
    s.add_argument("--out", metavar="DIR", help="where the figure and result.json go (default: runs/NAME)")
    s.add_argument("--check", action="store_true", help="exit status 1 if a claim FAILS")
    command("studies", "the studies: name, source, claims, last verdicts")
    stepping(command("plan", "runs, shapes, FLOPs and estimated time, before anything is spent", ("SIM", "a study, or a .py file with SWEEP")))
    executing(command("run", "run what the store lacks; the same command goes on after a stop", ("SIM", "a study, or a .py file with SWEEP")))
    command("status", "done, running, diverged, failed, missing", ("STORE", "a store's directory"))
    s = command("fit", "fit a law to a store, CSV or Parquet table", ("SOURCE", "a store, .csv, .csv.gz or .parquet"))
    fitting(s)
    s.add_argument("--out", metavar="FIT.json", help="keep the fit, for `scalemem forecast`")
    s.add_argument("--report", metavar="FILE", help="the fit's checklist, filled in: .md to read, .json for programs")
    s.add_argument("--note", action="append", default=[], metavar="KEY=TEXT",
                   help="what no table says, for the report: n, d, c (how each was counted), exclusions, or a name of your own; repeat")
    s = command("forecast", "forecast from a fit, with its interval and how far it extrapolates", ("FIT", "what `scalemem fit --out` wrote"))
    s.add_argument("--at", action="append", default=[], metavar="NAME=VALUE",
                   help="a predictor's value; repeat for each predictor, and for one of them to ask for several points")
    s.add_argument("--group", metavar="COLUMN=VALUE", action="append", default=[], help="which group of the fit; repeat")
    s.add_argument("--interval", type=float, help="probability of the interval (default: the fit's)")
    s.add_argument("--figure", metavar="FILE", help="draw rows, laws, forecast and residuals: .png, .pdf or .svg")
    s = command("backtest", "how a law forecasts rows that were held out", ("SOURCE", "a store, .csv, .csv.gz or .parquet"))
    fitting(s)
    s.add_argument("--holdout", metavar="EXPRESSION", help='rows to predict, such as "n_params >= 1.4e9"')
    s.add_argument("--split", metavar="COLUMN", help="column that is 1 where a row is fitted and 0 where it is predicted")
    s.add_argument("--rolling", type=int, metavar="N", help="instead: N earlier origins, each forecasting the next factor of two")
    s.add_argument("--figure", metavar="FILE", help="draw each group's rows and forecast, up to 24 of them: .png, .pdf or .svg")
    s = command("allocate", "the compute-optimal model size and tokens of a training budget",
                ("SOURCE", "a fit of chinchilla (`scalemem fit --out`), or a table of runs with --approach 2"))
    s.formatter_class, s.epilog = argparse.RawDescriptionHelpFormatter, ALLOCATE
    s.add_argument("--budget", type=float, required=True, metavar="FLOP", help="training compute, such as 1e22")
    s.add_argument("--interval", type=float, default=0.9, help="probability of the intervals (default 0.9)")
    s.add_argument("--flops-factor", type=float, default=6.0, metavar="K", help="compute = K N D (default 6, a convention)")
    s.add_argument("--approach", choices=("parametric", "2"), default="parametric", help="from a fitted law (default), or from isoFLOP groups")
    s.add_argument("--group", action="append", default=[], metavar="COLUMN=VALUE", help="parametric: which group of the fit; repeat")
    s.add_argument("--y", metavar="COLUMN", help="approach 2: the loss")
    s.add_argument("--x", action="append", default=[], metavar="NAME=COLUMN",
                   help="approach 2: n_params and one of train_flops and n_tokens, and their columns; repeat")
    s.add_argument("--within", type=float, default=1.05, metavar="FACTOR", help="approach 2: runs whose compute agrees to this factor are a group")
    s.add_argument("--budgets", metavar="C1,C2", help="approach 2: the groups' nominal compute; a run further off than FACTOR is left out")
    preparing(s)
    s = command("lifelong", "forecast what a larger model has forgotten after more steps, from curves of small ones",
                ("SOURCE", "a .csv, .csv.gz or .parquet with a row a model and step"))
    s.add_argument("--y", default="forgotten_fraction", metavar="COLUMN", help="the share of what was known that is forgotten, 0 to 1")
    s.add_argument("--size", default="n_params", metavar="COLUMN", help="parameters of the model (default n_params)")
    s.add_argument("--steps", default="steps", metavar="COLUMN", help="steps, or tokens, of the continuation (default steps)")
    s.add_argument("--group", default="seed", metavar="COLUMN", help="forecast each of its values apart (default seed; may be absent)")
    s.add_argument("--at", action="append", default=[], metavar="NAME=VALUE", help="where to forecast: a size and steps; repeat one for several")
    s.add_argument("--interval", type=float, default=0.9, help="probability of the intervals (default 0.9)")
    preparing(s)
    s = command("figure", "draw a study's figure again from its store", ("NAME", "a study"))
    running(s)
    s.add_argument("--out", metavar="FILE", help="default: runs/NAME/NAME.SCALE.png")
    s = command("export", "write the table of runs to a file", ("STORE", "a store's directory"), ("OUT", ".csv or .parquet"))
    s.add_argument("--table", default="runs", help="runs (default) or curves")
    return top


def _laws() -> str:
    """The laws and their predictors, as the end of a help text; imported only where it is asked for."""
    from scalemem import laws

    every = laws.describe()
    name, predictors = (max(len(law[k]) for law in every) for k in ("name", "predictors"))
    rows = [f"  {law['name']:<{name}}  {law['predictors']:<{predictors}}  {law['formula']}" for law in
            [{"name": "auto", "predictors": "any", "formula": "an average over laws, each weighed by its evidence"}, *every]]
    return "\n".join(["laws, the predictors that --x NAME=COLUMN gives columns to, and the formula:", *rows])


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit status. No traceback reaches a user for bad input."""
    asked = sys.argv[1:] if argv is None else argv
    args = parser(_laws() if {"fit", "backtest"} & set(asked[:1]) else "").parse_args(asked)
    from scalemem import commands

    try:
        body, status = getattr(commands, args.command)(args)
        if args.json:
            json.dump(body, sys.stdout, indent=1, default=str)
            print()
        return status
    except commands.BAD_INPUT as error:
        print(f"scalemem: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # the reader has gone, as with `| head`
            sys.stderr.close()
            return 141
        print(f"scalemem: error: {error.filename or 'a file'}: {error.strerror or error}; check the path, its rights and the disk", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, commands.Stopped) as stop:
        print(f"\nscalemem: stopped. {stop or 'Nothing finished is lost; the same command goes on.'}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
