"""Unlike cofi.py, SparseBERT prunes single weights, by magnitude, while BERT is distilled.

After Xu, Yen, Zhao and Xiao, "Rethinking Network Pruning - under the Pre-train and Fine-tune
Paradigm", NAACL 2021 (arXiv 2104.08682).

    python sparsebert.py                        three strategies at 95 % on the toy, offline
    python sparsebert.py --task mrpc --strategy distil
    python sparsebert.py --sparsity 0.5,0.8,0.9,0.95           the paper's figures 4 and 5

Nothing has to be learned here about what to prune: the smallest weights go. And nothing can be
cut: zeros stay where they were, so what they are worth has to be measured (part 6). The question
is when to prune. The pre-trained BERT knows the language in general, the fine-tuned one knows the
task as well, and figure 1 of the paper compares three ways to keep both, (b) to (d):

    prune_first      (b) prune the pre-trained BERT, then fine-tune it
    finetune_first   (c) fine-tune BERT, then prune it on the task's loss
    distil           (d) prune the pre-trained BERT while it is distilled from the fine-tuned one

A fourth strategy, small_dense, is what the paper argues against: a BERT without zeros, but with
fewer layers, heads and FFN units, distilled as in (d).

To be read from the top, in the order of cofi.py, where BERT, evaluation and teacher come from.

    0  Settings              every number one may set, with its source
    1  Magnitude             which weights stay, and how many at which step
    2  Distillation          hidden states, attention scores, predictions
    3  Small and dense       the counterpart of equal size
    4  Augmentation          other words in the same sentence
    5  Training              one loop for all strategies
    6  What it buys          weights, multiply-adds, bytes, milliseconds
    7  Main                  the comparison

The two alphabets of cofi.py, except that here t is time: s(t) is the sparsity at the share t of
the pruning.
"""
import copy
import math
import sys
import time
import warnings
from dataclasses import dataclass, fields, replace

from data import (BadInput, Run, guarded, joined, load_task, make_parser, read_mlm_head, setting,
                  settings, write, write_json)

# --------------------------------------------------------------------------------------------------
# 0. Settings: every number one may set, its default and its source
# --------------------------------------------------------------------------------------------------

STRATEGIES = ("prune_first", "finetune_first", "distil", "small_dense")
NAMES = dict(zip(STRATEGIES, ("(b) prune, then fine-tune", "(c) fine-tune, then prune",
                              "(d) prune while distilling", "small and dense, distilled")))


@dataclass
class Settings(Run):
    """Beside those of Run, which cofi.py has too."""
    sparsity: str = setting("0.95", "share of zeros in each matrix, or several with commas between")
    strategy: str = setting("prune_first,finetune_first,distil",
                            f"some of {' '.join(STRATEGIES)}, with commas between")
    prune_epochs: float = setting(None, "epochs; paper: 12 for MRPC, 5 for QNLI, augmented",
                                  between=(0.001, 1e4))
    lr: float = setting(3e-5, "learning rate; paper: 3e-5", between=(1e-9, 1))
    decay: bool = setting(False, "let it fall linearly to 0; paper: constant")
    weight_decay: float = setting(0.01, "of AdamW; paper: .01", between=(0, 10))
    events: int = setting(100, "times that weights are pruned; paper: about 100",
                          between=(1, 10**6))
    end: float = setting(1.0, "share of the steps after which nothing more is pruned, the rest is "
                         "for recovery; paper: 1, none", between=(0.01, 1))
    block: int = setting(1, "prune blocks of so many weights in both directions; paper: 1",
                         between=(1, 1024))
    hidden_weight: float = setting(1.0, "weight of L_hidden; paper: 1", between=(0, 1000))
    attention_weight: float = setting(1.0, "weight of L_att; paper: 1", between=(0, 1000))
    pred_weight: float = setting(1.0, "weight of L_pred, 0: labels instead; paper: 1",
                                 between=(0, 1000))
    augment: int = setting(0, "copies of the training set with other words, labels kept, right or "
                           "not; paper: some 60 for MRPC", between=(0, 1000))

    BY_SIZE = {       # of the task; ours
        "small": Run.BY_SIZE["small"] | {"prune_epochs": 12},
        "large": Run.BY_SIZE["large"] | {"prune_epochs": 5},
        "squad": Run.BY_SIZE["squad"] | {"prune_epochs": 5},
        "toy": Run.BY_SIZE["toy"] | {"prune_epochs": 4, "lr": 1e-3}}

    def sparsities(self):
        """The sparsities as numbers."""
        try:
            return [float(s) for s in self.sparsity.split(",")]
        except ValueError as error:
            raise BadInput(f"--sparsity {self.sparsity}: want a number such as 0.95, or several "
                           "with commas between") from error

    def check(self):
        super().check()
        for s in self.sparsities():
            if not 0 <= s <= 0.999:
                hint = f"; did you mean {s / 100:g}?" if 1 < s <= 99.9 else ""
                raise BadInput(f"--sparsity {s:g}: want a number from 0 to 0.999{hint}")
        for name in self.strategy.split(","):
            if name not in STRATEGIES:
                raise BadInput(f"--strategy {name}: want some of {', '.join(STRATEGIES)}")


