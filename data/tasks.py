"""The tasks: GLUE, SQuAD, the toy, and a folder of your own."""
import csv
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer

from data.errors import UserError, short_message
from data.files import write_text
from data.hub import fetch, silenced
from data.squad import tokenize_squad
from data.tokenized import concatenate, tokenize

TOY = Path(__file__).parent / "toy"       # model, tokenizer and splits in one folder
SMALL_TASK_MAX_ROWS = 10_000              # GLUE's small sets have at most 8,551 training rows
PAIR = ("sentence1", "sentence2")


@dataclass(frozen=True)
class Task:
    """What has to be known of a task before its data are read."""
    columns: tuple            # the one or two text columns; (): all text columns beside the label
    metrics: tuple            # names in METRICS; the first is "the score"
    size: str                 # which defaults it has: small, large, squad or toy
    repository: str = "nyu-mll/glue"      # on the hub; "" for a folder
    dev: dict = field(default_factory=lambda: {"validation": ""})   # {split: name of the subset}
    tests: dict = field(default_factory=dict)       # {split: the file that GLUE's server takes}


def glue_task(columns, metrics, size, file):
    return Task(columns, metrics, size, tests={"test": file})


TASKS = {
    "toy": Task(PAIR, ("accuracy",), "toy", ""),
    "cola": glue_task(("sentence",), ("matthews",), "small", "CoLA"),
    "sst2": glue_task(("sentence",), ("accuracy",), "large", "SST-2"),
    "mrpc": glue_task(PAIR, ("accuracy", "f1"), "small", "MRPC"),
    "stsb": glue_task(PAIR, ("pearson", "spearman"), "small", "STS-B"),
    "qqp": glue_task(("question1", "question2"), ("accuracy", "f1"), "large", "QQP"),
    "mnli": Task(("premise", "hypothesis"), ("accuracy",), "large",
                 dev={"validation_matched": "matched", "validation_mismatched": "mismatched"},
                 tests={"test_matched": "MNLI-m", "test_mismatched": "MNLI-mm"}),
    "qnli": glue_task(("question", "sentence"), ("accuracy",), "large", "QNLI"),
    "rte": glue_task(PAIR, ("accuracy",), "small", "RTE"),
    "squad": Task(("question", "context"), ("squad_f1", "exact_match"), "squad",
                  "rajpurkar/squad"),
    # pearson and spearman for a regression; large above SMALL_TASK_MAX_ROWS
    "custom": Task((), ("accuracy",), "small", ""),
}


def task_size(name, folder=""):
    """Return which defaults a task has. Task custom: by the number of lines of its train file."""
    if name != "custom":
        return TASKS[name].size
    with find_split_files(Path(folder))["train"].open("rb") as file:
        return "small" if sum(1 for _ in file) <= SMALL_TASK_MAX_ROWS else "large"


@dataclass
class Dataset:
    """One task. Each split is tokenized when it is first asked for."""
    task: Task
    raw: dict                 # {split: datasets.Dataset}
    columns: tuple            # the text columns
    metrics: tuple
    labels: dict              # {split: array}, without the splits whose labels are secret
    names: list | None        # class names; None for regression and SQuAD
    tokenizer: object
    max_length: int

    @property
    def is_span(self):
        """Whether an answer is a span of the context, not a class or a value."""
        return self.task.size == "squad"

    @cached_property
    def train(self):
        return self.tokenized("train")

    @cached_property
    def dev(self):
        splits = self.task.dev
        if len(splits) == 1:
            return self.tokenized(*splits)
        return concatenate([self.tokenized(split, subset) for split, subset in splits.items()])

    @cached_property
    def test(self):
        """The test set, if its labels are known. Nothing is chosen by it."""
        return self.tokenized("test") if "test" in self.labels else None

    @cached_property
    def digest(self):
        """A hash of the tokens and labels of the training and dev set, 16 characters."""
        content = hashlib.sha256()
        for split in (self.train, self.dev):
            for name in ("input_ids", "offsets", "labels"):
                content.update(np.ascontiguousarray(getattr(split, name)).tobytes())
        return content.hexdigest()[:16]

    def tokenized(self, split, subset=""):
        """Return a split as a TokenizedDataset. subset: a name for all of its examples."""
        raw = self.raw[split]
        if self.is_span:
            return tokenize_squad(raw, self.tokenizer, self.max_length)
        unknown = np.zeros(len(raw), np.int64 if self.names else np.float32)
        subsets = [subset] * len(raw) if subset else ()
        if "part" in raw.column_names:
            subsets = raw["part"][:]
        return tokenize(raw, self.columns, self.labels.get(split, unknown), self.tokenizer,
                        self.max_length, subsets)


