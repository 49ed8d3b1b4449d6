"""What a run is: frozen dataclasses, validation with one clear line, canonical JSON and `run_id`.

A run's identity is its content. `run_id` hashes the canonical JSON, in which a field that equals its default is left
out: so a field added later (with a default that means "as before") leaves the identity of every earlier run alone.
A default never changes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import types
import typing
from dataclasses import MISSING, dataclass, fields
from typing import Any

from scalemem.checked import Checked, SpecError, error, field, hints_of, name_of, shown


@dataclass(frozen=True)
class ModelSpec(Checked):
    """Shape of a decoder-only transformer; by default GPT-2's: pre-LN, biases, learned positions, tied head."""

    d_model: int = field(low=1, high=1 << 16, doc="width of the residual stream")
    n_layers: int = field(low=0, high=96, doc="blocks; 0 is embeddings, final norm and head")
    n_heads: int = field(low=1, doc="attention heads; must divide d_model")
    vocab_size: int = field(low=2, high=1 << 24, doc="tokens in the vocabulary")
    seq_len: int = field(low=2, high=1 << 20, doc="tokens in a sequence; the first is given, the others are scored")
    arch: str = field("gpt", name=True, doc="a name in scalemem.models")
    norm: str = field("layernorm", choices=("layernorm", "rmsnorm"))
    position: str = field("learned", choices=("learned", "rotary"))
    mlp: str = field("gelu", choices=("gelu", "swiglu"), doc="swiglu: gated, 8/3 d_model wide, rounded up to 4k")
    tied: bool = field(True, doc="the head is the transposed token embedding")
    init_std: float = field(0.02, above=0, high=10, doc="std of initial weights; residual projections: / sqrt(2 L)")
    param_dtype: str = field("float32", choices=("float32", "bfloat16"), doc="of a stored weight, also between steps")
    compute_dtype: str = field("float32", choices=("float32", "bfloat16"), doc="of matrix products in training")

    def _check_together(self) -> None:
        if self.d_model % self.n_heads:
            raise error("model.n_heads", self.n_heads, f"a divisor of model.d_model = {self.d_model}",
                        f"try {_divisor_near(self.d_model, self.n_heads)}")
        if self.position == "rotary" and (self.d_model // self.n_heads) % 2:
            raise error("model.position", self.position, "learned where the head size is odd",
                        f"use fewer heads or an even head size (now {self.d_model // self.n_heads})")


def _divisor_near(n: int, k: int) -> int:
    return min((d for d in range(1, n + 1) if n % d == 0), key=lambda d: abs(d - k))


CANARY_KINDS = ("random", "structured", "passphrase", "trap", "natural", "template")
PLACEMENTS = ("anywhere", "early", "late", "massed", "spaced")


@dataclass(frozen=True)
class CanarySpec(Checked):
    """Sequences planted in a data set: `groups` groups of `per_group`, group g with round(copies ratio^g) copies of each."""

    per_group: int = field(low=1, high=1 << 20, doc="canaries of each number of copies")
    groups: int = field(1, low=1, high=64, doc="numbers of copies")
    copies: int = field(1, low=1, high=1 << 20, doc="copies of a canary of the first group")
    ratio: float = field(2.0, low=1, high=1000, doc="copies of a group over those of the group before")
    controls: int = field(0, low=0, high=1 << 20, doc="canaries of the same kind that are never planted")
    kind: str = field("random", choices=CANARY_KINDS, doc="see scalemem.data.canaries")
    length: int = field(0, low=0, high=1 << 20, doc="tokens; 0 is a whole sequence")
    offset: int = field(0, low=-1, high=1 << 20, doc="first token's place in its sequence; -1 is drawn for each copy")
    coldest: float = field(1.0, above=0, high=1e3, doc="trap: temperatures of the source, even in log from coldest")
    hottest: float = field(1.0, above=0, high=1e3, doc="trap: to hottest, over the canaries of a group")
    words: int = field(64, low=2, high=1 << 20, doc="passphrase: words in the list; structured: values of a filling's token")
    word_length: int = field(2, low=1, high=64, doc="tokens in: passphrase, a word; structured, the filling; template, the motif")
    include: float = field(1.0, above=0, high=1, doc="probability that a run plants a canary; the others are its controls")
    shared: bool = field(False, doc="runs of all seeds have the same canaries (and differ in which they include)")
    placement: str = field("anywhere", choices=PLACEMENTS, doc="where in an epoch the copies stand")
    without: str = field("", doc="numbers of canaries that no run plants, as '2,5-7'; `include` draws among the others")

    def _check_together(self) -> None:
        if self.hottest < self.coldest:
            raise error("canaries.hottest", self.hottest, f"at least canaries.coldest = {self.coldest}", "raise it")
        try:
            legal = max(self.left_out, default=0) < self.per_group * self.groups and as_ranges(self.left_out) == self.without
        except ValueError:
            legal = False
        if not legal:
            raise error("canaries.without", self.without, f"numbers of canaries below {self.per_group * self.groups}, ascending, neighbours as "
                        "a range, such as '2,5-7'", "write it with scalemem.spec.as_ranges")

    @functools.cached_property
    def left_out(self) -> tuple[int, ...]:
        """The numbers of `without`.

        >>> CanarySpec(per_group=8, without="2,5-7").left_out
        (2, 5, 6, 7)
        """
        ends = [part.split("-") for part in self.without.split(",")] if self.without else []
        most = self.per_group * self.groups  # a range beyond it is refused before it is listed
        return tuple(i for low, *high in ends for i in range(int(low), min(int(*high[:1] or [low]), most) + 1))

    @property
    def copies_by_group(self) -> tuple[int, ...]:
        """Copies of a canary of each group.

        >>> CanarySpec(per_group=8, groups=4).copies_by_group
        (1, 2, 4, 8)
        """
        return tuple(round(self.copies * self.ratio**g) for g in range(self.groups))

    @property
    def planted_items(self) -> int:
        """Items that the copies of all canaries take."""
        return self.per_group * sum(self.copies_by_group)


def as_ranges(numbers: typing.Iterable[int]) -> str:
    """Whole numbers as the text that `CanarySpec.without` takes.

    >>> as_ranges([7, 2, 5, 6])
    '2,5-7'
    """
    ends: list[list[int]] = []
    for number in sorted(set(numbers)):
        if ends and number == ends[-1][1] + 1:
            ends[-1][1] = number
        else:
            ends.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ends)


