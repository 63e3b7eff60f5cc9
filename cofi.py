"""CoFi in one file: BERT pruned from whole layers down to single FFN units, while it is distilled.

After Xia, Zhong and Chen, "Structured Pruning Learns Compact and Accurate Models", ACL 2022
(arXiv 2204.00408).

    python cofi.py                                     a toy, offline, in three minutes
    python cofi.py --task rte                          teacher -> prune -> fine-tune -> report
    python cofi.py --evaluate out/rte-0.95             the score of a finished run, again
    python cofi.py --predict out/rte-0.95 "It rains." "It is dry."

To be read from the top, in the order of the paper:

    0  Settings              every number one may set, with its source
    1  BERT                  the network, and where its five kinds of mask multiply
    2  Hard concrete         how a mask of zeros and ones is learned by gradient descent
    3  Size and Lagrangian   how many weights are left, and how to get to the number asked for
    4  Distillation          what the small network learns from the large one
    5  Cutting               from masks to a smaller network that is equal to the masked one
    6  Training              one loop for all three stages
    7  Report                score, speed, and a drawing of what is left
    8  Main                  one run from beginning to end

A § at the end of a line marks an equation: with a number, of that section of the paper; without
one, from elsewhere or ours. The README lists them all, with their tests.
Two alphabets. Dimensions, in the shape at the end of a line:

    B batch   T tokens   L layers   d hidden width   h heads   k width of a head   f FFN units

and the symbols of the paper:

    z_mha (L)   z_head (L, h)   z_ffn (L)   z_int (L, f)   z_hidn (d)    masks in [0, 1]; 0 prunes
    log_alpha          what is learned: one number behind each mask
    s, t               sparsity, the share of the encoder's weights that is gone; its target
    lambda1, lambda2   the multipliers that bring s to t
    H_s, H_t           hidden states of student and teacher; m(i) the student layer matched to i
"""
import functools
import hashlib
import itertools
import json
import math
import re
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from data import (TASKS, BadInput, Journal, Run, batches, chart, differing, fetch, guarded,
                  load_task, load_tokenizer, make_parser, read_config, read_model, read_weights,
                  rows_from_text, setting, settings, windows_from_text, write, write_checkpoint,
                  write_json, write_submission, write_text)

# --------------------------------------------------------------------------------------------------
# 0. Settings: every number one may set, its default and its source
# --------------------------------------------------------------------------------------------------


@dataclass
class Settings(Run):
    """What CoFi needs beside Run (data/flags.py: task, model, seed ...). Every field is a flag.

    None: it depends on the task, see BY_SIZE, which also changes other defaults for the toy.
    """
    sparsity: float = setting(0.95, "share of the encoder's weights to prune; paper: .60 to .95",
                              between=(0, 0.99))
    masks: str = setting("mha,head,ffn,int,hidn", "masks to learn, others stay open; paper: all")
    matching: str = setting(None, "layer matching; paper: ordered on small sets, else free",
                            among=("free", "ordered", "fixed"))
    layer_weight: float = setting(0.5, "weight of L_layer, 0: off; paper: .9, .7 or .5 by grid",
                                  between=(0, 1000))
    pred_weight: float = setting(0.5, "weight of L_pred, 0: labels instead; paper: .1, .3 or .5",
                                 between=(0, 1000))
    temperature: float = setting(2.0, "of L_pred; authors' code: 2", between=(0.01, 100))
    prune_epochs: float = setting(None, "epochs of pruning in all; paper: 100 small sets, 20 large",
                                  between=(0.001, 1e4))
    finetune_epochs: float = setting(None, "epochs of the cut model; paper: 20",
                                     between=(0.001, 1e4))
    start: float = setting(None, "share of pruning before the first mask; paper: 4/100, 1/20",
                           between=(0, 0.9))
    warmup: float = setting(None, "share of pruning while t rises; paper: 20/100, 2/20",
                            between=(0, 0.9))
    lr: float = setting(2e-5, "learning rate while pruning; paper: 2e-5; a run of few epochs wants "
                        "more, and the smaller model that is left more still", between=(1e-9, 1))
    finetune_lr: float = setting(2e-5, "learning rate of the cut model; paper: 1e-5, 2e-5, 3e-5",
                                 between=(1e-9, 1))
    mask_lr: float = setting(0.01, "learning rate of log_alpha; paper: .01; both this and the next "
                             "are multiplied by 10,000 / steps in a shorter run, at most by 20",
                             between=(1e-9, 10))
    lambda_lr: float = setting(0.3, "learning rate of lambda1 and lambda2; ours", between=(0, 1000))
    lambda2: float = setting(100.0, "where lambda2 starts; ours: the lower, the later s follows t, "
                             "and overshoots; the higher, the less time the weights have",
                             between=(0, 1e6))

    BY_SIZE = {       # the paper's table of hyper-parameters; the toy's are ours
        "small": Run.BY_SIZE["small"] | {
            "matching": "ordered", "prune_epochs": 100, "start": 4 / 100, "warmup": 20 / 100,
            "finetune_epochs": 20},
        "large": Run.BY_SIZE["large"] | {
            "matching": "free", "prune_epochs": 20, "start": 1 / 20, "warmup": 2 / 20,
            "finetune_epochs": 20},
        "squad": Run.BY_SIZE["squad"] | {
            "matching": "free", "prune_epochs": 20, "start": 1 / 20, "warmup": 2 / 20,
            "finetune_epochs": 20, "lr": 3e-5},
        "toy": Run.BY_SIZE["toy"] | {
            "matching": "ordered", "sparsity": 0.9, "prune_epochs": 7, "start": 0.1, "warmup": 0.5,
            "finetune_epochs": 3, "lr": 5e-4, "finetune_lr": 5e-4, "lambda2": 1000.0}}

    def check(self):
        super().check()
        for name in self.masks.split(","):
            if f"z_{name}" not in Masks.GROUPS:
                raise BadInput(f"--masks {self.masks}: there is no mask {name!r}; want some of "
                               "mha,head,ffn,int,hidn, with commas between")
        if self.start + self.warmup > 1:
            raise BadInput(f"--start {self.start:g} --warmup {self.warmup:g}: more than all of "
                           "pruning; want at most 1 together")


COMMANDS = {      # what to do instead of a run: {flag: (its words, help)}
    "evaluate": ("MODEL", "score a finished run, or another fine-tuned BERT, again"),
    "predict": (("MODEL", "WORDS"), "MODEL SENTENCE [SENTENCE], MODEL QUESTION CONTEXT"),
    "submit": ("MODEL", "write its answers to the test set for GLUE's server"),
    "export": ("FOLDER", "write model.pt2, a program for torch alone")}

if __name__ == "__main__" and {"-h", "--help"} & {*sys.argv}:      # before torch, which takes a
    make_parser(Settings, __doc__, COMMANDS).print_help()           # second to load
    sys.exit()

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

# --------------------------------------------------------------------------------------------------
# 1. BERT: post-norm Transformer layers, and where the masks multiply
# --------------------------------------------------------------------------------------------------


@dataclass
class Config:
    """The sizes of a BERT. Layers may differ: a cut model is a BERT with uneven layers."""
    vocab: int
    positions: int            # position embeddings, so the longest sequence
    types: int                # kinds of segment: 2
    d: int
    k: int
    heads: list               # h of each layer; 0: the layer has no MHA
    ffn: list                 # f of each layer; 0: the layer has no FFN
    pooler: int               # outputs of the pooler, which is not pruned
    dropout: float = 0.1
    eps: float = 1e-12        # of LayerNorm
    labels: list | None = None    # class names; None: regression, one output
    span: bool = False        # the classifier marks where an answer starts and ends
    task: str = ""            # what the classifier was trained for


def gate(x, *masks):
    """x times its masks; None stands for one that is not there, which costs nothing.

    In the precision of x: masks are fp32, and bf16 times fp32 is fp32, twice as much to move.
    """
    masks = [z for z in masks if z is not None]
    return x * math.prod(masks).to(x.dtype) if masks else x


