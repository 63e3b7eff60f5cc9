"""The tasks: GLUE, SQuAD, the toy, and a folder of your own."""
import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np

from data import custom
from data.errors import UserError, short_message
from data.files import write_text
from data.hub import check_disk, silenced
from data.metrics import METRICS
from data.squad import tokenize_squad
from data.tokenized import concatenate, tokenize

TOY = Path(__file__).parent / "toy"       # model, tokenizer and splits in one folder
# from where on a run says that something is likely a mistake; ours
MAX_UNKNOWN = 0.05                        # share of [UNK] among the tokens
MAX_CUT = 0.05                            # share of rows that are longer than max_length
MIN_REPEATS = 20                          # rows for each different value of a text column
MAX_PARTS = 50                            # of a dev set
MAX_NUMBERS = 10                          # that are names of classes
QUOTED = re.compile('"[^"]*(""[^"]*)+"')  # a text with quotes, as a .csv writes it
MAX_VALUE = 100                           # of a regression
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
    """Return which defaults a task has. Task custom: by the number of its training rows."""
    if name != "custom":
        return TASKS[name].size
    return "small" if custom.count_rows(Path(folder)) <= SMALL_TASK_MAX_ROWS else "large"


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
    unread: list = ()         # columns that are neither text nor label

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
        """A hash of the tokens, labels and parts of the training and dev set, and of the names of
        the classes, 16 characters.
        """
        content = hashlib.sha256(repr(self.names).encode())
        for split in (self.train, self.dev):
            for name in ("input_ids", "offsets", "labels", "subset"):
                content.update(np.ascontiguousarray(getattr(split, name)).tobytes())
        return content.hexdigest()[:16]

    def describe(self):
        """Return what was understood of the data, as three to five lines of the printed log."""
        if self.is_span:
            kind = "a span of the second text"
        elif self.names is None:
            values = self.labels["train"]
            kind = (f"regression, {len(np.unique(values)):,} different values from "
                    f"{values.min():g} to {values.max():g}")
        else:
            counts = np.bincount(self.labels["train"], minlength=len(self.names))
            shown = [f"{name} {n:,}" for name, n in zip(self.names, counts.tolist())]
            kind = f"{len(self.names)} classes: {custom.few(shown)}"
        unread = f"; not read: {', '.join(self.unread)}" if self.unread else ""
        rows = [f"{split} {len(table):,}" for split, table in self.raw.items()]
        lines = [f"texts      {', '.join(self.columns)}{unread}",
                 f"labels     {kind}",
                 f"rows       {', '.join(rows)}"]
        if self.names:
            lines.append(self.describe_majority())
        return lines + [f"note       {note}" for note in self.likely_mistakes()]

    def likely_mistakes(self):
        """Yield what is likely a mistake in the data, one line each."""
        yield from self.odd_rows()
        if self.task is TASKS["custom"]:
            yield from self.odd_columns()
            yield from self.odd_labels()

    def odd_rows(self):
        """Yield whether there are texts that are empty, of another language, or long."""
        for kind, split in ("training", self.train), ("dev", self.dev):
            lengths = np.diff(split.offsets)
            empty = int((lengths <= len(self.columns) + 1).sum())
            unknown = np.mean(split.input_ids == self.tokenizer.token_to_id("[UNK]"))
            if empty or unknown > MAX_UNKNOWN:
                yield (f"{kind} rows without any text: {empty:,}; tokens that the tokenizer does "
                       f"not know: {unknown:.0%}")
            cut = np.mean(lengths >= self.max_length)
            if cut > MAX_CUT and not self.is_span:
                yield (f"{cut:.0%} of the {kind} rows have {self.max_length} tokens or more and "
                       "lose their ends. Try a larger --max_length, if the model has positions")

    def odd_columns(self):
        """Yield whether a column is likely no text, has another format, or names no parts."""
        for name in self.columns:
            values = self.raw["train"].unique(name)
            if len(self.columns) == 2 and len(values) * MIN_REPEATS <= len(self.raw["train"]):
                yield (f"the text column {name} has {len(values)} different values only. Remove it "
                       "if it is no text")
            if any(map(QUOTED.fullmatch, values)):
                yield (f"some texts of {name} have quotes as in a .csv. If the file is a .tsv, "
                       "save it as .csv")
        parts = len(np.unique(self.dev.subset))
        if parts > MAX_PARTS:
            yield f"the dev set has {parts} parts. Rename the column part if it names no parts"

    def odd_labels(self):
        """Yield whether classes are likely values or values classes, or one class has two names."""
        numbers = [name for name in self.names or () if custom.as_number(name) is not None]
        others = [name for name in self.names or () if name not in numbers]
        if len(numbers) > MAX_NUMBERS:
            yield (f"{len(numbers)} classes are numbers. For a regression write all labels with a "
                   f"point, such as {numbers[0]}.0")
        # only numbers would be a regression, or other classes
        is_odd = any("." in name for name in numbers) or {
            name.lower() for name in others} <= custom.NO_TEXT
        if numbers and others and is_odd:
            yield (f"some classes are numbers ({numbers[0]}), others are not ({others[0]}). If "
                   "labels are missing remove their rows; for a regression write all as numbers")
        lower = [name.lower() for name in self.names or ()]
        alike = [name for name in self.names or () if lower.count(name.lower()) > 1]
        if alike:
            yield f"these classes differ in upper and lower case only: {', '.join(alike)}"
        if self.names is None:
            values = self.labels["train"]
            if np.abs(values).max() > MAX_VALUE:
                yield "a regression learns large values badly. Scale the labels, such as to 0 to 5"
            if (values == values.round()).all():
                yield "the labels are whole numbers. For classes write them as 1, not as 1.0"

    def describe_majority(self):
        """Return what the most frequent class scores on the dev set: a model has to do better."""
        majority = np.bincount(self.labels["train"]).argmax()
        answers = np.full(len(self.dev), majority)
        scores = [f"{name} {METRICS[name](answers, self.dev.labels):.4f}" for name in self.metrics]
        return f"majority   always {self.names[majority]}: {', '.join(scores)}"

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


