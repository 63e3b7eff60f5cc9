"""CoFi in one file: structured pruning of BERT, from whole layers down to single FFN units.

Xia, Zhong and Chen, "Structured Pruning Learns Compact and Accurate Models", ACL 2022
(arXiv 2204.00408). The network is pruned while it is distilled from a fine-tuned teacher.

    python cofi.py                                     a toy, offline, in three to five minutes
    python cofi.py --task rte                          teacher -> prune -> fine-tune -> report
    python cofi.py --evaluate out/rte-0.95             score a finished run again
    python cofi.py --predict out/rte-0.95 "It rains." "It is dry."

Read it from the top, in the order of the paper:

    0  Settings              every setting, with its source
    1  BERT                  the network, and where its five kinds of masks multiply
    2  Hard concrete         how a mask of zeros and ones is learned by gradient descent
    3  Size and Lagrangian   how many weights are left, and how to reach the target sparsity
    4  Distillation          what the student learns from the teacher
    5  Pruning               from masks to a smaller network with the same outputs
    6  Training              one loop for all three stages
    7  Main                  one run from beginning to end

Reading data, keeping files and printing are left to the package data/.

A § at the end of a line marks an equation. A number is the section of the paper; a bare § stands
for its appendix, another paper, or an equation of our own. `python test_cofi.py --guide` lists all
with their tests. DEPARTURE marks where this file differs from the paper or the authors' code. A
shape at the end of a line is the shape of the value that the line makes. Letters of the shapes:

    B batch   T tokens   L layers   d hidden size   h heads   k size of a head   f FFN units
    n distilled layers

Symbols of the paper:

    z_mha (L)   z_head (L, h)   z_ffn (L)   z_int (L, f)   z_hidn (d)    masks in [0, 1]
                       0: closed, pruned; above 0: open; between 0 and 1: half-open
    log_alpha          the learned parameter behind each mask
    s, t               sparsity: share of the encoder's weights that is pruned; its target
    lambda1, lambda2   Lagrange multipliers that bring s to t
    H_s, H_t           hidden states of student and teacher
    m(i)               the student layer matched to teacher layer i
"""
import copy
import math
import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

# `data` comes first: from here on Ctrl-C ends the program without a traceback. Nothing of it that
# is imported here imports this file; the functions of this file that it needs are passed to it.
from data.checkpoint import load_encoder, load_weights, read_finetuned
from data.harness.baselines import STRUCTURES, choose_structure
from data.harness.cli import EPOCHS, LEARNING_RATE, SHARE, WEIGHT, RunConfig, flag
from data.harness.commands import run_cli
from data.harness.console import COFI_HEADER, cofi_line, print_header
from data.harness.device import SkipInit, autocast, to_device
from data.harness.evaluate import evaluate_dev
from data.harness.progress import Progress
from data.harness.report import find_run, finish_run, print_report
from data.harness.runs import check_reachable, get_teacher, load_data, open_journals, setup
from data.harness.teacher import cache_teacher

import torch
import torch.nn.functional as F
from torch import nn

# --------------------------------------------------------------------------------------------------
# 0. Settings
# --------------------------------------------------------------------------------------------------
# Every field is a flag of the command line: default, meaning and source. RunConfig (in
# data/harness/cli.py) adds what every run needs: task, model, seed, batch size and so on.
# Some defaults depend on the task: see TASK_DEFAULTS.
#
# DEPARTURE: the paper weighs its two losses by lambda and 1 - lambda. Here they are two settings,
# so that each can be switched off.
# DEPARTURE: the masks start after a share of the steps, and t rises for a share of them. The paper
# counts epochs, its code starts after 100 steps. Shares hold for a run of any length.


@dataclass
class Settings(RunConfig):
    """Settings of CoFi besides those of every run."""
    # what is pruned
    sparsity: float = flag(
        0.95, "Share of the encoder's weights to prune (paper: .60 to .95), or several (0.6,0.8): "
        "each goes on from the pruning of the one before", range=(0.01, 0.99), is_rising=True)
    masks: str = flag(
        "mha,head,ffn,int,hidn", "Masks to learn; the others stay open (paper: all)",
        some_of=("mha", "head", "ffn", "int", "hidn"))
    matching: str = flag(
        "free", "Layer matching (paper: ordered on small sets, free on others)",
        choices=("free", "ordered", "fixed"))
    structure: str = flag(
        "learned", "How to choose what is pruned: CoFi, or a baseline without learning",
        choices=STRUCTURES)
    # distillation
    layer_weight: float = flag(
        0.5, "Weight of L_layer, 0: off (paper: .9, .7 or .5, by grid)", range=WEIGHT)
    pred_weight: float = flag(
        0.5, "Weight of L_pred, 0: labels instead (paper: .1, .3 or .5)", range=WEIGHT)
    temperature: float = flag(
        2.0, "Temperature of L_pred (authors' code: 2)", range=(0.01, 100))
    # schedule; the shares are of all steps of pruning
    prune_epochs: float = flag(
        20.0, "Epochs of pruning (paper: 100 on small sets, 20 on others)", range=EPOCHS)
    finetune_epochs: float = flag(
        20.0, "Epochs of fine-tuning the pruned model (paper: 20)", range=EPOCHS)
    mask_start: float = flag(
        1 / 20, "Share of pruning before the masks start (paper: 4/100 on small sets, 1/20)",
        range=SHARE, is_share=True)
    sparsity_warmup: float = flag(
        2 / 20, "Share of pruning in which t rises (paper: 20/100 on small sets, 2/20)",
        range=SHARE, is_share=True)
    # learning rates; those of weights fall to 0, those of masks and multipliers are constant
    prune_lr: float = flag(
        2e-5, "Learning rate during pruning (paper: 2e-5). Short schedules and small models need a "
        "larger one", range=LEARNING_RATE)
    finetune_lr: float = flag(
        2e-5, "Learning rate of the pruned model (paper: 1e-5, 2e-5 or 3e-5). Short schedules and "
        "small models need a larger one", range=LEARNING_RATE)
    mask_lr: float = flag(
        0.01, "Learning rate of log_alpha (paper: .01). This and lambda_lr are scaled by 10,000 / "
        "steps in a shorter run, at most by 20", range=(1e-9, 10))
    lambda_lr: float = flag(
        0.3, "Learning rate of lambda1 and lambda2 (ours)", range=(0, 1000))
    lambda2: float = flag(
        1400.0, "Initial lambda2 (ours). The larger, the closer s follows t. Divided by 10,000 / "
        "steps in a shorter run, at most by 20", range=(0, 1e6))

    # what differs on some tasks: the paper's table of hyper-parameters; the toy's are ours
    TASK_DEFAULTS = {
        "small": {
            "matching": "ordered",
            "prune_epochs": 100.0,
            "mask_start": 0.04,
            "sparsity_warmup": 0.2},
        "squad": {"prune_lr": 3e-5},
        "toy": {
            "sparsity": 0.9,
            "matching": "ordered",
            "prune_epochs": 7.0,
            "finetune_epochs": 3.0,
            "mask_start": 0.1,
            "sparsity_warmup": 0.5,
            "prune_lr": 5e-4,
            "finetune_lr": 5e-4,
            "lambda2": 7600.0}}

    def groups(self):
        """Return the names of the masks to learn."""
        return [f"z_{name}" for name in self.masks.split(",")]


