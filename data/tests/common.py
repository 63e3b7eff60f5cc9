"""Shared by the tests: small networks, batches and masks, and a comparison that explains itself."""
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import cofi

torch.set_num_threads(1)       # at these sizes a second thread only waits

# vocabulary, positions, token types, d, k, heads and FFN units of each layer, pooler
MINILM = cofi.Config(100, 64, 2, 384, 32, [12] * 6, [1536] * 6, 384, id2label=["no", "yes"])
TINY = cofi.Config(100, 64, 2, 16, 4, [4, 4, 4], [24, 24, 24], 16, id2label=["no", "yes"])
# no two sizes are alike, so that exchanged dimensions are found
ODD = cofi.Config(100, 64, 2, 13, 7, [3] * 5, [17] * 5, 19, id2label=["no", "yes"])
BERT_BASE = cofi.Config(30522, 512, 2, 768, 64, [12] * 12, [3072] * 12, 768,
                        id2label=["no", "yes"])


def marker(name):
    """Return a pytest marker: pytest -m part3, pytest -m "not slow"."""
    # pytest would like markers to be registered in a file of their own
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)
        return getattr(pytest.mark, name)


def part(number):
    """Mark a test as one of an assignment."""
    return marker(f"part{number}")


slow = marker("slow")


def assert_close(got, expected, hint="", atol=1e-5):
    """Assert equality up to rounding. If it fails: what was expected, what came, likely mistake."""
    __tracebackhide__ = True
    got, expected = (torch.as_tensor(x).detach().double() for x in (got, expected))
    if got.shape != expected.shape:
        texts = [f"shape {tuple(x.shape)}" for x in (expected, got)]
    elif torch.allclose(got, expected, atol=atol, rtol=1e-5):
        return
    else:
        worst = (got - expected).abs().nan_to_num(torch.inf).argmax().item()
        at = tuple(int(i) for i in np.unravel_index(worst, got.shape))
        where = f" at {at} of {tuple(got.shape)}" if at else ""
        texts = [f"{x[at].item():.6g}{where}" for x in (expected, got)]
    raise AssertionError(f"expected {texts[0]}\n     got {texts[1]}\n  likely {hint or 'unknown'}")


def make_bert(config=TINY):
    """Return a BERT whose weights, biases and LayerNorms are all far from trivial."""
    bert = cofi.BERT(config).eval()
    for name, p in bert.named_parameters():
        mean = 1.0 if name.endswith("norm.weight") else 0.0
        nn.init.normal_(p, mean, 0.3)
    return bert


def make_batch(B=5, T=11, vocab_size=100):
    """Return the inputs of a network, with rows of different length."""
    attention_mask = torch.arange(T) < torch.randint(3, T + 1, (B, 1))
    attention_mask[0] = True
    return {"input_ids": torch.randint(vocab_size, (B, T)),
            "token_type_ids": torch.randint(2, (B, T)), "attention_mask": attention_mask}


def make_masks(config=TINY, soft=True):
    """Return {group: z} with about a quarter closed, the others soft or 1."""
    z = {}
    for group, log_alpha in cofi.Masks(config).log_alpha().items():
        value = torch.rand(log_alpha.shape) + 0.5 if soft else torch.ones(log_alpha.shape)
        z[group] = value * (torch.rand(log_alpha.shape) > 0.25)
    z["z_mha"][0] = z["z_ffn"][0] = 0.9
    return z


def random_log_alpha(config, spread=3.0, groups=cofi.Masks.GROUPS):
    """Return Masks with normal log_alpha of this spread."""
    masks = cofi.Masks(config, groups)
    for p in masks.parameters():
        nn.init.normal_(p, 0.0, spread)
    return masks