@dataclass(frozen=True)
class DataSpec(Checked):
    """A data set: `n_items` items of a generator; item i is a pure function of (key, i). Planted canaries are its first items."""

    n_items: int = field(low=1, high=(1 << 30) - 1, doc="sequences in the training set, planted ones with them")
    generator: str = field("uniform", name=True, doc="a name in scalemem.data")
    language: int = field(0, low=0, high=(1 << 31) - 1, doc="which language of a synthetic source; text: which shuffling")
    zipf: float = field(1.0, low=0, high=10, doc="zipf, markov, pcfg: the r-th choice has a probability of r^-zipf")
    context: int = field(1, low=1, high=8, doc="markov: tokens of context")
    rules: int = field(4, low=1, high=1 << 12, doc="pcfg: productions of a symbol")
    corpus: str = field("", doc="text: file, folder or JSONL; empty is the Python standard library's source")
    digest: str = field("", doc="text: what scalemem.data.text.digest says of the corpus")
    tokenizer: str = field("bytes", choices=("bytes", "bpe"), doc="text: bytes, or a BPE trained to the model's vocabulary")
    canaries: CanarySpec | None = field(None, doc="what is planted")  # noqa: RUF009
    first: int = field(0, low=0, high=(1 << 30) - 1, doc="number of the first item: the set is items first .. first + n_items - 1")
    variants: int = field(1, low=1, high=1 << 10, doc="facts: sentences of a fact, the last held out; item i is sentence i mod variants")
    relations: int = field(4, low=1, high=1 << 10, doc="facts: relations, each with its own words")
    object_tokens: int = field(2, low=1, high=64, doc="facts: tokens of an object")
    domains: int = field(2, low=2, high=1 << 10, doc="domains: how many, from one language to another in equal steps; linear_tasks: tasks")
    classes: int = field(10, low=2, high=1 << 12, doc="prototypes: classes of sequences; digits have 10")
    task_classes: int = field(2, low=1, high=1 << 12, doc="digits, prototypes: classes of a task of a split stream")
    per_class: int = field(140, low=1, high=1 << 16, doc="digits, prototypes: training items of a class; digits have at most 140")
    noise: float = field(0.2, low=0, high=1, doc="prototypes: probability that a token of a sequence is drawn anew; linear_tasks: its sd")
    similarity: float = field(0.0, low=0, high=1, doc="linear_tasks: inner product of the true unit weights of any two tasks")
    scenario: str = field("class", choices=("task", "domain", "class"), doc="digits, prototypes: what is asked, see scalemem.data.labels")