# --------------------------------------------------------------------------------------------------
# 1. BERT (§2.1), and where the masks multiply (§3.1)
# --------------------------------------------------------------------------------------------------
#     MHA(X)   = z_mha sum_i z_head[i] Att_i(X)
#     FFN(X)   = z_ffn gelu(X W_U) diag(z_int) W_D
#     X        = LayerNorm(X + MHA(X) z_hidn),  then  X = LayerNorm(X + FFN(X) z_hidn)
#     X        = X where MHA or FFN is dead (z_mha or z_ffn is 0): its LayerNorm is skipped, too
#     Att_i(X) = softmax(X W_Q[i] (X W_K[i])^T / sqrt(k)) X W_V[i] W_O[i]
#
# Biases are not written here. A mask comes after the bias, so it multiplies the bias as well.
#
# z_mha and z_ffn are one number for each layer, z_head one for each head, z_int one for each FFN
# unit. A mask of 0 makes the weights behind it useless: section 5 removes them.
# z_hidn is one vector for the whole network, because the residual stream is one stream. It
# multiplies the output of every MHA, FFN and LayerNorm, that of the embeddings included. So a
# half-open dimension is scaled at each of them, as in the authors' code.
#
# The paper leaves open what LayerNorm averages over. As in the authors' code: over the hidden
# dimensions that z_hidn keeps, because the pruned network has no others. Masked sums do this
# without a shape that depends on the data:
#
#     kept = (z_hidn > 0)
#     mean = sum_j kept[j] x[j] / sum_j kept[j]
#     var  = sum_j kept[j] (x[j] - mean)^2 / sum_j kept[j]
#     y    = ((x - mean) / sqrt(var + eps) weight + bias) z_hidn
#
# DEPARTURE: a sub-layer is also dead if all of its heads or FFN units are closed. In the paper only
# z_mha or z_ffn decides. Here "no weights left" always means "does nothing".
# DEPARTURE: the authors' code multiplies the embeddings by z_hidn before LayerNorm as well. For a
# closed dimension this changes nothing. A half-open one is scaled before the mean is taken.


@dataclass
class Config:
    """The sizes of a BERT. Layers may differ: a pruned model is a BERT with uneven layers."""
    vocab_size: int
    max_position_embeddings: int    # the longest sequence
    type_vocab_size: int            # first and second text: 2
    hidden_size: int                # d
    attention_head_size: int        # k
    heads_per_layer: list           # h of each layer; 0: the layer has no MHA
    ffn_per_layer: list             # f of each layer; 0: the layer has no FFN
    pooler_size: int                # the pooler's outputs are not pruned
    dropout: float = 0.1
    layer_norm_eps: float = 1e-12
    id2label: list | None = None    # class names; None: regression, one output
    is_span: bool = False           # the classifier marks where an answer starts and ends
    task: str = ""                  # what the classifier was trained for


def apply_masks(x, *masks):
    """Multiply x by its masks, in the precision of x. None is a mask that does not exist."""
    masks = [z for z in masks if z is not None]
    # Masks are fp32. bf16 times fp32 would give fp32: twice as much memory to move.
    return x * math.prod(masks).to(x.dtype) if masks else x


class MaskedLayerNorm(nn.LayerNorm):
    """LayerNorm over the hidden dimensions that z_hidn keeps (§3.1)."""

    def forward(self, x, z_hidn=None):
        """x (B, T, d); z_hidn (d) or None. Returns (B, T, d), 0 where z_hidn is 0."""
        if z_hidn is None:
            return super().forward(x)
        kept = (z_hidn > 0).to(x.dtype)                             # (d)
        # clamp: with every dimension closed the sums are 0, and 0 / 1 is not NaN
        num_kept = kept.sum().clamp(min=1)                          # ()
        mean = (x * kept).sum(-1, keepdim=True) / num_kept          # (B, T, 1)
        x = (x - mean) * kept                                       # (B, T, d)
        variance = x.square().sum(-1, keepdim=True) / num_kept      # (B, T, 1)
        x = x * torch.rsqrt(variance + self.eps)                    # (B, T, d)
        # z_hidn once more, because the bias would make a closed dimension nonzero again
        return x * (self.weight * z_hidn) + self.bias * z_hidn      # (B, T, d)      §3.1 z_hidn


