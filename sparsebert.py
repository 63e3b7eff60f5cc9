"""SparseBERT in one file. Unlike cofi.py, it prunes single weights, by magnitude.

Xu, Yen, Zhao and Xiao, "Rethinking Network Pruning - under the Pre-train and Fine-tune Paradigm",
NAACL 2021 (arXiv 2104.08682).

    python sparsebert.py                        three strategies at 95 % on the toy, offline
    python sparsebert.py --task mrpc --strategy distil
    python sparsebert.py --sparsity 0.5,0.8,0.9,0.95    as the paper's figures 4 and 5, on the toy

Unlike in cofi.py, nothing has to be learned about what to prune: the smallest weights go. Nothing
can be removed either: zeros stay in their matrices, so section 6 measures what they are worth.
The question is when to prune. A pre-trained BERT knows the language in general, a fine-tuned one
knows the task as well. Figure 1 of the paper compares three strategies, (b) to (d):

    prune_first      (b) prune the pre-trained BERT, then fine-tune it
    finetune_first   (c) fine-tune BERT, then prune it on the loss of the task
    distil           (d) prune the pre-trained BERT while it is distilled from the fine-tuned one

A fourth strategy, small_dense, is what the paper argues against: a BERT without zeros, but with
fewer layers, heads and FFN units, distilled as in (d).

Read it from the top. BERT, the loss on predictions and the training of the teacher come from
cofi.py.

    0  Settings              every setting, with its source
    1  Magnitude             which weights stay, and how many at which step
    2  Distillation          hidden states, attention scores, predictions
    3  Small and dense       the dense counterpart of equal size
    4  Augmentation          other words in the same sentence
    5  Training              one loop for all strategies
    6  Compression           weights, multiply-adds, bytes, speed-up
    7  Main                  the comparison

Shapes, § and DEPARTURE are as in cofi.py. Unlike there, t is time: the share of the pruning that is
done.
"""
import copy
import math
import sys
from dataclasses import dataclass, replace

# as in cofi.py, `data` comes before PyTorch
import cofi
from cofi import count_encoder_weights, label_loss, load_pretrained, pred_loss
from data.checkpoint import read_mlm_head
from data.errors import UserError
from data.files import write_json
from data.harness.cli import EPOCHS, LEARNING_RATE, WEIGHT, RunConfig, flag
from data.harness.commands import run_cli
from data.harness.console import COFI_COLUMNS, SPARSEBERT_HEADER, SPARSEBERT_LEGEND, print_header
from data.harness.console import sparsebert_line
from data.harness.device import autocast, device_name, to_device
from data.harness.evaluate import evaluate, evaluate_dev
from data.harness.knowledge import Knowledge, special_ids, word_logits
from data.harness.progress import Progress
from data.harness.report import comparison_table, find_run, measured_length, print_compression
from data.harness.runs import get_teacher, load_data, load_finished, open_journal, save_model, setup
from data.sparse import save_sparse, speedup_csr
from data.tasks import Dataset
from data.tokenized import batches, concatenate

import torch
from torch import nn

# --------------------------------------------------------------------------------------------------
# 0. Settings
# --------------------------------------------------------------------------------------------------

STRATEGY_LABELS = {"prune_first": "(b) prune, then fine-tune",
                   "finetune_first": "(c) fine-tune, then prune",
                   "distil": "(d) prune while distilling",
                   "small_dense": "small and dense, distilled"}