@dataclass(frozen=True)
class OptimizerSpec(Checked):
    """An Optax optimizer and its schedule: rate(step) = peak_lr * schedule(step)."""

    peak_lr: float = field(above=0, high=1e9, doc="peak learning rate")
    name: str = field("adam", name=True, doc="a name in scalemem.optimizers")
    b1: float = field(0.9, low=0, high=0.999999)
    b2: float = field(0.999, low=0, high=0.9999999)
    eps: float = field(1e-8, above=0, high=1)
    weight_decay: float = field(0.0, low=0, high=1e3, doc="decoupled: added to the update, then times the rate")
    schedule: str = field("trapezoid", choices=("constant", "trapezoid", "cosine"))
    warmup_steps: int = field(0, low=0, high=(1 << 31) - 1, doc="linear from 0; at most a tenth of the steps is used")
    decay_fraction: float = field(0.7, low=0, high=1, doc="trapezoid: last part of the steps, with a falling rate")
    final_fraction: float = field(0.0, low=0, high=1, doc="rate at the end, as a fraction of the peak")


REPLAY_LAWS = ("uniform", "power", "exponential", "recent")
TRAINED = ("all", "lora", "half", "head", "attention", "mlp", "prompts")


@dataclass(frozen=True)
class ReplaySpec(Checked):
    """Old items among the new: each row of a batch is, with probability `fraction`, an item of first .. first + n_items - 1 instead."""

    fraction: float = field(low=0, high=1, doc="probability that a row of a batch is an old item")
    n_items: int = field(low=1, high=(1 << 30) - 1, doc="the pool; one far larger than what is drawn is fresh data")
    first: int = field(0, low=0, high=(1 << 30) - 1, doc="number of the pool's first item")
    every: int = field(1, low=1, high=1 << 20, doc="items of the pool are so many numbers apart: 1, neighbours")
    law: str = field("uniform", choices=REPLAY_LAWS, doc="which of the blocks of the pool an item is of, from the last block back")
    blocks: int = field(1, low=1, high=1 << 12, doc="equal parts of the pool, in the order in which they were learned")
    exponent: float = field(1.0, low=0, high=100, doc="power: P(block a ago) ~ a^-exponent; exponential: ~ exp(-a / exponent)")


@dataclass(frozen=True)
class InjectSpec(Checked):
    """Items put into the stream at chosen steps, in the place of the first rows of the batch."""

    n_items: int = field(low=1, high=1 << 20, doc="how many items, or facts where `variants` counts their sentences")
    first: int = field(0, low=0, high=(1 << 30) - 1, doc="number of the first of them")
    times: int = field(1, low=1, high=1 << 12, doc="encounters of each")
    start: int = field(0, low=0, high=(1 << 30) - 1, doc="step of the first encounter")
    interval: float = field(1.0, above=0, high=1e9, doc="steps from the first encounter to the second; below 1: several in one batch")
    growth: float = field(1.0, above=0, high=100, doc="encounter m is interval m^growth steps after the first: 1 even, above 1 ever rarer")
    stagger: float = field(0.0, low=0, high=1e6, doc="steps by which the schedule of each item is later than that of the one before")
    views: int = field(1, low=1, high=1 << 12, doc="encounters at once, in one batch, and so many times rarer: a view batch")
    paraphrase: bool = field(False, doc="encounter m is sentence m of the fact (but the held-out one), and not always the first")


