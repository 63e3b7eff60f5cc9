"""The tasks: GLUE's, SQuAD, the toy, and a folder of one's own."""
import csv
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from .files import write_text
from .hub import BadInput, fetch, quietly, reason
from .rows import joined, rows_from
from .squad import windows_from

TOY = Path(__file__).parent / "toy"       # a small world: model, tokenizer and splits in one folder
SMALL = 10_000                            # rows; GLUE's small sets have up to 8,551 of them
PAIR = ("sentence1", "sentence2")


@dataclass(frozen=True)
class Task:
    """What a task needs to be known by name."""
    columns: tuple            # the one or two sentence columns; (): all texts beside the label
    metrics: tuple            # names in METRICS; the first is "the score"
    size: str                 # of its table of settings: small, large, squad or toy
    repository: str = "nyu-mll/glue"      # on the hub; "" for a folder
    dev: dict = field(default_factory=lambda: {"validation": ""})   # {split: name of the part}
    tests: dict = field(default_factory=dict)       # {split: the file that GLUE's server takes}


def of_glue(columns, metrics, size, file):
    return Task(columns, metrics, size, tests={"test": file})


TASKS = {
    "toy": Task(PAIR, ("accuracy",), "toy", ""),
    "cola": of_glue(("sentence",), ("matthews",), "small", "CoLA"),
    "sst2": of_glue(("sentence",), ("accuracy",), "large", "SST-2"),
    "mrpc": of_glue(PAIR, ("accuracy", "f1"), "small", "MRPC"),
    "stsb": of_glue(PAIR, ("pearson", "spearman"), "small", "STS-B"),
    "qqp": of_glue(("question1", "question2"), ("accuracy", "f1"), "large", "QQP"),
    "mnli": Task(("premise", "hypothesis"), ("accuracy",), "large",
                 dev={"validation_matched": "matched", "validation_mismatched": "mismatched"},
                 tests={"test_matched": "MNLI-m", "test_mismatched": "MNLI-mm"}),
    "qnli": of_glue(("question", "sentence"), ("accuracy",), "large", "QNLI"),
    "rte": of_glue(PAIR, ("accuracy",), "small", "RTE"),
    "squad": Task(("question", "context"), ("squad_f1", "exact_match"), "squad",
                  "rajpurkar/squad"),
    "own": Task((), ("accuracy",), "small", ""),    # or pearson and spearman, or large: see there
}


@dataclass
class Dataset:
    """One task. Each split is tokenised when it is asked for, the first time.

    raw: {split: a datasets.Dataset}; columns: of the sentences; labels: {split: an array}, without
    the splits whose labels are kept secret; names: of the classes, None for regression and SQuAD.
    """
    task: Task
    raw: dict
    columns: tuple
    metrics: tuple
    labels: dict
    names: list | None
    tokenizer: object
    max_length: int

    @property
    def span(self):
        """Whether an answer is a span of the context, not a class or a value."""
        return self.task.size == "squad"

    @cached_property
    def train(self):
        return self.rows("train")

    @cached_property
    def digest(self):
        """What the tokens and labels of the training and dev set are, in 16 characters."""
        parts = (np.ascontiguousarray(getattr(rows, name)) for rows in (self.train, self.dev)
                 for name in ("ids", "start", "label"))
        return hashlib.sha256(b"".join(x.tobytes() for x in parts)).hexdigest()[:16]

    @cached_property
    def dev(self):
        splits = self.task.dev
        return self.rows(*splits) if len(splits) == 1 else joined(
            [self.rows(split, part) for split, part in splits.items()])

    @cached_property
    def test(self):
        """The test set, if its labels are known; nothing is chosen by it."""
        return self.rows("test") if "test" in self.labels else None

    def rows(self, split, part=""):
        raw = self.raw[split]
        if self.span:
            return windows_from(raw, self.tokenizer, self.max_length)
        unknown = np.zeros(len(raw), np.int64 if self.names else np.float32)
        parts = raw["part"][:] if "part" in raw.column_names else [part] * len(raw) if part else ()
        return rows_from(raw, self.columns, self.labels.get(split, unknown), self.tokenizer,
                         self.max_length, parts)


