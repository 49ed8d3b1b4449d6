"""Commands that run, judge and show studies and stores."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.markup import escape

from scalemem import study as studies_
from scalemem.commands.terminal import Outcome, Stopped, console_of, pairs
from scalemem.spec import SpecError, run_id
from scalemem.store import Store, StoreError
from scalemem.sweep import Sweep


def _folder(name: str) -> Path:
    return Path("runs") / Path(name).stem


def _sweep(args: argparse.Namespace, name: str) -> tuple[Sweep, Path]:
    return studies_.sweep(name, args.scale), Path(args.store) if args.store else _folder(name) / "store"


def _slurm(args: argparse.Namespace) -> Any:
    """What jobs ask for, of --launcher slurm; None with --launcher local."""
    from scalemem import sbatch

    names = ("partition", "time", "gpus", "gpu_memory", "cpus", "array_limit", "pack_size")
    asked = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    more = pairs(args.slurm, "slurm")
    if args.launcher == "slurm":
        if args.workers is not None:
            raise SpecError(f"--workers {args.workers}: is of --launcher local; use --array-limit and --cpus")
        sbatch.check()
        return sbatch.Slurm(**asked, more=more)
    for name in (*asked, *(["slurm"] if more else [])):
        raise SpecError(f"--{name.replace('_', '-')}: is of --launcher slurm; add that, or leave it out")
    return None


def _execute(args: argparse.Namespace, name: str, console: Any) -> tuple[Store, Sweep, dict[str, int], bool]:
    """Runs what the store lacks; the last of what it returns says whether this process is the command's first, which goes on alone."""
    from scalemem import execute, hosts, keeping, launch, paths, show

    sweep, path = _sweep(args, name)
    runs = sweep.runs()
    keep = keeping.parse(args.keep_models, args.checkpoint_at)
    if args.workers is not None and args.workers < 1:
        raise SpecError(f"--workers {args.workers}: must be at least 1; leave it out to use every core")
    slurm, passes = _slurm(args), paths.Passes(args.micro_batch or 0, args.remat, args.split or 0)
    team = hosts.Team() if slurm else hosts.team(args.coordinator, args.processes, args.process_id)
    console.quiet = team.index > 0
    if args.across_hosts:
        team.join()
    execute.check(runs)
    store = Store.open(path, create=True)
    if team.index == 0:
        store.register(f"{Path(name).stem}.{args.scale}", runs)
    try:
        with show.progress(console, len(runs)) as report:
            counts = launch.run(runs, store, args.executor, args.workers, report, slurm, keep, passes, team, args.across_hosts)
    except launch.Interrupted as stop:
        left = len(store.missing(runs))
        raise Stopped(f"{len(runs) - left} of {len(runs)} runs are in {path}; the same command goes on from there. {stop}".strip()) from None
    return store, sweep, counts, team.index == 0


def study(args: argparse.Namespace) -> Outcome:
    """Run + fit + figure + verdicts."""
    from scalemem import show

    console, name = console_of(args), args.name
    head, _ = studies_.definition(name, args.scale), studies_.sweep(name, args.scale)
    studies_.find(name, "figures")
    console.print(f"[bold]{escape(head.get('title', name))}[/]  {escape(head.get('source', ''))}", soft_wrap=True)
    store, sweep, counts, first = _execute(args, name, console)
    if not first:
        return {"store": str(store.path), "runs": counts}, 1 if counts["failed"] else 0
    if not counts["done"]:
        console.print(f"No run is done: {counts['diverged']} diverged, {counts['failed']} failed; see scalemem status {store.path}", soft_wrap=True)
        return {"store": str(store.path), "runs": counts}, 1
    table = studies_.runs_table(store, sweep)
    result = studies_.evaluate(name, args.scale, table, studies_.Measured(store, table))
    out = Path(args.out) if args.out else _folder(name)
    out.mkdir(parents=True, exist_ok=True)
    stem = f"{Path(name).stem}.{args.scale}"
    body = studies_.save(out / f"{stem}.json", name, args.scale, table, result)
    show.result(console, body)
    picture = studies_.figure(name, table, result, out / f"{stem}.png")
    body |= {"store": str(store.path), "figure": str(picture), "runs": counts}
    console.print(f"figure {picture}   result {out / stem}.json   store {store.path}", soft_wrap=True)
    failed = any(c["verdict"] == "FAILS" for c in body["claims"]) and args.check
    return body, 1 if failed or counts["failed"] else 0


def studies(args: argparse.Namespace) -> Outcome:
    """A list of studies with their last verdicts: of this folder's runs, or else those kept in the repository."""
    from scalemem import show

    console, rows = console_of(args), []
    for name in studies_.names():
        last = studies_.last(name)
        head = studies_.definition(name, last.get("scale", "laptop"))
        verdicts = {c["id"]: {"verdict": c["verdict"], "value": c["value"], "low": c["low"], "high": c["high"]} for c in last.get("claims", [])}
        rows.append({"name": name, "title": head.get("title", ""), "source": head.get("source", ""), "scale": last.get("scale"),
                     "claims": [c["text"] for c in head.get("claim", [])], "verdicts": verdicts})
        console.print(f"[bold]{name}[/]  {head.get('title', '')}\n  {head.get('source', '')}", soft_wrap=True)
        for claim in head.get("claim", []):
            said = verdicts.get(claim["id"])
            text = f"{said['verdict']} ({show.number(said['value'])}, scale {last['scale']})" if said else "not run yet"
            console.print(f"  {claim['id']}: {text}", soft_wrap=True)
    return rows, 0


