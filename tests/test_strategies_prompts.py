"""Prompt pools: the choice and what is read of it against slow NumPy, what moves in training, what later tasks leave alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_gpt as reference
from conftest import MODEL, make_run
from test_strategies_features import fast

from scalemem import models, strategies, train, trainable
from scalemem.execute import check
from scalemem.models import prompts
from scalemem.spec import ModelSpec, SpecError, StrategySpec
from scalemem.strategies import coda_prompt, l2p

DEEP = dataclasses.replace(MODEL, n_layers=2)
SPECS = {"l2p": StrategySpec("l2p", pool=5, chosen=2, length=3, strength=0.5), "dualprompt": StrategySpec("dualprompt", pool=4, length=2),
         "coda_prompt": StrategySpec("coda_prompt", pool=6, length=2, tasks=2)}
TOKENS = np.random.default_rng(0).integers(0, MODEL.vocab_size, (2, 6))


@functools.cache
def prompted(kind, learned=2):
    """Weights of a model with a pool in which everything matters."""
    pool = {name: x + 0.5 * jax.random.normal(jax.random.key(5), x.shape) for name, x in prompts.start(DEEP, SPECS[kind], jax.random.key(4)).items()}
    setting = SPECS[kind].chosen if kind == "l2p" else SPECS[kind].tasks
    return models.init(DEEP, jax.random.key(3)) | {"prompts": {kind: pool, "learned": jnp.int32(learned), "setting": jnp.int32(setting)}}


@functools.cache
def apply(kind):
    """The model with prompts of a kind, compiled once."""
    return fast(models.apply(DEEP))


def whole(p, x):
    """A block of the reference: what it makes of x, and its keys and values [B, T, D]."""
    y = reference.norm("layernorm", p["norm_1"], x)[0]
    q, k, v = np.split(reference.linear(p["attention"]["qkv"], y)[0], 3, -1)
    x = x + reference.attention(DEEP, p["attention"], y)[0]
    return x + reference.gelu_mlp(p["mlp"], reference.norm("layernorm", p["norm_2"], x)[0])[0], q, k, v


def blocks(params):
    return [params["blocks"][i] for i in sorted(params["blocks"])]


def queries(params, tokens):
    x = params["tokens"][tokens] + params["positions"][: tokens.shape[1]]
    for p in blocks(params):
        x = whole(p, x)[0]
    return reference.norm("layernorm", params["norm"], x)[0]


def cos(a, b):
    return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))


def read(kind, params, query, layer, states):
    """The keys and values [n, D] beside the text of one position, and the weights of the pool."""
    pool, learned = params["prompts"][kind], int(params["prompts"]["learned"])
    if kind == "l2p":
        near = cos(query, pool["keys"])
        some = np.argsort(-near)[:2]
        k, v = states[layer]
        return np.concatenate([k[m] for m in some]), np.concatenate([v[m] for m in some])
    if kind == "coda_prompt":
        alpha = [cos(query * a, key) for a, key in zip(pool["attention"], pool["keys"], strict=True)]
        made = np.sum([alpha[m] * pool["components"][m, layer] for m in range(6 * learned // 2)], 0)
        return made[0], made[1]
    expert = pool["expert"][layer - 1, np.argmax(cos(query, pool["keys"][:learned]))] if layer >= 1 else np.zeros((2, 0, 8))
    shared = pool["general"][layer] if layer < 1 else np.zeros((2, 0, 8))
    return np.concatenate([shared[0], expert[0]]), np.concatenate([shared[1], expert[1]])


def slow(kind, params, tokens):
    """Logits, position by position and head by head."""
    asked, heads, size = queries(params, tokens), DEEP.n_heads, DEEP.d_model // DEEP.n_heads
    x, states = params["tokens"][tokens] + params["positions"][: tokens.shape[1]], []
    if kind == "l2p":
        p_x = params["prompts"]["l2p"]["prompts"]
        for p in blocks(params):
            p_x, _, k, v = whole(p, p_x)
            states.append((k, v))
    for layer, p in enumerate(blocks(params)):
        _, q, k, v = whole(p, x)
        y = np.zeros_like(x)
        for b, t in np.ndindex(tokens.shape):
            more = read(kind, params, asked[b, t], layer, states)
            keys, values = np.concatenate([k[b, : t + 1], more[0]]), np.concatenate([v[b, : t + 1], more[1]])
            for h in range(heads):
                one = slice(h * size, (h + 1) * size)
                score = keys[:, one] @ q[b, t, one] / np.sqrt(size)
                w = np.exp(score - score.max())
                y[b, t, one] = w / w.sum() @ values[:, one]
        x = x + reference.linear(p["attention"]["out"], y)[0]
        x = x + reference.gelu_mlp(p["mlp"], reference.norm("layernorm", p["norm_2"], x)[0])[0]
    return reference.norm("layernorm", params["norm"], x)[0] @ params["tokens"].T


@pytest.mark.parametrize(("kind", "learned"), [("l2p", 1), ("coda_prompt", 1), ("coda_prompt", 2), ("dualprompt", 3)])
def test_what_is_read_is_that_of_numpy(kind, learned):
    params = prompted(kind, learned)
    wide = reference.float64(params)
    logits = apply(kind)(params, TOKENS)
    np.testing.assert_allclose(logits, slow(kind, wide, TOKENS), atol=2e-4)
    assert np.abs(logits - queries(wide, TOKENS) @ wide["tokens"].T).max() > 0.01  # that is the model without prompts
    later = TOKENS.copy()
    later[:, 4:] = 1
    np.testing.assert_allclose(apply(kind)(params, later)[:, :4], logits[:, :4], atol=1e-6)  # no later token is read, not by queries either


def test_one_expert_is_trained_and_the_nearest_is_read_later():
    params = prompted("dualprompt", 3)
    asked = jnp.asarray(queries(reference.float64(params), TOKENS), jnp.float32)
    near = np.asarray(prompts.cosine(asked, params["prompts"]["dualprompt"]["keys"]))
    found = np.asarray(prompts.weights(params["prompts"], asked))
    assert (found.argmax(-1) == near[..., :3].argmax(-1)).all()
    assert (found.sum(-1) == 1).all()
    assert np.asarray(prompts.weights(params["prompts"] | {"task": 2}, asked))[..., 2].all()


def test_pull_of_keys_and_orthogonality_by_hand():
    ctx = context("l2p")
    params, tokens = prompted("l2p", 1), jnp.asarray(TOKENS)
    ctx = ctx._replace(weights=lambda pool: params | {"prompts": params["prompts"] | {"l2p": pool}})
    pool = params["prompts"]["l2p"]
    @fast
    def pulled(pool):
        return jax.value_and_grad(lambda pool: l2p.batch_loss(ctx, pool, (), tokens, jnp.array([1.0, 0.0])))(pool)
    loss, slope = pulled(pool)
    asked, keys = queries(reference.float64(params), TOKENS[:, :-1])[0], np.asarray(pool["keys"], np.float64)
    np.testing.assert_allclose(loss, 0.5 * sum(np.sort(1 - cos(q, keys))[:2].sum() for q in asked), rtol=1e-4)
    assert np.any(slope["keys"])
    assert not np.any(slope["prompts"])
    start = prompts.start(DEEP, SPECS["coda_prompt"], jax.random.key(0))
    assert coda_prompt.penalty(context("coda_prompt"), start, ()) < 1e-9
    doubled = start | {"keys": 2 * start["keys"]}  # 3 rows of the first of two tasks, of squared length 4
    np.testing.assert_allclose(coda_prompt.penalty(context("coda_prompt"), doubled, ()), 3 * 3**2, rtol=1e-5)


def context(kind):
    stage = dataclasses.replace(make_run(DEEP).stages[0], strategy=SPECS[kind], trains="prompts")
    run = dataclasses.replace(make_run(DEEP), stages=(stage,))
    return train._context(train.Shape.of(run), train.knobs(run), {"weights": {}, "learned": 1, "setting": 2})


SMALL = ModelSpec(d_model=8, n_layers=1, n_heads=2, vocab_size=16, seq_len=5)


def run_of(kind, *changes):
    """A stage in which everything is trained, and two that train prompts."""
    first = make_run(SMALL, n_items=8, batch_size=4, exposures=2, order="sequential").stages[0]
    then = dataclasses.replace(first, trains="prompts", strategy=SPECS[kind])
    stages = (first, *(dataclasses.replace(then, data=dataclasses.replace(first.data, first=100 * i)) for i in (1, 2)))
    return dataclasses.replace(make_run(SMALL), stages=stages)


@pytest.mark.parametrize("kind", prompts.KINDS)
def test_only_the_pool_moves_and_the_next_stage_goes_on_with_it(kind):
    """Stopped or not; and CODA's first half and DualPrompt's first expert stay to the bit as the first task has left them."""
    run = run_of(kind)
    check([run])
    shape, k = train.Shape.of(run, micro_batch=4), [train.knobs(run, i) for i in range(3)]
    assert shape.stage(1) == shape.stage(2)

    k = jax.tree.map(jnp.asarray, k)
    go_on = fast(lambda state, k, segments: train.advance(shape.stage(1), state, k, segments))
    start = fast(lambda k: (first := train.start(shape.stage(0), k[0]), train.switch(shape.stage(0), shape.stage(1), first, k[0], k[1])))(k)
    states = [start[0], start[1]._replace(reference=())]
    states.append(go_on(states[-1], k[1], jnp.int32(9)))
    again = fast(lambda state, k: train.switch(shape.stage(1), shape.stage(2), state, k[1], k[2], same=True))
    states.append(again(states[-1], k)._replace(reference=()))
    half = go_on(states[-1], k[2], jnp.int32(1))
    states.append(go_on(half, k[2], jnp.int32(9)))
    jax.tree.map(np.testing.assert_array_equal, states[-1], go_on(states[-2], k[2], jnp.int32(9)))  # stopped and gone on, or in one
    end = train.weights(shape.stage(2), states[-1], k[2], ended=True)
    assert not states[-1].diverged
    jax.tree.map(np.testing.assert_array_equal, {k: v for k, v in end.items() if k != "prompts"}, states[0].params)
    jax.tree.map(np.testing.assert_array_equal, states[3].params, states[2].params)
    assert [int(s.rest["learned"]) for s in states[1:]] == [1, 1, 2, 2]
    assert "task" not in end["prompts"]
    moved = [jax.tree.map(lambda a, b: np.abs(a - b), states[j].params, states[i].params) for i, j in ((1, 2), (3, 4))]
    if kind == "l2p":
        assert all(np.any(x) for pool in moved for x in pool.values())
    elif kind == "coda_prompt":
        assert all(np.any(x[:3]) and not np.any(x[3:]) for x in moved[0].values())
        assert all(np.any(x[3:]) and not np.any(x[:3]) for x in moved[1].values())
    else:
        for task in (0, 1):
            assert np.any(moved[task]["general"])
            assert [bool(np.any(x)) for x in moved[task]["keys"]] == [m == task for m in range(4)]
            assert [bool(np.any(moved[task]["expert"][:, m])) for m in range(4)] == [m == task for m in range(4)]
    same = lambda tree: jax.tree.map(lambda x: (np.shape(x), str(x.dtype)), tree)  # noqa: E731
    assert same(end["prompts"]) == same(prompts.beside(run)["prompts"])  # as a saved model is read back
    assert sum(x.size for x in states[2].params.values()) == trainable.n_trained(SMALL, run.stages[1])


def test_costs_are_counted():
    """A query is a third of a step; attention to n more places of L blocks 12 n L d a position; the pool is what is kept."""
    one = dataclasses.replace(run_of("coda_prompt"), stages=run_of("coda_prompt").stages[1:2])
    found = strategies.costs(one)
    position = 6 * (12 * 64 + 16 * 8) + 12 * 4 * 8
    assert found.flops_ratio == pytest.approx(1 / 3 + 12 * 12 * 8 / position)
    assert found.state_floats == 6 * (8 + 8 + 2 * 2 * 8)
    assert found.stored_tokens == 0


@pytest.mark.parametrize(("kind", "change", "said"), [
    ("l2p", {"trains": "all"}, "stages.1..trains = 'all': must be 'prompts' with one of"),
    ("l2p", {"strategy": StrategySpec("lwf")}, "stages.1..trains = 'prompts': must be 'prompts' with one of the strategies l2p.*no other .now 'lwf'"),
    ("l2p", {"strategy": StrategySpec("l2p", pool=2, chosen=3)}, "pool = 2: must be at least strategy.chosen = 3"),
    ("dualprompt", {"strategy": StrategySpec("dualprompt", pool=2)}, "stages.2..trains = 'prompts': must go on"),
    ("coda_prompt", {"continued": True}, "prompts"),
])
def test_what_cannot_be_prompted_is_one_line(kind, change, said):
    def attempt():
        run = run_of(kind)
        check([dataclasses.replace(run, stages=(run.stages[0], dataclasses.replace(run.stages[1], **change), run.stages[2]))])

    with pytest.raises(SpecError, match=said) as error:
        attempt()
    assert len(str(error.value).splitlines()) == 1


def test_prompts_are_refused_where_nothing_reads_them():
    for arch, layers, said in (("mlp", 1, "must be gpt"), ("gpt", 0, "n_layers = 0")):
        with pytest.raises(SpecError, match=said):
            check([dataclasses.replace(run_of("l2p"), model=dataclasses.replace(SMALL, arch=arch, n_layers=layers))])
    with pytest.raises(SpecError, match="token by token"):
        models.decode(DEEP)[0](prompted("l2p"), TOKENS, 8)