class Norm(nn.LayerNorm):
    """LayerNorm over the hidden dimensions that z_hidn keeps, the only ones the cut model has.

    The paper leaves open over what to normalise. Masked sums keep all shapes static. z_hidn comes
    twice: on what a sub-layer adds to the stream, and here on the stream itself, which must be 0
    where a dimension is closed although LayerNorm has a bias.
    """

    def forward(self, x, z_hidn=None):
        """x (B, T, d); z_hidn (d) or None. Returns (B, T, d), 0 where z_hidn is 0."""
        if z_hidn is None:
            return super().forward(x)
        kept = (z_hidn > 0).to(x.dtype)                             # (d)
        n = kept.sum().clamp(min=1)                                 # ()
        x = (x - (x * kept).sum(-1, keepdim=True) / n) * kept       # (B, T, d)
        x = x * torch.rsqrt(x.square().sum(-1, keepdim=True) / n + self.eps)    # (B, T, d)
        return x * (self.weight * z_hidn) + self.bias * z_hidn      # (B, T, d)      §3.1 z_hidn


class MHA(nn.Module):
    """Multi-head attention with h heads of width k, its residual and its LayerNorm."""

    def __init__(self, d, h, k, dropout, eps):
        super().__init__()
        self.k, self.dropout = k, dropout
        self.query, self.key, self.value = (nn.Linear(d, h * k) for _ in range(3))
        self.out, self.norm = nn.Linear(h * k, d), Norm(d, eps)

    def split(self, x):
        """h heads side by side, (B, T, h k), to heads one by one, (B, h, T, k)."""
        return x.unflatten(-1, (-1, self.k)).transpose(1, 2)

    def scores(self, x):
        """x (B, T, d). Returns who attends to whom how much, before softmax, (B, h, T, T)."""
        q, k = self.split(self.query(x)), self.split(self.key(x))   # (B, h, T, k), (B, h, T, k)
        return q @ k.transpose(-1, -2) / math.sqrt(self.k)          # (B, h, T, T)

    def forward(self, x, bias, z_mha=None, z_head=None, z_hidn=None):
        """x (B, T, d); bias (B, 1, 1, T), -inf at padding; z_mha (), z_head (h), z_hidn (d).

        Returns (B, T, d).
        """
        a = (self.scores(x) + bias).softmax(-1)                     # (B, h, T, T)
        v = self.split(self.value(x))                               # (B, h, T, k)
        a = F.dropout(a, self.dropout, self.training) @ v           # (B, h, T, k)
        if z_head is not None:
            a = gate(a, z_head[:, None, None])                      # (B, h, T, k)   §3.1 MHA
        y = self.out(a.transpose(1, 2).flatten(2))                  # (B, T, d)
        y = gate(y, z_mha, z_hidn)                                  # (B, T, d)      §3.1 MHA
        return self.norm(x + F.dropout(y, self.dropout, self.training), z_hidn)


class FFN(nn.Module):
    """Feed-forward network with f units, its residual and its LayerNorm."""

    def __init__(self, d, f, dropout, eps):
        super().__init__()
        self.dropout = dropout
        self.up, self.down, self.norm = nn.Linear(d, f), nn.Linear(f, d), Norm(d, eps)

    def forward(self, x, z_ffn=None, z_int=None, z_hidn=None):
        """x (B, T, d); z_ffn (), z_int (f), z_hidn (d). Returns (B, T, d)."""
        y = gate(F.gelu(self.up(x)), z_int)                         # (B, T, f)      §3.1 FFN
        y = gate(self.down(y), z_ffn, z_hidn)                       # (B, T, d)      §3.1 FFN
        return self.norm(x + F.dropout(y, self.dropout, self.training), z_hidn)


def alive(z_layer, z_units):
    """Whether a sub-layer has weights left: its own mask is open, and that of one of its units.

    z_layer (...), z_units (..., n). Returns bool (...). In the paper a sub-layer dies by its own
    mask alone; one without units has nothing left to compute either, so here it dies as well.
    """
    return (z_layer > 0) & (z_units > 0).any(-1)


class Layer(nn.Module):
    """One Transformer layer. A dead sub-layer is the identity, even its LayerNorm."""

    def __init__(self, config, h, f):
        super().__init__()
        self.mha = MHA(config.d, h, config.k, config.dropout, config.eps) if h else None
        self.ffn = FFN(config.d, f, config.dropout, config.eps) if f else None

    def forward(self, x, bias, z_mha=None, z_head=None, z_ffn=None, z_int=None, z_hidn=None):
        """x (B, T, d); the masks of this layer. Returns (B, T, d)."""
        if self.mha is not None:
            y = self.mha(x, bias, z_mha, z_head, z_hidn)            # (B, T, d)
            x = y if z_mha is None else torch.where(alive(z_mha, z_head), y, x)
        if self.ffn is not None:
            y = self.ffn(x, z_ffn, z_int, z_hidn)                   # (B, T, d)
            x = y if z_ffn is None else torch.where(alive(z_ffn, z_int), y, x)
        return x


class Embeddings(nn.Module):
    """Word + position + segment, normalised."""

    def __init__(self, config):
        super().__init__()
        self.word = nn.Embedding(config.vocab, config.d)
        self.position = nn.Embedding(config.positions, config.d)
        self.segment = nn.Embedding(config.types, config.d)
        self.norm, self.dropout = Norm(config.d, config.eps), config.dropout

    def forward(self, ids, segments, z_hidn=None):
        """ids, segments (B, T). Returns (B, T, d)."""
        x = self.word(ids) + self.segment(segments)                 # (B, T, d)
        x = x + self.position.weight[:ids.shape[1]]                 # (B, T, d)
        return F.dropout(self.norm(x, z_hidn), self.dropout, self.training)


class Output(NamedTuple):
    logits: torch.Tensor      # (B, classes); (B, 1) for regression; (B, 2, T) for spans
    hidden: list              # L + 1 states (B, T, d): of the embeddings, then of each layer


