"""An unambiguous probabilistic context-free source: balanced binary trees whose productions, level by level, are all different."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from scalemem.data import source
from scalemem.spec import RunSpec, SpecError

ROUNDS = 6  # of the Feistel network that shuffles pairs of symbols
LARGEST_VOCAB = 1 << 16  # a pair of symbols is looked up as one 32-bit number


class Grammar(NamedTuple):
    """Productions of each level d = 0..L-1, from symbols of depth d to pairs of symbols of depth d + 1; there are V of each depth."""

    left: np.ndarray  # int32 [L, V m]: production a m + j is the j-th likeliest of symbol a
    right: np.ndarray  # int32 [L, V m]
    code: np.ndarray  # uint32 [L, V m]: left V + right, sorted; none occurs twice in a level
    parent: np.ndarray  # int32 [L, V m]: the symbol whose production the code is
    giving: np.ndarray  # int32 [L, 2, V, K]: the productions whose left (0) or right (1) symbol is the one asked for, then V m


def check(run: RunSpec) -> None:
    """Whether there is such a language: V m pairs are needed of the V^2 that there are.

    Raises:
      SpecError: data.rules = m is above the vocabulary V, or V above 65536.

    >>> from scalemem.spec import *
    >>> model, optimizer = ModelSpec(d_model=8, n_layers=1, n_heads=1, vocab_size=3, seq_len=4), OptimizerSpec(peak_lr=0.01)
    >>> stage = Stage(data=DataSpec(n_items=1, rules=4), optimizer=optimizer, exposures=1, batch_size=1)
    >>> check(RunSpec(model=model, stages=(stage,), probes=(Probe("capacity"),)))
    Traceback (most recent call last):
    scalemem.spec.SpecError: data.rules = 4: must be at most model.vocab_size = 3, or two symbols share a production; lower rules
    """
    vocab, rules = run.model.vocab_size, run.stages[0].data.rules
    if vocab > LARGEST_VOCAB:
        raise SpecError(f"model.vocab_size = {vocab}: must be at most {LARGEST_VOCAB} for data.generator = 'pcfg'; lower it")
    if rules > vocab:
        raise SpecError(f"data.rules = {rules}: must be at most model.vocab_size = {vocab}, or two symbols share a production; lower rules")


def grammar(run: RunSpec) -> Grammar:
    """The productions of data.language: m = data.rules of each symbol, no pair of symbols produced twice in a level; raises as `check`."""
    check(run)
    return _grammar(run.model.vocab_size, run.stages[0].data.rules, _depth(run), run.stages[0].data.language)


def _depth(run: RunSpec) -> int:
    return (run.model.seq_len - 1).bit_length()


@functools.lru_cache(maxsize=16)
def _grammar(vocab: int, rules: int, depth: int, language: int) -> Grammar:
    levels = []
    for level in range(depth):
        left, right = _pairs(vocab, vocab * rules, language, level)
        code = left * np.uint32(vocab) + right
        order = np.argsort(code)
        levels.append((left.astype(np.int32), right.astype(np.int32), code[order], (order // rules).astype(np.int32)))
    left, right, code, parent = map(np.stack, zip(*levels, strict=True))
    most = max(int(np.bincount(row).max()) for row in (*left, *right))
    giving = np.stack([[_giving(row, vocab, most) for row in pair] for pair in zip(left, right, strict=True)])
    return Grammar(left, right, code, parent, giving)


def _giving(symbols: np.ndarray, vocab: int, most: int) -> np.ndarray:
    """Where each symbol stands among `symbols`, [V, most], filled up with their number."""
    order = np.argsort(symbols, kind="stable").astype(np.int32)
    count = np.bincount(symbols, minlength=vocab)
    slots = np.full((vocab, most), len(symbols), np.int32)
    slots[np.arange(most) < count[:, None]] = order
    return slots


def _pairs(vocab: int, count: int, language: int, level: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` different pairs of symbols: the first of a permutation of all pairs, a Feistel network walked until it is back in range."""
    mask = (1 << max(1, (vocab - 1).bit_length())) - 1

    def shuffle(left, right):
        for turn in range(ROUNDS):
            left, right = right, left ^ (source.hashed(language, level, turn, right) & mask)
        return left, right

    number = np.arange(count, dtype=np.uint32)
    left, right = shuffle(number % vocab, number // vocab)
    while (out := (left >= vocab) | (right >= vocab)).any():
        left[out], right[out] = shuffle(left[out], right[out])
    return left, right


def _branching(run: RunSpec, depth: int) -> int:
    """Nodes of a depth that branch, the leftmost: all but at the last depth, where the rest are tokens already."""
    return min(1 << depth, run.model.seq_len - (1 << depth))


def items(run: RunSpec, key: jax.Array, index: Int[Array, " B"]) -> Int[Array, "B S"]:
    """Sequences `index` of the data set of `key`: the leaves of a tree whose root is drawn, then a production of every node.

    The tree is the balanced one of S leaves: with L = ceil(log2 S), its first 2 S - 2^L leaves are of depth L, the others of L - 1.
    The root is symbol a with a probability proportional to (a + 1)^-zipf; a node takes its symbol's j-th production, j = 0..m-1,
    with one proportional to (j + 1)^-zipf. As no two productions of a level give the same pair, a sequence has one parse.

    Args:
      run: gives the vocabulary V, the sequence length S, data.rules = m, data.zipf and data.language.
      key: the data set's PRNG key; the language does not depend on it.
      index: item numbers, int32 [B].
    Returns:
      tokens, int32 [B, S]; item i depends on (key, i) alone.
    Raises:
      SpecError: see `check`.

    Source: own; like the random hierarchy model of Cagnetta et al. (from memory, unverified), whose productions are uniform.
    """
    return _items(run, key, index, None)


def tempered(run: RunSpec, key: jax.Array, index: Int[Array, " B"], temperature: Float[Array, " B"]) -> Int[Array, "B S"]:
    """As `items`, item b with a root and productions of p^(1 / temperature[b]), renormalised; at temperature 1 exactly `items`."""
    return _items(run, key, index, temperature)


def _items(run, key, index, temperature):
    language, (rules, zipf) = grammar(run), (run.stages[0].data.rules, run.stages[0].data.zipf)
    draws = source.draws(key, index, run.model.seq_len)
    symbols = source.chosen(run.model.vocab_size, zipf, draws[:, :1], temperature)
    choices = source.chosen(rules, zipf, draws[:, 1:], temperature)
    for depth in range(_depth(run)):
        n = _branching(run, depth)
        first = (1 << depth) - 1
        production = symbols[:, :n] * rules + choices[:, first : first + n]
        pairs = jnp.stack([jnp.asarray(side[depth])[production] for side in (language.left, language.right)], -1)
        symbols = jnp.concatenate([pairs.reshape(len(index), 2 * n), symbols[:, n:]], 1)
    return symbols


def nats(run: RunSpec, tokens: Int[Array, "B S"]) -> Float[Array, "B S-1"]:
    """-log p(x_t | x_<t) in nats for t = 2..S, exact: what follows is marginalised, what precedes is parsed.

    A walk through the tree from left to right keeps, for each node on the path to the next leaf, p(symbol | all leaves before the
    node): of a left child sum_(a, j) p(a) p(j) over the productions that give it, of a right child the same over those whose left
    symbol is that of its finished sibling, which the one parse gives. At a leaf it is p(x_t | x_<t).

    Args:
      run: gives the vocabulary, data.rules, data.zipf and data.language.
      tokens: int32 [B, S].
    Returns:
      float32 [B, S - 1]; infinite from the first token on with which no sequence of the language begins.
    Raises:
      SpecError: see `check`.
    """
    language, (vocab, rules, zipf) = grammar(run), (run.model.vocab_size, run.stages[0].data.rules, run.stages[0].data.zipf)
    left, giving = jnp.asarray(language.left), jnp.asarray(language.giving)
    log_rule = jnp.asarray(np.tile(-source.choice(rules, zipf).nats, vocab), jnp.float32)
    root = jnp.full((_depth(run) + 1, vocab), -jnp.inf).at[0].set(-source.choice(vocab, zipf).nats)
    depth, side, node, leaf = _walk(run.model.seq_len)

    def step(beliefs, move):
        depth, is_right, sibling, token = move
        log_joint = jnp.repeat(beliefs[depth], rules) + log_rule
        log_joint = jnp.where((is_right == 1) & (left[depth] != sibling), -jnp.inf, log_joint)
        log_p = jax.nn.logsumexp(jnp.append(log_joint, -jnp.inf)[giving[depth, is_right]], -1)
        total = jax.nn.logsumexp(log_p)
        log_p -= jnp.where(jnp.isfinite(total), total, 0)
        return beliefs.at[depth + 1].set(log_p), jnp.maximum(-log_p[token], 0)

    def walk(sequence):
        tokens, siblings = sequence
        return lax.scan(step, root, (depth, side, siblings[node], tokens[leaf]))[1][leaf >= 0][1:]

    return lax.map(walk, (tokens, _left_symbols(run, tokens)), batch_size=max(1, source.AT_ONCE // language.giving[0, 0].size))


@functools.lru_cache(maxsize=16)
def _walk(seq_len: int) -> np.ndarray:
    """Moves to a child, from left to right: [depth, 1 if it is the right one, node, leaf] x [2 (S - 1)]; nodes from 0, leaf -1 where it branches."""
    deepest, moves = 1 << (seq_len - 1).bit_length(), []

    def visit(node, depth):  # the children of node i are 2 i and 2 i + 1; 1..S-1 branch, S..2S-1 are leaves
        for side in (0, 1):
            child = 2 * node + side
            leaf = -1 if child < seq_len else child - deepest + (seq_len if child < deepest else 0)
            moves.append((depth, side, node - 1, leaf))
            if leaf < 0:
                visit(child, depth + 1)

    visit(1, 0)
    return np.array(moves, np.int32).T


def _left_symbols(run: RunSpec, tokens: Int[Array, "B S"]) -> Int[Array, "B S-1"]:
    """The symbol of each branching node's left child, by the one parse, from the tokens up; V where there is no parse."""
    language, vocab = grammar(run), run.model.vocab_size
    found, symbols = [], tokens
    for depth in reversed(range(_depth(run))):
        n = _branching(run, depth)
        left, right = symbols[:, 0 : 2 * n : 2], symbols[:, 1 : 2 * n : 2]
        code = left.astype(jnp.uint32) * np.uint32(vocab) + right.astype(jnp.uint32)
        known = jnp.asarray(language.code[depth])
        place = jnp.minimum(jnp.searchsorted(known, code), len(known) - 1)
        parsed = (known[place] == code) & (left < vocab) & (right < vocab)
        symbols = jnp.concatenate([jnp.where(parsed, jnp.asarray(language.parent[depth])[place], vocab), symbols[:, 2 * n :]], 1)
        found.append(left)
    return jnp.concatenate(found[::-1], 1)


def entropy_bits(run: RunSpec) -> float:
    """Exact entropy of one item's scored tokens given the first: H(root) + (S - 1) H(production) - H(first token) bits.

    A sequence has one parse, so its entropy is that of its S choices: the root, and a production of each of the S - 1 nodes.

    Raises:
      SpecError: see `check`.
    """
    language, zipf = grammar(run), run.stages[0].data.zipf
    root, rule = source.choice(run.model.vocab_size, zipf), source.choice(run.stages[0].data.rules, zipf)
    first = root.probability
    for left in language.left:
        first = np.bincount(left, (first[:, None] * rule.probability).ravel(), run.model.vocab_size)
    seen = first[first > 0]
    return root.entropy_bits + (run.model.seq_len - 1) * rule.entropy_bits + math.fsum(seen * np.log2(seen))
