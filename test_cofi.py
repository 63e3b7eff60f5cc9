"""The specification of cofi.py: each equation against an oracle that is written another way.

    python -m pytest -q                     all of it, offline, two minutes
    python -m pytest -q -k expected_size    one equation
    python -m pytest -q -m part3            the tests of one assignment

    python test_cofi.py --guide                     the README's links, set to today's lines
    python test_cofi.py --assignment FOLDER         a copy of the project to fill in
    python test_cofi.py --answer 3b 12.5            is that the answer to question 3b?
    python test_cofi.py --benchmark                 a pruning step and cut models, beside others
"""
import argparse
import ast
import csv
import dataclasses
import doctest
import functools
import hashlib
import importlib.util
import io
import itertools
import json
import math
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import tokenize
import types
import warnings
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import datasets
import numpy as np
import pytest
import tokenizers
import torch
import torch.nn.functional as F
from torch import nn

import cofi
import data
import sparsebert
from data import BadInput, checkpoint, hub, metrics
from data.toy import prepare as toy

torch.set_num_threads(1)       # at these sizes a second thread only waits

HERE, CPU = Path(__file__).parent, torch.device("cpu")
MINILM = cofi.Config(100, 64, 2, 384, 32, [12] * 6, [1536] * 6, 384, labels=["no", "yes"])
TINY = cofi.Config(100, 64, 2, 16, 4, [4, 4, 4], [24, 24, 24], 16, labels=["no", "yes"])
ODD = cofi.Config(100, 64, 2, 13, 7, [3] * 5, [17] * 5, 19, labels=["no", "yes"])    # none is alike


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make_bert(config=TINY):
    """A BERT whose weights, biases and LayerNorms are all far from trivial."""
    bert = cofi.BERT(config).eval()
    for name, p in bert.named_parameters():
        nn.init.normal_(p, 1.0 if name.endswith("norm.weight") else 0.0, 0.3)
    return bert


def make_batch(B=5, T=11, vocab=100):
    """ids, segments, real with rows of different length."""
    real = torch.arange(T) < torch.randint(3, T + 1, (B, 1))
    real[0] = True
    return {"ids": torch.randint(vocab, (B, T)), "segments": torch.randint(2, (B, T)), "real": real}


def make_masks(config=TINY, soft=True):
    """{group: z} with about a quarter closed, the others soft."""
    shapes = {group: a.shape for group, a in cofi.Masks(config).log_alpha().items()}
    value = (lambda shape: torch.rand(shape) + 0.5) if soft else torch.ones
    z = {group: value(shape) * (torch.rand(shape) > 0.25) for group, shape in shapes.items()}
    z["z_mha"][0] = z["z_ffn"][0] = 0.9
    return z


def random_log_alpha(config, spread=3.0, groups=cofi.Masks.GROUPS):
    masks = cofi.Masks(config, groups)
    for p in masks.parameters():
        nn.init.normal_(p, 0.0, spread)
    return masks


def part(number):
    """Marks a test as one of an assignment: pytest -m part3."""
    with warnings.catch_warnings():     # pytest would have marks registered in a file of their own
        warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)
        return getattr(pytest.mark, f"part{number}")


def close(got, want, hint="", atol=1e-5):
    """Equal up to rounding? If not: what was expected, what came, and the likely mistake."""
    __tracebackhide__ = True
    got, want = (torch.as_tensor(x).detach().double() for x in (got, want))
    text = [f"shape {tuple(x.shape)}" for x in (want, got)]
    if got.shape == want.shape:
        if torch.allclose(got, want, atol=atol, rtol=1e-5):
            return
        worst = (got - want).abs().nan_to_num(torch.inf).argmax().item()
        at = tuple(int(i) for i in np.unravel_index(worst, got.shape))
        where = f" at {at} of {tuple(got.shape)}" if at else ""
        text = [f"{x[at].item():.6g}{where}" for x in (want, got)]
    raise AssertionError(f"expected {text[0]}\n     got {text[1]}\n  likely {hint or 'unknown'}")


@torch.no_grad()
def by_hand(bert, batch, z=None):
    """The logits of a BERT, masked or cut, row by row and head by head: none of its own code runs.

    Padding is left out, not masked; a closed sub-layer is skipped, a closed dimension stays 0.
    """
    c, e, L = bert.config, bert.embeddings, len(bert.layers)
    z = z or {"z_mha": [1] * L, "z_head": [[1] * h for h in c.heads], "z_hidn": torch.ones(c.d),
              "z_ffn": [1] * L, "z_int": [torch.ones(f) for f in c.ffn]}
    hidn, kept = z["z_hidn"], z["z_hidn"] > 0

    def linear(part, x, rows=slice(None)):
        return x @ part.weight[rows].T + part.bias[rows]

    def norm(part, x):
        y, (mean, var) = torch.zeros_like(x), (x[:, kept].mean(1), x[:, kept].var(1, correction=0))
        y[:, kept] = (x[:, kept] - mean[:, None]) / (var[:, None] + part.eps).sqrt()
        return (y * part.weight + part.bias) * hidn

    def attention(part, x, i):
        rows = slice(i * c.k, (i + 1) * c.k)
        q, k, v = (linear(f, x, rows) for f in (part.query, part.key, part.value))
        return (q @ k.T / math.sqrt(c.k)).softmax(-1) @ v @ part.out.weight[:, rows].T

    logits = []
    for ids, segments, real in zip(batch["ids"], batch["segments"], batch["real"]):
        x = e.word.weight[ids[real]] + e.segment.weight[segments[real]]
        x = norm(e.norm, x + e.position.weight[:len(x)])
        for l, layer in enumerate(bert.layers):
            if z["z_mha"][l] > 0 and any(z["z_head"][l]):
                heads = [g * attention(layer.mha, x, i) for i, g in enumerate(z["z_head"][l])]
                y = (sum(heads) + layer.mha.out.bias) * z["z_mha"][l]
                x = norm(layer.mha.norm, x + y * hidn)
            if z["z_ffn"][l] > 0 and any(z["z_int"][l]):
                y = linear(layer.ffn.down, F.gelu(linear(layer.ffn.up, x)) * z["z_int"][l])
                x = norm(layer.ffn.norm, x + y * z["z_ffn"][l] * hidn)
        logits.append(linear(bert.classifier, torch.tanh(linear(bert.pooler, x[:1])))[0])
    return torch.stack(logits)


# ---- 1. BERT -------------------------------------------------------------------------------------


