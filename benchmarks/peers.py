"""The peers of `benchmarks/training.py`, each a process that trains when it is told to, and of `packs.py`: PyTorch's and transformers' GPT-2.

    python benchmarks/peers.py torch|transformers|torch_peak MODEL CORES     (started by training.py)
"""

# pyright: reportMissingImports=false
# torch and transformers are the extra `bench`, which not every checkout installs.

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A reference model of performance.md; T tokens are scored."""

    layers: int
    d: int
    vocab: int
    length: int
    batch: int

    @property
    def heads(self) -> int:
        return self.d // 32

    @property
    def flops_per_token(self) -> float:
        d, n = self.d, self.layers
        return 6 * (12 * n * d * d + self.vocab * d) + 12 * n * self.length * d


SHAPES = {"a": Shape(1, 32, 128, 32, 64), "b": Shape(2, 64, 512, 64, 64), "c": Shape(4, 128, 2048, 64, 32)}
PEAK_SIDE = 512


def settle(cores: str) -> int:
    """Pins this process to cores "0" or "0,1"; gives their number."""
    chosen = {int(core) for core in cores.split(",")}
    os.sched_setaffinity(0, chosen)
    os.environ["OMP_NUM_THREADS"] = str(len(chosen))
    return len(chosen)


def serve(step: Callable[[], float]) -> None:
    """For each line with a number of seconds: `step`s for that long, then a line with the work done and the time it took."""
    step()
    step()
    print("ready", flush=True)
    for line in iter(sys.stdin.readline, ""):
        until, done, began = float(line), 0.0, time.perf_counter()
        while time.perf_counter() - began < until:
            done += step()
        print(json.dumps({"done": done, "seconds": time.perf_counter() - began}), flush=True)


def gpt(shape: Shape):
    """A GPT in the style of nanoGPT: fused qkv, scaled_dot_product_attention, tied head."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            d = shape.d
            self.norm_1, self.norm_2 = nn.LayerNorm(d), nn.LayerNorm(d)
            self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
            self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

        def forward(self, x):
            b, t, d = x.shape
            q, k, v = (a.view(b, t, shape.heads, -1).transpose(1, 2) for a in self.qkv(self.norm_1(x)).split(d, 2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
            return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(shape.vocab, shape.d), nn.Embedding(shape.length, shape.d)
            self.blocks, self.norm = nn.ModuleList(Block() for _ in range(shape.layers)), nn.LayerNorm(shape.d)
            self.head = nn.Linear(shape.d, shape.vocab, bias=False)
            self.head.weight = self.tokens.weight
            self.apply(self.start)

        @staticmethod
        def start(module):
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

        def forward(self, x):
            h = self.tokens(x) + self.positions(torch.arange(x.shape[1], device=x.device))
            for block in self.blocks:
                h = block(h)
            return self.head(self.norm(h))

    return GPT()


def hf_gpt2(shape: Shape):
    """transformers' GPT2LMHeadModel of the same shape, without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=shape.vocab, n_positions=shape.length, n_embd=shape.d, n_layer=shape.layers, n_head=shape.heads,
                        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    model.train()
    return lambda x: model(x).logits, model.parameters()


def on_device(shape: Shape, mode: str) -> tuple[Callable[[], float], Callable[[], None]]:
    """A step on a GPU, if there is one, "eager", "compiled" or under bfloat16 "autocast"; and a function that waits for the last one's end."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return training("torch", shape, device, mode), torch.cuda.synchronize if device == "cuda" else lambda: None


def training(kind: str, shape: Shape, device: str = "cpu", mode: str = "eager") -> Callable[[], float]:
    """A step of training with AdamW on 8 batches that are there already; gives the tokens scored."""
    import torch
    from torch.nn import functional as F

    torch.manual_seed(0)
    torch.set_default_device(device)
    if kind == "transformers":
        forward, parameters = hf_gpt2(shape)
    else:
        model = gpt(shape)
        forward, parameters = torch.compile(model) if mode == "compiled" else model, model.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    data = torch.randint(shape.vocab, (8, shape.batch, shape.length + 1))
    turn = 0

    def step() -> float:
        nonlocal turn
        batch, turn = data[turn % 8], turn + 1
        with torch.autocast(device, torch.bfloat16, enabled=mode == "autocast"):
            loss = F.cross_entropy(forward(batch[:, :-1]).view(-1, shape.vocab), batch[:, 1:].reshape(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return shape.batch * shape.length

    return step


def peak() -> Callable[[], float]:
    """Products of square float32 matrices; gives the FLOPs."""
    import torch

    a, b = torch.randn(PEAK_SIDE, PEAK_SIDE), torch.randn(PEAK_SIDE, PEAK_SIDE)
    out = torch.empty_like(a)

    def step() -> float:
        for _ in range(20):
            torch.mm(a, b, out=out)
        return 20 * 2 * PEAK_SIDE**3

    return step


def main() -> None:
    kind, name, cores = sys.argv[1:]
    threads = settle(cores)
    import torch

    torch.set_num_threads(threads)
    serve(peak() if kind == "torch_peak" else training(kind, SHAPES[name]))


if __name__ == "__main__":
    main()
