"""The specification of cofi.py and sparsebert.py: each equation against an independent oracle.

    python -m pytest -q                                 all tests, offline
    python -m pytest -q -m "not slow"                   all that take less than two seconds
    python -m pytest -q test_cofi.py -k expected_size   one equation
    python -m pytest -q test_cofi.py -m part3           one part of the assignment

    python test_cofi.py --guide                         list every equation with its test
    python test_cofi.py --assignment FOLDER             write a copy of the project to fill in
    python test_cofi.py --grade SUBMISSION              grade what students hand in
    python test_cofi.py --answer 3b 12.5                check an answer to question 3b
    python test_cofi.py --benchmark                     time a pruning step and pruned models

A failing test prints expected, got and the likely mistake. All other tests are in data/tests/.
"""
import copy
import doctest
import functools
import itertools
import json
import math
import sys
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cofi
import sparsebert
from data.harness import report
from data.harness.console import exit_code
from data.harness.journal import Journal
from data.tasks import TOY
from data.tests.common import (BERT_BASE, ODD, TINY, assert_close, assert_gradient, explained,
                               make_batch, make_bert, make_masks, match_by_loops, part,
                               random_log_alpha, reference_forward, size_by_loops, slow)

SPAN = replace(TINY, id2label=None, is_span=True)