def load_tokenizer(model, vocab=None):
    """The tokenizer of a model: its tokenizer.json, or the vocab.txt of the oldest checkpoints.

    vocab: how many embeddings there are. Raises BadInput.
    """
    from tokenizers import Tokenizer
    from tokenizers.implementations import BertWordPieceTokenizer
    path = fetch(model, "tokenizer.json", optional=True)
    if path is None:
        path = fetch(model, "tokenizer_config.json", optional=True)
        lowercase = json.loads(path.read_text()).get("do_lower_case", True) if path else True
        vocab = str(fetch(model, "vocab.txt"))
        return BertWordPieceTokenizer(vocab, lowercase=lowercase)._tokenizer
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library knows no narrower kind
        raise BadInput(f"{path}: no tokenizer ({reason(error)}); download or save it again"
                       ) from error
    most = max(tokenizer.get_vocab().values())
    if vocab and most >= vocab:
        raise BadInput(f"{path}: it has {most + 1} words, its embeddings {vocab}; want the "
                       "tokenizer and the weights of one model")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def load_task(name, tokenizer, max_length, folder=""):
    """A task by name: from a folder (the toy, one's own), the hub, or its cache. Raises BadInput.
    """
    import datasets
    folder, task = TOY if name == "toy" else folder, TASKS[name]
    if folder:
        return dataset(name, read_folder(Path(folder)), tokenizer, max_length)
    try:
        raw = quietly(datasets.load_dataset, task.repository,
                      *[name] * (task.repository == "nyu-mll/glue"))
    except Exception as error:  # many kinds, of several network libraries; none is swallowed
        raise BadInput(f"the dataset {task.repository} ({name}) could not be had ({reason(error)});"
                       " check the network; what was had once is read from the cache") from error
    return dataset(name, raw, tokenizer, max_length)


def files_of(folder):
    """{split: file} of a folder with train, validation and perhaps test as .tsv, .csv or .jsonl."""
    if not folder.is_dir():
        raise BadInput(f"--data {folder}: no such folder; want one with train.tsv and "
                       "validation.tsv, or .csv, or .jsonl")
    found = {}
    for split in ("train", "validation", "test"):
        files = [path for path in (folder / f"{split}.{kind}" for kind in ("tsv", "csv", "jsonl"))
                 if path.exists()]
        if len(files) > 1 or (not files and split != "test"):
            have = " and ".join(path.name for path in files) or f"no {split}.tsv, .csv or .jsonl"
            raise BadInput(f"--data {folder}: {have}; want one of them")
        found |= {split: path for path in files}
    return found


def columns_of(path):
    """The column names of a .tsv or .csv, and how it is written; every line as long as the first.

    In a .tsv, quotes are characters like others.
    """
    how = {".tsv": ("\t", csv.QUOTE_NONE), ".csv": (",", csv.QUOTE_MINIMAL)}[path.suffix]
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file, delimiter=how[0], quoting=how[1])
        names = next(lines, [])
        for line in lines:
            if len(line) not in (0, len(names)):
                raise BadInput(f"{path}, line {lines.line_num}: {len(line)} columns; want "
                               f"{len(names)}, those of the first line")
    return names, {"sep": how[0], "quoting": how[1], "keep_default_na": False}


def read_folder(folder):
    """{split: a datasets.Dataset} of one's own files, checked line by line. Raises BadInput."""
    import datasets
    raw = {}
    for split, path in files_of(folder).items():
        how = {"data_files": {split: str(path)}, "split": split}
        try:
            if path.suffix == ".jsonl":
                raw[split] = quietly(datasets.load_dataset, "json", **how)
            else:
                names, form = columns_of(path)
                kinds = datasets.Features({name: datasets.Value("string") for name in names})
                raw[split] = quietly(datasets.load_dataset, "csv", features=kinds, **form, **how)
        except BadInput:
            raise
        except Exception as error:  # of csv, pandas, pyarrow, and others beneath
            raise BadInput(f"{path}: cannot be read ({reason(error.__cause__ or error)}); want a "
                           "line of column names, then a row a line") from error
    return raw


def task_size(name, folder=""):
    """The size of a task: of one's own by the lines of its train file."""
    if name != "own":
        return TASKS[name].size
    with files_of(Path(folder))["train"].open("rb") as file:
        return "small" if sum(1 for _ in file) <= SMALL else "large"