if __name__ == "__main__" and {"-h", "--help"} & {*sys.argv}:      # before torch, as in cofi.py
    make_parser(Settings, __doc__).print_help()
    sys.exit()

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import cofi
from cofi import check_finite, evaluate, finished_before, has_bf16, label_loss, pred_loss, to

# --------------------------------------------------------------------------------------------------
# 1. Magnitude: which weights stay, and how many at which step
# --------------------------------------------------------------------------------------------------


def matrices(bert):
    """{name: weight} of what is pruned: the encoder's matrices, six a layer. BERT-base: 72.

    Not pruned: embeddings, biases, LayerNorms, pooler, classifier.
    """
    return {name: w for name, w in bert.layers.named_parameters() if w.dim() == 2}


def blocks_of(x, block):
    """x (rows, columns) as blocks: (rows / block, columns / block, block, block)."""
    rows, columns = x.shape
    return x.view(rows // block, block, columns // block, block).transpose(1, 2)


def how_many(n, sparsity):
    """How many of n are kept. The 1e-6: (1 - 0.9) * 10 is 0.99999... to a computer."""
    return math.floor((1 - sparsity) * n + 1e-6)


@torch.no_grad()
def magnitude_mask(weight, mask, sparsity, block=1):
    """The mask of the largest weights, exactly floor((1 - sparsity) n) of the n in the matrix.

    weight (rows, columns); mask, the one before, bool alike: what was pruned is not revived. With
    block > 1 whole blocks of block x block weights stay or go, by the sum of their magnitudes.
    Returns bool (rows, columns).

    Example:
    >>> W = torch.tensor([[0.1, -0.9], [0.5, 0.2]])
    >>> magnitude_mask(W, torch.tensor([[True, False], [True, True]]), 0.5)
    tensor([[False, False],
            [ True,  True]])
    """
    score = blocks_of(weight.abs(), block).sum((-1, -2))    # (rows / block, columns / block)
    score = score.masked_fill(~blocks_of(mask, block).any(-1).any(-1), -1)  # no regrowth
    kept = how_many(score.numel(), sparsity)
    new = torch.zeros(score.numel(), dtype=torch.bool, device=weight.device)
    new[score.flatten().topk(kept).indices] = True                  # § magnitude mask
    return new.view_as(score).repeat_interleave(block, 0).repeat_interleave(block, 1)


def cubic(t, sparsity):
    """s(t): fast while there is much to take, slow at the end. t: share of pruning done, 0 to 1.

    Example:
    >>> [round(cubic(t, 0.8), 3) for t in (0, 0.25, 0.5, 1)]
    [0.0, 0.463, 0.7, 0.8]
    """
    return sparsity * (1 - (1 - t) ** 3)                            # § cubic schedule


def events(steps, cfg, sparsity):
    """{step: s}: cfg.events steps at which weights are pruned, the last at cfg.end of all."""
    last = max(1, math.floor(cfg.end * steps))
    return {math.ceil(last * i / cfg.events): cubic(i / cfg.events, sparsity)
            for i in range(1, cfg.events + 1)}


@torch.no_grad()
def prune(bert, masks, sparsity, block):
    """New masks of all matrices, and their zeros put in place. masks: {name: bool}, changed."""
    for name, w in matrices(bert).items():
        masks[name] = magnitude_mask(w, masks[name], sparsity, block)
    put_zeros(bert, masks)


@torch.no_grad()
def put_zeros(bert, masks):
    """0 wherever a mask is closed. masks: {name: bool}, or {} where nothing is pruned."""
    pruned = matrices(bert)
    for name, mask in masks.items():
        pruned[name].masked_fill_(~mask, 0)


def open_masks(bert):
    return {name: torch.ones_like(w, dtype=torch.bool) for name, w in matrices(bert).items()}


# --------------------------------------------------------------------------------------------------
# 2. Distillation: hidden states, attention scores before softmax, predictions
# --------------------------------------------------------------------------------------------------


def hidden_loss(H_s, H_t, real):
    """MSE of hidden states (B, T, d) over the real tokens. real (B, T) bool, False at padding."""
    error = (H_s - H_t.float()).square().mean(-1)                   # (B, T)
    return (error * real).sum() / real.sum()                        # ()             § L_hidden


def attention_loss(A_s, A_t, real):
    """MSE of attention scores before softmax, (B, h, T, T), from real tokens to real tokens."""
    both = (real[:, :, None] & real[:, None, :])[:, None]           # (B, 1, T, T)
    error = (A_s.float() - A_t.float()).square() * both             # (B, h, T, T)
    return error.sum() / (both.sum() * A_s.shape[1])                # ()             § L_att


def distillation(bert, out, teacher, out_t, batch, heads, labels=False):
    """(L_hidden, L_att, L_pred) as a tensor (3), the first two summed over the layers.

    bert, teacher: the networks; out, out_t: their Outputs; batch: {"real", "label"}; heads: {layer:
    numbers of the teacher's heads that its own correspond to}, for each layer there is. Nothing is
    projected: both have the same width. Labels stand in for the teacher's prediction if `labels`,
    and for a regression. (KL for soft cross-entropy: the same gradient, and 0 where they agree.)
    """
    real, own, other = batch["real"], out.hidden, out_t.hidden
    hidden, attention = hidden_loss(own[0], other[0], real), 0.0    # of the embeddings
    for i, numbers in heads.items():
        hidden = hidden + hidden_loss(own[i + 1], other[i + 1], real)
        with torch.no_grad():
            A_t = teacher.layers[i].mha.scores(other[i])[:, numbers]    # (B, h, T, T)
        attention = attention + attention_loss(bert.layers[i].mha.scores(own[i]), A_t, real)
    if labels or out.logits.shape[-1] == 1:
        pred = label_loss(out.logits.float(), batch["label"])
    else:
        pred = pred_loss(out.logits.float(), out_t.logits.float(), 1.0)     # ()   § L_pred
    return torch.stack([hidden, attention, pred])                   # (3)


# --------------------------------------------------------------------------------------------------
# 3. Small and dense: the counterpart of equal size
# --------------------------------------------------------------------------------------------------


def small_sizes(config, sparsity):
    """(layers that stay, heads, FFN units) of a BERT with as many weights as a sparse one keeps.

    A third of the layers (as 4-layer BERTs distilled from 12), or as many as it needs, evenly
    spaced; in each about a third of the weights in the MHA and two thirds in the FFN, as in BERT.
    Raises BadInput if there are too few for a head and a unit.
    """
    L, h, f = len(config.heads), config.heads[0], config.ffn[0]
    of_head, of_unit = 4 * config.d * config.k, 2 * config.d
    of_layer = h * of_head + f * of_unit
    kept = how_many(L * of_layer, sparsity)
    n = max(math.ceil(L / 3), math.ceil(kept / of_layer))
    h = min(max(1, round(kept / n / 3 / of_head)), h)
    f = min(math.floor((kept / n - h * of_head) / of_unit), f)
    if f < 1:
        raise BadInput(f"--strategy small_dense --sparsity {sparsity:g}: {kept:,} weights are "
                       "less than a head and a unit a layer; want a lower --sparsity")
    return [math.ceil(L * i / n) - 1 for i in range(1, n + 1)], h, f


@torch.no_grad()
def small_dense(bert, sparsity):
    """A BERT with fewer layers, heads and FFN units, and no zeros; see small_sizes.

    It begins with the heads and units of largest magnitude. Returns (BERT, heads): for each layer
    that is left the numbers of its heads.
    """
    c, L, (stay, h, f) = bert.config, len(bert.layers), small_sizes(bert.config, sparsity)
    z = {"z_mha": torch.zeros(L), "z_head": torch.zeros(L, c.heads[0]), "z_ffn": torch.zeros(L),
         "z_int": torch.zeros(L, c.ffn[0]), "z_hidn": torch.ones(c.d)}
    for i in stay:
        mha, ffn = bert.layers[i].mha, bert.layers[i].ffn
        heads = sum(w.abs().unflatten(0, (-1, c.k)).sum((1, 2)) for w in (
            mha.query.weight, mha.key.weight, mha.value.weight, mha.out.weight.T))  # (c.heads[0])
        units = ffn.up.weight.abs().sum(1) + ffn.down.weight.abs().sum(0)           # (c.ffn[0])
        z["z_mha"][i] = z["z_ffn"][i] = 1
        z["z_head"][i, heads.topk(h).indices.cpu()] = 1
        z["z_int"][i, units.topk(f).indices.cpu()] = 1
    device = bert.classifier.weight.device
    small = cofi.cut(bert, {group: mask.to(device) for group, mask in z.items()})
    return small, {i: z["z_head"][i].nonzero()[:, 0].to(device) for i in stay}


# --------------------------------------------------------------------------------------------------
# 4. Augmentation: other words in the same sentence, by the model's own masked-LM head
# --------------------------------------------------------------------------------------------------


@torch.no_grad()
def augment(rows, bert, head, mask_id, special, copies, share=0.15, candidates=15):
    """Rows with `copies` more of each, in which some words are replaced; labels stay.

    bert: pre-trained; head: from read_mlm_head; mask_id, special: tokens, the mask and those never
    replaced. A share of the tokens is masked at once, each filled with one of the most probable
    candidates, drawn by probability. (Ours; TinyBERT masks one word at a time, and more of them.)
    """
    device, made = bert.classifier.weight.device, [rows]
    special = torch.tensor(sorted(special), device=device)
    for _ in range(copies):
        new = rows.ids.copy()
        for numbers, batch in cofi.batches(rows, 64):
            x, _ = to(device, batch)
            free = x["real"] & ~torch.isin(x["ids"], special)       # (B, T)
            chosen = free & (torch.rand(free.shape, device=device) < share)
            masked = x | {"ids": x["ids"].masked_fill(chosen, mask_id)}
            h = F.gelu(F.linear(bert.eval()(**masked).hidden[-1][chosen], *head["dense"]))
            h = F.layer_norm(h, h.shape[-1:], *head["norm"], bert.config.eps)   # (words, d)
            logits = F.linear(h, bert.embeddings.word.weight, head["bias"])     # (words, vocab)
            logits[:, special] = -torch.inf
            best = logits.topk(min(candidates, logits.shape[-1]))
            pick = torch.multinomial(best.values.softmax(-1), 1)
            ids = x["ids"].masked_scatter(chosen, best.indices.gather(1, pick)[:, 0]).cpu().numpy()
            for i, row in enumerate(numbers):
                new[rows.start[row]:rows.start[row + 1]] = ids[i][batch["real"][i].numpy()]
        made.append(replace(rows, ids=new))
    return joined(made)


# --------------------------------------------------------------------------------------------------
# 5. Training: one loop for all strategies
# --------------------------------------------------------------------------------------------------

def train(strategy, bert, data, cfg, journal, masks, sparsity, teacher=None, heads=None, extra=0):
    """Prunes and trains in place; masks are changed, too.

    data: a Dataset; journal: called about five times with a dict, and keeps the state, as in
    cofi.py; teacher: a BERT in eval mode for what is distilled, else the labels teach; heads: for
    distillation(); extra: steps beyond the plan. Returns the last dev scores, and the seconds.
    """
    device = bert.classifier.weight.device
    total, lr = cofi.plan("prune", len(data.train), cfg)
    total, bf16 = total + extra, cfg.bf16 and has_bf16(device)
    due, s = events(total, cfg, sparsity), 0.0
    if strategy in ("prune_first", "small_dense"):          # everything is decided at the start
        due, s = {}, sparsity if masks else 0.0
    weight = torch.tensor([cfg.hidden_weight, cfg.attention_weight, cfg.pred_weight or 1.0]
                          if teacher else [0.0, 0.0, 1.0], device=device)
    torch.manual_seed(cfg.seed)
    bert.train()
    optimizer = torch.optim.AdamW(bert.parameters(), lr, weight_decay=cfg.weight_decay, fused=True)
    stage, things = f"{strategy}-{sparsity:g}", {"bert": bert, "optimizer": optimizer}
    done, rest = journal.begin(stage, things)
    masks.update({name: mask.to(device) for name, mask in rest.get("masks", {}).items()})
    s, scores = rest.get("s", s), rest.get("scores")
    sums, before = torch.as_tensor(rest.get("sums", 0.0), device=device), torch.zeros(3)
    began, every = time.perf_counter() - rest.get("seconds", 0), max(1, total // 5)
    batches_left = cofi.epochs(data.train, cfg.batch_size, cfg.seed, total, done)
    for step, (_, batch) in journal.steps(batches_left, stage, total, done):
        x, label = to(device, batch)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            out = bert(**x)
            if teacher:
                with torch.no_grad():
                    out_t = teacher(**x)
                now = distillation(bert, out, teacher, out_t, x | {"label": label}, heads,
                                   labels=not cfg.pred_weight)
            else:
                now = F.pad(label_loss(out.logits.float(), label)[None], (2, 0))       # 0, 0, loss
            loss = (now * weight).sum()
        optimizer.param_groups[0]["lr"] = lr * (1 - (step - 1) / total if cfg.decay else 1)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(bert.parameters(), 1.0)
        logging = step % every == 0 or step == total
        saving = step == total or journal.due()
        if device.type == "cpu" or logging or saving or step % 50 == 0:     # asking stops a GPU
            check_finite(stage, step, loss.detach(), norm, before.tolist())
        optimizer.step()
        if step in due:
            s = due[step]
            prune(bert, masks, s, cfg.block)
        else:       # after every step: momentum revives what was pruned
            put_zeros(bert, masks)
        before, sums = now.detach(), sums + now.detach()
        if logging:
            losses = (sums / (step % every or every)).tolist()
            scores, sums = evaluate(bert, data.dev, data.metrics), 0
            journal({"stage": stage, "strategy": strategy, "target": sparsity, "step": step,
                     "of": total, **dict(zip(("L_hidden", "L_att", "L_pred"), losses)), "s": s,
                     "scores": scores})
        if saving:
            journal.save(stage, step, things, masks=masks, s=s, sums=sums, scores=scores,
                         seconds=time.perf_counter() - began)
    return scores, time.perf_counter() - began


# --------------------------------------------------------------------------------------------------
# 6. What it buys: weights, multiply-adds, bytes and milliseconds
# --------------------------------------------------------------------------------------------------


def counts(bert, length=128):
    """Three honest counts: {what: (dense, now)}.

    "matrices": the weights that are pruned; "model": all parameters, embeddings included;
    "multiply-adds": of one token in a sequence of `length`, attention between tokens included.
    """
    dense = cofi.encoder_parameters(bert)
    kept = sum(int(w.count_nonzero()) for w in matrices(bert).values())
    everything = sum(p.numel() for p in bert.parameters())
    attention = sum(2 * length * h * bert.config.k for h in bert.config.heads)
    return {"matrices": (dense, kept), "model": (everything, everything - dense + kept),
            "multiply-adds": (dense + attention, kept + attention)}


def save_sparse(path, bert):
    """Writes all weights; of each matrix a bit for every place and the values that are not 0.

    Returns (bytes of the matrices in this file, bytes of them dense).
    """
    pruned, out, size, dense = {f"layers.{name}" for name in matrices(bert)}, {}, 0, 0
    for name, w in bert.state_dict().items():
        w = w.cpu()
        if name in pruned:
            bits = torch.from_numpy(np.packbits((w != 0).numpy()))
            out[name] = {"shape": list(w.shape), "bits": bits, "values": w[w != 0]}
            size += bits.nbytes + out[name]["values"].nbytes
            dense += w.nbytes
        else:
            out[name] = w
    write(path, lambda file: torch.save(out, file))
    return size, dense


def load_sparse(path):
    """{name: weight}, dense again, from a file of save_sparse. Runs no code of the file."""
    weights = torch.load(path, map_location="cpu", weights_only=True)
    for name, w in weights.items():
        if isinstance(w, dict):
            bits = np.unpackbits(w["bits"].numpy(), count=math.prod(w["shape"]))
            dense = torch.zeros(bits.shape, dtype=w["values"].dtype)
            dense[torch.from_numpy(bits).bool()] = w["values"]
            weights[name] = dense.view(w["shape"])
    return weights


class SparseLinear(nn.Module):
    """A Linear whose matrix is stored by rows (CSR): only what is not 0 is multiplied.

    The matrix stands on the left and the tokens are columns, W x^T: that is several times as fast
    as F.linear(x, W), which PyTorch accepts as well and is no faster than the dense one.
    """

    def __init__(self, linear):
        super().__init__()
        with warnings.catch_warnings():     # "beta state", said once for every program
            warnings.simplefilter("ignore")
            self.weight = linear.weight.detach().to_sparse_csr()
        self.bias = linear.bias.detach()[:, None]                   # (outputs, 1)

    def forward(self, x):
        columns = x.flatten(0, -2).T                                # (inputs, tokens)
        return torch.addmm(self.bias, self.weight, columns).T.unflatten(0, x.shape[:-1])


def with_csr(bert):
    """A copy of a BERT whose encoder multiplies with sparse matrices. For inference on a CPU."""
    bert = copy.deepcopy(bert).eval()
    for layer in bert.layers:
        for part in (layer.mha, layer.ffn):
            for name, module in list(part.named_children()) if part else []:
                if isinstance(module, nn.Linear):
                    setattr(part, name, SparseLinear(module))
    return bert


def speedup_csr(bert, batch_sizes=(1, 8), lengths=(32, 128), seconds=2.0):
    """{"rows x length": how many times faster with_csr(bert) is than bert, dense}, on the CPU."""
    dense = copy.deepcopy(bert).cpu().eval()
    sparse, ratio = with_csr(dense), {}
    for length in sorted({min(length, dense.config.positions) for length in lengths}):
        times = cofi.speedup(dense, sparse, batch_sizes, length, seconds)
        ratio |= {f"{rows} x {length}": x for rows, x in times.items()}
    return ratio


def report_gain(name, bert, file_sizes, ratio, device):
    """Prints what the zeros of a model are worth, each beside its dense counterpart."""
    print(f"\nwhat the zeros of {name} buy")
    for what, (dense, now) in counts(bert).items():
        print(f"  {what:22}{dense:>14,} -> {now:<14,}{dense / now:5.1f}x")
    sparse, dense = file_sizes
    print(f"  {'bytes of the matrices':22}{dense:>14,} -> {sparse:<14,}{dense / sparse:5.1f}x   "
          "as a sparse file; saved as usual they stay what they were")
    times = "   ".join(f"{x:.1f}x at {size}" for size, x in ratio.items())
    print(f"  speed, CSR on the CPU: {times}   (rows x length, fp32, {torch.get_num_threads()} "
          "threads)")
    if device.type == "cuda":
        print("  on a GPU expect no speed of single zeros: it multiplies them like other numbers")


# --------------------------------------------------------------------------------------------------
# 7. Main: the comparison
# --------------------------------------------------------------------------------------------------

LEGEND = """\
L_hidden, L_att, L_pred   means since the last line, before their weights; L_pred is the loss of the
                          labels where nothing is distilled
s                         share of zeros;   dev: the score of the dev set

strategy           step  L_hidden     L_att    L_pred       s     dev"""


class Log(cofi.Log):
    """As in cofi.py, with other columns."""

    def line(self, record):
        dev = next(iter(record["scores"].values()))
        return ("{strategy:15}{step:8}{L_hidden:10.4f}{L_att:10.4f}{L_pred:10.4f}{s:8.4f}"
                .format(**record) + f"{dev:8.4f}")


def begin(strategy, cfg, config, teacher, sparsity):
    """Where a strategy begins. Returns (student, masks, heads)."""
    if strategy == "finetune_first":
        bert = copy.deepcopy(teacher)
    else:
        bert, _ = cofi.new_bert(cfg, config, teacher.classifier.weight.device)
    if strategy == "small_dense":
        small, heads = small_dense(bert, sparsity)
        return small, {}, heads
    masks = open_masks(bert)
    if strategy == "prune_first":
        prune(bert, masks, sparsity, cfg.block)
    return bert, masks, {i: slice(None) for i in range(len(bert.layers))}


def check_zeros(bert, masks, sparsity, block):
    """Asserts that every matrix has kept exactly as many blocks as it should, and no other."""
    pruned = matrices(bert)
    for name, mask in masks.items():
        kept = how_many(mask.numel() // block**2, sparsity) * block**2
        assert int(mask.sum()) == kept and not pruned[name][~mask].any(), name


def check_sizes(config, sparsity, block):
    """Raises BadInput if the matrices have no such blocks, or if not even one would stay."""
    width = config.heads[0] * config.k
    for rows, columns in (width, config.d), (config.ffn[0], config.d):
        if rows % block or columns % block:
            raise BadInput(f"--block {block}: does not divide a matrix of {rows} x {columns}; want "
                           "one that does")
        if how_many(rows * columns // block**2, sparsity) < 1:
            raise BadInput(f"--block {block} --sparsity {sparsity:g}: nothing is left of a matrix "
                           f"of {rows} x {columns}; want smaller blocks or a lower sparsity")


def with_other_words(data, cfg, config, tokenizer, device):
    """A copy of the Dataset, its training set augmented by cfg.augment copies."""
    special = [tokenizer.token_to_id(t) for t in ("[MASK]", "[PAD]", "[UNK]", "[CLS]", "[SEP]")]
    head, bert = read_mlm_head(cfg.model, device), cofi.new_bert(cfg, config, device)[0]
    data = copy.copy(data)
    data.train = augment(data.train, bert, head, special[0], special, cfg.augment)
    return data


def run(cfg):
    """The comparison: every strategy at every sparsity; what was done before is not done again."""
    device, config, tokenizer = cofi.set_up(cfg)
    for sparsity in cfg.sparsities():       # what cannot be done is better said before the training
        check_sizes(config, sparsity, cfg.block)
        if "small_dense" in cfg.strategy.split(","):
            small_sizes(config, sparsity)
    data = load_task(cfg.task, tokenizer, min(cfg.max_length, config.positions), cfg.data)
    config = replace(config, labels=data.names, span=data.span, task=cfg.task)
    folder = cofi.folder_for(cfg, ["sparsebert", cfg.task, cfg.sparsity],
                             {f.name for f in fields(cfg)} - {"sparsity"})
    same = cofi.what_counts(cfg, data)
    if not cfg.fresh and (before := finished_before(folder, same, fresh=False)):
        print(f"run        {folder}, finished before; --fresh does it over")
        return print("\n" + table(before["rows"]))
    notes = [f"note       {note}" for note in cofi.new_bert(cfg, config, device)[1]]
    print("\n".join([f"run        {folder}", *notes, "", cofi.LEGEND.splitlines()[-1]]))
    teacher, scores, _ = cofi.get_teacher(cfg, config, data, tokenizer, device)
    journal = Log(folder, same, cfg.save_every, cfg.fresh)
    for name in ("d", "k", "heads", "ffn"):
        if getattr(teacher.config, name) != getattr(config, name):
            raise BadInput(f"--teacher {cfg.teacher}: its {name} is not that of {cfg.model}; want "
                           "two models of one shape")
    print(f"\n{LEGEND}")
    augmented = with_other_words(data, cfg, config, tokenizer, device) if cfg.augment else data
    rows = [row_of("teacher", 0, teacher, scores, data)]
    for sparsity in cfg.sparsities():
        for strategy in cfg.strategy.split(","):
            rows.append(one_of(strategy, sparsity, cfg, config, teacher, augmented, data, tokenizer,
                               journal))
    print("\n" + table(rows))
    result = {"rows": rows, "settings": same, "device": cofi.device_name(device)}
    result |= gain(folder, rows, device)
    write_json(folder / "result.json", result)
    journal.done()


def row_of(strategy, sparsity, bert, scores, data):
    """A row of the table: the dev scores, and the first of them on rows of the training set."""
    of_train = evaluate(bert, data.train.head(1000), data.metrics)[data.metrics[0]]
    return {"strategy": strategy, "sparsity": sparsity, "scores": scores, "train": of_train,
            "kept": counts(bert)["matrices"][1]}


def one_of(strategy, sparsity, cfg, config, teacher, augmented, data, tokenizer, journal):
    """One strategy at one sparsity, trained and saved, unless it was before: its row."""
    folder, same = journal.folder / f"{strategy}-{sparsity:g}", journal.settings
    if before := finished_before(folder, same, fresh=False):
        return {name: x for name, x in before.items() if name != "settings"}
    bert, masks, heads = begin(strategy, cfg, config, teacher, sparsity)
    # the others have the steps of their teacher behind them; prune_first has no teacher
    extra = cofi.plan("teacher", len(data.train), cfg)[0] if strategy == "prune_first" else 0
    guide = teacher if strategy in ("distil", "small_dense") else None
    scores, seconds = train(strategy, bert, augmented, cfg, journal, masks, sparsity, guide, heads,
                            extra)
    check_zeros(bert, masks, sparsity, cfg.block)
    row = row_of(strategy, sparsity, bert, scores, data) | {"seconds": seconds}
    cofi.save(folder, bert, tokenizer, row | {"settings": same})
    journal.forget(f"{strategy}-{sparsity:g}")
    return row


def gain(folder, rows, device):
    """What the zeros of the last sparse model buy: measured, printed, and returned."""
    sparse = [row for row in rows if row["strategy"] not in ("teacher", "small_dense")]
    if not sparse:
        return {}
    name = f"{sparse[-1]['strategy']}-{sparse[-1]['sparsity']:g}"
    bert = cofi.load_bert(folder / name)[0].eval()
    file_sizes = save_sparse(folder / name / "sparse.bin", bert)
    ratio = speedup_csr(bert)
    report_gain(name, bert, file_sizes, ratio, device)
    return {"sparse": name, "bytes": file_sizes, "speedup": ratio}


def table(rows):
    """The comparison as text: dev scores (figure 4) and the fit of the training set (figure 5)."""
    names = list(rows[0]["scores"])
    head = "".join(f"{name:>12}" for name in names)
    lines = [f"sparsity  {'':28}{'weights':>12}{head}  of the training set"]
    for row in rows:
        scores = "".join(f"{row['scores'][name]:12.4f}" for name in names)
        lines.append(f"{row['sparsity']:<10g}{NAMES.get(row['strategy'], 'teacher'):28}"
                     f"{row['kept']:12,}{scores}{row['train']:12.4f}")
    return "\n".join(lines)


def job(arguments):
    """What the command line asks for."""
    given = vars(make_parser(Settings, __doc__).parse_args(arguments))
    run(settings(Settings, {name: x for name, x in given.items() if x is not None}))


def main(arguments=None):
    return guarded("sparsebert", job, arguments)


if __name__ == "__main__":
    sys.exit(main())
