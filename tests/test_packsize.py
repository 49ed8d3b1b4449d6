"""Pack sizes: which one is taken of those tried, when trying ends, and what is remembered."""

import dataclasses

import pytest
from conftest import make_run

from scalemem import accounting, packsize, train
from scalemem.packsize import Trial, choose
from scalemem.worker import cache_folder

RUN = make_run(exposures=1 << 27)
SHAPE = train.Shape.of(RUN, 16, 5)


def table(rates, cost=0.0, bytes_each=1.0):
    """A trial that looks its rate up by size, and the sizes that were asked for."""
    asked = []

    def trial(shape, size, run, how, devices):
        asked.append(size)
        return Trial(rates[size], bytes_each * size, cost)

    return trial, asked


def chosen(rates, runs=64, devices=1, **how):
    trial, asked = table(rates, **how)
    return choose([RUN] * runs, SHAPE, "vmap", devices, trial), asked


def test_the_smallest_that_is_nearly_as_fast_as_the_best():
    assert chosen({1: 1e9, 4: 4e9, 16: 9.6e9, 64: 1e10}) == (16, [1, 4, 16, 64])
    assert chosen({1: 1e9, 4: 4e9, 16: 9.4e9, 64: 1e10}) == (64, [1, 4, 16, 64])


def test_ends_where_a_larger_pack_is_slower():
    assert chosen({1: 1e9, 4: 4e9, 16: 3e9}) == (4, [1, 4, 16])


def test_no_larger_than_there_are_runs_and_a_multiple_of_the_devices():
    assert chosen({1: 1e9, 4: 4e9, 7: 7e9}, runs=7) == (7, [1, 4, 7])
    assert chosen({4: 1e9, 12: 3e9}, runs=10, devices=4) == (12, [4, 12])


def test_no_pack_that_would_fill_the_memory(monkeypatch):
    monkeypatch.setattr(packsize.memory, "capacity", lambda: 100.0)
    assert chosen({1: 1e9, 4: 4e9, 16: 16e9}, bytes_each=2.0) == (16, [1, 4, 16])  # 64 would need 128 of 80
    assert chosen({1: 1e9, 4: 4e9, 16: 16e9}, bytes_each=6.0) == (4, [1, 4])


def test_a_trial_must_pay_for_itself():
    flops = 64 * accounting.train_flops(RUN)
    rates = {1: flops / 100, 4: flops / 50}  # 100 seconds are left at the rate of one at a time
    assert chosen(rates, cost=6.0)[1] == [1]
    assert chosen(rates, cost=4.0)[1] == [1, 4]


def test_a_short_sweep_tries_nothing():
    short, never = [make_run()] * 11, table({})[0]
    assert choose(short, SHAPE, "vmap", 1, never) == 8
    assert choose(short, SHAPE, "shard", 3, never) == 9


@pytest.mark.parametrize("how", ["vmap", "shard"])
def test_measures_a_rate_and_memory_and_remembers_them(how, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(packsize, "TRIAL_S", 0.02)
    first = packsize.remembered(SHAPE, 2, RUN, how, 1)
    assert first.flops_per_second > 1e5
    assert first.device_bytes > 2 * 2 * 3 * 4 * accounting.n_params(RUN.model)  # weights and two moments of two runs, in and out
    assert first.trial_seconds > 0
    assert packsize.remembered(SHAPE, 2, RUN, how, 1) == first._replace(trial_seconds=0.0)
    other = dataclasses.replace(SHAPE, micro_batch=4)
    assert packsize.remembered(other, 2, RUN, how, 1).trial_seconds > 0
    for path in cache_folder("packs").iterdir():
        path.write_text("not JSON")
    assert packsize.remembered(SHAPE, 2, RUN, how, 1).trial_seconds > 0