class BERT(nn.Module):
    """BERT with a head for classes, a value or spans, dense or cut: the Config tells."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config, h, f) for h, f in zip(config.heads, config.ffn))
        if config.span:         # of each token: how well an answer starts there, and ends there
            self.classifier = nn.Linear(config.d, 2)
        else:
            self.pooler = nn.Linear(config.d, config.pooler)
            self.classifier = nn.Linear(config.pooler, len(config.labels) if config.labels else 1)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)            # BERT's own initialisation
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, ids, segments, real, z_mha=None, z_head=None, z_ffn=None, z_int=None,
                z_hidn=None):
        """ids, segments (B, T) int64; real (B, T) bool, False at padding. Returns an Output.

        Give all five masks or none; one that is switched off is a tensor of ones.
        """
        bias = torch.zeros_like(real, dtype=torch.float).masked_fill(~real, -torch.inf)     # (B, T)
        x = self.embeddings(ids, segments, z_hidn)                  # (B, T, d)
        hidden = [x]
        for i, layer in enumerate(self.layers):
            z = (None if z is None else z[i] for z in (z_mha, z_head, z_ffn, z_int))
            x = layer(x, bias[:, None, None], *z, z_hidn)           # (B, T, d)
            hidden.append(x)
        if self.config.span:    # two choices among the tokens; -1e4: no padding, yet no nan either
            logits = self.classifier(x).transpose(1, 2)             # (B, 2, T)
            return Output(logits.masked_fill(~real[:, None], -1e4), hidden)
        pooled = F.dropout(torch.tanh(self.pooler(x[:, 0])), self.config.dropout, self.training)
        return Output(self.classifier(pooled), hidden)


def load_bert(model, config=None):
    """A BERT with the weights of a model (folder or hub name), each checked by name and shape.

    config None: a fine-tuned model, its head included. Otherwise: a pre-trained one, which gets a
    new head for the config, and a new pooler if its own is absent or untrained (all biases 0).
    Returns (BERT, notes): what a user should know, as lines. Raises BadInput.
    """
    notes, (sizes, weights) = [], (None, read_weights(model)) if config else read_model(model)
    bert = BERT(config or Config(**sizes))
    drawn = bert.state_dict()
    if config:      # new: {part: why it is a new one, or "" if that needs no note}
        new = {"classifier": "is not for this run" if "classifier.weight" in weights else ""}
        if config.span or not weights.get("pooler.bias", torch.zeros(1)).any():
            new["pooler"] = ("" if config.span else "was never trained" if "pooler.bias" in weights
                             else "is absent")
        notes = [f"{model}: its {part} {why}, a new one is trained"
                 for part, why in new.items() if why]
        fresh = {name: w for name, w in drawn.items() if name.split(".")[0] in new}
        weights = {name: w for name, w in weights.items() if name.split(".")[0] not in new} | fresh
    for name in sorted(drawn.keys() | weights.keys()):
        have, want = (tuple(w[name].shape) if name in w else "absent" for w in (weights, drawn))
        if have != want:
            raise BadInput(f"{model}: {name} is {have} in its weights, but {want} by config.json; "
                           "want the weights and the config of one model")
    bert.load_state_dict(weights)
    return bert, notes


@torch.no_grad()
def fit_labels(bert, names, span, model):
    """Brings the classes of a fine-tuned model into a task's order, by their names. In place.

    names: of the task's classes, or None; model: its name, for the error. Raises BadInput where it
    has other classes: scored by number, a model whose classes are permuted would seem to be bad.
    """
    own, want = bert.config.labels or [], names or []
    if sorted(own) != sorted(want):             # if need be, case does not count
        own, want = ([name.casefold() for name in x] for x in (own, want))
    if sorted(own) != sorted(want) or len(set(own)) < len(own) or span != bert.config.span:
        raise BadInput(f"{model}: its classes are {bert.config.labels}, the task's {names}"
                       f"{' (spans)' * span}; want a model of this task whose config.json names "
                       "its classes, in their order, as id2label")
    if want:
        order = [own.index(name) for name in want]
        for p in bert.classifier.parameters():
            p.copy_(p[order])
        bert.config.labels = list(names)


# --------------------------------------------------------------------------------------------------
# 2. Hard concrete: a random mask in [0, 1], often exactly 0 or 1, yet with a gradient in log_alpha
# --------------------------------------------------------------------------------------------------

BETA, LEFT, RIGHT, EPS = 2 / 3, -0.1, 1.1, 1e-6   # Louizos et al. 2018: temperature, stretch, guard
START = 3.0       # of log_alpha, plus noise: all nearly open, .99 (the authors' FFN units: .83)
LOWEST = -10.0    # of log_alpha; ours. At -5 a mask that is to be closed is open with P = .03 and
                  # counts, so that s cannot reach .95 without closing others
HIGHEST = 4.6     # the authors' log 100; much higher, and the Lagrangian cannot close a mask


def sample_z(log_alpha, u=None):
    """Draws masks: a sigmoid of logistic noise, stretched beyond [0, 1] and clamped back into it.

    u: uniform noise in (0, 1), shaped as log_alpha; drawn if None.
    """
    if u is None:
        u = torch.empty_like(log_alpha).uniform_(EPS, 1 - EPS)
    sigma = torch.sigmoid((torch.logit(u) + log_alpha) / BETA)
    return (sigma * (RIGHT - LEFT) + LEFT).clamp(0, 1)              # § hard concrete


def p_open(log_alpha):
    """P(z > 0), the chance that a mask is open.

    Example:
    >>> p_open(torch.tensor([-3.0, 0.0, 3.0]))
    tensor([0.1976, 0.8318, 0.9900])
    """
    return torch.sigmoid(log_alpha - BETA * math.log(-LEFT / RIGHT))    # § P(z > 0)


def soft_z(log_alpha):
    """The final value of a mask that stays open. 0.8: a constant of the authors' library."""
    return torch.sigmoid(log_alpha / BETA * 0.8)                    # § final z


class Masks(nn.Module):
    """log_alpha of every mask. A group not in `groups` is off: log_alpha inf, masks open."""

    GROUPS = ("z_mha", "z_head", "z_ffn", "z_int", "z_hidn")

    def __init__(self, config, groups=GROUPS):
        super().__init__()
        self.k, L = config.k, len(config.heads)
        shapes = (L,), (L, config.heads[0]), (L,), (L, config.ffn[0]), (config.d,)
        for group, shape in zip(self.GROUPS, shapes):
            if group in groups:
                self.register_parameter(group, nn.Parameter(START + 0.01 * torch.randn(shape)))
            else:
                self.register_buffer(group, torch.full(shape, torch.inf))

    def log_alpha(self):
        """{group: log_alpha} of all five, under the names of the network's arguments."""
        return {group: getattr(self, group) for group in self.GROUPS}

    def sample(self):
        """{group: z}: one draw, for a whole batch."""
        return {group: sample_z(a) for group, a in self.log_alpha().items()}

    def sparsity(self, z=None):
        """The sparsity s of masks z; without z the expected one, a scalar with a gradient."""
        z = z or {group: p_open(a) for group, a in self.log_alpha().items()}
        full = {group: torch.ones_like(mask) for group, mask in z.items()}
        return 1 - size(self.k, **z) / size(self.k, **full)         # ()             §3.1 sparsity

    @torch.no_grad()
    def reach(self):
        """The highest sparsity there is: all masks closed, but for one unit if that leaves nothing.

        Whole layers alone (mha,ffn) leave at least an MHA, of 6 layers 5.6 %.
        """
        closed = {group: a.isinf().float() for group, a in self.log_alpha().items()}
        if size(self.k, **closed):
            return self.sparsity(closed)
        one = {group: z.clone() for group, z in closed.items()}
        for z in one.values():
            z.view(-1)[0] = 1
        return max(self.sparsity(one | {group: closed[group]}) for group in ("z_mha", "z_ffn"))

    @torch.no_grad()
    def hold(self):
        """Keeps log_alpha near [LOWEST, HIGHEST]: the part beyond is halved, so ranks remain."""
        for log_alpha in self.parameters():
            log_alpha -= (log_alpha - log_alpha.clamp(LOWEST, HIGHEST)) / 2


# --------------------------------------------------------------------------------------------------
# 3. Size and Lagrangian: how many weights are left, and how to get to the number asked for
# --------------------------------------------------------------------------------------------------


def size(k, z_mha, z_head, z_ffn, z_int, z_hidn):
    """The weights of the encoder's matrices whose masks are all open. BERT-base: 84,934,656.

    Expected with P(z > 0), exact with 0 and 1. Embeddings, biases and LayerNorm do not count.
    """
    mha = 4 * k * torch.einsum("l,li,j->", z_mha, z_head, z_hidn)   # ()          §3.1 expected size
    ffn = 2 * torch.einsum("l,li,j->", z_ffn, z_int, z_hidn)        # ()          §3.1 expected size
    return mha + ffn


def encoder_parameters(bert):
    """The same number, counted on a network as it is: the elements of its encoder's matrices."""
    return sum(weight.numel() for weight in bert.layers.parameters() if weight.dim() == 2)


def lagrangian(s, t, lambda1, lambda2):
    """L_c, added to the loss: descent on log_alpha, ascent on lambda1 and lambda2.

    While s < t, ascent makes lambda1 negative, so that descent on lambda1 s raises s.
    """
    return lambda1 * (s - t) + lambda2 * (s - t) ** 2               # ()             § L_c


# --------------------------------------------------------------------------------------------------
# 4. Distillation: the teacher's predictions, and its layers, each matched to one of ours
# --------------------------------------------------------------------------------------------------


def label_loss(logits, label):
    """Cross-entropy to the class, or for regression (one logit) MSE to the value. label (B).

    A span is two choices, of a first and a last token: logits (B, 2, T), label (B, 2).
    """
    if logits.shape[-1] == 1:
        return F.mse_loss(logits[:, 0], label)
    return F.cross_entropy(logits.flatten(0, -2), label.flatten())


def pred_loss(student, teacher, temperature):
    """L_pred: KL divergence from the teacher's distribution, or for regression MSE to its value.

    student, teacher (B, classes), or (B, 2, T), the mean of two choices. The paper writes
    KL(p_s || p_t); here, as in the authors' code, the teacher is the target, and temperature^2
    undoes what the temperature does to the gradient's size.
    """
    if student.shape[-1] == 1:
        return F.mse_loss(student, teacher)                         # ()
    p_t = (teacher / temperature).softmax(-1)
    log_p_s = (student / temperature).log_softmax(-1)
    kl = F.kl_div(log_p_s.flatten(0, -2), p_t.flatten(0, -2), reduction="batchmean")
    return kl * temperature**2                                      # ()             §3.2 L_pred


