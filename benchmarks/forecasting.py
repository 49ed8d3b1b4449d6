"""How well `--law auto` forecasts what is not fitted, and what fixed choices reach on the same rows.

    python benchmarks/forecasting.py [--synthetic 40] [--data DIR] [--json] [--out FILE]

Public curves with their own splits: the score is the RMSE of the log of the median forecast over a curve's held-out rows, averaged over the
curves of a domain; coverage is the share of held-out rows in the central 90 % interval. Peers, in the same run on the same rows: the last
value, `power`, `power_floor` on all rows, and `power_floor` on the last decade of x. Then synthetic curves from every law with noise and
curves with a hidden second component, and the three public tables of several runs (Chinchilla, Gadre, Pythia).
Public files: ../shared/benchmarks; what is not there is left out.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from curves import DATA, LAWS, TARGETS, Curve, many, public
from grids import chinchilla, gadre, pythia
from training import machine

from scalemem import laws
from scalemem.averaging import average
from scalemem.fitting import fit
from scalemem.forecasting import predictive
from scalemem.tables import TooFewRows


def scores(spread: Any, y: np.ndarray) -> dict[str, float]:
    """Error of the median, coverage, width and density of a predictive distribution."""
    median, level = spread.quantile(0.5), spread.cdf(y)
    error = np.log(np.maximum(median, 1e-12) / y)
    return {"rmse_log": float(np.sqrt(np.mean(error**2))), "bias_log": float(np.mean(error)),
            "inside": int(np.sum(np.abs(level - 0.5) <= 0.45)), "n_test": len(y),
            "half_width": float(np.mean((spread.quantile(0.95) - spread.quantile(0.05)) / 2 / np.maximum(median, 1e-12))),
            "log_density": float(np.mean(spread.log_density(y)))}


def ours(c: Curve) -> dict[str, Any]:
    """The average on one curve, and the seconds that its fit and its forecast took."""
    began = time.perf_counter()
    found = average({"x": c.x[c.fitted]}, c.y[c.fitted])
    spread = found.predict({"x": c.x[~c.fitted]})
    spread.quantile(0.5)
    return {**scores(spread, c.y[~c.fitted]), "seconds": time.perf_counter() - began, "laws": found.shares()}


def peers(c: Curve) -> dict[str, float]:
    """RMSE of the log of fixed choices; NaN where they cannot be fitted."""
    x, y, ahead = c.x[c.fitted], c.y[c.fitted], c.x[~c.fitted]
    found = {"last value": np.full(len(ahead), y[-1])}
    for name, law, keep in (("power", "power", x > 0), ("power_floor", "power_floor", x > 0),
                            ("power_floor, last decade", "power_floor", x >= 0.0999 * x.max())):
        try:
            g = fit(pa.table({"x": x[keep], "y": y[keep]}), law, y="y", x="x").at()
            found[name] = predictive(laws.get(law), g, {"x": ahead}).quantile(0.5)
        except TooFewRows:
            found[name] = np.full(len(ahead), np.nan)
    return {k: float(np.sqrt(np.mean(np.log(v / c.y[~c.fitted]) ** 2))) for k, v in found.items()}


def pooled(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean error over curves, and coverage over all their held-out rows."""
    return {"curves": len(rows), "rmse_log": float(np.mean([r["rmse_log"] for r in rows])), "bias_log": float(np.mean([r["bias_log"] for r in rows])),
            "coverage": sum(r["inside"] for r in rows) / sum(r["n_test"] for r in rows), "n_test": sum(r["n_test"] for r in rows),
            "half_width": float(np.mean([r["half_width"] for r in rows])), "log_density": float(np.mean([r["log_density"] for r in rows])),
            "seconds": float(np.median([r["seconds"] for r in rows]))}


def bootstrap(c: Curve, rng: np.random.Generator, refits: int = 200) -> int:
    """Held-out rows in the 90 % percentile interval of `power_floor` refitted to resampled rows."""
    draws = []
    for _ in range(refits):
        pick = rng.choice(np.flatnonzero(c.fitted), int(c.fitted.sum()))
        if len(np.unique(c.x[pick])) > 3:
            draws.append(_point(c.x[pick], c.y[pick], c.x[~c.fitted]))
    low, high = np.quantile(draws, (0.05, 0.95), axis=0)
    return int(np.sum((low <= c.y[~c.fitted]) & (c.y[~c.fitted] <= high)))


