"""Which law a forgetting curve follows: planted laws win on their tails, and fits are those of a slow reference."""

import itertools
import math

import numpy as np
import pyarrow as pa
import pytest

from scalemem import analyses, laws
from scalemem.analyses import retention
from scalemem.fitting import fit
from scalemem.spec import SpecError
from scalemem.tables import RowsError, TableError

STEPS = np.unique(np.round(np.geomspace(1, 4000, 60)))
PLANTED = {  # each inside the ranges that are searched
    "log_linear": {"a": 0.9, "b": -0.12},
    "power": {"a": 0.8, "b": -0.4},
    "power_floor": {"e": 0.2, "a": 0.7, "b": 0.5},
    "exponential": {"a": 0.9, "t": 700.0},
    "exponential_decay": {"e": 0.25, "a": 0.6, "t": 150.0},
    "exponential_decay_double": {"e": 0.1, "a1": 0.5, "t1": 20.0, "a2": 0.4, "t2": 900.0},
}


def curve(name, x=STEPS, scale=1.0):
    return scale * retention.curve(laws.get(name), x, {k: np.array([v]) for k, v in PLANTED[name].items()})[0]


def table(curves, x=STEPS, **more):
    """A row a curve and step, of seeds 0, 1, ..."""
    return pa.table({"seed": np.repeat(np.arange(len(curves)), len(x)), "n_params": np.full(len(curves) * len(x), 9),
                     "stage_step": np.tile(x, len(curves)), "kept_nats": np.concatenate(curves), **more})


@pytest.mark.parametrize("name", PLANTED)
def test_what_was_planted_wins(name):
    """With a little noise, every seed's curve is forecast best by its own law, or by one that contains it; and its parameters come back."""
    rng = np.random.default_rng(0)
    seeds = [curve(name) + 1e-3 * rng.standard_normal(len(STEPS)) for _ in range(5)]
    found = analyses.run("retention", {"facts": table(seeds)}, {"value": "kept_nats"}).to_pylist()
    assert len(found) == 5 * len(PLANTED)
    own = [row for row in found if row["law"] == name]
    more = {"power": ("power_floor",), "exponential": ("exponential_decay", "exponential_decay_double"),
            "exponential_decay": ("exponential_decay_double",)}.get(name, ())
    wins = {law: sum(row["wins_fraction"] for row in found if row["law"] == law) for law in PLANTED}
    assert sum(wins.values()) == 5
    assert sum(wins[law] for law in (name, *more)) == 5
    for row in own:
        assert row["explained_fraction"] > 0.999
        assert row["tail_error"] < 0.02
        assert row["points_count"] == len(STEPS)
        assert row["tail_count"] == np.sum(STEPS > 1000)
        assert {k: row[k] for k in PLANTED[name]} == pytest.approx(PLANTED[name], rel=0.05)
        assert math.isnan(row["t1"]) == (name != "exponential_decay_double")
    for row in found:
        rivals = [r["tail_error"] for r in found if r["seed"] == row["seed"] and r["law"] != row["law"]]
        assert row["margin_ratio"] == pytest.approx(min(rivals) / row["tail_error"])
        assert row["wins_fraction"] == (row["margin_ratio"] >= 1)


@pytest.mark.parametrize("name", PLANTED)
def test_recovery_without_noise(name):
    """Also of curves below 0, and of all that are fitted at once."""
    y = np.stack([curve(name), curve(name, scale=-3.0)])
    found = retention.fit(laws.get(name), STEPS, y)
    np.testing.assert_allclose(retention.curve(laws.get(name), STEPS, found.parameters), y, atol=2e-3)
    for k, v in PLANTED[name].items():
        linear = k in laws.get(name).linear
        assert found.parameters[k].tolist() == pytest.approx([v, -3 * v if linear else v], rel=0.02)