def load_tokenizer(model, vocab_size=None):
    """Load the tokenizer of a model: tokenizer.json, or the vocab.txt of the oldest checkpoints.

    vocab_size: the number of embeddings. Raises UserError.
    """
    path = fetch(model, "tokenizer.json", optional=True)
    if path is None:
        path = fetch(model, "tokenizer_config.json", optional=True)
        settings = json.loads(path.read_text()) if path else {}
        vocab = str(fetch(model, "vocab.txt"))
        lowercase = settings.get("do_lower_case", True)
        return BertWordPieceTokenizer(vocab, lowercase=lowercase)._tokenizer
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no narrower class
        raise UserError(f"{path} is not a tokenizer ({short_message(error)}). Try to download or "
                        "save it again") from error
    words = max(tokenizer.get_vocab().values()) + 1
    if vocab_size and words > vocab_size:
        raise UserError(f"{path} must have at most {vocab_size} words, one for each embedding, got "
                        f"{words}. Try the tokenizer and the weights of one model")
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def load_task(name, tokenizer, max_length, folder=""):
    """Load a task by name: from a folder (the toy, your own), the hub, or its cache.

    Returns a Dataset. Raises UserError.
    """
    task = TASKS[name]
    if name == "toy":
        folder = TOY
    if folder:
        return build_dataset(name, read_folder(Path(folder)), tokenizer, max_length)
    subset = [name] if task.repository == "nyu-mll/glue" else []
    try:
        raw = silenced(datasets.load_dataset, task.repository, *subset)
    except Exception as error:  # many kinds, of several network libraries; none is swallowed
        raise UserError(f"Could not download the dataset {task.repository} ({name}): "
                        f"{short_message(error)}. Check the network; a dataset that was downloaded "
                        "once is read from the cache") from error
    return build_dataset(name, raw, tokenizer, max_length)


# ---- A folder of your own ------------------------------------------------------------------------


def find_split_files(folder):
    """Return {split: file} of a folder: train, validation and perhaps test."""
    if not folder.is_dir():
        raise UserError(f"--data must be a folder with train.tsv and validation.tsv (or .csv, or "
                        f".jsonl), got {folder}: no such folder")
    found = {}
    for split in ("train", "validation", "test"):
        files = [folder / f"{split}.{kind}" for kind in ("tsv", "csv", "jsonl")]
        files = [path for path in files if path.exists()]
        if len(files) == 1:
            found[split] = files[0]
        elif files or split != "test":
            got = " and ".join(path.name for path in files) or f"no {split}.tsv, .csv or .jsonl"
            raise UserError(f"--data must have one file for each split, got {got} in {folder}")
    return found


def csv_columns(path):
    """Return the column names of a .tsv or .csv and the keywords to read it.

    In a .tsv, quotes are characters like others. Raises UserError where a line is longer or shorter
    than the first.
    """
    if path.suffix == ".tsv":
        separator, quoting = "\t", csv.QUOTE_NONE
    else:
        separator, quoting = ",", csv.QUOTE_MINIMAL
    with path.open(newline="", encoding="utf-8") as file:
        lines = csv.reader(file, delimiter=separator, quoting=quoting)
        names = next(lines, [])
        for line in lines:
            if len(line) not in (0, len(names)):
                raise UserError(f"{path}, line {lines.line_num} must have {len(names)} columns as "
                                f"the first line, got {len(line)}")
    return names, {"sep": separator, "quoting": quoting, "keep_default_na": False}


def read_folder(folder):
    """Return {split: datasets.Dataset} of your own files, checked line by line."""
    raw = {}
    for split, path in find_split_files(folder).items():
        source = {"data_files": {split: str(path)}, "split": split}
        try:
            if path.suffix == ".jsonl":
                raw[split] = silenced(datasets.load_dataset, "json", **source)
            else:
                names, form = csv_columns(path)
                features = datasets.Features({name: datasets.Value("string") for name in names})
                raw[split] = silenced(datasets.load_dataset, "csv", features=features, **form,
                                      **source)
        except UserError:
            raise
        except Exception as error:  # of csv, pandas, pyarrow, and others beneath
            reason = short_message(error.__cause__ or error)
            raise UserError(f"{path} cannot be read ({reason}). It must have a line of column "
                            "names, then one line for each row") from error
    return raw


# ---- Columns and labels --------------------------------------------------------------------------


