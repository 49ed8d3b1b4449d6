"""Identity of a run is its content, and whatever is wrong with a spec is said in one line."""

import dataclasses
import json
import math
import random

import numpy as np
import pytest

from scalemem.spec import (
    DataSpec,
    ModelSpec,
    OptimizerSpec,
    Probe,
    RunSpec,
    SpecError,
    Stage,
    canonical_json,
    from_dict,
    run_id,
    to_dict,
)

MODEL = ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=128, seq_len=32)
STAGE = Stage(data=DataSpec(n_items=128), optimizer=OptimizerSpec(peak_lr=0.02), exposures=125, batch_size=16)
RUN = RunSpec(model=MODEL, stages=(STAGE,), probes=(Probe("capacity"),))
GOLDEN_ID = "05b81bfa0b11d0f8"  # a change makes every stored run a stranger: do not update it, find what changed


def test_identity_is_pinned():
    assert canonical_json(RUN) == (
        '{"model":{"d_model":16,"n_heads":4,"n_layers":1,"seq_len":32,"vocab_size":128},"probes":[{"measure":"capacity"}],'
        '"stages":[{"batch_size":16,"data":{"n_items":128},"exposures":125,"optimizer":{"peak_lr":0.02}}]}')
    assert run_id(RUN) == GOLDEN_ID


def test_defaults_written_out_do_not_change_identity():
    assert run_id(from_dict(RunSpec, to_dict(RUN))) == run_id(RUN)
    assert run_id(from_dict(RunSpec, to_dict(RUN, defaults=False))) == run_id(RUN)
    assert from_dict(RunSpec, json.loads(canonical_json(RUN))) == RUN


def _reversed(value):
    if isinstance(value, dict):
        return {key: _reversed(value[key]) for key in reversed(value)}
    return [_reversed(v) for v in value] if isinstance(value, list) else value


def test_order_of_fields_does_not_change_identity():
    assert run_id(from_dict(RunSpec, _reversed(to_dict(RUN)))) == run_id(RUN)


