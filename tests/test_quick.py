"""Programs compiled quickly give the numbers of those compiled in full, and are taken where the run and its shapes say so."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import MODEL, make_run

from scalemem import generate, models, quick, record, train
from scalemem.data import canaries
from scalemem.measure import drawing, scoring
from scalemem.spec import CanarySpec, DataSpec, Probe

TOKENS = np.arange(40, dtype=np.int32).reshape(5, 8) % MODEL.vocab_size


@pytest.fixture
def params():
    return models.init(dataclasses.replace(MODEL, init_std=0.3), train.key(0, "init"))


@pytest.fixture
def asked(monkeypatch):
    """Whether each program that was asked for since was to be compiled quickly."""
    found = []
    for module in (scoring, generate):
        monkeypatch.setattr(module, "_program", lambda *given, make=module._program: found.append(given[-1]) or make(*given))
    return found


def total(logits, targets):
    return (scoring.token_nats(logits, targets),)


def test_the_numbers_are_those_of_a_program_compiled_in_full(params, asked):
    def look():
        return scoring.in_chunks(MODEL, params, TOKENS, total)[0], generate.generate(MODEL, params, TOKENS[:, :3], 4)

    full, text = look()
    with quick.once(True):
        fast, same = look()
    assert asked == [False, False, True, True]
    np.testing.assert_allclose(fast, full, rtol=1e-6)
    np.testing.assert_array_equal(same, text)


@pytest.mark.parametrize(("at", "expected"), [(("end", "end"), True), (("end", "powers_of_two"), False)])
def test_a_run_that_is_measured_at_its_end_alone(params, asked, at, expected):
    run = dataclasses.replace(make_run(exposures=2), probes=tuple(map(Probe, ("capacity", "quantized"), at)))
    record.point(run, 0, 2, 1.0, lambda: params, None, {})  # its last
    record.final(run, jax.device_get(train.start(train.Shape.of(run), train.knobs(run)))._replace(loss_nats=np.float32(1.0)), lambda: params, {})
    assert set(asked) == {expected}


def test_much_work_and_other_devices_are_worth_a_full_compilation(monkeypatch):
    assert not quick.worth(1.0)
    with quick.once(True):
        assert quick.worth(quick.MOST_FLOPS)
        assert not quick.worth(1.01 * quick.MOST_FLOPS)
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        assert not quick.worth(1.0)


def test_options_that_xla_does_not_know_are_left_out(monkeypatch):
    assert quick.options(False) is None
    assert quick.options(True)
    monkeypatch.setattr(quick, "_OPTIONS", {"xla_no_such_option": 1})
    quick._known.cache_clear()
    try:
        assert quick.options(True) is None
    finally:
        quick._known.cache_clear()


@pytest.mark.parametrize("generator", ["uniform", "zipf", "markov"])
@pytest.mark.parametrize("kind", ["random", "structured", "passphrase"])
def test_what_is_drawn_with_integers_is_drawn_alike(generator, kind):
    spec = CanarySpec(per_group=3, groups=2, controls=3, kind=kind, words=4, word_length=2)
    run = make_run(n_items=32, generator=generator, data={"canaries": spec, "zipf": 1.2})
    assert canaries.exact(run)
    assert canaries.exact(dataclasses.replace(run, stages=(dataclasses.replace(run.stages[0], data=DataSpec(n_items=8, generator=generator)),)))

    def drawn():
        canaries._probes.cache_clear()
        found = canaries.probes(run)
        return (found.tokens, found.first_step, drawing.trained(run, train.key(0, "data"), np.arange(32)),
                drawing.items(run, train.key(0, "data"), np.arange(9)))

    full = drawn()
    with quick.once(True):
        fast = drawn()
    for a, b in zip(full, fast, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["trap", "template"])
def test_what_is_drawn_at_a_temperature_is_not_compiled_quickly(kind):
    spec = CanarySpec(per_group=3, groups=2, kind=kind, words=4, word_length=2)
    assert not canaries.exact(make_run(n_items=32, generator="markov", data={"canaries": spec}))
    assert not canaries.exact(make_run(generator="pcfg"))
