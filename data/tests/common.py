"""Shared by the tests: small networks, batches and masks, and a comparison that explains itself."""
import contextlib
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cofi

torch.set_num_threads(1)       # at these sizes a second thread only waits

# vocabulary, positions, token types, d, k, heads and FFN units of each layer, pooler
MINILM = cofi.Config(100, 64, 2, 384, 32, [12] * 6, [1536] * 6, 384, id2label=["no", "yes"])
TINY = cofi.Config(100, 64, 2, 16, 4, [4, 4, 4], [24, 24, 24], 16, id2label=["no", "yes"])
# no two sizes are alike, so that exchanged dimensions are found
ODD = cofi.Config(100, 64, 2, 13, 7, [3] * 5, [17] * 5, 19, id2label=["no", "yes"])
BERT_BASE = cofi.Config(30522, 512, 2, 768, 64, [12] * 12, [3072] * 12, 768,
                        id2label=["no", "yes"])


def marker(name):
    """Return a pytest marker: pytest -m part3, pytest -m "not slow"."""
    # pytest would like markers to be registered in a file of their own
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)
        return getattr(pytest.mark, name)


def part(number):
    """Mark a test as one of an assignment."""
    return marker(f"part{number}")


slow = marker("slow")


def assert_close(got, expected, hint="", atol=1e-5):
    """Assert equality up to rounding. If it fails: what was expected, what came, likely mistake."""
    __tracebackhide__ = True
    got, expected = (torch.as_tensor(x).detach().double() for x in (got, expected))
    if got.shape != expected.shape:
        texts = [f"shape {tuple(x.shape)}" for x in (expected, got)]
    elif torch.allclose(got, expected, atol=atol, rtol=1e-5):
        return
    else:
        worst = (got - expected).abs().nan_to_num(torch.inf).argmax().item()
        at = tuple(int(i) for i in np.unravel_index(worst, got.shape))
        where = f" at {at} of {tuple(got.shape)}" if at else ""
        texts = [f"{x[at].item():.6g}{where}" for x in (expected, got)]
    raise AssertionError(f"expected {texts[0]}\n     got {texts[1]}\n  likely {hint or 'unknown'}")


@contextlib.contextmanager
def explained(hint):
    """Turn any other error than an assertion into one that names the likely mistake."""
    try:
        yield
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}\n  likely {hint}") from error


def assert_gradient(function, x, hint):
    """Assert that the gradient in x is that of difference quotients, in a random direction."""
    direction, x = 1e-2 * torch.randn_like(x), x.detach().requires_grad_()
    y = function(x)
    weights, gradient = torch.randn_like(y), None
    if y.requires_grad:
        gradient, = torch.autograd.grad((y * weights).sum(), x, allow_unused=True)
    assert gradient is not None, f"the result has no gradient\n  likely {hint}"
    with torch.no_grad():
        expected = (function(x + direction) - function(x - direction)) * weights / 2
    assert_close((gradient * direction).sum(), expected.sum(), f"the value is right, its gradient "
                 f"is not: {hint}", atol=2e-4)


def make_bert(config=TINY):
    """Return a BERT whose weights, biases and LayerNorms are all far from trivial."""
    bert = cofi.BERT(config).eval()
    for name, p in bert.named_parameters():
        mean = 1.0 if name.endswith("norm.weight") else 0.0
        nn.init.normal_(p, mean, 0.3)
    return bert


def make_batch(B=5, T=11, vocab_size=100):
    """Return the inputs of a network, with rows of different length."""
    attention_mask = torch.arange(T) < torch.randint(3, T + 1, (B, 1))
    attention_mask[0] = True
    return {"input_ids": torch.randint(vocab_size, (B, T)),
            "token_type_ids": torch.randint(2, (B, T)), "attention_mask": attention_mask}


def make_masks(config=TINY, soft=True):
    """Return {group: z} with about a quarter closed, the others soft or 1."""
    z = {}
    for group, log_alpha in cofi.Masks(config).log_alpha().items():
        value = torch.rand(log_alpha.shape) + 0.5 if soft else torch.ones(log_alpha.shape)
        z[group] = value * (torch.rand(log_alpha.shape) > 0.25)
    z["z_mha"][0] = z["z_ffn"][0] = 0.9
    return z