@pytest.fixture(autouse=True)
def fixed_seed_and_short_measurements(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(report, "measure_speedup",
                        functools.partial(report.measure_speedup, length=16, seconds=0.0))


# ---- 1. BERT -------------------------------------------------------------------------------------


@part(2)
def test_norm_is_the_layernorm_of_what_is_kept():
    """MaskedLayerNorm equals F.layer_norm of the kept dimensions, times z_hidn."""
    norm = make_bert(replace(ODD, layer_norm_eps=0.1)).layers[0].mha.norm
    z, x = make_masks(ODD)["z_hidn"], torch.randn(5, 13)
    kept = z > 0
    expected = F.layer_norm(x[:, kept], [int(kept.sum())], norm.weight[kept], norm.bias[kept], 0.1)
    assert_close(norm(x), F.layer_norm(x, (13,), norm.weight, norm.bias, norm.eps),
                 "without z_hidn it is an ordinary LayerNorm")
    assert_close(norm(x, kept.float())[:, kept], expected, "mean and variance are sums over the "
                 "kept dimensions, divided by their number")
    assert_close(norm(x, kept.float())[:, ~kept], 0 * x[:, ~kept], "a closed dimension is 0: the "
                 "bias must be masked as well")
    assert_close(norm(x, 0 * z), 0 * x, "with every dimension closed: 0, not NaN")
    assert_close(norm(x, z)[:, kept], expected * z[kept], "soft masks: z_hidn > 0 is kept; z_hidn "
                 "multiplies last, weight and bias")


@part(2)
def test_attention_scores():
    """scores[b, h, i, j] = q_i k_j / sqrt(k), in nested loops over examples, heads and tokens."""
    bert, x = make_bert(ODD), torch.randn(2, 5, 13)
    mha, expected = bert.layers[0].mha, torch.zeros(2, 3, 5, 5)
    queries, keys = (F.linear(x, m.weight, m.bias) for m in (mha.query, mha.key))
    for b, h, i, j in itertools.product(range(2), range(3), range(5), range(5)):
        terms = [queries[b, i, 7 * h + n] * keys[b, j, 7 * h + n] for n in range(7)]
        expected[b, h, i, j] = sum(terms) / math.sqrt(7)
    assert_close(mha.split_heads(queries)[1, 1, 3], queries[1, 3, 7:14],
                 "split_heads: head h has k columns, from h k on; then swap heads and tokens")
    assert_close(mha.scores(x), expected, "queries times keys; divide by sqrt(k)")


@part(2)
def test_layer_is_the_one_of_torch():
    """Without masks a layer equals nn.TransformerEncoderLayer with the same weights."""
    ours = make_bert().layers[0]
    theirs = nn.TransformerEncoderLayer(16, 4, 24, activation="gelu", batch_first=True,
                                        norm_first=False, layer_norm_eps=1e-12).eval()
    qkv = (ours.mha.query, ours.mha.key, ours.mha.value)
    for a, b in ((theirs.self_attn.out_proj, ours.mha.out), (theirs.norm1, ours.mha.norm),
                 (theirs.linear1, ours.ffn.up), (theirs.linear2, ours.ffn.down),
                 (theirs.norm2, ours.ffn.norm)):
        a.load_state_dict(b.state_dict())
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(torch.cat([linear.weight for linear in qkv]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([linear.bias for linear in qkv]))
    x, mask = torch.randn(5, 11, 16), make_batch()["attention_mask"]
    assert_close(ours(x, mask)[mask], theirs(x, src_key_padding_mask=~mask)[mask],
                 "norm(x + sub-layer(x)); softmax is over the last T, without padding; gelu is "
                 "exact, with erf")


@part(2)
@pytest.mark.parametrize("name", ["mha", "ffn"])
def test_dropout(name):
    """In training: on the attention, and on what a sub-layer adds to x. With equal noise."""
    module, x = getattr(make_bert(ODD).layers[0], name).train(), torch.randn(2, 5, 13)
    mask = (torch.ones(2, 5).bool(),) if name == "mha" else ()
    torch.manual_seed(1)
    if name == "mha":
        heads = F.dropout(module.scores(x).softmax(-1)) @ module.split_heads(module.value(x))
        y = module.out(heads.transpose(1, 2).flatten(2))
    else:
        y = module.down(F.gelu(module.up(x)))
    expected = module.norm(x + F.dropout(y))
    module.dropout.p = 0.5
    torch.manual_seed(1)
    assert_close(module(x, *mask), expected, "dropout: on the attention (MHA), and before the "
                 "residual connection and the norm")


@part(2)
@pytest.mark.parametrize("name", ["mha", "ffn"])
def test_masks_keep_the_precision(name):
    """A mask of higher precision than x does not raise that of x: fp32 takes the memory of two
    bf16 (here: fp64 and fp32).
    """
    module, x, z = getattr(make_bert(ODD).layers[0], name), torch.randn(2, 5, 13), make_masks(ODD)
    z = {group: mask.double() for group, mask in z.items()} | {"z_hidn": z["z_hidn"]}
    with explained("multiply by masks in the precision of x: apply_masks does"):
        if name == "mha":
            module(x, torch.ones(2, 5).bool(), z["z_mha"][0], z["z_head"][0], z["z_hidn"])
        else:
            module(x, z["z_ffn"][0], z["z_int"][0], z["z_hidn"])


@part(2)
def test_mha_with_masks():
    """MHA(X) = z_mha sum_i z_head[i] Att_i(X), times z_hidn: head by head."""
    mha, z = make_bert(ODD).layers[0].mha, make_masks(ODD)
    z_mha, z_head, z_hidn = z["z_mha"][0], z["z_head"][0], z["z_hidn"]
    x = torch.randn(5, 13) * z_hidn
    y = mha.out.bias.repeat(5, 1)
    for i in range(3):
        rows = slice(7 * i, 7 * i + 7)
        q, k, v = (x @ f.weight[rows].T + f.bias[rows] for f in (mha.query, mha.key, mha.value))
        attention = (q @ k.T / math.sqrt(7)).softmax(-1)
        y = y + z_head[i] * (attention @ v @ mha.out.weight[:, rows].T)
    assert_close(mha(x[None], torch.ones(1, 5).bool(), z_mha, z_head, z_hidn)[0],
                 mha.norm(x + z_mha * y * z_hidn, z_hidn),
                 "z_head comes before out; z_mha and z_hidn after it and its bias, not on x")


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
    assert_close(ffn(x, z_ffn, z_int, z_hidn), ffn.norm(x + z_ffn * y * z_hidn, z_hidn),
                 "z_int comes after gelu, z_ffn and z_hidn after down; gelu is exact, with erf")


@part(2)
@pytest.mark.parametrize("name", ["mha", "ffn"])
def test_gradients_of_a_sublayer(name):
    """In x and in each of its masks: those of difference quotients."""
    module, z = getattr(make_bert(ODD).layers[0], name), {}
    for group, shape in ("layer", ()), ("units", 3 if name == "mha" else 17), ("hidn", 13):
        z[group] = 0.2 + 0.6 * torch.rand(shape)
    mask, inputs = (torch.ones(2, 5).bool(),) * (name == "mha"), {"x": torch.randn(2, 5, 13), **z}
    for changed in inputs:
        def run(value):
            x, *masks = (inputs | {changed: value}).values()
            return module(x, *mask, *masks)
        assert_gradient(run, inputs[changed], "use operations of torch, without detach or .data")


@part(2)
@pytest.mark.parametrize("soft", [False, True])
def test_bert_with_masks(soft):
    """The logits of the network equal those of the reference; masks of ones change nothing."""
    bert, batch, z = make_bert(ODD), make_batch(), make_masks(ODD, soft)
    assert_close(bert(**batch, **z).logits, reference_forward(bert, batch, z), "does the "
                 "attention mask exclude padding? is a dead sub-layer the identity?", atol=1e-4)
    ones = {group: torch.ones_like(mask) for group, mask in z.items()}
    assert_close(bert(**batch, **ones).logits, bert(**batch).logits, "is a mask added?")


def test_embeddings_and_head():
    """X = LayerNorm(word + position + token type); logits = classifier(tanh(pooler(X_0)))."""
    bert, batch = make_bert(), make_batch()
    e, out = bert.embeddings, bert(**batch)
    x = e.word.weight[batch["input_ids"]] + e.token_type.weight[batch["token_type_ids"]]
    x = x + e.position.weight[:11]
    x = (x - x.mean(-1, keepdim=True)) / x.std(-1, correction=0, keepdim=True)
    assert_close(out.hidden_states[0], x * e.norm.weight + e.norm.bias)
    pooled = torch.tanh(out.hidden_states[-1][:, 0] @ bert.pooler.weight.T + bert.pooler.bias)
    assert_close(out.logits, pooled @ bert.classifier.weight.T + bert.classifier.bias)
    assert len(out.hidden_states) == 1 + 3


@part(2)
@pytest.mark.parametrize("absent", ["mha", "ffn"])
def test_sublayer_that_is_absent(absent):
    """In a pruned network a sub-layer may be None: it is skipped."""
    layer, x, mask = make_bert(ODD).layers[0], torch.randn(2, 5, 13), torch.ones(2, 5).bool()
    expected = layer.ffn(x) if absent == "mha" else layer.mha(x, mask)
    setattr(layer, absent, None)
    with explained("a sub-layer that is None is skipped"):
        assert_close(layer(x, mask), expected, "a sub-layer that is None is skipped")


@part(2)
@pytest.mark.parametrize("dead", ["z_mha", "z_head", "z_ffn", "z_int"])
def test_dead_sublayer_is_the_identity(dead):
    """A sub-layer is dead if its own mask is closed, or the masks of all its units are."""
    layer = make_bert(ODD).layers[0]
    z = {group: mask[0] for group, mask in make_masks(ODD, soft=False).items()}
    z[dead] = torch.zeros_like(z[dead])
    z_hidn, x, every_token = torch.ones(13), torch.randn(2, 5, 13), torch.ones(2, 5).bool()
    got = layer(x, every_token, z["z_mha"], z["z_head"], z["z_ffn"], z["z_int"], z_hidn)
    expected = layer.mha(x, every_token, z["z_mha"], z["z_head"], z_hidn)
    if dead in ("z_mha", "z_head"):
        expected = layer.ffn(x, z["z_ffn"], z["z_int"], z_hidn)
    assert_close(got, expected, "a dead sub-layer returns x: no bias, no LayerNorm")


def test_span_head():
    """A span is two choices among the tokens, its start and its end; the losses are their means."""
    bert, batch = make_bert(SPAN), make_batch()
    out, labels = bert(**batch), torch.tensor([[1, 2], [0, 0], [2, 2], [1, 1], [0, 2]])
    logits_t = make_bert(SPAN)(**batch).logits
    loss = kl = 0.0
    for b in range(5):
        n = int(batch["attention_mask"][b].sum())
        for which in range(2):
            logits = bert.classifier(out.hidden_states[-1][b, :n])[:, which]
            assert_close(out.logits[b, which, :n], logits)
            assert out.logits[b, which].softmax(-1)[n:].sum() == 0      # no padding
            loss -= torch.log_softmax(logits, 0)[labels[b, which]] / 10
            p_t, p_s = (x.div(2).softmax(0) for x in (logits_t[b, which, :n], logits))
            kl += sum(p_t[i] * (p_t[i] / p_s[i]).log() for i in range(n)) * 4 / 10
    assert_close(cofi.label_loss(out.logits, labels), loss)
    assert_close(cofi.pred_loss(out.logits, logits_t, 2.0), kl)
    assert cofi.pred_loss(out.logits, out.logits, 2.0).abs() < 1e-6


# ---- 2. Hard concrete ----------------------------------------------------------------------------


@part(1)
def test_hard_concrete():
    """z = clamp(sigma (r - l) + l), sigma = sigmoid((logit u + log_alpha) / beta); its gradient."""
    for a, u, hint in ((0.0, 0.5, "logit u is 0 here, and sigma .5: multiply by r - l, then add l"),
                       (0.4, 0.5, "logit u is 0: log_alpha is added to it, beta divides the sum"),
                       (0.0, 0.3, "log_alpha is 0 here: the noise is logit u, divided by beta"),
                       (0.4, 0.3, "beta divides the sum of logit u and log_alpha"),
                       (-9.0, 0.3, "clamp to 0"), (9.0, 0.3, "clamp to 1")):
        sigma = 1 / (1 + math.exp(-(math.log(u / (1 - u)) + a) / (2 / 3)))
        z = cofi.sample_z(torch.tensor([a]), torch.tensor([u]))
        assert_close(z, [min(max(1.2 * sigma - 0.1, 0), 1)], hint)
    log_alpha = torch.tensor([0.4, -9.0, 9.0], requires_grad=True)
    cofi.sample_z(log_alpha, torch.full((3,), 0.3)).sum().backward()
    sigma = 1 / (1 + math.exp(-(math.log(0.3 / 0.7) + 0.4) / (2 / 3)))
    assert_close(log_alpha.grad, torch.tensor([1.2 * sigma * (1 - sigma) * 1.5, 0.0, 0.0]),
                 "the value is right, its gradient is not: is every operation one of torch?")


@part(1)
def test_noise_is_never_0_or_1():
    """Of a million numbers with this seed one is 0: logit(0) is -inf, and -inf + inf is NaN."""
    torch.manual_seed(12)
    z = cofi.sample_z(torch.full((1_000_000,), torch.inf))
    assert_close(z.min(), 1.0, "draw u from [EPS, 1 - EPS]: a mask that is switched off has "
                 "log_alpha = inf and stays 1")


@part(1)
@pytest.mark.parametrize("log_alpha", [-4.0, -1.0, 0.0, 2.0, 4.0])
def test_keep_prob(log_alpha):
    """P(z > 0), and on the other side P(z < 1), equal the frequencies of a million samples."""
    u = torch.rand(1_000_000)
    stretched = 1.2 * torch.sigmoid(1.5 * ((u / (1 - u)).log() + log_alpha)) - 0.1
    expected = (stretched > 0).double().mean()
    assert_close(cofi.keep_prob(torch.full((2, 3), log_alpha)), expected.expand(2, 3), "z > 0 if "
                 "sigma > -l / (r - l): solve for logit u, then P is a sigmoid", atol=2e-3)
    assert_gradient(cofi.keep_prob, torch.tensor([log_alpha]), "no detach, no math")
    z = cofi.sample_z(torch.full((1_000_000,), log_alpha))
    assert 0 <= z.min() and z.max() <= 1, "clamp a mask to [0, 1] after stretching it"
    assert_close((z > 0).double().mean(), expected, "is the noise u uniform, and drawn for each "
                 "mask? is z stretched below 0?", atol=2e-3)
    assert_close((z < 1).double().mean(), (stretched < 1).double().mean(),
                 "is z stretched on both sides, to l = -.1 and r = 1.1?", atol=2e-3)


@part(1)
def test_final_z():
    """final z = sigmoid(0.8 log_alpha / beta)."""
    expected = [1 / (1 + math.exp(-0.8 * a * 1.5)) for a in (-3.0, 0.0, 2.0)]
    assert_close(cofi.final_z(torch.tensor([-3.0, 0.0, 2.0])), torch.tensor(expected),
                 "no noise and no stretching: log_alpha / beta times 0.8, then the sigmoid")


def test_switched_off_masks_stay_open():
    masks = cofi.Masks(TINY, ("z_head",))
    assert [name for name, _ in masks.named_parameters()] == ["z_head"]
    assert all((z == 1).all() for group, z in masks.sample().items() if group != "z_head")


# ---- 3. Size and Lagrangian ----------------------------------------------------------------------


@part(3)
def test_expected_size():
    """The nested sums of the paper: 4 k weights for a head and 2 for an FFN unit, times d."""
    p = {group: torch.rand_like(z).double() for group, z in make_masks(ODD).items()}
    assert_close(cofi.expected_size(7, **p), size_by_loops(p, 7),
                 "a head has four matrices of k columns, an FFN unit two of one; sum over l, i, j")


@part(3)
def test_sparsity():
    """s = 1 - size / M, M the size with every mask at 1."""
    masks, z = cofi.Masks(ODD), make_masks(ODD)
    full_size = size_by_loops({group: torch.ones_like(mask) for group, mask in z.items()}, 7)
    assert_close(masks.sparsity(z), 1 - size_by_loops(z, 7) / full_size, "1 - (weights left) / M")
    masks = random_log_alpha(ODD)
    shift = math.log(11) * 2 / 3        # part 1 need not be written for this
    with mock.patch.object(cofi, "keep_prob", lambda a: torch.sigmoid(a + shift)):
        s = masks.sparsity()
    p = {group: torch.sigmoid(a.detach() + shift) for group, a in masks.log_alpha().items()}
    assert_close(s, 1 - size_by_loops(p, 7) / full_size, "without z: each z replaced by P(z > 0)")
    assert s.requires_grad and None not in torch.autograd.grad(
        s, [*masks.parameters()], allow_unused=True), "without z: s needs a gradient in log_alpha"


@part(3)
def test_bert_base_has_84934656_weights_and_sparsity_0():
    masks = cofi.Masks(BERT_BASE)
    ones = {group: torch.ones_like(a) for group, a in masks.log_alpha().items()}
    assert_close(cofi.expected_size(64, **ones), 84_934_656.0, "12 (4 768^2 + 2 768 3072)", atol=0)
    assert_close(masks.sparsity(ones), 0.0, "M is the same sum, with masks of ones", atol=0)
    bert = make_bert(ODD)
    assert_close(cofi.count_encoder_weights(bert), 5 * (4 * 13 * 21 + 2 * 13 * 17),
                 "count matrices of the layers only: no biases, LayerNorms, embeddings or pooler")
    bert.layers[0].mha = bert.layers[1].ffn = None
    assert_close(cofi.count_encoder_weights(bert), 4 * (4 * 13 * 21 + 2 * 13 * 17),
                 "a sub-layer that is None has no weights")


@part(3)
def test_lagrangian():
    """L_c = lambda1 (s - t) + lambda2 (s - t)^2; while s < t, ascent on lambda1 raises s."""
    for s, t, a, b in itertools.product((0.1, 0.7), (0.0, 0.6), (-2.0, 3.0), (0.0, 5.0)):
        expected = a * s - a * t + b * (s * s - 2 * s * t + t * t)
        assert_close(cofi.lagrangian(s, t, a, b), expected, "lambda1 (s - t) + lambda2 (s - t)^2")
    s, lambdas = torch.tensor(0.2, requires_grad=True), torch.zeros(2, requires_grad=True)
    cofi.lagrangian(s, 0.5, *lambdas).backward()
    assert_close(lambdas.grad, torch.tensor([0.2 - 0.5, (0.2 - 0.5) ** 2]),
                 "s and t are sparsities: with too many weights s < t, and lambda1 has to fall")
    after_ascent = lambdas.detach() + lambdas.grad
    gradient, = torch.autograd.grad(cofi.lagrangian(s, 0.5, *after_ascent), s)
    assert gradient < 0, "with s < t descent has to raise s; is it t - s instead of s - t?"


# ---- 4. Distillation -----------------------------------------------------------------------------


@part(4)
def test_L_pred():
    """L_pred = T^2 sum_c p_t log(p_t / p_s) at temperature T, a mean over examples."""
    student, teacher, expected = torch.randn(3, 4), torch.randn(3, 4), 0.0
    for p_s, p_t in zip((student / 2).softmax(-1), (teacher / 2).softmax(-1)):
        expected += sum(p_t[c] * math.log(p_t[c] / p_s[c]) for c in range(4)) * 2**2 / 3
    assert_close(cofi.pred_loss(student, teacher, 2.0), expected, "the teacher is the target; both "
                 "logits over T, the loss times T^2; a mean over examples, a sum over classes")
    assert_close(cofi.pred_loss(teacher, teacher, 2.0), 0.0, "KL, not cross-entropy")
    assert_gradient(lambda x: cofi.pred_loss(x, teacher, 2.0), student, "no detach of the student")
    wide = [F.pad(x, (0, 1), value=-1e4) for x in (student, teacher)]
    assert_close(cofi.pred_loss(*wide, 2.0), expected, "0 log 0 is 0, not NaN: F.kl_div knows it")


@part(4)
def test_L_pred_of_spans():
    """(B, 2, T): two choices among T tokens, the start and the end; a mean over all choices."""
    student, teacher = torch.randn(3, 2, 5), torch.randn(3, 2, 5)
    choices = zip(student.flatten(0, 1) / 2, teacher.flatten(0, 1) / 2)
    expected = sum(F.kl_div(s.log_softmax(0), t.softmax(0), reduction="sum") for s, t in choices)
    assert_close(cofi.pred_loss(student, teacher, 2.0), expected * 2**2 / 6, "of a span: softmax "
                 "over the tokens, the last dimension; a mean over rows and both choices")


@part(4)
def test_L_pred_of_a_regression():
    """KL over one logit would be 0, and so would its gradient: the MSE instead."""
    student = torch.tensor([[1.0], [3.0]], requires_grad=True)
    loss = cofi.pred_loss(student, torch.tensor([[2.0], [5.0]]), 2.0)
    assert_close(loss, 2.5, "one logit: MSE to the teacher's value, without temperature")
    loss.backward()
    assert_close(student.grad, torch.tensor([[-1.0], [-2.0]]), "the gradient of the mean square")


@part(4)
@pytest.mark.parametrize("matching", ["free", "ordered"])
@pytest.mark.parametrize("share_alive", [1.0, 0.5, 0.2, 0.0])
def test_m_of_i(matching, share_alive):
    """m(i) = argmin_j distance[i, j] over random distances, also where no candidate is left."""
    for _ in range(50):
        distance, alive = torch.rand(4, 12), torch.rand(12) < share_alive
        m = cofi.match_layers(distance, alive, matching)
        expected = match_by_loops(distance.tolist(), alive.tolist(), matching == "ordered")
        assert_close(m, expected, "-1: no candidate. free: the closest "
                     "alive layer; ordered: from the last i down, below the last match")


@part(4)
@pytest.mark.parametrize("L, d", [(6, 16), (4, 8)])
@pytest.mark.parametrize("matching", ["free", "ordered", "fixed"])
def test_L_layer(matching, L, d):
    """L_layer = sum_i MSE(W_layer H_s[m(i)], H_t[i]); padding and dead layers do not count."""
    mask = torch.arange(5) < torch.tensor([[5], [3]])
    alive = torch.tensor([1, 0, 1, 0, 1, 1]).bool()[:L]
    student, teacher = ([torch.randn(2, 5, x) for _ in range(n)] for n, x in ((L, d), (6, 16)))
    W_layer, distilled = nn.Linear(d, 16, bias=False), [1, 2, 4, 5]

    def mse(j, i):
        squares = [(W_layer(student[j][b, t]) - teacher[i][b, t]).square().mean()
                   for b in range(2) for t in range(5) if mask[b, t]]
        return (sum(squares) / len(squares)).item()

    distance = [[mse(j, i) for j in range(L)] for i in distilled]
    m = match_by_loops(distance, alive, matching == "ordered")
    hint = ("m(i): the closest student layer, from 0; W_layer multiplies the student's states; -1 "
            "if there is no candidate")
    if matching == "fixed":
        m = [min(i, L - 1) for i in distilled]
        hint = "fixed: m is distilled_layers(L), alive or not, but at most the student's last layer"
    expected = sum(distance[n][j] for n, j in enumerate(m) if j >= 0)
    with explained(hint):
        loss, got_m = cofi.layer_loss(student, teacher, mask, W_layer, alive, matching)
    assert_close(got_m, m, hint)
    assert_close(loss, expected, "a mean over tokens without padding and over dimensions, a sum "
                 "over i, without a candidate 0; W_layer multiplies H_s", atol=1e-3)
    for H in (*student, *teacher):
        H[~mask] = torch.rand(()) * 1e3
    student = [H.requires_grad_() for H in student]
    loss, got_m = cofi.layer_loss(student, teacher, mask, W_layer, alive, matching)
    assert_close(got_m, m, "padding counts in the distances")
    assert_close(loss, expected, "padding counts in the loss", atol=1e-3)
    assert loss.requires_grad, "the loss has no gradient: only the matching is without"
    loss.backward()
    assert W_layer.weight.grad is not None, "W_layer gets no gradient"
    has_grad = [j for j, H in enumerate(student) if H.grad is not None and H.grad.any()]
    assert has_grad == sorted({j for j in m if j >= 0}), "the matched student layers, and no " \
        f"others, get a gradient: {sorted(set(m))}, got {has_grad}"


@part(4)
def test_L_layer_without_an_alive_layer_is_0():
    H, W_layer = [torch.randn(2, 5, 16) for _ in range(6)], nn.Linear(16, 16, bias=False)
    loss, _ = cofi.layer_loss(H, H, torch.ones(2, 5).bool(), W_layer, torch.zeros(6).bool(), "free")
    assert_close(loss, 0.0, "a teacher layer without a candidate adds nothing to the loss")


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("pred_weight, layer_weight, distil", [
    (0.7, 0.3, True), (0.7, 0.0, True), (0.0, 0.3, True), (0.0, 0.0, True), (0.5, 0.5, False)])
def test_distillation_loss(pred_weight, layer_weight, distil, bf16):
    """L_distil = pred_weight L_pred + layer_weight L_layer; the labels' loss without L_pred."""
    batch, alive = make_batch(), torch.ones(3).bool()
    out, out_t, mask = make_bert()(**batch), make_bert()(**batch), batch["attention_mask"]
    W_layer, labels = nn.Linear(16, 16, bias=False), torch.tensor([0, 1, 1, 0, 1])
    cfg = cofi.Settings(pred_weight=pred_weight, layer_weight=layer_weight, matching="ordered")
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss, losses, m = cofi.distillation_loss(out, out_t if distil else None, labels, mask, cfg,
                                                 W_layer)
    expected, layer, has_layers = F.cross_entropy(out.logits, labels), 0.0, distil and layer_weight
    if distil and pred_weight:
        expected = pred_weight * cofi.pred_loss(out.logits, out_t.logits, cfg.temperature)
    if has_layers:
        layer = cofi.layer_loss(out.hidden_states[1:], out_t.hidden_states[1:], mask, W_layer,
                                alive, "ordered")[0].item()
    assert loss.item() == pytest.approx(expected.item() + layer_weight * layer, rel=2e-2)
    assert losses[1].item() == pytest.approx(layer, rel=2e-2)
    loss.backward()
    assert (m is not None) == (W_layer.weight.grad is not None) == bool(has_layers)


# ---- 5. Pruning: masked model = pruned model -----------------------------------------------------


@part(5)
def test_deterministic_z():
    """In each row the round(expected number of zeros) lowest close; a layer closes below .5."""
    p = {group: torch.rand_like(z) for group, z in make_masks(ODD).items()}
    p["z_mha"][0] = 0.5
    z = cofi.deterministic_masks(p, {group: cofi.descending_rank(x) for group, x in p.items()})
    for group, chances in p.items():
        if group in ("z_mha", "z_ffn"):
            expected = [float(chance >= 0.5) for chance in chances]
        else:
            expected = torch.ones_like(chances)
            for row, mask in zip(torch.atleast_2d(chances), torch.atleast_2d(expected)):
                for _ in range(round(sum(1 - chance.item() for chance in row))):
                    mask[(row + 9 * (1 - mask)).argmin()] = 0       # the lowest that is still open
        expected = torch.as_tensor(expected)
        assert_close((z[group] > 0).sum(-1), expected.sum(-1), f"{group}: how many are open: sum "
                     "P(z > 0) over each row alone, then round (a layer: P >= .5)")
        assert_close(z[group], expected, f"{group}: the highest are open, of rank 0, 1, ...")
        assert z[group].dtype == chances.dtype, "the masks are 0. and 1., as p, not True and False"


@pytest.mark.parametrize("t", [0.3, 0.6, 0.8, 0.95])
@pytest.mark.parametrize("d, k, h, f, L", [(384, 32, 12, 1536, 6), (96, 24, 4, 640, 12)])
def test_final_masks_meet_the_target(d, k, h, f, L, t):
    """The sparsity is in [t, t + .001], whatever the masks have learned."""
    config = cofi.Config(9, 9, 2, d, k, [h] * L, [f] * L, d)
    for spread, mean in (1.0, 0.0), (3.0, 0.0), (0.01, 3.0), (1.0, -5.0), (20.0, 0.0):
        masks = random_log_alpha(config, spread)
        for p in masks.parameters():
            p.data += mean
        z = cofi.final_masks(masks, t)
        s = masks.sparsity({group: (mask > 0).double() for group, mask in z.items()})
        assert t <= s.item() <= t + 0.001


@part(5)
def test_fold():
    """new W = diag(rows) W diag(columns), without closed rows and columns."""
    old, new, rows, columns = nn.Linear(9, 8), nn.Linear(7, 5), torch.rand(8), torch.rand(9)
    rows[[1, 4, 5]] = columns[[0, 3]] = 0
    before = copy.deepcopy(old)
    with torch.no_grad():
        cofi.fold(new, old, rows, columns)
    assert_close(old.weight, before.weight, "fold: `old` must not change")
    for i, r in enumerate([0, 2, 3, 6, 7]):
        assert_close(new.bias[i], old.bias[r] * rows[r], "the bias belongs to the rows")
        for j, c in enumerate([1, 2, 4, 5, 6, 7, 8]):
            assert_close(new.weight[i, j], old.weight[r, c] * rows[r] * columns[c],
                         "multiply by the masks, then keep open rows and columns in their order")


@part(5)
@torch.no_grad()
def test_fold_norm():
    """weight and bias times z_hidn, without the closed dimensions."""
    old, z = make_bert(ODD).layers[0].mha.norm, make_masks(ODD)["z_hidn"]
    kept = z > 0
    new, before = cofi.MaskedLayerNorm(int(kept.sum())), copy.deepcopy(old)
    cofi.fold_norm(new, old, z)
    assert_close(new.weight, (before.weight * z)[kept], "fold_norm: the weight times z_hidn")
    assert_close(new.bias, (before.bias * z)[kept], "fold_norm: the bias times z_hidn")
    assert_close(old.weight, before.weight, "fold_norm: `old` must not change")


@part(5)
@torch.no_grad()
@pytest.mark.parametrize("name, width, readers, writer", [
    ("mha", 7, ("query", "key", "value"), "out"), ("ffn", 1, ("up",), "down")])
def test_fold_mha_and_fold_ffn(name, width, readers, writer):
    """What reads the residual stream loses rows and columns; what writes to it is scaled, too."""
    old, z = getattr(make_bert(ODD).layers[0], name), make_masks(ODD)
    z_layer, z_hidn = z[f"z_{name}"][0], z["z_hidn"]
    units = z["z_head" if name == "mha" else "z_int"][0]
    units[[0, 1]] = torch.tensor([0.7, 0.0])
    wide = torch.stack([unit for unit in units for _ in range(width)])
    config = replace(ODD, hidden_size=int((z_hidn > 0).sum()))
    new = getattr(cofi, name.upper())(config, int((units > 0).sum()))
    getattr(cofi, f"fold_{name}")(new, old, z_layer, units, z_hidn)
    for part_name in readers:
        a, b = getattr(new, part_name), getattr(old, part_name)
        assert_close(a.weight, b.weight[wide > 0][:, z_hidn > 0], f"fold_{name}: {part_name} only "
                     "loses closed rows (heads or units) and columns (z_hidn): z > 0")
        assert_close(a.bias, b.bias[wide > 0], f"fold_{name}: the bias of {part_name} as its rows")
    a, b, rows = getattr(new, writer), getattr(old, writer), z_layer * z_hidn
    expected = (rows[:, None] * b.weight * wide)[z_hidn > 0][:, wide > 0]
    assert_close(a.weight, expected, f"fold_{name}: {writer}: columns times the heads or units, "
                 "rows times the layer's mask and z_hidn")
    assert_close(a.bias, (rows * b.bias)[z_hidn > 0], f"fold_{name}: the bias of {writer}")
    assert_close(new.norm.weight, (old.norm.weight * z_hidn)[z_hidn > 0], f"fold_{name}: its norm")


@part(5)
@pytest.mark.parametrize("soft, closed", [
    (False, None), (True, None), (True, ("z_mha", 1)), (True, ("z_ffn", 1)), (True, ("z_head", 2)),
    (True, ("z_int", slice(None)))])
def test_prune_model(soft, closed):
    """The pruned network has the logits of the masked one, and exactly the weights left."""
    bert, batch, z = make_bert(ODD), make_batch(), make_masks(ODD, soft)
    if closed:
        z[closed[0]][closed[1]] = 0
    small = cofi.prune_model(bert, z)
    assert_close(reference_forward(small, batch), reference_forward(bert, batch, z),
                 "z_head and z_int go into columns of out and down, the others into their rows and "
                 "biases; z_hidn goes into every LayerNorm, too", atol=1e-4)
    exact = size_by_loops({group: (mask > 0).double() for group, mask in z.items()}, 7)
    assert sum(p.numel() for p in small.layers.parameters() if p.dim() == 2) == exact


@pytest.mark.parametrize("config", [TINY, SPAN])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("closed", [None, ("z_mha", 1), ("z_ffn", 1), ("z_int", 1), ("z_head", 2),
                                    ("z_mha", slice(None)), ("z_int", slice(None))])
def test_masked_model_is_pruned_model(config, soft, closed):
    """Also with a dead sub-layer, with all of them dead; and bit for bit with open masks."""
    bert, batch, z = make_bert(config), make_batch(), make_masks(config, soft)
    if closed:
        z[closed[0]][closed[1]] = 0
    small = cofi.prune_model(bert, z)
    assert_close(small(**batch).logits, bert(**batch, **z).logits)
    exact = cofi.expected_size(4, **{group: (mask > 0).double() for group, mask in z.items()})
    assert cofi.count_encoder_weights(small) == exact
    assert hasattr(small, "pooler") == (config is TINY)
    if closed:
        dead = small.layers[1 if closed[1] == slice(None) else closed[1]]
        assert (dead.mha if closed[0] in ("z_mha", "z_head") else dead.ffn) is None
    ones = {group: torch.ones_like(mask) for group, mask in z.items()}
    assert torch.equal(cofi.prune_model(bert, ones)(**batch).logits, bert(**batch).logits)


# ---- 6. Training ---------------------------------------------------------------------------------


def test_target_sparsity():
    """t rises in a straight line from 0 at mask_start to its target at the end of the warm-up."""
    cfg = replace(cofi.Settings.for_task("rte"), sparsity=0.8, mask_start=0.1, sparsity_warmup=0.4)
    t = [cofi.target_sparsity(step, 1000, cfg) for step in range(101, 1001)]
    assert_close(t, np.interp(range(101, 1001), [100, 500], [0, 0.8]))


@pytest.mark.parametrize("module", [cofi, sparsebert])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0


@slow
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, monkeypatch, capsys):
    """Stop it in every stage, before and after a checkpoint, and between two stages."""
    for split in "train", "validation":
        lines = (TOY / f"{split}.tsv").read_text("utf-8").splitlines(keepends=True)
        (tmp_path / f"{split}.tsv").write_text("".join(lines[:65]), "utf-8")
    flags = ["--data", str(tmp_path), "--model", str(TOY), "--device", "cpu", "--threads", "1",
             "--max_steps", "4", "--sparsity", "0.5", "--out"]
    assert cofi.main([*flags, str(tmp_path / "whole")]) == 0
    flags.append(str(tmp_path / "killed"))
    kills = [("teacher", 1), ("teacher", 4), ("prune", 1), ("prune", 4), ("finetune", 4)]
    original_steps = Journal.steps

    def steps(journal, batches, stage, total, start_step):
        for step, batch in original_steps(journal, batches, stage, total, start_step):
            if kills and (stage, step) == kills[0]:
                del kills[0]
                raise KeyboardInterrupt         # nothing more is saved
            journal.is_save_step = step == 2
            yield step, batch

    monkeypatch.setattr(Journal, "steps", steps)
    monkeypatch.setattr(Journal, "should_save", lambda journal: journal.is_save_step)
    while kills:
        assert cofi.main(flags) == 130
    assert cofi.main(flags) == 0 and "prune     resumes after step 2" in capsys.readouterr().out
    for kind in "teacher-custom", "custom-0.5":
        whole, killed = (next((tmp_path / out).glob(f"{kind}*")) for out in ("whole", "killed"))
        assert len({(run / "pytorch_model.bin").read_bytes() for run in (whole, killed)}) == 1
        times = dict.fromkeys(("seconds", "seconds_per_step", "left"), 0)
        logs = [[json.loads(x) | times for x in (run / "log.jsonl").open()]
                for run in (whole, killed)]
        assert logs[0] == logs[1]
        assert not [*killed.glob("*.state"), *killed.glob("*.part")]
    assert len({(run / "network.txt").read_text("utf-8") for run in (whole, killed)}) == 1


# ---- 7. SparseBERT -------------------------------------------------------------------------------


@part(6)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.95, 0.99])
def test_magnitude_mask(sparsity):
    """mask = 1 for the floor((1 - s) n) largest |w|; what was pruned before stays pruned."""
    W, before = torch.randn(24, 40), torch.rand(24, 40) > 0.005
    unchanged = W.clone()
    mask = sparsebert.magnitude_mask(W, before, sparsity)
    assert_close(W, unchanged, "the weights must not change: abs(), not abs_()")
    n = math.floor(24 * 40 * (1 - sparsity) + 1e-6)
    order = sorted(((W[i, j].abs().item() if before[i, j] else -1.0, i, j)
                    for i in range(24) for j in range(40)), reverse=True)
    expected = torch.zeros(24, 40)
    for _, i, j in order[:n]:
        expected[i, j] = 1
    assert_close(mask, expected, "the n largest |w| of the whole matrix; pruned ones rank last")
    assert mask.dtype == torch.bool and int(mask.sum()) == n