def _point(x: np.ndarray, y: np.ndarray, ahead: np.ndarray) -> np.ndarray:
    """The least-squares power law with a floor at new x: linear in floor and size for each exponent of a grid."""
    best, found = np.inf, np.full(len(ahead), y[-1])
    for b in np.geomspace(0.02, 4, 60):
        design = np.column_stack([np.ones(len(x)), (x / x.max()) ** -b]) / y[:, None]
        solved = np.linalg.lstsq(design, np.ones(len(x)), rcond=None)[0]
        squares = float(np.sum((design @ solved - 1) ** 2))
        if squares < best and solved[0] >= 0:
            best, found = squares, solved[0] + solved[1] * (ahead / x.max()) ** -b
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--synthetic", type=int, default=40, help="curves from each law")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()

    curves = []
    if (options.data / "nanogpt.csv").exists():
        average({"x": np.arange(1.0, 9)}, np.arange(9.0, 1, -1))  # warm
        for c in public(options.data):
            curves.append({"domain": c.domain, "curve": c.name, "n_fit": int(c.fitted.sum()), **ours(c), "peers": peers(c)})
    domains = {d: pooled(rows := [r for r in curves if r["domain"] == d]) | {
        "target": TARGETS[d], "peers": {k: float(np.mean([r["peers"][k] for r in rows])) for k in rows[0]["peers"]}}
        for d in TARGETS if any(r["domain"] == d for r in curves)}
    made, rng = [(c, ours(c)) for c in many(options.synthetic, seed=2026)], np.random.default_rng(1)
    by_law = {law: pooled([r for c, r in made if c.name == law]) for law in LAWS}
    second = [(c, r) for c, r in made if c.domain == "hidden"]
    result = {
        "machine": machine(), "python": platform.python_version(), "versions": {k: version(k) for k in ("numpy", "scipy")},
        "domains": domains, "all_public": pooled(curves) if curves else None,
        "synthetic": {"all": pooled([r for c, r in made if c.domain == "synthetic"]), "by_law": by_law},
        "hidden_component": pooled([r for _, r in second]) | {
            "bootstrap_coverage": sum(bootstrap(c, rng) for c, _ in second[:40]) / sum(int(np.sum(~c.fitted)) for c, _ in second[:40])},
        "grids": {f.__name__: f(options.data) for f in (chinchilla, gadre, pythia)} if curves else None, "curves": curves,
    }
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1) if options.json else lines(result))


def lines(r: dict[str, Any]) -> str:
    """The result as a person reads it."""
    text = [f"{'':12}{'curves':>7}{'RMSE log':>10}{'target':>9}{'90 % holds':>12}{'half-width':>12}{'s/curve':>9}   peers' RMSE"]
    for d, v in r["domains"].items():
        others = "  ".join(f"{k} {p:.4f}" for k, p in v["peers"].items())
        text.append(f"{d:12}{v['curves']:7}{v['rmse_log']:10.5f}{v['target']:9.4f}{v['coverage']:12.1%}{v['half_width']:12.2%}"
                    f"{v['seconds']:9.3f}   {others}")
    if r["all_public"]:
        v = r["all_public"]
        text.append(f"{'all public':12}{v['curves']:7}{v['rmse_log']:10.5f}{'':9}{v['coverage']:12.1%} of {v['n_test']} held-out rows")
    v = r["synthetic"]["all"]
    text.append(f"synthetic: {v['curves']} curves, 90 % intervals hold {v['coverage']:.1%}; "
                + ", ".join(f"{k} {w['coverage']:.0%}" for k, w in r["synthetic"]["by_law"].items()))
    v = r["hidden_component"]
    text.append(f"hidden second component: {v['coverage']:.1%} of {v['n_test']} rows; a bootstrap holds {v['bootstrap_coverage']:.1%}")
    for name, g in (r["grids"] or {}).items():
        wide = f", half-width {g['half_width']:.1%}" if "half_width" in g else ""
        text.append(f"{name}: mean error {g['mean_abs_error']:.2%}, {g['inside']} of {g['n_test']} inside 90 %{wide}")
    return "\n".join(text)


if __name__ == "__main__":
    main()