def random_log_alpha(config, spread=3.0, groups=cofi.Masks.GROUPS):
    """Return Masks with normal log_alpha of this spread."""
    masks = cofi.Masks(config, groups)
    for p in masks.parameters():
        nn.init.normal_(p, 0.0, spread)
    return masks


# ---- oracles: the equations in loops -------------------------------------------------------------


@torch.no_grad()
def reference_forward(bert, batch, z=None):
    """Compute the logits (B, classes) from the weights alone: no forward() of cofi.py runs.

    One example at a time, without its padding; one head at a time. A sub-layer without weights is
    skipped, a closed hidden dimension stays 0. z: {group: mask}, or None.
    """
    c, e, L, k = bert.config, bert.embeddings, len(bert.layers), bert.config.attention_head_size
    z = z or {"z_mha": torch.ones(L), "z_head": [torch.ones(h) for h in c.heads_per_layer],
              "z_ffn": torch.ones(L), "z_int": [torch.ones(f) for f in c.ffn_per_layer],
              "z_hidn": torch.ones(c.hidden_size)}
    z_hidn, kept = z["z_hidn"], z["z_hidn"] > 0

    def linear(module, x, rows=slice(None)):
        return x @ module.weight[rows].T + module.bias[rows]

    def norm(module, x):
        y = torch.zeros_like(x)
        y[:, kept] = F.layer_norm(x[:, kept], (int(kept.sum()),), eps=module.eps)
        return (y * module.weight + module.bias) * z_hidn

    def head(mha, x, i):
        rows = slice(i * k, (i + 1) * k)
        queries, keys, values = (linear(m, x, rows) for m in (mha.query, mha.key, mha.value))
        attention = (queries @ keys.T / math.sqrt(k)).softmax(-1)
        return attention @ values @ mha.out.weight[:, rows].T

    logits = []
    for b, is_token in enumerate(batch["attention_mask"]):
        x = e.word.weight[batch["input_ids"][b][is_token]]
        x = x + e.token_type.weight[batch["token_type_ids"][b][is_token]]
        x = norm(e.norm, x + e.position.weight[:len(x)])
        for l, layer in enumerate(bert.layers):
            if z["z_mha"][l] > 0 and any(z["z_head"][l]):
                heads = [z_i * head(layer.mha, x, i) for i, z_i in enumerate(z["z_head"][l])]
                y = (sum(heads) + layer.mha.out.bias) * z["z_mha"][l]
                x = norm(layer.mha.norm, x + y * z_hidn)
            if z["z_ffn"][l] > 0 and any(z["z_int"][l]):
                units = F.gelu(linear(layer.ffn.up, x)) * z["z_int"][l]
                x = norm(layer.ffn.norm, x + linear(layer.ffn.down, units) * z["z_ffn"][l] * z_hidn)
        logits.append(linear(bert.classifier, torch.tanh(linear(bert.pooler, x[:1])))[0])
    return torch.stack(logits)


def size_by_loops(p, k):
    """4k sum_l,i,j z_mha[l] z_head[l,i] z_hidn[j] + 2 sum_l,i,j z_ffn[l] z_int[l,i] z_hidn[j]."""
    size = 0.0
    for l, hidn in itertools.product(range(len(p["z_mha"])), p["z_hidn"].tolist()):
        size += sum(4 * k * p["z_mha"][l].item() * head * hidn for head in p["z_head"][l].tolist())
        size += sum(2 * p["z_ffn"][l].item() * unit * hidn for unit in p["z_int"][l].tolist())
    return size


def match_by_loops(distance, alive, ordered):
    """Return m(i) for each row of distance, -1 if there is no candidate."""
    n, L = len(distance), len(distance[0])
    m, limit = [-1] * n, L
    for i in reversed(range(n)):
        candidates = [j for j in range(limit) if alive[j]]
        if candidates:
            m[i] = min(candidates, key=distance[i].__getitem__)
            limit = m[i] if ordered else L
    return m
