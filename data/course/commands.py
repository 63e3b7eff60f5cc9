"""The command line of test_cofi.py: the course, and the benchmark."""
from pathlib import Path

import cofi
import sparsebert
from data.course import assignment, grade, guide, questions
from data.harness.cli import Parser, check_in_range
from data.results.benchmark import benchmark
from data.tasks import TASKS, TOY


def run_command(arguments, tests):
    """Run one of the commands of test_cofi.py, the module `tests`. Returns the exit code."""
    parser = Parser(description="The course, and a benchmark. pytest runs the tests.")
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--guide", action="store_true", help="list every equation with its test")
    choice.add_argument("--assignment", type=Path, metavar="FOLDER", help="write a copy to fill in")
    choice.add_argument("--grade", type=Path, metavar="SUBMISSION",
                        help="grade a file, folder or .zip of a student, or a folder of many")
    choice.add_argument("--answer", nargs=2, metavar=("QUESTION", "NUMBER"), help="check an answer")
    choice.add_argument("--benchmark", action="store_true", help="time pruning and pruned models")
    parser.add_argument("--results", type=Path, metavar="FOLDER", default=Path("grades"),
                        help="where --grade writes results.json, junit.xml and grades.csv")
    parser.add_argument("--quality", action="store_true", help="with --grade: also run cofi.py of "
                        "the submission on the toy, about four minutes for each")
    options = parser.add_argument_group("options of --benchmark")
    options.add_argument("--model", default=str(TOY), help="model whose sizes are used")
    options.add_argument("--task", default="toy", choices=[name for name in TASKS if name != "custom"],
                         help="task whose rows are read")
    options.add_argument("--batch_size", type=int, default=32, help="examples of a pruning step")
    options.add_argument("--threads", type=int, default=1, help="CPU threads")
    options.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options.add_argument("--turns", type=int, default=10, help="repetitions of each measurement")
    given = parser.parse_args(arguments)
    for name, highest in ("batch_size", 65536), ("threads", 1024), ("turns", 10_000):
        check_in_range(name, getattr(given, name), 1, highest)
    if given.guide:
        guide.print_guide()
    if given.assignment:
        assignment.write_assignment(given.assignment)
    if given.grade:
        grade.grade(given.grade, given.results, {"cofi": cofi, "sparsebert": sparsebert}, tests,
                    given.quality)
    if given.benchmark:
        benchmark(given.model, given.task, given.batch_size, given.threads, given.turns,
                  given.device)
    return questions.check_answer(*given.answer) if given.answer else 0
