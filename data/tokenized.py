"""Tokenized examples, packed end to end, and batches of them."""
from dataclasses import dataclass, replace

import datasets
import numpy as np
import torch

from data.errors import UserError
from data.hub import cached
from data.metrics import METRICS


@dataclass
class TokenizedDataset:
    """Tokenized examples, packed end to end: two bytes a token and no Python object an example.

    Example i is input_ids[offsets[i]:offsets[i + 1]]. Its first first_segment_length[i] tokens have
    token type 0, the others 1.
    """
    input_ids: np.ndarray             # (tokens,) uint16, or int32 for a vocabulary over 65,536
    offsets: np.ndarray               # (n + 1,)
    first_segment_length: np.ndarray  # (n,)
    labels: np.ndarray                # (n,) int64 classes or float32 values; (n, 2) start and end
    subset: np.ndarray                # (n,) name of the subset of each example, or (0,) without

    def __len__(self):
        return len(self.first_segment_length)

    def sample(self, n):
        """Return n examples, evenly spaced, or all if there are fewer."""
        return self.select(evenly_spaced(len(self), n))

    def select(self, indices):
        """Return the examples with these indices."""
        lengths = self.offsets[indices + 1] - self.offsets[indices]
        return replace(self, input_ids=self.input_ids[self.token_positions(indices)],
                       offsets=np.concatenate([[0], np.cumsum(lengths)]),
                       first_segment_length=self.first_segment_length[indices],
                       labels=self.labels[indices],
                       subset=self.subset[indices] if len(self.subset) else self.subset)

    def token_positions(self, indices):
        """Return where the tokens of these examples are in input_ids."""
        return np.concatenate([np.arange(self.offsets[i], self.offsets[i + 1]) for i in indices])

    def batch(self, indices):
        """Return tensors of the given examples, padded to the longest of them.

        {"input_ids": (B, T) int64, "token_type_ids": (B, T) int64, "attention_mask": (B, T) bool,
        False at padding, "labels": (B,) or (B, 2)}
        """
        lengths = self.offsets[indices + 1] - self.offsets[indices]
        column = np.arange(lengths.max())                           # (T)
        is_token = column < lengths[:, None]                        # (B, T)
        # padding is 0: attention_mask hides it, whatever the vocabulary has there
        input_ids = np.zeros(is_token.shape, dtype=np.int64)
        examples = [self.input_ids[self.offsets[i]:self.offsets[i + 1]] for i in indices]
        input_ids[is_token] = np.concatenate(examples)
        in_second = column >= self.first_segment_length[indices][:, None]
        arrays = {"input_ids": input_ids,
                  "token_type_ids": (in_second & is_token).astype(np.int64),
                  "attention_mask": is_token, "labels": self.labels[indices]}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def predictions(self, logits):
        """Return what the logits predict, (n,): class numbers, or the values of a regression."""
        logits = np.stack(logits)                                   # (n, classes) or (n, 1)
        is_regression = self.labels.dtype.kind == "f"
        return logits[:, 0] if is_regression else logits.argmax(-1)

    def score(self, logits, metrics):
        """Return {metric: value}, and {subset: value of the first metric on it}.

        logits: one array for each example; metrics: names in METRICS.
        """
        predicted = self.predictions(logits)
        scores = {name: METRICS[name](predicted, self.labels) for name in metrics}
        for name in np.unique(self.subset):
            inside = self.subset == name
            scores[str(name)] = METRICS[metrics[0]](predicted[inside], self.labels[inside])
        return scores


def evenly_spaced(length, n):
    """Return n of the indices below length, evenly spaced, or all if there are fewer.

    Example:
    >>> evenly_spaced(10, 4).tolist(), evenly_spaced(2, 4).tolist()
    ([0, 3, 6, 9], [0, 1])
    """
    return np.unique(np.linspace(0, length - 1, n).round().astype(np.int64))


def concatenate(parts):
    """Join several TokenizedDatasets, one after the other."""
    starts = np.cumsum([0] + [len(part.input_ids) for part in parts])
    offsets = [part.offsets[1:] + start for part, start in zip(parts, starts)]
    joined = {name: np.concatenate([getattr(part, name) for part in parts])
              for name in ("input_ids", "first_segment_length", "labels", "subset")}
    return TokenizedDataset(offsets=np.concatenate([[0], *offsets]), **joined)


