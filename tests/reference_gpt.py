"""The GPT once more, in float64 NumPy with a backward pass by hand: shares no line with scalemem.models, layers or optimizers.

Every layer is a function that returns its value and a function from the value's gradient to those of its inputs and parameters.
"""

import math
from typing import Any

import numpy as np


def float64(params) -> Any:
    """A nested dict of arrays as float64."""
    if isinstance(params, dict):
        return {key: float64(value) for key, value in params.items()}
    return np.asarray(params, np.float64)


def leaves(tree, path=""):
    """{path: array} of a nested dict."""
    if not isinstance(tree, dict):
        return {path: np.asarray(tree)}
    return {k: v for key, value in tree.items() for k, v in leaves(value, f"{path}/{key}").items()}


def tree_map(f, *trees) -> Any:
    if isinstance(trees[0], dict):
        return {key: tree_map(f, *(t[key] for t in trees)) for key in trees[0]}
    return f(*trees)


def linear(p, x):
    def back(dy):
        return dy @ p["w"].T, {"w": np.einsum("bti,bto->io", x, dy), "b": dy.sum((0, 1))}

    return x @ p["w"] + p["b"], back


def norm(kind, p, x):
    centred = x - x.mean(-1, keepdims=True) if kind == "layernorm" else x
    inverse = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    unit = centred * inverse

    def back(dy):
        grads = {"scale": (dy * unit).sum((0, 1))}
        if kind == "layernorm":
            grads["bias"] = dy.sum((0, 1))
        du = dy * p["scale"]
        dx = inverse * (du - unit * (du * unit).mean(-1, keepdims=True))
        return (dx - dx.mean(-1, keepdims=True) if kind == "layernorm" else dx), grads

    return unit * p["scale"] + (p["bias"] if kind == "layernorm" else 0), back


def turn(x, sign):
    """Rotary positions, pair by pair; sign -1 is the inverse, which is the gradient."""
    half, y = x.shape[-1] // 2, x.copy()
    for t in range(x.shape[1]):
        for i in range(half):
            angle = sign * t * 10000.0 ** (-i / half)
            a, b = x[:, t, :, i], x[:, t, :, i + half]
            y[:, t, :, i] = a * math.cos(angle) - b * math.sin(angle)
            y[:, t, :, i + half] = b * math.cos(angle) + a * math.sin(angle)
    return y


def attention(spec, p, x):
    b, t, d = x.shape
    heads, size, rotary = spec.n_heads, d // spec.n_heads, spec.position == "rotary"
    qkv, qkv_back = linear(p["qkv"], x)
    q, k, v = (part.reshape(b, t, heads, size) for part in np.split(qkv, 3, -1))
    if rotary:
        q, k = turn(q, 1), turn(k, 1)
    scores = np.einsum("bthk,bshk->bhts", q, k) / math.sqrt(size)
    scores = np.where(np.arange(t)[:, None] >= np.arange(t), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    y, out_back = linear(p["out"], np.einsum("bhts,bshk->bthk", weights, v).reshape(b, t, d))

    def back(dy):
        dmix, out = out_back(dy)
        dmix = dmix.reshape(b, t, heads, size)
        dv, dw = np.einsum("bhts,bthk->bshk", weights, dmix), np.einsum("bthk,bshk->bhts", dmix, v)
        ds = weights * (dw - (dw * weights).sum(-1, keepdims=True)) / math.sqrt(size)
        dq, dk = np.einsum("bhts,bshk->bthk", ds, k), np.einsum("bhts,bthk->bshk", ds, q)
        if rotary:
            dq, dk = turn(dq, -1), turn(dk, -1)
        dx, grads = qkv_back(np.concatenate([part.reshape(b, t, d) for part in (dq, dk, dv)], -1))
        return dx, {"qkv": grads, "out": out}

    return y, back


def gelu_mlp(p, x):
    h, up_back = linear(p["up"], x)
    inner = math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)
    th = np.tanh(inner)
    y, down_back = linear(p["down"], h * (1 + th) / 2)

    def back(dy):
        da, down = down_back(dy)
        slope = (1 + th) / 2 + h / 2 * (1 - th**2) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * h**2)
        dx, up = up_back(da * slope)
        return dx, {"up": up, "down": down}

    return y, back


def swiglu_mlp(p, x):
    gate, gate_back = linear(p["gate"], x)
    up, up_back = linear(p["up"], x)
    sigmoid = 1 / (1 + np.exp(-gate))
    y, down_back = linear(p["down"], gate * sigmoid * up)

    def back(dy):
        dh, down = down_back(dy)
        dx_up, d_up = up_back(dh * gate * sigmoid)
        dx_gate, d_gate = gate_back(dh * up * sigmoid * (1 + gate * (1 - sigmoid)))
        return dx_up + dx_gate, {"gate": d_gate, "up": d_up, "down": down}

    return y, back