@dataclass
class Settings(RunConfig):
    """Settings of SparseBERT besides those of every run."""
    sparsity: float = flag(0.95, "Share of zeros in each matrix, or several (0.8,0.9)",
                           range=(0, 0.999), is_rising=True)
    strategy: str = flag("prune_first,finetune_first,distil",
                         f"Some of {' '.join(STRATEGY_LABELS)}, separated by commas",
                         some_of=tuple(STRATEGY_LABELS))
    prune_epochs: float = flag(None, "Epochs (paper: 12 for MRPC, 5 for QNLI, on augmented data)",
                               range=EPOCHS)
    prune_lr: float = flag(3e-5, "Learning rate (paper: 3e-5)", range=LEARNING_RATE)
    decay: bool = flag(False, "Let the learning rate fall linearly to 0 (paper: constant)")
    weight_decay: float = flag(0.01, "Weight decay of AdamW (paper: .01)", range=(0, 10))
    prune_events: int = flag(100, "Number of times that weights are pruned (paper: about 100)",
                             range=(1, 10**6))
    prune_until: float = flag(1.0, "Share of the steps after which nothing more is pruned; the "
                              "rest is for recovery (paper: 1, none)", range=(0.01, 1))
    block: int = flag(1, "Size of the square blocks that are pruned (paper: 1)", range=(1, 1024))
    hidden_weight: float = flag(1.0, "Weight of L_hidden (paper: 1)", range=WEIGHT)
    attention_weight: float = flag(1.0, "Weight of L_att (paper: 1)", range=WEIGHT)
    pred_weight: float = flag(1.0, "Weight of L_pred, 0: labels instead (paper: 1)", range=WEIGHT)
    augment: int = flag(0, "Copies of the training set with other words and the same labels "
                        "(paper: about 60 for MRPC)", range=(0, 1000))

    # the paper's epochs of MRPC and of QNLI for all sets of that size; the toy's are ours
    TASK_DEFAULTS = {"small": {"prune_epochs": 12}, "large": {"prune_epochs": 5},
                     "squad": {"prune_epochs": 5}, "toy": {"prune_epochs": 4, "prune_lr": 1e-3}}

    def num_runs(self):
        """Return how often prune_epochs are run: by each strategy, at each sparsity, and for the
        augmented copies.
        """
        return len(self.sparsities()) * len(self.strategy.split(",")) * (1 + self.augment)


# --------------------------------------------------------------------------------------------------
# 1. Magnitude (§3): which weights stay, and how many at which step
# --------------------------------------------------------------------------------------------------
#     mask = 1 for the floor((1 - s) n) largest |w| of a matrix, 0 for the others
#     s(t) = S (1 - (1 - t)^3)        S the final sparsity; the schedule of Zhu and Gupta (2017)
#
# The same sparsity for each matrix. What was pruned stays pruned.
# DEPARTURE: the authors' code divides by zero below 51 steps. Here any number of steps will do, and
# --prune_until leaves some of them for recovery.


def prunable_weights(bert):
    """Return {name: weight} of the encoder's matrices, six a layer. BERT-base has 72.

    Embeddings, biases, LayerNorms, pooler and classifier are not pruned.
    """
    return {name: w for name, w in bert.layers.named_parameters() if w.dim() == 2}


