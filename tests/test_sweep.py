"""Sweeps: what is run, in which order, and what becomes of a tuned axis."""

import itertools
import math
from typing import Literal

import pyarrow as pa
import pytest

from scalemem.spec import DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, SpecError, Stage, run_id
from scalemem.sweep import Sweep, TuningWarning, grid, repeat, tune

BASE = RunSpec(
    model=ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=128, seq_len=32),
    stages=(Stage(data=DataSpec(n_items=128), optimizer=OptimizerSpec(peak_lr=0.02), exposures=125, batch_size=16),),
    probes=(Probe("capacity"),), seed=10)


def seen(sweep, *names):
    def value(run, name):
        stage = run.stages[0]
        return next(getattr(o, name) for o in (run, run.model, stage, stage.data, stage.optimizer) if hasattr(o, name))
    return [tuple(value(run, name) for name in names) for run in sweep.runs()]


def test_no_axes_is_the_base():
    assert Sweep(BASE).runs() == [BASE]


def test_last_axis_varies_fastest():
    sweep = Sweep(BASE, {"n_items": grid(16, 32), "exposures": grid(1, 2, 3)})
    assert seen(sweep, "n_items", "exposures") == list(itertools.product((16, 32), (1, 2, 3)))
    assert len(sweep) == 6


@pytest.mark.parametrize("name", ["exposures", "stages.0.exposures", "0.exposures"])
def test_a_path_or_a_unique_end_of_one(name):
    assert seen(Sweep(BASE, {name: grid(1, 2)}), "exposures") == [(1,), (2,)]


def test_an_end_that_needs_its_parent():
    assert seen(Sweep(BASE, {"optimizer.name": grid("adam", "sgd")}), "name") == [("adam",), ("sgd",)]
    assert seen(Sweep(BASE, {"tied": grid(True, False)}), "tied") == [(True,), (False,)]


def test_repeats_count_seeds_from_the_base():
    assert seen(Sweep(BASE, {"seed": repeat(3)}), "seed") == [(10,), (11,), (12,)]
    assert seen(Sweep(BASE, {"again": repeat(2)}), "seed") == [(10,), (11,)]


def test_cells_set_fields_together_and_are_validated_together():
    size = grid({"d_model": 15, "n_heads": 5, "n_items": 32}, {"d_model": 64, "n_heads": 8, "n_items": 512})
    sweep = Sweep(BASE, {"size": size, "exposures": grid(1, 2)})
    assert seen(sweep, "d_model", "n_heads", "n_items", "exposures") == [
        (15, 5, 32, 1), (15, 5, 32, 2), (64, 8, 512, 1), (64, 8, 512, 2)]


def test_fields_of_two_axes_are_validated_together():
    assert len(Sweep(BASE, {"d_model": grid(15), "n_heads": grid(5, 3)})) == 2  # 15 / 4 and 16 / 5 are not legal


def test_a_bad_combination_is_named():
    with pytest.raises(SpecError, match=r"model.n_heads = 4: must be a divisor .* \(at d_model\[1\], seed\[0\]\)"):
        Sweep(BASE, {"d_model": grid(32, 33), "seed": repeat(2)}).runs()


def test_union_keeps_order_and_drops_what_is_double():
    a, b = Sweep(BASE, {"exposures": grid(1, 2)}), Sweep(BASE, {"exposures": grid(2, 3)})
    c = Sweep(BASE, {"n_items": grid(128, 64)})
    assert seen(a + b, "exposures") == [(1,), (2,), (3,)]
    assert seen((a + b) + c, "exposures", "n_items") == seen(a + (b + c), "exposures", "n_items")
    assert len(a + b + c + a + b + c) == 5
    assert len(a) == 2


def test_equal_values_are_one_run():
    assert len(Sweep(BASE, {"exposures": grid(1, 1.0, 2)})) == 2


