"""Tokens a second of greedy generation, 64 after 64, by the reference models b and c: cached, re-running the prefix, and transformers.

    python benchmarks/generation.py [--rounds 5] [--seconds 4] [--models b c] [--json] [--out benchmarks/results/generation.json]

Ours: `scalemem.generate`. Re-running: the same model without a cache, in programs of a scan each, over the prefix rounded up to 16
tokens. transformers: GPT2LMHeadModel.generate of the same shape with its cache. Each is one process with all cores of this machine,
transformers also one process a core; all are started and warmed first, and ours is measured before every other.
"""

# pyright: reportMissingImports=false
# torch and transformers are the extra `bench`, which not every checkout installs.

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peers import SHAPES, Shape, serve, settle
from training import OURS, Contender, alternate, contenders, machine, places

PROMPT, NEW, LENGTH, ROUNDED = 64, 64, 128, 16
OTHERS = {
    "re-running the prefix": ("rerun", "together"),
    "transformers GPT-2, cached": ("transformers", "together"),
    "transformers GPT-2, cached, one process a core": ("transformers", "apart"),
}


def ours(shape: Shape, cached: bool) -> Callable[[], float]:
    """Continues a batch of prompts; gives the tokens generated."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax import lax

    from scalemem import models
    from scalemem.generate import generate
    from scalemem.spec import ModelSpec

    model = ModelSpec(d_model=shape.d, n_layers=shape.layers, n_heads=shape.heads, vocab_size=shape.vocab, seq_len=LENGTH)
    params, apply = models.init(model, jax.random.key(0)), models.apply(model)
    prompts = np.random.default_rng(0).integers(0, shape.vocab, (shape.batch, PROMPT)).astype(np.int32)

    @jax.jit
    def rerun(params, prefix):
        """ROUNDED more tokens, each from the whole sequence with room for all of them."""
        def advance(tokens, position):
            with jax.default_matmul_precision("highest"):
                logits = lax.dynamic_index_in_dim(apply(params, tokens), position - 1, axis=1, keepdims=False)
            return lax.dynamic_update_slice(tokens, logits.argmax(-1).astype(jnp.int32)[:, None], (0, position)), None

        first = prefix.shape[1]
        return lax.scan(advance, jnp.pad(prefix, ((0, 0), (0, ROUNDED))), jnp.arange(first, first + ROUNDED))[0]

    def without_cache():
        tokens = jnp.asarray(prompts)
        while tokens.shape[1] < LENGTH:
            tokens = rerun(params, tokens)
        return np.asarray(tokens[:, PROMPT:])

    def step() -> float:
        if cached:
            generate(model, params, prompts, NEW)
        else:
            without_cache()
        return shape.batch * NEW

    same = (generate(model, params, prompts, NEW) == without_cache()).all(-1).mean()
    if same < 0.9:  # a tie within rounding turns a row now and then
        raise SystemExit(f"cached generation and re-running the prefix agree on {same:.0%} of the rows only")
    return step


def transformers_gpt2(shape: Shape, threads: int) -> Callable[[], float]:
    """The same with GPT2LMHeadModel.generate, greedy; gives the tokens generated."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=shape.vocab, n_positions=LENGTH, n_embd=shape.d, n_layer=shape.layers, n_head=shape.heads,
                        bos_token_id=None, eos_token_id=None)
    model: Any = GPT2LMHeadModel(config).eval()
    prompts = torch.randint(shape.vocab, (shape.batch, PROMPT))
    mask = torch.ones_like(prompts)

    def step() -> float:
        with torch.inference_mode():
            made = model.generate(prompts, attention_mask=mask, max_new_tokens=NEW, do_sample=False, use_cache=True, pad_token_id=0)
        return shape.batch * (made.shape[1] - PROMPT)

    return step


def main() -> None:
    if len(sys.argv) == 4 and sys.argv[1] in ("ours", "rerun", "transformers"):
        kind, name, cores = sys.argv[1:]
        threads = settle(cores)
        serve(transformers_gpt2(SHAPES[name], threads) if kind == "transformers" else ours(SHAPES[name], kind == "ours"))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=["b", "c"])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()

    result: dict[str, Any] = {
        "machine": machine(), "rounds": options.rounds, "seconds": options.seconds, "python": platform.python_version(),
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "torch", "transformers", "numpy")},
        "prompt_tokens": PROMPT, "new_tokens": NEW, "models": {}}
    for name in options.models:
        started = {OURS: Contender("generation.py", "ours", name, places("together"))}
        started |= {label: Contender("generation.py", kind, name, places(how)) for label, (kind, how) in OTHERS.items()}
        with contenders(started) as team:
            rates = alternate(team, options.rounds, options.seconds)
        result["models"][name] = {
            "shape": {**vars(SHAPES[name]), "length": LENGTH}, "tokens_per_s": rates,
            "times_faster": {label: rates[OURS]["median"] / rates[label]["median"] for label in OTHERS}}
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1) if options.json else table(result))


def table(result: dict[str, Any]) -> str:
    lines = [f"{result['machine']}; {result['new_tokens']} tokens after {result['prompt_tokens']}, greedy",
             f"new tokens/s, medians of {result['rounds']} rounds of {result['seconds']:g} s (lowest - highest)", ""]
    for name, model in result["models"].items():
        shape = model["shape"]
        lines.append(f"{name}: L{shape['layers']} d{shape['d']} V{shape['vocab']} T{shape['length']}, {shape['batch']} prompts")
        for label, rate in model["tokens_per_s"].items():
            times = f"{model['times_faster'][label]:6.2f} x" if label in model["times_faster"] else ""
            lines.append(f"  {label:<48}{rate['median']:>10,.0f}  ({rate['low']:,.0f} - {rate['high']:,.0f}) {times}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
