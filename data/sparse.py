"""What zeros are worth: a file that does not store them, and products that do not multiply them."""
import copy
import math
import warnings

import numpy as np
import torch
from torch import nn

from data.files import write_atomically
from data.harness.report import measure_speedup


def save_sparse(path, bert):
    """Write all weights; of the encoder's matrices one bit for each place, and the values that are
    not 0.

    Returns (bytes of the matrices in this file, bytes of them dense).
    """
    prunable = {f"layers.{name}" for name, w in bert.layers.named_parameters() if w.dim() == 2}
    stored, size, dense_size = {}, 0, 0
    for name, w in bert.state_dict().items():
        stored[name] = w = w.cpu()
        if name in prunable:
            bits = torch.from_numpy(np.packbits((w != 0).numpy()))
            values = w[w != 0]
            stored[name] = {"shape": list(w.shape), "bits": bits, "values": values}
            size += bits.nbytes + values.nbytes
            dense_size += w.nbytes
    write_atomically(path, lambda file: torch.save(stored, file))
    return size, dense_size


def load_sparse(path):
    """Read a file of save_sparse: {name: weight}, dense again. Runs no code of the file."""
    weights = torch.load(path, map_location="cpu", weights_only=True)
    for name, w in weights.items():
        if isinstance(w, dict):
            bits = np.unpackbits(w["bits"].numpy(), count=math.prod(w["shape"]))
            dense = torch.zeros(bits.shape, dtype=w["values"].dtype)
            dense[torch.from_numpy(bits).bool()] = w["values"]
            weights[name] = dense.view(w["shape"])
    return weights


class SparseLinear(nn.Module):
    """A Linear whose matrix is stored by rows (CSR): only nonzero weights are multiplied.

    The matrix stands on the left and the tokens are columns, W x^T. PyTorch also accepts
    F.linear(x, W), but then it is several times slower, no faster than with a dense W.
    """

    def __init__(self, linear):
        super().__init__()
        with warnings.catch_warnings():     # "CSR is in beta state"
            warnings.simplefilter("ignore")
            self.weight = linear.weight.detach().to_sparse_csr()
        self.bias = linear.bias.detach()[:, None]                   # (outputs, 1)

    def forward(self, x):
        """x (..., inputs). Returns (..., outputs)."""
        columns = x.flatten(0, -2).T                                # (inputs, tokens)
        return torch.addmm(self.bias, self.weight, columns).T.unflatten(0, x.shape[:-1])


def to_csr(bert):
    """Return a copy of a BERT whose encoder uses sparse matrices. For inference on a CPU."""
    bert = copy.deepcopy(bert).eval()
    parts = [part for layer in bert.layers for part in (layer.mha, layer.ffn) if part is not None]
    for part in parts:
        for name, module in list(part.named_children()):
            if isinstance(module, nn.Linear):
                setattr(part, name, SparseLinear(module))
    return bert


def speedup_csr(bert, batch_sizes=(1, 8), lengths=(32, 128), seconds=2.0):
    """Measure how many times faster to_csr(bert) is than bert on the CPU: {"rows x length": ratio}.
    """
    dense = copy.deepcopy(bert).cpu().eval()
    sparse, ratios = to_csr(dense), {}
    for length in sorted({min(n, dense.config.max_position_embeddings) for n in lengths}):
        for rows, ratio in measure_speedup(dense, sparse, batch_sizes, length, seconds).items():
            ratios[f"{rows} x {length}"] = ratio
    return ratios