MLPS = {"gelu": gelu_mlp, "swiglu": swiglu_mlp}


def block(spec, p, x):
    a, norm_1 = norm(spec.norm, p["norm_1"], x)
    a, attend = attention(spec, p["attention"], a)
    middle = x + a
    m, norm_2 = norm(spec.norm, p["norm_2"], middle)
    m, mlp = MLPS[spec.mlp](p["mlp"], m)

    def back(dy):
        dm, g_mlp = mlp(dy)
        dm, g_2 = norm_2(dm)
        da, g_attention = attend(dy + dm)
        da, g_1 = norm_1(da)
        return dy + dm + da, {"norm_1": g_1, "norm_2": g_2, "attention": g_attention, "mlp": g_mlp}

    return middle + m, back


def forward(spec, params, tokens):
    """Logits [B, T, V] in float64, and the function from their gradient to the parameters'."""
    p = float64(params)
    tokens = np.asarray(tokens)
    x, backs = p["tokens"][tokens], []
    if spec.position == "learned":
        x = x + p["positions"][: tokens.shape[1]]
    for i in range(spec.n_layers):
        x, back_ = block(spec, p["blocks"][i], x)
        backs.append(back_)
    x, norm_back = norm(spec.norm, p["norm"], x)
    head = p["tokens"].T if spec.tied else p["head"]

    def back(dlogits):
        grads = tree_map(np.zeros_like, p)
        d_head = np.einsum("btd,btv->dv", x, dlogits)
        dx, grads["norm"] = norm_back(dlogits @ head.T)
        for i in reversed(range(spec.n_layers)):
            dx, grads["blocks"][i] = backs[i](dx)
        if spec.position == "learned":
            grads["positions"][: tokens.shape[1]] = dx.sum(0)
        np.add.at(grads["tokens"], tokens, dx)
        if spec.tied:
            grads["tokens"] += d_head.T
        else:
            grads["head"] = d_head
        return grads

    return x @ head, back


def nats(spec, params, tokens):
    """-log p of tokens 2..S of each sequence, [B, S - 1], float64."""
    tokens = np.asarray(tokens)
    logits, _ = forward(spec, params, tokens[:, :-1])
    top = logits.max(-1, keepdims=True)
    lse = np.log(np.exp(logits - top).sum(-1)) + top[..., 0]
    return lse - np.take_along_axis(logits, tokens[:, 1:, None], -1)[..., 0]


def loss_and_grads(spec, params, tokens, weights=None):
    """Summed cross-entropy in nats of the rows, each times its weight, and its gradient."""
    tokens = np.asarray(tokens)
    weights = np.ones(len(tokens)) if weights is None else np.asarray(weights, np.float64)
    logits, back = forward(spec, params, tokens[:, :-1])
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    picked = np.take_along_axis(probs, tokens[:, 1:, None], -1)[..., 0]
    one_hot = np.eye(spec.vocab_size)[tokens[:, 1:]]
    return float((-np.log(picked).sum(-1) * weights).sum()), back((probs - one_hot) * weights[:, None, None])


def rate(o, step, total):
    """The learning rate of an OptimizerSpec at a step, from its definition."""
    warmup = min(o.warmup_steps, total / 10)
    factor = min(1.0, (step + 1) / warmup) if warmup > 1 else 1.0
    if o.schedule == "trapezoid":
        falling = o.decay_fraction * total
        left = total - step
        factor *= 1.0 if left >= falling else o.final_fraction + (1 - o.final_fraction) * left / falling
    elif o.schedule == "cosine":
        t = max(0.0, (step - warmup) / (total - warmup))
        factor *= o.final_fraction + (1 - o.final_fraction) * (1 + math.cos(math.pi * t)) / 2
    return o.peak_lr * factor


def train(run, params, batches, total):
    """Adam with decoupled weight decay over `batches` (arrays of tokens); gives the parameters and each batch's mean loss."""
    o, spec, p = run.stages[0].optimizer, run.model, float64(params)
    m, v, losses = tree_map(np.zeros_like, p), tree_map(np.zeros_like, p), []
    for step, tokens in enumerate(batches):
        loss, grads = loss_and_grads(spec, p, tokens)
        scored = len(tokens) * (spec.seq_len - 1)
        losses.append(loss / scored)
        grads = tree_map(lambda g, scored=scored: g / scored, grads)
        m = tree_map(lambda a, g: o.b1 * a + (1 - o.b1) * g, m, grads)
        v = tree_map(lambda a, g: o.b2 * a + (1 - o.b2) * g * g, v, grads)
        c1, c2, lr = 1 - o.b1 ** (step + 1), 1 - o.b2 ** (step + 1), rate(o, step, total)
        p = tree_map(lambda w, a, b, c1=c1, c2=c2, lr=lr: w - lr * ((a / c1) / (np.sqrt(b / c2) + o.eps) + o.weight_decay * w), p, m, v)
    return p, losses
