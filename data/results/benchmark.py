"""Benchmark: a pruning step beside others on the same batches, and pruned models beside dense ones.

    python test_cofi.py --benchmark
    python test_cofi.py --benchmark --task sst2 --model google-bert/bert-base-uncased --device cuda

Weights are random, which does not change the time.
"""
import copy
import functools
import importlib.util
import itertools
import math
import time
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import cofi
from data.errors import UserError
from data.harness.device import (autocast, device_name, has_bf16, peak_memory, product_speed,
                                 synchronize, to_device)
from data.harness.report import measure_speedup, measured_length
from data.harness.runs import load_data, setup
from data.harness.teacher import cache_teacher

# ---- the same step, written in the plainest way --------------------------------------------------


def naive_bert(bert, batch, z=None):
    """Return (logits, hidden states) of a BERT, written down plainly. z: {group: mask}, or None."""
    c, e, mask = bert.config, bert.embeddings, batch["attention_mask"]
    k = c.attention_head_size
    dropout = functools.partial(F.dropout, p=c.dropout, training=bert.training)

    def norm(module, x):
        if z is None:
            return F.layer_norm(x, (c.hidden_size,), module.weight, module.bias, module.eps)
        kept = (z["z_hidn"] > 0).float()
        mean = (x * kept).sum(-1, keepdim=True) / kept.sum()
        variance = ((x - mean).square() * kept).sum(-1, keepdim=True) / kept.sum()
        x = (x - mean) / (variance + module.eps).sqrt()
        return (x * module.weight + module.bias) * z["z_hidn"]

    def split_heads(x):
        return x.view(*mask.shape, -1, k).transpose(1, 2)

    x = e.word(batch["input_ids"]) + e.token_type(batch["token_type_ids"])
    x = x + e.position.weight[:mask.shape[1]]
    hidden_states = [dropout(norm(e.norm, x))]
    for l, layer in enumerate(bert.layers):
        mha, ffn, x = layer.mha, layer.ffn, hidden_states[-1]
        if z is None or z["z_mha"][l] > 0 and z["z_head"][l].any():
            q, keys, v = (split_heads(linear(x)) for linear in (mha.query, mha.key, mha.value))
            scores = q @ keys.transpose(2, 3) / math.sqrt(k)
            scores = scores.masked_fill(~mask[:, None, None], -math.inf)
            y = dropout(scores.softmax(-1)) @ v
            if z is not None:
                y = y * z["z_head"][l][:, None, None]
            y = mha.out(y.transpose(1, 2).reshape(*mask.shape, -1))
            if z is not None:
                y = y * z["z_mha"][l] * z["z_hidn"]
            x = norm(mha.norm, x + dropout(y))
        if z is None or z["z_ffn"][l] > 0 and z["z_int"][l].any():
            y = F.gelu(ffn.up(x))
            if z is not None:
                y = y * z["z_int"][l]
            y = ffn.down(y)
            if z is not None:
                y = y * z["z_ffn"][l] * z["z_hidn"]
            x = norm(ffn.norm, x + dropout(y))
        hidden_states.append(x)
    return bert.classifier(dropout(torch.tanh(bert.pooler(x[:, 0])))), hidden_states


def naive_loss(student, teacher, W_layer, batch, z, cfg):
    """Return the loss of the network term by term, for classes and free or ordered matching."""
    with torch.no_grad():
        logits_t, H_t = naive_bert(teacher, batch)
    logits, H_s = naive_bert(student, batch, z)
    p_s, p_t = ((x / cfg.temperature).softmax(-1) for x in (logits, logits_t))
    L_pred = (p_t * (p_t.log() - p_s.log())).sum(-1).mean() * cfg.temperature**2

    def distance(i, j):
        error = (W_layer(H_s[j + 1]) - H_t[i + 1]).square().mean(-1)
        return error[batch["attention_mask"]].mean()

    alive = cofi.is_alive(z["z_mha"], z["z_head"]) | cofi.is_alive(z["z_ffn"], z["z_int"])
    limit, L_layer = len(student.layers), 0.0
    for i in reversed(cofi.distilled_layers(len(teacher.layers))):
        with torch.no_grad():
            candidates = {j: distance(i, j) for j in range(limit) if alive[j]}
        if candidates:
            m = min(candidates, key=candidates.get)
            L_layer = L_layer + distance(i, m)
            limit = m if cfg.matching == "ordered" else limit
    return cfg.pred_weight * L_pred + cfg.layer_weight * L_layer


# ---- steps to compare with -----------------------------------------------------------------------