@part(6)
def test_magnitude_mask_of_blocks():
    """A block is ranked by the sum of its magnitudes."""
    W, mask = torch.randn(12, 8), torch.ones(12, 8, dtype=torch.bool)
    mask = sparsebert.magnitude_mask(W, mask, 0.75, block=4)
    sums = {(i, j): sum(abs(W[4 * i + a, 4 * j + b].item()) for a in range(4) for b in range(4))
            for i in range(3) for j in range(2)}
    i, j = max(sums, key=sums.get)
    expected = torch.zeros(12, 8, dtype=torch.bool)
    expected[4 * i:4 * i + 4, 4 * j:4 * j + 4] = True
    assert_close(mask, expected, "rank a block by its sum of |w|; it stays or goes as a whole")
    W, before = torch.tensor([[3.0, 0, 1, 1], [0, 0, 1, 1]]), torch.ones(2, 4).bool()
    few_large = torch.tensor([[False, False, True, True]] * 2)
    assert_close(sparsebert.magnitude_mask(W, before, 0.5, block=2), few_large,
                 "the sum of |w|, not of squares: 4 is more than 3")
    zero = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    assert_close(sparsebert.magnitude_mask(zero, torch.tensor([[False, True, True, True]]), 0.25),
                 [[0, 1, 1, 1]], "a weight that is pruned ranks last, also after an open one of 0")
    assert_close(sparsebert.magnitude_mask(W, ~few_large, 0.5, block=2), ~few_large,
                 "a block that is pruned ranks last, whatever its weights are now")


