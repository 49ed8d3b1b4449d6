"""Memorized bits against float64 arithmetic, published identities and models whose bits are known; membership; rounding."""

import dataclasses
import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_gpt as reference
from conftest import MODEL, make_run, one, trained

from scalemem import accounting, data, measure, models, train
from scalemem.measure import capacity, membership, quantized, scoring

RUN = make_run(exposures=400, n_items=16, batch_size=5)


def keys(run):
    return train.key(run.seed, "data"), train.key(run.seed, "probe")


def items(run, key, n):
    return np.asarray(data.get("uniform").items(run, key, jnp.arange(n)))


@pytest.fixture(scope="module")
def params():
    """A model that holds its 16 sequences nearly whole, and one that holds none of 16."""
    states = trained([RUN, make_run(exposures=0, n_items=16)])
    return one(states, 0).params, one(states, 1).params


def measured(run, params):
    return capacity.measure(run, params, *keys(run))


def test_bits_are_those_of_float64(params):
    """1e-6 relative, of a trained and of an untrained model; exact recall by greedy decoding."""
    tokens = items(RUN, keys(RUN)[0], 16)
    for p in params:
        m, nats = measured(RUN, p), reference.nats(RUN.model, p, tokens)
        assert m["train_loss_nats"] == pytest.approx(nats.sum() / (16 * 7), rel=1e-6)
        expected = 16 * 7 * 5 - nats.sum() / math.log(2)
        assert m["memorized_bits"] == pytest.approx(expected, rel=1e-6, abs=1e-6 * nats.sum())
        greedy = reference.forward(RUN.model, p, tokens[:, :-1])[0].argmax(-1)
        assert m["exact_recall_fraction"] == (greedy == tokens[:, 1:]).all(-1).mean()
        fresh = reference.nats(RUN.model, p, items(RUN, keys(RUN)[1], 16))
        assert m["test_loss_nats"] == pytest.approx(fresh.sum() / (16 * 7), rel=1e-6)
        assert m["null_se_bits"] == pytest.approx(4 * fresh.sum(-1).std(ddof=1) / math.log(2), rel=1e-4)


def test_a_trained_model_holds_at_most_its_data(params):
    m = measured(RUN, params[0])
    assert 0.5 * accounting.data_bits(RUN) < m["memorized_bits"] <= accounting.data_bits(RUN)
    assert m["memorized_fraction"] == pytest.approx(m["memorized_bits"] / (16 * 7 * 5))
    assert m["bits_per_param"] == m["memorized_bits"] / accounting.n_params(MODEL)
    assert m["memorized_bits_paper"] == pytest.approx(m["memorized_bits"] * 8 / 7, rel=1e-12)
    assert m["bits_per_param_paper"] == pytest.approx(m["bits_per_param"] * 8 / 7, rel=1e-12)
    assert m["mia_auc"] > 0.9


def test_an_untrained_model_holds_nothing_within_its_error():
    """It reads minus its divergence from the uniform source, give or take 4 standard errors.

    The divergence a token is at most log2 V - E[H(model)], which for logits of standard deviation s is s^2 / 2 nats; here it
    is estimated by the loss on fresh sequences.
    """
    for seed in range(3):
        run = make_run(exposures=0, n_items=1500, seed=seed)
        m = measured(run, models.init(run.model, train.key(seed, "init")))
        excess = 1500 * 7 * (m["test_loss_nats"] - math.log(32)) / math.log(2)
        error = 4 * math.sqrt(2) * m["null_se_bits"]  # of two sums: over the members and over the fresh sequences
        assert abs(m["memorized_bits"] + excess) < error
        assert error < 0.01 * accounting.data_bits(run)
        assert abs(excess) < 0.01 * accounting.data_bits(run)
        assert abs(m["mia_auc"] - 0.5) < 4 * m["mia_auc_se"]


def fake(monkeypatch, logits):
    """The measures see this function of the tokens in place of a model."""
    monkeypatch.setattr(models, "apply", lambda spec: lambda params, tokens: logits(tokens))
    scoring._program.cache_clear()


@pytest.fixture(autouse=True)
def _fresh_scorers():
    yield
    scoring._program.cache_clear()


def test_a_model_that_guesses_holds_exactly_nothing(monkeypatch):
    fake(monkeypatch, lambda tokens: jnp.zeros((*tokens.shape, 32)) + 3.5)
    m = measured(RUN, {})
    assert m["memorized_bits"] == pytest.approx(0, abs=1e-4)  # of 560 bits, in float32 logits
    assert m["exact_recall_fraction"] == 0
    assert (m["mia_auc"], m["mia_f1"]) == (0.5, 0.5)
    assert m["mia_f1_best"] == pytest.approx(2 / 3)
    assert m["null_se_bits"] == 0