def teacher_layers(L):
    """The layers that teach, counted from 1: four, evenly spaced, the last among them.

    Example:
    >>> teacher_layers(12), teacher_layers(6), teacher_layers(2)
    ([3, 6, 9, 12], [2, 3, 5, 6], [1, 2])
    """
    return sorted({math.ceil(L * i / 4) for i in (1, 2, 3, 4)})


def open_layers(bert, z):
    """(L) bool: the layers with an MHA or an FFN left. z: the masks, or {} where there are none."""
    if z:
        return alive(z["z_mha"], z["z_head"]) | alive(z["z_ffn"], z["z_int"])
    left = [layer.mha is not None or layer.ffn is not None for layer in bert.layers]
    return torch.tensor(left, device=bert.classifier.weight.device)


def match(distance, is_open, matching):
    """m(i): for each teaching layer the student layer that learns from it, both counted from 0.

    distance (n, L): of teaching layer i to student layer j; is_open (L) bool.
    free: the closest open one. ordered: the closest open one below the one matched to the teaching
    layer above, from the top down. Returns m (n) and found (n) bool, False where none was left.
    """
    n, L = distance.shape
    layer = torch.arange(L, device=distance.device)
    limit, m, found = torch.full_like(layer[0], L), [None] * n, [None] * n
    for i in reversed(range(n)):
        candidate = is_open & (layer < limit)                       # (L)
        m[i] = distance[i].masked_fill(~candidate, torch.inf).argmin()  # ()           §3.2 m(i)
        found[i] = candidate.any()
        if matching == "ordered":
            limit = m[i]                                            # 0 if none was left
    return torch.stack(m), torch.stack(found)


def layer_loss(student, teacher, real, W_layer, is_open, matching):
    """L_layer: MSE of W_layer H_s^m(i) to H_t^i over the tokens that are no padding, summed over i.

    student, teacher: the hidden states of their layers, each (B, T, d); real (B, T) bool; W_layer:
    a Linear from the student's d to the teacher's. matching: free, ordered, or fixed (m(i) = i).
    Returns L_layer and m (n), with -1 for a teaching layer that found no student; its term is 0.
    """
    layers = [i - 1 for i in teacher_layers(len(teacher))]          # from 0
    H_s, H_t = torch.stack(student), torch.stack([teacher[i] for i in layers]).float()
    weight = real / (real.sum() * H_t.shape[-1])                    # (B, T)

    def mse(H):
        """H (..., B, T, d) -> (...)"""
        return ((W_layer(H) - H_t).square().sum(-1) * weight).sum((-1, -2))

    if matching == "fixed":
        m = torch.stack([real.new_full((), i, dtype=torch.long) for i in layers])   # (n)
        m, found = m.clamp(max=len(student) - 1), m >= 0            # (n), (n)
    else:
        with torch.no_grad():                                       # choosing has no gradient
            distance = torch.stack([mse(H) for H in H_s], dim=1)    # (n, L)
            m, found = match(distance, is_open, matching)
    loss = (mse(H_s[m]) * found).sum()                              # ()             §3.2 L_layer
    return loss, torch.where(found, m, -1)


# --------------------------------------------------------------------------------------------------
# 5. Cutting: from log_alpha to a structure of the size asked for, and to a network of that size
# --------------------------------------------------------------------------------------------------


def largest(good, low, high):
    """The largest number at which `good` holds, by bisection: it holds below and fails above it.

    Example:
    >>> round(largest(lambda x: x * x <= 2, 0.0, 2.0), 6)
    1.414214
    """
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low


def rank(score):
    """The place of each score in its row, 0 for the highest; of equals the first comes first."""
    return score.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)


def keep_expected(p, place):
    """{group: 0 or 1}: the layers with P(z > 0) >= .5, and as many units as should be open.

    p: {group: P(z > 0)}; place: {group: rank of each mask in its row}, 0 for what is kept first. A
    row: the heads or FFN units of one layer, or the hidden vector.

    Example:
    >>> p = torch.tensor([0.2, 0.9, 0.6, 0.5])              # 2.2 of 4 are expected to be open
    >>> keep_expected({"z_hidn": p}, {"z_hidn": rank(p)})
    {'z_hidn': tensor([0., 1., 1., 0.])}
    """
    z = {}
    for group, chance in p.items():
        if group in ("z_mha", "z_ffn"):
            z[group] = chance >= 0.5
        else:
            expected = chance.sum(-1, keepdim=True).round()
            z[group] = place[group] < expected                      # § deterministic z
    return {group: mask.to(p[group]) for group, mask in z.items()}


@torch.no_grad()
def decide(masks, t):
    """The final masks: what was learned, made to fill the budget, so of sparsity t or just above.

    First all log_alpha are shifted alike until the expected sparsity is t (by next to nothing, if
    the Lagrangian has brought it there). Then keep_expected says what stays. Only the finest group
    (FFN units; if those are off, hidden dimensions, heads or layers) is ranked across all layers,
    and fills what the others leave of the budget. (Paper: no such filling.)
    Returns {group: z}: 0 if closed or in a dead layer, its soft value if open, 1 if the group is
    switched off.
    """
    alphas = {group: a.detach().cpu().double() for group, a in masks.log_alpha().items()}
    fine = next(group for group in ("z_int", "z_hidn", "z_head", "z_mha", "z_ffn")
                if alphas[group].isfinite().all())
    place = {group: rank(a.flatten() if group == fine else a).view_as(a)
             for group, a in alphas.items()}
    n_fine = alphas[fine].numel()
    full = size(masks.k, **{group: torch.ones_like(a) for group, a in alphas.items()}).item()
    budget = math.floor((1 - t) * full + 1e-6)                      # § budget

    def chances(shift):
        return {group: p_open(a + shift) for group, a in alphas.items()}

    def structure(shift, n):
        """{group: 0 or 1} with every log_alpha shifted, but of the finest group the best n."""
        return keep_expected(chances(shift), place) | {fine: (place[fine] < n).double()}

    def fits(shift, n):
        return size(masks.k, **structure(shift, n)).item() <= budget

    def expected(shift):
        return size(masks.k, **chances(shift)).item()

    # A larger shift keeps more. Up to the shift `highest` everything but the finest group fits the
    # budget; up to `lowest` all of the finest group fits as well, and does not fill it. So between
    # the two some n of its units fill it. Taken is the shift closest to the one of the right size.
    right = largest(lambda shift: expected(shift) <= budget, -40.0, 40.0)
    lowest = largest(lambda shift: fits(shift, n_fine), -40.0, 40.0)
    highest = largest(lambda shift: fits(shift, 0), -40.0, 40.0)
    shift = min(max(right, lowest + 1e-6), highest)
    n = math.floor(largest(lambda n: fits(shift, math.floor(n)), 0, n_fine + 1))
    z = structure(shift, n)
    for layer, units in (("z_mha", "z_head"), ("z_ffn", "z_int")):  # close what can have no effect
        z[layer] = z[layer] * (z[units] > 0).any(-1)
        z[units] = z[units] * z[layer][:, None]
    return {group: (z[group] * soft_z(alphas[group])).to(a)
            for group, a in masks.log_alpha().items()}


def fold(new, old, rows, columns):
    """What two masks leave of a matrix, diag(rows) W diag(columns), and of its bias, if it has one.

    old: a Linear or Embedding; rows (out), columns (in): 0 removes, any other value is folded in;
    new: its counterpart of the size that is left, written to.
    """
    kept = old.weight[rows > 0][:, columns > 0]
    new.weight.copy_(rows[rows > 0][:, None] * kept * columns[columns > 0])     # § cut
    if hasattr(old, "bias"):
        new.bias.copy_((rows * old.bias)[rows > 0])


def fold_norm(new, old, z_hidn):
    """The same for a LayerNorm, whose weight and bias are multiplied by z_hidn (d)."""
    new.weight.copy_((old.weight * z_hidn)[z_hidn > 0])
    new.bias.copy_((old.bias * z_hidn)[z_hidn > 0])


