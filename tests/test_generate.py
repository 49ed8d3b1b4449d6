"""Generation against re-running the prefix, processed probabilities against NumPy, samples against their probabilities."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_gpt as reference
from scipy import stats
from test_model import SMALL, SWITCHES, perturbed

from scalemem import generate as generation
from scalemem import models
from scalemem.generate import generate, processed_log_probs
from scalemem.spec import ModelSpec, SpecError

TABLE = ModelSpec(d_model=5, n_layers=0, n_heads=1, vocab_size=5, seq_len=16, norm="rmsnorm", tied=False)


def table(rows):
    """A model without blocks that is a table: the logits after token i are row i."""
    one_hot = {"tokens": jnp.eye(5), "positions": jnp.zeros((16, 5)), "norm": {"scale": jnp.full(5, np.sqrt(1 / 5 + 1e-5), jnp.float32)}}
    return {**models.init(TABLE, jax.random.key(0)), **one_hot, "head": jnp.asarray(rows, jnp.float32)}


def rerun(spec, params, prompts, new_tokens):
    """Greedy decoding by the float64 reference, the whole prefix at every step; also the least gap between first and second."""
    tokens, gap = np.asarray(prompts), np.inf
    for _ in range(new_tokens):
        logits = reference.forward(spec, params, tokens)[0][:, -1]
        first, second = np.sort(logits, -1)[:, [-1, -2]].T
        gap = min(gap, (first - second).min())
        tokens = np.concatenate([tokens, logits.argmax(-1)[:, None]], 1)
    return tokens[:, np.shape(prompts)[1]:], gap


@pytest.mark.parametrize("name", SWITCHES)
def test_cached_logits_are_those_of_the_whole_prefix(name):
    """After a prefix of two, token by token, 1e-5; and greedy tokens are those of the reference."""
    spec = dataclasses.replace(SMALL, **SWITCHES[name], seq_len=9)
    params = perturbed(spec)
    tokens = np.random.default_rng(5).integers(0, spec.vocab_size, (4, 9))
    expected = reference.forward(spec, params, tokens)[0]
    whole, (prefill, step) = jax.jit(models.apply(spec))(params, jnp.asarray(tokens)), models.decode(spec)
    np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-5)
    logits, cache = jax.jit(prefill, static_argnums=2)(params, jnp.asarray(tokens[:, :2]), 11)
    np.testing.assert_allclose(logits, whole[:, 1], rtol=1e-5, atol=1e-5)
    advance = jax.jit(step)
    for t in range(2, 9):
        logits, cache = advance(params, jnp.asarray(tokens[:, t]), jnp.int32(t), cache)
        np.testing.assert_allclose(logits, whole[:, t], rtol=1e-5, atol=1e-5)
    greedy, gap = rerun(spec, params, tokens[:, :3], 6)
    assert gap > 1e-4  # no tie that rounding could turn
    np.testing.assert_array_equal(generate(spec, params, tokens[:, :3], 6), greedy)


def test_the_precision_of_training_does_not_matter():
    spec = dataclasses.replace(SMALL, compute_dtype="bfloat16", param_dtype="bfloat16")
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), perturbed(SMALL))
    prompts = np.random.default_rng(6).integers(0, 19, (6, 2))
    as_float32 = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    np.testing.assert_array_equal(generate(spec, params, prompts, 4), generate(SMALL, as_float32, prompts, 4))


def processed(logits, temperature, top_k, top_p):
    """Temperature, then top-k, then nucleus, of one row: by sorting, in float64."""
    x = [float(v) / temperature for v in logits]
    order = sorted(range(len(x)), key=lambda i: (-x[i], i))[: top_k or len(x)]
    p = np.exp(np.array([x[i] for i in order]) - max(x))
    p /= p.sum()
    kept = 1
    while p[:kept].sum() < top_p and kept < len(p):
        kept += 1
    out = np.zeros(len(x))
    out[order[:kept]] = p[:kept] / p[:kept].sum()
    return out


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [*itertools.product((0.3, 1.0, 2.5), (0, 1, 4, 99), (1.0, 0.71, 0.01))])
def test_processed_probabilities_are_those_of_numpy(temperature, top_k, top_p):
    logits = np.random.default_rng(7).normal(0, 2, (3, 4, 11)).astype(np.float32)
    got = np.exp(np.asarray(processed_log_probs(jnp.asarray(logits), temperature, top_k, top_p), np.float64))
    expected = np.array([[processed(row, temperature, top_k, top_p) for row in rows] for rows in logits])
    np.testing.assert_array_equal(got > 0, expected > 0)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_ties_keep_the_first_and_temperature_0_is_greedy():
    tied = jnp.array([1.0, 2.0, 2.0, 2.0, 0.0])
    np.testing.assert_allclose(np.exp(processed_log_probs(tied, top_k=2)), [0, 0.5, 0.5, 0, 0])
    for top_k, top_p in ((0, 1.0), (2, 0.5)):
        np.testing.assert_array_equal(np.exp(processed_log_probs(tied, 0, top_k, top_p)), [0, 1, 0, 0, 0])
    banned = jnp.array([-np.inf, 0.0, -np.inf, 0.0])
    np.testing.assert_allclose(np.exp(processed_log_probs(banned, top_k=3)), [0, 0.5, 0, 0.5])


@pytest.mark.parametrize("settings", [{"temperature": 1.0}, {"temperature": 0.7, "top_k": 3}, {"temperature": 1.6, "top_k": 4, "top_p": 0.8}])
def test_samples_have_the_processed_probabilities(settings):
    """Two tokens after one of a table: all 25 joint frequencies of 20,000 samples, by chi-square; nothing that was left out."""
    rows = np.random.default_rng(8).normal(0, 1.2, (5, 5))
    p = np.exp(np.asarray(processed_log_probs(jnp.asarray(rows), **settings), np.float64))
    joint = (p[2][:, None] * p).ravel()
    sampled = generate(TABLE, table(rows), np.full((20_000, 1), 2), 2, key=jax.random.key(9), **settings)
    counts = np.bincount(sampled[:, 0] * 5 + sampled[:, 1], minlength=25)
    assert counts[joint == 0].sum() == 0
    expected = joint[joint > 0] / joint.sum() * 20_000
    assert stats.chisquare(counts[joint > 0], expected).pvalue > 1e-3


def test_a_row_depends_on_its_key_and_number_alone(monkeypatch):
    """Not on how many there are, nor on chunks; other keys and other rows draw otherwise; a table is followed exactly."""
    params, prompts = perturbed(SMALL), np.full((9, 1), 3)
    draw = lambda rows, seed=0: generate(SMALL, params, prompts[:rows], 5, jax.random.key(seed), 3.0)  # noqa: E731
    all_rows = draw(9)
    np.testing.assert_array_equal(draw(3), all_rows[:3])
    assert len({tuple(row) for row in all_rows}) > 5
    assert not np.array_equal(draw(9, seed=1), all_rows)
    monkeypatch.setitem(generation.CHUNK_FLOATS, "cpu", 1)
    np.testing.assert_array_equal(draw(9), all_rows)
    assert draw(0).shape == (0, 5)
    successor = 5 * np.eye(5)[[3, 0, 1, 4, 2]]
    np.testing.assert_array_equal(generate(TABLE, table(successor), np.array([[0, 0], [3, 1]]), 5), [[3, 4, 2, 1, 0], [0, 3, 4, 2, 1]])


def ban_even(tokens, position, candidates):
    """At even positions even tokens, and all tokens if the one before is 3."""
    before = jnp.take_along_axis(tokens, jnp.full((len(tokens), 1), position - 1), 1)
    return ((candidates % 2 == 0) & (position % 2 == 0)) | (before == 3)


def test_banned_tokens_are_not_taken_unless_all_are():
    """Greedy: the best that is left, or the best of all; sampled: renormalised over what is left, before top-k."""
    rows, ban = np.random.default_rng(10).normal(0, 1.5, (5, 5)), jax.tree_util.Partial(ban_even)
    prompts = np.arange(5)[:, None]
    greedy = generate(TABLE, table(rows), prompts, 12, ban=ban)
    for start, row in zip(range(5), greedy, strict=True):
        before = start
        for position, token in enumerate(row, 1):
            banned = [position % 2 == 0 and v % 2 == 0 for v in range(5)] if before != 3 else [False] * 5
            assert token == np.where(banned, -np.inf, rows[before]).argmax()
            before = token
    flat = table(np.zeros((5, 5)))
    sampled = generate(TABLE, flat, np.full((4000, 2), 1), 1, jax.random.key(0), 1.0, ban=ban)
    assert stats.chisquare(np.bincount(sampled[:, 0], minlength=5)[[1, 3]]).pvalue > 1e-3
    assert set(sampled[:, 0]) == {1, 3}
    best_left = generate(TABLE, table(rows), np.full((50, 2), 1), 1, jax.random.key(0), 1.0, top_k=1, ban=ban)
    assert set(best_left[:, 0]) == {(1, 3)[int(rows[1, 3] > rows[1, 1])]}
    all_banned = generate(TABLE, flat, np.full((500, 2), 3), 1, jax.random.key(0), 1.0, ban=ban)
    assert set(all_banned[:, 0]) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(("change", "message"), [
    ({"new_tokens": 6}, "new_tokens = 6: must be at least 1 and at most 5"), ({"new_tokens": 0}, "new_tokens = 0"),
    ({"prompts": np.zeros((2, 0), int)}, "P at least 1"), ({"prompts": np.zeros(3, int)}, "whole numbers"),
    ({"prompts": np.zeros((2, 1))}, "whole numbers"), ({"prompts": np.array([[19]])}, "must be tokens 0..18"),
    ({"prompts": np.array([[-1]])}, "must be tokens 0..18"), ({"temperature": -1.0}, "temperature = -1.0"),
    ({"temperature": float("nan")}, "temperature = nan"), ({"temperature": 1.0}, "key = None"), ({"top_k": -1}, "top_k = -1"),
    ({"top_k": 1.5}, "top_k = 1.5"), ({"top_p": 0.0}, "top_p = 0.0"), ({"top_p": 1.1}, "top_p = 1.1"),
])
def test_errors_are_one_line(change, message):
    arguments = {"model": SMALL, "params": {}, "prompts": np.array([[1]]), "new_tokens": 2, **change}
    with pytest.raises(ValueError, match=message) as error:
        generate(**arguments)
    assert len(str(error.value).splitlines()) == 1


def test_an_unknown_architecture_is_an_error_at_once():
    for make in (models.apply, models.decode):
        with pytest.raises(SpecError, match=r"model.arch = 'none'"):
            make(dataclasses.replace(SMALL, arch="none"))


def test_as_transformers_generates():
    """The same weights in GPT2LMHeadModel: the same logits, and the same greedy tokens."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    spec = ModelSpec(d_model=16, n_layers=2, n_heads=2, vocab_size=23, seq_len=20)
    params = perturbed(spec)
    config = transformers.GPT2Config(vocab_size=23, n_positions=20, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0,
                                     attn_pdrop=0.0, bos_token_id=None, eos_token_id=None)
    peer = transformers.GPT2LMHeadModel(config).eval()
    names = {"tokens": "wte.weight", "positions": "wpe.weight", "norm/scale": "ln_f.weight", "norm/bias": "ln_f.bias"}
    parts = {"norm_1/scale": "ln_1.weight", "norm_1/bias": "ln_1.bias", "norm_2/scale": "ln_2.weight", "norm_2/bias": "ln_2.bias",
             "attention/qkv": "attn.c_attn", "attention/out": "attn.c_proj", "mlp/up": "mlp.c_fc", "mlp/down": "mlp.c_proj"}
    for i in range(2):
        for ours, theirs in parts.items():
            linear = {"/w": ".weight", "/b": ".bias"} if "." not in theirs.removeprefix("attn.").removeprefix("mlp.") else {"": ""}
            names |= {f"blocks/{i}/{ours}{end}": f"h.{i}.{theirs}{other}" for end, other in linear.items()}
    state = peer.state_dict()
    for path, value in reference.leaves(params).items():
        slot = state["transformer." + names[path.lstrip("/")]]
        assert slot.shape == value.shape
        slot.copy_(torch.tensor(value))
    prompts = np.random.default_rng(11).integers(0, 23, (3, 4))
    with torch.no_grad():
        theirs = peer(torch.tensor(prompts)).logits.numpy()
        told = peer.generate(torch.tensor(prompts), attention_mask=torch.ones((3, 4), dtype=torch.long), max_new_tokens=16, do_sample=False,
                             pad_token_id=0).numpy()[:, 4:]
    np.testing.assert_allclose(models.apply(spec)(params, jnp.asarray(prompts)), theirs, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(generate(spec, params, prompts, 16), told)
