"""Command line: every field of a dataclass of settings is a flag, an unknown flag is an error.

RunConfig holds the settings of any run, whatever the method. cofi.py and sparsebert.py add theirs.
"""
import argparse
import difflib
import math
import re
from dataclasses import asdict, dataclass, field, fields, replace

import torch

from data.errors import UserError
from data.tasks import SMALL_TASK_MAX_ROWS, TASKS, TOY, task_size

# ranges of settings, both ends included
LEARNING_RATE = (1e-9, 1)
EPOCHS = (0.001, 1e4)
SHARE = (0, 0.9)
WEIGHT = (0, 1000)


def flag(default, help, **allowed):
    """Declare a setting: its default, its help, and what is allowed.

    allowed: range=(low, high), both included; choices=(...), one of them; or some_of=(...), one or
    more of them, separated by commas. is_share=True: these settings may add up to at most 1.
    is_rising=True: a number, or several separated by commas, each larger than the one before.
    """
    return field(default=default, metadata={"help": help, **allowed})


def check_allowed(cfg):
    """Raise UserError for the first setting that is not allowed."""
    for f in fields(cfg):
        value = getattr(cfg, f.name)
        if "choices" in f.metadata and value not in f.metadata["choices"]:
            raise UserError(f"--{f.name} must be one of {', '.join(f.metadata['choices'])}, got "
                            f"{value}")
        some_of = f.metadata.get("some_of")
        if some_of and sorted(value.split(",")) != sorted(set(value.split(",")) & set(some_of)):
            raise UserError(f"--{f.name} must be some of {','.join(some_of)}, separated by commas, "
                            f"got {value}")
        values = [value]
        if "is_rising" in f.metadata:
            values = split_numbers(f.name, value)
            if values != sorted(set(values)):
                rising = ",".join(f"{x:g}" for x in sorted(set(values)))
                raise UserError(f"--{f.name} must rise from one to the next, got {value}. Try "
                                f"{rising}")
        if "range" in f.metadata:
            for one in values:
                check_in_range(f.name, one, *f.metadata["range"])
    shares = [f.name for f in fields(cfg) if "is_share" in f.metadata]
    values = [getattr(cfg, name) for name in shares]
    if sum(values) > 1:
        raise UserError(f"{' plus '.join(f'--{name}' for name in shares)} must be at most 1, got "
                        f"{' and '.join(f'{value:g}' for value in values)}. Try smaller shares")


def check_in_range(name, value, low, high):
    """Raise UserError unless low <= value <= high; NaN is outside."""
    if low <= value <= high:
        return
    hint = ""
    if name == "sparsity" and 2 <= value <= 100 * high:
        hint = f" (did you mean {value / 100:g}?)"
    low, high, value = (f"{x:g}" if isinstance(x, float) else str(x)[:40]
                        for x in (low, high, value))
    raise UserError(f"--{name} must be between {low} and {high}, got {value}{hint}")


def split_numbers(name, value):
    """Return a setting of a number, or of several separated by commas, as a list of numbers."""
    if re.fullmatch(r"0?,\d+(,0?,\d+)*", str(value)):
        meant = ",".join(f"0.{digits}" for digits in value.split(",")[1::2])
        raise UserError(f"--{name} must be written with a point, got {value}. Try {meant}")
    try:
        return [float(x) for x in str(value).split(",")]
    except ValueError as error:
        raise UserError(f"--{name} must be a number such as 0.95, or several separated by commas, "
                        f"got {value}") from error