def fold_mha(new, old, z_mha, z_head, z_hidn):
    """An MHA: z_head goes into the columns of out, z_mha and z_hidn into its rows and bias.

    What reads the stream (query, key, value) only loses what is closed: sign() is 1 where z > 0.
    """
    z = z_head.repeat_interleave(old.k)                             # (h k)
    for name in ("query", "key", "value"):
        fold(getattr(new, name), getattr(old, name), z.sign(), z_hidn.sign())
    fold(new.out, old.out, z_mha * z_hidn, z)
    fold_norm(new.norm, old.norm, z_hidn)


def fold_ffn(new, old, z_ffn, z_int, z_hidn):
    """An FFN: z_int goes into the columns of down, z_ffn and z_hidn into its rows and bias."""
    fold(new.up, old.up, z_int.sign(), z_hidn.sign())
    fold(new.down, old.down, z_ffn * z_hidn, z_int)
    fold_norm(new.norm, old.norm, z_hidn)


@torch.no_grad()
def cut(bert, z):
    """The network that is left: what a closed mask hides removed, soft values folded into weights.

    z: the five masks, as from decide(). Returns a new BERT; its logits equal the masked one's.
    """
    z_hidn = z["z_hidn"]                                            # (d)
    h = (z["z_head"] > 0).sum(1) * alive(z["z_mha"], z["z_head"])   # (L)
    f = (z["z_int"] > 0).sum(1) * alive(z["z_ffn"], z["z_int"])     # (L)
    sizes = {"d": int((z_hidn > 0).sum()), "heads": h.tolist(), "ffn": f.tolist()}
    with torch.device("meta"):      # the shapes alone: every weight is written below, none is drawn
        small = BERT(Config(**asdict(bert.config) | sizes))
    small = small.to_empty(device=z_hidn.device)
    for name in ("word", "position", "segment"):
        old = getattr(bert.embeddings, name)
        every = z_hidn.new_ones(len(old.weight))
        fold(getattr(small.embeddings, name), old, every, z_hidn.sign())
    fold_norm(small.embeddings.norm, bert.embeddings.norm, z_hidn)
    for i, (new, old) in enumerate(zip(small.layers, bert.layers)):
        if new.mha is not None:
            fold_mha(new.mha, old.mha, z["z_mha"][i], z["z_head"][i], z_hidn)
        if new.ffn is not None:
            fold_ffn(new.ffn, old.ffn, z["z_ffn"][i], z["z_int"][i], z_hidn)
    if bert.config.span:
        fold(small.classifier, bert.classifier, z_hidn.new_ones(2), z_hidn.sign())
    else:
        fold(small.pooler, bert.pooler, z_hidn.new_ones(bert.config.pooler), z_hidn.sign())
        small.classifier.load_state_dict(bert.classifier.state_dict())
    return small.train(bert.training)


# --------------------------------------------------------------------------------------------------
# 6. Training: one loop for teacher, pruning and fine-tuning
# --------------------------------------------------------------------------------------------------


MASK_STEPS, MOST = 10_000, 20     # ours: a short run multiplies mask_lr and lambda_lr, up to MOST
KEPT = 2**31                      # bytes, ours: what a teacher's answers may take


def has_bf16(device):
    """Whether the hardware computes in bfloat16; where it is emulated it is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    can = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(can.get("amx_bf16") or can.get("avx512_bf16"))


def to(device, batch):
    """A batch on its device: the network's inputs, and the labels, if it has any."""
    if cuda := device.type == "cuda":       # pinned, it can be copied while the GPU computes
        batch = {name: x.pin_memory() for name, x in batch.items()}
    there = {name: x.to(device, non_blocking=cuda) for name, x in batch.items()}
    label = there.pop("label", None)
    return there, label


@torch.no_grad()
def answers(bert, rows):
    """The logits of a model for each of the rows, in their order: a list of arrays. In fp32."""
    was_training, device = bert.training, bert.classifier.weight.device
    bert.eval()
    logits = [None] * len(rows)
    for numbers, batch in batches(rows, 64):
        for number, row in zip(numbers, bert(**to(device, batch)[0]).logits.cpu().numpy()):
            logits[number] = row
    bert.train(was_training)
    return logits


def evaluate(bert, rows, metrics):
    """{metric: value} of a model on rows; where they are of several parts, also {part: value of
    the first metric on it}.
    """
    return rows.score(answers(bert, rows), metrics)


def epochs(rows, batch_size, seed, total, done=0):
    """Batches `done` to `total`, epoch after epoch, each epoch in an order of its own."""
    first, skip = divmod(done, math.ceil(len(rows) / batch_size))
    each = (batches(rows, batch_size, (seed, epoch)) for epoch in itertools.count(first))
    return itertools.islice(itertools.chain.from_iterable(each), skip, skip + total - done)


def objective(out, out_t, label, real, cfg, W_layer, is_open):
    """The loss of the network: pred_weight L_pred + layer_weight L_layer (§3.2).

    out: of the student; out_t: of the teacher, or None. Labels count only where L_pred does not:
    without a teacher, or with pred_weight 0. Returns the loss, (L_pred, L_layer), and m or None.
    The paper's weights are lambda and 1 - lambda; here they are free.
    """
    loss = pred = label_loss(out.logits.float(), label)
    layer, m = torch.zeros_like(pred), None
    if out_t and cfg.pred_weight:
        pred = pred_loss(out.logits.float(), out_t.logits.float(), cfg.temperature)
        loss = cfg.pred_weight * pred
    if out_t and cfg.layer_weight:
        layer, m = layer_loss(out.hidden[1:], out_t.hidden[1:], real, W_layer, is_open,
                              cfg.matching)
        loss = loss + cfg.layer_weight * layer                      # §3.2 L_distil
    return loss, torch.stack([pred, layer]).detach(), m


def plan(stage, n, cfg):
    """(steps, first learning rate) of a stage on n rows."""
    name = {"teacher": "teacher_lr", "prune": "lr", "finetune": "finetune_lr"}[stage]
    epochs, lr = getattr(cfg, f"{stage}_epochs"), getattr(cfg, name)
    steps = math.ceil(epochs * math.ceil(n / cfg.batch_size))
    return min(steps, cfg.max_steps or steps), lr


def remember(teacher, rows, cfg):
    """The teacher as a function: (row numbers, inputs) -> Output. None if nothing is distilled.

    Its answer to a row is the same in every epoch, so all are computed at once: the logits, and, in
    two bytes a number, the states of the layers that teach (Output.hidden is None elsewhere).
    It is asked each time where they need more than KEPT bytes, or serve less than two epochs, and
    for spans.
    """
    if not (cfg.pred_weight or cfg.layer_weight):
        return None
    c, device = teacher.config, teacher.classifier.weight.device
    layers = teacher_layers(len(c.heads))
    steps = plan("prune", len(rows), cfg)[0] + plan("finetune", len(rows), cfg)[0]
    needed = 2 * len(layers) * len(rows.ids) * c.d                  # bytes, for all tokens
    if c.span or steps * cfg.batch_size < 2 * len(rows) or needed > KEPT:
        return lambda numbers, x: teacher(**x)
    print(f"teacher   answers {len(rows):,} rows, once for all epochs")
    layers = layers if cfg.layer_weight else []                     # n of them

    @functools.cache        # not before the first question: a run that goes on may have none
    @torch.no_grad()
    def all_answers():
        """{row number: (logits, states of its T tokens (T, n, d))}."""
        kept = {}
        for numbers, batch in batches(rows, 64):
            out = teacher(**to(device, batch)[0])
            states = torch.stack(out.hidden, 2)[:, :, layers].bfloat16()    # (B, T, n, d)
            lengths = batch["real"].sum(1).tolist()
            for number, logits, H, T in zip(numbers, out.logits.float(), states, lengths):
                kept[number] = logits, H[:T].clone()
        return kept

    def recall(numbers, x):
        logits, states = zip(*(all_answers()[number] for number in numbers))
        states = nn.utils.rnn.pad_sequence(states, batch_first=True)    # (B, T, n, d)
        hidden = [None] * (len(c.heads) + 1)
        for i, H in zip(layers, states.unbind(2)):
            hidden[i] = H                                           # (B, T, d)
        return Output(torch.stack(logits), hidden)

    return recall