@part(2)
def test_layer_is_the_one_of_torch():
    ours = make_bert().layers[0]
    theirs = nn.TransformerEncoderLayer(16, 4, 24, activation="gelu", batch_first=True,
                                        norm_first=False, layer_norm_eps=1e-12).eval()
    pairs = [(theirs.self_attn.out_proj, ours.mha.out), (theirs.norm1, ours.mha.norm),
             (theirs.linear1, ours.ffn.up), (theirs.linear2, ours.ffn.down),
             (theirs.norm2, ours.ffn.norm)]
    with torch.no_grad():
        for a, b in pairs:
            a.load_state_dict(b.state_dict())
        qkv = (ours.mha.query, ours.mha.key, ours.mha.value)
        theirs.self_attn.in_proj_weight.copy_(torch.cat([linear.weight for linear in qkv]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([linear.bias for linear in qkv]))
    x, real = torch.randn(5, 11, 16), make_batch()["real"]
    bias = torch.zeros(real.shape).masked_fill(~real, -torch.inf)[:, None, None]
    close(ours(x, bias)[real], theirs(x, src_key_padding_mask=~real)[real],
          "post-norm: norm(x + sub-layer(x)); softmax(scores / sqrt(k) + bias) over the last T")


def test_embeddings_and_head():
    """LayerNorm(word + position + segment), and classifier(tanh(pooler(first state)))."""
    bert, batch = make_bert(), make_batch()
    e, out = bert.embeddings, bert(**batch)
    for b in range(5):
        for t in range(11):
            x = e.word.weight[batch["ids"][b, t]] + e.position.weight[t]
            x = x + e.segment.weight[batch["segments"][b, t]]
            x = (x - x.mean()) / x.var(unbiased=False).sqrt() * e.norm.weight + e.norm.bias
            close(out.hidden[0][b, t], x)
        pooled = torch.tanh(bert.pooler.weight @ out.hidden[-1][b, 0] + bert.pooler.bias)
        close(out.logits[b], bert.classifier.weight @ pooled + bert.classifier.bias)
    assert len(out.hidden) == 1 + 3


@part(2)
def test_attention_scores():
    """Nested loops over rows, heads and tokens; softmax of them is what attends."""
    bert, x = make_bert(ODD), torch.randn(2, 5, 13)
    mha, expected = bert.layers[0].mha, torch.zeros(2, 3, 5, 5)
    q, k = (F.linear(x, m.weight, m.bias) for m in (mha.query, mha.key))
    for b, h, i, j in itertools.product(range(2), range(3), range(5), range(5)):
        terms = [q[b, i, 7 * h + n] * k[b, j, 7 * h + n] for n in range(7)]
        expected[b, h, i, j] = sum(terms) / math.sqrt(7)
    close(mha.scores(x), expected, "head h has k columns, from h k on; divide by sqrt k")


@part(2)
def test_mha_with_masks():
    """MHA(X) = z_mha sum_i z_head[i] Att_i(X), times z_hidn: head by head, token by token."""
    mha, z = make_bert(ODD).layers[0].mha, make_masks(ODD)
    z_mha, z_head, z_hidn = z["z_mha"][0], z["z_head"][0], z["z_hidn"]
    x = torch.randn(5, 13) * z_hidn
    y = mha.out.bias.repeat(5, 1)
    for i in range(3):
        rows = slice(7 * i, 7 * i + 7)
        q, k, v = (x @ f.weight[rows].T + f.bias[rows] for f in (mha.query, mha.key, mha.value))
        for t in range(5):
            score = torch.stack([q[t] @ k[u] / math.sqrt(7) for u in range(5)])
            attention = torch.softmax(score, 0)
            att = mha.out.weight[:, rows] @ sum(attention[u] * v[u] for u in range(5))
            y[t] = y[t] + z_head[i] * att
    close(mha(x[None], 0.0, z_mha, z_head, z_hidn)[0], mha.norm(x + z_mha * y * z_hidn, z_hidn),
          "z_head scales a head before out, z_mha and z_hidn what out gives, its bias included; "
          "the residual is not scaled")


@part(2)
def test_ffn_with_masks():
    """FFN(X) = z_ffn gelu(X W_U) diag(z_int) W_D, times z_hidn: unit by unit."""
    ffn, z = make_bert(ODD).layers[0].ffn, make_masks(ODD)
    z_ffn, z_int, z_hidn = z["z_ffn"][0], z["z_int"][0], z["z_hidn"]
    x = torch.randn(5, 13) * z_hidn
    y = ffn.down.bias.repeat(5, 1)
    for j in range(17):
        u = x @ ffn.up.weight[j] + ffn.up.bias[j]
        gelu = u * 0.5 * (1 + torch.erf(u / math.sqrt(2)))
        y = y + z_int[j] * gelu[:, None] * ffn.down.weight[:, j]
    close(ffn(x, z_ffn, z_int, z_hidn), ffn.norm(x + z_ffn * y * z_hidn, z_hidn),
          "z_int comes after gelu, z_ffn and z_hidn after down; gelu is the exact one, by erf")


@part(2)
def test_norm_is_the_layernorm_of_what_is_kept():
    norm, z = make_bert(ODD).layers[0].mha.norm, make_masks(ODD)["z_hidn"]
    kept, x = z > 0, torch.randn(5, 13)
    want = nn.functional.layer_norm(x[:, kept], (int(kept.sum()),), norm.weight[kept],
                                    norm.bias[kept], norm.eps)
    got = norm(x, z)
    close(got[:, kept], want * z[kept], "mean and variance are of the kept dimensions only, divided"
          " by their number; z_hidn multiplies last")
    close(got[:, ~kept], 0 * x[:, ~kept], "a closed dimension is 0, whatever the bias")
    close(norm(x), nn.functional.layer_norm(x, (13,), norm.weight, norm.bias, norm.eps),
          "without z_hidn it is an ordinary LayerNorm")


@part(2)
def test_masks_of_ones_change_nothing():
    bert, batch = make_bert(ODD), make_batch()
    ones = {group: torch.ones_like(z) for group, z in make_masks(ODD).items()}
    close(bert(**batch, **ones).logits, bert(**batch).logits, "is a mask added, or squared?")


@part(2)
@pytest.mark.parametrize("soft", [False, True])
def test_bert_with_masks(soft):
    """The whole network: logits as they are without any tensor of masks or of padding."""
    bert, batch, z = make_bert(ODD), make_batch(), make_masks(ODD, soft)
    close(bert(**batch, **z).logits, by_hand(bert, batch, z), "each sub-layer alone may be right: "
          "is padding kept out (the bias), is a dead sub-layer the identity?", atol=1e-4)


@part(2)
@pytest.mark.parametrize("dead", ["z_mha", "z_head", "z_ffn", "z_int"])
def test_dead_sublayer_is_the_identity(dead):
    """...whether its own mask is closed or all of its units are, and whatever its biases say."""
    layer = make_bert(ODD).layers[0]
    z = {group: m[0] for group, m in make_masks(ODD, soft=False).items()}
    z[dead] = torch.zeros_like(z[dead])
    z_hidn, x, bias = torch.ones(13), torch.randn(2, 5, 13), 0.0
    got = layer(x, bias, z["z_mha"], z["z_head"], z["z_ffn"], z["z_int"], z_hidn)
    want = layer.ffn(x, z["z_ffn"], z["z_int"], z_hidn) if dead in ("z_mha", "z_head") else \
        layer.mha(x, bias, z["z_mha"], z["z_head"], z_hidn)
    close(got, want, "torch.where(alive(...), y, x): a dead sub-layer leaves x, its norm included")


# ---- 2. Hard concrete ----------------------------------------------------------------------------


@part(1)
@pytest.mark.parametrize("log_alpha", [-4.0, -1.0, 0.0, 2.0, 4.0])
def test_p_open(log_alpha):
    """P(z > 0), and at the other end P(z < 1), are the frequencies of a million draws."""
    u = torch.rand(1_000_000)
    stretched = 1.2 * torch.sigmoid(1.5 * ((u / (1 - u)).log() + log_alpha)) - 0.1
    close(cofi.p_open(torch.tensor(log_alpha)), (stretched > 0).double().mean(),
          "P(z > 0) = sigmoid(log_alpha - beta log(-l / r))", atol=2e-3)
    z = cofi.sample_z(torch.full((1_000_000,), log_alpha))
    assert 0 <= z.min() and z.max() <= 1, "a mask is clamped into [0, 1] after it was stretched"
    close((z > 0).double().mean(), (stretched > 0).double().mean(),
          "is the noise u uniform, and drawn for each mask? is z stretched below 0?", atol=2e-3)
    close((z < 1).double().mean(), (stretched < 1).double().mean(),
          "is z stretched to both sides, l = -.1 and r = 1.1?", atol=2e-3)


@part(1)
def test_hard_concrete():
    """z = clamp(s (r - l) + l), s = sigmoid((logit u + log_alpha) / beta), and dz / dlog_alpha."""
    log_alpha = torch.tensor([0.4, -9.0, 9.0], requires_grad=True)
    z = cofi.sample_z(log_alpha, torch.full((3,), 0.3))
    s = 1 / (1 + math.exp(-(math.log(0.3 / 0.7) + 0.4) / (2 / 3)))
    close(z, torch.tensor([1.2 * s - 0.1, 0.0, 1.0]),
          "beta divides logit u and log_alpha together; stretch by r - l = 1.2, shift by l")
    z.sum().backward()
    close(log_alpha.grad, torch.tensor([1.2 * s * (1 - s) * 1.5, 0.0, 0.0]),
          "the value is right, its gradient is not: does every step stay in torch?")


@part(1)
def test_final_z():
    """sigmoid(0.8 log_alpha / beta)."""
    want = [1 / (1 + math.exp(-0.8 * a * 1.5)) for a in (-3.0, 0.0, 2.0)]
    close(cofi.soft_z(torch.tensor([-3.0, 0.0, 2.0])), torch.tensor(want),
          "no noise and no stretch here: log_alpha / beta times 0.8, then the sigmoid")


def test_switched_off_masks_stay_open():
    masks = cofi.Masks(TINY, ("z_head",))
    assert [name for name, _ in masks.named_parameters()] == ["z_head"]
    assert all((z == 1).all() for group, z in masks.sample().items() if group != "z_head")


# ---- 3. Size and Lagrangian ----------------------------------------------------------------------


BERT_BASE = cofi.Config(30522, 512, 2, 768, 64, [12] * 12, [3072] * 12, 768)


def size_by_loops(p, k):
    """4k sum_l,i,j z_mha[l] z_head[l,i] z_hidn[j] + 2 sum_l,i,j z_ffn[l] z_int[l,i] z_hidn[j]."""
    want = 0.0
    for l in range(len(p["z_mha"])):
        for hidn in p["z_hidn"].tolist():
            for head in p["z_head"][l].tolist():
                want += 4 * k * p["z_mha"][l].item() * head * hidn
            for unit in p["z_int"][l].tolist():
                want += 2 * p["z_ffn"][l].item() * unit * hidn
    return want


@part(3)
def test_expected_size():
    """The nested sums of the paper: a term for each head (4k weights a dimension) and unit (2)."""
    p = {group: torch.rand_like(z).double() for group, z in make_masks(ODD).items()}
    close(cofi.size(7, **p), size_by_loops(p, 7), "a head has four matrices of k columns, a unit "
          "two of one; every sum runs over l, over i within l, and over j")


@part(3)
def test_sparsity():
    """1 - s / M, M the size with every mask at 1."""
    masks, z = cofi.Masks(ODD), make_masks(ODD)
    full = size_by_loops({group: torch.ones_like(mask) for group, mask in z.items()}, 7)
    close(masks.sparsity(z), 1 - size_by_loops(z, 7) / full, "1 - what is left / what there was")


@part(3)
def test_bert_base_has_84934656_weights_and_sparsity_0():
    masks = cofi.Masks(BERT_BASE)
    ones = {group: torch.ones_like(a) for group, a in masks.log_alpha().items()}
    close(cofi.size(64, **ones), 84_934_656.0, "12 (4 768^2 + 2 768 3072)", atol=0)
    close(masks.sparsity(ones), 0.0, "M is the same sum, with masks of ones", atol=0)
    close(cofi.encoder_parameters(make_bert(ODD)), 5 * (4 * 13 * 21 + 2 * 13 * 17),
          "only matrices of the layers: no bias, no LayerNorm, no embedding, no pooler")


def test_bert_base_has_so_many_parameters_as_well():
    with torch.device("meta"):
        assert cofi.encoder_parameters(cofi.BERT(BERT_BASE)) == 84_934_656
    assert cofi.Masks(BERT_BASE).sparsity().item() < 0.04   # and all masks start nearly open


@part(3)
def test_lagrangian():
    """L_c = lambda1 (s - t) + lambda2 (s - t)^2.

    Too dense: ascent takes lambda1 down, and descent on log_alpha then raises the sparsity.
    """
    numbers = itertools.product((0.1, 0.7), (0.0, 0.6), (-2.0, 3.0), (0.0, 5.0))
    for s, t, lambda1, lambda2 in numbers:
        close(cofi.lagrangian(s, t, lambda1, lambda2), lambda1 * s - lambda1 * t
              + lambda2 * (s * s - 2 * s * t + t * t), "lambda1 (s - t) + lambda2 (s - t)^2")
    s = torch.tensor(0.2, requires_grad=True)
    lambdas = torch.tensor([0.0, 0.0], requires_grad=True)
    cofi.lagrangian(s, 0.5, *lambdas).backward()
    close(lambdas.grad, torch.tensor([0.2 - 0.5, (0.2 - 0.5) ** 2]),
          "s and t are sparsities: too dense is s < t, and then lambda1 has to fall")
    step = (lambdas + lambdas.grad).detach()                # ascent
    s.grad = None
    cofi.lagrangian(s, 0.5, *step).backward()
    assert s.grad < 0, "too dense: descent has to raise s; is it t - s instead of s - t?"


# ---- 4. Distillation -----------------------------------------------------------------------------


@part(4)
def test_L_pred():
    """sum_c p_t log(p_t / p_s) at temperature T, times T^2, mean over rows."""
    student, teacher, want = torch.randn(3, 4), torch.randn(3, 4), 0.0
    for s, t in zip((student / 2).softmax(-1), (teacher / 2).softmax(-1)):
        want += sum(t[c] * math.log(t[c] / s[c]) for c in range(4)) * 2**2 / 3
    close(cofi.pred_loss(student, teacher, 2.0), want, "the teacher is the target; both logits are "
          "divided by T, the loss is multiplied by T^2; a mean over rows, a sum over classes")
    close(cofi.pred_loss(teacher, teacher, 2.0), 0.0, "0 where they agree: KL, not cross-entropy")


@part(4)
def test_L_pred_of_a_regression():
    """KL over one logit would be 0 and so would its gradient: squared error instead."""
    student = torch.tensor([[1.0], [3.0]], requires_grad=True)
    loss = cofi.pred_loss(student, torch.tensor([[2.0], [5.0]]), 2.0)
    loss.backward()
    close(loss, 2.5, "one column of logits: MSE to the teacher's value, without temperature")
    close(student.grad, torch.tensor([[-1.0], [-2.0]]), "the gradient of the mean square")


def match_by_loops(distance, is_open, ordered):
    n, L = len(distance), len(distance[0])
    m, limit = [-1] * n, L
    for i in range(n - 1, -1, -1):
        for j in range(limit):
            if is_open[j] and (m[i] < 0 or distance[i][j] < distance[i][m[i]]):
                m[i] = j
        if ordered and m[i] >= 0:
            limit = m[i]
    return m


@part(4)
@pytest.mark.parametrize("matching", ["free", "ordered"])
@pytest.mark.parametrize("chance", [1.0, 0.5, 0.2, 0.0])
def test_m_of_i(matching, chance):
    """m(i) over random distances, also with dead layers and where no candidate is left."""
    for _ in range(50):
        distance, is_open = torch.rand(4, 12), torch.rand(12) < chance
        m, found = cofi.match(distance, is_open, matching)
        want = match_by_loops(distance.tolist(), is_open.tolist(), matching == "ordered")
        close(torch.where(found, m, -1), want, "-1: none found. Free: the closest open layer; "
              "ordered: from the last i down, below the layer matched last")


@part(4)
@pytest.mark.parametrize("matching", ["free", "ordered", "fixed"])
def test_L_layer(matching):
    """sum_i MSE(W H_s^m(i), H_t^i) over real tokens; padding and dead layers do not count."""
    real, is_open = make_batch(2, 5)["real"], torch.tensor([True, False, True, False, True, True])
    student, teacher = ([torch.randn(2, 5, 16) for _ in range(6)] for _ in range(2))
    W, layers = nn.Linear(16, 16, bias=False), [1, 2, 4, 5]

    def mse(j, i):
        squares = [(W(student[j][b, t]) - teacher[i][b, t]).square().mean()
                   for b in range(2) for t in range(5) if real[b, t]]
        return (sum(squares) / len(squares)).item()

    distance = [[mse(j, i) for j in range(6)] for i in layers]
    m = layers if matching == "fixed" else match_by_loops(distance, is_open, matching == "ordered")
    want = sum(distance[n][j] for n, j in enumerate(m) if j >= 0)
    loss, got_m = cofi.layer_loss(student, teacher, real, W, is_open, matching)
    close(got_m, m, "m(i) is the number of a student layer, from 0; -1 where none was found")
    close(loss, want, "a mean over real tokens and dimensions, a sum over i; W_layer is applied to "
          "the student's states", atol=1e-3)
    for hidden in (*student, *teacher):
        hidden[~real] = 1e3
    loss, _ = cofi.layer_loss(student, teacher, real, W, is_open, matching)
    close(loss, want, "padding is counted, in the loss or in the distances", atol=1e-3)


@part(4)
def test_L_layer_without_any_open_layer_is_0():
    hidden, W = [torch.randn(2, 5, 16) for _ in range(6)], nn.Linear(16, 16, bias=False)
    real, is_open = torch.ones(2, 5).bool(), torch.zeros(6).bool()
    loss, m = cofi.layer_loss(hidden, hidden, real, W, is_open, "free")
    close(loss, 0.0, "a teaching layer that found nobody teaches nobody")
    close(m, [-1] * 4, "-1 where none was found")


# ---- 5. Cutting ----------------------------------------------------------------------------------


@part(5)
def test_deterministic_z():
    """In each row the round(expected number of zeros) lowest close; a layer closes below .5."""
    p = {group: torch.rand_like(z) for group, z in make_masks(ODD).items()}
    z = cofi.keep_expected(p, {group: cofi.rank(chance) for group, chance in p.items()})
    for group, rows in p.items():
        if group in ("z_mha", "z_ffn"):
            want = [float(chance >= 0.5) for chance in rows]
        else:
            want = torch.ones_like(rows)
            for row, mask in zip(rows.view(-1, rows.shape[-1]), want.view(-1, rows.shape[-1])):
                for _ in range(round(sum(1 - chance.item() for chance in row))):
                    mask[(row + 9 * (1 - mask)).argmin()] = 0       # the lowest that is still open
        close(z[group], want, f"{group}: P(z > 0) is summed over a row, not over all; then rounded")


@part(5)
def test_fold():
    """Each weight that stays, times the mask of its row and that of its column."""
    old, rows, columns = nn.Linear(9, 8), torch.rand(8), torch.rand(9)
    rows[[1, 4, 5]] = columns[[0, 3]] = 0
    new = nn.Linear(7, 5)
    with torch.no_grad():
        cofi.fold(new, old, rows, columns)
    for i, r in enumerate([0, 2, 3, 6, 7]):
        close(new.bias[i], old.bias[r] * rows[r], "the bias belongs to the rows, as their scale")
        for j, c in enumerate([1, 2, 4, 5, 6, 7, 8]):
            close(new.weight[i, j], old.weight[r, c] * rows[r] * columns[c],
                  "scale, then remove: the kept rows and columns in their old order")


@part(5)
@pytest.mark.parametrize("soft, closed", [
    (False, None), (True, None), (True, ("z_mha", 1)), (True, ("z_ffn", 1)), (True, ("z_head", 2)),
    (True, ("z_int", slice(None)))])
def test_cut(soft, closed):
    """The cut network, by hand, gives the logits of the masked one, and has the weights left."""
    bert, batch, z = make_bert(ODD), make_batch(), make_masks(ODD, soft)
    if closed:
        z[closed[0]][closed[1]] = 0
    small = cofi.cut(bert, z)
    close(by_hand(small, batch), by_hand(bert, batch, z), "z_head and z_int go into the columns of "
          "out and down; z_mha, z_ffn and z_hidn into their rows and biases; z_hidn into every norm"
          "; up, query, key and value only lose rows and columns", atol=1e-4)
    left = [0, 0]
    for l, j in itertools.product(range(5), range(13)):
        for i in range(3):
            left[0] += bool(z["z_mha"][l] * z["z_head"][l, i] * z["z_hidn"][j])
        for i in range(17):
            left[1] += bool(z["z_ffn"][l] * z["z_int"][l, i] * z["z_hidn"][j])
    matrices = [p for p in small.layers.parameters() if p.dim() == 2]
    assert sum(p.numel() for p in matrices) == 4 * 7 * left[0] + 2 * left[1]


@pytest.mark.parametrize("t", [0.3, 0.5, 0.6, 0.75, 0.8, 0.9, 0.95, 0.97])
@pytest.mark.parametrize("spread, mean", [(1.0, 0.0), (3.0, 0.0), (0.3, 3.0), (1.0, -5.0),
                                          (0.01, 3.0), (20.0, 0.0)])
def test_final_sparsity_is_the_one_asked_for(t, spread, mean):
    """In [t, t + .001], whether the masks had learned it, had not begun to, or had all died."""
    masks = random_log_alpha(MINILM, spread)
    for p in masks.parameters():
        p.data += mean
    for _ in range(5):
        masks.hold()
    z = cofi.decide(masks, t)
    s = masks.sparsity({group: (mask > 0).double() for group, mask in z.items()}).item()
    assert t <= s <= t + 0.001


@pytest.mark.parametrize("groups, highest", [
    ("z_head", 1 / 3), ("z_int", 2 / 3), ("z_mha z_ffn", 17 / 18), ("z_hidn", 383 / 384),
    ("z_mha z_head z_ffn", 1 - 1 / 3 / 72), ("z_mha z_int", 1 - 2 / 3 / 6 / 1536)])
def test_what_masks_can_reach(groups, highest):
    """Up to there something is left: whole layers alone would close the last one before .95."""
    masks = random_log_alpha(MINILM, groups=groups.split())
    close(masks.reach(), torch.tensor(highest), "the smallest part of a layer that is not nothing")
    z = cofi.decide(masks, highest - 1e-6)
    s = masks.sparsity({group: (mask > 0).double() for group, mask in z.items()}).item()
    assert s == pytest.approx(highest, abs=1e-5)


@pytest.mark.parametrize("groups, grain", [
    (("z_head",), 1 / 3 / 72), (("z_int",), 2e-4), (("z_mha", "z_ffn"), 1 / 18),
    (("z_hidn",), 1 / 384), (("z_mha", "z_head", "z_ffn", "z_int"), 2e-4),
    (("z_head", "z_int", "z_hidn"), 2e-4)])
def test_final_sparsity_with_some_masks_only(groups, grain):
    """Never under the target, and above it by at most one of the finest units pruned."""
    masks = random_log_alpha(MINILM, groups=groups)
    for t in (0.1, 0.2, 0.3):
        z = cofi.decide(masks, t)
        s = masks.sparsity({group: (mask > 0).double() for group, mask in z.items()}).item()
        assert t <= s <= t + grain + 1e-9
        for group in {"z_hidn", "z_head", "z_int"} - set(groups):
            layer = {"z_head": z["z_mha"], "z_int": z["z_ffn"]}.get(group)
            assert (z[group] if layer is None else z[group][layer > 0]).eq(1).all()


def test_final_masks_by_hand():
    """The expected numbers stay open, the highest log_alpha first; units fill the budget."""
    masks = cofi.Masks(TINY)
    masks.z_head.data = torch.tensor([[5.0, -5, 5, -5]] * 3)
    masks.z_ffn.data = torch.tensor([5.0, -5, 5])
    masks.z_int.data = torch.randn(3, 24)
    z = cofi.decide(masks, 0.5)
    assert (z["z_head"] > 0).tolist() == [[True, False, True, False]] * 3
    close(z["z_head"][0, 0], torch.sigmoid(torch.tensor(5.0 / (2 / 3) * 0.8)))
    assert (z["z_ffn"] > 0).tolist() == [True, False, True]
    units = masks.z_int[[0, 2]]
    kept = (z["z_int"] > 0)[[0, 2]]
    assert units[kept].min() > units[~kept].max()
    full, left = 3 * 16 * (4 * 16 + 2 * 24), 16 * (4 * 4 * 6 + 2 * int(kept.sum()))
    assert left <= 0.5 * full < left + 2 * 16


def check_cut(z):
    bert, batch = make_bert(), make_batch()
    small = cofi.cut(bert, z)
    close(small(**batch).logits, bert(**batch, **z).logits)
    exact = cofi.size(4, **{group: (mask > 0).double() for group, mask in z.items()})
    assert cofi.encoder_parameters(small) == exact
    return small


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("round_", range(5))
def test_masked_model_is_cut_model(soft, round_):
    torch.manual_seed(round_)
    check_cut(make_masks(soft=soft))


@pytest.mark.parametrize("closed", [("z_mha", 1), ("z_ffn", 1), ("z_int", 1), ("z_head", 2),
                                    ("z_mha", slice(None)), ("z_int", slice(None))])
def test_masked_model_is_cut_model_with_dead_parts(closed):
    """A dead layer, one whose FFN units are all gone, one whose heads are all gone; all layers."""
    z, (group, where) = make_masks(), closed
    z[group][where] = 0
    small = check_cut(z)
    dead = small.layers[1 if where == slice(None) else where]
    assert (dead.mha if group in ("z_mha", "z_head") else dead.ffn) is None


def test_cut_of_open_masks_is_the_same_network():
    bert, batch = make_bert(), make_batch()
    ones = {group: torch.ones_like(z) for group, z in make_masks().items()}
    assert torch.equal(cofi.cut(bert, ones)(**batch).logits, bert(**batch).logits)


# ---- Models on disk ------------------------------------------------------------------------------

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]