def test_a_table_of_the_data_holds_all_of_it(monkeypatch):
    """Logits 60 for the right next token of the sequences that begin so, 0 for others."""
    tokens = jnp.asarray(items(RUN, keys(RUN)[0], 16))

    def lookup(seen):
        match = jnp.stack([(seen[:, None, : t + 1] == tokens[None, :, : t + 1]).all(-1) for t in range(seen.shape[1])], 1)
        return 60 * jnp.einsum("btn,ntv->btv", match.astype(jnp.float32), jax.nn.one_hot(tokens[:, 1:], 32))

    firsts = np.asarray(tokens[:, 0])
    assert len(set(firsts.tolist())) < 16  # some share their first token: what follows it is a guess among them
    fake(monkeypatch, lookup)
    m = measured(RUN, {})
    shared = sum(math.log2((firsts == f).sum()) for f in firsts)
    assert m["memorized_bits"] == pytest.approx(16 * 35 - shared, abs=1e-3)
    fake(monkeypatch, lambda seen: _right(seen, tokens))
    m = measured(RUN, {})
    assert m["memorized_bits"] == pytest.approx(accounting.data_bits(RUN), abs=1e-9)
    assert m["memorized_bits"] <= accounting.data_bits(RUN)
    assert m["exact_recall_fraction"] == 1
    assert m["mia_auc"] == 1.0


def _right(seen, tokens):
    """Logits of an oracle: it knows which row of the data it is asked for, by the whole of its tokens."""
    row = (seen[:, None] == tokens[None, :, :-1]).all(-1).astype(jnp.float32)
    return 100 * jnp.einsum("bn,ntv->btv", row, jax.nn.one_hot(tokens[:, 1:], 32))


@pytest.mark.parametrize(("seq_len", "predicted", "published"), [(4, 4.28, 4.19), (8, 1.83, 1.80), (16, 0.86, 0.84), (32, 0.41, 0.41)])
def test_the_shortfall_of_short_sequences(seq_len, predicted, published):
    """A perfect model of N = 4096 sequences over V = 2048 still pays which of those that share the first token it is in.

    The published table of sequence lengths falls short of N S log2 V, in the paper's convention, by that: E[log2 bucket] / (11 (S - 1)).
    """
    run = make_run(dataclasses.replace(MODEL, vocab_size=2048, seq_len=seq_len), n_items=4096)
    first = items(run, keys(run)[0], 4096)[:, 0]
    sizes = np.bincount(first, minlength=2048)[first]
    bits = capacity.bits(run, np.log(sizes))  # what the perfect model pays, in nats a sequence
    short = 100 * (1 - bits * seq_len / (seq_len - 1) / accounting.data_bits_all_tokens(run))
    assert short == pytest.approx(predicted, rel=0.03)
    assert short == pytest.approx(published, rel=0.05)
    expected = sum(math.comb(4095, k) * (1 / 2048) ** k * (1 - 1 / 2048) ** (4095 - k) * math.log2(k + 1) for k in range(40))
    assert expected == pytest.approx(1.41, abs=0.005)
    assert 100 * expected / (11 * (seq_len - 1)) == pytest.approx(predicted, abs=0.006)


def test_scores_do_not_depend_on_the_chunks(monkeypatch, params):
    tokens = jnp.asarray(items(RUN, keys(RUN)[0], 13))
    whole = scoring.score(RUN.model, params[0], tokens)
    monkeypatch.setitem(scoring.CHUNK_FLOATS, "cpu", 4 * 8 * 32)
    parts = scoring.score(RUN.model, params[0], tokens)
    np.testing.assert_allclose(parts.nats, whole.nats, rtol=2e-6)
    np.testing.assert_array_equal(parts.exact, whole.exact)
    monkeypatch.setattr(capacity, "SLICE", 5)
    np.testing.assert_allclose(capacity.scores(RUN, params[0], keys(RUN)[0], 13).nats, whole.nats, rtol=2e-6)


def test_compensated_sum_against_exact_sums():
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal(301) * 10.0 ** rng.integers(-6, 7, 301), np.r_[1e8, np.full(299, 0.1), -1e8],
            np.tile([1e7, 1.0, -1e7], 101)[:301], np.full(301, 0.1), np.r_[1.0, np.full(300, 1e-8)], np.zeros(301)]
    x = np.array(rows, np.float32)
    high, low = jax.jit(scoring.compensated_sum)(jnp.asarray(x))
    got = np.asarray(high, np.float64) + np.asarray(low, np.float64)
    for value, row in zip(got, x.astype(float), strict=True):
        exact = math.fsum(row)
        assert exact == float(sum(map(Fraction, row)))
        assert value == pytest.approx(exact, abs=3e-12 * np.abs(row).sum(), rel=2e-7)
    assert np.abs(x[:5].sum(1, dtype=np.float32) - got[:5]).max() > 1e-3  # plain float32 would have failed


def brute_force(member, fresh):
    pairs = [(m < f) + (m == f) / 2 for m, f in itertools.product(member, fresh)]
    best = tpr = 0.0
    for t in [*member, *fresh, -np.inf]:
        tp, fp = sum(m <= t for m in member), sum(f <= t for f in fresh)
        best = max(best, 2 * tp / (2 * tp + fp + (len(member) - tp)))
        if fp <= 0.01 * len(fresh):
            tpr = max(tpr, tp / len(member))
    return {"mia_auc": sum(pairs) / len(pairs), "mia_f1_best": best, "mia_tpr_at_fpr_1pct": tpr}