class MHA(nn.Module):
    """Multi-head attention with h heads of size k, residual connection and LayerNorm."""

    def __init__(self, config, h):
        super().__init__()
        d = config.hidden_size
        self.k = config.attention_head_size
        self.query = nn.Linear(d, h * self.k)
        self.key = nn.Linear(d, h * self.k)
        self.value = nn.Linear(d, h * self.k)
        self.out = nn.Linear(h * self.k, d)
        self.norm = MaskedLayerNorm(d, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def split_heads(self, x):
        """Reshape (B, T, h k), the heads side by side, to (B, h, T, k)."""
        return x.unflatten(-1, (-1, self.k)).transpose(1, 2)

    def scores(self, x):
        """Return the attention scores before softmax. x (B, T, d). Returns (B, h, T, T)."""
        queries = self.split_heads(self.query(x))                   # (B, h, T, k)
        keys = self.split_heads(self.key(x))                        # (B, h, T, k)
        return queries @ keys.transpose(-1, -2) / math.sqrt(self.k)     # (B, h, T, T)

    def forward(self, x, attention_mask, z_mha=None, z_head=None, z_hidn=None):
        """x (B, T, d); attention_mask (B, T) bool, False at padding; z_mha (), z_head (h),
        z_hidn (d). Returns (B, T, d).
        """
        # after softmax no token attends to padding; softmax in fp32: bf16 is too coarse
        padding = ~attention_mask[:, None, None]                    # (B, 1, 1, T)
        scores = self.scores(x).masked_fill(padding, -torch.inf)    # (B, h, T, T)
        attention = scores.softmax(-1, dtype=torch.float)           # (B, h, T, T)
        values = self.split_heads(self.value(x))                    # (B, h, T, k)
        heads = self.dropout(attention) @ values                    # (B, h, T, k)
        # z_head comes before `out`, which mixes the heads
        if z_head is not None:
            heads = apply_masks(heads, z_head[:, None, None])       # (B, h, T, k)   §3.1 MHA
        y = self.out(heads.transpose(1, 2).flatten(2))              # (B, T, d)
        # x itself needs no mask: it is already 0 wherever z_hidn is 0
        y = apply_masks(y, z_mha, z_hidn)                           # (B, T, d)      §3.1 MHA
        return self.norm(x + self.dropout(y), z_hidn)


class FFN(nn.Module):
    """Feed-forward network with f units, residual connection and LayerNorm."""

    def __init__(self, config, f):
        super().__init__()
        d = config.hidden_size
        self.up = nn.Linear(d, f)
        self.down = nn.Linear(f, d)
        self.norm = MaskedLayerNorm(d, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, z_ffn=None, z_int=None, z_hidn=None):
        """x (B, T, d); z_ffn (), z_int (f), z_hidn (d). Returns (B, T, d)."""
        # z_int comes after gelu: before it, a closed unit would still give gelu(bias)
        y = apply_masks(F.gelu(self.up(x)), z_int)                  # (B, T, f)      §3.1 FFN
        y = apply_masks(self.down(y), z_ffn, z_hidn)                # (B, T, d)      §3.1 FFN
        return self.norm(x + self.dropout(y), z_hidn)


def is_alive(z_sublayer, z_units):
    """Whether a sub-layer has weights left: its own mask is open, and at least one of its units.

    z_sublayer (...), z_units (..., number of units). Returns bool (...).
    """
    return (z_sublayer > 0) & (z_units > 0).any(-1)


class Layer(nn.Module):
    """One Transformer layer. A dead sub-layer is the identity, its LayerNorm included."""

    def __init__(self, config, h, f):
        super().__init__()
        self.mha = MHA(config, h) if h else None
        self.ffn = FFN(config, f) if f else None

    def forward(self, x, attention_mask, z_mha=None, z_head=None, z_ffn=None, z_int=None,
                z_hidn=None):
        """x (B, T, d); attention_mask (B, T); the masks of this layer. Returns (B, T, d)."""
        if self.mha:
            y = self.mha(x, attention_mask, z_mha, z_head, z_hidn)  # (B, T, d)
            if z_mha is not None:
                # not `if is_alive`: reading a mask would make the CPU wait for the GPU
                y = torch.where(is_alive(z_mha, z_head), y, x)      # (B, T, d)
            x = y
        if self.ffn:
            y = self.ffn(x, z_ffn, z_int, z_hidn)                   # (B, T, d)
            if z_ffn is not None:
                y = torch.where(is_alive(z_ffn, z_int), y, x)       # (B, T, d)
            x = y
        return x


class Embeddings(nn.Module):
    """Sum of word, position and token type embeddings, normalized."""

    def __init__(self, config):
        super().__init__()
        d = config.hidden_size
        self.word = nn.Embedding(config.vocab_size, d)
        self.position = nn.Embedding(config.max_position_embeddings, d)
        self.token_type = nn.Embedding(config.type_vocab_size, d)
        self.norm = MaskedLayerNorm(d, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, input_ids, token_type_ids, z_hidn=None):
        """input_ids, token_type_ids (B, T). Returns (B, T, d)."""
        x = self.word(input_ids) + self.token_type(token_type_ids)  # (B, T, d)
        # positions are 0, 1, 2 ...: the first T rows of the table
        x = x + self.position.weight[:input_ids.shape[1]]           # (B, T, d)
        return self.dropout(self.norm(x, z_hidn))


# what the network returns; distillation reads the hidden states
class Output(NamedTuple):
    logits: torch.Tensor      # (B, classes); (B, 1) for regression; (B, 2, T) for spans
    hidden_states: list       # L + 1 states (B, T, d): of the embeddings, then of each layer


class BERT(nn.Module):
    """BERT with a classifier of classes, a value or spans. Its Config says whether it is pruned."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        sizes = zip(config.heads_per_layer, config.ffn_per_layer)
        self.layers = nn.ModuleList(Layer(config, h, f) for h, f in sizes)
        if config.is_span:
            # two scores for each token: how well an answer starts there, and ends there
            self.classifier = nn.Linear(config.hidden_size, 2)
        else:
            self.pooler = nn.Linear(config.hidden_size, config.pooler_size)
            num_outputs = len(config.id2label) if config.id2label else 1
            self.classifier = nn.Linear(config.pooler_size, num_outputs)
            self.dropout = nn.Dropout(config.dropout)
        # BERT's own initialization; weights that are loaded replace it
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, input_ids, token_type_ids, attention_mask, z_hidn=None, **z):
        """input_ids, token_type_ids (B, T) int64; attention_mask (B, T) bool, False at padding.

        z: z_mha (L), z_head (L, h), z_ffn (L), z_int (L, f). Give all five masks, with z_hidn (d),
        or none; one that is switched off is a tensor of ones. Returns Output.
        """
        x = self.embeddings(input_ids, token_type_ids, z_hidn)      # (B, T, d)
        hidden_states = [x]
        for i, layer in enumerate(self.layers):
            z_of_layer = {group: mask[i] for group, mask in z.items()}
            x = layer(x, attention_mask, z_hidn=z_hidn, **z_of_layer)       # (B, T, d)
            hidden_states.append(x)
        if self.config.is_span:
            logits = self.classifier(x).transpose(1, 2)             # (B, 2, T)
            # -1e4 instead of -inf: in KL, p_t = 0 times log p_s = -inf would give NaN
            logits = logits.masked_fill(~attention_mask[:, None], -1e4)             # (B, 2, T)
            return Output(logits, hidden_states)
        # the first token, [CLS], stands for the whole text
        pooled = torch.tanh(self.pooler(x[:, 0]))
        return Output(self.classifier(self.dropout(pooled)), hidden_states)


def load_finetuned(model):
    """Load a fine-tuned BERT, dense or pruned, with its classifier.

    model: a folder or a hub name. Raises UserError if a name or shape of the weights is wrong.
    """
    sizes, weights = read_finetuned(model)
    return load_weights(BERT, Config(**sizes), weights, model)


def load_pretrained(model, config, seed=0):
    """Load a pre-trained BERT and initialize a new classifier for the classes of config.

    Teacher and student begin with the same classifier, because it is drawn from the same seed.
    Returns (BERT, notes for the user, one line each). Raises UserError as load_finetuned.
    """
    torch.manual_seed(seed)
    return load_encoder(BERT, config, model)


# --------------------------------------------------------------------------------------------------
# 2. Hard concrete (Louizos et al. 2018): masks in [0, 1], often exactly 0 or 1, with a gradient
# --------------------------------------------------------------------------------------------------
#     u ~ U(eps, 1 - eps)
#     sigma    = sigmoid((logit(u) + log_alpha) / beta)
#     z        = clamp(sigma (r - l) + l, 0, 1)
#     P(z > 0) = sigmoid(log_alpha - beta log(-l / r))
#
# logit(u) is logistic noise. So sigma is a relaxed coin flip with log-odds log_alpha: the smaller
# beta, the closer it is to 0 or 1. Stretching sigma from (0, 1) to (l, r) and clamping it gives
# exact zeros and ones with a positive probability. In between there is a gradient in log_alpha.
# z > 0 means sigma > -l / (r - l). The distribution function of the noise is the sigmoid, which
# gives P(z > 0). The final masks have no noise. As in the authors' code, what stays open then gets
# the value sigmoid(.8 log_alpha / beta), without stretching and clamping.
#
# DEPARTURE: all masks start nearly open. In the authors' code FFN units start at P(z > 0) = .83, so
# 11 % of the weights count as pruned before training; here 3 %.
# DEPARTURE: the authors' code clamps log_alpha to [log .01, log 100]. At log .01 a closed mask
# still counts as open with P = .05: even with all heads and units closed s is only .953. Here the
# lower end is -10. A value beyond an end moves half of the way back, which keeps ranks.

BETA = 2 / 3                                 # temperature
STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1        # l, r
EPS = 1e-6                                   # keeps logit(u) finite
LOG_ALPHA_INIT = 3.0                         # P(z > 0) = .99
LOG_ALPHA_MIN = -10.0                        # ours; P(z > 0) = .0002
LOG_ALPHA_MAX = 4.6                          # authors' code; far above it gradients are tiny
FINAL_SHARPNESS = 0.8                        # authors' code, from Wang et al. 2020


def sample_z(log_alpha, u=None):
    """Sample masks. u: uniform noise in (0, 1), shaped as log_alpha; drawn if None."""
    if u is None:
        u = torch.empty_like(log_alpha).uniform_(EPS, 1 - EPS)
    # the gradient flows through sigma; the noise u does not depend on log_alpha
    sigma = torch.sigmoid((torch.logit(u) + log_alpha) / BETA)
    stretched = sigma * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW
    return stretched.clamp(0, 1)                                    # § hard concrete


def keep_prob(log_alpha):
    """Return P(z > 0), the probability that a mask is open.

    Example:
    >>> keep_prob(torch.tensor([-3.0, 0.0, 3.0]))
    tensor([0.1976, 0.8318, 0.9900])
    """
    shift = BETA * math.log(-STRETCH_LOW / STRETCH_HIGH)
    return torch.sigmoid(log_alpha - shift)                         # § P(z > 0)


def final_z(log_alpha):
    """Return the final value of a mask that stays open, between 0 and 1, without noise."""
    # what stays open must not vanish, whatever log_alpha is: in fp32 the sigmoid of -104 is 0
    z = torch.sigmoid(log_alpha / BETA * FINAL_SHARPNESS)           # § final z
    return z.clamp(min=1e-6)


class Masks(nn.Module):
    """log_alpha of every mask: the parameter named z_mha is the log_alpha of z_mha, and so on.

    A group that is switched off has log_alpha inf: its masks are open.
    """

    GROUPS = ("z_mha", "z_head", "z_ffn", "z_int", "z_hidn")

    def __init__(self, config, groups=GROUPS):
        super().__init__()
        self.k = config.attention_head_size
        L = len(config.heads_per_layer)
        h = config.heads_per_layer[0]
        f = config.ffn_per_layer[0]
        shapes = {
            "z_mha": (L,),
            "z_head": (L, h),
            "z_ffn": (L,),
            "z_int": (L, f),
            "z_hidn": (config.hidden_size,)}
        for group, shape in shapes.items():
            if group in groups:
                # a little noise, so that no two masks are equal
                log_alpha = LOG_ALPHA_INIT + 0.01 * torch.randn(shape)
                self.register_parameter(group, nn.Parameter(log_alpha))
            else:
                # sigmoid(inf) is 1: the formulas below hold for an open mask as well
                self.register_buffer(group, torch.full(shape, torch.inf))

    def log_alpha(self):
        """Return {group: log_alpha} of all five groups."""
        return {group: getattr(self, group) for group in self.GROUPS}

    def sample(self):
        """Return {group: z}: one sample for a whole batch."""
        return {group: sample_z(log_alpha) for group, log_alpha in self.log_alpha().items()}

    def sparsity(self, z=None):
        """Return the sparsity of masks z of 0 and 1. Without z: the expected s, with a gradient."""
        if z is None:
            z = {group: keep_prob(log_alpha) for group, log_alpha in self.log_alpha().items()}
        full = {group: torch.ones_like(mask) for group, mask in z.items()}
        # masks are independent: the probability that two are open is the product
        size = expected_size(self.k, **z)
        full_size = expected_size(self.k, **full)
        return 1 - size / full_size                                 # ()             §3.1 sparsity

    @torch.no_grad()
    def soft_clamp_(self):
        """Keep log_alpha near [LOG_ALPHA_MIN, LOG_ALPHA_MAX]: halve the part beyond. In place."""
        # halving keeps the order of log_alpha, by which final_masks ranks
        for log_alpha in self.parameters():
            log_alpha -= (log_alpha - log_alpha.clamp(LOG_ALPHA_MIN, LOG_ALPHA_MAX)) / 2


# --------------------------------------------------------------------------------------------------
# 3. Size (§3.1) and Lagrangian
# --------------------------------------------------------------------------------------------------
# A weight survives if every mask on its way is open. Masks are independent, so the expected number
# of weights is the following with z replaced by P(z > 0):
#
#     size = 4 k sum_l sum_i sum_j z_mha[l] z_head[l,i] z_hidn[j]
#          + 2   sum_l sum_i sum_j z_ffn[l] z_int[l,i]  z_hidn[j]
#     s    = 1 - size / M,    M the size with every mask at 1: 84,934,656 for BERT-base
#     L_c  = lambda1 (s - t) + lambda2 (s - t)^2
#
# The paper calls size / M the sparsity, but means (and its code computes) 1 - size / M.
# A head has 4 matrices of k columns (or rows), an FFN unit is a column of W_U and a row of W_D.
# (In PyTorch the weight of a Linear is the transposed matrix: there it is a row of `up`.)
# Embeddings, biases and LayerNorms do not count. The sums over j and over (l, i) factorize, so the
# einsums below need no tensor of size d x L f.
#
# L_c is a game: log_alpha goes down its gradient, lambda1 and lambda2 go up theirs. The quadratic
# term acts while s is far from t. lambda1 sums up s - t over the steps, and so removes the error
# that the quadratic term leaves.
#
# DEPARTURE: the authors' code counts in three ways, so that an unpruned model reports .05 to .1 %
# sparsity. Here masked and pruned networks are counted alike; a network without masks has 0.


def expected_size(k, z_mha, z_head, z_ffn, z_int, z_hidn):
    """Count the weights of the encoder's matrices: expected with P(z > 0), exact with 0 and 1.

    k: size of a head; z_mha, z_ffn (L); z_head (L, h); z_int (L, f); z_hidn (d). Returns ().
    """
    mha = 4 * k * torch.einsum("l,li,j->", z_mha, z_head, z_hidn)   # ()          §3.1 expected size
    ffn = 2 * torch.einsum("l,li,j->", z_ffn, z_int, z_hidn)        # ()          §3.1 expected size
    return mha + ffn


def count_encoder_weights(bert):
    """Count the same weights of a network as it is: the elements of its encoder's matrices."""
    return sum(weight.numel() for weight in bert.layers.parameters() if weight.dim() == 2)


def lagrangian(s, t, lambda1, lambda2):
    """Return L_c, of numbers or tensors: descent on log_alpha, ascent on lambda1 and lambda2.

    While s < t, ascent makes lambda1 negative, so that descent on lambda1 s raises s.
    """
    return lambda1 * (s - t) + lambda2 * (s - t) ** 2               # ()             § L_c


# --------------------------------------------------------------------------------------------------
# 4. Distillation (§3.2)
# --------------------------------------------------------------------------------------------------
#     L_pred   = KL(p_t || p_s) at temperature tau, times tau^2
#     L_layer  = sum_i MSE(W_layer H_s[m(i)], H_t[i])      i over four teacher layers: 3, 6, 9, 12
#     m(i)     = argmin_j MSE(W_layer H_s[j], H_t[i])      j over the student layers that are alive
#     L_distil = pred_weight L_pred + layer_weight L_layer
#
# p_s and p_t are the predictions of student and teacher, H (B, T, d) their hidden states. A layer
# is alive if it has weights left. There is no loss on the labels, unless L_pred is switched off.
# W_layer is a d x d matrix that starts as the identity and is trained (with a wider teacher, as
# many rows as its hidden size). On small data sets the matching is ordered: from the top down, each
# teacher layer may only match a student layer below the last match.
#
# DEPARTURE: the paper writes KL(p_s || p_t). The authors' code takes the teacher as the target, and
# so does this file: the published results come from it.
# DEPARTURE: for a regression (STS-B) KL over one logit is 0, and so is its gradient. Here: MSE.
# DEPARTURE: a layer is alive if its MHA or its FFN is. The paper says FFN, the authors' ordered
# matching asks for the MHA, their free matching does not ask.
# DEPARTURE: with no candidate left, a teacher layer is skipped. The authors' code uses the layer
# that was matched above once more, or falls off the end of a list.
# DEPARTURE: MSE is a mean over tokens, not over padding. W_layer has no bias, theirs has one.


def label_loss(logits, labels):
    """Return the cross-entropy to the classes, or for regression (one logit) the MSE.

    logits (B, classes) and labels (B); or logits (B, 2, T) and labels (B, 2): a span is a choice of
    its first and of its last token.
    """
    if logits.shape[-1] == 1:
        return F.mse_loss(logits[:, 0], labels)
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten())