def texts_of(name, raw):
    """The sentence columns of a task, or of one's own data: all texts but the label and part."""
    if TASKS[name].columns:
        return TASKS[name].columns
    kinds = raw["train"].features
    texts = tuple(column for column in kinds if column not in ("label", "part", "id", "idx")
                  and getattr(kinds[column], "dtype", "") in ("string", "large_string"))
    if not 1 <= len(texts) <= 2:
        raise BadInput(f"--data: text in {len(texts)} columns ({', '.join(texts)}); want one or "
                       "two, beside label (and id, idx or part, which are not read as text)")
    return texts


def classes_of(raw):
    """The class names of the training rows; None where all labels are fractions: a regression."""
    known = getattr(raw.features["label"], "names", None)
    if known or raw.features["label"].dtype.startswith("float"):
        return known
    seen = {str(value) for value in raw["label"]}
    try:
        numbers = {value: float(value) for value in seen}
    except ValueError:
        return sorted(seen)
    fractions = all("." in value for value in seen)
    return None if fractions else sorted(seen, key=numbers.get)


def labels_of(name, split, raw, names):
    """The labels of a split, (n,): class numbers, or values; None if GLUE keeps them to itself."""
    values = raw["label"][:]
    if split.startswith("test") and set(values) == {-1}:
        return None
    if names is None:
        try:
            return np.array(values, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise BadInput(f"task {name}, {split}: a label is no number ({error}); want numbers "
                           "such as 2.5 in every split") from error
    if isinstance(values[0], str) or not hasattr(raw.features["label"], "names"):
        number = {value: i for i, value in enumerate(names)}
        values = [number.get(str(value), str(value)) for value in values]
    wrong = [v for v in values if not isinstance(v, int) or not 0 <= v < len(names)]
    if wrong:
        raise BadInput(f"task {name}, {split}: label {wrong[0]!r} in {len(wrong)} rows; want one of"
                       f" {', '.join(names)} (0 to {len(names) - 1})")
    return np.array(values, dtype=np.int64)


def dataset(name, raw, tokenizer, max_length):
    """A Dataset from the raw splits; checks columns, rows, texts and labels. Raises BadInput."""
    task, label = TASKS[name], "answers" if name == "squad" else "label"
    needed = ("train", *task.dev)
    for split in (*needed, *(split for split in raw if split.startswith("test"))):
        have, want = raw[split].column_names, (*task.columns, *[label] * (split in needed))
        if missing := [column for column in want if column not in have]:
            raise BadInput(f"task {name}, {split}: no column {missing[0]!r}; it has "
                           f"{', '.join(have)}; want {', '.join(want)}")
        if len(raw[split]) == 0:
            raise BadInput(f"task {name}, {split}: no rows; want at least one")
    columns = texts_of(name, raw)
    for split in raw:
        for column in {*columns, label} & set(raw[split].column_names):
            lacking = raw[split].with_format("arrow")[:][column].null_count
            if lacking:
                raise BadInput(f"task {name}, {split}: {lacking} rows without {column}; want one "
                               "in every row")
    if name == "squad":
        return Dataset(task, raw, columns, task.metrics, {}, None, tokenizer, max_length)
    names = classes_of(raw["train"])
    if names and len(names) < 2:
        raise BadInput(f"task {name}: every label is {names[0]!r}; want at least two classes")
    labels = {split: labels_of(name, split, raw[split], names) for split in raw
              if "label" in raw[split].column_names}
    metrics = task.metrics if names or name != "own" else ("pearson", "spearman")
    return Dataset(task, raw, columns, metrics, {s: x for s, x in labels.items() if x is not None},
                   names, tokenizer, max_length)


def write_submission(path, predicted, names):
    """A file for GLUE's server: a line a row; entailment by name, other classes by number."""
    if names is None:           # STS-B: a similarity from 0 to 5
        texts = [f"{value:.3f}" for value in predicted.clip(0, 5)]
    else:
        texts = [names[i] if "entailment" in names else str(i) for i in predicted]
    lines = (f"{i}\t{text}\n" for i, text in enumerate(texts))
    write_text(path, "index\tprediction\n" + "".join(lines))