def text_columns(name, raw):
    """Return the text columns of a task. Task custom: all strings but label, part, id and idx."""
    if TASKS[name].columns:
        return TASKS[name].columns
    features = raw["train"].features
    texts = tuple(column for column in features if column not in ("label", "part", "id", "idx")
                  and getattr(features[column], "dtype", "") in ("string", "large_string"))
    if not 1 <= len(texts) <= 2:
        raise UserError(f"--data must have one or two text columns beside label, got {len(texts)} "
                        f"({', '.join(texts)}); id, idx and part are not read as text")
    return texts


def class_names(raw):
    """Return the class names of the training rows, or None: all labels are fractions, a regression.
    """
    known = getattr(raw.features["label"], "names", None)
    if known or raw.features["label"].dtype.startswith("float"):
        return known
    seen = {str(value) for value in raw["label"]}
    try:
        numbers = {value: float(value) for value in seen}
    except ValueError:
        return sorted(seen)
    if all("." in value for value in seen):
        return None
    return sorted(seen, key=numbers.get)


def encode_labels(name, split, raw, names):
    """Return the labels of a split, (n,): class numbers, or values; None if GLUE keeps them secret.
    """
    values = raw["label"][:]
    if split.startswith("test") and set(values) == {-1}:
        return None
    if names is None:
        try:
            return np.array(values, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise UserError(f"task {name}, {split}: every label must be a number such as 2.5 in "
                            f"every split ({error})") from error
    if isinstance(values[0], str) or not hasattr(raw.features["label"], "names"):
        class_of = {value: i for i, value in enumerate(names)}
        values = [class_of.get(str(value), str(value)) for value in values]
    wrong = [v for v in values if not isinstance(v, int) or not 0 <= v < len(names)]
    if wrong:
        raise UserError(f"task {name}, {split}: label must be one of {', '.join(names)} (0 to "
                        f"{len(names) - 1}), got {wrong[0]!r} in {len(wrong)} rows")
    return np.array(values, dtype=np.int64)


def check_columns(name, raw):
    """Raise UserError for a missing column or a split without rows."""
    task = TASKS[name]
    label = "answers" if name == "squad" else "label"
    with_labels = ("train", *task.dev)
    tests = [split for split in raw if split.startswith("test")]
    for split in (*with_labels, *tests):
        got = raw[split].column_names
        needed = (*task.columns, label) if split in with_labels else task.columns
        for column in needed:
            if column not in got:
                raise UserError(f"task {name}, {split}: there is no column {column!r}; its columns "
                                f"are {', '.join(got)} and must include {', '.join(needed)}")
        if len(raw[split]) == 0:
            raise UserError(f"task {name}, {split}: there are no rows, but there must be at least "
                            "one")


def check_missing(name, raw, columns):
    """Raise UserError where a row lacks a value in one of these columns."""
    for split in raw:
        for column in sorted({*columns} & {*raw[split].column_names}):
            missing = raw[split].with_format("arrow")[:][column].null_count
            if missing:
                raise UserError(f"task {name}, {split}: {missing} rows without {column}, but every "
                                "row must have one")


def build_dataset(name, raw, tokenizer, max_length):
    """Make a Dataset from the raw splits. Checks columns, rows, texts and labels: UserError."""
    task = TASKS[name]
    check_columns(name, raw)
    columns = text_columns(name, raw)
    check_missing(name, raw, (*columns, "answers" if name == "squad" else "label"))
    if name == "squad":
        return Dataset(task, raw, columns, task.metrics, {}, None, tokenizer, max_length)
    names = class_names(raw["train"])
    if names and len(names) < 2:
        raise UserError(f"task {name}: there must be at least two classes, but every label is "
                        f"{names[0]!r}")
    labels = {}
    for split in raw:
        if "label" in raw[split].column_names:
            values = encode_labels(name, split, raw[split], names)
            if values is not None:
                labels[split] = values
    metrics = task.metrics
    if name == "custom" and names is None:
        metrics = ("pearson", "spearman")
    return Dataset(task, raw, columns, metrics, labels, names, tokenizer, max_length)


def write_submission(path, predicted, names):
    """Write a file for GLUE's server: entailment by name, other classes by number, or a value."""
    if names is None:           # STS-B: a similarity from 0 to 5
        texts = [f"{value:.3f}" for value in predicted.clip(0, 5)]
    else:
        texts = [names[i] if "entailment" in names else str(i) for i in predicted]
    lines = (f"{i}\t{text}\n" for i, text in enumerate(texts))
    write_text(path, "index\tprediction\n" + "".join(lines))