def pred_loss(student, teacher, temperature):
    """Return L_pred: KL divergence from the teacher's distribution, or for regression the MSE.

    student, teacher: logits (B, classes), or (B, 2, T) for spans: the mean of two choices.
    """
    if student.shape[-1] == 1:
        return F.mse_loss(student, teacher)                         # ()
    # softer distributions also say which wrong classes the teacher finds likely
    p_t = (teacher / temperature).softmax(-1)
    log_p_s = (student / temperature).log_softmax(-1)
    kl = F.kl_div(log_p_s.flatten(0, -2), p_t.flatten(0, -2), reduction="batchmean")
    # The gradient shrinks with 1 / tau^2: multiply it back (Hinton et al. 2015).
    return kl * temperature**2                                      # ()             §3.2 L_pred


def distilled_layers(L):
    """Return the teacher layers that are distilled, from 0: about evenly spaced, the last included.

    Four, if there are as many.

    Example:
    >>> distilled_layers(12), distilled_layers(6), distilled_layers(2)
    ([2, 5, 8, 11], [1, 2, 4, 5], [0, 1])
    """
    return sorted({math.ceil(L * i / 4) - 1 for i in (1, 2, 3, 4)})


def alive_layers(hidden_states):
    """Return which layers change their input, (L) bool: those that have weights left.

    hidden_states: L + 1 states (B, T, d), as in Output.
    """
    pairs = zip(hidden_states, hidden_states[1:])
    return torch.stack([(after != before).any() for before, after in pairs])