@part(6)
@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_cubic_schedule(t):
    """s(t) = s (1 - (1 - t)^3), as the integral of its derivative 3 s (1 - u)^2 from 0 to t."""
    expected = sum(0.95 * 3 * (1 - (i + 0.5) * t / 1000) ** 2 * t / 1000 for i in range(1000))
    assert_close(sparsebert.cubic_sparsity(t, 0.95), expected, "fast at first, s itself at t = 1")


@part(6)
def test_pruning_schedule():
    """The sparsity follows s(t) and reaches its target at prune_until, in runs of any length."""
    cfg = replace(sparsebert.Settings.for_task("toy"), prune_events=100, prune_until=0.7)
    for num_steps in (1, 7, 100, 1000):
        schedule = sparsebert.pruning_schedule(num_steps, cfg, 0.95)
        s = [schedule[step] for step in sorted(schedule)]
        assert s == sorted(s) and s[-1] == pytest.approx(0.95)
        assert max(schedule) == max(1, math.floor(0.7 * num_steps)) and min(schedule) >= 1
    assert len(schedule) == 100
    for step, value in schedule.items():
        assert value == pytest.approx(0.95 - 0.95 * (1 - step / 700) ** 3)


@part(6)
def test_attention_loss():
    """L_att of a layer: the mean of (A_s - A_t)^2 over heads and pairs of tokens, no padding."""
    A_s, A_t, mask = *torch.randn(2, 3, 4, 6, 6), make_batch(3, 6)["attention_mask"]
    terms = [(A_s[b, h, i, j] - A_t[b, h, i, j]) ** 2
             for b, h, i, j in itertools.product(*map(range, A_s.shape)) if mask[b, i] & mask[b, j]]
    assert_close(sparsebert.attention_loss(A_s, A_t, mask), torch.stack(terms).mean(),
                 "scores before softmax; a mean over heads and pairs; padding counts neither as "
                 "row nor as column")
    assert_gradient(lambda A: sparsebert.attention_loss(A, A_t, mask), A_s, "no detach of A_s")


