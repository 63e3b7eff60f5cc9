"""Flags from a dataclass of settings: every field is one, and an unknown one is an error."""
import argparse
import math
import sys
from dataclasses import asdict, field, fields

from .hub import BadInput
from .journal import Interrupted


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
        low, high = f.metadata.get("between", (-math.inf, math.inf))
        if "between" in f.metadata and not low <= value <= high:
            if f.name == "sparsity" and low <= value / 100 <= high:
                hint = f"; did you mean {value / 100:g}?"
            raise BadInput(f"--{f.name} {value:g}: want a number from {low:g} to {high:g}{hint}")


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise BadInput(f"{message}; python {self.prog} --help lists what there is")


def make_parser(kind, doc):
    """The command line of a kind of settings. doc: of the file, its first paragraph is shown."""
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
    return parser


def settings(kind, given):
    """Settings of a kind from the flags that were given; checked. Raises BadInput."""
    task = given.get("task", "own" if given.get("data") else kind.task)
    try:
        usual = asdict(kind.of(task, given.get("data", "")))
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