def plan(args: argparse.Namespace) -> Outcome:
    """What a run would do, from the specs alone."""
    from scalemem import execute, launch, paths, show
    from scalemem.data.load import load_ratio

    console = console_of(args)
    sweep, path = _sweep(args, args.sim)
    runs = sweep.runs()
    store = Store.open(path) if (path / "store.json").exists() else None
    execute.check(runs)
    passes = paths.Passes(args.micro_batch or 0, args.remat, args.split or 0)
    ways = launch.ways(runs, args.executor, passes)
    planned = [(way, way.plan(store, passes)) for way in ways]
    packs = [p for _, own in planned for p in own]
    finished = store.finished() if store else {}
    shapes: dict[Any, list[Any]] = {}
    for p in packs:
        shapes.setdefault(p.shape, []).extend(run for run in p.runs if run_id(run) not in finished)
    workers = max([max(1, min(len(launch.cores()), len(own))) if way.executor == "cpu" else 1 for way, own in planned], default=1)
    way_of = {p.shape: way for way, own in planned for p in own}
    rows = [{**{k: getattr(s.run.model, k) for k in ("n_layers", "d_model", "n_heads", "vocab_size", "seq_len")},
             "n_params": execute.accounting.n_params(s.run.model), "runs": len(rs), "path": way_of[s].executor,
             "train_flops": sum(map(execute.accounting.train_flops, rs)), "core_seconds": sum(map(execute.seconds, rs)),
             **({"capacity_load_ratio": max(map(load_ratio, rs))} if len(s.run.stages) > 1 else {})}
            for s, rs in shapes.items()]
    lefts = [execute.left(own, store, way.how, way.devices) for way, own in planned]
    left = execute.Left(*map(sum, zip(*lefts, strict=True)))
    body = {"event": "plan", "packs": len(packs), "runs": left.runs, "shapes": len(shapes), "workers": workers, "flops": left.flops,
            "seconds": left.seconds / workers, "paths": [way.row() for way in ways]}
    show.plan(console, body, len(runs))
    if rows:
        show.table(console, {"title": "", "columns": list(rows[0]), "rows": rows})
    for complaint in filter(None, (way.complaint() for way in ways)):
        console.print(f"[red]does not fit:[/] {escape(complaint)}", soft_wrap=True)
    return body | {"total_runs": len(runs), "by_shape": rows, "run_ids": [run_id(run) for rs in shapes.values() for run in rs]}, 0


def run(args: argparse.Namespace) -> Outcome:
    """Runs what the store lacks."""
    console = console_of(args)
    store, _, counts, _ = _execute(args, args.sim, console)
    console.print(f"{counts['done']} done, {counts['diverged']} diverged, {counts['failed']} failed; store {store.path}", soft_wrap=True)
    return {"store": str(store.path), **counts}, 1 if counts["failed"] else 0


def status(args: argparse.Namespace) -> Outcome:
    """Counts of a store, the jobs of a cluster that work for it, and why runs failed."""
    from scalemem import sbatch, show

    console, store = console_of(args), Store.open(args.store)
    found = store.status()
    try:
        found |= {"jobs": sbatch.jobs(store), "cluster": ""}
    except StoreError as error:
        found |= {"jobs": [], "cluster": str(error).split(";")[0]}
    console.print("  ".join(f"{k} {v}" for k, v in found["counts"].items()))
    for name, counts in found["sweeps"].items():
        console.print(f"  {name}: " + "  ".join(f"{k} {v}" for k, v in counts.items()), soft_wrap=True)
    for worker in found["workers"]:
        console.print(f"  running on {worker['host']} in process {worker['pid']}: {len(worker['run_ids'])} runs", soft_wrap=True)
    for job in found["jobs"][:20]:
        where = f" on {job['node']} for {show.duration(job['elapsed_s'])}" if job["node"] else ""
        why = f" ({escape(job['reason'])})" if job["reason"] else ""
        console.print(f"  job {job['job']}: {job['state'].lower()}{where}{why}", soft_wrap=True)
    if len(found["jobs"]) > 20:
        console.print(f"  and {len(found['jobs']) - 20} more jobs", soft_wrap=True)
    if found["cluster"]:
        console.print(f"  [yellow]the cluster's view is not known:[/] {escape(found['cluster'])}", soft_wrap=True)
    for key, failure in list(found["failures"].items())[:20]:
        console.print(f"  [red]failed[/] {key}: {escape(failure['reason'])}", soft_wrap=True)
    return found, 0


def figure(args: argparse.Namespace) -> Outcome:
    """Draws a study's figure from what its store has."""
    console = console_of(args)
    sweep, path = _sweep(args, args.name)
    store = Store.open(path)
    table = studies_.runs_table(store, sweep)
    result = studies_.evaluate(args.name, args.scale, table, studies_.Measured(store, table))
    out = Path(args.out) if args.out else _folder(args.name) / f"{Path(args.name).stem}.{args.scale}.png"
    out.parent.mkdir(parents=True, exist_ok=True)
    console.print(f"figure {studies_.figure(args.name, table, result, out)}", soft_wrap=True)
    return {"figure": str(out), "runs": table.num_rows}, 0


def export(args: argparse.Namespace) -> Outcome:
    """Writes a table of a store to a file."""
    store = Store.open(args.store)
    store.export(args.out, args.table)
    console_of(args).print(f"{args.table} written to {args.out}", soft_wrap=True)
    return {"out": args.out, "table": args.table}, 0