def match_layers(distance, alive, matching):
    """Find m(i): the student layer that learns from each distilled teacher layer, from 0.

    distance (n, L): of teacher layer i to student layer j; alive (L) bool. free: the closest alive
    layer. ordered: the closest alive layer below the one matched last, from the top down.
    Returns m (n), -1 where there was no candidate.
    """
    m = []
    candidates = alive                                              # (L)
    for distance_i in reversed(distance):
        closest = distance_i.masked_fill(~candidates, torch.inf).argmin()  # ()        §3.2 m(i)
        closest = torch.where(candidates.any(), closest, -1)        # ()
        m.insert(0, closest)
        if matching == "ordered":
            is_below = torch.arange(len(alive), device=alive.device) < closest      # (L)
            candidates = alive & is_below                           # (L)
    return torch.stack(m)


def layer_loss(student, teacher, attention_mask, W_layer, alive, matching):
    """Return L_layer, and m (n) with -1 for a teacher layer without a match: its term is 0.

    student, teacher: the states after each layer, each (B, T, d). Their numbers of layers and d may
    differ; only the distilled_layers of the teacher are read, they may be bfloat16. attention_mask
    (B, T) bool; W_layer: Linear from the student's d to the teacher's; alive (L) bool. matching:
    free, ordered, or fixed as in earlier work: m is distilled_layers itself, alive or not, but at
    most the student's last layer.
    """
    layers = distilled_layers(len(teacher))
    H_s = torch.stack(student)                                      # (L, B, T, d)
    H_t = torch.stack([teacher[i] for i in layers]).float()
    # one factor for the mean over tokens, padding excluded, and over dimensions
    weight = attention_mask / (attention_mask.sum() * H_t.shape[-1])    # (B, T)

    def mse(H):
        # H (B, T, d): its error to every H_t. H (n, B, T, d): the error of H[i] to H_t[i]
        error = F.mse_loss(W_layer(H).float().expand_as(H_t), H_t, reduction="none").sum(-1)
        return (error * weight).sum((-1, -2))                       # (n)

    if matching == "fixed":
        m = torch.tensor(layers, device=H_s.device).clamp(max=len(student) - 1)     # (n)
    else:
        # the choice has no gradient, only the loss of the chosen layers has
        with torch.no_grad():
            distance = torch.stack([mse(H) for H in H_s], dim=1)    # (n, L)
            m = match_layers(distance, alive, matching)             # (n)
    # m = -1 reads the last layer, but does not count
    loss = (mse(H_s[m]) * (m >= 0)).sum()                           # ()             §3.2 L_layer
    return loss, m


def distillation_loss(out, out_t, labels, attention_mask, cfg, W_layer):
    """Return the loss of the network, (L_pred, L_layer) without their weights, and m or None.

    out, out_t: Output of student and teacher, the latter None without distillation. Labels count
    only where L_pred does not: without a teacher, or with pred_weight 0.
    """
    m = None
    # logits in fp32: bf16 has two to three digits
    if out_t and cfg.pred_weight:
        pred = pred_loss(out.logits.float(), out_t.logits.float(), cfg.temperature)
        loss = cfg.pred_weight * pred
    else:
        loss = pred = label_loss(out.logits.float(), labels)
    layer = torch.zeros_like(pred)
    if out_t and cfg.layer_weight:
        layer, m = layer_loss(
            out.hidden_states[1:], out_t.hidden_states[1:], attention_mask, W_layer,
            alive_layers(out.hidden_states), cfg.matching)
        loss = loss + cfg.layer_weight * layer                      # §3.2 L_distil
    return loss, torch.stack([pred, layer]).detach(), m


