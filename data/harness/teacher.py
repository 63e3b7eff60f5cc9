"""The teacher during distillation: a network, or a cache of its outputs."""
from types import SimpleNamespace

import torch

from data.harness.device import to_device
from data.tokenized import batches

MAX_TEACHER_CACHE_BYTES = 2**31       # ours


class CachedTeacher:
    """Teacher outputs for training examples. They never change (dropout is off): compute them once.

    It keeps the logits of each example, and the hidden states of some layers for each token, in
    bfloat16: one tensor (tokens, n, d), addressed with the offsets of the data set. The cache is
    filled at the first call, because a run that resumes after its last step needs none. The teacher
    is called in every step instead where the cache would be too large or of no use: see `fits`.

    teacher: a network in eval mode; dataset: the TokenizedDataset of the training examples; layers:
    the layers whose states are needed, from 0; num_steps, batch_size: of all training to come.
    """

    def __init__(self, teacher, dataset, layers, num_steps, batch_size):
        self.teacher, self.dataset, self.layers = teacher, dataset, layers
        self.device = teacher.classifier.weight.device
        # on the device, so that the CPU need not wait for a GPU to copy them
        self.offsets = torch.as_tensor(dataset.offsets, device=self.device)
        self.states = self.logits = None
        self.is_cached = self.fits(num_steps * batch_size)
        if self.is_cached:
            print(f"caching teacher outputs for {len(dataset):,} examples")

    def fits(self, num_examples):
        """Whether to cache: by size, and if each example is seen twice or more.

        The logits of a span head are as long as their example and are not cached.
        """
        config = self.teacher.config
        num_bytes = 2 * len(self.layers) * len(self.dataset.input_ids) * config.hidden_size
        return (not config.is_span and num_examples >= 2 * len(self.dataset)
                and num_bytes <= MAX_TEACHER_CACHE_BYTES)

    def token_positions(self, indices, T):
        """Return where the tokens of these examples are in `states`, (B, T), up to column T."""
        positions = self.offsets[indices][:, None] + torch.arange(T, device=self.device)    # (B, T)
        # A column of padding points at the next example, or past the last one. Any token will do:
        # layer_loss gives padding the weight 0.
        return positions.clamp(max=len(self.dataset.input_ids) - 1)

    def move(self, indices):
        """Return indices (B), an array, as a tensor on the device."""
        inputs, _ = to_device(self.device, {"indices": torch.from_numpy(indices)})
        return inputs["indices"]

    def fill(self):
        """Run the teacher once over the data set."""
        for indices, batch in batches(self.dataset, 64):
            inputs, _ = to_device(self.device, batch)
            indices = self.move(indices)                                        # (B)
            mask = inputs["attention_mask"]                                     # (B, T)
            output = self.teacher(**inputs)
            logits = output.logits.float()                                      # (B, classes)
            states = torch.stack(output.hidden_states, 2)[:, :, [i + 1 for i in self.layers]]
            if self.logits is None:
                n, d = states.shape[2:]
                tokens = len(self.dataset.input_ids)
                self.logits = logits.new_empty(len(self.dataset), logits.shape[-1])
                self.states = torch.empty(tokens, n, d, dtype=torch.bfloat16, device=self.device)
            self.logits[indices] = logits
            positions = self.token_positions(indices, mask.shape[1])
            self.states[positions[mask]] = states[mask].bfloat16()

    @torch.no_grad()
    def __call__(self, indices, inputs):
        """Return logits (B, classes) and hidden_states, as the network does for this batch.

        hidden_states: None for a layer that is not needed, else (B, T, d). From the cache, states
        at padding are arbitrary.
        """
        if not self.is_cached:
            return self.teacher(**inputs)
        if self.logits is None:
            self.fill()
        indices = self.move(indices)                                            # (B)
        positions = self.token_positions(indices, inputs["input_ids"].shape[1])     # (B, T)
        states = self.states[positions]                                         # (B, T, n, d)
        hidden_states = [None] * (len(self.teacher.config.heads_per_layer) + 1)
        for layer, layer_states in zip(self.layers, states.unbind(2)):
            hidden_states[layer + 1] = layer_states                             # (B, T, d)
        return SimpleNamespace(logits=self.logits[indices], hidden_states=hidden_states)


def cache_teacher(teacher, dataset, distilled, cfg):
    """Return a CachedTeacher for these settings, or None if nothing is distilled.

    distilled: the teacher layers that L_layer needs, from 0.
    """
    if not cfg.pred_weight and not cfg.layer_weight:
        return None
    layers = distilled if cfg.layer_weight else []
    num_steps = sum(cfg.num_steps(stage, len(dataset)) for stage in ("prune", "finetune"))
    return CachedTeacher(teacher, dataset, layers, num_steps, cfg.batch_size)