def batches(dataset, batch_size, seed=None):
    """Yield (indices, tensors of TokenizedDataset.batch), every example once.

    Examples of a batch have about equal length, so that there is little padding. seed None:
    shortest first. Otherwise (an int or several): shuffled, sorted by length within pools of 32
    batches, and the batches shuffled again.
    """
    lengths = np.diff(dataset.offsets)
    cuts = range(batch_size, len(dataset), batch_size)
    if seed is None:
        groups = np.split(np.argsort(lengths, kind="stable"), cuts)
    else:
        rng, pool = np.random.default_rng(seed), 32 * batch_size
        pools = np.split(rng.permutation(len(dataset)), range(pool, len(dataset), pool))
        order = np.concatenate([p[np.argsort(lengths[p], kind="stable")] for p in pools])
        groups = np.split(order, cuts)
        rng.shuffle(groups)
    for indices in groups:
        yield indices, dataset.batch(indices)


# ---- Tokenizing ----------------------------------------------------------------------------------


def id_dtype(tokenizer):
    return "uint16" if tokenizer.get_vocab_size() <= 1 << 16 else "int32"


def map_cached(raw, function, dtypes, **kwargs):
    """Return the arrow table of function(batch, indices, **kwargs), cached on disk by `datasets`.

    The fingerprint of the cache covers the raw data, the function and kwargs with the tokenizer: if
    one changes, the table is made again. raw: a datasets.Dataset; dtypes: {column: "uint16" or
    another type, in a list for several values a row}.
    """
    features = {}
    for name, dtype in dtypes.items():
        is_list = isinstance(dtype, list)
        value = datasets.Value(dtype[0] if is_list else dtype)
        features[name] = datasets.List(value) if is_list else value
    table = cached(raw.map, function, with_indices=True, batched=True, fn_kwargs=kwargs,
                   features=datasets.Features(features), remove_columns=raw.column_names)
    return table.with_format("arrow")[:]


def unpack_list_column(column):
    """Turn an arrow column of lists into (all values, offsets of the lists)."""
    column = column.combine_chunks()
    ends = np.cumsum(column.value_lengths().to_numpy())
    return column.flatten().to_numpy(), np.concatenate([[0], ends])


def tokenize_batch(batch, _, columns, tokenizer):
    """Tokenize one or two text columns of a batch: token ids, and the length of the first text."""
    texts = [batch[column] for column in columns]
    inputs = list(zip(*texts)) if len(texts) == 2 else texts[0]
    encoded = tokenizer.encode_batch_fast(inputs)
    return {"input_ids": [e.ids for e in encoded],
            "first_segment_length": [len(e.ids) - sum(e.type_ids) for e in encoded]}


def tokenize(raw, columns, labels, tokenizer, max_length, subset=()):
    """Tokenize a datasets.Dataset into a TokenizedDataset.

    columns: one or two text columns; labels: (n,). A pair longer than max_length tokens loses them
    at the end of its longer text first.
    """
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    dtypes = {"input_ids": [id_dtype(tokenizer)], "first_segment_length": "int32"}
    table = map_cached(raw, tokenize_batch, dtypes, columns=list(columns), tokenizer=tokenizer)
    input_ids, offsets = unpack_list_column(table["input_ids"])
    if len(input_ids) and input_ids.max() > max(tokenizer.get_vocab().values()):
        raise UserError(f"The cache {datasets.config.HF_CACHE_HOME} is damaged: it holds tokens "
                        "that the tokenizer does not have. Try to delete it")
    return TokenizedDataset(input_ids, offsets, table["first_segment_length"].to_numpy(),
                            np.asarray(labels), np.asarray(subset, dtype=str))


def tokenize_texts(texts, labels, tokenizer, max_length, subset=()):
    """Tokenize one or two lists of strings into a TokenizedDataset."""
    raw = datasets.Dataset.from_dict({str(i): column for i, column in enumerate(texts)})
    return tokenize(raw, raw.column_names, labels, tokenizer, max_length, subset)