def test_same_sweep_same_runs():
    def make():
        rates = tune(0.01, 0.02, by="loss_nats")
        return Sweep(BASE, {"exposures": grid(*range(1, 20)), "peak_lr": rates, "seed": repeat(4)})
    assert list(map(run_id, make().runs())) == list(map(run_id, make().runs()))


@pytest.mark.parametrize(("axes", "said"), [
    ({"exposure": grid(1)}, r"'exposure': unknown field; legal: .*stages\.0\.exposures"),
    ({"model": grid(1)}, "'model': unknown field"),
    ({"size": grid({"d_modl": 16})}, "'d_modl': unknown field"),
    ({"stages.0.exposures": grid(1), "exposures": grid(2)}, "both set stages.0.exposures"),
    ({"size": grid({"seed": 1}), "repeats": repeat(2)}, "both set seed"),
    ({"exposures": repeat(2)}, "would repeat over a field"),
    ({"exposures": 3}, "must be an axis"),
    ({"exposures": grid(*range(2000)), "seed": repeat(2000)}, "4,000,000 runs; legal: at most 1,000,000"),
    ({"a": tune({"peak_lr": 1}, by="x"), "b": tune({"b1": 0}, by="y")}, "one criterion"),
    ([grid(1)], "must be a dict"),
])
def test_malformed_axes_give_one_line(axes, said):
    with pytest.raises(SpecError, match=said) as caught:
        Sweep(BASE, axes)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("make", "values", "named"), [
    (grid, [], {}), (grid, [[1, 2]], {}), (grid, [None], {}), (grid, [1, {"d_model": 2}], {}),
    (grid, [{"d_model": [1]}], {}), (tune, [1], {"by": ""}), (tune, [1], {"by": "x", "best": "best"}),
    (repeat, [0], {}), (repeat, [-1], {}), (repeat, [True], {}), (repeat, [1.5], {}), (Sweep, [{"model": 1}], {}),
])
def test_malformed_values_give_one_line(make, values, named):
    with pytest.raises(SpecError) as caught:
        make(*values, **named)
    assert str(caught.value).isprintable()


def test_ambiguous_names_list_what_they_may_mean():
    two = Sweep(RunSpec(model=BASE.model, stages=BASE.stages, probes=(Probe("capacity"), Probe("recall"))))
    with pytest.raises(SpecError, match=r"'at': ambiguous: probes\.0\.at, probes\.1\.at"):
        Sweep(two.base, {"at": grid("end")})


def tuned(best: Literal["lowest", "highest"] = "lowest", rates=(0.01, 0.02, 0.04)):
    return Sweep(BASE, {"exposures": grid(1, 2), "peak_lr": tune(*rates, by="score", best=best), "seed": repeat(2)})


def table(sweep, score):
    rows = []
    for run in sweep.runs():
        stage = run.stages[0]
        key = (stage.exposures, stage.optimizer.peak_lr, run.seed - 10)
        rows.append({"run_id": run_id(run), "status": "done", "key": key, "score": score(*key)})
    return rows


def test_tuning_averages_repeats_before_it_chooses():
    # the best single run is at 0.04, the best mean at 0.02
    means = {0.01: 5, 0.02: 3, 0.04: 4}
    rows = table(tuned(), lambda e, lr, seed: means[lr] + (seed - 0.5) * (6 if lr == 0.04 else 0))
    kept = tuned().reduce_tuned(rows)
    assert [row["key"] for row in kept] == [(1, 0.02, 0), (1, 0.02, 1), (2, 0.02, 0), (2, 0.02, 1)]


def test_tuning_is_separate_for_each_point_of_the_grid():
    rates = (0.01, 0.02, 0.04, 0.08)
    sweep = tuned(best="highest", rates=rates)
    kept = sweep.reduce_tuned(table(sweep, lambda e, lr, seed: -abs(lr - 0.02 * e)))
    assert sorted({row["key"][:2] for row in kept}) == [(1, 0.02), (2, 0.04)]