# --------------------------------------------------------------------------------------------------
# 5. Pruning (§3.1): from log_alpha to final masks, and to a network that is that small
# --------------------------------------------------------------------------------------------------
# The authors' rule (`deterministic_masks`):
#     z_mha and z_ffn of a layer are open if their P(z > 0) >= .5
#     of a layer's heads, of its FFN units and of the hidden dimensions, as many are open as are
#     expected to be, round(sum P(z > 0)): those with the highest log_alpha
#
# DEPARTURE: this rule alone misses the target by up to 1.5 points. So a shift is added to all
# log_alpha first: the largest for which the network fits into the budget of (1 - t) M weights. If
# the Lagrangian has brought s to t, the shift is almost 0. The rest of the budget is then too small
# for a head or a hidden dimension. So the finest group (the FFN units) gets a shift of its own that
# fills the budget; if even all units do not fill it, z_ffn is shifted as well. The sparsity is
# never below its target, and above it by less than one unit (more only where masks of a group are
# exactly equal, and in tiny networks, in which a single part exceeds the budget).
#
# A pruned matrix is diag(z_rows) W diag(z_columns) without the closed rows and columns. With the
# masks folded into the weights, the pruned network has the outputs of the masked one, and the same
# gradients. So it serves twice: for the result, and on a CPU in every step with masks
# (`build_subnetwork`), which then costs only what the sample of the masks leaves open.
#
# DEPARTURE: the authors' code does not fold z_hidn into LayerNorm and into biases, so that masked
# and pruned network differ.
#
# A Linear computes x W^T: the columns of its weight are inputs, the rows are outputs. So z_hidn
# prunes the columns of query, key, value and up, which read the residual stream, and the rows of
# out and down, which write to it. The masks of heads and units prune the other side of each.

# by the weights behind one mask, of BERT-base: 1,536; 110,592; 196,608; 2.4 and 4.7 million
FINEST_FIRST = ("z_int", "z_hidn", "z_head", "z_mha", "z_ffn")
SUBLAYER_OF = {"z_head": "z_mha", "z_int": "z_ffn"}    # {units: mask of the sub-layer they are in}
FAR = 1000.0                                        # beyond any log_alpha; a baseline's go to 850


def bisect(fits):
    """Return (low, high), almost equal: the largest shift that fits, the smallest that does not.

    Both are about FAR if every shift fits, and about -FAR if none does.

    Example:
    >>> largest, smallest = bisect(lambda shift: shift <= 0.5)
    >>> round(largest, 6), round(smallest, 6)
    (0.5, 0.5)
    """
    low = -FAR
    high = FAR
    for _ in range(60):
        middle = (low + high) / 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low, high


def descending_rank(score):
    """Return the rank of each score in its row, 0 for the highest. Ties keep their order."""
    return score.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)


def deterministic_masks(p, rank):
    """Return {group: 0 or 1}: z_mha and z_ffn by P(z > 0) >= .5, of others the expected number.

    p: {group: P(z > 0)}; rank: {group: rank of each mask in its row}, 0 for what is kept first. A
    row: the heads or FFN units of one layer, or the hidden vector.

    Example:
    >>> p = torch.tensor([0.2, 0.9, 0.6, 0.5])              # 2.2 of 4 are expected to be open
    >>> deterministic_masks({"z_hidn": p}, {"z_hidn": descending_rank(p)})
    {'z_hidn': tensor([0., 1., 1., 0.])}
    """
    z = {}
    for group, chance in p.items():
        if group in ("z_mha", "z_ffn"):
            is_open = chance >= 0.5
        else:
            expected = chance.sum(-1, keepdim=True).round()
            is_open = rank[group] < expected                        # § deterministic z
        z[group] = is_open.to(chance)
    return z


@torch.no_grad()
def final_masks(masks, t):
    """Return the final masks: of sparsity t, or above it by less than one mask of the finest group.

    The finest group is that of the FFN units; if those are off, hidden dimensions, heads or layers.
    Returns {group: z}: 0 if closed or in a dead sub-layer, its final value if open, 1 if the group
    is switched off.
    """
    log_alpha = {group: a.detach().cpu().double() for group, a in masks.log_alpha().items()}
    rank = {group: descending_rank(a) for group, a in log_alpha.items()}
    finest = next(group for group in FINEST_FIRST if log_alpha[group].isfinite().all())

    def structure(shift, sublayer_shift, finest_shift):
        """finest_shift is added to the finest group, sublayer_shift to the sub-layers it is in."""
        # hidden dimensions and layers are in no sub-layer: then the second entry (None) is not used
        shifts = {finest: finest_shift, SUBLAYER_OF.get(finest): sublayer_shift}
        p = {group: keep_prob(a + shifts.get(group, shift)) for group, a in log_alpha.items()}
        z = deterministic_masks(p, rank)
        # without any hidden dimension there is no network
        z["z_hidn"][rank["z_hidn"] == 0] = 1
        return z

    def fits(*shifts):
        # 1e-12, far less than one weight of a BERT, is for rounding errors
        return masks.sparsity(structure(*shifts)) >= t - 1e-12      # § budget

    # One shift for all groups, one for the sub-layers of the finest group, and one for that group.
    # Ranks do not change: a larger shift only opens masks. So the size grows with the shift.
    shift, too_large = bisect(lambda x: fits(x, x, x))
    if fits(shift, FAR, FAR) and fits(too_large, too_large, -FAR):
        # Even all units do not fill the budget. Take the next larger structure, with fewer units.
        # (But not if it is too large even without units, as in a tiny network.)
        shift = too_large
    # more sub-layers are opened only if all units of the open ones do not fill the budget
    _, needed = bisect(lambda x: fits(shift, x, FAR))
    sublayer_shift = max(shift, needed)
    finest_shift, _ = bisect(lambda x: fits(shift, sublayer_shift, x))
    z = structure(shift, sublayer_shift, finest_shift)
    for units, sublayer in SUBLAYER_OF.items():
        # a sub-layer without units has no effect, nor have the units of a closed sub-layer
        z[sublayer] = is_alive(z[sublayer], z[units]).to(z[units])
        z[units] = z[units] * z[sublayer][:, None]
    return {group: (z[group] * final_z(log_alpha[group])).to(a)
            for group, a in masks.log_alpha().items()}


def fold(new, old, rows, columns):
    """Write diag(rows) W diag(columns), without closed rows and columns, into a smaller module.

    old: a Linear; rows, columns: masks of the two dimensions of its weight. 0 or False removes,
    other values are multiplied in. new: a Linear of the size that is left. The bias belongs to the
    rows.
    """
    # remove first: often most of the matrix is closed. Indexing with rows > 0 would be slower.
    open_rows = rows.nonzero()[:, 0]
    open_columns = columns.nonzero()[:, 0]
    kept = old.weight.index_select(0, open_rows).index_select(1, open_columns)
    scaled = rows[open_rows][:, None] * kept * columns[open_columns]    # § fold
    new.weight.copy_(scaled)
    new.bias.copy_((rows * old.bias)[open_rows])


def fold_norm(new, old, z_hidn):
    """Fold z_hidn (d) into the weight and bias of a LayerNorm."""
    new.weight.copy_((old.weight * z_hidn)[z_hidn > 0])
    new.bias.copy_((old.bias * z_hidn)[z_hidn > 0])