def make_tokenizer():
    vocab = {word: i for i, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer


@pytest.fixture
def folder(tmp_path):
    """A pre-trained model on disk: a tiny BERT without a classifier."""
    bert = make_bert(dataclasses.replace(TINY, labels=None))
    weights = {n: w for n, w in bert.state_dict().items() if not n.startswith("classifier")}
    config = dataclasses.asdict(bert.config)
    data.write_checkpoint(tmp_path / "tiny", config, weights, make_tokenizer())
    return tmp_path / "tiny"


def rewrite(folder, change):
    """Loads the weights of a folder, lets `change` alter them, saves them; returns them."""
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    changed = change(weights)
    weights = changed if isinstance(changed, dict) else weights
    torch.save(weights, folder / "pytorch_model.bin")
    return weights


@pytest.mark.parametrize("dead", [[], ["z_mha"], ["z_mha", "z_ffn"]])
def test_save_and_load(tmp_path, dead):
    small = cofi.cut(make_bert(), make_masks() | {group: torch.zeros(3) for group in dead})
    config = dataclasses.asdict(small.config)
    data.write_checkpoint(tmp_path, config, small.state_dict(), make_tokenizer())
    again, batch = cofi.load_bert(tmp_path)[0].eval(), make_batch()
    assert again.config == small.config
    assert torch.equal(again(**batch).logits, small(**batch).logits)
    names = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    assert ("bert.encoder.layer.0.attention.self.query.weight" in names) == (not dead)
    assert "bert.pooler.dense.weight" in names and "classifier.weight" in names


def test_oldest_names_half_precision_and_pretraining_heads(folder):
    new, _ = cofi.load_bert(folder, TINY)

    def age(weights):
        greek = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        old = {re.sub("LayerNorm.(weight|bias)", lambda new: greek[new[0]], name): w.half()
               for name, w in weights.items()}
        return old | {"cls.predictions.bias": torch.zeros(100),
                      "bert.embeddings.position_ids": torch.arange(64)}

    rewrite(folder, age)
    old, notes = cofi.load_bert(folder, TINY)
    assert not notes
    for (name, a), b in zip(old.state_dict().items(), new.state_dict().values()):
        assert a.dtype == torch.float32
        if not name.startswith("classifier"):
            assert torch.equal(a, b.half().float()), name


@pytest.mark.parametrize("change, note", [
    (lambda w: {n: t for n, t in w.items() if "pooler" not in n}, "its pooler is absent"),
    (lambda w: w["bert.pooler.dense.bias"].zero_() is None, "its pooler was never trained"),
    (lambda w: w | {"classifier.weight": torch.zeros(7, 16), "classifier.bias": torch.zeros(7)},
     "its classifier is not for this run")])
def test_parts_that_are_trained_anew(folder, change, note):
    rewrite(folder, change)
    _, notes = cofi.load_bert(folder, TINY)
    assert len(notes) == 1 and note in notes[0]


def test_vocab_txt_of_the_oldest_models(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    assert data.load_tokenizer(folder).encode("A b", "c").ids == [2, 4, 5, 3, 6, 3]


# ---- data: tokens, batches, metrics --------------------------------------------------------------


def make_raw(n=70, labels=("no", "yes"), **columns):
    """Splits with the columns of MRPC: label 1: both sentences begin with the same letter."""
    rng, splits = np.random.default_rng(0), {}
    for split, rows in (("train", n), ("validation", n // 2)):
        pairs = [[" ".join(rng.choice(list("abcdef"), rng.integers(1, 9))) for _ in "12"]
                 for _ in range(rows)]
        same = [int(a[0] == b[0]) for a, b in pairs]
        first, second = [a for a, _ in pairs], [b for _, b in pairs]
        table = {"sentence1": first, "sentence2": second, "label": same}
        table |= {name: [value] * rows for name, value in columns.items()}
        table = {name: rows_ for name, rows_ in table.items() if rows_ != [None] * max(rows, 1)}
        kind = datasets.ClassLabel(names=list(labels)) if labels else datasets.Value("float32")
        kinds = {name: kind if name == "label" else datasets.Value("string") for name in table}
        splits[split] = datasets.Dataset.from_dict(table, features=datasets.Features(kinds))
    return splits


def test_rows_and_batches():
    raw = make_raw()
    rows = data.tasks.dataset("mrpc", raw, make_tokenizer(), 12).train
    one = rows.batch(np.array([3, 5]))
    for i, row in enumerate((3, 5)):
        e = make_tokenizer().encode(raw["train"][row]["sentence1"], raw["train"][row]["sentence2"])
        if len(e.ids) <= 12:
            assert one["ids"][i][one["real"][i]].tolist() == e.ids
            assert one["segments"][i][one["real"][i]].tolist() == e.type_ids
    for seed in (None, 0, (57, 3)):
        seen = [(numbers, batch) for numbers, batch in data.batches(rows, 8, seed)]
        assert sorted(np.concatenate([n for n, _ in seen])) == list(range(70))
        again = [numbers.tolist() for numbers, _ in data.batches(rows, 8, seed)]
        assert [n.tolist() for n, _ in seen] == again
        assert all(batch["ids"].shape[1] == batch["real"].sum(1).max() <= 12 for _, batch in seen)
    first = [next(data.batches(rows, 8, seed))[0].tolist() for seed in ((0, 0), (0, 1))]
    assert first[0] != first[1]                             # every epoch has an order of its own


def test_metrics_against_known_values():
    """Counts by hand, numpy's correlation, and a textbook's Spearman."""
    a, b = np.array([1, 0, 1, 1, 0, 1, 0, 0]), np.array([1, 0, 0, 1, 0, 1, 1, 1])
    assert metrics.accuracy(a, b) == 0.625
    assert metrics.f1(a, b) == pytest.approx(2 * 3 / (4 + 5))
    tp, tn, fp, fn = 3, 2, 1, 2
    mcc = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert metrics.matthews(a, b) == pytest.approx(mcc)
    x, y = [106, 100, 86, 101, 99, 103, 97, 113, 112, 110], [7, 27, 2, 50, 28, 29, 20, 12, 6, 17]
    assert metrics.spearman(x, y) == pytest.approx(-29 / 165)           # a textbook example
    assert metrics.pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    tied = np.corrcoef([0, 1.5, 1.5, 3], [0, 2, 1, 3])[0, 1]
    assert metrics.spearman([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(tied)


@pytest.mark.parametrize("module", [cofi, sparsebert, metrics, data.squad, data.svg,
                                    sys.modules[__name__]])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("pred_weight, layer_weight, distil", [
    (0.7, 0.3, True), (0.7, 0.0, True), (0.0, 0.3, True), (0.0, 0.0, True), (0.5, 0.5, False)])
def test_objective(pred_weight, layer_weight, distil, bf16):
    """a L_pred + b L_layer with a teacher; the labels' loss where L_pred is off; W_layer learns."""
    student, teacher, batch = make_bert(), make_bert(), make_batch()
    W_layer, label = nn.Linear(16, 16, bias=False), torch.tensor([0, 1, 1, 0, 1])
    cfg = dataclasses.replace(cofi.Settings.of("mrpc"), pred_weight=pred_weight,
                              layer_weight=layer_weight)
    out, out_t = student(**batch), teacher(**batch)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss, parts, m = cofi.objective(out, out_t if distil else None, label, batch["real"], cfg,
                                        W_layer, torch.ones(3).bool())
    first = F.cross_entropy(out.logits, label)
    if distil and pred_weight:
        first = pred_weight * cofi.pred_loss(out.logits, out_t.logits, cfg.temperature)
    layer = torch.zeros(())
    if distil and layer_weight:
        layer, _ = cofi.layer_loss(out.hidden[1:], out_t.hidden[1:], batch["real"], W_layer,
                                   torch.ones(3).bool(), cfg.matching)
    assert loss.item() == pytest.approx((first + layer_weight * layer).item(), rel=2e-2)
    assert parts[1].item() == pytest.approx(layer.item(), rel=2e-2)
    assert (m is not None) == (distil and layer_weight > 0)
    loss.backward()
    assert (W_layer.weight.grad is not None) == (distil and layer_weight > 0)


# ---- The toy world -------------------------------------------------------------------------------


def read_toy(split):
    """[(premise, hypothesis, label, part)] as sentences of data/toy/prepare.py, from the file."""
    rows = []
    for line in (data.TOY / f"{split}.tsv").read_text().splitlines()[1:]:
        *pair, label, part = line.split("\t")
        for i, words in enumerate(text.split() for text in pair):
            adjective = words.pop(1) if words[1] in toy.ADJECTIVES else ""
            pair[i] = toy.Sentence(words[0], adjective, words[1], words[2], " ".join(words[3:]))
        rows.append((*pair, label, part))
    return rows


@functools.cache
def possible(tree, low, high, extra, extra2):
    """Which truth values two phrases can have of one thing: {(is it low?, is it high?)}.

    A thing is one leaf; its extra (adjective or place) is any of the two, or both, or neither.
    """
    leaves = [leaf for leaf, chain in toy.TREES[tree].chain.items() if len(chain) == 3]
    return {tuple(word in toy.TREES[tree].chain[leaf] and (not x or x in has)
                  for word, x in ((low, extra), (high, extra2)))
            for leaf in leaves for has in ((), (extra,), (extra2,), (extra, extra2))}


@functools.cache
def has_counterexample(quantifiers, nouns, deeds):
    """Whether a world of up to four beings makes the premise true and the hypothesis false.

    nouns, deeds: what possible() gave. A being may do several things. All phrases denote.
    """
    done = {(False, False)} | deeds
    done |= {(a or c, b or d) for a, b in done for c, d in done}
    beings = [(*n, *d) for n in nouns for d in done]

    def holds(quantifier, world, i):
        who = [being[2 + i] for being in world if being[i]]
        return {"some": any, "every": all, "no": lambda x: not any(x)}[quantifier](who)

    return any(holds(quantifiers[0], world, 0) and not holds(quantifiers[1], world, 1)
               for n in range(1, 5) for world in itertools.combinations(beings, n)
               if any(b[0] for b in world) and any(b[1] for b in world))


def test_toy_labels_by_looking_for_a_counterexample():
    """Entailed is what no world refutes: no rule about directions, only what the words mean."""
    for split in ("train", "validation", "test"):
        for p, h, label, _ in read_toy(split):
            nouns = possible("noun", p.noun, h.noun, p.adjective, h.adjective)
            deeds = possible("verb", p.verb, h.verb, p.place, h.place)
            refuted = has_counterexample((p.quantifier, h.quantifier), frozenset(nouns),
                                         frozenset(deeds))
            assert refuted == (label == "not_entailment"), (str(p), str(h), label)


def test_toy_splits():
    """Balanced, disjoint, seen and unseen as said, and no vote without the words' identity."""
    splits = {split: read_toy(split) for split in ("train", "validation", "test")}
    pairs = [pair[:2] for rows in splits.values() for pair in rows]
    assert len(set(pairs)) == len(pairs)
    for split, rows in splits.items():
        for part in {row[3] for row in rows}:
            labels = [row[2] for row in rows if row[3] == part]
            assert labels.count("entailment") * 2 == len(labels)
    assert {part for *_, part in splits["train"]} == {"seen"}
    for p, h, _, part in itertools.chain.from_iterable(splits.values()):
        for slot, tree in toy.TREES.items():
            words = {getattr(p, slot), getattr(h, slot)}
            if len(words) == 2:         # a leaf that is replaced, or that replaces, is of its part
                other = tree.leaves["unseen" if part == "seen" else "seen"]
                assert not words & set(other)
    for name, key in toy.BASELINES.items():
        assert max(toy.majority(splits, key, s) for s in ("validation", "test")) < 0.6, name


def test_toy_is_what_prepare_makes(tmp_path):
    """The splits byte for byte, the tokenizer, and a model that has kept its masked-LM head."""
    assert toy.main(["--only_splits", "--out", str(tmp_path)]) is None
    for split in ("train", "validation", "test"):
        shipped = (data.TOY / f"{split}.tsv").read_bytes()
        assert (tmp_path / f"{split}.tsv").read_bytes() == shipped
    made = toy.make_tokenizer().to_str()
    assert json.loads(made) == json.loads((data.TOY / "tokenizer.json").read_text())
    weights = torch.load(data.TOY / "pytorch_model.bin", weights_only=True)
    assert "cls.predictions.bias" in weights
    assert sum(path.stat().st_size for path in data.TOY.iterdir() if path.is_file()) < 6e6


def test_toy_is_the_task_of_a_run_without_arguments(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cofi, "speedup", functools.partial(cofi.speedup, length=16, seconds=0.0))
    assert cofi.main(["--max_steps", "2", "--out", str(tmp_path)]) == 0
    run, = tmp_path.glob("toy-0.9*")
    result = json.loads((run / "result.json").read_text())
    assert list(result["scores"]) == ["accuracy", "seen", "unseen"]
    assert result["score"] == (result["scores"]["seen"] + result["scores"]["unseen"]) / 2
    assert 0.9 <= result["sparsity"] < 0.9005
    capsys.readouterr()
    assert cofi.main(["--evaluate", str(run)]) == 0
    printed = capsys.readouterr().out.split()
    assert printed.count("dev") == printed.count("test") == 3
    assert f"{result['scores']['unseen']:.4f}" in printed


# ---- 6. to 8. The whole, on a made-up task -------------------------------------------------------


@pytest.fixture
def offline(monkeypatch):
    """load_task gives a made-up task under the name of a real one; nothing touches a network."""
    def load_task(name, tokenizer, max_length, folder=""):
        raw = make_raw(labels=None if name == "stsb" else ("not_equivalent", "equivalent"))
        return data.tasks.dataset(name, raw, tokenizer, max_length)

    monkeypatch.setattr(cofi, "load_task", load_task)
    monkeypatch.setattr(cofi, "speedup", functools.partial(cofi.speedup, length=16, seconds=0.0))


def command(folder, tmp_path, *more):
    return ["--task", "mrpc", "--model", str(folder), "--out", str(tmp_path / "out"),
            "--max_steps", "6", "--device", "cpu", *more]


RESULT = """task model seed metric teacher_score pruned_score score target_sparsity sparsity
encoder_parameters dense_encoder_parameters total_parameters speedup length seconds settings
device versions""".split()


@pytest.mark.parametrize("task", ["mrpc", "stsb"])
def test_a_run_and_what_it_leaves(offline, folder, tmp_path, capsys, task):
    assert cofi.main([*command(folder, tmp_path), "--task", task, "--sparsity", "0.6"]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("teacher", "prune", "finetune", "■", "█", "speed-up"))
    run, = (tmp_path / "out").glob(f"{task}-0.6*")
    assert sorted(p.name for p in run.iterdir()) == [
        "config.json", "curves.svg", "log.jsonl", "network.txt", "pytorch_model.bin", "result.json",
        "tokenizer.json"]
    picture = ElementTree.parse(run / "curves.svg").getroot()       # well-formed, and says it all
    words = {text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {"s", "t", "lambda1", "lambda2", "from 3", "0.6", "teacher"} <= words
    result = json.loads((run / "result.json").read_text())
    assert set(RESULT) <= set(result)
    assert 0.6 <= result["sparsity"] <= 0.6 + 2 * 16 / 5376
    assert list(result["speedup"]) == ["1", "32", "128"]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in log if r["stage"] == "prune"] == [1, 2, 3, 4, 5, 6]
    assert cofi.main(["--evaluate", str(run)]) == 0
    assert f"{result['score']:.4f}" in capsys.readouterr().out
    assert cofi.main(["--predict", str(run), "a b", "c d"]) == 0
    answer = capsys.readouterr().out
    assert "equivalent" in answer if task == "mrpc" else math.isfinite(float(answer))


def test_same_seed_same_bits(offline, folder, tmp_path, capsys):
    """...also when the teacher of an earlier run is used again."""
    weights = []
    for out in ("one", "two", "two"):
        assert cofi.main([*command(folder, tmp_path), "--out", str(tmp_path / out), "--fresh"]) == 0
        run, = (tmp_path / out).glob("mrpc-*")
        weights.append(torch.load(run / "pytorch_model.bin", weights_only=True))
    assert "trained before" in capsys.readouterr().out
    for other in weights[1:]:
        assert all(torch.equal(w, other[name]) for name, w in weights[0].items())


@pytest.mark.parametrize("more", [
    ["--layer_weight", "0"], ["--pred_weight", "0"], ["--layer_weight", "0", "--pred_weight", "0"],
    ["--masks", "head", "--sparsity", "0.2"], ["--masks", "mha,ffn", "--sparsity", "0.5"],
    ["--masks", "int", "--sparsity", "0.4"], ["--masks", "mha,head,ffn,int"],
    ["--masks", "head,int,hidn"],
    ["--matching", "fixed"], ["--matching", "free"], ["--no-bf16"]])
def test_every_ablation_runs(offline, folder, tmp_path, more):
    assert cofi.main([*command(folder, tmp_path), "--max_steps", "3", *more]) == 0


def test_training_learns_and_meets_the_target(offline, folder, tmp_path):
    """The multipliers bring the expected sparsity to t within a few hundred steps."""
    more = ["--max_steps", "400", "--prune_epochs", "200", "--sparsity", "0.5",
            "--finetune_epochs", "1", "--lr", "1e-3", "--teacher_lr", "3e-3"]
    assert cofi.main([*command(folder, tmp_path), *more]) == 0
    run, = (tmp_path / "out").glob("mrpc-0.5*")
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    last = [r for r in log if r["stage"] == "prune"][-1]
    assert last["s"] == pytest.approx(0.5, abs=0.02)


def test_a_given_teacher_of_another_task_is_refused(offline, folder, tmp_path, capsys):
    config = dataclasses.replace(TINY, labels=["up", "down"])
    weights = make_bert(config).state_dict()
    data.write_checkpoint(tmp_path / "t", dataclasses.asdict(config), weights, make_tokenizer())
    assert cofi.main([*command(folder, tmp_path), "--teacher", str(tmp_path / "t")]) == 2
    assert "up" in capsys.readouterr().err


class Malicious:
    def __reduce__(self):
        return (pytest.fail, ("a checkpoint ran its code",))


BAD = {
    "unknown task": (["--task", "rtee"], None, "--task rtee"),
    "unknown flag": (["--sparsty", "0.9"], None, "--sparsty"),
    "not a number": (["--sparsity", "high"], None, "high"),
    "sparsity 95": (["--sparsity", "95"], None, "did you mean 0.95"),
    "negative rate": (["--lr", "-1"], None, "--lr -1"),
    "unknown mask": (["--masks", "head,layer"], None, "'layer'"),
    "masks that cannot reach it": (["--masks", "head", "--sparsity", "0.9"], None, "reach only"),
    "masks that would leave nothing": (["--masks", "mha,ffn", "--sparsity", "0.95"], None,
                                       "reach only"),
    "shares over 1": (["--start", "0.6", "--warmup", "0.6"], None, "--start"),
    "unknown matching": (["--matching", "loose"], None, "ordered"),
    "no GPU": (["--device", "cuda"], None, "--device cuda"),
    "no such folder": (["--model", "no/such/model/here"], None, "neither a folder"),
    "no weights": ([], lambda f: (f / "pytorch_model.bin").unlink(), "pytorch_model.bin"),
    "no config": ([], lambda f: (f / "config.json").unlink(), "config.json"),
    "no tokenizer": ([], lambda f: (f / "tokenizer.json").unlink(), "vocab.txt"),
    "config is no JSON": ([], lambda f: (f / "config.json").write_text("{"), "not JSON"),
    "config of another kind": ([], lambda f: (f / "config.json").write_text(
        '{"model_type": "gpt2"}'), "gpt2"),
    "config without a size": ([], lambda f: (f / "config.json").write_text("{}"), "hidden_size"),
    "truncated weights": ([], lambda f: (f / "pytorch_model.bin").write_bytes(
        (f / "pytorch_model.bin").read_bytes()[:3000]), "not a file of tensors"),
    "weights with code": ([], lambda f: (f / "pytorch_model.bin").write_bytes(
        pickle.dumps(Malicious(), 2)), "not a file of tensors"),
    "a weight of the wrong shape": ([], lambda f: rewrite(f, lambda w: w | {
        "bert.pooler.dense.bias": torch.ones(25)}), "pooler.bias is (25,)"),
    "a weight too few": ([], lambda f: rewrite(f, lambda w: w.pop(
        "bert.embeddings.LayerNorm.bias") is None or None), "embeddings.norm.bias is absent"),
    "a weight too many": ([], lambda f: rewrite(f, lambda w: w | {
        "bert.extra": torch.zeros(1)}), "extra is (1,)"),
    "a model that is cut already": ([], lambda f: (f / "config.json").write_text(json.dumps(
        json.loads((f / "config.json").read_text()) | {"heads_per_layer": [4, 0, 4]})),
        "cut already"),
    "heads that do not divide": ([], lambda f: (f / "config.json").write_text(json.dumps(
        {"hidden_size": 16, "num_attention_heads": 3, "num_hidden_layers": 3})),
        "no multiple of num_attention_heads"),
    "more words than embeddings": ([], lambda f: (f / "tokenizer.json").write_text(
        json.dumps(json.loads((f / "tokenizer.json").read_text()) | {"added_tokens": [
            {"id": 500 + i, "content": f"w{i}", "single_word": False, "lstrip": False,
             "rstrip": False, "normalized": False, "special": False} for i in range(80)]})),
        "words, its embeddings 100"),
    "another tokenizer's file": ([], lambda f: (f / "tokenizer.json").write_text("{}"),
                                 "tokenizer.json"),
    "own without data": (["--task", "own"], None, "--task own --data not given"),
    "data of another task": (["--task", "rte", "--data", "x"], None, "--task rte --data x"),
    "no such data": (["--task", "own", "--data", "nowhere"], None, "no such folder"),
    "export nothing": (["--export", "nothing"], None, "--export nothing: want the folder"),
    "export a name of the hub": (["--export", "some/bert"], None, "--export some/bert: want"),
    "two commands": (["--evaluate", "a", "--export", "b"], None, "not allowed with"),
    "a name that is empty": (["--evaluate", ""], None, "there is no config.json"),
    "submit nothing": (["--submit", "nothing"], None, "nothing: neither a folder"),
    "a path for a name": (["--model", "../../etc/passwd"], None, "neither a folder"),
    "teacher nothing": (["--teacher", "no/such/teacher"], None, "neither a folder"),
    "evaluate nothing": (["--evaluate", "nothing"], None, "nothing: neither a folder"),
    "predict nothing": (["--predict", "nothing", "a"], None, "nothing: neither a folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(offline, folder, tmp_path, capsys, monkeypatch, case):
    """One line that says what and what instead, exit code 2, and nothing written."""
    arguments, damage, words = BAD[case]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if damage:
        damage(folder)
    assert cofi.main([*command(folder, tmp_path), *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and "\n" not in error and error.startswith("cofi: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [cofi.Settings, sparsebert.Settings])
def test_every_setting_out_of_its_range(kind, capsys):
    """Too low, too high, no number, not among what there is: one line that names the flag."""
    main = cofi.main if kind is cofi.Settings else sparsebert.main
    tried = 0
    for f in dataclasses.fields(kind):
        low, high = f.metadata.get("between", (None, None))
        bad = [] if low is None else [low - 1, high * 2 + 1, "x", "nan"]
        for value in [*bad, *["nonsense"] * ("among" in f.metadata)]:
            assert main([f"--{f.name}={value}"]) == 2, (f.name, value)
            error = capsys.readouterr().err.strip()
            assert f"--{f.name}" in error and "\n" not in error, error
            tried += 1
    assert tried > 50


@pytest.mark.parametrize("module", [cofi, sparsebert])
def test_help_names_every_flag_and_does_not_wait_for_torch(module):
    done = subprocess.run([sys.executable, "-X", "importtime", module.__file__, "--help"],
                          capture_output=True, text=True, check=True, timeout=60)
    loaded = set(re.findall(r"\| +([\w.]+)$", done.stderr, re.M))
    assert "data.flags" in loaded and not {"torch", "datasets", "tokenizers"} & loaded
    names = [f.name for f in dataclasses.fields(module.Settings)]
    names += cofi.COMMANDS if module is cofi else []
    assert not [name for name in names if f"--{name} " not in done.stdout.replace("\n", " ")]


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_out_that_cannot_be_written(offline, folder, tmp_path, capsys, out):
    (tmp_path / "file").write_text("mine")
    assert cofi.main([*command(folder, tmp_path), "--out", str(tmp_path / out)]) == 2
    error = capsys.readouterr().err.strip()
    assert "cannot be written" in error and "\n" not in error
    assert (tmp_path / "file").read_text() == "mine"


def test_rows_of_no_word_and_of_ten_thousand(folder, tmp_path, quick):
    own = write_own(tmp_path / "d", "tsv")
    with (own / "train.tsv").open("a") as file:
        file.write(f"71\t\t\tup\n72\t{'a ' * 10_000}\t\tdown\n")
    flags = ["--data", str(own), "--model", str(folder), "--out", str(tmp_path / "out")]
    assert cofi.main([*flags, "--max_steps", "4"]) == 0
    rows = data.load_task("own", make_tokenizer(), 16, own).train
    assert np.diff(rows.start)[-2:].tolist() == [3, 16]             # [CLS] [SEP] [SEP]


@pytest.mark.parametrize("raw, words", [
    (lambda: make_raw(sentence2=None), "no column 'sentence2'"),
    (lambda: make_raw(n=0), "no rows"),
    (lambda: make_raw(label=-1), "label -1 in 70 rows")])
def test_bad_data(raw, words):
    with pytest.raises(BadInput, match=words):
        data.tasks.dataset("mrpc", raw(), make_tokenizer(), 128)


def test_hub_out_of_reach(monkeypatch):
    import huggingface_hub
    def down(*_):
        raise ConnectionError("no route to host\nand much more")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", down)
    with pytest.raises(BadInput, match="config.json of the model some/bert could not") as error:
        hub.fetch("some/bert", "config.json")
    monkeypatch.setattr(datasets, "load_dataset", down)
    with pytest.raises(BadInput, match="mrpc.*could not be had"):
        data.load_task("mrpc", make_tokenizer(), 128)
    assert "\n" not in str(error.value)


# ---- data: every task, one's own, and SQuAD ------------------------------------------------------


def test_tasks_are_those_of_the_papers():
    """Metrics of the papers; the names of the files that GLUE's server asks for."""
    want = {"toy": ["accuracy"], "cola": ["matthews"], "sst2": ["accuracy"],
            "mrpc": ["accuracy", "f1"], "stsb": ["pearson", "spearman"], "qqp": ["accuracy", "f1"],
            "mnli": ["accuracy"], "qnli": ["accuracy"], "rte": ["accuracy"],
            "squad": ["squad_f1", "exact_match"], "own": ["accuracy"]}
    assert {name: list(task.metrics) for name, task in data.TASKS.items()} == want
    files = [file for task in data.TASKS.values() for file in task.tests.values()]
    assert sorted(files) == sorted(["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm",
                                    "QNLI", "RTE"])


def test_settings_are_the_papers_by_size_of_the_task():
    """The table of hyper-parameters: small sets, large sets, SQuAD."""
    names = ("batch_size", "max_length", "lr", "matching", "prune_epochs", "finetune_epochs")
    table = {"rte": (32, 128, 2e-5, "ordered", 100, 20), "mnli": (32, 128, 2e-5, "free", 20, 20),
             "squad": (16, 384, 3e-5, "free", 20, 20)}
    table |= dict.fromkeys(["mrpc", "cola", "stsb"], table["rte"])
    table |= dict.fromkeys(["sst2", "qnli", "qqp"], table["mnli"])
    for task, row in table.items():
        cfg = cofi.Settings.of(task)
        assert tuple(getattr(cfg, name) for name in names) == row, task
        start, warmup = (4, 20) if row[3] == "ordered" else (1, 2)      # epochs
        assert cfg.start * cfg.prune_epochs == pytest.approx(start)
        assert cfg.warmup * cfg.prune_epochs == pytest.approx(warmup)


def test_mnli_reports_matched_and_mismatched():
    raw = {"train": make_raw(9)["train"], "validation_matched": make_raw(20)["train"],
           "validation_mismatched": make_raw(40)["validation"]}
    raw = {split: rows.rename_columns({"sentence1": "premise", "sentence2": "hypothesis"})
           for split, rows in raw.items()}
    mnli = data.tasks.dataset("mnli", raw, make_tokenizer(), 12)
    logits = [np.array([1.0, 0.0])] * 40                            # says class 0 of all
    right = [1 - np.mean(raw[split]["label"]) for split in raw if split != "train"]
    assert mnli.dev.score(logits, mnli.metrics) == pytest.approx(
        {"accuracy": np.mean(right), "matched": right[0], "mismatched": right[1]})


@pytest.mark.parametrize("predicted, accepted, exact, f1", [
    ("the cat", ["cat"], 1, 1),                                     # an article
    ("A cat!", ["the cat."], 1, 1),                                 # punctuation, case
    ("theatre", ["the atre"], 0, 0),                                # no article inside a word
    ("U.S.", ["us"], 1, 1),                                         # a point joins, no space
    ("twenty-one", ["twenty one"], 0, 0),                           # ... and so does a hyphen
    ("big cat", ["cat", "small dog"], 0, 2 * 1 / (2 + 1)),          # the best of several answers
    ("small dog", ["cat", "small  dog"], 1, 1),
    ("cat cat", ["cat"], 0, 2 * 1 / (2 + 1)),                       # words count as often as said
    ("Zürich", ["zürich"], 1, 1),                                   # unicode
    ("Café", ["Cafe"], 0, 0),                                       # an accent is not dropped
    ("“cat”", ["cat"], 0, 0),                                       # only ASCII punctuation is
    ("", ["cat"], 0, 0),                                            # nothing found
    ("the", ["a"], 1, 1),                                           # nothing left on either side
    ("", ["the", "cat"], 1, 1)])
def test_squad_metric(predicted, accepted, exact, f1):
    """By hand, as the official script would score them."""
    assert metrics.exact_match([predicted], [accepted]) == exact
    assert metrics.squad_f1([predicted], [accepted]) == pytest.approx(f1)


def make_squad(*rows):
    """A dataset from (question, context, answer, number of the first character or None)."""
    return datasets.Dataset.from_list([
        {"question": question, "context": context, "answers": {
            "text": [answer], "answer_start": [context.index(answer) if at is None else at]}}
        for question, context, answer, at in rows])


ALPHABET = " ".join("abcdefghijklmnopqrstuvwxyz")


@pytest.mark.parametrize("answer, inside", [
    ("a b", [0]),               # in the first window alone
    ("e f", [0, 1]),            # in two of them
    ("i j", [1, 2]),
    ("z", [5]),                 # at the very end
    ("g h i", [1]),             # cut by the end of the first window
    ("a b c d e f g h i", [])]) # longer than any window
def test_windows(answer, inside, monkeypatch):
    """max_length 12, question 1: room for 8 tokens of the context, 4 on at a time."""
    monkeypatch.setattr(data.squad, "STRIDE", 4)
    raw = make_squad(("q", ALPHABET, answer, None), ("q", "a b", "b", None))
    windows, tokenizer = data.squad.windows_from(raw, make_tokenizer(), 12), make_tokenizer()
    assert windows.question.tolist() == [0, 0, 0, 0, 0, 0, 1]       # 26 letters, and a short one
    seen = set()
    for i in range(7):
        ids = windows.ids[windows.start[i]:windows.start[i + 1]]
        words = [tokenizer.id_to_token(int(x)) for x in ids]
        assert words[:3] == ["[CLS]", "q", "[SEP]"] and words[-1] == "[SEP]" and len(ids) <= 12
        assert windows.first[i] == 3
        if i < 6:
            assert " ".join(words[3:-1]) == ALPHABET[8 * i:8 * i + 15]
            seen |= set(words[3:-1])
            first, last = windows.label[i]
            assert ((first, last) != (0, 0)) == (i in inside)
            assert not first or " ".join(words[first:last + 1]) == answer
    assert seen == set(ALPHABET.split())
    assert windows.label[6].tolist() == [4, 4]


def test_an_answer_from_windows(monkeypatch):
    """The best start and end of all windows, in order, near each other, and of the context."""
    monkeypatch.setattr(data.squad, "STRIDE", 4)
    raw = make_squad(("q", ALPHABET.replace("j", "jé"), "jé k", None), ("q", "a b", "a b", None))
    windows = data.squad.windows_from(raw, make_tokenizer(), 12)
    logits = [np.zeros((2, 12)) for _ in range(7)]
    logits[2][0, 4], logits[2][1, 5] = 5, 5                         # window 2 begins with i
    logits[1][0, 0] = logits[1][1, 0] = 9                           # [CLS], the question and [SEP]
    logits[3][0, 1] = logits[3][1, 11] = 9                          # are no answers
    logits[4][0, 9], logits[4][1, 4] = 6, 6                         # the end before the start
    logits[6] = np.zeros((2, 6))
    logits[6][0, 4], logits[6][1, 3] = 1, 1
    assert windows.predicted(logits)[0] == ("jé k", 10)
    assert windows.predicted(logits)[1][0] == "a"                   # 1 for a alone, b alone, a b
    assert windows.score(logits, ("exact_match", "squad_f1")) == pytest.approx(
        {"exact_match": 0.5, "squad_f1": (1 + 0) / 2})              # a is an article: no word left
    assert len(windows.head(3)) == 3
    assert windows.head(3).score(logits[:3], ("exact_match",)) == {"exact_match": 1}


SPAN = dataclasses.replace(TINY, labels=None, span=True)


def test_span_head():
    """Two choices among the tokens: no padding, from the last states; the losses are means."""
    bert, batch = make_bert(SPAN), make_batch()
    out, label = bert(**batch), torch.tensor([[1, 2], [0, 0], [2, 2], [1, 1], [0, 2]])
    other = make_bert(SPAN)(**batch).logits
    loss = kl = 0.0
    for b in range(5):
        n = int(batch["real"][b].sum())
        for which in range(2):
            logits = out.hidden[-1][b, :n] @ bert.classifier.weight[which]
            logits = logits + bert.classifier.bias[which]
            close(out.logits[b, which, :n], logits)
            assert out.logits[b, which].softmax(-1)[n:].sum() == 0
            loss -= torch.log_softmax(logits, 0)[label[b, which]] / 10
            p, q = (x.div(2).softmax(0) for x in (other[b, which, :n], logits))
            kl += sum(p[i] * (p[i] / q[i]).log() for i in range(n)) * 4 / 10
    close(cofi.label_loss(out.logits, label), loss)
    close(cofi.pred_loss(out.logits, other, 2.0), kl)
    assert cofi.pred_loss(out.logits, out.logits, 2.0).abs() < 1e-6


def test_cut_with_span_head():
    bert, z, batch = make_bert(SPAN), make_masks(SPAN), make_batch()
    small = cofi.cut(bert, z)
    close(small(**batch).logits, bert(**batch, **z).logits)
    assert not hasattr(small, "pooler")


# ---- Models come in and go out -------------------------------------------------------------------

THREE = dataclasses.replace(TINY, labels=["entailment", "neutral", "contradiction"], task="mnli")


def test_labels_are_brought_into_order_by_name():
    bert, batch = make_bert(THREE), make_batch()
    before = bert(**batch).logits
    cofi.fit_labels(bert, ["Contradiction", "entailment", "neutral"], False, "a model")
    close(bert(**batch).logits, before[:, [2, 0, 1]])
    assert bert.config.labels == ["Contradiction", "entailment", "neutral"]
    bert = make_bert(dataclasses.replace(TINY, labels=["us", "US"]))
    before = bert(**batch).logits
    cofi.fit_labels(bert, ["US", "us"], False, "a model")           # case counts where it must
    close(bert(**batch).logits, before[:, [1, 0]])


@pytest.mark.parametrize("config, names, span", [
    (THREE, ["yes", "no", "maybe"], False), (THREE, ["entailment", "neutral"], False),
    (THREE, None, False), (THREE, None, True), (SPAN, None, False), (SPAN, ["a", "b"], False),
    (dataclasses.replace(TINY, labels=["LABEL_0", "LABEL_1"]), ["no", "yes"], False),
    (dataclasses.replace(TINY, labels=["us", "US"]), ["Us", "uS"], False),
    (dataclasses.replace(TINY, labels=None), ["no", "yes"], False)])
def test_other_labels_are_refused(config, names, span):
    with pytest.raises(BadInput, match="a model: its classes are .* id2label"):
        cofi.fit_labels(make_bert(config), names, span, "a model")


def authors_layout(folder, bert, z, span=False):
    """A cut model as CoFi's authors release theirs: sizes from before, LayerNorms left behind."""
    small, d = cofi.cut(bert, z), bert.config.d
    data.write_checkpoint(folder, dataclasses.asdict(small.config), small.state_dict(),
                          make_tokenizer())
    config = json.loads((folder / "config.json").read_text())
    for name in ("attention_head_size", "heads_per_layer", "ffn_per_layer", "pooler_size"):
        del config[name]
    config |= {"hidden_size": d, "num_attention_heads": 4, "intermediate_size": 24}
    (folder / "config.json").write_text(json.dumps(config))
    left = {}
    for i, (h, f) in enumerate(zip(small.config.heads, small.config.ffn)):
        names = ["attention.output"] * (not h) + ["output"] * (not f)
        left |= {f"bert.encoder.layer.{i}.{name}.LayerNorm.{kind}": torch.ones(d)
                 for name in names for kind in ("weight", "bias")}
    rewrite(folder, lambda w: w | left)
    return small, left


@pytest.mark.parametrize("config", [THREE, SPAN])
def test_the_authors_layout(tmp_path, config):
    bert, z, batch = make_bert(config), make_masks(config), make_batch()
    z["z_mha"][1] = z["z_ffn"][2] = 0
    z["z_hidn"][:3] = 0
    small, left = authors_layout(tmp_path / "m", bert, z)
    assert len(left) >= 4
    loaded, _ = cofi.load_bert(tmp_path / "m")
    assert (loaded.config.heads, loaded.config.ffn) == (small.config.heads, small.config.ffn)
    assert loaded.config.d == small.config.d < 16
    close(loaded.eval()(**batch).logits, small(**batch).logits)
    rewrite(tmp_path / "m", lambda w: w | {"bert.embeddings.word_embeddings.weight":
                                           torch.ones(100, 17)})
    with pytest.raises(BadInput, match="d 16, but the weights have 17"):
        cofi.load_bert(tmp_path / "m")


def test_a_hub_model_without_label_names(tmp_path):
    """What the hub's libraries leave out: names of the classes; the weights in safetensors."""
    config = dataclasses.replace(TINY, labels=None)
    bert = make_bert(dataclasses.replace(TINY, labels=["a", "b", "c"]))
    data.write_checkpoint(tmp_path, dataclasses.asdict(config), bert.state_dict(), make_tokenizer())
    weights = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    assert cofi.load_bert(tmp_path)[0].config.labels == ["LABEL_0", "LABEL_1", "LABEL_2"]
    header, numbers = {"__metadata__": {"format": "pt"}}, b""
    for name, w in weights.items():
        raw = w.numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(w.shape),
                        "data_offsets": [len(numbers), len(numbers) + len(raw)]}
        numbers += raw
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + numbers)
    (tmp_path / "pytorch_model.bin").unlink()
    again = cofi.load_bert(tmp_path)[0].state_dict()
    assert all(torch.equal(w, again[name]) for name, w in bert.state_dict().items())
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(BadInput, match="not a file of tensors"):
        cofi.load_bert(tmp_path)


def write_own(folder, kind, n=70):
    """One's own data: an identifier, a quote, a text that looks like a number, one that is none."""
    folder.mkdir()
    for split, rows in make_raw(n).items():
        names = {0: "up", 1: "down"}
        table = [{"id": i, "text": row["sentence1"], "other": row["sentence2"],
                  "label": names[row["label"]]} for i, row in enumerate(rows)]
        table[0] |= {"text": 'a "b', "other": "NA"}
        table[1] |= {"text": "12"}
        path = folder / f"{split}.{kind}"
        if kind == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in table))
        else:
            sep, quote = {"tsv": ("\t", csv.QUOTE_NONE), "csv": (",", csv.QUOTE_MINIMAL)}[kind]
            with path.open("w", newline="") as file:
                out = csv.DictWriter(file, table[0], delimiter=sep, quoting=quote, quotechar='"',
                                     escapechar=None if kind == "csv" else "\\")
                if kind == "tsv":
                    file.write("\t".join(table[0]) + "\n")
                    file.writelines("\t".join(map(str, row.values())) + "\n" for row in table)
                else:
                    out.writeheader()
                    out.writerows(table)
    return folder


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl"])
def test_own_data(tmp_path, kind):
    own = data.load_task("own", make_tokenizer(), 32, write_own(tmp_path / "d", kind))
    raw, tokenizer = make_raw(), make_tokenizer()
    assert (own.names, own.metrics, own.columns) == (["down", "up"], ("accuracy",),
                                                     ("text", "other"))
    assert own.dev.label.tolist() == [1 - x for x in raw["validation"]["label"]]
    for i, pair in enumerate([('a "b', "NA"), ("12", raw["train"][1]["sentence2"])]):
        ids = own.train.ids[own.train.start[i]:own.train.start[i + 1]]
        assert ids.tolist() == tokenizer.encode(*pair).ids


def test_own_data_with_numbers_for_labels(tmp_path):
    for name, labels, names in [("value", ["0.5", "3.0", "2.0"], None),
                                ("class", ["10", "9", "10"], ["9", "10"])]:
        (tmp_path / name).mkdir()
        for split in ("train", "validation"):
            lines = [f"a b\t{label}\n" for label in labels]
            (tmp_path / name / f"{split}.tsv").write_text("words\tlabel\n" + "".join(lines))
        own = data.load_task("own", make_tokenizer(), 32, tmp_path / name)
        assert own.names == names
        assert own.metrics == (("accuracy",) if names else ("pearson", "spearman"))
        assert own.train.label.tolist() == ([1, 0, 1] if names else [0.5, 3.0, 2.0])


OWN = {
    "no folder": ({}, "no such folder"),
    "no validation": ({"validation.tsv": None}, "no validation.tsv"),
    "twice": ({"train.csv": "x"}, "train.tsv and train.csv"),
    "no label": ({"train.tsv": "a\tb\nx\ty\n"}, "no column 'label'"),
    "no text": ({"train.tsv": "label\n1\n0\n", "validation.tsv": "label\n1\n"}, "text in 0"),
    "three texts": ({"train.tsv": "a\tb\tc\tlabel\nx\ty\tz\t1\n"}, "text in 3"),
    "one class": ({"train.tsv": "text\tother\tlabel\nx\ty\tup\n"}, "every label is 'up'"),
    "another class": ({"validation.tsv": "text\tother\tlabel\nx\ty\tleft\n"}, "label 'left' in 1"),
    "no rows": ({"validation.tsv": "text\tother\tlabel\n"}, "no data"),
    "an empty file": ({"validation.tsv": ""}, "cannot be read"),
    "a ragged file": ({"train.tsv": "text\tother\tlabel\nx\ty\tup\t1\t2\nx\n"}, "line 2: 5 colu"),
    "another task too": (["--task", "rte"], "--task rte --data"),
}


@pytest.mark.parametrize("case", OWN)
def test_bad_own_data(folder, tmp_path, capsys, case):
    change, words = OWN[case]
    own = tmp_path / "d"
    if change:
        write_own(own, "tsv")
    for name, text in change.items() if isinstance(change, dict) else ():
        (own / name).unlink(missing_ok=True)
        if text is not None:
            (own / name).write_text(text)
    flags = ["--data", str(own), "--model", str(folder), "--out", str(tmp_path / "out"),
             *(change if isinstance(change, list) else ())]
    assert cofi.main(flags) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and "\n" not in error
    assert not (tmp_path / "out").exists()


def test_tokens_are_kept_and_made_anew(tmp_path, monkeypatch):
    """...when the data, the length or the tokenizer change, and only then."""
    seen, encode = [], data.rows.encode

    def counting(batch, numbers, columns, tokenizer):
        seen.append(len(numbers))
        return encode(batch, numbers, columns, tokenizer)

    def load(max_length=32, tokenizer=make_tokenizer()):
        seen.clear()
        rows = data.load_task("own", tokenizer, max_length, tmp_path / "d").train
        return rows, sum(seen)

    monkeypatch.setattr(data.rows, "encode", counting)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_own(tmp_path / "d", "tsv")
    first, n = load()
    assert n == 70
    again, n = load()
    assert n == 0 and again.ids.tolist() == first.ids.tolist()
    assert again.start.tolist() == first.start.tolist()
    assert load(max_length=8)[1] == 70
    other = make_tokenizer()
    other.add_tokens(["aa"])
    assert load(tokenizer=other)[1] == 70
    assert load()[1] == 0
    with (tmp_path / "d" / "train.tsv").open("a") as file:
        file.write("71\ta a\tb b\tup\n")
    assert load()[1] == 71


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(cofi, "speedup", functools.partial(cofi.speedup, length=16, seconds=0.0))


def test_own_data_from_end_to_end(folder, tmp_path, capsys, quick):
    """Trained, scored again, asked, exported: the program equals the model in a new process."""
    own = write_own(tmp_path / "d", "jsonl")
    flags = ["--model", str(folder), "--out", str(tmp_path / "out"), "--max_steps", "3"]
    assert cofi.main(["--data", str(own), "--sparsity", "0.6", *flags]) == 0
    run, = (tmp_path / "out").glob("own-0.6*")
    assert "data=d" in run.name
    score = json.loads((run / "result.json").read_text())["score"]
    capsys.readouterr()
    assert cofi.main(["--evaluate", str(run)]) == 0
    assert f"{score:.4f}" in capsys.readouterr().out
    assert cofi.main(["--predict", str(run), "a b", "c"]) == 0
    assert {"up", "down"} <= set(capsys.readouterr().out.split())
    assert cofi.main(["--submit", str(run)]) == 2
    assert cofi.main(["--evaluate", str(run), "--task", "squad"]) == 2
    assert cofi.main(["--export", str(run)]) == 0
    batches_ = [make_batch(B, T) for B, T in ((1, 3), (5, 11), (3, 64))]
    torch.save(batches_, tmp_path / "batches")
    code = """if True:
        import sys, torch
        program = torch.export.load(sys.argv[1])
        assert "device" not in str(program.graph)       # it may be moved to a GPU
        program = program.module()
        torch.save([program(b["ids"], b["segments"], b["real"]) for b in torch.load(sys.argv[2])],
                   sys.argv[3])
        assert "cofi" not in sys.modules
        """
    subprocess.run([sys.executable, "-c", code, run / "model.pt2", tmp_path / "batches",
                    tmp_path / "logits"], check=True, cwd=tmp_path)
    bert = cofi.load_bert(run)[0].eval()
    for batch, logits in zip(batches_, torch.load(tmp_path / "logits")):
        close(logits, bert(**batch).logits)


@pytest.fixture
def squad(monkeypatch):
    """A made-up SQuAD: the question is the letter before the answer. Nothing touches a network."""
    def rows(n):
        rng, made = np.random.default_rng(n), []
        for _ in range(n):
            letters = rng.permutation(ALPHABET.split())
            at = int(rng.integers(25))
            made.append((letters[at], " ".join(letters), letters[at + 1], 2 * at + 2))
        return make_squad(*made)

    def load_task(name, tokenizer, max_length, folder=""):
        assert name == "squad"
        return data.tasks.dataset(name, {"train": rows(40), "validation": rows(8)}, tokenizer,
                                  max_length)

    monkeypatch.setattr(cofi, "load_task", load_task)
    monkeypatch.setattr(sparsebert, "load_task", load_task)


def test_squad_from_end_to_end(squad, folder, tmp_path, capsys, quick, monkeypatch):
    flags = ["--task", "squad", "--model", str(folder), "--out", str(tmp_path / "out"),
             "--max_steps", "4", "--max_length", "16"]
    assert cofi.main([*flags, "--sparsity", "0.6"]) == 0
    run, = (tmp_path / "out").glob("squad-0.6*")
    assert "qa_outputs.weight" in torch.load(run / "pytorch_model.bin", weights_only=True)
    result = json.loads((run / "result.json").read_text())
    assert list(result["scores"]) == ["squad_f1", "exact_match"]
    assert 0.6 <= result["sparsity"] <= 0.6 + 2 * 16 / 5376
    capsys.readouterr()
    assert cofi.main(["--evaluate", str(run)]) == 0
    assert f"{result['score']:.4f}" in capsys.readouterr().out
    assert cofi.main(["--predict", str(run), "a", ALPHABET]) == 0
    assert capsys.readouterr().out.strip() in ALPHABET
    assert cofi.main(["--export", str(run)]) == 0
    assert cofi.main(["--predict", str(run), "a"]) == 2
    monkeypatch.setattr(sparsebert, "speedup_csr", lambda bert: {"1 x 8": 1.0})
    strategies = ["--strategy", "distil,small_dense", "--sparsity", "0.5"]
    assert sparsebert.main([*flags, *strategies]) == 0


def test_submission(offline, folder, tmp_path, capsys, monkeypatch):
    """A line a row, as the test set is ordered, entailment by name, other classes by number."""
    for task, labels, words in (("rte", ("entailment", "not_entailment"), None),
                                ("mrpc", ("not_equivalent", "equivalent"), ("0", "1")),
                                ("stsb", None, None)):
        def load_task(name, tokenizer, max_length, folder=""):
            raw = make_raw(labels=labels)
            hidden = make_raw(30, labels=labels, label=-1)["train"]
            return data.tasks.dataset(name, raw | {"test": hidden}, tokenizer, max_length)

        monkeypatch.setattr(cofi, "load_task", load_task)
        assert cofi.main([*command(folder, tmp_path), "--task", task, "--max_steps", "1"]) == 0
        run, = (tmp_path / "out").glob(f"{task}-*")
        capsys.readouterr()
        assert cofi.main(["--submit", str(run)]) == 0
        path = run / {"rte": "RTE.tsv", "mrpc": "MRPC.tsv", "stsb": "STS-B.tsv"}[task]
        assert str(path) in capsys.readouterr().out
        lines = [line.split("\t") for line in path.read_text().splitlines()]
        assert lines[0] == ["index", "prediction"]
        assert [number for number, _ in lines[1:]] == [str(i) for i in range(30)]
        if labels:
            assert {text for _, text in lines[1:]} <= set(words or labels)
        else:
            assert all(0 <= float(text) <= 5 for _, text in lines[1:])
        assert cofi.main(["--evaluate", str(run)]) == 0
        assert "test" not in capsys.readouterr().out                # its labels are not known


# ---- Runs that are interrupted, starved, or in each other's way ----------------------------------


class Killed(BaseException):
    pass


def kill_at(monkeypatch, saves, kills):
    """Saves a state after the steps `saves` of each stage; ends the program at those of `kills`,
    (stage, step), as if there were no time left for anything: once each.
    """
    original, left = data.Journal.steps, list(kills)

    def steps(journal, batches, stage, total, done):
        for step, batch in original(journal, batches, stage, total, done):
            if (stage, step) in left:
                left.remove((stage, step))
                raise Killed
            journal.asked_by_test = step in saves
            yield step, batch

    monkeypatch.setattr(data.Journal, "steps", steps)
    monkeypatch.setattr(data.Journal, "due", lambda journal: journal.asked_by_test)
    return left


def same_files(one, two):
    """The weights of two folders are equal to the last bit, and so are their logs."""
    a, b = (torch.load(run / "pytorch_model.bin", weights_only=True) for run in (one, two))
    assert list(a) == list(b) and all(torch.equal(w, b[name]) for name, w in a.items())
    logs = [[json.loads(line) | {"seconds": 0} for line in (run / "log.jsonl").open()]
            for run in (one, two)] if (one / "log.jsonl").exists() else [0, 0]
    assert logs[0] == logs[1]


def test_an_interrupted_run_goes_on_bit_for_bit(offline, folder, tmp_path, monkeypatch, capsys):
    """Killed in every stage, before and after a state was saved, and between two stages."""
    flags = [*command(folder, tmp_path), "--max_steps", "12", "--sparsity", "0.5"]
    assert cofi.main([*flags, "--out", str(tmp_path / "whole")]) == 0
    kills = [("teacher", 2), ("teacher", 9), ("prune", 1), ("prune", 6), ("prune", 11),
             ("finetune", 1), ("finetune", 8)]
    left = kill_at(monkeypatch, (4, 5, 7), kills)
    flags += ["--out", str(tmp_path / "killed")]
    for _ in kills:
        with pytest.raises(Killed):
            cofi.main(flags)
    assert not left and cofi.main(flags) == 0
    assert "prune     goes on after step 7" in capsys.readouterr().out
    for kind in "teacher-mrpc", "mrpc-0.5":
        whole, killed = (next((tmp_path / out).glob(f"{kind}*")) for out in ("whole", "killed"))
        same_files(whole, killed)
        assert not list(killed.glob("*.state")) + list(killed.glob("*.part"))
    before = (killed / "result.json").read_text()
    assert cofi.main(flags) == 0 and "finished before" in capsys.readouterr().out
    assert (killed / "result.json").read_text() == before
    assert cofi.main([*flags, "--fresh"]) == 0 and "step 12" not in capsys.readouterr().out
    same_files(whole, killed)


def test_an_interrupted_comparison_goes_on_bit_for_bit(offline, folder, tmp_path, monkeypatch,
                                                        capsys):
    monkeypatch.setattr(sparsebert, "load_task", cofi.load_task)
    monkeypatch.setattr(sparsebert, "speedup_csr", lambda bert: {"1 x 8": 1.0})
    flags = [*command(folder, tmp_path), "--max_steps", "8", "--strategy", "finetune_first,distil",
             "--sparsity", "0.9"]
    assert sparsebert.main([*flags, "--out", str(tmp_path / "whole")]) == 0
    kills = [("finetune_first-0.9", 6), ("distil-0.9", 2), ("distil-0.9", 7)]
    kill_at(monkeypatch, (3, 5), kills)
    flags += ["--out", str(tmp_path / "killed")]
    for _ in kills:
        with pytest.raises(Killed):
            sparsebert.main(flags)
    assert sparsebert.main(flags) == 0
    whole, killed = (next((tmp_path / out).glob("sparsebert*")) for out in ("whole", "killed"))
    for arm in "finetune_first-0.9", "distil-0.9":
        same_files(whole / arm, killed / arm)
    results = [json.loads((run / "result.json").read_text()) for run in (whole, killed)]
    tables = [[row | {"seconds": 0} for row in result["rows"]] for result in results]
    assert tables[0] == tables[1]
    capsys.readouterr()
    assert sparsebert.main(flags) == 0 and "(d) prune while distilling" in capsys.readouterr().out


def in_a_child(arguments, after=None, number=signal.SIGKILL):
    """cofi.main in a process of its own, which gets a signal after some seconds, or when a function
    returns: (code, stderr).
    """
    read, write = os.pipe()
    child = os.fork()
    if not child:
        for handler in (signal.SIGINT, signal.SIGTERM):
            signal.signal(handler, signal.default_int_handler)
        os.dup2(write, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        os._exit(cofi.main(arguments))
    os.close(write)
    if after is not None:
        after() if callable(after) else time.sleep(after)
        os.kill(child, number)
    with os.fdopen(read) as file:
        error = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), error


@pytest.mark.parametrize("kills", [int(os.environ.get("KILLS", 6))])
def test_sigkill_at_any_moment(offline, folder, tmp_path, kills):
    """A state after every step, so that many a kill falls into one; the result has the same bits.

    KILLS=20 python -m pytest -q -s -k sigkill kills more often, and says how often.
    """
    flags = [*command(folder, tmp_path), "--max_steps", str(5 * kills), "--save_every", "0"]
    began = time.perf_counter()
    assert in_a_child([*flags, "--out", str(tmp_path / "whole")]) == (0, "")
    whole, killed = time.perf_counter() - began, 0
    rng = np.random.default_rng(0)
    flags += ["--out", str(tmp_path / "killed")]
    for _ in range(kills):
        code, error = in_a_child(flags, after=rng.uniform(0, 2 * whole / kills))
        assert code in (-signal.SIGKILL, 0) and not error, error
        killed += code != 0
    assert killed > kills / 2
    print(f"{killed} of {kills} were killed before the end")
    assert in_a_child(flags)[0] == 0
    for kind in "teacher-mrpc", "mrpc-0.95":
        same_files(*(next((tmp_path / out).glob(f"{kind}*")) for out in ("whole", "killed")))


def test_ctrl_c(offline, folder, tmp_path):
    """The step is finished and saved, exit code 130; the same command goes on, but for --fresh."""
    def training():             # until a step has been saved
        while (state := next((tmp_path / "out").glob("teacher-*/teacher.state"), None)) is None or \
                state.stat().st_mtime < began:
            time.sleep(0.05)

    flags = [*command(folder, tmp_path), "--max_steps", "0", "--teacher_epochs", "3000",
             "--save_every", "0"]
    began = time.time()
    code, error = in_a_child([*flags, "--fresh"], after=training, number=signal.SIGINT)
    assert code == 130 and "without --fresh goes on" in error and "Traceback" not in error
    step = int(re.search("after step (\\d+) of stage teacher", error)[1])
    state, = (tmp_path / "out").glob("teacher-*/teacher.state")
    assert torch.load(state, weights_only=True)["step"] == step
    began = time.time()
    code, error = in_a_child(flags, after=training, number=signal.SIGTERM)
    assert code == 130 and int(re.search("after step (\\d+)", error)[1]) > step


def test_full_disk(offline, folder, tmp_path, capsys):
    """One line; what was saved before can still be read."""
    flags = [*command(folder, tmp_path), "--max_steps", "4", "--save_every", "0"]
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, (2,), [("prune", 3)])
        cofi.main(flags)
    state, = (tmp_path / "out").glob("mrpc*/prune.state")
    before = state.read_bytes()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limit[1]))
        assert cofi.main(flags) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    error = capsys.readouterr().err.strip()
    assert "cannot be written" in error and "\n" not in error
    assert state.read_bytes() == before and not list(state.parent.glob("*.part"))
    assert cofi.main(flags) == 0


def test_the_log(tmp_path):
    """Killed before its first state a stage has left lines, which are not kept twice; and a line
    for which there is no space costs none of those before.
    """
    journal = data.Journal(tmp_path, {})
    for stage in ("one", "two"):
        journal({"stage": stage, "step": 1})
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "result.json").write_text("{}")
    journal.held.close()
    again, limit = data.Journal(tmp_path, {}), resource.getrlimit(resource.RLIMIT_FSIZE)
    assert again.begin("two", {}) == (0, {})
    assert again.records() == [{"stage": "one", "step": 1}]
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40, limit[1]))
        with pytest.raises(BadInput, match="log.jsonl: cannot be written"):
            again({"stage": "two", "step": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert again.records() == [{"stage": "one", "step": 1}]


@pytest.mark.parametrize("case", ["kept", "no states", "too large", "one epoch", "spans"])
def test_remember(monkeypatch, case):
    """What is kept of a teacher is what it says each time, whatever the batch and its padding."""
    length = np.random.default_rng(0).integers(3, 12, 50)
    rows = data.Rows(np.random.default_rng(1).integers(100, size=length.sum()).astype(np.uint16),
                     np.concatenate([[0], np.cumsum(length)]), length // 2, length % 2,
                     np.array([]))
    config = dataclasses.replace(ODD, span=True, labels=None) if case == "spans" else ODD
    cfg = dataclasses.replace(cofi.Settings.of("rte"), bf16=False, batch_size=7,
                              max_steps=3 if case == "one epoch" else 0,
                              layer_weight=0.0 if case == "no states" else 0.5)
    monkeypatch.setattr(cofi, "KEPT", 1000 if case == "too large" else 2**31)
    teacher, calls = make_bert(config), []
    ask = cofi.remember(teacher, rows, cfg)
    teacher.register_forward_hook(lambda *_: calls.append(1))
    for numbers, batch in data.batches(rows, 7, seed=3):
        x, _ = cofi.to(CPU, batch)
        ask(numbers, x)             # the first time, all are
        calls.clear()
        got = ask(numbers, x)
        assert len(calls) == (case not in ("kept", "no states"))
        want = teacher(**x)
        close(got.logits, want.logits)
        if case == "no states":
            assert got.hidden == [None] * 6
        for i in cofi.teacher_layers(5) if case != "no states" else []:
            now, then = (out.hidden[i][x["real"]].float() for out in (want, got))
            assert torch.allclose(then, now, rtol=2**-8, atol=1e-5)     # bfloat16 has eight bits
    nothing = dataclasses.replace(cfg, layer_weight=0, pred_weight=0)
    assert cofi.remember(teacher, rows, nothing) is None


def test_curves_show_every_run():
    """A dot for each of 12 runs, and one for the teacher: no colour runs out, no seed is lost."""
    results = [{"target_sparsity": s, "speedup": {"32": 2.0 + i}, "score": 0.5,
                "teacher_score": 0.9, "metric": "accuracy"}
               for s in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8) for i in range(2)]
    picture = ElementTree.fromstring(cofi.curves([], [1, 2], results))
    assert len(picture.findall(".//{*}circle")) == 13


def test_names_in_a_chart_find_a_place():
    """However many lines end at one point, at any height."""
    for y in np.linspace(0, 1, 11):
        lines = {"low": [(0, 0)], "high": [(0, 1)]} | {f"{i}": [(1, y)] for i in range(12)}
        texts = ElementTree.fromstring(data.chart([("a", "b", lines)])).findall(".//{*}text")
        places = [(t.get("x"), t.get("y")) for t in texts if t.get("fill")]
        assert len(set(places)) == len(places) == 14


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_no_number(offline, folder, tmp_path, capsys, monkeypatch, what):
    """The stage, the step and the last finite losses; the weights of the step before are kept."""
    original, calls = cofi.objective, []

    def objective(*arguments):
        loss, parts, m = original(*arguments)
        calls.append(loss)
        if len(calls) == 9:         # 6 steps of the teacher, then the third of pruning
            bad = torch.tensor(torch.nan if what == "loss" else 0.0)
            loss = loss + bad if what == "loss" else loss * torch.sqrt(loss * bad)
        return loss, parts, m

    monkeypatch.setattr(cofi, "objective", objective)
    flags = [*command(folder, tmp_path), "--save_every", "0"]
    assert cofi.main(flags) == 2
    error = capsys.readouterr().err.strip()
    assert "prune, step 3: the loss is" in error and "nan" in error and "\n" not in error
    last = re.search(r"were \[([\d.]+), ([\d.]+)\]", error)
    assert all(math.isfinite(float(x)) for x in last.groups())
    state = torch.load(next((tmp_path / "out").glob("mrpc*/prune.state")), weights_only=True)
    assert state["step"] == 2 and all(w.isfinite().all() for w in state["bert"].values())


def test_other_settings_are_refused_by_name(folder, tmp_path, capsys, monkeypatch, quick):
    """Data that has changed under its name, for a state, a teacher and a result."""
    own = write_own(tmp_path / "d", "tsv")
    flags = ["--data", str(own), "--model", str(folder), "--out", str(tmp_path / "out"),
             "--max_steps", "4"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, (2,), [("prune", 3)])
        cofi.main(flags)
    text = (own / "train.tsv").read_text()
    (own / "train.tsv").write_text(text + "71\ta\tb\tup\n")
    capsys.readouterr()
    assert cofi.main(flags) == 2
    error = capsys.readouterr().err
    assert "tokens" in error and "--fresh" in error
    (own / "train.tsv").write_text(text)
    assert cofi.main(flags) == 0
    (own / "train.tsv").write_text(text + "71\ta\tb\tup\n")
    assert cofi.main(flags) == 2
    assert "a run with tokens" in capsys.readouterr().err
    assert cofi.main([*flags, "--fresh"]) == 0


def test_two_runs_at_once(offline, folder, tmp_path, capsys):
    flags = command(folder, tmp_path)
    assert cofi.main(flags) == 0
    run, = (tmp_path / "out").glob("mrpc*")
    other = data.Journal(run, {})
    assert in_a_child([*flags, "--fresh"]) == (2, f"cofi: {run}: another run is at work there; "
                                               "wait for it, or want another --out\n")
    other.held.close()
    assert cofi.main([*flags, "--fresh"]) == 0


def test_a_state_with_code_is_refused(offline, folder, tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, (2,), [("prune", 3)])
        cofi.main(command(folder, tmp_path))
    state, = (tmp_path / "out").glob("mrpc*/prune.state")
    state.write_bytes(pickle.dumps(Malicious(), 2))
    assert cofi.main(command(folder, tmp_path)) == 2
    assert "not a file of tensors" in capsys.readouterr().err


# ---- sparsebert.py -------------------------------------------------------------------------------


@part(6)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.95, 0.99])
def test_magnitude_mask(sparsity):
    """By sorting; what was pruned stays so although its weight has grown again."""
    W, before = torch.randn(24, 40), torch.rand(24, 40) > 0.005
    mask = sparsebert.magnitude_mask(W, before, sparsity)
    n = math.floor(24 * 40 * (1 - sparsity) + 1e-6)
    order = sorted(((W[i, j].abs().item() if before[i, j] else -1.0, i, j)
                    for i in range(24) for j in range(40)), reverse=True)
    want = torch.zeros(24, 40)
    for _, i, j in order[:n]:
        want[i, j] = 1
    close(mask, want, "the n of largest magnitude in the whole matrix, signs ignored; what the "
          "mask before had closed is ranked below everything")
    assert mask.dtype == torch.bool and int(mask.sum()) == n