def _spelled(value):
    """Every whole number as a float, and every whole float as an int."""
    if isinstance(value, dict):
        return {key: _spelled(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_spelled(v) for v in value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return float(value) if isinstance(value, int) else int(value) if value == int(value) else value


def test_spelling_of_numbers_does_not_change_identity():
    run = dataclasses.replace(RUN, stages=(dataclasses.replace(STAGE, optimizer=OptimizerSpec(peak_lr=2.0)),))
    spelled = from_dict(RunSpec, _spelled(to_dict(run)))
    assert run_id(spelled) == run_id(run)
    assert type(spelled.model.d_model) is int
    assert type(spelled.stages[0].optimizer.peak_lr) is float


def test_numpy_numbers_are_numbers():
    assert run_id(dataclasses.replace(RUN, seed=np.int64(3))) == run_id(dataclasses.replace(RUN, seed=3))
    assert OptimizerSpec(peak_lr=np.float64(0.02)) == STAGE.optimizer


def _leaves(value, path=()):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    return [path] if items is None else [leaf for key, child in items for leaf in _leaves(child, (*path, key))]


def _put(value, path, new):
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = _put(value[path[0]], path[1:], new)
    return copy


def _get(value, path):
    for key in path:
        value = value[key]
    return value


OTHER = {"d_model": 32, "n_layers": 2, "n_heads": 2, "vocab_size": 64, "seq_len": 16, "norm": "rmsnorm",
         "position": "rotary", "exposures": 250, "mlp": "swiglu", "tied": False,
         "param_dtype": "bfloat16", "compute_dtype": "bfloat16", "order": "sequential",
         "schedule": "cosine", "at": "powers_of_two", "context": 2, "tokenizer": "bpe", "canaries": {"per_group": 2}, "segments": 2,
         "variants": 3, "domains": 4, "scenario": "task", "replay": {"fraction": 0.5, "n_items": 4}, "inject": {"n_items": 2, "first": 200},
         "strategy": {"name": "ewc"}, "trains": "half"}


@pytest.mark.parametrize("path", _leaves(to_dict(RUN)), ids=lambda path: ".".join(map(str, path)))
def test_every_field_is_part_of_identity(path):
    if path[-1] == "continued":  # legal in a further stage only
        two = dataclasses.replace(RUN, stages=(STAGE, STAGE))
        assert run_id(from_dict(RunSpec, _put(to_dict(two), ("stages", 1, "continued"), True))) != run_id(two)
        return
    old = _get(to_dict(RUN), path)
    new = OTHER[path[-1]] if path[-1] in OTHER else (old + "2" if isinstance(old, str) else 1 if old == 0 else old * 0.5)
    assert run_id(from_dict(RunSpec, _put(to_dict(RUN), path, new))) != run_id(RUN)


class Torn:
    def __repr__(self):
        return "a value\nof two lines"


class Broken:
    def __repr__(self):
        raise ValueError("no repr")


def _deep():
    value = []
    for _ in range(100_000):
        value = [value]
    return value


WRONG = ["", "many", "12", "a\nb", "\x00", "é" * 300, None, [], [1], {}, {"a": 1}, (), {1}, b"x", math.nan, math.inf,
         -math.inf, -1, -0.5, 1e308, 10**400, -(10**5000), 2**70, 1j, object(), Torn(), Broken(), int, _deep()]
PLACES = [(), *sorted({path[:i] for path in _leaves(to_dict(RUN)) for i in range(1, len(path) + 1)}, key=str)]


def _malformed(number):
    """A spec with one thing wrong: a value of another type or out of range, a field too many, or a field missing."""
    rng = random.Random(number)
    spec = to_dict(RUN)
    while True:
        place = rng.choice(PLACES)
        kind = rng.choice(("value", "value", "value", "unknown", "missing"))
        old = _get(spec, place)
        if kind == "value":
            new = rng.choice(WRONG)
            if old is None and new is None:
                continue
            if isinstance(old, str) and isinstance(new, str) and (place[-1] in ("corpus", "digest") or (new.isascii() and new.isidentifier())):
                continue  # a name that no module has is found out by the registry, not here
            return place, new, _put(spec, place, new)
        if kind == "unknown" and isinstance(old, dict):
            name = rng.choice(["dmodel", "x" * 500, "two\nlines", "", 3, None, True, (1, 2)])
            return place, name, _put(spec, place, {**old, name: 1})
        needed = isinstance(old, dict) and [key for key in old if key not in to_dict_defaults(old)]
        if kind == "missing" and needed:
            name = rng.choice(needed)
            return place, name, _put(spec, place, {key: v for key, v in old.items() if key != name})


def to_dict_defaults(old):
    """Names of the fields that may be left out."""
    for cls in (ModelSpec, DataSpec, OptimizerSpec, Stage, Probe, RunSpec):
        if {f.name for f in dataclasses.fields(cls)} == set(old):
            return {f.name for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
    raise AssertionError(old)


@pytest.mark.parametrize("number", range(300))
def test_malformed_specs_give_one_line(number):
    *_, spec = _malformed(number)
    with pytest.raises(SpecError) as caught:
        from_dict(RunSpec, spec)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 500


@pytest.mark.parametrize(("change", "said"), [
    ({"n_heads": 3}, "model.n_heads = 3: must be a divisor of model.d_model = 16; try 2"),
    ({"d_model": 12, "n_heads": 4, "position": "rotary"}, "head size is odd"),
    ({"norm": "batchnorm"}, "model.norm = 'batchnorm': must be one of layernorm, rmsnorm"),
    ({"d_model": True}, "model.d_model = True: must be a whole number"),
    ({"d_model": 16.5}, "model.d_model = 16.5: must be a whole number"),
    ({"tied": 1}, "model.tied = 1: must be true or false"),
    ({"vocab_size": 1}, "model.vocab_size = 1: must be at least 2 and at most 16777216"),
    ({"init_std": 0}, "model.init_std = 0: must be above 0 and at most 10"),
    ({"arch": "no such"}, "model.arch = 'no such': must be a name in scalemem.models"),
])
def test_messages_name_field_value_and_what_is_legal(change, said):
    with pytest.raises(SpecError, match=r"^model\.") as caught:
        ModelSpec(**{**to_dict(MODEL), **change})
    assert said in str(caught.value)


@pytest.mark.parametrize("change", [
    {"stages": ()}, {"stages": (STAGE, dataclasses.replace(STAGE, data=DataSpec(n_items=128, generator="zipf")))}, {"probes": ()},
    {"stages": STAGE}, {"stages": ({"data": 1},)},
    {"model": None}, {"seed": -1}, {"probes": ("capacity",)}])
def test_runs_that_cannot_be(change):
    with pytest.raises(SpecError):
        dataclasses.replace(RUN, **change)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(SpecError, match=r"stage.batch_size = 129: must be at most data.n_items = 128"):
        dataclasses.replace(STAGE, batch_size=129)
