"""Facts: sentences as they are defined, subjects told apart, objects uniform, paraphrases and compositions."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import MODEL, make_run

from scalemem import data, train
from scalemem.data import facts
from scalemem.spec import CanarySpec, InjectSpec, ReplaySpec, SpecError

KEY = train.key(0, "data")
items, sentences, probes = (jax.jit(f, static_argnums=0) for f in (facts.items, facts.sentences, facts.probes))


def run_of(vocab=64, seq_len=9, stage=None, **spec):
    model = dataclasses.replace(MODEL, vocab_size=vocab, seq_len=seq_len)
    run = make_run(model, generator="facts", data={"variants": 3, "relations": 2, **spec})
    return dataclasses.replace(run, stages=(dataclasses.replace(run.stages[0], **(stage or {})),))


def test_vocabulary_and_sentence_are_divided_as_stated():
    # 4 forms (3 variants and the composed one): 1 + 4 (2 + 1) = 13 words; 51 left: 25 names, 26 values; 9 - 2 - 2 = 5: subject 4, filler 1
    assert facts.parts(run_of()) == (13, 25, 26, 4, 4, 1, 25**4)
    assert facts.parts(run_of(vocab=300, seq_len=8, object_tokens=3, variants=1, relations=4)) == (6, 147, 147, 1, 3, 0, 147**3)
    assert facts.object_bits(run_of()) == pytest.approx(2 * math.log2(26))
    assert facts.entropy_bits(run_of()) == pytest.approx(3 * math.log2(25) + 2 * math.log2(26))


def test_a_sentence_is_subject_filler_words_object():
    run = run_of()
    tokens = np.asarray(items(run, KEY, jnp.arange(12)))  # facts 0 .. 3, three sentences each
    by_fact = tokens.reshape(4, 3, 9)
    for f, said in enumerate(by_fact):
        assert (said[:, :4] == said[0, :4]).all()
        assert ((said[:, :4] >= 13) & (said[:, :4] < 38)).all()
        assert (said[:, 4] == 0).all()
        forms = [0, 1, 3 if f // 2 % 2 else 2]  # the last sentence is the paraphrase of facts 0 and 1, and what follows of facts 2 and 3
        for sentence, u in zip(said, forms, strict=True):
            template, relation = 1 + u, 5 + 4 * (f % 2) + u
            assert sentence[5:7].tolist() == ([relation, template] if u % 2 else [template, relation])
        assert ((said[:, 7:] >= 38) & (said[:, 7:] < 64)).all()
        assert (said[1, 7:] == said[0, 7:]).all()
    assert (by_fact[:2, 2, 7:] == by_fact[:2, 0, 7:]).all()
    assert (by_fact[2:, 2, 7:] != by_fact[2:, 0, 7:]).any()


def test_all_subjects_are_told_apart_and_controls_from_them():
    run = run_of(vocab=33, seq_len=6)  # 20 tokens beside the words: 10 names, 2 tokens: 100 subjects
    trained, control = jnp.arange(50), facts.first_control(run) + jnp.arange(50)
    for seed in range(3):
        tokens = sentences(run, train.key(seed, "data"), jnp.concatenate([trained, control]), jnp.zeros(100, int))
        assert len(np.unique(np.asarray(tokens[:, :2]), axis=0)) == 100


def test_subject_and_object_of_a_fact_are_uniform_over_keys():
    run = run_of(vocab=21, seq_len=6, variants=1, relations=4)  # 6 words, 7 names, 8 values
    keys = jax.vmap(lambda s: train.key(s, "data"))(jnp.arange(2000))
    tokens = np.asarray(jax.jit(jax.vmap(lambda k: facts.items(run, k, jnp.array([5]))[0]))(keys))
    for places, low, count in ((tokens[:, 0] * 7 + tokens[:, 1] - 8 * 6, 0, 49), (tokens[:, 4] - 13, 0, 8), (tokens[:, 5] - 13, 0, 8)):
        seen = np.bincount(places - low, minlength=count)
        assert len(seen) == count
        chi2 = ((seen - 2000 / count) ** 2 / (2000 / count)).sum()
        assert chi2 < count - 1 + 5 * math.sqrt(2 * (count - 1))
    joint = np.corrcoef(tokens[:, 4], tokens[:, 5])[0, 1]
    assert abs(joint) < 0.1


def test_objects_of_facts_are_independent_of_one_another():
    run = run_of(object_tokens=1)
    values = np.asarray(facts.objects(run, KEY, jnp.arange(4000)))[:, 0] - 38
    pairs = np.bincount(values[:-1] * 26 + values[1:], minlength=676)
    assert abs(((pairs - 3999 / 676) ** 2 / (3999 / 676)).sum() - 675) < 5 * math.sqrt(2 * 675)
    foils = np.asarray(facts.objects(run, KEY, jnp.arange(4000), 1))[:, 0] - 38
    assert abs((foils == values).mean() - 1 / 26) < 0.02


def test_what_follows_is_one_permutation_of_the_values_for_all_facts():
    run = run_of()
    known = {name: np.asarray(tokens) for name, tokens in probes(run, KEY, jnp.arange(400)).items()}
    said, follows = (known[name][:, 7:].ravel() for name in ("memorization", "composition"))
    table = dict(zip(said.tolist(), follows.tolist(), strict=True))
    assert [table[s] for s in said.tolist()] == follows.tolist()
    assert sorted(table) == sorted(table.values()) == list(range(38, 64))
    assert (known["semantic"][:, 7:] == known["memorization"][:, 7:]).all()
    assert (known["semantic"][:, 5:7] != known["memorization"][:, 5:7]).all()
    np.testing.assert_array_equal(items(run, KEY, jnp.arange(2, 12, 3)),
                                  np.where(np.arange(4)[:, None] < 2, known["semantic"][:4], known["composition"][:4]))
    assert list(probes(run_of(variants=1), KEY, jnp.arange(2))) == ["memorization"]


def test_facts_without_structure_are_uniform_tokens_that_end_alike():
    run = run_of()
    first, control = facts.first_random(run), facts.first_control(run)
    assert not facts.unstructured(run, np.array([0, first - 1, control, control + first - 1])).any()
    assert facts.unstructured(run, np.array([first, control - 1, control + first])).all()
    number = first + jnp.arange(500)
    tokens = [np.asarray(sentences(run, KEY, number, jnp.full(500, u))) for u in (0, 1)]
    assert (tokens[0][:, 7:] == tokens[1][:, 7:]).all()
    assert (tokens[0][:, :7] == tokens[1][:, :7]).mean() < 0.05
    seen = np.bincount(tokens[0].ravel(), minlength=64)
    assert abs(((seen - 4500 / 64) ** 2 / (4500 / 64)).sum() - 63) < 5 * math.sqrt(126)


@pytest.mark.parametrize(("spec", "message"), [
    ({"vocab": 16}, r"model.vocab_size = 16: must be at least 17"),
    ({"seq_len": 5}, r"model.seq_len = 5: must be at least 6"),
    ({"canaries": CanarySpec(per_group=1)}, "data.canaries: must be None"),
    ({"vocab": 33, "seq_len": 6, "first": 147}, r"stages\[0\].data.n_items = 13: its last fact is 53, and 2 tokens of 10 names tell 50 facts apart"),
    ({"stage": {"inject": InjectSpec(n_items=1, first=1 << 29)}}, r"stages\[0\].inject.first = 536870912: its last fact is \d+, and facts from 1789"),
    ({"stage": {"replay": ReplaySpec(fraction=0.1, n_items=1 << 28)}}, r"stages\[0\].replay"),
])
def test_what_does_not_fit_is_one_line(spec, message):
    if "vocab" in spec and spec["vocab"] == 33:
        data.check(run_of(**{**spec, "first": 134}))
    with pytest.raises(SpecError, match=message) as error:
        data.check(run_of(**spec))
    assert len(str(error.value).splitlines()) == 1