def to_blocks(x, block):
    """Reshape (rows, columns) to (rows / block, columns / block, block, block)."""
    rows, columns = x.shape
    return x.view(rows // block, block, columns // block, block).transpose(1, 2)


def num_kept(n, sparsity):
    """Return how many of n weights are kept."""
    # In floating point (1 - 0.9) * 10 is 0.9999999: 1e-6 makes it 1.
    return math.floor((1 - sparsity) * n + 1e-6)


@torch.no_grad()
def magnitude_mask(weight, mask, sparsity, block=1):
    """Return the mask of the largest weights: exactly floor((1 - sparsity) n) of n stay.

    weight (rows, columns); mask: the one before, bool of the same shape. Closed weights stay
    closed, unless too few others are open. With block > 1, blocks of block x block weights stay or
    go as a whole, ranked by the sum of their magnitudes; a block is closed if all of it is. Returns
    bool (rows, columns).

    Example:
    >>> W = torch.tensor([[0.1, -0.9], [0.5, 0.2]])
    >>> magnitude_mask(W, torch.tensor([[True, False], [True, True]]), 0.5)
    tensor([[False, False],
            [ True,  True]])
    """
    score = to_blocks(weight.abs(), block).sum((-1, -2))    # (rows / block, columns / block)
    # momentum can make a pruned weight grow again; its score of -1 keeps it pruned
    was_open = to_blocks(mask, block).any(-1).any(-1)       # (rows / block, columns / block)
    score = score.masked_fill(~was_open, -1)                # (rows / block, columns / block)
    kept = score.flatten().topk(num_kept(score.numel(), sparsity)).indices
    new = torch.zeros(score.numel(), dtype=torch.bool, device=weight.device)
    new[kept] = True                                                # §3 magnitude mask
    return new.view_as(score).repeat_interleave(block, 0).repeat_interleave(block, 1)


def cubic_sparsity(t, sparsity):
    """Return s(t): it rises fast while there is much to prune, slowly at the end. t from 0 to 1.

    Example:
    >>> [round(cubic_sparsity(t, 0.8), 3) for t in (0, 0.25, 0.5, 1)]
    [0.0, 0.463, 0.7, 0.8]
    """
    return sparsity * (1 - (1 - t) ** 3)                            # §3 cubic schedule


def pruning_schedule(num_steps, cfg, sparsity):
    """Return {step: s}: at most cfg.prune_events steps, the last at cfg.prune_until of all."""
    # 1e-6 as in num_kept: 0.29 * 100 is 28.999999999999996
    last = max(1, math.floor(cfg.prune_until * num_steps + 1e-6))
    return {math.ceil(last * i / cfg.prune_events): cubic_sparsity(i / cfg.prune_events, sparsity)
            for i in range(1, cfg.prune_events + 1)}


def init_masks(bert):
    """Return {name: bool mask} of all matrices, everything open."""
    return {name: torch.ones_like(w, dtype=torch.bool)
            for name, w in prunable_weights(bert).items()}


@torch.no_grad()
def apply_masks(bert, masks):
    """Set weights to 0 where a mask is closed. masks: {name: bool}, {} where nothing is pruned."""
    weights = prunable_weights(bert)
    for name, mask in masks.items():
        weights[name].masked_fill_(~mask, 0)


@torch.no_grad()
def prune(bert, masks, sparsity, block):
    """Compute new masks of all matrices and apply them. masks: {name: bool}, updated in place."""
    for name, w in prunable_weights(bert).items():
        masks[name] = magnitude_mask(w, masks[name], sparsity, block)
    apply_masks(bert, masks)


# --------------------------------------------------------------------------------------------------
# 2. Distillation (§3)
# --------------------------------------------------------------------------------------------------
#     L        = hidden_weight L_hidden + attention_weight L_att + pred_weight L_pred
#     L_hidden = sum of MSE(H_s, H_t) over the embeddings' output and all layers
#     L_att    = sum of MSE(A_s, A_t) over all layers, A the attention scores before softmax
#     L_pred   = soft cross-entropy of the logits at temperature 1
#
# Student and teacher have the same width: nothing is projected.
# DEPARTURE: KL for soft cross-entropy: the same gradient, and 0 where the two agree. The authors'
# code takes a mean over the classes as well, so that its L_pred weighs half as much for two
# classes.
# DEPARTURE: padding counts in no loss.
# DEPARTURE: the teacher is in eval mode; the authors' code leaves its dropout on.
# DEPARTURE: the authors pass the pooled output through an extra ReLU; BERT has none.
#
# For a regression (STS-B) L_pred is the MSE to the labels, as in the authors' code.


def hidden_loss(H_s, H_t, attention_mask):
    """Return the MSE of hidden states (B, T, d) over tokens that are not padding.

    attention_mask (B, T) bool, False at padding.
    """
    error = (H_s - H_t.float()).square().mean(-1)                   # (B, T)
    return (error * attention_mask).sum() / attention_mask.sum()    # ()             §3 L_hidden


def attention_loss(A_s, A_t, attention_mask):
    """Return the MSE of attention scores (B, h, T, T) over pairs of tokens, neither padding."""
    both = (attention_mask[:, :, None] & attention_mask[:, None, :])[:, None]   # (B, 1, T, T)
    error = (A_s.float() - A_t.float()).square() * both             # (B, h, T, T)
    return error.sum() / (both.sum() * A_s.shape[1])                # ()             §3 L_att


def distillation_losses(bert, out, teacher, out_t, labels, attention_mask, heads, use_labels=False):
    """Return (L_hidden, L_att, L_pred) as a tensor (3), the first two summed over the layers.

    out, out_t: Output of bert and teacher; heads: {layer that is left: indices of the teacher's
    heads that its heads match}. The labels replace the teacher's predictions if use_labels is set,
    and for a regression.
    """
    own, other = out.hidden_states, out_t.hidden_states
    hidden = hidden_loss(own[0], other[0], attention_mask)
    attention = 0.0
    for i, indices in heads.items():
        hidden = hidden + hidden_loss(own[i + 1], other[i + 1], attention_mask)
        with torch.no_grad():
            A_t = teacher.layers[i].mha.scores(other[i])[:, indices]    # (B, h, T, T)
        A_s = bert.layers[i].mha.scores(own[i])                         # (B, h, T, T)
        attention = attention + attention_loss(A_s, A_t, attention_mask)
    if use_labels or out.logits.shape[-1] == 1:
        pred = label_loss(out.logits.float(), labels)
    else:
        pred = pred_loss(out.logits.float(), out_t.logits.float(), 1.0)     # ()     §3 L_pred
    return torch.stack([hidden, attention, pred])                   # (3)


def batch_losses(bert, teacher, inputs, labels, heads, use_labels):
    """Run the networks on a batch. Returns (L_hidden, L_att, L_pred) as a tensor (3).

    Without a teacher: (0, 0, loss on the labels). See distillation_losses.
    """
    out = bert(**inputs)
    if teacher is None:
        pred = label_loss(out.logits.float(), labels)
        zero = torch.zeros_like(pred)
        return torch.stack([zero, zero, pred])                      # (3)
    with torch.no_grad():
        out_t = teacher(**inputs)
    return distillation_losses(bert, out, teacher, out_t, labels, inputs["attention_mask"], heads,
                               use_labels)


# --------------------------------------------------------------------------------------------------
# 3. Small and dense: the counterpart of equal size
# --------------------------------------------------------------------------------------------------


def small_dense_sizes(config, sparsity):
    """Return (kept layers, heads, FFN units) of a BERT with as many weights as a sparse one keeps.

    A third of the layers (as 4-layer BERTs distilled from 12), or as many as needed, evenly spaced.
    The weights of each are shared between MHA and FFN as in the config. Raises UserError if there
    are too few for one head and one unit in each of these layers.
    """
    L, h, f = len(config.heads_per_layer), config.heads_per_layer[0], config.ffn_per_layer[0]
    head_size = 4 * config.hidden_size * config.attention_head_size
    unit_size = 2 * config.hidden_size
    layer_size = h * head_size + f * unit_size
    kept = num_kept(L * layer_size, sparsity)
    n = max(math.ceil(L / 3), math.ceil(kept / layer_size))
    h = min(max(1, round(kept / n * h / layer_size)), h)
    f = min(math.floor((kept / n - h * head_size) / unit_size), f)
    if f < 1:
        raise UserError(f"--strategy small_dense must keep one head and one unit in each of {n} "
                        f"layers, but --sparsity {sparsity:g} leaves {kept:,} weights. Try a lower "
                        "--sparsity")
    return [math.ceil(L * i / n) - 1 for i in range(1, n + 1)], h, f


@torch.no_grad()
def small_dense(bert, sparsity):
    """Return a BERT with fewer layers, heads and FFN units and no zeros, and {layer: its heads}.

    It starts with the heads and units of largest magnitude. See small_dense_sizes.
    """
    config, L, device = bert.config, len(bert.layers), bert.classifier.weight.device
    kept_layers, h, f = small_dense_sizes(config, sparsity)
    z = {"z_mha": torch.zeros(L), "z_head": torch.zeros(L, config.heads_per_layer[0]),
         "z_ffn": torch.zeros(L), "z_int": torch.zeros(L, config.ffn_per_layer[0]),
         "z_hidn": torch.ones(config.hidden_size)}
    z = {group: mask.to(device) for group, mask in z.items()}
    for i in kept_layers:
        mha, ffn = bert.layers[i].mha, bert.layers[i].ffn
        by_head = [w.abs().unflatten(0, (-1, config.attention_head_size)).sum((1, 2)) for w in (
            mha.query.weight, mha.key.weight, mha.value.weight, mha.out.weight.T)]
        by_unit = ffn.up.weight.abs().sum(1) + ffn.down.weight.abs().sum(0)
        z["z_mha"][i] = z["z_ffn"][i] = 1
        z["z_head"][i, sum(by_head).topk(h).indices] = 1
        z["z_int"][i, by_unit.topk(f).indices] = 1
    return cofi.prune_model(bert, z), {i: z["z_head"][i].nonzero()[:, 0] for i in kept_layers}


# --------------------------------------------------------------------------------------------------
# 4. Augmentation: other words in the same sentence, from the model's own masked-LM head
# --------------------------------------------------------------------------------------------------


@torch.no_grad()
def augment(dataset, bert, head, mask_id, special, copies, share=0.15, candidates=15):
    """Return a dataset with `copies` more of each example, in which some words are replaced.

    bert: pre-trained, in eval mode; head: from read_mlm_head; mask_id: the token id of the mask;
    special: token ids that are never replaced. Labels stay.

    DEPARTURE: a share of the tokens is masked at once and each is filled with one of the most
    probable candidates, drawn by its probability. The paper augments as TinyBERT does, which masks
    one word at a time, and takes neighbours from GloVe for words in pieces. The share is ours.
    """
    device, parts = bert.classifier.weight.device, [dataset]
    special = torch.tensor(special, device=device)
    for _ in range(copies):
        new_ids = dataset.input_ids.copy()
        for indices, batch in batches(dataset, 64):
            inputs, _ = to_device(device, batch)
            input_ids = inputs["input_ids"]                         # (B, T)
            free = inputs["attention_mask"] & ~torch.isin(input_ids, special)       # (B, T)
            # random numbers of the CPU: a run that goes on elsewhere draws the same
            chosen = free & (torch.rand(free.shape).to(device) < share)             # (B, T)
            masked = inputs | {"input_ids": input_ids.masked_fill(chosen, mask_id)}
            states = bert(**masked).hidden_states[-1]               # (B, T, d)
            logits = word_logits(head, states[chosen])              # (words, vocab)
            logits[:, special] = -torch.inf
            best = logits.topk(min(candidates, logits.shape[-1]))
            drawn = torch.multinomial(best.values.softmax(-1).cpu(), 1).to(device)
            words = best.indices.gather(1, drawn)[:, 0]             # (words)
            replaced = input_ids.masked_scatter(chosen, words).cpu().numpy()
            for i, index in enumerate(indices):
                tokens = slice(dataset.offsets[index], dataset.offsets[index + 1])
                new_ids[tokens] = replaced[i][batch["attention_mask"][i].numpy()]
        parts.append(replace(dataset, input_ids=new_ids))
    return concatenate(parts)


def augment_dataset(data, cfg, config, tokenizer, device, head):
    """Return a copy of the task with its training set augmented. head: from read_mlm_head."""
    special = special_ids(tokenizer)
    bert, _ = load_pretrained(cfg.model, config, cfg.seed)
    bert.to(device).eval()
    data = copy.copy(data)
    data.train = augment(data.train, bert, head, special[0], special, cfg.augment)
    return data


# --------------------------------------------------------------------------------------------------
# 5. Training: one loop for all strategies
# --------------------------------------------------------------------------------------------------
#     strategy         starts from            pruned           loss      steps
#     prune_first      pre-trained, pruned    before step 1    labels    prune_epochs + teacher's
#     finetune_first   teacher                by s(t)          labels    prune_epochs
#     distil           pre-trained            by s(t)          L         prune_epochs
#     small_dense      pre-trained, smaller   before step 1    L         prune_epochs
#
# The last three need the teacher, whose steps count as well. So all take equally many steps.
# DEPARTURE: the gradient is clipped as a whole, at norm 1; the authors' BertAdam clips each tensor.
# DEPARTURE: weight decay also acts on biases and LayerNorms.


def train(strategy, bert, data, cfg, journal, masks, sparsity, teacher=None, heads=None,
          extra_steps=0):
    """Prune and train in place; masks are updated, too.

    data: a Dataset; journal: a Journal, from which an interrupted run resumes; teacher: a BERT in
    eval mode, or None for the labels; heads: see distillation_losses; extra_steps: beyond those of
    the settings. Returns the last dev scores and the seconds of training.
    """
    device = bert.classifier.weight.device
    num_steps = cfg.num_steps("prune", len(data.train)) + extra_steps
    schedule = pruning_schedule(num_steps, cfg, sparsity)
    s = 0.0
    if strategy in ("prune_first", "small_dense"):          # pruned before the first step
        schedule = {}
        s = sparsity if masks else 0.0
    # without a teacher L_pred is the loss on the labels, with weight 1; L_hidden and L_att are 0
    pred_weight = cfg.pred_weight if teacher and cfg.pred_weight else 1.0
    weights = torch.tensor([cfg.hidden_weight, cfg.attention_weight, pred_weight], device=device)
    torch.manual_seed(cfg.seed)
    bert.train()
    optimizer = torch.optim.AdamW(bert.parameters(), cfg.prune_lr, fused=True,
                                  weight_decay=cfg.weight_decay)
    progress = Progress(journal, f"{strategy}-{sparsity}", num_steps,
                        {"bert": bert, "optimizer": optimizer}, device, log_lines=5,
                        masks=masks, s=s)
    # a checkpoint also holds masks and s; masks is filled in place, because the caller reads it
    state = progress.extra
    masks.update({name: mask.to(device) for name, mask in state["masks"].items()})
    state["masks"] = masks
    for step, (_, batch) in progress.steps(data.train, cfg):
        inputs, labels = to_device(device, batch)

        # forward and loss
        with autocast(device, cfg.bf16):
            losses = batch_losses(bert, teacher, inputs, labels, heads, not cfg.pred_weight)
            loss = (losses * weights).sum()

        # backward
        optimizer.zero_grad()
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(bert.parameters(), 1.0)
        progress.check_finite(loss, grad_norm)

        # step
        if cfg.decay:
            optimizer.param_groups[0]["lr"] = cfg.prune_lr * (1 - (step - 1) / num_steps)
        optimizer.step()
        if step in schedule:
            state["s"] = schedule[step]
            prune(bert, masks, state["s"], cfg.block)
        else:
            # after every step, because momentum moves pruned weights away from 0
            apply_masks(bert, masks)

        progress.add(losses.detach())
        if progress.should_log:
            scores = evaluate_dev(bert, data)
            progress.log(("L_hidden", "L_att", "L_pred"), strategy=strategy, target=sparsity,
                         s=state["s"], scores=scores)
    return progress.logged["scores"], progress.seconds()


# --------------------------------------------------------------------------------------------------
# 6. Compression: weights, multiply-adds, bytes and speed-up
# --------------------------------------------------------------------------------------------------
# data/sparse.py stores the pruned matrices without their zeros and multiplies with them on a CPU.
#
# DEPARTURE: the authors' size report counts the embeddings, so that "95 %" prints .733. Here three
# counts stand side by side.


def count_weights(bert):
    """Return three counts: {what: (dense, now)}.

    "matrices": the weights that are pruned; "model": all parameters, embeddings included;
    "multiply-adds": of one token in a sequence of 128 (or as long as the model reads), attention
    between tokens included.
    """
    length = measured_length(bert.config)
    dense = count_encoder_weights(bert)
    kept = sum(int(w.count_nonzero()) for w in prunable_weights(bert).values())
    total = sum(p.numel() for p in bert.parameters())
    attention = 2 * length * sum(bert.config.heads_per_layer) * bert.config.attention_head_size
    return {"matrices": (dense, kept), "model": (total, total - dense + kept),
            "multiply-adds": (dense + attention, kept + attention)}


# --------------------------------------------------------------------------------------------------
# 7. Main: the comparison
# --------------------------------------------------------------------------------------------------


def check_sizes(config, sparsity, block):
    """Raise UserError if the matrices cannot be divided into blocks, or if no block would stay."""
    width = config.heads_per_layer[0] * config.attention_head_size
    columns = config.hidden_size
    for rows in (width, config.ffn_per_layer[0]):
        if rows % block or columns % block:
            raise UserError(f"--block must divide a matrix of {rows} x {columns}, got {block}")
        if num_kept(rows * columns // block**2, sparsity) < 1:
            name, value = ("block", block) if block > 1 else ("sparsity", sparsity)
            raise UserError(f"--{name} must leave something of a matrix of {rows} x {columns}, got "
                            f"{value:g}. Try a lower --sparsity{' or --block' * (block > 1)}")


def check_zeros(bert, masks, sparsity, block):
    """Assert that every matrix has kept exactly as many blocks as it should, and no others."""
    weights = prunable_weights(bert)
    for name, mask in masks.items():
        kept = num_kept(mask.numel() // block**2, sparsity) * block**2
        assert int(mask.sum()) == kept and not weights[name][~mask].any(), name


@dataclass
class Comparison:
    """What all strategies of a run share."""
    cfg: Settings
    config: cofi.Config
    tokenizer: object
    teacher: cofi.BERT
    data: Dataset
    augmented: Dataset        # the same task; its training set may be augmented
    journal: object           # a data.harness.journal.Journal
    knowledge: Knowledge      # figure 2: how much general language knowledge an encoder has

    def result_row(self, strategy, sparsity, bert, scores, seconds):
        """Return a row of the table: dev scores, a score on 1,000 training examples, knowledge.

        scores: {} of an untrained classifier.
        """
        train_scores = {}
        if scores:
            train_scores = evaluate(bert, self.data.train.sample(1000), self.data.metrics)
        return {"strategy": strategy, "sparsity": sparsity, "scores": scores,
                "train": train_scores.get(self.data.metrics[0]),
                "general": self.knowledge(bert), "seconds": seconds,
                "kept": count_weights(bert)["matrices"][1]}

    def start(self, strategy, sparsity):
        """Return where a strategy starts: (student, masks, heads)."""
        if strategy == "finetune_first":
            bert = copy.deepcopy(self.teacher)
        else:
            bert, _ = load_pretrained(self.cfg.model, self.config, self.cfg.seed)
            bert.to(self.teacher.classifier.weight.device)
        if strategy == "small_dense":
            small, heads = small_dense(bert, sparsity)
            return small, {}, heads
        masks = init_masks(bert)
        if strategy == "prune_first":
            prune(bert, masks, sparsity, self.cfg.block)
        return bert, masks, {i: slice(None) for i in range(len(bert.layers))}

    def run_strategy(self, strategy, sparsity):
        """Train and save a strategy at one sparsity, unless it was done before: return its row."""
        cfg, name = self.cfg, f"{strategy}-{sparsity}"
        folder, key = self.journal.folder / name, self.journal.settings
        finished = load_finished(folder, key, cfg.overwrite)
        if finished:
            return {k: x for k, x in finished.items() if k not in ("settings", "sha256")}
        bert, masks, heads = self.start(strategy, sparsity)
        teacher = self.teacher if strategy in ("distil", "small_dense") else None
        # prune_first needs no teacher: it gets the teacher's steps as well
        teacher_steps = cfg.num_steps("teacher", len(self.data.train))
        extra_steps = teacher_steps if strategy == "prune_first" else 0
        scores, seconds = train(strategy, bert, self.augmented, cfg, self.journal, masks, sparsity,
                                teacher, heads, extra_steps)
        check_zeros(bert, masks, sparsity, cfg.block)
        row = self.result_row(strategy, sparsity, bert, scores, seconds)
        save_model(folder, bert, self.tokenizer, row | {"settings": key})
        self.journal.discard(name)
        return row


def print_comparison(folder, result):
    """Print what came of a run. folder: of the run, not needed; result: its result.json."""
    print("\n" + comparison_table(result["rows"], STRATEGY_LABELS))
    if "counts" in result:
        print_compression(result)


def run(cfg):
    """Run every strategy at every sparsity. What was finished earlier is not done again."""
    device, tokenizer, config = setup(cfg, cofi.Config)
    for sparsity in cfg.sparsities():       # report what is impossible before any training
        check_sizes(config, sparsity, cfg.block)
        if "small_dense" in cfg.strategy.split(","):
            small_dense_sizes(config, sparsity)
    # read before anything is trained, because it may be missing
    head = read_mlm_head(cfg.model, device) if cfg.augment else None
    data, config = load_data(cfg, config, tokenizer)
    folder, key, is_finished = find_run(
        cfg, data, ["sparsebert", cfg.task, cfg.sparsity], print_comparison)
    if is_finished:
        return
    bert, notes = load_pretrained(cfg.model, config, cfg.seed)
    print_header(folder, data, notes, COFI_COLUMNS)
    teacher, teacher_scores, seconds = get_teacher(
        cfg, config, data, tokenizer, device, cofi.load_finetuned, load_pretrained,
        cofi.train)
    for name in ("hidden_size", "attention_head_size", "heads_per_layer", "ffn_per_layer"):
        if getattr(teacher.config, name) != getattr(config, name):
            raise UserError(f"--teacher must have the {name} of {cfg.model}, got {cfg.teacher}. "
                            "Try two models of one shape")
    journal = open_journal(folder, key, cfg, sparsebert_line)
    print(f"\n{SPARSEBERT_LEGEND}{SPARSEBERT_HEADER}")
    augmented = data
    if cfg.augment:
        augmented = augment_dataset(data, cfg, config, tokenizer, device, head)
    knowledge = Knowledge(cfg.model, data, tokenizer, device)
    comparison = Comparison(cfg, config, tokenizer, teacher, data, augmented, journal, knowledge)
    rows = [comparison.result_row("pre-trained", 0, bert.to(device), {}, 0.0),
            comparison.result_row("teacher", 0, teacher, teacher_scores, seconds)]
    for sparsity in cfg.sparsities():
        for strategy in cfg.strategy.split(","):
            rows.append(comparison.run_strategy(strategy, sparsity))
    result = {"rows": rows, "settings": key, "device": device_name(device)}
    sparse = [row for row in rows[2:] if row["strategy"] != "small_dense"]
    if sparse:
        name = f"{sparse[-1]['strategy']}-{sparse[-1]['sparsity']}"
        bert = cofi.load_finetuned(folder / name).eval()
        result |= {"sparse": name, "counts": count_weights(bert),
                   "speedup": speedup_csr(bert), "threads": torch.get_num_threads(),
                   "bytes": save_sparse(folder / name / "sparse.bin", bert)}
    write_json(folder / "result.json", result)
    print_comparison(folder, result)
    journal.finish()


def main(arguments=None):
    """Run the command line. Returns the exit code: 0, 2 for unusable input, 130 if interrupted."""
    return run_cli("sparsebert", __doc__, Settings, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
