"""What all of a kind promise: one row for every registered generator, objective, optimizer, measure, architecture and law.

A new file of a kind is one line in its registry and nothing here: it is tested as soon as it is registered.
"""

import dataclasses
import inspect
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_gpt as reference
from conftest import MODEL, make_run

from scalemem import accounting, data, laws, measure, models, objectives, optimizers, train
from scalemem.measure.moment import Moment, sources
from scalemem.spec import CanarySpec, OptimizerSpec, SpecError

RUN = make_run(n_items=12)
KEYS = train.key(0, "data"), train.key(0, "probe")
UNITS = ("_bits", "_nats", "_items", "_steps", "_exposures", "_tokens", "_flops", "_s")
OF_ROWS = ("source", "fact", "recalled", "domain", "touched", "transform", "task", "task_count")  # what rows of measures of stages are of, and truths
DIMENSIONLESS = ("compressible", "fraction", "auc", "f1", "tpr", "rate", "probability", "count", "ratio", "accuracy", "per_param", "mia_")


@pytest.fixture(scope="module")
def params():
    return models.init(MODEL, train.key(0, "init"))


def one_line(*things):
    """Each says in its first line what it is, as a sentence of at most 140 characters."""
    for thing in things:
        doc = inspect.getdoc(thing)
        assert doc, f"{thing}: no docstring"
        assert 10 < len(doc.splitlines()[0]) <= 140


