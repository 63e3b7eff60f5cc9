"""Tokenised rows, packed end to end, and batches of them."""
from dataclasses import dataclass, replace

import numpy as np

from .hub import quietly
from .metrics import METRICS


@dataclass
class Rows:
    """Tokenised rows, packed end to end: two bytes a token and no Python object a row.

    Row i is ids[start[i]:start[i + 1]]; its first first[i] tokens are segment 0, the rest 1.
    """
    ids: np.ndarray           # (tokens,) uint16, or int32 for a vocabulary over 65,536
    start: np.ndarray         # (n + 1,)
    first: np.ndarray         # (n,)
    label: np.ndarray         # (n,) int64 classes, float32 for regression; (n, 2) start, end
    part: np.ndarray          # (n,) name of the part a row belongs to, or (0,) if there are none

    def __len__(self):
        return len(self.first)

    def head(self, n):
        """The first n rows, or all if there are fewer."""
        n = min(n, len(self))
        return replace(self, ids=self.ids[:self.start[n]], start=self.start[:n + 1],
                       first=self.first[:n], label=self.label[:n], part=self.part[:n])

    def batch(self, rows, pad_id=0):
        """Tensors of the given rows, padded to the longest of them.

        Returns {"ids": (B, T) int64, "segments": (B, T) int64, "real": (B, T) bool, False at
        padding, "label": (B,)}.
        """
        import torch
        length = self.start[rows + 1] - self.start[rows]
        column = np.arange(length.max())                            # (T)
        real = column < length[:, None]                             # (B, T)
        ids = np.full(real.shape, pad_id, dtype=np.int64)
        ids[real] = np.concatenate([self.ids[self.start[r]:self.start[r + 1]] for r in rows])
        segments = ((column >= self.first[rows][:, None]) & real).astype(np.int64)
        arrays = {"ids": ids, "segments": segments, "real": real, "label": self.label[rows]}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def predicted(self, logits):
        """What the network's logits say, (n,): a class each, or a value for regression."""
        logits = np.stack(logits)                                   # (n, classes) or (n, 1)
        return logits[:, 0] if self.label.dtype.kind == "f" else logits.argmax(-1)

    def score(self, logits, metrics):
        """{metric: value} of logits, an array a row; then {part: value of the first metric}."""
        predicted = self.predicted(logits)
        scores = {name: METRICS[name](predicted, self.label) for name in metrics}
        for part in np.unique(self.part):
            of = self.part == part
            scores[str(part)] = METRICS[metrics[0]](predicted[of], self.label[of])
        return scores


def joined(parts):
    """Rows of several Rows, one after the other."""
    ends = np.cumsum([0] + [len(rows.ids) for rows in parts])
    start = [rows.start[1:] + end for rows, end in zip(parts, ends)]
    same = {name: np.concatenate([getattr(rows, name) for rows in parts])
            for name in ("ids", "first", "label", "part")}
    return Rows(start=np.concatenate([[0], *start]), **same)


def id_type(tokenizer):
    return "uint16" if tokenizer.get_vocab_size() <= 1 << 16 else "int32"


def kept(raw, make, kinds, **settings):
    """The arrow table of make(batch, **settings), kept on disk by `datasets` beside the raw data.

    Its fingerprint covers data, make, and settings with the tokenizer: if one changes, it is made
    anew. raw: a datasets.Dataset; kinds: {column: "uint16" or another type, in a list: many a row}.
    """
    import datasets
    features = {name: datasets.List(datasets.Value(kind[0])) if isinstance(kind, list)
                else datasets.Value(kind) for name, kind in kinds.items()}
    made = quietly(raw.map, make, with_indices=True, batched=True, fn_kwargs=settings,
                   features=datasets.Features(features), remove_columns=raw.column_names)
    return made.with_format("arrow")[:]


def flat(lists):
    """An arrow column of lists: (all values, where each list starts, and the last one ends)."""
    lists = lists.combine_chunks()
    ends = np.cumsum(lists.value_lengths().to_numpy())
    return lists.flatten().to_numpy(), np.concatenate([[0], ends])


def encode(batch, _, columns, tokenizer):
    """Token ids of one or two columns of sentences, and how many of them are segment 0."""
    texts = [batch[column] for column in columns]
    encoded = tokenizer.encode_batch_fast(list(zip(*texts)) if len(texts) == 2 else texts[0])
    return {"ids": [e.ids for e in encoded],
            "first": [len(e.ids) - sum(e.type_ids) for e in encoded]}


def rows_from(raw, columns, label, tokenizer, max_length, part=()):
    """Tokenises a datasets.Dataset. columns: of one or two sentences; label: (n,). Returns Rows.

    A row longer than max_length loses tokens at the end of its longer sentence first.
    """
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    table = kept(raw, encode, {"ids": [id_type(tokenizer)], "first": "int32"},
                 columns=list(columns), tokenizer=tokenizer)
    return Rows(*flat(table["ids"]), table["first"].to_numpy(), np.asarray(label),
                np.asarray(part, dtype=str))


def rows_from_text(sentences, label, tokenizer, max_length, part=()):
    """The same from one or two lists of strings."""
    import datasets
    raw = datasets.Dataset.from_dict({str(i): column for i, column in enumerate(sentences)})
    return rows_from(raw, raw.column_names, label, tokenizer, max_length, part)


def batches(rows, batch_size, seed=None, pad_id=0):
    """Batches of rows of about equal length, so that little of a batch is padding.

    Every row comes once. seed None: shortest first. seed (an int or several): shuffled, sorted by
    length within pools of 32 batches, and the batches shuffled again.
    Yields (row numbers, tensors of Rows.batch).
    """
    length, cuts = np.diff(rows.start), range(batch_size, len(rows), batch_size)
    if seed is None:
        groups = np.split(np.argsort(length, kind="stable"), cuts)
    else:
        rng, pool = np.random.default_rng(seed), 32 * batch_size
        pools = np.split(rng.permutation(len(rows)), range(pool, len(rows), pool))
        order = np.concatenate([p[np.argsort(length[p], kind="stable")] for p in pools])
        groups = np.split(order, cuts)
        rng.shuffle(groups)
    for group in groups:
        yield group, rows.batch(group, pad_id)
