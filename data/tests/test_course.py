"""The course: the copy for an assignment, the questions, the guide, and their command line."""
import ast
import doctest
import importlib.util
import re
import sys

import pytest

from data.course import assignment, guide, questions, source
from data.course.guide import ROOT
from data.tests.common import slow
from test_cofi import main

README = ROOT / "data/course/README.md"
NEEDS_README = pytest.mark.skipif(not README.exists(), reason="the course has no text yet")


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
@pytest.mark.parametrize("to_write", [(1,), (2,), (3,), (4,), (5,), (6,), (5, 6), (4, 5, 6),
                                      (3, 4, 5, 6), (2, 3, 4, 5, 6), (1, 2, 3, 4, 5, 6)])
def test_assignment(tmp_path, modules_of_the_copy, to_write):
    """Where a part is not written all of its tests fail, and no test of another part does."""
    assignment.write_assignment(tmp_path / "copy", to_write)
    outcomes = Outcomes()
    marks = " or ".join(f"part{number}" for number in assignment.PARTS)
    pytest.main([str(tmp_path / "copy"), "-m", marks, "-s", "-q", "--tb=no", "--assert=plain",
                 "-p", "no:cacheprovider"], plugins=[outcomes])
    assert outcomes.passed == {number: {number not in to_write} for number in assignment.PARTS}


def test_what_the_copy_holds(tmp_path):
    """All files of the project, the text of the course as its README, and no answers."""
    folder = tmp_path / "copy"
    assignment.write_assignment(folder)
    assert {path.name for path in folder.iterdir()} == {
        "cofi.py", "sparsebert.py", "test_cofi.py", "data", "requirements.txt", "LICENSE",
        "README.md"}
    readme = README if README.exists() else ROOT / "README.md"
    assert (folder / "README.md").read_text("utf-8") == readme.read_text("utf-8")
    spec = importlib.util.spec_from_file_location("copy", folder / "data/course/questions.py")
    copied = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copied)
    assert copied.DIGESTS == questions.DIGESTS
    with pytest.raises(NotImplementedError, match="not in this copy: answers"):
        copied.answers()
    for number, (file, write) in assignment.PARTS.items():
        text = (folder / file).read_text("utf-8")
        for name in write:
            node = source.definitions(text)[name]
            assert ast.get_docstring(node) and len(node.body) == 2, name
            assert f'raise NotImplementedError("part {number}: {name}")' in text


def test_assignments_are_short():
    """No function to write has more than 15 lines of code; each has a docstring."""
    for file, write in assignment.PARTS.values():
        text = (ROOT / file).read_text("utf-8")
        for name in write:
            node = source.definitions(text)[name]
            body = text.splitlines()[node.body[0].end_lineno:node.end_lineno]
            code = [line for line in map(str.strip, body) if line and not line.startswith("#")]
            assert ast.get_docstring(node) and len(code) <= 15, f"{name}: {len(code)} lines"


@NEEDS_README
def test_text_of_the_course_names_every_function():
    """In the row of its part, with the file; and it gives their number."""
    rows = {int(row[2]): row for row in README.read_text("utf-8").splitlines()
            if re.match(r"\| \d ", row)}
    assert rows.keys() == assignment.PARTS.keys()
    for number, (file, write) in assignment.PARTS.items():
        assert f"`{file}`" in rows[number]
        for name in write:
            assert f"`{name}`" in rows[number], f"part {number} does not name {name}"
    total = sum(len(write) for _, write in assignment.PARTS.values())
    assert f"{total} functions" in README.read_text("utf-8")


# ---- the questions -------------------------------------------------------------------------------


def test_answers():
    answers = questions.answers()
    assert {question: questions.digest(question, number)
            for question, number in answers.items()} == questions.DIGESTS


@NEEDS_README
def test_text_of_the_course_asks_every_question():
    assert re.findall(r"\*\*(\d[a-c])\*\*", README.read_text("utf-8")) == sorted(questions.DIGESTS)


# ---- the command line ----------------------------------------------------------------------------


def test_command_line_of_the_course(tmp_path, capsys):
    right = questions.answers()["3b"]
    assert main(["--answer", "3b", f"{right:g}"]) == 0 and "right" in capsys.readouterr().out
    assert main(["--answer", "3b", f"{right - 1:g}"]) == 1
    assert "not yet" in capsys.readouterr().out
    assert main(["--answer", "3a", f"{questions.answers()['3a']:,}"]) == 0      # with commas
    capsys.readouterr()
    (tmp_path / "mine.py").write_text("")
    for bad in (["--answer", "9z", "1"], ["--answer", "3b", "x"], ["--assignment", str(tmp_path)],
                ["--assignment", str(tmp_path / "mine.py")]):
        assert main(bad) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("test_cofi: --a") and "\n" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]
    assert main(["--assignment", str(tmp_path / "new")]) == 0
    assert "part 6: magnitude_mask" in (tmp_path / "new/sparsebert.py").read_text("utf-8")


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


def test_examples_in_docstrings():
    assert doctest.testmod(source).failed == 0