@part(6)
def test_magnitude_mask_of_blocks():
    W, mask = torch.randn(12, 8), torch.ones(12, 8, dtype=torch.bool)
    mask = sparsebert.magnitude_mask(W, mask, 0.75, block=4)
    sums = {(i, j): sum(abs(W[4 * i + a, 4 * j + b].item()) for a in range(4) for b in range(4))
            for i in range(3) for j in range(2)}
    best = max(sums, key=sums.get)
    expected = torch.zeros(12, 8, dtype=torch.bool)
    expected[4 * best[0]:4 * best[0] + 4, 4 * best[1]:4 * best[1] + 4] = True
    close(mask, expected, "a block is judged by the sum of its magnitudes, and stays or goes whole")


@part(6)
@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_cubic_schedule(t):
    """s falls behind its end by a cube: its speed is 3 (1 - u)^2 of the whole, summed up from 0."""
    want = sum(0.95 * 3 * (1 - (i + 0.5) * t / 1000) ** 2 * t / 1000 for i in range(1000))
    close(sparsebert.cubic(t, 0.95), want, "s (1 - (1 - t)^3): fast first, s itself at t = 1")


@part(6)
def test_pruning_events():
    for n in (1, 7, 100, 1000):
        cfg = sparsebert.Settings.of("toy")
        cfg.events, cfg.end = 100, 0.7
        due = sparsebert.events(n, cfg, 0.95)
        s = [due[step] for step in sorted(due)]
        assert s == sorted(s) and s[-1] == pytest.approx(0.95)
        assert max(due) == max(1, math.floor(0.7 * n)) and min(due) >= 1
        for step, value in due.items():
            if n == 1000:
                assert value == pytest.approx(0.95 - 0.95 * (1 - step / 700) ** 3)
    assert len(due) == 100