def test_a_best_at_the_edge_warns():
    with pytest.warns(TuningWarning, match="best peak_lr is at the edge of its range in 1 of 2 combinations"):
        kept = tuned().reduce_tuned(table(tuned(), lambda e, lr, seed: abs(lr - 0.02 * e)))
    assert sorted({row["key"][:2] for row in kept}) == [(1, 0.02), (2, 0.04)]


@pytest.mark.parametrize("bad", [math.nan, None, math.inf])
def test_a_value_that_diverged_once_is_not_chosen(bad):
    rates = (0.01, 0.02, 0.03, 0.04)
    sweep = tuned(rates=rates)
    rows = table(sweep, lambda e, lr, seed: bad if (lr, seed) == (0.02, 1) else abs(lr - 0.021))
    assert {row["key"][1] for row in sweep.reduce_tuned(rows)} == {0.03}


def test_a_diverged_run_with_a_finite_score_is_not_chosen():
    sweep = tuned(rates=(0.01, 0.02, 0.03, 0.04))
    rows = table(sweep, lambda e, lr, seed: abs(lr - 0.021))
    rows = [{**row, "status": "diverged"} if row["key"][1:] == (0.02, 0) else row for row in rows]
    assert {row["key"][1] for row in sweep.reduce_tuned(rows)} == {0.03}


def test_nothing_to_choose_from_is_said():
    rows = table(tuned(), lambda e, lr, seed: math.nan if e == 1 else abs(lr - 0.02))
    with pytest.warns(TuningWarning, match="no value of peak_lr could be chosen: all diverged; 6 runs are left out"):
        kept = tuned().reduce_tuned(rows)
    assert {row["key"][0] for row in kept} == {2}


def test_without_a_tuned_axis_all_rows_of_the_sweep_stay():
    sweep = Sweep(BASE, {"exposures": grid(1, 2)})
    rows = table(sweep, lambda e, lr, seed: 0.0)
    assert sweep.reduce_tuned([*rows, {"run_id": "stranger", "score": 1.0}]) == rows


def test_a_union_is_tuned_part_by_part_and_arrow_tables_stay_arrow():
    other = Sweep(BASE, {"exposures": grid(7), "peak_lr": grid(0.01, 0.02)})
    sweep = tuned() + other
    rows = [{k: v for k, v in row.items() if k != "key"} for row in table(sweep, lambda e, lr, seed: abs(lr - 0.02))]
    kept = sweep.reduce_tuned(pa.Table.from_pylist(rows))
    assert kept.num_rows == 2 * 2 + 2
    assert set(kept["run_id"].to_pylist()) >= set(map(run_id, other.runs()))


def test_a_run_of_two_parts_of_a_union_is_compared_in_both():
    """In the second part 0.02 wins: it is of the first part, too, and the loser does not stay for want of its rival."""
    def part(exposures, *rates):
        return Sweep(BASE, {"exposures": grid(*exposures), "peak_lr": tune(*rates, by="score")})

    a, b = part((1,), 0.01, 0.02), part((1, 2), 0.005, 0.02)
    for sweep in (b + a, a + b):
        with pytest.warns(TuningWarning, match="at the edge"):
            kept = sweep.reduce_tuned(table(sweep, lambda e, lr, seed: abs(lr - 0.02)))
        assert sorted(row["key"][:2] for row in kept) == [(1, 0.02), (2, 0.02)]
    assert (b + a).labels()[run_id(a.runs()[1])] == {"exposures": 0, "peak_lr": 1}
    loser = [row for row in table(b + a, lambda e, lr, seed: abs(lr - 0.02)) if row["key"][:2] != (1, 0.02)]
    with pytest.warns(TuningWarning):
        assert sorted(row["key"][:2] for row in (b + a).reduce_tuned(loser)) == [(1, 0.005), (1, 0.01), (2, 0.02)]


def test_a_table_without_the_column_is_refused():
    with pytest.raises(SpecError, match="no column 'score'; legal: run_id"):
        tuned().reduce_tuned([{"run_id": run_id(run)} for run in tuned().runs()])