def fold_mha(new, old, z_mha, z_head, z_hidn):
    """Fold the masks of an MHA: z_head into the columns of out, z_mha and z_hidn into its rows.

    Query, key and value read the residual stream and only keep what is open: z > 0.
    z_mha (), z_head (h), z_hidn (d).
    """
    z_wide = z_head.repeat_interleave(old.k)                        # (h k)
    # the rows of query, key and value are heads, whose mask goes into `out`: once is enough
    for name in ("query", "key", "value"):
        fold(getattr(new, name), getattr(old, name), z_wide > 0, z_hidn > 0)
    fold(new.out, old.out, z_mha * z_hidn, z_wide)
    fold_norm(new.norm, old.norm, z_hidn)


def fold_ffn(new, old, z_ffn, z_int, z_hidn):
    """Fold the masks of an FFN: z_int into the columns of down, z_ffn and z_hidn into its rows.

    z_ffn (), z_int (f), z_hidn (d).
    """
    fold(new.up, old.up, z_int > 0, z_hidn > 0)
    fold(new.down, old.down, z_ffn * z_hidn, z_int)
    fold_norm(new.norm, old.norm, z_hidn)


def build_subnetwork(bert, z):
    """Build the network that masks leave: closed parts removed, soft values folded into weights.

    z: the five masks. Returns a new BERT with the outputs of the masked one. Its weights are
    functions of bert and z, so that gradients flow back to both. A classifier of classes is shared.
    """
    z_hidn = z["z_hidn"]                                            # (d)
    mha_is_alive = is_alive(z["z_mha"], z["z_head"])                # (L)
    ffn_is_alive = is_alive(z["z_ffn"], z["z_int"])                 # (L)
    # heads and FFN units that are left in each layer; a dead sub-layer has none
    h = (z["z_head"] > 0).sum(1) * mha_is_alive                     # (L)
    f = (z["z_int"] > 0).sum(1) * ffn_is_alive                      # (L)
    config = replace(
        bert.config,
        hidden_size=int((z_hidn > 0).sum()),
        heads_per_layer=h.tolist(),
        ffn_per_layer=f.tolist())
    # On the meta device no weight is allocated or drawn (training keeps its random numbers). All of
    # them are written below.
    with torch.device("meta"), SkipInit():
        small = BERT(config)
    # These tensors are not trained. Autograd passes their gradients on to bert and z.
    small.to_empty(device=z_hidn.device).requires_grad_(False)
    kept = z_hidn.nonzero()[:, 0]
    for name in ("position", "token_type"):
        table = getattr(bert.embeddings, name).weight.index_select(1, kept)
        getattr(small.embeddings, name).weight.copy_(table)
    # Columns of the word table are left out after the lookup: to copy the whole table in every step
    # would take as long as all layers together.
    small.embeddings.word.weight = bert.embeddings.word.weight
    small.embeddings.word.register_forward_hook(lambda module, inputs, x: x[..., kept])
    fold_norm(small.embeddings.norm, bert.embeddings.norm, z_hidn)
    for i, (new, old) in enumerate(zip(small.layers, bert.layers)):
        if new.mha:
            fold_mha(new.mha, old.mha, z["z_mha"][i], z["z_head"][i], z_hidn)
        if new.ffn:
            fold_ffn(new.ffn, old.ffn, z["z_ffn"][i], z["z_int"][i], z_hidn)
    # a classifier of spans reads the residual stream, another one reads the pooler's outputs
    if bert.config.is_span:
        fold(small.classifier, bert.classifier, z_hidn.new_ones(2), z_hidn > 0)
    else:
        every_row = z_hidn.new_ones(bert.config.pooler_size)
        fold(small.pooler, bert.pooler, every_row, z_hidn > 0)
        small.classifier = bert.classifier
    return small.train(bert.training)


@torch.no_grad()
def prune_model(bert, z):
    """Return build_subnetwork(bert, z) as a network of its own, to be trained and saved.

    z: the five masks, as from final_masks.
    """
    small = build_subnetwork(bert, z)
    table = bert.embeddings.word.weight[:, z["z_hidn"] > 0]
    small.embeddings.word = nn.Embedding.from_pretrained(table)
    # a copy, because the classifier is bert's
    return copy.deepcopy(small).requires_grad_()


# --------------------------------------------------------------------------------------------------
# 6. Training: one loop for teacher, pruning and fine-tuning
# --------------------------------------------------------------------------------------------------
#     teacher    min over weights:              label_loss
#     prune      min over weights, log_alpha,
#                max over lambda1, lambda2:    L_distil + L_c
#     finetune   min over weights:              L_distil, of the pruned network
#     t          from the step at which the masks start: a linear rise from 0 to the target (of
#                several sparsities: from the one before to the next)
#
# The masks start late, so that the student first learns the task a little. While t rises, the
# weights have time to move what they know out of the parts that close. In the remaining steps t is
# constant: masks and weights settle.
#
# DEPARTURE: the authors' code updates the multipliers with Adam: a step of .01 whatever s - t is.
# Here plain gradient ascent: lambda1 moves in proportion to s - t. lambda2 does not start at 0, but
# at 1,400 (toy: 7,600) in a run of 10,000 steps or more.
# DEPARTURE: in a run of fewer than 10,000 steps the learning rates of masks and multipliers are
# scaled up: from open to closed is the same distance in few steps as in many. lambda2 is scaled
# down: in few steps s cannot follow t closely, and a large lambda2 would only push harder.
# DEPARTURE: the learning rate falls linearly to 0 in all stages; in the paper it is constant in the
# last one. The last step counts; in the paper the best step on the dev set.
# DEPARTURE: the optimizer keeps its state when the masks start. In the authors' code it restarts,
# and clipping counts the gradient of the frozen embeddings as well.

MASK_LR_REFERENCE_STEPS = 10_000     # ours
MAX_MASK_LR_SCALE = 20               # ours


def target_sparsity(step, num_steps, cfg):
    """Return t at a step, 0 before the masks start.

    Of several sparsities, t rises from the one before to the current one, which is the last in cfg.
    The masks are then sampled from the first step.
    """
    before, last = cfg.ramp()                   # of one sparsity: 0 and the target
    start = cfg.mask_start * num_steps
    warmup = cfg.sparsity_warmup * num_steps
    risen = min(max(step - start, 0) / max(warmup, 1), 1)
    return before + (last - before) * risen                         # § warm-up


def make_optimizers(bert, W_layer, masks, cfg, num_steps, lr):
    """Return (weights, lambdas, optimizer, lambda_optimizer); without masks no lambdas (None).

    Two players: the optimizer moves weights and log_alpha down the loss, the lambda_optimizer moves
    lambda1 and lambda2 up it.
    """
    # log_alpha is not among the clipped weights: the gradient of L_c must reach it undiminished
    parameters = nn.ModuleList([bert, W_layer]).parameters()
    weights = [p for p in parameters if p.requires_grad]
    # Gradients start at 0, not None. So Adam also updates weights that a sample leaves out.
    for p in weights:
        p.grad = torch.zeros_like(p)
    groups = [{"params": weights}]
    lambdas = lambda_optimizer = None
    if masks:
        scale = min(max(1, MASK_LR_REFERENCE_STEPS / num_steps), MAX_MASK_LR_SCALE)
        groups.append({"params": masks.parameters(), "lr": cfg.mask_lr * scale})
        start = {"lambda1": torch.tensor(0.0), "lambda2": torch.tensor(cfg.lambda2 / scale)}
        lambdas = nn.ParameterDict(start).to(bert.classifier.weight.device)
        # SGD, not Adam, whose step would hardly depend on how far s is from t
        lambda_optimizer = torch.optim.SGD(
            lambdas.values(), lr=cfg.lambda_lr * scale, maximize=True)
    # no weight decay, as in the authors' code: it would pull log_alpha to 0, where final_z is .5
    optimizer = torch.optim.AdamW(groups, lr, weight_decay=0.0, fused=True)
    return weights, lambdas, optimizer, lambda_optimizer