def test_membership_against_brute_force():
    rng = np.random.default_rng(1)
    cases = ((1, 0.5, None), (2, 1.0, None), (40, 0.7, None), (150, 1.0, None), (40, 0.7, 0.5), (60, 0.0, 1.0), (30, 9.0, None))
    for n, shift, grid in cases:
        member, fresh = rng.standard_normal(n) - shift, rng.standard_normal(n)
        if grid:  # many ties
            member, fresh = np.round(member / grid) * grid, np.round(fresh / grid) * grid
        got = membership.attack(member, fresh)
        expected = brute_force(member, fresh)
        assert {name: got[name] for name in expected} == pytest.approx(expected, rel=1e-12)
        if not grid:
            called = np.concatenate([member, fresh]) <= np.sort(np.concatenate([member, fresh]))[n - 1]
            assert got["mia_f1"] == pytest.approx(called[:n].sum() / n)  # half are called members, so F1 = precision = recall


def test_membership_by_chance():
    same = np.arange(20.0)
    got = membership.attack(same, same)
    assert (got["mia_auc"], got["mia_f1"]) == (0.5, 0.5)
    tied = membership.attack(np.ones(7), np.ones(7))
    assert (tied["mia_auc"], tied["mia_f1"], tied["mia_f1_best"], tied["mia_tpr_at_fpr_1pct"]) == pytest.approx((0.5, 0.5, 2 / 3, 0))
    rng = np.random.default_rng(2)
    draws = [membership.attack(rng.standard_normal(200), rng.standard_normal(200)) for _ in range(200)]
    auc = np.array([d["mia_auc"] for d in draws])
    assert abs(auc.mean() - 0.5) < 4 * auc.std() / math.sqrt(200)
    assert np.mean([d["mia_auc_se"] for d in draws]) == pytest.approx(auc.std(), rel=0.2)  # its standard error is one
    assert np.mean([d["mia_f1"] for d in draws]) == pytest.approx(0.5, abs=0.01)
    assert all(d["mia_f1_best"] >= 2 / 3 - 1e-12 for d in draws)


def test_membership_of_nonsense():
    nan = membership.attack(np.array([1.0, np.nan]), np.array([1.0, 2.0]))
    assert all(math.isnan(v) for v in nan.values())
    for member, fresh in ((np.zeros(0), np.zeros(0)), (np.zeros(2), np.zeros(3))):
        with pytest.raises(ValueError, match="must be equal and positive"):
            membership.attack(member, fresh)


def plain_rounding(w, bits, axis):
    out, top = np.zeros_like(w), 2 ** (bits - 1) - 1
    for c in range(w.shape[1 - axis]):
        column = w[:, c] if axis == 0 else w[c]
        scale = np.abs(column).max() / top
        whole = np.round(column / scale) * scale if scale > 0 else column * 0
        if axis == 0:
            out[:, c] = whole
        else:
            out[c] = whole
    return out


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_to_integers(bits):
    rng = np.random.default_rng(3)
    for axis in (0, 1):
        w = rng.standard_normal((6, 9)).astype(np.float32)
        w[:, 2], w[4] = 0, 0
        got = np.asarray(quantized.rounded(jnp.asarray(w), bits, axis))
        np.testing.assert_allclose(got, plain_rounding(w, bits, axis), rtol=2e-6, atol=1e-7)
        np.testing.assert_allclose(quantized.rounded(jnp.asarray(got), bits, axis), got, rtol=1e-6)
        scale = np.abs(w).max(axis, keepdims=True) / (2 ** (bits - 1) - 1)
        assert (np.abs(got - w) <= scale / 2 * (1 + 1e-5) + 1e-12).all()
        assert max(len(np.unique(np.round(x, 6))) for x in (got.T if axis == 0 else got)) <= 2**bits - 1


def test_rounding_goes_by_rows_of_embeddings_and_by_outputs_of_layers():
    p = jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(4).standard_normal(x.shape), jnp.float32), models.shape(MODEL))
    q = reference.leaves(quantized.quantize(p, 4))
    for path, w in reference.leaves(p).items():
        expected = w if w.ndim < 2 else plain_rounding(w, 4, 1 if path in ("/tokens", "/positions") else 0)
        np.testing.assert_allclose(q[path], expected, rtol=2e-6, atol=1e-6, err_msg=path)


def test_rounding_a_trained_model_costs_bits(params):
    full = measured(RUN, params[0])["memorized_bits"]
    rounded = measure.get("quantized")(RUN, params[0], *keys(RUN))
    assert rounded["memorized_bits_int4"] < rounded["memorized_bits_int8"] <= full * 1.01
    assert rounded["memorized_bits_bf16"] <= full * 1.01
    assert rounded["memorized_bits_int8"] > 0.8 * full
    p = jax.tree.map(lambda w: np.asarray(jnp.asarray(w, jnp.bfloat16), np.float64), params[0])
    nats = reference.nats(RUN.model, p, items(RUN, keys(RUN)[0], 16)).sum()
    assert rounded["memorized_bits_bf16"] == pytest.approx(16 * 35 - nats / math.log(2), rel=1e-5)