@dataclass
class RunConfig:
    """Settings that every run has. Defaults that depend on the task are in TASK_DEFAULTS."""
    task: str = flag("toy", "Toy, a task of GLUE, SQuAD, or custom with --data",
                     choices=tuple(TASKS))
    data: str = flag("", "Folder with your own train and validation files (.tsv, .csv or .jsonl): "
                     "a column label, and one or two columns of text. Not text: id, idx, part, "
                     "columns that end in _id, columns of numbers. Labels are classes, or a "
                     "regression: numbers of which one is not whole, or all with a point (1.0)")
    model: str = flag("google-bert/bert-base-uncased", "Pre-trained BERT: hub name or folder")
    teacher: str = flag("", "Fine-tuned BERT: hub name or folder. Without it one is trained")
    teacher_epochs: float = flag(None, "Epochs of teacher training (ours: 5 on small sets, 3 on "
                                 "large ones)", range=EPOCHS)
    teacher_lr: float = flag(3e-5, "Learning rate of the teacher (ours)", range=LEARNING_RATE)
    batch_size: int = flag(32, "Examples per step (paper: 32)", range=(1, 65536))
    max_length: int = flag(128, "Maximum number of tokens of an example (paper: 128, SQuAD 384)",
                           range=(8, 65536))
    seed: int = flag(57, "Seed of all random numbers (authors' code: 57)", range=(0, 2**31))
    out: str = flag("out", "Folder of runs and teachers")
    device: str = flag("auto", "Device; auto takes the best available",
                       choices=("auto", "cpu", "cuda", "mps"))
    bf16: bool = flag(True, "Use bfloat16 autocast where the hardware is faster with it")
    threads: int = flag(0, "CPU threads; 0 leaves the choice to PyTorch. The steps of the toy are "
                        "too short to share", range=(0, 1024))
    max_steps: int = flag(0, "Maximum number of steps of each stage, 0: no limit. The schedules "
                          "shrink with it", range=(0, 2**31))
    save_every: float = flag(5.0, "Minutes between two checkpoints of an unfinished run; the same "
                             "command resumes from the last one", range=(0, 1e6))
    overwrite: bool = flag(False, "Start over and replace an earlier run. A teacher that was "
                           "trained with the same settings is kept")

    # by size of the task; SQuAD's batch and length are the paper's, the others are ours
    TASK_DEFAULTS = {
        "small": {"teacher_epochs": 5},
        "large": {"teacher_epochs": 3},
        "squad": {"teacher_epochs": 2, "batch_size": 16, "max_length": 384},
        "toy": {"model": str(TOY), "teacher_epochs": 5, "teacher_lr": 5e-4, "threads": 1}}

    @classmethod
    def for_task(cls, task, data=""):
        """Return the settings of a task where the user sets nothing. data: the folder of custom."""
        size, defaults = task_size(task, data), {}
        for kind in reversed(cls.__mro__):          # RunConfig first, its subclass after it
            defaults |= vars(kind).get("TASK_DEFAULTS", {}).get(size, {})
        return cls(task=task, data=data, **defaults)

    def sparsities(self):
        """Return --sparsity as a list of numbers, each once."""
        return list(dict.fromkeys(split_numbers("sparsity", self.sparsity)))

    def ramp(self):
        """Return where t starts, and where it ends: at the last sparsity."""
        before, last = [0.0, *self.sparsities()][-2:]
        return before, last

    def num_runs(self):
        """Return how often the stages after that of the teacher are run."""
        return len(self.sparsities())

    def num_steps(self, stage, num_examples):
        """Return the number of optimizer steps of a stage: teacher, prune or finetune."""
        epochs = getattr(self, f"{stage}_epochs")
        # In floating point 1.1 epochs of 180 batches are a little more than 198 steps.
        steps = math.ceil(epochs * math.ceil(num_examples / self.batch_size) - 1e-6)
        return min(steps, self.max_steps or steps)

    def check(self):
        """Raise UserError for the first setting that is not allowed."""
        check_allowed(self)
        available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not available.get(self.device, True):
            raise UserError(f"--device must be available here, got {self.device}. Try cpu or auto")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are a UserError, with the flag that was likely meant."""

    def error(self, message):
        wrong = re.fullmatch(r"argument (--\w+): invalid (int|float) value: (.*)", message, re.S)
        if wrong:
            name, kind, value = wrong.groups()
            needed = {"int": "a whole number", "float": "a number such as 0.5"}[kind]
            value = value.strip("'")[:40]
            raise UserError(f"{name} must be {needed}, got {value}")
        hint = f"python {self.prog} --help"
        if message.startswith("unrecognized"):
            word = message.partition(": ")[2].partition(" ")[0]
            near = difflib.get_close_matches(word, self._option_string_actions, 1, 0.75)
            if near:
                hint = near[0]
            elif word in ("--evaluate", "--predict", "--export", "--submit", "--compare"):
                hint = f"python cofi.py {word}"
            elif word.startswith("-"):
                hint = f"python {self.prog} --help, or a space before a text that begins with -"
        raise UserError(f"{message[:200]}. Try {hint}")


def plain(word):
    """Return a word in lower case, without spaces, hyphens and underscores."""
    return re.sub("[ _-]", "", word.lower())


def number_or_text(text):
    """Parse one number as such. Leave several as they are, for split_numbers."""
    try:
        return float(text)
    except ValueError:
        return text


def default_text(defaults, name):
    """Return the default of a setting as text, and in brackets what it is on other tasks: for
    prune_epochs of cofi.py "20 (small 100, toy 7)". defaults: {size of a task: settings}.
    """
    values = {size: getattr(cfg, name) for size, cfg in defaults.items()}
    texts = {size: f"{value:g}" if isinstance(value, float) else str(value)
             for size, value in values.items()}
    default = texts["large"]
    others = [f"{size} {text}" for size, text in sorted(texts.items()) if text != default]
    return f"{default} ({', '.join(others)})" if others else default


def make_parser(kind, doc, commands={}):
    """Build the command line of a class of settings.

    doc: the docstring of the file, whose first paragraph is shown; commands: {flag: (metavar,
    help)}, of which at most one may be given.
    """
    # one task for each set of defaults; of custom nothing is known without its data
    defaults = {task.size: replace(kind.for_task(name), task=kind.task)
                for name, task in TASKS.items() if name != "custom"}
    small = ", ".join(name for name, task in TASKS.items() if task.size == "small")
    parser = Parser(description=(doc or "").split("\n\n")[0], allow_abbrev=False,
                    epilog=f"Defaults in brackets hold for small sets ({small} up to "
                           f"{SMALL_TASK_MAX_ROWS:,} rows), for squad and for the toy.")
    for f in fields(kind):
        notes = [" ".join(f.metadata["choices"])] if "choices" in f.metadata else []
        default = default_text(defaults, f.name)
        if default:
            notes.append(f"default {default}")
        help = f.metadata["help"].replace("%", "%%")
        if notes:
            help += f" [{'; '.join(notes)}]"
        if f.type is bool:
            parser.add_argument(f"--{f.name}", help=help, action=argparse.BooleanOptionalAction)
        else:
            convert = number_or_text if "is_rising" in f.metadata else f.type
            parser.add_argument(f"--{f.name}", help=help, type=convert,
                                metavar=f.type.__name__.upper())
    if commands:                        # argparse does not print the help of an empty group
        group = parser.add_mutually_exclusive_group()
        for name, (metavar, help) in commands.items():
            nargs = "+" if isinstance(metavar, tuple) else None
            group.add_argument(f"--{name}", metavar=metavar, help=help, nargs=nargs)
    return parser


def parse_settings(kind, given):
    """Make checked settings of a class from the flags that were given. Raises UserError."""
    for name, value in given.items():
        if value == "":
            raise UserError(f"--{name} must not be empty. Try to leave it out")
    for f in fields(kind):              # MRPC, sst-2, prune-first, "head, int" can be understood
        allowed = f.metadata.get("choices", f.metadata.get("some_of"))
        if f.name in given and allowed:
            names = {plain(name): name for name in allowed}
            words = given[f.name].split(",")
            given[f.name] = ",".join(names.get(plain(word), word.strip()) for word in words)
    folder = given.get("data", "")
    task = given.get("task", "custom" if folder else kind.task)
    if task not in TASKS:
        raise UserError(f"--task must be one of {', '.join(TASKS)}, got {task}")
    if (task == "custom") != bool(folder):
        raise UserError(f"--task custom and --data FOLDER must be given together, got --task "
                        f"{task} --data {folder or '(nothing)'}. Try --data FOLDER alone")
    defaults = asdict(kind.for_task(task, folder))
    for f in fields(kind):              # one order, so that equal runs have one folder
        some_of = f.metadata.get("some_of", ())
        words = given[f.name].split(",") if some_of and f.name in given else []
        if words and sorted(words) == sorted(set(words) & set(some_of)):
            given[f.name] = ",".join(word for word in some_of if word in words)
        if "is_rising" in f.metadata and f.name in given:
            values = split_numbers(f.name, given[f.name])
            given[f.name] = ",".join(map(str, values)) if values[1:] else values[0]
    cfg = kind(**defaults | {"task": task} | given)
    cfg.check()
    return cfg
