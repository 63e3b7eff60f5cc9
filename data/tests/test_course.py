"""The course: the copy for an assignment, the questions, the guide, and their command line."""
import ast
import doctest
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

from data.course import assignment, guide, questions, source
from data.course.guide import ROOT
from data.course.points import POINT_OF_A_QUESTION, POINTS
from data.course.sheet import sheet
from data.tests.common import slow
from test_cofi import main

README = ROOT / "data/course/README.md"
PARTS = ROOT / "data/course/parts.md"

# ---- the assignment ------------------------------------------------------------------------------


class Outcomes:
    """A plugin of pytest that keeps {number of the part: whether its tests passed, as a set}."""

    def __init__(self):
        self.passed = {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            number, = (int(word[4:]) for word in report.keywords if re.fullmatch(r"part\d", word))
            self.passed.setdefault(number, set()).add(report.passed)


@pytest.fixture
def modules_of_the_copy(monkeypatch):
    """Forget the modules of the project, so that a copy imports its own; afterwards, the reverse.
    """
    def ours():
        return {name: module for name, module in sys.modules.items()
                if name.split(".")[0] in ("cofi", "sparsebert", "data", "test_cofi")}

    before = ours()
    for name in before:
        del sys.modules[name]
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield
    for name in ours():
        del sys.modules[name]
    sys.modules.update(before)


@slow
@pytest.mark.parametrize("to_write", [(1,), (2,), (3,), (4,), (5,), (6,), (1, 2, 3, 4, 5, 6), ()])
def test_assignment(tmp_path, modules_of_the_copy, to_write):
    """Where a part is not written all of its tests fail, and no test of another part does."""
    assignment.write_assignment(tmp_path / "copy", to_write or (1,))
    if not to_write:                                # solved: all is green
        shutil.copy(ROOT / "cofi.py", tmp_path / "copy")
    outcomes = Outcomes()
    marks = " or ".join(f"part{number}" for number in assignment.PARTS)
    pytest.main([str(tmp_path / "copy"), "-m", marks, "-s", "-q", "--tb=no", "--assert=plain",
                 "-p", "no:cacheprovider"], plugins=[outcomes])
    assert outcomes.passed == {number: {number not in to_write} for number in assignment.PARTS}


def test_what_the_copy_holds(tmp_path):
    """What a student needs; no answers, no grading, no tests of the project's upkeep."""
    folder = tmp_path / "copy"
    (folder / ".git").mkdir(parents=True)                   # a clone that is otherwise empty
    assignment.write_assignment(folder, seed="ada")
    assert {path.name for path in folder.iterdir()} == {
        "cofi.py", "sparsebert.py", "test_cofi.py", "data", "requirements.txt", "LICENSE", ".git",
        ".gitignore", "ASSIGNMENT.md", "answers.txt"}
    assert {path.name for path in (folder / "data/course").iterdir()} == {
        "__init__.py", "commands.py", "guide.py", "questions.py", "source.py", "sheet.json"}
    assert {path.name for path in (folder / "data/tests").iterdir()} == {"__init__.py", "common.py"}
    assert not (folder / "data/results").exists()           # the benchmark has plain versions
    for number, (file, write) in assignment.PARTS.items():
        text = (folder / file).read_text("utf-8")
        for name in write:
            node = source.definitions(text)[name]
            assert ast.get_docstring(node) and len(node.body) == 2, name
            assert f'raise NotImplementedError("part {number}: {name}")' in text
    assert "#     P(z > 0) =" not in (folder / "cofi.py").read_text("utf-8")      # to be derived
    text = (folder / "ASSIGNMENT.md").read_text("utf-8")
    assert "<<" not in text and all(words in text for words, _ in sheet("ada").values())
    assert text != assignment.student_text((1, 2, 3, 4, 5, 6), "grace")


def test_some_parts(tmp_path):
    assert main(["--assignment", str(tmp_path / "copy"), "--parts", "3,1"]) == 0
    text = (tmp_path / "copy" / "cofi.py").read_text("utf-8")
    assert 'part 1: sample_z' in text and 'part 3: lagrangian' in text and "part 2" not in text
    text = (tmp_path / "copy" / "ASSIGNMENT.md").read_text("utf-8")
    assert "## Part 1" in text and "## Part 3" in text and "## Part 2" not in text
    form = (tmp_path / "copy" / "answers.txt").read_text("utf-8")
    assert form.split() == ["seed", "1a", "1b", "1c", "3a", "3b", "3c"]


@slow
def test_a_copy_does_not_grade(tmp_path):
    """Its command line says where to go."""
    assignment.write_assignment(tmp_path / "copy")
    for command in ["--grade", "."], ["--benchmark"]:
        done = subprocess.run([sys.executable, "test_cofi.py", *command], cwd=tmp_path / "copy",
                              capture_output=True, text=True, check=False)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert "in the project" in done.stderr


def test_assignments_are_short():
    """No function to write has more than 15 lines of code; each has a docstring."""
    for file, write in assignment.PARTS.values():
        text = (ROOT / file).read_text("utf-8")
        for name in write:
            node = source.definitions(text)[name]
            body = text.splitlines()[node.body[0].end_lineno:node.end_lineno]
            code = [line for line in map(str.strip, body) if line and not line.startswith("#")]
            assert ast.get_docstring(node) and len(code) <= 15, f"{name}: {len(code)} lines"


def test_text_of_the_course_names_every_function():
    """In the row of its part, with the file; and it gives their number."""
    text = README.read_text("utf-8")
    rows = {int(row[2]): row for row in text.splitlines() if re.match(r"\| \d ", row)}
    assert rows.keys() == assignment.PARTS.keys()
    for number, (file, write) in assignment.PARTS.items():
        assert f"`{file}`" in rows[number]
        for name in write:
            assert f"`{name}`" in rows[number], f"part {number} does not name {name}"
    total = sum(len(write) for _, write in assignment.PARTS.values())
    assert f"{total} functions" in text and f"{len(questions.NUMBERS)} questions" in text


# ---- the questions -------------------------------------------------------------------------------


def test_questions_of_a_student(tmp_path):
    """Each student has other numbers; the hashes know the right answers, and no wrong ones."""
    one, two = sheet("ada"), sheet("grace")
    assert one == sheet("ada") and sum(one[q] != two[q] for q in one) >= 8
    assert tuple(one) == questions.NUMBERS
    answers = {question: answer for question, (_, answer) in one.items()}
    questions.write_sheet(tmp_path / "sheet.json", "ada", answers)
    saved = json.loads((tmp_path / "sheet.json").read_text("utf-8"))
    for question in ("1a", "3a", "5b"):
        for text, right in ((f"{answers[question]:.6g}", True), (f"{answers[question] * 1.01:.6g}",
                                                                 False)):
            got = questions.is_right(text, lambda number, q=question: questions.digest(
                "ada", q, number) == saved["digests"][q])
            assert got == right, (question, text)


def test_answers_to_one_sheet():
    """The sheet without a name, worked out by hand."""
    answers = {question: answer for question, (_, answer) in sheet("").items()}
    words = {question: text for question, (text, _) in sheet("").items()}
    numbers = [int(x.replace(",", "")) for x in re.findall(r"\d[\d,]*", words["2a"])]
    assert answers["2a"] == numbers[0] * numbers[1] * numbers[2] ** 2
    layers = [int(x) for x in re.findall(r"\d+", words["4b"])]
    assert answers["4b"] == len(list(itertools.combinations(range(layers[1]), layers[0])))
    heads, k = map(int, re.findall(r"\d+", words["3b"]))
    assert answers["3b"] == heads * 4 * k * 768 / (2 * 768)


@pytest.mark.parametrize("text, numbers", [
    ("0.25", [0.25]), ("0,25", [0.25]), ("25%", [0.25]), ("84 934 656", [84934656]),
    ("3,072", [3.072, 3072]), ("1,234.5", [1234.5]), ("-1e-3", [-0.001]), ("1e400", [math.inf]),
    ("x", []), ("", []), ("1.2.3", [])])
def test_ways_to_write_a_number(text, numbers):
    assert questions.readings(text) == numbers


def test_text_of_the_course_asks_every_question():
    assert re.findall(r"<<(\d[a-c])>>", PARTS.read_text("utf-8")) == list(questions.NUMBERS)


# ---- the command line ----------------------------------------------------------------------------


def test_command_line_of_the_course(tmp_path, capsys):
    _, right = sheet("")["3b"]
    assert main(["--answer", "3b", f"{right:g}"]) == 0 and "right" in capsys.readouterr().out
    assert main(["--answer", "3b", f"{right - 1:g}"]) == 1
    assert "not yet" in capsys.readouterr().out
    assert main(["--answer", "3a", f"{sheet('')['3a'][1]:,}"]) == 0             # with commas
    capsys.readouterr()
    (tmp_path / "mine.py").write_text("")
    assert main(["--answer", "1b", "-3,7958"]) in (0, 1)        # a number, not a flag
    for bad in (["--answer", "9z", "1"], ["--answer", "3b", "x"], ["--assignment", str(tmp_path)],
                ["--assignment", str(tmp_path / "mine.py")], ["--autograder", "x.tar"],
                ["--assignment", str(ROOT / "data/mine")],
                ["--assignment", str(tmp_path / "new"), "--parts", "7"],
                ["--assignment", str(tmp_path / "new"), "--quality"], ["--guide", "--seed", "ada"],
                ["--grade", str(ROOT), "--results", str(tmp_path / "mine.py")],
                ["--answer", "3b", "-1,x"],
                ["--assignment", str(tmp_path / "new"), "--parts", "one"]):
        assert main(bad) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("test_cofi: --") and "\n" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


@slow
def test_autograder(tmp_path):
    """Unpacked into an empty folder it grades a submission, as Gradescope would call it."""
    zip_of_two_parts = ["--autograder", str(tmp_path / "autograder.zip"), "--parts", "3,6"]
    assert main(zip_of_two_parts) == 0
    root = tmp_path / "autograder"
    with zipfile.ZipFile(tmp_path / "autograder.zip") as archive:
        assert {"setup.sh", "run_autograder", "requirements.txt"} <= set(archive.namelist())
        assert archive.getinfo("run_autograder").external_attr >> 16 & 0o111
        archive.extractall(root / "source")
    (root / "venv/bin").mkdir(parents=True)
    (root / "venv/bin/python").symlink_to(sys.executable)
    (root / "submission").mkdir()
    shutil.copy(ROOT / "sparsebert.py", root / "submission")
    (root / "submission/answers.txt").write_text(f"seed\n3a {sheet('')['3a'][1]}\n6b 7\n")
    packages = os.pathsep.join(path for path in sys.path if "site-packages" in path)
    subprocess.run(["bash", str(root / "source/run_autograder")], check=True, capture_output=True,
                   env=os.environ | {"AUTOGRADER": str(root), "PYTHONPATH": packages})
    result = json.loads((root / "results/results.json").read_text("utf-8"))
    assert result["score"] == sum(POINTS[6].values()) + POINT_OF_A_QUESTION
    assert {test["number"][0] for test in result["tests"]} == {"3", "6"}
    shutil.rmtree(root / "submission")
    (root / "submission").mkdir()
    (root / "results/results.json").unlink()
    (root / "venv/bin/python").unlink()         # or it writes nothing, as for no submission
    subprocess.run(["bash", str(root / "source/run_autograder")], check=True, capture_output=True,
                   env=os.environ | {"AUTOGRADER": str(root), "PYTHONPATH": packages})
    result = json.loads((root / "results/results.json").read_text("utf-8"))
    assert result["score"] == 0 and "Hand in cofi.py" in result["output"]


# ---- the guide -----------------------------------------------------------------------------------


def test_guide_has_every_equation():
    """Every § of the code is in the guide, with a test; and the reverse."""
    found = guide.equations()
    assert {equation.tag for equation in found} == guide.TESTS.keys()
    assert all(guide.TESTS.values())
    by_tag = {}
    for tag, file, line, function in found:
        text = (ROOT / file).read_text("utf-8")
        assert text.splitlines()[line - 1].endswith(tag)
        assert function in source.definitions(text), f"{file}:{line} is in no function"
        by_tag.setdefault(tag, set()).add(file)
    assert all(len(files) == 1 for files in by_tag.values()), "one tag in two files"


def test_tests_of_the_guide_exist():
    files = [ROOT / "test_cofi.py", *(ROOT / "data/tests").glob("*.py")]
    known = {name for file in files for name in source.definitions(file.read_text("utf-8"))}
    assert {name for names in guide.TESTS.values() for name in names} <= known


def test_guide_is_a_table(capsys):
    assert main(["--guide"]) == 0
    title, *rows = capsys.readouterr().out.splitlines()
    assert title.split() == ["equation", "line", "function", "tests"]
    for row, (tag, file, line, function) in zip(rows, guide.equations(), strict=True):
        assert row.startswith(tag) and f" {file}:{line} " in row and f" {function} " in row
        assert row.endswith(", ".join(guide.TESTS[tag]))


@pytest.mark.parametrize("module", [source, questions])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0