def naive_step(student, teacher, W_layer, masks, cfg, length):
    """Return a function of (indices, batch): a pruning step in fp32, rows padded to `length`."""
    weights = [p for module in (student, W_layer) for p in module.parameters() if p.requires_grad]
    device = W_layer.weight.device
    lambdas = [torch.zeros((), device=device, requires_grad=True) for _ in range(2)]
    groups = [{"params": weights}, {"params": masks.parameters(), "lr": cfg.mask_lr}]
    optimizer = torch.optim.AdamW(groups, cfg.prune_lr, weight_decay=0.0)
    lambda_optimizer = torch.optim.SGD(lambdas, cfg.lambda_lr, maximize=True)

    def step(indices, batch):
        inputs, _ = to_device(device, batch)
        padding = length - inputs["input_ids"].shape[1]
        inputs = {name: F.pad(x, (0, padding)) for name, x in inputs.items()}
        loss = naive_loss(student, teacher, W_layer, inputs, masks.sample(), cfg)
        loss = loss + cofi.lagrangian(masks.sparsity(), 0.0, *lambdas)
        optimizer.zero_grad()
        lambda_optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        lambda_optimizer.step()
        masks.soft_clamp_()

    return step


def finetuning_step(config, cfg, device):
    """Return a function of (indices, batch): fine-tuning of the BERT of `transformers`."""
    import transformers         # not among the requirements
    bert = transformers.BertForSequenceClassification(transformers.BertConfig(
        vocab_size=config.vocab_size, hidden_size=config.hidden_size,
        num_hidden_layers=len(config.heads_per_layer),
        num_attention_heads=config.heads_per_layer[0], intermediate_size=config.ffn_per_layer[0],
        max_position_embeddings=config.max_position_embeddings, num_labels=len(config.id2label)))
    bert.to(device).train()
    optimizer = torch.optim.AdamW(bert.parameters(), cfg.prune_lr, fused=True)

    def step(indices, batch, is_frozen=False):
        bert.bert.embeddings.requires_grad_(not is_frozen)
        inputs, labels = to_device(device, batch)
        inputs["attention_mask"] = inputs["attention_mask"].long()
        with autocast(device, True):
            loss = bert(**inputs, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(bert.parameters(), 1.0)
        optimizer.step()

    return step


def masked_step(student, teacher, W_layer, masks, cfg):
    """Return a function of (indices, batch): a pruning step that multiplies by the masks, as the
    equations do. teacher: a CachedTeacher.
    """
    weights = [p for module in (student, W_layer) for p in module.parameters() if p.requires_grad]
    groups = [{"params": weights}, {"params": masks.parameters()}]
    optimizer = torch.optim.AdamW(groups, 1e-9, weight_decay=0.0, fused=True)

    def step(indices, batch):
        inputs, labels = to_device(W_layer.weight.device, batch)
        z = masks.sample()
        with autocast(W_layer.weight.device, True):
            loss, _, _ = cofi.distillation_loss(
                student(**inputs, **z), teacher(indices, inputs), labels,
                inputs["attention_mask"], cfg, W_layer)
        loss = loss + cofi.lagrangian(masks.sparsity(), 0.0, 0.0, 1.0)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        masks.soft_clamp_()

    return step


def teacher_step(teacher, device):
    """Return a function of (indices, batch): the teacher's forward pass, which the cache saves."""
    @torch.no_grad()
    def step(indices, batch):
        inputs, _ = to_device(device, batch)
        with autocast(device, True):
            teacher(**inputs)

    return step


class Turns:
    """A stand-in for a Journal: times the steps of cofi.train, and others on the same batches.

    others: {name: function of (indices, batch)}; turns: the number of batches. They are spread
    evenly over the lengths of the batches of an epoch, so that a mean is about the mean of the
    epoch; epoch: their number. One more turn comes first, to warm up. On a GPU, where every new
    length is slow the first time, all turns are taken twice and the second ones count.
    """

    def __init__(self, others, turns, epoch, device):
        self.others, self.turns, self.epoch, self.device = others, turns, epoch, device
        self.warm_up = turns if device.type == "cuda" else 1
        self.times = {name: [] for name in ("a pruning step", *others)}
        self.lengths = []

    def restore(self, stage, state):
        return 0, {}

    def should_save(self):
        return False

    def save(self, stage, step, state, extra):
        pass

    def log(self, record):
        pass

    def tell(self, line):
        pass

    def steps(self, batches, stage, total, start_step):
        """Yield (step, batch) as Journal.steps does; the time until the next call is the step's."""
        epoch = sorted(itertools.islice(batches, self.epoch),
                       key=lambda pair: pair[1]["input_ids"].shape[1])
        chosen = [epoch[int((i + 0.5) * len(epoch) / self.turns)] for i in range(self.turns)]
        for i, (indices, batch) in enumerate([*chosen[:self.warm_up], *chosen]):
            stamps = [time.perf_counter()]
            yield i + 1, (indices, batch)
            synchronize(self.device)
            stamps.append(time.perf_counter())
            for other in self.others.values():
                other(indices, batch)
                synchronize(self.device)
                stamps.append(time.perf_counter())
            if i >= self.warm_up:
                self.lengths.append(batch["input_ids"].shape[1])
                for seen, seconds in zip(self.times.values(), np.diff(stamps)):
                    seen.append(seconds)


# ---- sizes ---------------------------------------------------------------------------------------


def multiply_adds(config, T):
    """Count those of the encoder for one row of T tokens: matrices, and attention between tokens.
    """
    d, k = config.hidden_size, config.attention_head_size
    return sum(2 * T * (d * (2 * k * h + f) + T * k * h)
               for h, f in zip(config.heads_per_layer, config.ffn_per_layer))


def thin_masks(config, t):
    """Return masks of sparsity t as the paper found them: d nearly whole, few heads, thin FFNs.
    """
    ones = {group: torch.ones_like(a) for group, a in cofi.Masks(config).log_alpha().items()}
    z = {group: mask.clone() for group, mask in ones.items()}
    L, k = len(config.heads_per_layer), config.attention_head_size
    z["z_hidn"][config.hidden_size * 95 // 96:] = 0
    z["z_int"][:] = 0
    z["z_head"][:] = 0
    z["z_head"][:L * 5 // 6, 0] = 1         # one in each layer but the last sixth of them
    left = (1 - t) * cofi.expected_size(k, **ones) - cofi.expected_size(k, **z)
    z["z_int"][:, :int(left / (2 * L * z["z_hidn"].sum()))] = 1
    return z


@torch.no_grad()
def random_masks(config, t):
    """Return Masks with random log_alpha whose expected sparsity is t."""
    masks = cofi.Masks(config)
    values = [3 * torch.randn_like(log_alpha) for log_alpha in masks.parameters()]

    def fits(shift):
        for log_alpha, value in zip(masks.parameters(), values):
            log_alpha.copy_(value + shift)
        return masks.sparsity() >= t

    shift, _ = cofi.bisect(fits)
    fits(shift)
    return masks


# ---- the benchmark -------------------------------------------------------------------------------


def pruning_parts(config, device):
    """Return what is trained with in a pruning step: (student, teacher, W_layer, masks)."""
    student, teacher = cofi.BERT(config).to(device), cofi.BERT(config).to(device).eval()
    student.embeddings.requires_grad_(False)
    d = config.hidden_size
    W_layer, masks = nn.Linear(d, d, bias=False, device=device), cofi.Masks(config).to(device)
    return student, teacher, W_layer, masks


def distilled_layers(config):
    return cofi.distilled_layers(len(config.heads_per_layer))


def benchmark_memory(cfg, config, device, data, turns):
    """Print the most memory that this process has used after so many pruning steps and no others.
    """
    student, teacher, W_layer, masks = pruning_parts(config, device)
    journal = Turns({}, turns, math.ceil(len(data.train) / cfg.batch_size), device)
    cached = cache_teacher(teacher, data.train, distilled_layers(config), cfg)
    before = peak_memory(device)
    cofi.train("prune", student, data, cfg, journal, cached, W_layer, masks)
    if before:
        print(f"memory: {before / 1e9:.2f} GB before, {peak_memory(device) / 1e9:.2f} GB after "
              f"{turns} pruning steps\n")


def benchmark_step(cfg, config, device, data, turns):
    """Print the time of a pruning step beside that of other steps."""
    student, teacher, W_layer, masks = pruning_parts(config, device)
    length = min(cfg.max_length, config.max_position_embeddings)
    naive = naive_step(student, teacher, W_layer, masks, cfg, length)
    others = {"the teacher's pass, which is cached": teacher_step(teacher, device),
              f"the same, naively: fp32, {length} tokens": naive}
    if importlib.util.find_spec("transformers"):
        finetuning = finetuning_step(config, cfg, device)
        others["fine-tuning in transformers"] = finetuning
        others["the same, embeddings frozen"] = functools.partial(finetuning, is_frozen=True)
    else:
        print("the package transformers is not installed: its fine-tuning step is left out")
    num_batches = math.ceil(len(data.train) / cfg.batch_size)
    journal = Turns(others, turns, num_batches, device)
    cached = cache_teacher(teacher, data.train, distilled_layers(config), cfg)
    cofi.train("prune", student, data, cfg, journal, cached, W_layer, masks)

    ours = journal.times["a pruning step"]
    # forward, and twice that backward; a multiply-add is two operations
    operations = [2 * 3 * cfg.batch_size * multiply_adds(config, T) for T in journal.lengths]
    speed = sum(operations) / sum(ours)
    print(f"{cfg.task}, {cfg.batch_size} rows, {np.mean(journal.lengths):.0f} tokens (mean of "
          f"{len(ours)} batches), {device_name(device)}, bf16: {has_bf16(device)}; "
          f"{speed / 1e12:.3g} TFLOP/s of encoder matrices while pruning, "
          f"{speed / product_speed(device, cfg.bf16):.0%} of the speed of a large product\n")
    print(f"{'mean of':42}seconds  range             to pruning: mean, median, range")
    for name, seen in journal.times.items():
        ratios = np.divide(seen, ours)
        print(f"{name:42}{np.mean(seen):7.4f}  {min(seen):.4f} to {max(seen):.4f}  "
              f"{sum(seen) / sum(ours):5.2f} {np.median(ratios):5.2f} {min(ratios):5.2f} to "
              f"{max(ratios):.2f}")
    if device.type == "cuda":
        print(f"at most {peak_memory(device) / 2**30:.2f} GiB, all of these together")


def benchmark_sparsities(cfg, config, device, data, turns):
    """Print the time of a pruning step by how much is closed, beside one that multiplies by masks.
    """
    teacher, d = cofi.BERT(config).to(device).eval(), config.hidden_size
    cached = cache_teacher(teacher, data.train, distilled_layers(config), cfg)
    num_batches = math.ceil(len(data.train) / cfg.batch_size)
    print(f"\n{'expected sparsity of random masks':36}seconds  multiplying by masks  to ours")
    for t in (0.0, 0.3, 0.6, 0.8, 0.95):
        masks = random_masks(config, t).to(device)
        students = [cofi.BERT(config).to(device).train() for _ in range(2)]
        W_layers = [nn.Linear(d, d, bias=False, device=device) for _ in range(2)]
        for student in students:
            student.embeddings.requires_grad_(False)
        other = masked_step(students[1], cached, W_layers[1], copy.deepcopy(masks), cfg)
        journal = Turns({"masked": other}, turns, num_batches, device)
        cofi.train("prune", students[0], data, cfg, journal, cached, W_layers[0], masks)
        ours, masked = (sum(journal.times[name]) for name in ("a pruning step", "masked"))
        print(f"{t:<36g}{ours / turns:7.4f}{masked / turns:22.4f}{masked / ours:9.2f}")


def benchmark_pruned(config, device, length):
    """Print how many times faster two networks of sparsity 95 % are than the dense one."""
    dense, is_cuda = cofi.BERT(config).to(device), device.type == "cuda"
    precisions = ["fp32"] + ["TF32"] * is_cuda + ["bf16"] * has_bf16(device)
    for kind, z in (("thin everywhere", thin_masks(config, 0.95)),
                    ("at random", cofi.final_masks(random_masks(config, 0.95), 0.95))):
        small = cofi.prune_model(dense, {group: mask.to(device) for group, mask in z.items()})
        c = small.config
        ideal = multiply_adds(config, length) / multiply_adds(c, length)
        print(f"\npruned to 95 %, {kind}: d {c.hidden_size}, heads {c.heads_per_layer}, FFN units "
              f"{c.ffn_per_layer}\n1/{ideal:.1f} of the multiply-adds at length {length}")
        for precision in precisions:
            torch.set_float32_matmul_precision("high" if precision == "TF32" else "highest")
            with autocast(device, precision == "bf16"):
                ratios = measure_speedup(dense, small, (1, 32, 128), length, float(is_cuda))
            print(f"{precision}  " + "".join(f"   {ratio:.1f}x at batch {rows}"
                                             for rows, ratio in ratios.items()))


def benchmark(model, task, batch_size, threads, turns, device):
    """Print the time of a pruning step and of pruned models, each in turn with what it is compared
    with.

    model: whose sizes are used; task: whose rows are read; turns: steps of each kind. Raises
    UserError.
    """
    cfg = replace(cofi.Settings.for_task(task), model=model, batch_size=batch_size,
                  threads=threads, mask_start=0.0, device=device, prune_epochs=1e4)
    cfg.check()
    device, tokenizer, config = setup(cfg, cofi.Config)
    data, config = load_data(cfg, config, tokenizer)
    if not config.id2label:
        raise UserError(f"--task must have classes for the benchmark, got {task}")
    benchmark_memory(cfg, config, device, data, turns)      # first: the peak never falls
    benchmark_step(cfg, config, device, data, turns)
    benchmark_sparsities(cfg, config, device, data, turns)
    benchmark_pruned(config, device, measured_length(config))