def load_task(name, tokenizer, max_length, folder="", trained=()):
    """Load a task by name: from a folder (the toy, your own), the hub, or its cache.

    trained: the text columns that a model was trained on. Returns a Dataset. Raises UserError.
    """
    task = TASKS[name]
    if name == "toy":
        folder = TOY
    if folder:
        raw, columns, labels, names, unread = custom.read_folder(Path(folder), trained)
        metrics = task.metrics if names else ("pearson", "spearman")
        data = make_dataset(name, raw, columns, metrics, labels, names, tokenizer, max_length)
        data.unread = unread
        return data
    subset = [name] if task.repository == "nyu-mll/glue" else []
    try:
        raw = silenced(datasets.load_dataset, task.repository, *subset)
    except Exception as error:  # many kinds, of several network libraries; none is swallowed
        check_disk(error)
        raise UserError(f"Could not download the dataset {task.repository} ({name}): "
                        f"{short_message(error)}. Check the network; a dataset that was downloaded "
                        "once is read from the cache") from error
    return build_dataset(name, raw, tokenizer, max_length)


# ---- Columns and labels of the hub's data sets ---------------------------------------------------


def encode_labels(name, split, raw, names):
    """Return the labels of a split, (n,): class numbers, or values; None if GLUE keeps them secret.
    """
    values = raw["label"][:]
    if split.startswith("test") and set(values) == {-1}:
        return None
    if names is None:
        return np.array(values, dtype=np.float32)
    wrong = [value for value in values if not 0 <= value < len(names)]
    if wrong:
        raise UserError(f"task {name}, {split}: label must be one of {', '.join(names)} (0 to "
                        f"{len(names) - 1}), got {wrong[0]!r} in {len(wrong)} rows")
    return np.array(values, dtype=np.int64)


def check_columns(name, raw):
    """Raise UserError for a missing column or value, or a split without rows."""
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
            missing = raw[split].with_format("arrow")[:][column].null_count
            if missing:
                raise UserError(f"task {name}, {split}: {missing} rows without {column}, but every "
                                "row must have one")
        if len(raw[split]) == 0:
            raise UserError(f"task {name}, {split}: there are no rows, but there must be at least "
                            "one")


def build_dataset(name, raw, tokenizer, max_length):
    """Make a Dataset of a hub's task from its raw splits. Raises UserError."""
    task = TASKS[name]
    check_columns(name, raw)
    if name == "squad":
        names, labels = None, {}
    else:
        names = getattr(raw["train"].features["label"], "names", None)
        labels = {split: encode_labels(name, split, raw[split], names)
                  for split in raw if "label" in raw[split].column_names}
        labels = {split: values for split, values in labels.items() if values is not None}
    return make_dataset(name, raw, task.columns, task.metrics, labels, names, tokenizer, max_length)


def make_dataset(name, raw, columns, metrics, labels, names, tokenizer, max_length):
    """Return a Dataset. Raises UserError for a part with the name of a metric."""
    for split in raw:
        parts = set(raw[split].unique("part")) if "part" in raw[split].column_names else set()
        for part in sorted(parts & set(metrics)):
            raise UserError(f"task {name}, {split}: part must not have the name of a score, got "
                            f"{part!r}. Try to rename it")
    return Dataset(TASKS[name], raw, columns, metrics, labels, names, tokenizer, max_length)


def write_submission(path, predicted, names):
    """Write a file for GLUE's server: entailment by name, other classes by number, or a value."""
    if names is None:           # STS-B: a similarity from 0 to 5
        texts = [f"{value:.3f}" for value in predicted.clip(0, 5)]
    else:
        texts = [names[i] if "entailment" in names else str(i) for i in predicted]
    lines = (f"{i}\t{text}\n" for i, text in enumerate(texts))
    write_text(path, "index\tprediction\n" + "".join(lines))
