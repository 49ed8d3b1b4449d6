"""Fictional facts: a subject, a relation and an object in one sentence, its paraphrases, and a sentence that follows from it.

Item i is sentence i mod v of fact i // v, v = data.variants; the relation of fact f is f mod data.relations. A sentence is

    subject (2 to 4 tokens)   filler   two words of the relation   object (data.object_tokens tokens)

The vocabulary is cut into words, names (of subjects) and values (of objects). Each sentence of a relation has its own two words, and in every
other one they change places: a paraphrase. With two variants or more the last sentence of a fact is its held-out one, which injection and its
paraphrases leave out. In facts with f // relations even it is one more paraphrase; in the others it is the *composed* sentence, with words of its
own and, in the place of each token o of the object, the token table(o): a permutation of the values that the key draws and that no other sentence
states. It follows from the fact and from that table, and a stage that reads all sentences of some facts teaches the table and all the words.

From fact RANDOM // v on the facts have no structure: a sentence is tokens drawn uniformly from the vocabulary, its last ones the "object". Facts
from CONTROL // v on, with the same division, are controls that nothing trains on.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from scalemem.data import source
from scalemem.spec import RunSpec, SpecError

CONTROL = 1 << 29  # items from here on are of controls
RANDOM = 1 << 28  # items from here on, up to the controls, and of the controls beyond as many, have no structure
SUBJECT = (2, 4)  # fewest and most tokens of a subject
ROUNDS = 4
_FACTS = 0x46414354  # folded into the key
_NAME, _TABLE, _STRING, _OBJECT = range(4)  # what is drawn; foils are from _OBJECT on


class Parts(NamedTuple):
    """How the vocabulary and a sentence are divided."""

    words: int  # tokens 0 .. words - 1: filler, then the words of relations
    names: int  # the next ones: of subjects
    values: int  # the last ones: of objects
    forms: int  # sentences of a relation with words of their own: the variants, and where there are two or more the composed one
    subject: int  # tokens of a subject
    filler: int  # tokens between subject and relation
    subjects: int  # facts that are told apart, trained ones and controls together: at most 2^30


def parts(run: RunSpec) -> Parts:
    """How the vocabulary and the sequence of a run are divided.

    words = 1 + forms (relations + 1); of the other tokens the first half, rounded down, are names. The subject has the tokens that two words and
    the object leave, 2 to 4; what is still left is filler.

    Raises:
      SpecError: the vocabulary or the sequence is too small.

    >>> from scalemem.spec import *
    >>> stage = Stage(data=DataSpec(n_items=8), optimizer=OptimizerSpec(peak_lr=0.1), exposures=1, batch_size=4)
    >>> model = ModelSpec(d_model=4, n_layers=0, n_heads=1, vocab_size=64, seq_len=8)
    >>> tuple(parts(RunSpec(model=model, stages=(stage,), probes=(Probe("facts"),))))
    (6, 29, 29, 1, 4, 0, 707281)
    """
    data, model = run.stages[0].data, run.model
    forms = data.variants + (data.variants > 1)
    words = 1 + forms * (data.relations + 1)
    names = (model.vocab_size - words) // 2
    if names < 2:
        raise SpecError(f"model.vocab_size = {model.vocab_size}: must be at least {words + 4}, for {words} words of {data.relations} relations and "
                        f"{data.variants} variants, 2 names and 2 values; raise it, or lower data.relations or data.variants")
    room = model.seq_len - 2 - data.object_tokens
    if room < SUBJECT[0]:
        raise SpecError(f"model.seq_len = {model.seq_len}: must be at least {data.object_tokens + 4}, for a subject of 2 tokens, 2 words and the "
                        f"data.object_tokens = {data.object_tokens} of an object; lengthen the sequence or shorten the object")
    subject = min(room, SUBJECT[1])
    return Parts(words, names, model.vocab_size - words - names, forms, subject, room - subject, min(names**subject, 1 << 30))


def first_control(run: RunSpec) -> int:
    """Number of the first fact that is a control."""
    return CONTROL // run.stages[0].data.variants


def first_random(run: RunSpec) -> int:
    """Number of the first fact without structure; that of the first such control is higher by `first_control`."""
    return RANDOM // run.stages[0].data.variants


def unstructured(run: RunSpec, fact: Any) -> Any:
    """Which facts have no structure."""
    return fact % first_control(run) >= first_random(run)


def items(run: RunSpec, key: jax.Array, index: Int[Array, " B"]) -> Int[Array, "B S"]:
    """Sentences `index` of the facts of `key`: sentence i mod variants of fact i // variants.

    Args:
      run: gives the model's vocabulary and sequence length, data.variants, data.relations and data.object_tokens.
      key: draws subjects, objects and the table of compositions; the words are the same for all keys.
      index: item numbers, int32 [B], 0 .. 2^30 - 1.
    Returns:
      tokens, int32 [B, S].
    """
    data = run.stages[0].data
    fact, form = index // data.variants, index % data.variants
    if data.variants > 1:
        composed = (form == data.variants - 1) & ((fact // data.relations) % 2 == 1)
        form = form + composed
    return sentences(run, key, fact, form)


def sentences(run: RunSpec, key: jax.Array, fact: Int[Array, " B"], form: Int[Array, " B"]) -> Int[Array, "B S"]:
    """Sentences of facts: form 0 .. variants - 1 a paraphrase, form `variants` the composed one (where there are two variants or more)."""
    data, p = run.stages[0].data, parts(run)
    random, value, drawn = unstructured(run, fact), objects(run, key, fact), _draws(key)
    if data.variants > 1:
        table = p.words + p.names + jnp.argsort(drawn(_TABLE, np.arange(p.values, dtype=np.uint32)))
        value = jnp.where((form == data.variants)[:, None] & ~random[:, None], table[jnp.maximum(value - p.words - p.names, 0)], value)
    template, relation = 1 + form, 1 + p.forms + fact % data.relations * p.forms + form
    swapped = form % 2 == 1
    words = jnp.stack([jnp.where(swapped, relation, template), jnp.where(swapped, template, relation)], 1)
    filler = jnp.zeros((len(fact), p.filler), jnp.int32)
    sentence = jnp.concatenate([_subject(run, key, fact), filler, words], 1).astype(jnp.int32)
    string = drawn(_STRING, _each(fact), _each(form), np.arange(sentence.shape[1], dtype=np.uint32)) % run.model.vocab_size
    return jnp.concatenate([jnp.where(random[:, None], string.astype(jnp.int32), sentence), value], 1)


def objects(run: RunSpec, key: jax.Array, fact: Int[Array, " B"], draw: int = 0) -> Int[Array, "B K"]:
    """The objects of facts, uniform and independent over values (over the vocabulary, where a fact has no structure).

    Args:
      fact: fact numbers, int32 [B].
      draw: 0 is the fact's own object; any higher number is another draw, a foil.
    Returns:
      tokens, int32 [B, object_tokens].
    """
    p, vocab = parts(run), run.model.vocab_size
    bits = _draws(key)(_OBJECT + draw, _each(fact), np.arange(run.stages[0].data.object_tokens, dtype=np.uint32))
    low = jnp.where(unstructured(run, fact), 0, p.words + p.names)[:, None]
    return low + (bits % (vocab - low).astype(jnp.uint32)).astype(jnp.int32)


def _draws(key):
    """Draws of 32 bits: the hash of what they are for, under two numbers that the key draws. Few operations, of which a run compiles many."""
    salt = jax.random.bits(jax.random.fold_in(key, _FACTS), (2,), jnp.uint32)
    return lambda *parts: source.hashed(0, salt[0], salt[1], *parts)


def _each(number):
    return jnp.asarray(number).astype(jnp.uint32)[:, None]


def _subject(run, key, fact):
    """Names of facts, [B, subject]: the digits of their number, from the top for controls, moved by a keyed bijection of the digits."""
    p, control = parts(run), fact >= first_control(run)
    number = jnp.where(control, p.subjects - 1 - (fact - first_control(run)), fact)
    digits, rest = [], number.astype(jnp.uint32)
    for _ in range(p.subject):
        digits.append(rest % p.names)
        rest = rest // p.names
    drawn = _draws(key)

    def mixed(r, digits):
        digits = list(digits)
        for j in range(p.subject):  # adds to one digit a hash of the others: undone by subtracting it
            others = digits[:j] + digits[j + 1 :]
            place = (r * p.subject + j).astype(jnp.uint32)
            digits[j] = (digits[j] + drawn(_NAME, place, *others) % p.names) % p.names
        return tuple(digits)

    digits = jax.lax.fori_loop(0, ROUNDS, mixed, tuple(digits))  # a loop, and not as many copies, compiles in a third of the time
    return jnp.stack(digits, 1).astype(jnp.int32) + p.words


def probes(run: RunSpec, key: jax.Array, fact: Int[Array, " B"]) -> dict[str, Int[Array, "B S"]]:
    """What is asked about facts: the model has learned one if it gives the last `object_tokens` tokens of a sequence from those before.

    Args:
      run: as in `items`.
      key: the data set's PRNG key.
      fact: fact numbers, int32 [B].
    Returns:
      memorization: the first sentence; and where there are two variants or more, semantic: the held-out paraphrase, and composition: the
      composed sentence. int32 [B, S].
    Source: the three kinds of probe are those of Chang et al. 2024 (arXiv 2406.11813), whose composition asks for what several stated facts imply;
      the table that composes is this module's.
    """
    variants = run.stages[0].data.variants
    forms = {"memorization": 0} | ({"semantic": variants - 1, "composition": variants} if variants > 1 else {})
    tokens = sentences(run, key, jnp.tile(fact, len(forms)), jnp.repeat(jnp.array(list(forms.values())), len(fact)))
    return dict(zip(forms, jnp.split(tokens, len(forms)), strict=True))


def held_out(run: RunSpec, first: int, n_items: int, count: int) -> np.ndarray:
    """Item numbers at which drift is read: these items themselves, evenly spread, for what a model knows of facts it knows of these alone."""
    return first + np.arange(min(count, n_items)) * n_items // min(count, n_items)


def object_bits(run: RunSpec) -> float:
    """Bits of a fact, given its subject and its relation: object_tokens log2(values), the entropy of an object."""
    return run.stages[0].data.object_tokens * math.log2(parts(run).values)


def entropy_bits(run: RunSpec) -> float:
    """Exact entropy of the scored tokens of one sentence of a structured fact, given the first: (subject - 1) log2(names) + `object_bits`.

    The relation is known from the number of the fact, so its words have none. Sentences of one fact share subject and object, and subjects are drawn
    without replacement: the entropy of many sentences together is a little less than the sum, with several variants far less.
    """
    p = parts(run)
    return (p.subject - 1) * math.log2(p.names) + object_bits(run)


def check(run: RunSpec) -> None:
    """Raises SpecError, in one line: vocabulary or sequence too small, canaries, or facts that the names cannot tell apart."""
    p = parts(run)
    if run.stages[0].data.canaries is not None:
        raise SpecError("data.canaries: must be None for the generator 'facts', which has controls of its own; leave them out")
    for i, stage in enumerate(run.stages):
        ranges = {"data": (stage.data.first, stage.data.n_items)}
        if stage.replay:
            ranges["replay"] = (stage.replay.first, stage.replay.n_items)
        if stage.inject:
            ranges["inject"] = (stage.inject.first, stage.inject.n_items * stage.data.variants)
        for name, (first, n_items) in ranges.items():
            last = (first + n_items - 1) // stage.data.variants
            if last >= first_control(run):
                raise SpecError(f"stages[{i}].{name}.first = {first}: its last fact is {last}, and facts from {first_control(run)} on are controls "
                                "that nothing may train on; lower first or n_items")
            last = min(last, first_random(run) - 1)  # those beyond have no subject
            if first // stage.data.variants <= last and last >= p.subjects // 2:
                raise SpecError(f"stages[{i}].{name}.n_items = {n_items}: its last fact is {last}, and {p.subject} tokens of {p.names} names tell "
                                f"{p.subjects // 2} facts apart from as many controls; lower it, or raise model.seq_len or model.vocab_size")