def train(stage, bert, data, cfg, journal, teacher=None, W_layer=None, masks=None):
    """Run one stage, in place: "teacher" on labels, "prune" with masks, "finetune" without.

    journal: from it an interrupted stage resumes; teacher: a CachedTeacher, which finds an example
    by its index, or None for the labels. Returns what was logged last (with scores and m), seconds.
    """
    device = bert.classifier.weight.device
    num_steps = cfg.num_steps(stage, len(data.train))
    lr = getattr(cfg, f"{stage}_lr")
    # seeded for each stage, so that it does not depend on what ran before
    torch.manual_seed(cfg.seed)
    bert.train()
    # the student's embeddings are frozen, as in the authors' code: they do not count in s
    bert.embeddings.requires_grad_(stage == "teacher")
    weights, lambdas, optimizer, lambda_optimizer = make_optimizers(
        bert, W_layer, masks, cfg, num_steps, lr)
    state = dict(bert=bert, W_layer=W_layer, masks=masks, lambdas=lambdas, optimizer=optimizer)
    progress = Progress(journal, stage, num_steps, state, device)
    for step, (indices, batch) in progress.steps(data.train, cfg):
        inputs, labels = to_device(device, batch)
        # forward: one sample of the masks for the whole batch; before they start t is 0
        t = target_sparsity(step, num_steps, cfg) if masks else 0.0
        z = masks.sample() if t else {}
        student, project = partial(bert, **z), W_layer
        if z and device.type == "cpu":
            # Outputs and gradients are the same (only dropout draws other numbers), and closed
            # parts cost nothing. On a GPU the masks multiply: the CPU would have to wait for it.
            student = build_subnetwork(bert, z)
            project = partial(F.linear, weight=W_layer.weight[:, z["z_hidn"] > 0])
        with autocast(device, cfg.bf16):
            out_t = teacher(indices, inputs) if teacher else None
            out = student(**inputs)

            # loss: L_distil, or without a teacher the loss on the labels
            loss, losses, m = distillation_loss(
                out, out_t, labels, inputs["attention_mask"], cfg, project)
        if z:
            loss = loss + lagrangian(masks.sparsity(), t, **lambdas)

        # backward
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(weights, 1.0)
        progress.check_finite(loss, grad_norm)

        # step: the weights' learning rate falls to 0, that of the masks stays
        optimizer.param_groups[0]["lr"] = lr * (1 - (step - 1) / num_steps)
        optimizer.step()
        if z:
            lambda_optimizer.step()
            lambda_optimizer.zero_grad()
            masks.soft_clamp_()
        progress.add(losses)
        if progress.should_log:
            # while pruning, the score is that of the network as it would be pruned now
            small = prune_model(bert, final_masks(masks, t)) if z else bert
            scores = evaluate_dev(small, data)
            terms = dict(s=masks.sparsity(), t=t, **lambdas) if z else {}
            progress.log(("L_pred", "L_layer"), scores=scores, m=m, **terms)
    return progress.logged, progress.seconds()


# --------------------------------------------------------------------------------------------------
# 7. Main: one run, from the teacher to the report
# --------------------------------------------------------------------------------------------------
#     pre-trained BERT   -- train("teacher") -->                            teacher
#     pre-trained BERT   -- train("prune"), distilled from the teacher -->  student, log_alpha
#     student, log_alpha -- final_masks, prune_model -->                    pruned BERT
#     pruned BERT        -- train("finetune"), distilled from the teacher --> result
#
# DEPARTURE: figure 1 of the paper says that the fine-tuned BERT is pruned. The authors' code starts
# from the pre-trained one, and so does this file. (A baseline, --structure, prunes the teacher.)


def run(cfg):
    """Run everything, from teacher to report. What was finished earlier is not done again."""
    device, tokenizer, config = setup(cfg, Config)
    torch.manual_seed(cfg.seed)
    masks = Masks(config, cfg.groups()).to(device)
    # what is impossible is refused before anything is downloaded or trained
    check_reachable(masks, cfg)
    data, config = load_data(cfg, config, tokenizer)
    folder, key, is_finished = find_run(cfg, data, [cfg.task, cfg.sparsity], print_report)
    if is_finished:
        return
    student, notes = load_pretrained(cfg.model, config, cfg.seed)
    student.to(device)
    print_header(folder, data, notes, COFI_HEADER)

    # The teacher is fine-tuned on the labels, or found where an earlier run has left it.
    scores, seconds = {}, {}
    teacher, scores["teacher"], seconds["teacher"] = get_teacher(
        cfg, config, data, tokenizer, device, load_finetuned, load_pretrained, train)
    distilled = distilled_layers(len(teacher.config.heads_per_layer))
    teacher_outputs = cache_teacher(teacher, data.train, distilled, cfg)

    W_layer = nn.Linear(config.hidden_size, teacher.config.hidden_size, bias=False, device=device)
    # student and teacher come from one pre-trained model: their states begin alike
    nn.init.eye_(W_layer.weight)
    # Of several sparsities, each starts with the student, masks and W_layer that the pruning stage
    # of the one before has left. cfg: its settings, with the sparsities up to this one.
    for t, cfg, journal in open_journals(folder, key, cfg, cofi_line):
        # Prune: the student learns log_alpha and weights together, then what is closed is removed.
        if cfg.structure == "learned":
            _, seconds["prune"] = train(
                "prune", student, data, cfg, journal, teacher_outputs, W_layer, masks)
        else:
            # a baseline: masks are set at once, and all steps are left for fine-tuning
            cfg, seconds["prune"] = choose_structure(student, teacher, masks, data, cfg, label_loss)
        z = final_masks(masks, t)
        small = prune_model(student, z)
        scores["pruned"] = evaluate_dev(small, data)

        # Fine-tune what is left. W_layer reads the student's states, which have lost dimensions.
        W_small = copy.deepcopy(W_layer)
        W_small.weight = nn.Parameter(W_layer.weight.detach()[:, z["z_hidn"] > 0])
        last, seconds["finetune"] = train(
            "finetune", small, data, cfg, journal, teacher_outputs, W_small)
        finish_run(
            cfg, journal, tokenizer, student, small, z, distilled, last, scores, seconds,
            count_encoder_weights)


def main(arguments=None):
    """Run the command line. Returns the exit code: 0, 2 for unusable input, 130 if interrupted."""
    return run_cli("cofi", __doc__, Settings, run, arguments, load_finetuned)


if __name__ == "__main__":
    sys.exit(main())