@part(6)
def test_attention_loss():
    A_s, A_t, real = torch.randn(3, 4, 6, 6), torch.randn(3, 4, 6, 6), make_batch(3, 6)["real"]
    terms = [(A_s[b, h, i, j] - A_t[b, h, i, j]) ** 2
             for b, h, i, j in itertools.product(range(3), range(4), range(6), range(6))
             if real[b, i] and real[b, j]]
    close(sparsebert.attention_loss(A_s, A_t, real), torch.stack(terms).mean(),
          "a mean over heads and pairs of real tokens: padding counts neither as row nor column")


@part(6)
def test_hidden_loss():
    H_s, H_t, real = torch.randn(3, 6, 8), torch.randn(3, 6, 8), make_batch(3, 6)["real"]
    terms = [(H_s[b, i, j] - H_t[b, i, j]) ** 2 for b, i, j in
             itertools.product(range(3), range(6), range(8)) if real[b, i]]
    close(sparsebert.hidden_loss(H_s, H_t, real), torch.stack(terms).mean(),
          "a mean over dimensions and real tokens; divide by the number of these, not of all")


def test_distillation_adds_up_the_layers():
    bert, teacher, batch = make_bert(), make_bert(), make_batch() | {"label": torch.zeros(5).long()}
    x = {name: batch[name] for name in ("ids", "segments", "real")}
    out, out_t = bert(**x), teacher(**x)
    heads = {i: slice(None) for i in range(3)}
    hidden, attention, pred = sparsebert.distillation(bert, out, teacher, out_t, batch, heads)
    close(hidden, sum(sparsebert.hidden_loss(a, b, batch["real"])
                      for a, b in zip(out.hidden, out_t.hidden, strict=True)))
    close(attention, sum(sparsebert.attention_loss(
        bert.layers[i].mha.scores(out.hidden[i]), teacher.layers[i].mha.scores(out_t.hidden[i]),
        batch["real"]) for i in range(3)))
    p, log_q = out_t.logits.softmax(-1), out.logits.log_softmax(-1)
    close(pred, ((p * (p.log() - log_q)).sum(-1)).mean())
    close(sparsebert.distillation(bert, out, bert, out, batch, heads), torch.zeros(3), atol=1e-6)
    close(sparsebert.distillation(bert, out, teacher, out_t, batch, heads, labels=True)[2],
          F.cross_entropy(out.logits, batch["label"]))


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.6, 0.8, 0.95])
def test_small_dense_has_the_weights_a_sparse_one_keeps(sparsity):
    bert = make_bert(MINILM)
    kept = sparsebert.how_many(10_616_832, sparsity)
    small, heads = sparsebert.small_dense(bert, sparsity)
    size = cofi.encoder_parameters(small)
    assert kept - len(heads) * 2 * 384 < size <= kept
    assert max(heads) == 5 and (len(heads) == 2 or sparsity < 0.66)
    for i, numbers in heads.items():        # its heads are those of the large one
        x = torch.randn(2, 5, 384)
        close(small.layers[i].mha.scores(x), bert.layers[i].mha.scores(x)[:, numbers], atol=1e-3)