@dataclass(frozen=True)
class StrategySpec(Checked):
    """What is done against forgetting in a stage: a name in scalemem.strategies, and its numbers."""

    name: str = field(name=True, doc="a name in scalemem.strategies")
    strength: float = field(1.0, low=0, high=1e12, doc="weight of a penalty, margin of a projection: each says which")
    items: int = field(64, low=1, high=1 << 20, doc="old items that it reads: of a Fisher, a memory, a teacher's set")
    first: int = field(0, low=0, high=(1 << 30) - 1, doc="number of the first old item")
    tasks: int = field(1, low=1, high=1 << 10, doc="equal parts of those old items, one a task before")
    every: int = field(1, low=1, high=1 << 20, doc="old items of a task are so many numbers apart: 1, neighbours")
    stride: int = field(0, low=0, high=(1 << 30) - 1, doc="from the first old item of a task to that of the next; 0: items / tasks * every")
    seen: int = field(0, low=0, high=1 << 10, doc="tasks that have been learned, if not all: stages of one room share a program")
    decay: float = field(1.0, low=0, high=1, doc="online EWC: what is kept of earlier importance; averages: of the average a step")
    kind: str = field("", doc="a variant, such as which Fisher; each says what is legal")
    pool: int = field(8, low=1, high=1 << 12, doc="l2p, dualprompt, coda_prompt: prompts, experts or components")
    chosen: int = field(2, low=1, high=1 << 12, doc="l2p: prompts of the pool that a position reads")
    length: int = field(2, low=1, high=1 << 10, doc="of a prompt, in tokens")
    codebooks: int = field(4, low=1, high=1 << 10, doc="remind: parts of a feature, each with a codebook of its own")
    entries: int = field(16, low=2, high=256, doc="remind: of a codebook")