def optimizers(bert, W_layer, masks, cfg, total, lr):
    """(weights, lambdas, descent, ascent): two players. log_alpha goes down the loss with the
    weights, the multipliers go up it; without masks there are no multipliers.
    """
    weights = [p for part in (bert, W_layer) if part for p in part.parameters() if p.requires_grad]
    groups, lambdas, ascent = [{"params": weights}], None, None
    if masks:
        pace = min(max(1, MASK_STEPS / total), MOST)
        groups.append({"params": masks.parameters(), "lr": cfg.mask_lr * pace})
        lambdas = nn.ParameterList([torch.tensor(0.0), torch.tensor(cfg.lambda2)])
        lambdas = lambdas.to(bert.classifier.weight.device)
        ascent = torch.optim.SGD(lambdas.parameters(), cfg.lambda_lr * pace, maximize=True)
    return weights, lambdas, torch.optim.AdamW(groups, lr, weight_decay=0.0, fused=True), ascent


def check_finite(stage, step, loss, norm, before):
    """Raises BadInput if a loss or its gradient is no number. before: the losses one step ago."""
    if not (loss + norm).isfinite():
        raise BadInput(f"{stage}, step {step}: the loss is {loss.item():g}, its gradient's norm "
                       f"{norm.item():g}, one step before its parts were {before}; the state "
                       "that was saved last is kept; want a lower learning rate, or --no-bf16")


def train(stage, bert, data, cfg, journal, teacher=None, W_layer=None, masks=None):
    """One stage, in place: "teacher" on labels, "prune" with masks, "finetune" of the cut model.

    data: a Dataset; journal: called with a dict about ten times, and keeps the state, from which an
    interrupted stage goes on, with the same bits on a CPU; teacher: from remember(), or None.
    Returns the layer matching of the last batch, as a list, or None, and the seconds it took.
    """
    device = bert.classifier.weight.device
    bf16 = cfg.bf16 and has_bf16(device)
    total, lr = plan(stage, len(data.train), cfg)
    torch.manual_seed(cfg.seed)
    bert.train().embeddings.requires_grad_(stage == "teacher")      # frozen in the authors' code
    weights, lambdas, descent, ascent = optimizers(bert, W_layer, masks, cfg, total, lr)
    things = dict(bert=bert, W_layer=W_layer, masks=masks, lambdas=lambdas, descent=descent)
    done, rest = journal.begin(stage, things)
    began = time.perf_counter() - rest.get("seconds", 0)
    sums = torch.as_tensor(rest.get("sums", 0.0), device=device)
    every, matching, before = max(1, total // 10), rest.get("matching"), torch.zeros(2)
    start, warmup = (cfg.start * total, cfg.warmup * total) if masks else (0, 0)    # in steps
    layers_left = open_layers(bert, {})
    batches_left = epochs(data.train, cfg.batch_size, cfg.seed, total, done)
    for step, (numbers, batch) in journal.steps(batches_left, stage, total, done):
        x, label = to(device, batch)
        z = masks.sample() if masks and step > start else {}
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            with torch.no_grad():
                out_t = teacher(numbers, x) if teacher else None
            out = bert(**x, **z)
            is_open = open_layers(bert, z) if z else layers_left
            loss, now, m = objective(out, out_t, label, x["real"], cfg, W_layer, is_open)
        if z:       # t rises linearly from 0; the pull on the masks is one more term of the loss
            sparsity = masks.sparsity()
            t = cfg.sparsity * min((step - start) / max(warmup, 1), 1)  # § warm-up
            loss = loss + lagrangian(sparsity, t, *lambdas)
        descent.param_groups[0]["lr"] = lr * (1 - (step - 1) / total)   # to 0; masks keep their own
        descent.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(weights, 1.0)
        logging = step % every == 0 or step == total
        saving = step == total or journal.due()
        if device.type == "cpu" or logging or saving or step % 50 == 0:     # asking stops a GPU
            check_finite(stage, step, loss.detach(), norm, before.tolist())
        descent.step()
        if z:       # descent has moved the weights and log_alpha down the loss; lambdas go up it
            ascent.step()
            ascent.zero_grad()
            masks.hold()
        before, sums = now, sums + now
        if logging:
            left = cut(bert, decide(masks, t)) if z else bert       # what would be left now
            score = evaluate(left, data.dev, data.metrics)
            pred, layer = (sums / (step % every or every)).tolist()
            pull = [sparsity.item(), t, *(x.item() for x in lambdas)] if z else []
            matching, sums = None if m is None else m.tolist(), 0
            journal({"stage": stage, "step": step, "of": total, "L_pred": pred, "L_layer": layer,
                     **dict(zip(("s", "t", "lambda1", "lambda2"), pull)), "m": matching,
                     "score": score[data.metrics[0]], "seconds": time.perf_counter() - began})
        if saving:
            journal.save(stage, step, things, sums=sums, matching=matching,
                         seconds=time.perf_counter() - began)
    return matching, time.perf_counter() - began


# --------------------------------------------------------------------------------------------------
# 7. Report: the log, a drawing of what is left, and how much faster it is
# --------------------------------------------------------------------------------------------------

LEGEND = """\
L_pred   mean since the line above;    s        expected sparsity         score  of the dev set
         or the labels' loss instead   t        its target                m      which student layer
L_layer  mean since the line above,    lambda1  pull towards t                   learns from each of
         both without their weights    lambda2  spring towards t                 the teaching layers

stage       step   L_pred  L_layer       s       t   lambda1   lambda2   score  m"""


class Log(Journal):
    """Keeps each record of the training, and prints it at a fixed width."""

    def line(self, record):
        line = "{stage:9}{step:7}{L_pred:9.4f}{L_layer:9.4f}".format(**record)
        line += ("{s:8.4f}{t:8.4f}{lambda1:10.3f}{lambda2:10.3f}".format(**record) if "s" in record
                 else f"{'-':>8}{'-':>8}{'-':>10}{'-':>10}")
        m = " ".join("." if i < 0 else str(i + 1) for i in record["m"] or [])
        return f"{line}{record['score']:8.4f}  {m}"


def bar(part, whole, width=20):
    """A bar of `width` characters in steps of an eighth; whatever is not nothing can be seen.

    Example:
    >>> bar(3, 4, 4) + "|", bar(1, 1000, 4) + "|"
    ('███ |', '▏   |')
    """
    eighths = max(round(8 * width * part / whole), int(part > 0))
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()).ljust(width)


def draw(config, z, teaching, m=None):
    """What is left, as text: a row a layer, the last on top; a mark a head, a bar of the FFN units.

    config: the sizes before the cut; z: the final masks; teaching: from teacher_layers(); m: the
    layer matching, from train().
    """
    L, h = len(config.heads), config.heads[0]
    lines = [f"layer  {'heads':{2 * h + 4}}{'FFN units':34}learns from teacher layer"]
    for i in reversed(range(L)):
        heads, units = (z["z_head"][i] > 0).tolist(), int((z["z_int"][i] > 0).sum())
        marks = " ".join("■" if on else "·" for on in heads)
        pupil_of = [str(j) for j, student in zip(teaching, m or []) if student == i]
        lines.append(f"{i + 1:5}  {marks}{sum(heads) or '-':>3}  {bar(units, config.ffn[i])}"
                     f"{units or '-':>6} of {config.ffn[i]:<6}{', '.join(pupil_of)}".rstrip())
    d = int((z["z_hidn"] > 0).sum())
    return "\n".join([*lines, f"    d  {'':{2 * h + 4}}{bar(d, config.d)}{d:6} of {config.d}"])