@part(6)
def test_hidden_loss():
    """L_hidden of a layer: the mean of (H_s - H_t)^2 over dimensions and tokens, no padding."""
    H_s, H_t, mask = *torch.randn(2, 3, 6, 8), make_batch(3, 6)["attention_mask"]
    terms = [(H_s[b, i, j] - H_t[b, i, j]) ** 2
             for b, i, j in itertools.product(*map(range, H_s.shape)) if mask[b, i]]
    assert_close(sparsebert.hidden_loss(H_s, H_t, mask), torch.stack(terms).mean(),
                 "a mean over dimensions and tokens without padding; do not divide by B T")
    assert sparsebert.hidden_loss(H_s.requires_grad_(), H_t, mask).requires_grad, \
        "L_hidden needs a gradient in the student's states"


def test_distillation_adds_up_the_layers():
    """L_hidden = sum of MSE over all states, L_att = sum over all layers, L_pred = KL."""
    bert, teacher, batch = make_bert(), make_bert(), make_batch()
    labels, mask = torch.zeros(5).long(), batch["attention_mask"]
    out, out_t = bert(**batch), teacher(**batch)
    heads = {i: slice(None) for i in range(3)}
    losses = functools.partial(sparsebert.distillation_losses, bert, out)
    hidden, attention, pred = losses(teacher, out_t, labels, mask, heads)
    H_s, H_t = out.hidden_states, out_t.hidden_states
    assert_close(hidden, sum(sparsebert.hidden_loss(H_s[i], H_t[i], mask) for i in range(4)))
    assert_close(attention, sum(sparsebert.attention_loss(
        bert.layers[i].mha.scores(H_s[i]), teacher.layers[i].mha.scores(H_t[i]), mask)
        for i in range(3)))
    p_t, log_p_s = out_t.logits.softmax(-1), out.logits.log_softmax(-1)
    assert_close(pred, (p_t * (p_t.log() - log_p_s)).sum(-1).mean())
    assert_close(losses(bert, out, labels, mask, heads), torch.zeros(3), atol=1e-6)
    with_labels = losses(teacher, out_t, labels, mask, heads, use_labels=True)
    assert_close(with_labels[2], F.cross_entropy(out.logits, labels))


def main(arguments=None):
    """Run a command. Returns the exit code: 0, 1 for a wrong answer, 2 for unusable input."""
    from data.course.commands import run_command        # the tests need none of them
    return exit_code("test_cofi", functools.partial(run_command, arguments, sys.modules[__name__]))


if __name__ == "__main__":
    sys.exit(main())
