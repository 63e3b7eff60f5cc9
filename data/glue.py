"""The tasks, GLUE's and the toy's: their tokens and their batches."""
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .hub import BadInput, fetch, quietly, reason

REPOSITORY = "nyu-mll/glue"
TOY = Path(__file__).parent / "toy"       # a small world: model, tokenizer and splits in one folder


@dataclass(frozen=True)
class Task:
    """What a task needs to be known by name."""
    columns: tuple            # the one or two sentence columns
    metrics: tuple            # names in METRICS; the first is "the score"
    size: str                 # small (CoFi's four small sets, with a long schedule), large or toy


TASKS = {
    "toy": Task(("sentence1", "sentence2"), ("accuracy",), "toy"),
    "cola": Task(("sentence",), ("matthews",), "small"),
    "mrpc": Task(("sentence1", "sentence2"), ("accuracy", "f1"), "small"),
    "rte": Task(("sentence1", "sentence2"), ("accuracy",), "small"),
    "sst2": Task(("sentence",), ("accuracy",), "large"),
    "stsb": Task(("sentence1", "sentence2"), ("pearson", "spearman"), "small"),
}


@dataclass
class Rows:
    """Tokenised rows, packed end to end: two bytes a token and no Python object a row.

    Row i is ids[start[i]:start[i + 1]]; its first first[i] tokens are segment 0, the rest 1.
    """
    ids: np.ndarray           # (tokens,) uint16, or int32 for a vocabulary over 65,536
    start: np.ndarray         # (n + 1,)
    first: np.ndarray         # (n,)
    label: np.ndarray         # (n,) int64 classes, or float32 for regression
    part: np.ndarray          # (n,) name of the part a row belongs to, or (0,) if there are none

    def __len__(self):
        return len(self.first)

    def head(self, n):
        """The first n rows, or all if there are fewer."""
        n = min(n, len(self))
        return Rows(self.ids[:self.start[n]], self.start[:n + 1], self.first[:n], self.label[:n],
                    self.part[:n])

    def batch(self, rows, pad_id=0):
        """Tensors of the given rows, padded to the longest of them.

        Returns {"ids": (B, T) int64, "segments": (B, T) int64, "real": (B, T) bool, False at
        padding, "label": (B,)}.
        """
        length = self.start[rows + 1] - self.start[rows]
        column = np.arange(length.max())                            # (T)
        real = column < length[:, None]                             # (B, T)
        ids = np.full(real.shape, pad_id, dtype=np.int64)
        ids[real] = np.concatenate([self.ids[self.start[r]:self.start[r + 1]] for r in rows])
        segments = ((column >= self.first[rows][:, None]) & real).astype(np.int64)
        arrays = {"ids": ids, "segments": segments, "real": real, "label": self.label[rows]}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


@dataclass
class Dataset:
    """One task, tokenised. labels: the class names, by class number; None for regression.

    test: only of tasks that ship one with labels; nothing is chosen by it.
    """
    train: Rows
    dev: Rows
    labels: list | None
    test: Rows | None = None


def load_tokenizer(model):
    """The tokenizer of a model: its tokenizer.json, or the vocab.txt of the oldest checkpoints."""
    from tokenizers import Tokenizer
    from tokenizers.implementations import BertWordPieceTokenizer
    path = fetch(model, "tokenizer.json", optional=True)
    if path is None:
        path = fetch(model, "tokenizer_config.json", optional=True)
        lowercase = json.loads(path.read_text()).get("do_lower_case", True) if path else True
        vocab = str(fetch(model, "vocab.txt"))
        return BertWordPieceTokenizer(vocab, lowercase=lowercase)._tokenizer
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def rows_from_text(sentences, label, tokenizer, max_length, part=()):
    """Tokenises. sentences: one or two columns, lists of n strings; label: (n,). Returns Rows.

    A row longer than max_length loses tokens at the end of its longer sentence first.
    """
    tokenizer.enable_truncation(max_length)
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.int32
    ids, lengths, first = [], [0], []
    for i in range(0, len(label), 10_000):
        columns = [column[i:i + 10_000] for column in sentences]
        texts = list(zip(*columns)) if len(columns) == 2 else columns[0]
        for e in tokenizer.encode_batch_fast(texts):
            ids.append(np.array(e.ids, dtype=dtype))
            lengths.append(len(e.ids))
            first.append(len(e.ids) - sum(e.type_ids))
    return Rows(np.concatenate(ids), np.cumsum(lengths), np.array(first), np.asarray(label),
                np.asarray(part))


def load_task(name, tokenizer, max_length):
    """Reads the toy, or downloads another task or takes it from the cache; tokenises it.

    Raises BadInput.
    """
    import datasets
    if name == "toy":
        kinds = {column: datasets.Value("string") for column in (*TASKS[name].columns, "part")}
        kinds["label"] = datasets.ClassLabel(names=["entailment", "not_entailment"])
        splits = {split: str(TOY / f"{split}.tsv") for split in ("train", "validation", "test")}
        raw = quietly(datasets.load_dataset, "csv", data_files=splits, sep="\t",
                      features=datasets.Features(kinds))
        return tokenise(name, raw, tokenizer, max_length)
    try:
        raw = quietly(datasets.load_dataset, REPOSITORY, name)
    except Exception as error:  # many kinds, of several network libraries; none is swallowed
        raise BadInput(f"the dataset {REPOSITORY} ({name}) could not be had ({reason(error)}); "
                       "check the network; what was had once is read from the cache") from error
    return tokenise(name, raw, tokenizer, max_length)


def tokenise(name, raw, tokenizer, max_length):
    """A Dataset from the raw splits, each checked: columns, rows, the range of the labels."""
    labels = getattr(raw["train"].features.get("label"), "names", None)
    splits = {}
    for split in raw:
        have, want = raw[split].column_names, (*TASKS[name].columns, "label")
        if missing := [column for column in want if column not in have]:
            raise BadInput(f"task {name}, {split}: no column {missing[0]!r}; it has "
                           f"{', '.join(have)}; want the columns of {REPOSITORY}")
        label = np.array(raw[split]["label"], dtype=np.int64 if labels else np.float32)
        if len(label) == 0:
            raise BadInput(f"task {name}, {split}: no rows; want at least one")
        if split == "test" and (label == -1).all():                 # GLUE keeps these to itself
            continue
        if labels and not ((0 <= label) & (label < len(labels))).all():
            raise BadInput(f"task {name}, {split}: labels from {label.min()} to {label.max()}; "
                           f"want 0 to {len(labels) - 1} ({', '.join(labels)})")
        sentences = [raw[split][column][:] for column in TASKS[name].columns]
        part = raw[split]["part"][:] if "part" in have else ()
        splits[split] = rows_from_text(sentences, label, tokenizer, max_length, part)
    return Dataset(splits["train"], splits["validation"], labels, splits.get("test"))


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
