"""Baselines: structures that are chosen at once, without learning log_alpha (--structure).

Each ranks all heads, FFN units, hidden dimensions and layers by a score. The scores take the place
of log_alpha, so that cofi.final_masks makes the structure and every baseline meets the target as
CoFi's network does. The fine-tuned teacher is pruned, as in post-training pruning, and then
distilled for as many steps as CoFi's pruning and fine-tuning have together.

    random      a random order
    magnitude   mean square of the weights that a mask removes
    fisher      squared gradient of the loss with respect to a mask, summed over batches, divided by
                the number of weights that the mask removes (Kwon et al. 2022, who prune heads and
                FFN units)
    small       a smaller BERT: it keeps a third of the layers (more if the target needs them),
                evenly spaced; every one keeps the same share of its heads and of its units, those
                of largest magnitude (as TinyBERT is a smaller BERT); the hidden size stays
"""
import math
import time
from dataclasses import replace

import torch

from data.errors import UserError
from data.harness.device import autocast, to_device
from data.tokenized import batches

STRUCTURES = ("learned", "random", "magnitude", "fisher", "small")
SIZES = ("vocab_size", "max_position_embeddings", "type_vocab_size", "hidden_size",
         "attention_head_size", "heads_per_layer", "ffn_per_layer", "pooler_size")
FISHER_EXAMPLES = 2048      # as Kwon et al.; the last batch may exceed it
SURE = 50.0                 # a log_alpha at which final_z is 1
SPREAD = 800.0              # between the lowest and the highest log_alpha; see cofi.FAR


def choose_structure(student, teacher, masks, data, cfg, label_loss):
    """Start the student from the teacher's weights, and write scores into log_alpha of masks.

    label_loss: cofi.label_loss. Returns (settings with the steps of both stages for fine-tuning,
    seconds it took). Raises UserError if the teacher has other sizes.
    """
    start = time.perf_counter()
    for name in SIZES:
        needed, size = getattr(student.config, name), getattr(teacher.config, name)
        if size != needed:
            raise UserError(f"--structure {cfg.structure} prunes the teacher, which must have the "
                            f"{name} of {cfg.model}, got {size}. Try --structure learned")
    student.load_state_dict(teacher.state_dict())
    z = {group: torch.ones_like(a, requires_grad=True) for group, a in masks.log_alpha().items()}
    torch.manual_seed(cfg.seed)
    if cfg.structure == "random":
        # drawn on the CPU: the same on every device
        scores = {group: torch.rand(ones.shape).to(ones) for group, ones in z.items()}
    elif cfg.structure == "magnitude":
        scores = mean_squares(student, masks, z)
    elif cfg.structure == "fisher":
        scores = fisher_scores(student, masks, z, data.train, cfg, label_loss)
    else:
        scores = small_scores(mean_squares(student, masks, z), cfg.sparsities()[-1])
    write_log_alpha(masks, scores)
    epochs = cfg.prune_epochs + cfg.finetune_epochs
    steps = sum(cfg.num_steps(stage, len(data.train)) for stage in ("prune", "finetune"))
    longer = replace(cfg, finetune_epochs=epochs, max_steps=steps)
    return longer, time.perf_counter() - start


def size_behind(masks, z):
    """Return {group: share of the encoder's weights that each mask removes on its own}."""
    # the derivative of the size: size is linear in each mask
    gradients = torch.autograd.grad(-masks.sparsity(z), list(z.values()))
    return dict(zip(z, gradients))


def sum_of_squares(bert, z):
    """Return the sum of the squared weights of the encoder, each times the masks on its way."""
    total = 0
    for i, layer in enumerate(bert.layers):
        mha, ffn = layer.mha, layer.ffn
        matrices = mha.query.weight, mha.key.weight, mha.value.weight, mha.out.weight.T
        heads = sum(w.detach().square() for w in matrices).unflatten(0, (-1, mha.k)).sum(1)
        units = ffn.up.weight.detach().square() + ffn.down.weight.detach().T.square()
        total += z["z_mha"][i] * torch.einsum("hd,h,d->", heads, z["z_head"][i], z["z_hidn"])
        total += z["z_ffn"][i] * torch.einsum("fd,f,d->", units, z["z_int"][i], z["z_hidn"])
    return total


def mean_squares(bert, masks, z):
    """Return {group: mean square of the weights behind each mask}. z: masks of ones."""
    # the sum is linear in each mask: its derivative is the sum behind that mask
    sums = dict(zip(z, torch.autograd.grad(sum_of_squares(bert, z), list(z.values()))))
    sizes = size_behind(masks, z)
    return {group: sums[group] / sizes[group] for group in z}


def fisher_scores(bert, masks, z, dataset, cfg, label_loss):
    """Return {group: squared gradients of the loss with respect to each mask, divided by its size}.

    A sum over the batches of FISHER_EXAMPLES training examples; z: masks of ones.
    """
    device = bert.classifier.weight.device
    bert.eval()
    squares = {group: torch.zeros_like(ones) for group, ones in z.items()}
    for number, (_, batch) in enumerate(batches(dataset, cfg.batch_size, (cfg.seed, 0))):
        if number * cfg.batch_size >= FISHER_EXAMPLES:
            break
        inputs, labels = to_device(device, batch)
        with autocast(device, cfg.bf16):
            logits = bert(**inputs, **z).logits
        loss = label_loss(logits.float(), labels)
        for group, gradient in zip(z, torch.autograd.grad(loss, list(z.values()))):
            squares[group] += gradient.square()
    sizes = size_behind(masks, z)
    return {group: squares[group] / sizes[group] for group in z}


def small_scores(magnitudes, sparsity):
    """Return {group: score} of a BERT with fewer and narrower layers. magnitudes: mean_squares."""
    L = len(magnitudes["z_mha"])
    num_layers = max(math.ceil(L / 3), math.ceil(L * (1 - sparsity) - 1e-9))
    kept = [math.ceil(L * i / num_layers) - 1 for i in range(1, num_layers + 1)]
    scores = {group: torch.zeros_like(row) for group, row in magnitudes.items()}
    for layer, units in ("z_mha", "z_head"), ("z_ffn", "z_int"):
        scores[layer][kept] = 3
        row = magnitudes[units][kept]
        # from 0 to 1 in each layer, so that all have the same share of their units
        order = row.argsort(-1).argsort(-1)
        scores[units][kept] = (order + 1) / row.shape[-1]
    # the best head of each layer is kept before any other, if the target leaves room for it
    scores["z_head"][scores["z_head"] == 1] = 2
    scores["z_hidn"] += 3
    return scores


@torch.no_grad()
def write_log_alpha(masks, scores):
    """Write scores into log_alpha as ranks: all open, the highest score the last to be closed."""
    learned = dict(masks.named_parameters())
    flat = torch.cat([scores[group].flatten() for group in learned])
    ranks = flat.argsort(stable=True).argsort() / len(flat)
    for log_alpha, row in zip(learned.values(), ranks.split([a.numel() for a in learned.values()])):
        log_alpha.copy_(SURE + SPREAD * row.view_as(log_alpha))