@pytest.mark.parametrize("name", ["log_linear", "exponential", "exponential_decay", "exponential_decay_double"])
def test_fits_are_those_of_the_profile_fit(name):
    """Of laws that have y itself as their scale, `scalemem.fitting.fit` minimises the same squares from many starts."""
    y = curve(name) + 0.02 * np.random.default_rng(1).standard_normal(len(STEPS))
    slow = fit(pa.table({"x": STEPS, "y": y}), name, y="y", x="x").at()
    fast = retention.fit(laws.get(name), STEPS, y[None])
    assert fast.squares[0] == pytest.approx(slow.objective, rel=1e-3)
    assert slow.objective <= fast.squares[0] * (1 + 1e-9)


def test_the_tail_is_never_read_by_the_fit():
    """Another tail gives the same error on the head."""
    seeds = [curve("exponential_decay"), np.where(STEPS > 1000, 5.0, curve("exponential_decay"))]
    found = analyses.run("retention", {"facts": table(seeds)}, {"value": "kept_nats", "laws": ["exponential_decay", "log_linear"]}).to_pylist()
    for a, b in zip(found[:2], found[2:], strict=True):
        assert a["law"] == b["law"]
        assert a["head_error"] == pytest.approx(b["head_error"], abs=1e-12)
        assert b["tail_error"] > 100 * a["tail_error"] or a["law"] == "log_linear"
        assert b["tail_bias"] < -4


def test_a_curve_is_the_mean_of_its_rows():
    """Facts of one seed are averaged at each step; rows at step 0 are left out; other groups are other curves."""
    facts = [curve("power"), curve("power", scale=3.0)]
    rows = pa.concat_tables([table([c], fact=np.full(len(STEPS), i)) for i, c in enumerate(facts)])
    rows = pa.concat_tables([rows, table([np.array([99.0])], np.zeros(1), fact=np.zeros(1, int))])
    pooled = analyses.run("retention", {"facts": rows}, {"value": "kept_nats", "laws": ["power"]}).to_pylist()
    assert pooled[0]["a"] == pytest.approx(2 * PLANTED["power"]["a"], rel=1e-3)
    each = analyses.run("retention", {"facts": rows}, {"value": "kept_nats", "laws": ["power"], "group": ["fact"]}).to_pylist()
    assert [r["fact"] for r in each] == [0, 1]
    assert [r["a"] for r in each] == pytest.approx([0.8, 2.4], rel=1e-3)
    assert math.isnan(each[0]["margin_ratio"])


def test_curves_of_other_times_stand_beside_one_another():
    short = STEPS[STEPS <= 500]
    rows = pa.concat_tables([table([curve("power")]), table([curve("power", short)], short).set_column(0, "seed", pa.array([7] * len(short)))])
    found = analyses.run("retention", {"facts": rows}, {"value": "kept_nats", "laws": ["log_linear", "power"]}).to_pylist()
    assert [(r["seed"], r["law"], r["points_count"]) for r in found] == [
        (seed, law, n) for (seed, n), law in itertools.product(((0, len(STEPS)), (7, len(short))), ("log_linear", "power"))]


def test_order_of_rows_does_not_matter():
    rows = table([curve("power"), curve("exponential")])
    shuffled = rows.take(np.random.default_rng(0).permutation(rows.num_rows))
    first, second = (analyses.run("retention", {"facts": t}, {"value": "kept_nats"}).to_pylist() for t in (rows, shuffled))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_equal(b, a)


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"factor": 1.0}, SpecError, "must be above 1"),
    ({"laws": ["no_law"]}, SpecError, "unknown"),
    ({"laws": ["chinchilla"]}, SpecError, "must have one predictor"),
    ({"laws": ["shifted_power", "m4"]}, SpecError, "at most two parameters"),
    ({"group": ["nothing"]}, TableError, "'nothing': not in the table"),
    ({"factor": 3e3}, RowsError, "no curve has enough times"),
    ({"where": "stage_step < 0"}, RowsError, "no row satisfies"),
])
def test_bad_input_is_one_line(options, error, message):
    with pytest.raises(error, match=message) as caught:
        analyses.run("retention", {"facts": table([curve("power")])}, {"value": "kept_nats", **options})
    assert "\n" not in str(caught.value)


def test_a_missing_value_is_said():
    y = curve("power")
    y[3] = math.nan
    with pytest.raises(RowsError, match="1 values are missing"):
        analyses.run("retention", {"facts": table([y])}, {"value": "kept_nats"})
