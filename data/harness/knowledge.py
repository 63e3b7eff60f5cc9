"""What a network still knows of its language: figure 2 of the SparseBERT paper."""
import numpy as np
import torch
import torch.nn.functional as F

from data.checkpoint import read_mlm_head
from data.errors import UserError
from data.harness.device import to_device
from data.tasks import TOY
from data.tokenized import batches, tokenize_texts
from data.tokenizer import SPECIAL_TOKENS

SHARE = 0.15            # of the words is masked, as in pre-training


def special_ids(tokenizer):
    """Return the ids of the special tokens, that of [MASK] first."""
    return [tokenizer.token_to_id(token) for token in reversed(SPECIAL_TOKENS)]


def word_logits(head, H):
    """Return the logits of a masked-LM head, (words, vocabulary). H (words, d): last states."""
    H = F.gelu(F.linear(H, *head["dense"]))
    H = F.layer_norm(H, H.shape[-1:], *head["norm"], 1e-12)
    return F.linear(H, head["words"], head["bias"])


class Knowledge:
    """Measures the general language knowledge in an encoder.

    That is the accuracy with which the masked-LM head of the pre-trained checkpoint, frozen, finds
    masked words of held-out text: of the toy, documents that its corpus does not hold; elsewhere
    the dev set. All networks see the same masks.
    """

    def __init__(self, model, data, tokenizer, device):
        self.device = device
        self.special = special_ids(tokenizer)
        try:
            self.head = read_mlm_head(model, device)
        except UserError:
            self.head = None            # the checkpoint has none
            return
        self.text = data.dev
        if data.task.size == "toy":
            lines = (TOY / "heldout.tsv").read_text("utf-8").splitlines()
            texts = list(zip(*(line.split("\t") for line in lines)))
            labels = np.zeros(len(lines), np.int64)
            self.text = tokenize_texts(texts, labels, tokenizer, data.max_length)

    @torch.no_grad()
    def __call__(self, bert):
        """Return the accuracy, or None without a masked-LM head."""
        if self.head is None:
            return None
        was_training = bert.training
        bert.eval()
        rng = np.random.default_rng(0)
        special = torch.tensor(self.special, device=self.device)
        right = total = 0
        for _, batch in batches(self.text, 64):
            inputs, _ = to_device(self.device, batch)
            input_ids = inputs["input_ids"]                                         # (B, T)
            noise = rng.random(input_ids.shape)
            noise = torch.from_numpy(noise.astype(np.float32)).to(self.device)      # (B, T)
            free = inputs["attention_mask"] & ~torch.isin(input_ids, special)       # (B, T)
            chosen = free & (noise < SHARE)                                         # (B, T)
            masked = input_ids.masked_fill(chosen, self.special[0])
            H = bert(**inputs | {"input_ids": masked}).hidden_states[-1][chosen]    # (words, d)
            predicted = word_logits(self.head, H).argmax(-1)                        # (words)
            right += int((predicted == input_ids[chosen]).sum())
            total += len(H)
        bert.train(was_training)
        return right / max(total, 1)