@dataclass(frozen=True)
class Stage(Checked):
    """One stage of training: its data, how often each item is seen, in what order, and how."""

    data: DataSpec
    optimizer: OptimizerSpec
    exposures: int = field(low=0, high=1 << 40, doc="times that each item is seen (epochs)")
    batch_size: int = field(low=1, doc="items an optimizer step; the last step of an epoch takes what is left")
    objective: str = field("next_token", name=True, doc="a name in scalemem.objectives")
    order: str = field("permuted", choices=("permuted", "sequential"), doc="a fresh permutation an epoch, or 0..n-1")
    segments: int = field(1, low=1, high=1 << 12, doc="equal parts of an epoch, between which a run can be probed")
    replay: ReplaySpec | None = field(None, doc="old items among the new")  # noqa: RUF009
    inject: InjectSpec | None = field(None, doc="items at chosen steps")  # noqa: RUF009
    strategy: StrategySpec | None = field(None, doc="what is done against forgetting")  # noqa: RUF009
    trains: str = field("all", choices=TRAINED, doc="what is trained, see scalemem.trainable")
    rank: int = field(8, low=1, high=1 << 12, doc="lora: rank of the adapters")
    continued: bool = field(False, doc="go on with the moments of the stage before; or start the optimizer afresh")

    def _check_together(self) -> None:
        if self.batch_size > self.data.n_items:
            raise error("stage.batch_size", self.batch_size, f"at most data.n_items = {self.data.n_items}",
                        "lower the batch or add items")
        steps = -(-self.data.n_items // self.batch_size)
        if self.segments > steps:
            raise error("stage.segments", self.segments, f"at most the {steps} steps of an epoch", "lower the segments or the batch")


@dataclass(frozen=True)
class Probe(Checked):
    """A measure and when it is taken.

    end: of the run. powers_of_two: also after 1, 2, 4, 8, ... segments. segments: also before the first and after each. stages: before and
    after every stage. log: before every stage and after 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 16, ... segments of it, four an octave, and its end.
    """

    measure: str = field(name=True, doc="a name in scalemem.measure")
    at: str = field("end", choices=("end", "powers_of_two", "segments", "stages", "log"))
    most: int = field(128, low=1, high=1 << 20, doc="facts, domains, tasks, drift: items of each source that are read")


@dataclass(frozen=True)
class RunSpec(Checked):
    """One training run: model, stages in order, probes, seed. Its canonical JSON is its identity."""

    model: ModelSpec
    stages: tuple[Stage, ...]
    probes: tuple[Probe, ...]
    seed: int = field(0, low=0, high=(1 << 31) - 1)

    def _check_together(self) -> None:
        if not self.stages:
            raise error("run.stages", [], "a list of at least one stage", "add a Stage")
        for i, stage in enumerate(self.stages):
            self._check_canaries(f"stages[{i}].data", stage.data)
            self._check_stage(i, stage)
        if not self.probes:
            raise error("run.probes", [], "at least one probe", "add Probe('capacity'), or nothing is measured")

    def _check_stage(self, i: int, stage: Stage) -> None:
        """What a stage of several must share with the first, and what it may not have."""
        same = dataclasses.replace(stage.data, n_items=self.stages[0].data.n_items, first=self.stages[0].data.first)
        if same != self.stages[0].data:
            raise error(f"stages[{i}].data", stage.data, "that of the first stage but for first and n_items",
                        "stages of a run read one source; choose their items by number")
        if len(self.stages) > 1 and stage.data.canaries:
            raise error(f"stages[{i}].data.canaries", stage.data.canaries, "None in a run of several stages", "use inject")
        if stage.replay and stage.replay.n_items < stage.replay.blocks:
            raise error(f"stages[{i}].replay.blocks", stage.replay.blocks, f"at most replay.n_items = {stage.replay.n_items}", "lower the blocks")
        if stage.inject and stage.inject.n_items * stage.inject.times > 1 << 22:
            raise error(f"stages[{i}].inject.times", stage.inject.times, "at most 2^22 encounters in all", "inject fewer items, or less often")
        if stage.inject and stage.inject.paraphrase and stage.data.variants < 3:
            raise error(f"stages[{i}].inject.paraphrase", True, "false where data.variants is below 3", "raise data.variants: the last is held out")
        if stage.continued and (i == 0 or {"lora", "prompts"} & {stage.trains, self.stages[i - 1].trains}
                                or stage.optimizer.name != self.stages[i - 1].optimizer.name):
            raise error(f"stages[{i}].continued", True, "false for the first stage, adapters, prompts, or another optimizer than before",
                        "start the optimizer afresh")

    def _check_canaries(self, path: str, data: DataSpec) -> None:
        canaries = data.canaries
        if canaries is None:
            return
        if canaries.planted_items > data.n_items:
            raise error(f"{path}.n_items", data.n_items, f"at least the {canaries.planted_items} planted items",
                        "add items or plant fewer copies")
        length = canaries.length or self.model.seq_len
        if length > self.model.seq_len - max(canaries.offset, 0):
            raise error(f"{path}.canaries.length", canaries.length, f"at most {self.model.seq_len - max(canaries.offset, 0)}, what a sequence "
                        "has room for after the offset", "shorten the canary or lower the offset")


@functools.lru_cache(maxsize=4096)
def at_stage(run: RunSpec, i: int) -> RunSpec:
    """A run as one of its stages sees it: with that stage as its only one, and all else the same.

    >>> m = ModelSpec(d_model=4, n_layers=0, n_heads=1, vocab_size=4, seq_len=4)
    >>> s = Stage(data=DataSpec(n_items=8), optimizer=OptimizerSpec(peak_lr=0.02), exposures=1, batch_size=4)
    >>> both = RunSpec(model=m, stages=(s, dataclasses.replace(s, exposures=2)), probes=(Probe("capacity"),))
    >>> at_stage(both, 1).stages[0].exposures
    2
    """
    return run if len(run.stages) == 1 else dataclasses.replace(run, stages=(dataclasses.replace(run.stages[i], continued=False),))


def to_dict(spec: Any, *, defaults: bool = True) -> Any:
    """A spec as plain dicts, lists, numbers, strings and booleans.

    Args:
      spec: a ModelSpec, DataSpec, OptimizerSpec, Stage, Probe or RunSpec, or a value of one of their fields.
      defaults: False leaves out the fields that equal their default.

    Returns:
      What `from_dict` turns back into an equal spec, with or without the defaults.

    >>> to_dict(Probe("capacity")), to_dict(Probe("capacity"), defaults=False)
    ({'measure': 'capacity', 'at': 'end', 'most': 128}, {'measure': 'capacity'})
    """
    if dataclasses.is_dataclass(spec):
        pairs = ((f, getattr(spec, f.name)) for f in fields(spec))
        kept = ((f, v) for f, v in pairs if defaults or f.default is MISSING or v != f.default)
        return {f.name: to_dict(v, defaults=defaults) for f, v in kept}
    if isinstance(spec, tuple):
        return [to_dict(v, defaults=defaults) for v in spec]
    return spec


def from_dict(cls: Any, value: Any, path: str = "") -> Any:
    """The inverse of `to_dict`.

    Args:
      cls: ModelSpec, DataSpec, OptimizerSpec, Stage, Probe or RunSpec.
      value: a dict of its fields; fields that have a default may be left out.
      path: what messages call this value; the name of the class in lower case if empty.

    Returns:
      A validated `cls`.

    Raises:
      SpecError: a field is unknown, missing, of the wrong type or out of range; one line that names it.

    >>> from_dict(Probe, {"measure": "capacity"})
    Probe(measure='capacity', at='end', most=128)
    >>> from_dict(Probe, {"measures": "capacity"})
    Traceback (most recent call last):
    scalemem.spec.SpecError: probe.measures: unknown field; legal: measure, at, most; remove or rename it
    """
    path = path or name_of(cls)
    if not isinstance(value, dict):
        raise error(path, value, "a table of fields", f"write {path} as an object")
    known = {f.name: f for f in fields(cls)}
    hints = hints_of(cls)
    for key in value:
        if key not in known:
            text = key if isinstance(key, str) and key.isidentifier() and len(key) < 40 else shown(key)
            raise SpecError(f"{path}.{text}: unknown field; legal: {', '.join(known)}; remove or rename it")
    for name, f in known.items():
        if name not in value and f.default is MISSING:
            raise SpecError(f"{path}.{name}: missing; legal: {f.metadata.get('doc') or hints[name]}; add the field")
    return cls(**{k: _build(hints[k], v, f"{path}.{k}") for k, v in value.items()})


def _build(hint: Any, value: Any, path: str) -> Any:
    spec, several, absent = _spec_of(hint)
    if spec is None or (absent and value is None):
        return value
    if not several:
        return from_dict(spec, value, path)
    if not isinstance(value, (list, tuple)):
        raise error(path, value, "a list", f"write {path} as a list")
    return tuple(from_dict(spec, v, f"{path}[{i}]") for i, v in enumerate(value))


@functools.cache
def _spec_of(hint: Any) -> tuple[Any, bool, bool]:
    """Of the type of a field: the spec that it is or has, whether it has several, and whether it may be None."""
    absent = typing.get_origin(hint) is types.UnionType
    inner = typing.get_args(hint)[0] if absent else hint
    several = typing.get_origin(inner) is tuple
    inner = typing.get_args(inner)[0] if several else inner
    return inner if dataclasses.is_dataclass(inner) else None, several, absent


def canonical_json(spec: RunSpec) -> str:
    """Canonical JSON of a run: sorted keys, no spaces, shortest floats, fields at their default left out.

    Two specs that mean the same run have the same text, and `from_json` gives the spec back.
    """
    return json.dumps(to_dict(spec, defaults=False), sort_keys=True, separators=(",", ":"), allow_nan=False)


def from_json(text: str) -> RunSpec:
    """The run of `canonical_json`, which a store's rows have in the column `spec`."""
    return from_dict(RunSpec, json.loads(text))


@functools.lru_cache(maxsize=1 << 14)
def run_id(spec: RunSpec) -> str:
    """Identity of a run: the first 16 hexadecimal digits of SHA-256 of its canonical JSON.

    >>> from scalemem.spec import *
    >>> m = ModelSpec(d_model=16, n_layers=1, n_heads=4, vocab_size=128, seq_len=32)
    >>> s = Stage(data=DataSpec(n_items=128), optimizer=OptimizerSpec(peak_lr=0.02), exposures=125, batch_size=16)
    >>> len(run_id(RunSpec(model=m, stages=(s,), probes=(Probe("capacity"),))))
    16
    """
    return hashlib.sha256(canonical_json(spec).encode()).hexdigest()[:16]