def test_counts_of_bert_base():
    config = cofi.Config(30522, 512, 2, 768, 64, [12] * 12, [3072] * 12, 768, labels=["no", "yes"])
    with torch.device("meta"):
        shapes = sparsebert.matrices(cofi.BERT(config))
    assert len(shapes) == 72 and sum(w.numel() for w in shapes.values()) == 84_934_656
    assert sum(math.floor(w.numel() * 0.05 + 1e-6) for w in shapes.values()) == 4_246_704
    bert = make_bert()
    masks = sparsebert.open_masks(bert)
    sparsebert.prune(bert, masks, 0.75, 1)
    counts = sparsebert.counts(bert, length=8)
    dense = 3 * (4 * 16 * 16 + 2 * 16 * 24)
    assert counts["matrices"] == (dense, dense // 4)
    assert counts["multiply-adds"] == (dense + 3 * 2 * 8 * 16, dense // 4 + 3 * 2 * 8 * 16)
    parameters = sum(p.numel() for p in bert.parameters())
    assert counts["model"] == (parameters, parameters - dense * 3 // 4)


def test_sparse_file_and_csr(tmp_path):
    """Written, read back and equal; at most 12 % of the bytes; the same logits through CSR."""
    bert = make_bert(MINILM)
    masks = sparsebert.open_masks(bert)
    sparsebert.prune(bert, masks, 0.95, 1)
    with torch.no_grad():           # sums of the size they have in a trained BERT
        for w in sparsebert.matrices(bert).values():
            w *= 0.3
    sparse, dense = sparsebert.save_sparse(tmp_path / "sparse.bin", bert)
    assert sparse <= 0.12 * dense == 0.12 * 4 * 10_616_832
    others = sum(p.numel() for p in bert.parameters()) - 10_616_832
    assert (tmp_path / "sparse.bin").stat().st_size < sparse + 4 * others + 100_000
    read = sparsebert.load_sparse(tmp_path / "sparse.bin")
    assert read.keys() == bert.state_dict().keys()
    assert all(torch.equal(read[name], w) for name, w in bert.state_dict().items())
    batch = make_batch()
    with torch.no_grad():
        close(sparsebert.with_csr(bert)(**batch).logits, bert(**batch).logits)


def test_momentum_does_not_revive_what_was_pruned(tmp_path):
    """Every step of a run, and the last, has exactly the zeros of its masks."""
    data_ = data.load_task("toy", data.load_tokenizer(data.TOY), 64)
    cfg = dataclasses.replace(sparsebert.Settings.of("toy"), max_steps=30, end=0.5)
    config = dataclasses.replace(cofi.Config(**data.read_config(data.TOY)), labels=data_.names)
    bert = cofi.load_bert(data.TOY, config)[0]
    masks, seen = sparsebert.open_masks(bert), []

    class Watching(sparsebert.Log):
        def __call__(self, record):
            seen.append(record["s"])
            for name, w in sparsebert.matrices(bert).items():
                assert int(masks[name].sum()) == math.floor((1 - record["s"]) * w.numel() + 1e-6)
                assert not (w[~masks[name]] != 0).any()

    sparsebert.train("finetune_first", bert, data_, cfg, Watching(tmp_path, {}), masks, 0.9)
    assert len(seen) == 5 and seen[-1] == pytest.approx(0.9) and seen == sorted(seen)


def test_augmentation():
    """Only words change, never special tokens; labels, lengths and segments stay."""
    torch.manual_seed(0)
    tokenizer = data.load_tokenizer(data.TOY)
    rows = data.load_task("toy", tokenizer, 64).dev
    bert, _ = cofi.load_bert(data.TOY, cofi.Config(**data.read_config(data.TOY)))
    head = data.read_mlm_head(data.TOY, "cpu")
    more = sparsebert.augment(rows, bert, head, 4, {0, 1, 2, 3, 4}, copies=2)
    assert len(more) == 3 * len(rows)
    assert more.label.tolist() == rows.label.tolist() * 3
    old, new = (rows.ids, more.ids[len(rows.ids):2 * len(rows.ids)])
    assert np.array_equal(more.ids[:len(rows.ids)], rows.ids)
    assert 0.03 < np.mean(old != new) < 0.2
    assert np.array_equal(old[old < 5], new[old < 5]) and not (new[old >= 5] < 5).any()
    last = more.batch(np.array([3 * len(rows) - 1]))
    assert last["ids"].shape[1] == rows.batch(np.array([len(rows) - 1]))["ids"].shape[1]


def test_augmentation_knows_the_language():
    """A masked word of the toy is filled from its own kind: the head is read and used rightly."""
    tokenizer = data.load_tokenizer(data.TOY)
    row = data.rows_from_text([["a dog sprints"], ["the dog runs"]], np.zeros(1), tokenizer, 64)
    bert, _ = cofi.load_bert(data.TOY, cofi.Config(**data.read_config(data.TOY)))
    head, words = data.read_mlm_head(data.TOY, "cpu"), set()
    for _ in range(20):
        new = sparsebert.augment(row, bert, head, 4, {0, 1, 2, 3, 4}, 1, share=0.2, candidates=3)
        words.add(tokenizer.id_to_token(int(new.ids[len(row.ids) + 2])))
    assert words & set(toy.TREES["noun"].chain) and not words & set(toy.TREES["verb"].chain)


def test_sparsebert_on_the_toy(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sparsebert, "speedup_csr",
                        functools.partial(sparsebert.speedup_csr, lengths=(8,), seconds=0.0))
    more = ["--max_steps", "2", "--sparsity", "0.5,0.9", "--augment", "1",
            "--strategy", "prune_first,finetune_first,distil,small_dense"]
    assert sparsebert.main(["--out", str(tmp_path), *more]) == 0
    printed = capsys.readouterr().out
    assert printed.count("(d) prune while distilling") == 2 and "unseen" in printed
    run, = tmp_path.glob("sparsebert-toy-*")
    result = json.loads((run / "result.json").read_text())
    rows = {(row["strategy"], row["sparsity"]): row for row in result["rows"]}
    assert len(rows) == 9
    for (strategy, sparsity), row in rows.items():
        if strategy not in ("teacher", "small_dense"):
            weights = torch.load(run / f"{strategy}-{sparsity:g}" / "pytorch_model.bin",
                                 weights_only=True)
            for name, w in weights.items():
                if ".layer." in name and w.dim() == 2:
                    assert int((w != 0).sum()) == math.floor((1 - sparsity) * w.numel() + 1e-6)
    assert cofi.main(["--evaluate", str(run / "distil-0.9")]) == 0
    assert f"{rows['distil', 0.9]['scores']['unseen']:.4f}" in capsys.readouterr().out
    assert cofi.main(["--evaluate", str(run / "small_dense-0.9")]) == 0


SPARSE_BAD = {
    "sparsity 95": (["--sparsity", "0.5,95"], "did you mean 0.95"),
    "no number": (["--sparsity", "0.5,much"], "much"),
    "unknown strategy": (["--strategy", "distill"], "--strategy distill"),
    "blocks that do not fit": (["--block", "24"], "--block 24"),
    "blocks that are too large": (["--block", "32"], "nothing is left"),
    "too small to be dense": (["--strategy", "small_dense", "--sparsity", "0.999"], "small_dense"),
    "unknown flag": (["--masks", "head"], "--masks"),
}


@pytest.mark.parametrize("case", SPARSE_BAD)
def test_sparsebert_bad_input(tmp_path, capsys, case):
    arguments, words = SPARSE_BAD[case]
    assert sparsebert.main(["--out", str(tmp_path / "out"), "--max_steps", "1", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and "\n" not in error and error.startswith("sparsebert: ")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_without_masked_lm_head(folder):
    with pytest.raises(BadInput, match="no masked-LM head"):
        data.read_mlm_head(folder, "cpu")


# ---- Shapes: what stands behind a line is what the line made ------------------------------------

SIZES = {"B": {6}, "T": {11}, "L": {5}, "n": {4}, "d": {13, 10}, "h": {9, 2}, "k": {7},
         "f": {17, 14},                                     # two: of the dense and of the cut BERT
         "vocab": {101}, "words": {50}, "rows": {24}, "columns": {40}, "tokens": {66},
         "inputs": {13, 63, 17}, "outputs": {13, 63, 17}}


def margin(source):
    """{line: (shapes, tag)} of the comments at the ends of lines.

    Example:
    >>> margin("q = f(x)   # (B, T), (h k)   §3.1 MHA")
    {1: (['B, T', 'h k'], '§3.1 MHA')}
    """
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and token.line[:token.start[1]].strip():
            shapes = re.match(r"# (\([^()]*\)(?:, \([^()]*\))*)(?: |$)", token.string)
            tag = re.search("§.*", token.string)
            found[token.start[0]] = (re.findall(r"\((.*?)\)", shapes[1]) if shapes else [],
                                     tag[0].strip() if tag else "")
    return found


def fits(shape, real, names, letters):
    """Whether "T, h k, rows / block" can be the real shape. names: of the function; letters: bound.

    A letter is what it was before in this call, or an int of the function, or one of its SIZES.
    """
    dims = [dim.strip().replace(" / ", "//").replace(" ", "*") for dim in shape.split(",") if dim]
    for dim, size in zip(dims, real):
        can_be = {}
        for name in {node.id for node in ast.walk(ast.parse(dim)) if isinstance(node, ast.Name)}:
            known = letters.get(name, names.get(name))
            can_be[name] = [known] if isinstance(known, int) else SIZES.get(name, [known])
        for choice in itertools.product(*can_be.values()):
            bound = dict(zip(can_be, choice))
            if eval(dim, {}, bound) == size:
                letters.update(bound)
                break
        else:
            return False
    return len(dims) == len(real)


class Claims(ast.NodeTransformer):
    """The shapes that a file claims, and its code with a check of each.

    The check follows an assignment, or surrounds what is returned, and gets the real value.
    """

    def __init__(self, file, source):
        self.file, self.found, tree = file, {}, ast.parse(source)
        inside = {line for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
                  for line in range(node.lineno, node.end_lineno + 1)}
        self.said = {line: shapes for line, (shapes, _) in margin(source).items()
                     if shapes and line in inside}
        self.code = compile(ast.fix_missing_locations(self.visit(tree)), f"{file}.py", "exec")

    def call(self, node, value):
        call = ast.parse(f"_check({node.end_lineno}, _, locals(), _letters)", mode="eval").body
        call.args[1] = value
        return call

    def visit_FunctionDef(self, node):
        node.body.insert(0, ast.parse("_letters = {}").body[0])         # bound anew in each call
        return self.generic_visit(node)

    def visit_Assign(self, node):
        if node.end_lineno not in self.said:
            return node
        made = ast.parse(ast.unparse(node.targets[0]), mode="eval").body
        return [node, ast.Expr(self.call(node, made))]

    def visit_Return(self, node):
        if node.end_lineno in self.said:
            node.value = self.call(node, node.value)
        return node

    def check(self, line, value, names, letters):
        real = [tuple(getattr(x, "shape", ()))
                for x in (value if isinstance(value, tuple) else (value,))]
        right = len(real) == len(self.said[line]) and all(
            fits(shape, x, names, letters) for shape, x in zip(self.said[line], real))
        text = "" if right else f"is {', '.join(map(str, real))}"
        self.found[line] = self.found.get(line) or text
        return value

    def wrong(self):
        found = {line: self.found.get(line, "is never reached") for line in self.said}
        return [f"{self.file}.py:{line}: ({'), ('.join(self.said[line])}) {text}"
                for line, text in found.items() if text]


def lies(sources, monkeypatch):
    """What the shapes in {"cofi": source, "sparsebert": source} say and is not so, as text."""
    claims, modules = [Claims(file, source) for file, source in sources.items()], {}
    for claim in claims:
        modules[claim.file] = types.ModuleType(claim.file)
        modules[claim.file]._check = claim.check
        monkeypatch.setitem(sys.modules, claim.file, modules[claim.file])
        exec(claim.code, vars(modules[claim.file]))
    go_everywhere(**modules)
    return [lie for claim in claims for lie in claim.wrong()]


def go_everywhere(cofi, sparsebert):
    """Runs every line that claims a shape, masked, unmasked and cut; no two sizes are alike."""
    config = cofi.Config(101, 23, 2, 13, 7, [9] * 5, [17] * 5, 19, labels=list("abcdefgh"))
    bert, teacher, masks = cofi.BERT(config).eval(), cofi.BERT(config).eval(), cofi.Masks(config)
    batch, z = make_batch(6, 11, 101), {g: torch.ones_like(a) for g, a in masks.sample().items()}
    for group, left in ("z_head", 2), ("z_int", 14), ("z_hidn", 10):
        z[group][..., left:] = 0
    small, out_t = cofi.cut(bert, z), teacher(**batch)
    cofi.BERT(dataclasses.replace(config, labels=None, span=True))(**batch)
    cofi.decide(masks, 0.5)
    cofi.lagrangian(masks.sparsity(), 0.5, 0.0, 1.0)
    cofi.pred_loss(torch.ones(6, 1), torch.ones(6, 1), 2.0)
    for model, given, d in (bert, {}, 13), (bert, z, 13), (small, {}, 10):
        states, W_layer = model(**batch, **given).hidden[1:], nn.Linear(d, 13, bias=False)
        for matching in ("free", "ordered", "fixed"):
            cofi.layer_loss(states, out_t.hidden[1:], batch["real"], W_layer,
                            cofi.open_layers(model, given), matching)

    sparsebert.distillation(bert, bert(**batch), teacher, out_t,
                            batch | {"label": torch.zeros(6).long()}, {1: list(range(9))})
    sparsebert.magnitude_mask(torch.randn(24, 40), torch.ones(24, 40).bool(), 0.5, block=8)
    sparsebert.small_dense(bert, 0.5)
    sparsebert.with_csr(bert)(**batch)
    start = np.cumsum([0, 11, 10, 9, 8, 7, 5])
    rows = data.Rows(np.full(50, 9), start, np.ones(6, int), np.zeros(6, int), np.zeros(0))
    head = {"dense": (torch.eye(13), torch.zeros(13)), "norm": (torch.ones(13), torch.zeros(13)),
            "bias": torch.zeros(101)}
    sparsebert.augment(rows, bert, head, 4, {0, 1, 2, 3, 4}, copies=1, share=1.0)
    cofi.remember(teacher, rows, cofi.Settings.of("rte"))(np.arange(6), batch)


def sources():
    return {file: (HERE / f"{file}.py").read_text() for file in ("cofi", "sparsebert")}


def test_shape_comments(monkeypatch):
    """Every shape at the end of a line of the two files is the real one."""
    assert sum(len(size) for size in map(SIZES.get, "BTLndhkf")) == len(
        set().union(*map(SIZES.get, "BTLndhkf"))), "two letters of one size could be exchanged"
    assert lies(sources(), monkeypatch) == []


@pytest.mark.parametrize("file, true, false, lie", [
    ("cofi", "# (B, T, f)", "# (B, T, d)", "(B, T, d) is (6, 11, 17)"),
    ("cofi", "# (B, h, T, T)", "# (B, h, T)", "(B, h, T) is (6, 9, 11, 11)"),
    ("cofi", "# (n, L)", "# (L, n)", "(L, n) is (4, 5)"),
    ("cofi", "# (h k)", "# (h)", "(h) is (63,)"),
    ("cofi", "# (d)\n", "# (d), (d)\n", "(d), (d) is (13,)"),
    ("cofi", "        return x\n", "        return x\n        x = x  # (B, T)\n", "never reached"),
    ("sparsebert", "# (3)", "# (q)", "(q) is (3,)"),
    ("sparsebert", "# (rows / block, columns / block)", "# (rows, columns)", "(rows, columns) is"),
])
def test_a_wrong_shape_comment_is_found(monkeypatch, file, true, false, lie):
    """With its line and both shapes; and no other is found."""
    source = sources()
    before, behind = source[file].split(true, 1)
    source[file] = before + false + behind
    found, = lies(source, monkeypatch)
    line = before.count("\n") + 1 + false.count("\n", 0, -1)
    assert found.startswith(f"{file}.py:{line}: ") and lie in found


# ---- The README's links: each to the line it means -----------------------------------------------

# [`name`:12](file.py#L12 "fragment of the line"), the fragment only where one is wanted
LINK = re.compile(r'\[`([\w.]+)`:\d+\]\(([\w/]+\.py)#L\d+(?: "([^"]*)")?\)')


@functools.cache
def definitions(source):
    """{"Masks.hold": node}: the functions, classes, constants and fields of a file."""
    def enter(body, prefix):
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found[prefix + node.name] = node
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
                found.update({prefix + name.id: node for name in ast.walk(target)
                              if isinstance(name, ast.Name)})
            if isinstance(node, ast.ClassDef):
                enter(node.body, f"{prefix}{node.name}.")

    found = {}
    enter(ast.parse(source).body, "")
    return found


def line_of(source, name, fragment):
    """The line of a definition; with a fragment the first line in it that contains the fragment."""
    node, lines = definitions(source)[name], source.splitlines()
    for i in range(node.lineno, node.end_lineno + 1):
        if fragment and fragment in lines[i - 1]:
            return i
    return node.lineno


def with_lines(text, folder):
    """A text with each of its links set to the line that it means in the files of a folder."""
    def link(old):
        name, file, fragment = old.groups()
        line = line_of((folder / file).read_text(), name, fragment)
        title = f' "{fragment}"' if fragment else ""
        return f"[`{name}`:{line}]({file}#L{line}{title})"

    return LINK.sub(link, text)


def section(title):
    """The lines of a section of the README."""
    text = (HERE / "README.md").read_text()
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0].splitlines()


def test_links_of_the_readme():
    """They name what there is, at its line. If not: python test_cofi.py --guide."""
    text = (HERE / "README.md").read_text()
    for name, file, fragment in LINK.findall(text):
        source = (HERE / file).read_text()
        assert name in definitions(source), f"README.md: {file} has no {name}"
        line = source.splitlines()[line_of(source, name, fragment) - 1]
        assert fragment in line, f"README.md: no line of {name} in {file} contains {fragment!r}"
    assert with_lines(text, HERE) == text, "lines have moved; want python test_cofi.py --guide"


def test_guide_has_every_equation():
    """What § marks in the margin of the code is in the guide, with a test; and the reverse."""
    marked = set()
    for file, source in sources().items():
        for line, (_, tag) in margin(source).items():
            if tag:
                marked.add((f"{file}.py", tag, *[name for name, node in definitions(source).items()
                                                 if node.lineno <= line <= node.end_lineno][-1:]))
    listed = set()
    for row in section("Where to find what"):
        tags = {(file, tag, name) for name, file, tag in LINK.findall(row) if tag.startswith("§")}
        assert not tags or "test_cofi.py#L" in row, f"no test: {row}"
        assert all(tag in row.split("|")[1] for _, tag, _ in tags), f"another name: {row}"
        listed |= tags
    assert listed == marked


def test_ledger_points_at_lines():
    rows = [row for row in section("Where this departs") if row.startswith("| ")]
    rows = [row for row in rows if not row.startswith("| |")]
    assert len(rows) > 25 and all(LINK.search(row) for row in rows)


# ---- Benchmark: a pruning step beside others, and a cut model beside its dense one ---------------


def naive_bert(bert, batch, z=None):
    """(logits, hidden states) of a BERT, written down plainly. z: {group: mask}, or None."""
    c, e, real = bert.config, bert.embeddings, batch["real"]
    drop = functools.partial(F.dropout, p=c.dropout, training=bert.training)

    def norm(part, x):
        if z is None:
            return F.layer_norm(x, (c.d,), part.weight, part.bias, part.eps)
        kept = (z["z_hidn"] > 0).float()
        mean = (x * kept).sum(-1, keepdim=True) / kept.sum()
        var = ((x - mean).square() * kept).sum(-1, keepdim=True) / kept.sum()
        return ((x - mean) / (var + part.eps).sqrt() * part.weight + part.bias) * z["z_hidn"]

    def heads(x):
        return x.view(*real.shape, -1, c.k).transpose(1, 2)

    x = e.word(batch["ids"]) + e.segment(batch["segments"]) + e.position.weight[:real.shape[1]]
    hidden = [drop(norm(e.norm, x))]
    for l, (mha, ffn) in enumerate((layer.mha, layer.ffn) for layer in bert.layers):
        x = hidden[-1]
        if z is None or z["z_mha"][l] > 0 and z["z_head"][l].any():
            q, k, v = (heads(linear(x)) for linear in (mha.query, mha.key, mha.value))
            scores = (q @ k.transpose(2, 3) / math.sqrt(c.k)).masked_fill(~real[:, None, None],
                                                                          -math.inf)
            y = drop(scores.softmax(-1)) @ v
            y = y if z is None else y * z["z_head"][l][:, None, None]
            y = mha.out(y.transpose(1, 2).reshape(x.shape[:2] + (-1,)))
            y = y if z is None else y * z["z_mha"][l] * z["z_hidn"]
            x = norm(mha.norm, x + drop(y))
        if z is None or z["z_ffn"][l] > 0 and z["z_int"][l].any():
            y = F.gelu(ffn.up(x))
            y = ffn.down(y if z is None else y * z["z_int"][l])
            y = y if z is None else y * z["z_ffn"][l] * z["z_hidn"]
            x = norm(ffn.norm, x + drop(y))
        hidden.append(x)
    return bert.classifier(drop(torch.tanh(bert.pooler(x[:, 0])))), hidden


def naive_loss(student, teacher, W_layer, batch, z, cfg):
    """The loss of the network (classes, and free or ordered matching), term by term."""
    with torch.no_grad():
        logits_t, H_t = naive_bert(teacher, batch)
    logits, H_s = naive_bert(student, batch, z)
    p_s, p_t = ((x / cfg.temperature).softmax(-1) for x in (logits, logits_t))
    pred = (p_t * (p_t.log() - p_s.log())).sum(-1).mean() * cfg.temperature**2

    def distance(i, j):
        return (W_layer(H_s[j]) - H_t[i]).square().mean(-1)[batch["real"]].mean()

    is_open, limit, layers = cofi.open_layers(student, z), len(H_s), 0.0
    for i in reversed(cofi.teacher_layers(len(H_t) - 1)):
        with torch.no_grad():
            found = {j: distance(i, j) for j in range(1, limit) if is_open[j - 1]}
        if found:
            m = min(found, key=found.get)
            layers = layers + distance(i, m)
            limit = m if cfg.matching == "ordered" else limit
    return cfg.pred_weight * pred + cfg.layer_weight * layers


@pytest.mark.parametrize("matching", ["free", "ordered"])
def test_naive_step_has_our_loss(matching):
    """...and our gradient, whatever the padding: that is what makes it fair to compare the two."""
    student, teacher, z = make_bert(ODD), make_bert(ODD), make_masks(ODD)
    W_layer, batch = nn.Linear(13, 13, bias=False), make_batch()
    cfg = cofi.Settings(matching=matching)
    longer = {name: F.pad(x, (0, 7)) for name, x in batch.items()}
    with torch.no_grad():
        out_t = teacher(**batch)
    ours, _, _ = cofi.objective(student(**batch, **z), out_t, torch.zeros(5).long(), batch["real"],
                                cfg, W_layer, cofi.open_layers(student, z))
    naive, weights = naive_loss(student, teacher, W_layer, longer, z, cfg), [*student.parameters()]
    close(naive, ours)
    for got, want in zip(*(torch.autograd.grad(loss, weights, materialize_grads=True)
                           for loss in (naive, ours))):
        close(got, want, atol=1e-4)


def naive_step(student, teacher, W_layer, masks, cfg, length):
    """batch -> one step as one would write it down first: in fp32, every row padded to `length`."""
    weights = [p for part in (student, W_layer) for p in part.parameters() if p.requires_grad]
    device = W_layer.weight.device
    lambdas = [torch.zeros((), device=device, requires_grad=True) for _ in range(2)]
    descent = torch.optim.AdamW([{"params": weights}, {"params": masks.parameters(), "lr": 0.01}],
                                cfg.lr, weight_decay=0.0)
    ascent = torch.optim.SGD(lambdas, cfg.lambda_lr, maximize=True)

    def step(batch):
        batch = {name: F.pad(x, (0, length - x.shape[1]))
                 for name, x in cofi.to(device, batch)[0].items()}
        loss = naive_loss(student, teacher, W_layer, batch, masks.sample(), cfg)
        loss = loss + cofi.lagrangian(masks.sparsity(), 0.0, *lambdas)
        descent.zero_grad()
        ascent.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        descent.step()
        ascent.step()
        masks.hold()

    return step


def fine_tuning_step(config, cfg, device):
    """(batch, frozen) -> one step of fine-tuning the BERT of the package `transformers`."""
    import transformers
    bert = transformers.BertForSequenceClassification(transformers.BertConfig(
        vocab_size=config.vocab, hidden_size=config.d, num_hidden_layers=len(config.heads),
        num_attention_heads=config.heads[0], intermediate_size=config.ffn[0],
        max_position_embeddings=config.positions, num_labels=len(config.labels))).to(device).train()
    descent = torch.optim.AdamW(bert.parameters(), cfg.lr, fused=True)

    def step(batch, frozen=False):
        bert.bert.embeddings.requires_grad_(not frozen)
        x, label = cofi.to(device, batch)
        with torch.autocast(device.type, torch.bfloat16, enabled=cofi.has_bf16(device)):
            loss = bert(input_ids=x["ids"], token_type_ids=x["segments"],
                        attention_mask=x["real"].long(), labels=label).loss
        descent.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(bert.parameters(), 1.0)
        descent.step()

    return step


def teacher_pass(teacher, device):
    """batch -> what keeping the teacher's answers from epoch to epoch could save of a step."""
    @torch.no_grad()
    def step(batch):
        with torch.autocast(device.type, torch.bfloat16, enabled=cofi.has_bf16(device)):
            teacher(**cofi.to(device, batch)[0])

    return step


class Turns:
    """In the place of a journal it times the steps of cofi.train, and others on the same batches.

    others: {name: step}. `turns` are on batches that are spread evenly over the lengths of those
    of an epoch, so that a mean is about the epoch's. epoch: its batches. Before them one turn warms
    up; on a GPU, where every new length has a first time, as many as follow.
    """

    def __init__(self, others, turns, epoch, device):
        self.others, self.turns, self.epoch = others, turns, epoch
        cuda = device.type == "cuda"
        self.wait, self.warm = (torch.cuda.synchronize, turns) if cuda else (int, 1)
        self.times, self.tokens = {name: [] for name in ("a pruning step", *others)}, []

    def begin(self, stage, things):
        return 0, {}

    def due(self):
        return False

    def steps(self, batches, stage, total, done):
        epoch = sorted(itertools.islice(batches, self.epoch), key=lambda x: x[1]["ids"].shape[1])
        spread = [epoch[int((i + 0.5) * len(epoch) / self.turns)] for i in range(self.turns)]
        for step, (numbers, batch) in enumerate([*spread[:self.warm], *spread]):
            stamps = [time.perf_counter()]
            yield step + 1, (numbers, batch)    # and cofi.train does it
            self.wait()
            stamps.append(time.perf_counter())
            for other in self.others.values():
                other(batch)
                self.wait()
                stamps.append(time.perf_counter())
            if step >= self.warm:
                self.tokens.append(batch["ids"].shape[1])
                for seen, passed in zip(self.times.values(), np.diff(stamps)):
                    seen.append(passed)


def multiply_adds(config, T):
    """Of the encoder for a row of T tokens: its matrices, and attention of every token to every."""
    return sum(2 * T * (config.d * (2 * config.k * h + f) + T * config.k * h)
               for h, f in zip(config.heads, config.ffn))


def thin_masks(config, t):
    """Masks of sparsity t as the paper found them: d nearly whole, few heads, FFNs everywhere."""
    ones = {group: torch.ones_like(a) for group, a in cofi.Masks(config).log_alpha().items()}
    z, L = {group: mask.clone() for group, mask in ones.items()}, len(config.heads)
    z["z_hidn"][len(z["z_hidn"]) * 95 // 96:], z["z_int"][:], z["z_head"][:] = 0, 0, 0
    z["z_head"][:L * 5 // 6, 0] = 1                         # one in each layer but the last sixth
    left = (1 - t) * cofi.size(config.k, **ones) - cofi.size(config.k, **z)
    z["z_int"][:, :int(left / (2 * L * z["z_hidn"].sum()))] = 1
    return z


def benchmark_step(cfg, config, device, rows, turns):
    """Prints what a pruning step takes beside others."""
    student, teacher, W_layer, masks = parts = [part.to(device) for part in (
        cofi.BERT(config), cofi.BERT(config).eval(), nn.Linear(config.d, config.d, bias=False),
        cofi.Masks(config))]
    student.embeddings.requires_grad_(False)
    length = min(cfg.max_length, config.positions)
    others = {"its teacher's pass, in one epoch": teacher_pass(teacher, device),
              f"the same, naively: fp32, {length} tokens": naive_step(*parts, cfg, length)}
    if importlib.util.find_spec("transformers"):
        others["fine-tuning in transformers"] = step = fine_tuning_step(config, cfg, device)
        others["the same, embeddings frozen"] = functools.partial(step, frozen=True)
    else:
        print("the package transformers is not installed: its fine-tuning step is left out")
    turns = Turns(others, turns, math.ceil(len(rows.train) / cfg.batch_size), device)
    cofi.train("prune", student, rows, cfg, turns, cofi.remember(teacher, rows.train, cfg), W_layer,
               masks)

    ours, *_ = turns.times.values()
    operations = [2 * 3 * cfg.batch_size * multiply_adds(config, T) for T in turns.tokens]
    print(f"{cfg.task}, {cfg.batch_size} rows, {np.mean(turns.tokens):.0f} tokens (mean of "
          f"{len(ours)} batches), {cofi.device_name(device)}, bf16: {cofi.has_bf16(device)}; "
          f"{sum(operations) / sum(ours) / 1e12:.3g} TFLOP/s of encoder matrices while pruning"
          f"\n\n{'mean of':38}seconds  to pruning\n" + "\n".join(
              f"{name:38}{np.mean(seen):7.4f}  {sum(seen) / sum(ours):10.2f}"
              for name, seen in turns.times.items()))
    if device.type == "cuda":
        print(f"at most {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB, all of these together")


def benchmark_cut(config, device, length):
    """Prints how much faster two networks of sparsity 95 % are than the dense one."""
    dense, bf16 = cofi.BERT(config).to(device), cofi.has_bf16(device)
    for kind, z in (("thin everywhere", thin_masks(config, 0.95)),
                    ("at random", cofi.decide(random_log_alpha(config), 0.95))):
        small = cofi.cut(dense, {group: mask.to(device) for group, mask in z.items()})
        ideal = multiply_adds(config, length) / multiply_adds(small.config, length)
        print(f"\ncut at 95 %, {kind}: d {small.config.d}, heads {small.config.heads}, FFN units "
              f"{small.config.ffn}\n1/{ideal:.1f} of the multiply-adds at length {length}")
        for name in ["fp32"] + ["TF32"] * (device.type == "cuda") + ["bf16"] * bf16:
            torch.set_float32_matmul_precision("high" if name == "TF32" else "highest")
            with torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16"):
                faster = cofi.speedup(dense, small, (1, 32, 128), length,
                                      seconds=device.type == "cuda")
            print(f"{name}  " + "".join(f"   {x:.1f}x as fast at batch {rows}"
                                        for rows, x in faster.items()))


def benchmark(model, task, batch_size, threads, turns, device):
    """A pruning step, and cut models, each in turn with what it is compared with.

    Weights are random, which does not change the time.
    """
    cfg = dataclasses.replace(cofi.Settings.of(task), model=model, batch_size=batch_size,
                              threads=threads, start=0.0, device=device, prune_epochs=1e4)
    device, config, tokenizer = cofi.set_up(cfg)
    rows = cofi.load_task(task, tokenizer, min(cfg.max_length, config.positions))
    if rows.span or not rows.names:
        raise BadInput(f"--task {task}: want one with classes")
    config = dataclasses.replace(config, labels=rows.names)
    benchmark_step(cfg, config, device, rows, turns)
    benchmark_cut(config, device, min(128, config.positions))


def test_benchmark_runs(capsys):
    assert main(["--benchmark", "--turns", "2"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"naively.* 0\.\d+ +\d+\.\d\d\n", printed) and "at batch 128" in printed


def test_the_thin_model_of_the_benchmark():
    """BERT-base's counts in the README are by this: 95.0 %, and never under it."""
    config = dataclasses.replace(MINILM, d=768, k=64, heads=[12] * 12, ffn=[3072] * 12)
    z = thin_masks(config, 0.95)
    assert [int(z[name].sum()) for name in ("z_hidn", "z_head", "z_int")] == [760, 10, 12 * 126]
    assert 0.95 <= cofi.Masks(config).sparsity(z) < 0.9501


# ---- Assignments ---------------------------------------------------------------------------------


class Part(NamedTuple):
    file: str
    write: dict               # {function: hint}


PARTS = {
    1: Part("cofi.py", {
        "sample_z": "logit(u) is logistic noise. Add log_alpha, divide by BETA, take the sigmoid, "
                    "stretch it from [0, 1] to [LEFT, RIGHT], clamp it back.",
        "p_open": "above which value of the sigmoid is the stretched one positive? Solve for the "
                  "noise, whose distribution function is the sigmoid.",
        "soft_z": "no noise: the sigmoid of log_alpha / BETA, sharpened by 0.8."}),
    2: Part("cofi.py", {
        "Norm.forward": "sums over x * kept instead of means over x, divided by the number kept.",
        "MHA.split": "unflatten the last dimension, then swap it with T.",
        "MHA.scores": "split(query) times split(key) transposed, over the square root of k.",
        "MHA.forward": "softmax, dropout, times split(value); z_head here; heads side by side "
                       "again; out; z_mha and z_hidn; then dropout, residual and norm.",
        "FFN.forward": "up, gelu, z_int, down, z_ffn, z_hidn; then dropout, residual and norm.",
        "Layer.forward": "a sub-layer that is None is skipped; one that is not alive gives x, by "
                         "torch.where, so that no branch depends on the data."}),
    3: Part("cofi.py", {
        "Masks.sparsity": "the size with these masks over the size with masks of ones.",
        "size": "torch.einsum: its letters are the subscripts of the sum.",
        "encoder_parameters": "what has two dimensions among the parameters of bert.layers.",
        "lagrangian": "linear in s - t, plus quadratic."}),
    4: Part("cofi.py", {
        "pred_loss": "F.kl_div wants log p of the student first, then p of the teacher; "
                     "batchmean divides by rows only. One logit: F.mse_loss.",
        "match": "walk i from the last to the first; what may not be chosen is infinitely far; "
                 "after a match, only layers below it may be chosen.",
        "layer_loss": "distance (n, L) first, without gradient; then match; then the same squared "
                      "error again, with gradient, for the layers matched."}),
    5: Part("cofi.py", {
        "keep_expected": "round the sum of p along each row; place says who is among the first.",
        "fold": "scale by diag(rows) and diag(columns), then take the rows and columns above 0.",
        "fold_norm": "multiply by z_hidn, then take what is open.",
        "fold_mha": "a head is k rows of query, key and value, and k columns of out.",
        "fold_ffn": "a unit is a row of up and a column of down."}),
    6: Part("sparsebert.py", {
        "magnitude_mask": "a score for each block, -1 where nothing is left of it; topk of all "
                          "scores; a block's answer repeated for its weights.",
        "cubic": "1 at t = 0 of what is still to be pruned, 0 at t = 1, by a cube.",
        "hidden_loss": "a mean over d, then over the tokens that are real.",
        "attention_loss": "a pair counts if both of its tokens are real."}),
}


def blank(source, hints, what):
    """The source with functions reduced to a docstring, a hint and an error that says what."""
    nodes, lines = definitions(source), source.splitlines()
    for name in sorted(hints, key=lambda name: -nodes[name].lineno):
        docstring, indent = nodes[name].body[0], " " * nodes[name].body[0].col_offset
        hint = textwrap.wrap(f"# Hint: {hints[name]}", 100, initial_indent=indent,
                             subsequent_indent=f"{indent}# ")
        lines[docstring.end_lineno:nodes[name].end_lineno] = [
            *hint, f'{indent}raise NotImplementedError("{what}: {name}")']
    return "\n".join(lines) + "\n"


def write_assignment(folder, numbers):
    """A copy of the project in which the functions of these parts are still to be written."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"--assignment {folder}: there is something already; want a new folder")
    shutil.copytree(HERE / "data", folder / "data", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("requirements.txt", "LICENSE"):
        shutil.copy(HERE / name, folder)
    for file in ("cofi.py", "sparsebert.py", "test_cofi.py"):
        source = (HERE / file).read_text()
        for number in numbers:
            if PARTS[number].file == file:
                source = blank(source, PARTS[number].write, f"part {number}")
        if file == "test_cofi.py":
            source = blank(source, {"answers": "python test_cofi.py --answer 1a 0.5"}, "not here")
        (folder / file).write_text(source)
    text = (HERE / "README.md").read_text()
    (folder / "README.md").write_text(with_lines(text, folder))


class Outcomes:
    """A plugin of pytest that keeps {number of the part: whether its tests passed, as a set}."""

    def __init__(self):
        self.passed = {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            number, = (int(word[4:]) for word in report.keywords if re.fullmatch(r"part\d", word))
            self.passed.setdefault(number, set()).add(report.passed)


@pytest.mark.parametrize("to_write", [(1,), (2,), (3,), (4,), (5,), (6,), (5, 6), (4, 5, 6),
                                      (3, 4, 5, 6), (2, 3, 4, 5, 6), (1, 2, 3, 4, 5, 6)])
def test_assignment(tmp_path, monkeypatch, to_write):
    """Where a part is not written all of its tests fail, and no test of another part does."""
    write_assignment(tmp_path / "copy", to_write)
    for name in [*sys.modules]:
        if name.split(".")[0] in ("cofi", "sparsebert", "data", "test_cofi"):
            monkeypatch.delitem(sys.modules, name)          # the copy has its own
    monkeypatch.setattr(sys, "path", sys.path[:])
    outcomes, marks = Outcomes(), " or ".join(f"part{number}" for number in PARTS)
    pytest.main([str(tmp_path / "copy"), "-m", marks, "-s", "-q", "--tb=no", "--assert=plain",
                 "-p", "no:cacheprovider"], plugins=[outcomes])
    assert outcomes.passed == {number: {number not in to_write} for number in PARTS}


def test_assignments_are_short():
    """No function to write has more than 15 lines, comments included; the README links each."""
    text = "\n".join(section("Assignments"))
    for part_ in PARTS.values():
        source = (HERE / part_.file).read_text()
        for name in part_.write:
            node = definitions(source)[name]
            body = source.splitlines()[node.body[0].end_lineno:node.end_lineno]
            assert ast.get_docstring(node) and sum(map(bool, map(str.strip, body))) <= 15, name
            assert f"[`{name}`:" in text, f"README.md, Assignments: no link to {name}"


def answers():
    """{question of the README: number}."""
    p, head, unit = cofi.p_open(torch.tensor([0.0, math.log(0.01)])).tolist(), 4 * 64 * 768, 2 * 768
    kl = sum(q * math.log(2 * q) for q in torch.tensor([1.0, 0.0]).softmax(0).tolist())
    budget = 0.05 * 84_934_656
    return {"1a": 2 * p[0] - 1, "1b": 2 / 3 * math.log(0.1 / 1.1), "1c": 3072 * p[1],
            "2a": 32 * 12 * 128 * 128, "2b": (12 * head + 3072 * unit) / (2 * 768),
            "3a": head, "3b": head / unit, "3c": 2 / 3 * (1 - p[0]),     # the FFN: 2/3 of a layer
            "4a": 4 * kl, "4b": math.comb(12, 4),
            "5a": (budget - 10 * 4 * 64 * 760) // (2 * 760),
            "5b": (1 / 12.1 - 1 / 20) / (1 - 1 / 20), "5c": (1 / 5.2 - 1 / 20) / (1 - 1 / 20),
            "6a": sparsebert.how_many(768 * 3072, 0.95), "6b": 32 / (1 + 0.05 * 32),
            "6c": sparsebert.cubic(0.5, 1.0)}


DIGESTS = {
    "1a": "25072c96", "1b": "2bca10a3", "1c": "4167cb8e", "2a": "45deb5bf",
    "2b": "4694556c", "3a": "2db99fbd", "3b": "452575d2", "3c": "4bb91a01",
    "4a": "aefffd81", "4b": "5d43c9c2", "5a": "f62655df", "5b": "fabac012",
    "5c": "9fb4ab29", "6a": "36719e27", "6b": "551e08fa", "6c": "fbb52822"}


def digest(question, number):
    """What is kept of an answer, of which three digits count."""
    return hashlib.sha256(f"{question} {number:.3g}".encode()).hexdigest()[:8]


def test_answers():
    assert {question: digest(question, number) for question, number in answers().items()} == DIGESTS
    assert re.findall(r"\*\*(\d[a-c])\*\*", "\n".join(section("Assignments"))) == sorted(DIGESTS)


def test_command_line_of_the_course(tmp_path, capsys):
    assert main(["--answer", "3b", "128"]) == 0 and "right" in capsys.readouterr().out
    assert main(["--answer", "3b", "127"]) == 1 and "not yet" in capsys.readouterr().out
    (tmp_path / "mine.py").write_text("")
    for bad in ["--answer", "9z", "1"], ["--answer", "3b", "x"], ["--assignment", str(tmp_path)]:
        assert main(bad) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("test_cofi: --a") and "\n" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def answer(question, number):
    """Prints whether the number is the answer. Returns the exit code."""
    if question not in DIGESTS:
        raise BadInput(f"--answer {question}: want one of {' '.join(DIGESTS)}")
    try:
        right = digest(question, float(number.replace(",", ""))) == DIGESTS[question]
    except ValueError as error:
        raise BadInput(f"--answer {question} {number}: want a number such as 0.125") from error
    print(f"{question}: {'right' if right else 'not yet'} (three digits count)")
    return 0 if right else 1


def main(arguments=None):
    parser = argparse.ArgumentParser(description="The course work, a benchmark; pytest runs tests.")
    parser.add_argument("--guide", action="store_true", help="set the README's links to the lines")
    parser.add_argument("--assignment", type=Path, metavar="FOLDER", help="write a copy to fill in")
    parser.add_argument("--answer", nargs=2, metavar=("QUESTION", "NUMBER"), help="check an answer")
    parser.add_argument("--benchmark", action="store_true", help="time a pruning step, a cut model")
    parser.add_argument("--model", default=str(data.TOY), help="whose shape is timed")
    parser.add_argument("--task", default="toy", choices=data.TASKS, help="whose rows are read")
    parser.add_argument("--batch_size", type=int, default=32, help="rows of a pruning step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--turns", type=int, default=10, help="steps of each kind")
    given = parser.parse_args(arguments)
    try:
        if given.benchmark:
            benchmark(given.model, given.task, given.batch_size, given.threads, given.turns,
                      given.device)
        if given.guide:
            readme = HERE / "README.md"
            readme.write_text(with_lines(readme.read_text(), HERE))
        if given.assignment:
            write_assignment(given.assignment, PARTS)
        return answer(*given.answer) if given.answer else 0
    except BadInput as error:
        print(f"test_cofi: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
