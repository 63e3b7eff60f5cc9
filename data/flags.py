"""Flags from a dataclass of settings: every field is one, and an unknown one is an error. And Run:
the settings of any run, whatever is done in it.
"""
import argparse
import sys
from dataclasses import asdict, dataclass, field, fields

from .hub import BadInput
from .journal import Interrupted
from .tasks import TASKS, TOY, task_size


def setting(default, text, **allowed):
    """A field of a dataclass of settings: default, help, and what is allowed: between=(low, high),
    among=(...).
    """
    return field(default=default, metadata={"help": text, **allowed})


def check_range(cfg):
    """Raises BadInput for the first setting that is not allowed."""
    for f in fields(cfg):
        value, hint = getattr(cfg, f.name), ""
        if "among" in f.metadata and value not in f.metadata["among"]:
            raise BadInput(f"--{f.name} {value}: want one of {', '.join(f.metadata['among'])}")
        if "between" not in f.metadata:
            continue
        low, high = f.metadata["between"]
        if not low <= value <= high:
            if f.name == "sparsity" and low <= value / 100 <= high:
                hint = f"; did you mean {value / 100:g}?"
            raise BadInput(f"--{f.name} {value:g}: want a number from {low:g} to {high:g}{hint}")


@dataclass
class Run:
    """What a run needs whatever the method: every field is a flag.

    None: it depends on the task, see BY_SIZE, which also changes other defaults for the toy.
    """
    task: str = setting("toy", "the toy, a task of GLUE, SQuAD, or own, with --data",
                        among=tuple(TASKS))
    data: str = setting("", "folder with your own train and validation, as .tsv, .csv or .jsonl: "
                        "label, and one or two columns of text")
    model: str = setting("google-bert/bert-base-uncased", "pre-trained BERT, hub name or folder")
    teacher: str = setting("", "a fine-tuned BERT, hub name or folder; else one is trained")
    teacher_epochs: float = setting(None, "epochs of the teacher; ours: 5 small sets, 3 large",
                                    between=(0.001, 1e4))
    teacher_lr: float = setting(3e-5, "learning rate of the teacher; ours", between=(1e-9, 1))
    batch_size: int = setting(32, "rows; paper: 32", between=(1, 65536))
    max_length: int = setting(128, "tokens of a row; paper: 128, SQuAD 384", between=(8, 65536))
    seed: int = setting(57, "of all that is random; authors' code: 57", between=(0, 2**31))
    out: str = setting("out", "folder of runs and teachers")
    device: str = setting("auto", "auto: the best there is", among=("auto", "cpu", "cuda", "mps"))
    bf16: bool = setting(True, "bfloat16 autocast, where the hardware computes in it")
    threads: int = setting(0, "of the CPU; 0: torch's choice; the toy's steps are too short to "
                           "share", between=(0, 1024))
    max_steps: int = setting(0, "end every stage after so many steps, its schedule squeezed",
                             between=(0, 2**31))
    save_every: float = setting(5.0, "minutes between two states of an unfinished run, from the "
                                "last of which the same command goes on", between=(0, 1e6))
    fresh: bool = setting(False, "start over, whatever there is of an earlier run; a teacher that "
                          "was trained with the same settings is kept")

    BY_SIZE = {       # of the task; ours
        "small": {"teacher_epochs": 5}, "large": {"teacher_epochs": 3},
        "squad": {"teacher_epochs": 2, "batch_size": 16, "max_length": 384},
        "toy": {"model": str(TOY), "teacher_epochs": 5, "teacher_lr": 5e-4, "threads": 1}}

    @classmethod
    def of(cls, task, data=""):
        """The settings of a task where the user sets nothing. data: the folder of task own."""
        return cls(task=task, data=data, **cls.BY_SIZE[task_size(task, data)])

    def check(self):
        """Raises BadInput for the first setting that is not allowed."""
        import torch
        check_range(self)
        has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not has.get(self.device, True):
            raise BadInput(f"--device {self.device}: there is none here; want cpu, or auto")


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise BadInput(f"{message}; python {self.prog} --help lists what there is")


def make_parser(kind, doc, commands={}):
    """The command line of a kind of settings.

    doc: of the file, its first paragraph is shown; commands: {flag: (its words, help)}, of
    which one at most may be given.
    """
    of_toy = ", ".join(f"{name} {value}" for name, value in kind.BY_SIZE["toy"].items())
    parser = Parser(description=doc.split("\n\n")[0], allow_abbrev=False,
                    epilog=f"The toy has other defaults: {of_toy}.")
    for f in fields(kind):
        usual = [f"default {f.default}"] if f.default not in (None, "") else []
        choice = [" ".join(f.metadata["among"])] if "among" in f.metadata else []
        text = f"{f.metadata['help']} [{'; '.join(choice + usual)}]".replace(" []", "")
        type_ = {"action": argparse.BooleanOptionalAction} if f.type is bool else \
            {"type": f.type, "metavar": f.type.__name__.upper()}
        parser.add_argument(f"--{f.name}", help=text.replace("%", "%%"), **type_)
    instead = parser.add_mutually_exclusive_group() if commands else parser     # not an empty one
    for name, (words, text) in commands.items():
        several = "+" if isinstance(words, tuple) else None
        instead.add_argument(f"--{name}", metavar=words, help=text, nargs=several)
    return parser


def settings(kind, given):
    """Settings of a kind from the flags that were given; checked. Raises BadInput."""
    task, folder = given.get("task", "own" if given.get("data") else kind.task), given.get("data")
    if task in TASKS and (task == "own") != bool(folder):
        raise BadInput(f"--task {task} --data {folder or 'not given'}: want --data FOLDER alone, "
                       "or another task without it")
    try:
        usual = asdict(kind.of(task, folder or ""))
    except KeyError:            # no such task: check() says so
        usual = {}
    cfg = kind(**usual | {"task": task} | given)
    cfg.check()
    return cfg


def guarded(name, job, arguments):
    """Runs job(arguments). Returns the exit code: 0, 2 for what the user can put right, or 130."""
    try:
        job(arguments)
    except BadInput as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt) as stop:    # the latter: where nothing is trained
        print(f"{name}: {str(stop) or 'stopped; the same command goes on'}", file=sys.stderr)
        return 130
    return 0
