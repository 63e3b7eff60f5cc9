"""The command line of test_cofi.py: the course, and the benchmark.

The copy for an assignment has --guide and --answer; the modules of the others are not in it.
"""
import importlib
import re
import sys
from pathlib import Path

import cofi
import sparsebert
from data.course import guide, questions
from data.errors import UserError
from data.harness.cli import Parser, check_in_range
from data.tasks import TASKS, TOY


def make_parser():
    parser = Parser(description="The course, and a benchmark. pytest runs the tests.")
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--guide", action="store_true", help="list every equation with its test")
    choice.add_argument("--answer", nargs=2, metavar=("QUESTION", "NUMBER"), help="check an answer")
    choice.add_argument("--assignment", type=Path, metavar="FOLDER", help="write a copy to fill in")
    choice.add_argument("--grade", type=Path, metavar="SUBMISSION",
                        help="grade a file, folder or .zip of a student, or a folder of many")
    choice.add_argument("--autograder", type=Path, metavar="ZIP", help="pack it for Gradescope")
    choice.add_argument("--benchmark", action="store_true", help="time pruning and pruned models")
    course = parser.add_argument_group("options of the course")
    course.add_argument("--parts", metavar="1,3", default="1,2,3,4,5,6",
                        help="the parts to write, or of --grade and --autograder: to grade")
    course.add_argument("--seed", metavar="STUDENT", default="",
                        help="with --assignment: whose numbers the questions have")
    course.add_argument("--results", type=Path, metavar="FOLDER", default=Path("grades"),
                        help="where --grade writes results.json, junit.xml and grades.csv")
    course.add_argument("--quality", action="store_true", help="with --grade: also run cofi.py of "
                        "the submission on the toy, about four minutes for each")
    options = parser.add_argument_group("options of --benchmark")
    options.add_argument("--model", default=str(TOY), help="model whose sizes are used")
    tasks = [name for name in TASKS if name != "custom"]
    options.add_argument("--task", default="toy", choices=tasks, help="task whose rows are read")
    options.add_argument("--batch_size", type=int, default=32, help="examples of a pruning step")
    options.add_argument("--threads", type=int, default=1, help="CPU threads")
    options.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options.add_argument("--turns", type=int, default=10, help="repetitions of each measurement")
    return parser


def load(name):
    """Import a module that the copy for an assignment does not have."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError("This copy holds an assignment. Try the same command in the project itself"
                        ) from error


def parse_parts(text):
    try:
        return sorted({int(number) for number in text.split(",")})
    except ValueError as error:
        raise UserError(f"--parts must be numbers separated by commas, got {text}") from error


def run_command(arguments, tests):
    """Run one of the commands of test_cofi.py, the module `tests`. Returns the exit code."""
    # a number after --answer may begin with a minus sign: behind a space it is no flag
    arguments = [f" {x}" if re.match(r"-[\d.]", x) else x for x in arguments or sys.argv[1:]]
    given = make_parser().parse_args(arguments)
    for name, highest in ("batch_size", 65536), ("threads", 1024), ("turns", 10_000):
        check_in_range(name, getattr(given, name), 1, highest)
    for flag, command in ("quality", "grade"), ("seed", "assignment"):
        if getattr(given, flag) and not getattr(given, command):
            raise UserError(f"--{flag} must come with --{command}. Try without it")
    if given.answer:
        return questions.check_answer(*given.answer)
    if given.guide:
        guide.print_guide()
    parts = parse_parts(given.parts)
    if given.assignment:
        load("data.course.assignment").write_assignment(given.assignment, parts, given.seed)
    if given.grade:
        modules = {"cofi": cofi, "sparsebert": sparsebert}
        load("data.course.grade").grade(
            given.grade, given.results, modules, tests, given.quality, parts)
    if given.autograder:
        load("data.course.autograder").write_autograder(given.autograder, parts)
    if given.benchmark:
        load("data.results.benchmark").benchmark(
            given.model, given.task, given.batch_size, given.threads, given.turns, given.device)
    return 0