def curves(records, teaching, results):
    """Four charts as an SVG: s and t, the multipliers, m(i), and score over speed of many runs.

    records: of the log; teaching: from teacher_layers(); results: of finished runs of one task,
    this one's last.
    """
    pruning = [r for r in records if "s" in r]
    over_time = {name: [(r["step"], r[name]) for r in pruning]
                 for name in ("s", "t", "lambda1", "lambda2")}
    matching = {f"from {layer}": [(r["step"], r["m"][i] + 1) for r in pruning if r["m"]
                                  and r["m"][i] >= 0] for i, layer in enumerate(teaching)}
    speeds = {"teacher": [(1.0, results[-1]["teacher_score"])]}
    for r in results:
        point = r["speedup"]["32"], r["score"]
        speeds.setdefault(f"{r['target_sparsity']:g}", []).append(point)
    panels = [("sparsity and its target", "step of pruning", over_time, ("s", "t")),
              ("the multipliers", "step of pruning", over_time, ("lambda1", "lambda2")),
              ("student layer that learns from a teacher layer", "step of pruning", matching,
               matching)]
    panels = [(title, along, {name: lines[name] for name in names if lines[name]})
              for title, along, lines, names in panels]
    score = f"{results[-1]['metric']} over speed-up, batch 32", "times as fast", speeds, True
    return chart([panel for panel in panels if panel[2]] + [score])


@torch.no_grad()
def speedup(dense, small, batch_sizes=(1, 32, 128), length=128, seconds=5.0):
    """How many times faster the small network is: {batch size: ratio of the median times}.

    Forward passes in fp32 over random tokens without padding. The two take turns, so that whatever
    else the machine does meets both; at least three turns, and more until `seconds` have passed.
    """
    device, ratio = dense.classifier.weight.device, {}
    wait = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type, int)
    models = [model.eval() for model in (dense, small)]
    for rows in batch_sizes:
        ids = torch.randint(dense.config.vocab, (rows, min(length, dense.config.positions)))
        x, _ = to(device, {"ids": ids, "segments": ids * 0, "real": ids >= 0})
        times, end = ([], []), time.perf_counter() + seconds
        while len(times[0]) < 4 or time.perf_counter() < end:
            for model, seen in zip(models, times):
                wait()
                began = time.perf_counter()
                model(**x)
                wait()
                seen.append(time.perf_counter() - began)
        ratio[str(rows)] = float(np.median(times[0][1:]) / np.median(times[1][1:]))     # 0 warms up
    return ratio


def report(r, picture):
    """Prints what came of a run. r: its result; picture: from draw()."""
    print(f"\n{picture}\n")
    for name, score in r["scores"].items():
        print(f"{name:12}teacher {r['teacher_scores'][name]:.4f}   "
              f"pruned {r['pruned_scores'][name]:.4f}   fine-tuned {score:.4f}")
    print(f"sparsity   {r['sparsity']:.5f}, asked for {r['target_sparsity']:g}")
    print(f"weights    encoder {r['dense_encoder_parameters']:,} -> {r['encoder_parameters']:,}   "
          f"whole model {r['dense_total_parameters']:,} -> {r['total_parameters']:,}")
    times = [f"{x:.1f}x at batch {rows}" for rows, x in r["speedup"].items()]
    print(f"speed-up   {'   '.join(times)}   (length {r['length']}, fp32, {r['device']})")
    print("minutes    " + "   ".join(f"{name} {x / 60:.1f}" for name, x in r["seconds"].items()))


# --------------------------------------------------------------------------------------------------
# 8. Main: one run from beginning to end
# --------------------------------------------------------------------------------------------------

ANY = {"out", "fresh", "save_every", "device"}      # settings that do not make another run of it
OF_TEACHER = ("task", "data", "model", "seed", "batch_size", "max_length", "teacher_epochs",
              "teacher_lr", "bf16", "max_steps")


def folder_for(cfg, first, names):
    """The folder of a run or teacher: cfg.out, `first`, then every setting that was changed."""
    usual = asdict(cfg.of(cfg.task, cfg.data)) | {"data": ""}
    changed = [f"{name}={Path(value).name if isinstance(value, str) else format(value, 'g')}"
               for name, value in asdict(cfg).items()
               if name in names - ANY - {"task"} and value != usual[name]]
    name = re.sub(r"[^\w.,=-]", "_", "-".join(first + changed))
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]          # file systems allow 255 bytes
    return Path(cfg.out) / (name if len(name) <= 200 else f"{name[:190]}-{digest}")


def set_up(cfg):
    """What a run begins with: (device, Config of the model, tokenizer). Sets the threads."""
    torch.set_num_threads(cfg.threads or torch.get_num_threads())
    config = Config(**read_config(cfg.model))
    tokenizer = load_tokenizer(cfg.model, config.vocab)
    if len(set(config.heads)) > 1 or len(set(config.ffn)) > 1:
        raise BadInput(f"--model {cfg.model}: it is cut already; want the dense model it came from")
    return pick_device(cfg.device), config, tokenizer


def new_bert(cfg, config, device):
    """The pre-trained model with a new head, the same for teacher and student of one seed."""
    torch.manual_seed(cfg.seed)
    bert, notes = load_bert(cfg.model, config)
    return bert.to(device), notes


def get_teacher(cfg, config, data, tokenizer, device):
    """The teacher: the one given, or one trained before with the same settings, or a new one.

    Returns (BERT in eval mode, {metric: value}, seconds of training).
    """
    key = {name: getattr(cfg, name) for name in OF_TEACHER}
    if cfg.teacher:
        teacher = load_bert(cfg.teacher)[0].to(device).eval()
        fit_labels(teacher, data.names, data.span, f"--teacher {cfg.teacher}")
        for name in ("vocab", "positions"):
            if getattr(teacher.config, name) < getattr(config, name):
                raise BadInput(f"--teacher {cfg.teacher}: {name} {getattr(teacher.config, name)}; "
                               f"want the {getattr(config, name)} of {cfg.model}, and its words")
        return teacher, evaluate(teacher, data.dev, data.metrics), 0.0
    folder, key["tokens"] = folder_for(cfg, ["teacher", cfg.task], set(OF_TEACHER)), data.digest
    if before := finished_before(folder, key, cfg.fresh):
        print(f"teacher   trained before: {folder}")
        return load_bert(folder)[0].to(device).eval(), before["scores"], before["seconds"]
    journal = Log(folder, key, cfg.save_every, cfg.fresh)
    teacher, _ = new_bert(cfg, config, device)
    _, seconds = train("teacher", teacher, data, cfg, journal)
    scores = evaluate(teacher, data.dev, data.metrics)
    save(folder, teacher, tokenizer, {"settings": key, "scores": scores, "seconds": seconds})
    journal.done()
    return teacher.eval(), scores, seconds


def what_counts(cfg, data):
    """What two runs must have in common so that one can go on where the other was."""
    return {name: x for name, x in asdict(cfg).items() if name not in ANY} | {"tokens": data.digest}


def finished_before(folder, settings, fresh):
    """The result in a folder, or None if there is none yet of these settings.

    Raises BadInput if it is one of others: nobody's work is overwritten unless asked to be fresh.
    """
    path = folder / "result.json"
    before = json.loads(path.read_text()) if path.is_file() else None
    other = differing(before["settings"], settings) if before else ""
    if other and fresh:
        return None
    if other:
        raise BadInput(f"{folder}: a run with {other} is there already; want another --out, or "
                       "--fresh to do it over")
    return before


def save(folder, bert, tokenizer, result):
    """Writes a model and what is known of it; result.json last, as the sign that all is there."""
    write_checkpoint(folder, asdict(bert.config), bert.state_dict(), tokenizer)
    write_json(folder / "result.json", result)