def unknown(get):
    """An unknown name is one line that says what there is."""
    with pytest.raises(SpecError, match="must be one of") as error:
        get("no_such_name")
    assert len(str(error.value).splitlines()) == 1


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A text file, and what a DataSpec says of it."""
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("\n\n".join(f"Paragraph {i}: {i * i} is the square of it, and {i**3} its cube." for i in range(400)))
    return {"corpus": str(path), "digest": data.get("text").digest(str(path))}


@pytest.mark.parametrize("name", data.GENERATORS)
def test_generator(name, corpus):
    """Items are pure functions of (key, i); the entropy of one is positive and no more than its tokens can carry, or not known."""
    model = dataclasses.replace(MODEL, **{"text": {"vocab_size": 257}, "digits": {"vocab_size": 32, "seq_len": 65}}.get(name, {}))
    spec = {"model": model, "generator": name, "data": corpus if name == "text" else None}
    generator, run = data.get(name), make_run(n_items=12, **spec)
    one_line(generator, generator.items, generator.entropy_bits)
    data.check(run)
    tokens = generator.items(run, KEYS[0], jnp.arange(12))
    assert tokens.shape == (12, model.seq_len)
    assert tokens.dtype == jnp.int32
    assert 0 <= tokens.min() <= tokens.max() < model.vocab_size
    shuffled = np.random.default_rng(0).permutation(12)
    np.testing.assert_array_equal(generator.items(run, KEYS[0], jnp.asarray(shuffled)), np.asarray(tokens)[shuffled])
    np.testing.assert_array_equal(jax.jit(lambda i: generator.items(run, KEYS[0], i))(jnp.arange(5)), tokens[:5])
    np.testing.assert_array_equal(generator.items(make_run(n_items=99, **spec), KEYS[0], jnp.arange(12)), tokens)
    assert np.array_equal(generator.items(run, KEYS[1], jnp.arange(12)), tokens) == (name == "digits")  # images are what they are
    entropy = generator.entropy_bits(run)
    assert isinstance(entropy, float)
    assert (name in ("text", "digits")) == math.isnan(entropy)
    assert math.isnan(entropy) or 0 < entropy <= (MODEL.seq_len - 1) * math.log2(MODEL.vocab_size)
    if hasattr(generator, "nats"):
        assert np.isfinite(generator.nats(run, tokens)).all()
        at_one = generator.tempered(run, KEYS[0], jnp.arange(12), jnp.ones(12))
        np.testing.assert_array_equal(at_one, tokens)
    counted = accounting.data_bits(run)
    assert math.isnan(counted) or counted == pytest.approx(12 * entropy)


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_objective(name, params):
    """A sum over the batch, linear in its weights: rows of weight 0 count for nothing, and have no gradient."""
    objective, apply = objectives.get(name), models.apply(MODEL)
    one_line(objective, inspect.getmodule(objective))
    tokens = data.get("uniform").items(RUN, KEYS[0], jnp.arange(6))
    f = jax.jit(jax.value_and_grad(lambda p, t, w: objective(apply, p, t, w)))
    value, grads = f(params, tokens, jnp.ones(6))
    assert value.shape == ()
    assert value.dtype == jnp.float32
    assert math.isfinite(value)
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params)
    again, _ = f(params, tokens, jnp.ones(6))
    assert float(again) == float(value)
    parts = [f(params, tokens, jnp.asarray(w, jnp.float32)) for w in ([1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1])]
    assert float(parts[0][0] + parts[1][0]) == pytest.approx(float(value), rel=1e-5)
    total = reference.leaves(jax.tree.map(lambda a, b: a + b, parts[0][1], parts[1][1]))
    for path, g in reference.leaves(grads).items():
        np.testing.assert_allclose(total[path], g, rtol=1e-4, atol=1e-5 * max(1, np.abs(g).max()), err_msg=path)
    nothing, zero = f(params, tokens, jnp.zeros(6))
    assert float(nothing) == 0
    assert not any(np.any(g) for g in jax.tree.leaves(zero))


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_optimizer(name):
    """Its numbers may be traced; its state keeps shape and type; a step along -update lowers a bowl."""
    spec = OptimizerSpec(peak_lr=0.01, name=name)

    @jax.jit
    def descend(k, start):
        optimizer = optimizers.direction(name, k)
        state = optimizer.init(start)

        def step(_, carry):
            p, state = carry
            update, state = optimizer.update({"w": 2 * p["w"]}, state, p)
            return jax.tree.map(lambda p, u: p - k["peak_lr"] * u, p, update), state

        return jax.lax.fori_loop(0, 50, step, (start, state))

    start = {"w": jnp.linspace(-2, 3, 6)}
    (end, state), (again, _) = (descend(optimizers.knobs(spec), start) for _ in range(2))
    assert float((end["w"] ** 2).sum()) < 0.9 * float((start["w"] ** 2).sum())
    assert {x.shape for x in jax.tree.leaves(state)} <= {(), (6,)}
    np.testing.assert_array_equal(end["w"], again["w"])
    faster, _ = descend(optimizers.knobs(dataclasses.replace(spec, peak_lr=0.02)), start)
    assert not np.array_equal(faster["w"], end["w"])
    assert descend._cache_size() == 1  # type: ignore[attr-defined]


def run_for(name):
    """A run whose data suit a measure."""
    if name in measure.OF_ITEMS:
        return RUN
    if name in measure.OF_STAGES:
        data = {"facts": {"variants": 3}, "tasks": {"classes": 8, "per_class": 10}}.get(name)
        generator = {"facts": "facts", "domains": "domains", "tasks": "prototypes", "drift": "markov"}.get(name, "uniform")
        return make_run(n_items=5 if name == "linear_tasks" else 12, generator=generator, data=data, probes=(name,))
    kind = {"exposure": {"kind": "structured", "words": 4}, "last_words": {"kind": "passphrase", "words": 8}}.get(name, {"kind": "random"})
    return make_run(n_items=12, generator="markov", data={"canaries": CanarySpec(per_group=2, groups=2, controls=3, **kind)}, probes=(name,))


def moment_of(name, run, params):
    """What a measure of stages is told beside the run."""
    return (Moment(1, jax.tree.map(lambda p: p + 0.1, params), sources(run), 4),) if name in measure.OF_STAGES else ()


@pytest.mark.parametrize("name", measure.MEASURES)
def test_measure(name, params):
    """Finite on a fresh model, pure, in named units, never more bits than the data have; arrays are a row of what it is of, and say which."""
    f, run = measure.get(name), run_for(name)
    measure.check(run)
    one_line(f, inspect.getmodule(f))
    if run.model != MODEL:
        params = models.init(run.model, train.key(0, "init"))
    first, second = (f(run, params, *KEYS, *moment_of(name, run, params)) for _ in range(2))
    arrays = {column: value for column, value in first.items() if np.ndim(value)}
    assert first.keys() == second.keys()
    for column, value in first.items():
        np.testing.assert_array_equal(value, second[column])
        assert re.fullmatch(r"[a-z][a-z0-9_]*", column)
        if column in ("canary", "group", "planted", "copies", "temperature", "first_step", "last_step", "step", *OF_ROWS):
            continue
        assert any(unit in f"_{column}_" for unit in (f"{u}_" for u in UNITS)) or any(word in column for word in DIMENSIONLESS), column
        if column not in arrays:
            assert type(value) is float, column
            assert math.isfinite(value) or name in measure.OF_CANARIES, column
        if column.startswith("memorized_bits"):
            assert value <= accounting.data_bits(RUN) * (8 / 7 if column.endswith("_paper") else 1)
    assert bool(arrays) == (name in (*measure.OF_CANARIES, *measure.OF_STAGES) and name != "drift")
    if arrays and name in measure.OF_STAGES:
        assert len({len(v) for v in arrays.values()}) == 1
        assert set(OF_ROWS) & arrays.keys()
    elif arrays:
        assert {len(v) for v in arrays.values()} == {7 if name != "compression" else len(arrays["canary"])}
        assert {"canary", "planted", "copies"} <= arrays.keys()


def test_measures_do_not_share_columns(params):
    """Of a run; tables of canaries are a measure's own."""
    columns = [c for name in measure.MEASURES if name not in measure.OF_STAGES or name == "drift" for run in [run_for(name)]
               for c, v in measure.get(name)(run, params, *KEYS, *moment_of(name, run, params)).items() if not np.ndim(v)]
    assert len(columns) == len(set(columns))
    assert not set(columns) & set(accounting.summary(RUN))


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_architecture(name):
    """Parameters as counted, initial values by key, float32 logits, causal, close to a guess before training."""
    one_line(models.ARCHITECTURES[name], inspect.getmodule(models.ARCHITECTURES[name]))
    spec = dataclasses.replace(MODEL, arch=name)
    shapes, first, second = models.shape(spec), *(models.init(spec, train.key(seed, "init")) for seed in (0, 0))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == accounting.n_params(spec)
    assert jax.tree.map(jnp.shape, first) == jax.tree.map(lambda x: x.shape, shapes)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    other = models.init(spec, train.key(1, "init"))
    assert any(not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True))
    apply = jax.jit(models.apply(spec))
    tokens = data.get("uniform").items(RUN, KEYS[0], jnp.arange(4))
    logits = apply(first, tokens)
    assert logits.shape == (4, MODEL.seq_len, MODEL.vocab_size)
    assert logits.dtype == jnp.float32
    assert np.abs(logits).max() < 1
    np.testing.assert_array_equal(apply(first, tokens.at[:, 5:].set(0))[:, :5], logits[:, :5])
    if name == "mlp":  # it answers at the last place alone
        assert not np.any(logits[:, :-1])
        return
    np.testing.assert_allclose(models.apply(spec)(first, tokens[:2, :5]), logits[:2, :5], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", laws.names())
def test_law(name):
    """A plain function of named numbers, finite where it starts, with units, a formula that names them, and exact gradients."""
    law, rng = laws.get(name), np.random.default_rng(0)
    assert law.name == name
    assert re.match(r"\w+ = ", law.formula)
    assert law.source, "a law says where it is from"
    assert law.unidentifiable
    for parameter in law.names:
        assert re.search(rf"\b{parameter}\b", law.formula), f"{parameter} is not in the formula"
    for p in law.parameters:
        assert p.unit.format(y="bits", **dict.fromkeys(law.predictors, "x"))
    x = {key: np.exp(rng.uniform(3, 8, 20)) for key in law.predictors} | {"1": np.ones(20)}
    y = np.exp(rng.normal(1, 0.3, 20)) if law.limits[1] > 10 else rng.uniform(0.55, 0.95, 20)
    prior = [np.array([p.prior[0] if p.prior else 1.0 for p in law.parameters])]
    starts = law.starts(x, y) if law.shape is None else prior  # what has a prior is integrated out, not searched
    assert starts
    low, high = law.bounds()
    for theta in starts:
        assert ((low <= theta) & (theta <= high)).all()
        value = law.predict(x, theta)
        assert value.shape == (20,)
        assert np.isfinite(value).all()
        np.testing.assert_array_equal(law.predict(x, theta), value)
    theta = starts[0]
    slopes = np.stack([(law.predict(x, theta + h) - law.predict(x, theta - h)) / 2e-6 for h in 1e-6 * np.eye(len(theta))], -1)
    np.testing.assert_allclose(law.gradient(x, theta), slopes, rtol=1e-4, atol=1e-5 * (1 + np.abs(slopes).max()))


@pytest.mark.parametrize("get", [data.get, objectives.get, optimizers.get, measure.get,
                                 lambda name: models.shape(dataclasses.replace(MODEL, arch=name))])
def test_an_unknown_name_is_one_line(get):
    unknown(get)


@pytest.mark.parametrize("registry", [data.GENERATORS, objectives.OBJECTIVES, optimizers.OPTIMIZERS, measure.MEASURES,
                                      models.ARCHITECTURES])
def test_names_are_names(registry):
    assert registry
    for name in registry:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
