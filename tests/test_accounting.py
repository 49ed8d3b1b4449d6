"""Counts against published numbers and against independent arithmetic."""

import dataclasses
import math

import pytest

from scalemem import accounting
from scalemem.spec import DataSpec, ModelSpec, OptimizerSpec, Probe, RunSpec, Stage

# Morris et al. 2025 (arXiv 2505.24832): layers, width -> parameters, at vocabulary 2048 and length 64
PUBLISHED = {
    (1, 32): 80_352, (1, 64): 185_280, (1, 128): 468_864, (1, 256): 1_330_944, (1, 512): 4_234_752,
    (2, 32): 93_056, (2, 64): 235_264, (2, 128): 667_136, (2, 256): 2_120_704, (2, 512): 7_387_136,
    (4, 32): 118_464, (4, 64): 335_232, (4, 128): 1_063_680, (4, 256): 3_700_224, (4, 512): 13_691_904,
    (8, 32): 169_280, (8, 64): 535_168, (8, 128): 1_856_768, (8, 256): 6_859_264, (8, 512): 26_301_440,
}


def model(**changes):
    return ModelSpec(**{"d_model": 128, "n_layers": 2, "n_heads": 4, "vocab_size": 2048, "seq_len": 64, **changes})


def run(spec=None, *, n_items=4096, exposures=3, batch_size=100, **changes):
    stage = Stage(data=DataSpec(n_items=n_items, **changes), optimizer=OptimizerSpec(peak_lr=0.01), exposures=exposures,
                  batch_size=batch_size)
    return RunSpec(model=spec or model(), stages=(stage,), probes=(Probe("capacity"),), seed=7)


@pytest.mark.parametrize(("shape", "published"), PUBLISHED.items())
def test_published_parameter_counts(shape, published):
    assert accounting.n_params(model(n_layers=shape[0], d_model=shape[1])) == published


@pytest.mark.parametrize(("changes", "published"), [
    ({"vocab_size": 128}, 4.21e5), ({"vocab_size": 512}, 4.71e5), ({"vocab_size": 1024}, 5.36e5),
    ({"vocab_size": 4096}, 9.29e5),
    ({"seq_len": 4}, 6.59e5), ({"seq_len": 256}, 6.92e5),
])
def test_published_counts_of_the_vocabulary_and_length_tables(changes, published):
    assert accounting.n_params(model(**changes)) == pytest.approx(published, abs=1.0e3)


def test_gpt2_small_with_rotary_positions():
    spec = model(d_model=768, n_layers=12, n_heads=12, vocab_size=3275, seq_len=512, position="rotary")
    assert accounting.n_params(spec) == 87_571_200


def test_gpt2_small():
    spec = model(d_model=768, n_layers=12, n_heads=12, vocab_size=50_257, seq_len=1024)
    assert accounting.n_params(spec) == 124_439_808


def _counted(spec):
    """Parameters as a list of the shapes that a model of these conventions has."""
    d, v, s = spec.d_model, spec.vocab_size, spec.seq_len
    norm = [(d,), (d,)] if spec.norm == "layernorm" else [(d,)]
    shapes = [(v, d)]
    if spec.position == "learned":
        shapes += [(s, d)]
    for _ in range(spec.n_layers):
        shapes += norm + [(d, 3 * d), (3 * d,), (d, d), (d,)] + norm
        if spec.mlp == "gelu":
            shapes += [(d, 4 * d), (4 * d,), (4 * d, d), (d,)]
        else:
            h = next(h for h in range(4, 4 * d + 4, 4) if h >= 8 * d / 3 - 1e-9)
            shapes += [(d, h), (h,), (d, h), (h,), (h, d), (d,)]
    shapes += norm
    if not spec.tied:
        shapes += [(d, v)]
    return sum(map(math.prod, shapes))


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("position", ["learned", "rotary"])
@pytest.mark.parametrize("mlp", ["gelu", "swiglu"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("n_layers", [0, 3])
@pytest.mark.parametrize("d_model", [24, 40, 64])
def test_every_switch(norm, position, mlp, tied, n_layers, d_model):
    spec = model(norm=norm, position=position, mlp=mlp, tied=tied, n_layers=n_layers, d_model=d_model)
    assert accounting.n_params(spec) == _counted(spec)


def test_steps_count_the_smaller_last_batch():
    stage = run().stages[0]
    assert accounting.steps(stage) == 3 * 41
    assert accounting.steps(dataclasses.replace(stage, batch_size=4096)) == 3
    assert accounting.steps(dataclasses.replace(stage, exposures=0)) == 0


def test_tokens():
    spec = run()
    assert accounting.scored_tokens(spec.model, spec.stages[0]) == 3 * 4096 * 63
    assert accounting.tokens(spec.model, spec.stages[0]) == 3 * 4096 * 64


def test_flops_of_the_reference_model():
    # performance.md: FLOPs per token = 6 (12 L d^2 + V d) + 12 L T d, of the T = S - 1 positions that are fed
    for changes in ({}, {"n_layers": 4, "d_model": 256}, {"n_layers": 0}):
        spec = model(**changes)
        n_layers, d = spec.n_layers, spec.d_model
        per_token = 6 * (12 * n_layers * d**2 + 2048 * d) + 12 * n_layers * 63 * d
        assert accounting.train_flops(run(spec)) == per_token * 3 * 4096 * 63


def test_flops_of_a_gated_mlp():
    gelu, swiglu = (accounting.train_flops(run(model(d_model=96, mlp=mlp))) for mlp in ("gelu", "swiglu"))
    assert gelu == swiglu  # 8 d^2 = 3 d h where 8 d / 3 is a multiple of 4
    gelu, swiglu = (accounting.train_flops(run(model(d_model=32, mlp=mlp))) for mlp in ("gelu", "swiglu"))
    assert swiglu - gelu == 6 * 2 * (3 * 32 * 88 - 8 * 32**2) * 3 * 4096 * 63


def test_data_bits():
    assert accounting.data_bits(run()) == 4096 * 63 * 11
    assert accounting.data_bits_all_tokens(run()) == pytest.approx(4096 * 64 * 11, rel=1e-15)
    # the sequence-length table lists N S log2 V = 3.60e5 bits for S = 8, N = 4096
    assert accounting.data_bits_all_tokens(run(model(seq_len=8))) == pytest.approx(3.60e5, rel=2e-3)
    assert math.isnan(accounting.data_bits(run(generator="bios")))


def test_summary():
    row = accounting.summary(run())
    assert {"n_params", "n_layers", "d_model", "n_heads", "vocab_size", "seq_len", "norm", "position", "mlp", "tied",
            "param_dtype", "compute_dtype", "n_items", "exposures", "batch_size", "peak_lr", "optimizer", "schedule",
            "seed", "steps", "train_tokens", "train_flops", "data_bits", "data_bits_per_param"} <= row.keys()
    assert row["data_bits_per_param"] == 4096 * 63 * 11 / 667_136
    assert (row["seed"], row["optimizer"], row["schedule"], row["steps"]) == (7, "adam", "trapezoid", 123)
    assert all(isinstance(value, (int, float, str, bool)) for value in row.values())