def run(cfg):
    """One run, from teacher to report; what was done before is not done again."""
    torch.manual_seed(cfg.seed)
    device, config, tokenizer = set_up(cfg)
    masks = Masks(config, [f"z_{name}" for name in cfg.masks.split(",")])
    if cfg.sparsity > masks.reach():
        raise BadInput(f"--sparsity {cfg.sparsity:g} --masks {cfg.masks}: these masks alone reach "
                       f"only {masks.reach():.3f}; want a lower sparsity, or more masks")
    data = load_task(cfg.task, tokenizer, min(cfg.max_length, config.positions), cfg.data)
    config = replace(config, labels=data.names, span=data.span, task=cfg.task)
    metrics = data.metrics
    names = {f.name for f in fields(cfg)} - {"sparsity"}
    folder = folder_for(cfg, [cfg.task, f"{cfg.sparsity:g}"], names)
    same = what_counts(cfg, data)
    if not cfg.fresh and (before := finished_before(folder, same, fresh=False)):
        print(f"run        {folder}, finished before; --fresh does it over")
        return report(before, (folder / "network.txt").read_text().rstrip())
    student, notes = new_bert(cfg, config, device)
    notes = [f"note       {note}" for note in notes]
    print("\n".join([f"run        {folder}", *notes, "", LEGEND]))
    teacher, teacher_scores, seconds = get_teacher(cfg, config, data, tokenizer, device)
    journal = Log(folder, same, cfg.save_every, cfg.fresh)
    masks = masks.to(device)
    W_layer = nn.Linear(config.d, teacher.config.d, bias=False, device=device)
    nn.init.eye_(W_layer.weight)

    ask = remember(teacher, data.train, cfg)
    m, prune_seconds = train("prune", student, data, cfg, journal, ask, W_layer, masks)
    z = decide(masks, cfg.sparsity)
    small = cut(student, z)
    pruned_scores = evaluate(small, data.dev, metrics)
    W_layer.weight = nn.Parameter(W_layer.weight.detach()[:, z["z_hidn"] > 0])
    _, finetune_seconds = train("finetune", small, data, cfg, journal, ask, W_layer)
    scores = evaluate(small, data.dev, metrics)

    left, dense = encoder_parameters(small), encoder_parameters(student)
    in_all = [sum(p.numel() for p in bert.parameters()) for bert in (small, student)]
    result = {
        "task": cfg.task, "model": cfg.model, "seed": cfg.seed, "metric": metrics[0],
        "teacher_score": teacher_scores[metrics[0]], "pruned_score": pruned_scores[metrics[0]],
        "score": scores[metrics[0]], "scores": scores,
        "teacher_scores": teacher_scores, "pruned_scores": pruned_scores,
        "target_sparsity": cfg.sparsity, "sparsity": 1 - left / dense, "encoder_parameters": left,
        "dense_encoder_parameters": dense, "total_parameters": in_all[0],
        "dense_total_parameters": in_all[1], "speedup": speedup(student, small),
        "length": min(128, config.positions),
        "seconds": {"teacher": seconds, "prune": prune_seconds, "finetune": finetune_seconds},
        "settings": same, "device": device_name(device),
        "versions": {name: version(name) for name in ("torch", "numpy", "datasets", "tokenizers")}}
    teaching = teacher_layers(len(teacher.config.heads))
    picture = draw(config, z, teaching, m)
    write_text(folder / "network.txt", picture + "\n")
    others = [json.loads(path.read_text()) for path in folder.parent.glob("*/result.json")]
    others = [r for r in others if "target_sparsity" in r and r.get("model") == cfg.model
              and r.get("device") == result["device"]
              and r["settings"].get("tokens") == data.digest]
    write_text(folder / "curves.svg", curves(journal.records(), teaching, [*others, result]))
    save(folder, small, tokenizer, result)
    journal.done()
    report(result, picture)


def pick_device(name):
    """auto: the best device there is."""
    best = "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else best)


def device_name(device):
    """What the run ran on, for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"{device.type}, {torch.get_num_threads()} threads"


def finished(model, given, device):
    """A fine-tuned model and its task: (BERT in eval mode, Dataset). Raises BadInput.

    model: the folder of a run, which knows its task, or any other, with --task; given: the flags.
    """
    bert, path = load_bert(model)[0].to(device).eval(), fetch(model, "result.json", optional=True)
    known = json.loads(path.read_text())["settings"] if path else {"task": bert.config.task}
    if given.keys() & {"task", "data"}:
        known |= {"task": given.get("task", "own"), "data": given.get("data", "")}
    if known["task"] not in TASKS:
        raise BadInput(f"{model}: config.json names no task; want --task")
    usual = Run.of(known["task"], known.get("data", ""))
    data = load_task(known["task"], load_tokenizer(model, bert.config.vocab), min(
        given.get("max_length", known.get("max_length", usual.max_length)), bert.config.positions),
        usual.data)
    fit_labels(bert, data.names, data.span, model)
    return bert, data


def evaluate_model(model, given, device):
    """--evaluate: the dev scores of a model, and the test scores where those labels are known."""
    bert, data = finished(model, given, device)
    for split, rows in ("dev", data.dev), ("test", data.test):
        for name, value in (evaluate(bert, rows, data.metrics) if rows else {}).items():
            print(f"{split:6}{name:12}{value:.4f}")


def submit(model, given, device):
    """--submit: the answers to the test set of GLUE, in files for its server, which scores them."""
    bert, data = finished(model, given, device)
    if not data.task.tests:
        raise BadInput(f"--submit {model}: GLUE has no such task; want a model of one of "
                       f"{', '.join(name for name, task in TASKS.items() if task.tests)}")
    for split, file in data.task.tests.items():
        rows = data.rows(split)
        path = Path(model if Path(model).is_dir() else ".") / f"{file}.tsv"
        write_submission(path, rows.predicted(answers(bert, rows)), data.names)
        print(f"{len(rows)} rows: {path}")


def predict(model, words):
    """--predict: the labels of a sentence or pair with probabilities, or a regression's value; or
    the answer to a question in a context.
    """
    bert, tokenizer = load_bert(model)[0].eval(), load_tokenizer(model)
    task, longest = TASKS.get(bert.config.task), bert.config.positions
    want = 2 if bert.config.span else len(task.columns) if task and task.columns else len(words)
    if len(words) != want or not 1 <= len(words) <= 2:
        raise BadInput(f"--predict {model}: {len(words)} sentences; want "
                       f"{want if task and task.columns else '1 or 2'}")
    if bert.config.span:
        rows = windows_from_text(*words, tokenizer, min(longest, 384))
        return print(rows.predicted(answers(bert, rows))[0][0])
    rows = rows_from_text([[text] for text in words], np.zeros(1), tokenizer, longest)
    logits = torch.from_numpy(answers(bert, rows)[0])
    if not bert.config.labels:
        return print(f"{logits[0]:.4f}")
    for p, label in sorted(zip(logits.softmax(-1).tolist(), bert.config.labels), reverse=True):
        print(f"{p:.4f}  {label}")


class Program(nn.Module):
    """What is exported: from ids, segments and real, as BERT takes them, to its logits."""

    def __init__(self, bert):
        super().__init__()
        self.bert = bert

    def forward(self, ids, segments, real):
        return self.bert(ids, segments, real).logits


def export(folder):
    """--export: FOLDER/model.pt2, a program that runs with torch alone, at any batch and length."""
    if not Path(folder).is_dir():
        raise BadInput(f"--export {folder}: want the folder of a model; there the program is put")
    bert = load_bert(folder)[0].eval()
    B, T = torch.export.Dim("B"), torch.export.Dim("T", max=bert.config.positions)
    ids = torch.zeros(2, 8, dtype=torch.long)                       # one tensor twice would be
    example = ids, ids.clone(), ids == 0                            # taken for one input
    program = torch.export.export(Program(bert), example, dynamic_shapes=[{0: B, 1: T}] * 3)
    path = Path(folder) / "model.pt2"
    write(path, lambda file: torch.export.save(program, file))
    print(f"{path}: ids, segments, real (B, T) -> logits; T up to {bert.config.positions}")


def job(arguments):
    """What the command line asks for."""
    flags = make_parser(Settings, __doc__, COMMANDS).parse_args(arguments)
    given = {name: x for name, x in vars(flags).items() if x is not None}
    asked = {name: given.pop(name) for name in COMMANDS if name in given}      # one at most
    cfg = settings(Settings, given)
    if not asked:
        return run(cfg)
    torch.set_num_threads(given.get("threads") or torch.get_num_threads())
    if "predict" in asked:
        predict(asked["predict"][0], asked["predict"][1:])
    if "export" in asked:
        export(asked["export"])
    if "evaluate" in asked:
        evaluate_model(asked["evaluate"], given, pick_device(cfg.device))
    if "submit" in asked:
        submit(asked["submit"], given, pick_device(cfg.device))


def main(arguments=None):
    return guarded("cofi", job, arguments)


if __name__ == "__main__":
    sys.exit(main())
