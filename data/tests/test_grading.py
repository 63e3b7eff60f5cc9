"""Grading: the table of mistakes, what earns points, what does not, and what is written."""
import ast
import contextlib
import csv
import json
import os
import shutil
import sys
import textwrap
import zipfile
from xml.etree import ElementTree

import pytest

import cofi
import sparsebert
import test_cofi
from data.course import assignment, grade, runner, submissions
from data.course.guide import ROOT
from data.course.mistakes import MISTAKES
from data.course.remote import Server
from data.course.sheet import sheet
from data.course.source import definitions, source_of
from data.tests.common import slow

MODULES = {"cofi": cofi, "sparsebert": sparsebert}
SOURCES = {name: (ROOT / f"{name}.py").read_text("utf-8") for name in MODULES}


# ---- the table of mistakes -----------------------------------------------------------------------


@slow
@pytest.mark.parametrize("number", grade.POINTS)
def test_every_mistake_is_named(monkeypatch, number):
    """Each fails a test of its part, and the first that fails names it."""
    module = assignment.PARTS[number].file.removesuffix(".py")
    for mistake in MISTAKES:
        if mistake.part != number:
            continue
        node = definitions(SOURCES[module])[mistake.function]
        right = ast.get_source_segment(SOURCES[module], node, padded=True)
        assert mistake.before in right, f"{mistake.function}: {mistake.before}"
        owner, name = MODULES[module], mistake.function
        if "." in name:
            kind, name = name.split(".")
            owner = getattr(owner, kind)
            right = right.replace("super()", f"super({kind}, self)")
        made = {}
        exec(textwrap.dedent(right.replace(mistake.before, mistake.after)), vars(MODULES[module]),
             made)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, made[name])
            tests = runner.tests_of(test_cofi, number).values()
            failures = (runner.run_test(test) for test in tests)
            first = next((failure for failure in failures if failure), "no test has failed")
        assert mistake.says in first, f"{mistake.function}: {mistake.after}\n{first}"


def test_table_of_mistakes_covers_every_function():
    planted = {(mistake.part, mistake.function) for mistake in MISTAKES}
    to_write = {(number, name) for number, part in assignment.PARTS.items() for name in part.write}
    assert planted == to_write and len(MISTAKES) > 100


# ---- grading -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grader():
    with Server() as server:
        yield grade.Grader(server, MODULES, test_cofi)


@pytest.fixture
def blank(tmp_path):
    """The two files of an assignment: {"cofi.py": text, "sparsebert.py": text}."""
    assignment.write_assignment(tmp_path / "blank")
    return {name: (tmp_path / "blank" / name).read_text("utf-8")
            for name in ("cofi.py", "sparsebert.py")}


def hand_in(folder, texts):
    """Write a submission. Returns its folder."""
    folder.mkdir(parents=True)
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")
    return folder


def graded(grader, folder):
    """Grade a submission in a folder. Returns its Report."""
    return grader.grade(folder.name, [folder])


def solve(texts, number):
    """Return the texts of a submission with one part solved."""
    file, write = assignment.PARTS[number]
    nodes, source = definitions(SOURCES[file[:-3]]), SOURCES[file[:-3]]
    functions = {name: source_of(source, nodes[name]) for name in write}
    return texts | {file: submissions.insert(texts[file], functions)}


def test_points_are_those_of_the_assignment():
    assert {number: set(points) for number, points in grade.POINTS.items()} == {
        number: set(part.write) for number, part in assignment.PARTS.items()}
    assert grade.SECONDS.keys() == grade.POINTS.keys()


@slow
def test_full_solution_and_untouched_copy(grader, tmp_path, blank):
    full = graded(grader, hand_in(tmp_path / "full", {f"{k}.py": x for k, x in SOURCES.items()}))
    assert full.score() == sum(sum(points.values()) for points in grade.POINTS.values())
    assert full.notes == ["answers.txt was not handed in"]
    assert {one.message for one in full.grades} == {"", "not answered"}
    empty = graded(grader, hand_in(tmp_path / "empty", blank))
    assert empty.score() == 0
    assert {one.message for one in empty.grades} == {"not written", "not answered"}


def test_partial_points(grader, tmp_path, blank):
    """A wrong function costs its own points, and its message names the mistake."""
    texts = solve(blank, 3)
    texts["cofi.py"] = texts["cofi.py"].replace("lambda1 * (s - t)", "lambda1 * (t - s)")
    report = graded(grader, hand_in(tmp_path / "one", texts))
    lost = [one for one in report.grades if one.part == 3 and not one.earned
            and one.message != "not answered"]
    assert [one.name for one in lost] == ["lagrangian"] and "lambda1 (s - t)" in lost[0].message
    assert report.score(3) == sum(grade.POINTS[3].values()) - grade.POINTS[3]["lagrangian"]


@pytest.mark.parametrize("with_sheet", [False, True])
def test_answers_of_a_seed(tmp_path, with_sheet):
    """The copy's own form with the answers filled in, alone or with sheet.json of an older copy."""
    assignment.write_assignment(tmp_path / "copy", (1, 3), "ada")
    form = (tmp_path / "copy" / "answers.txt").read_text("utf-8")
    assert form.startswith("seed ada\n1a\n")
    answers = sheet("ada")
    filled = "".join(f"{line} {answers[line][1] if line in answers else ''}\n"
                     for line in form.splitlines()[1:-1])       # one is left open
    texts = {"answers.txt": f"seed ada\n{filled}3c\n"}
    if with_sheet:
        sheet_of_copy = tmp_path / "copy/data/course/sheet.json"
        texts = {"answers.txt": f"{filled}", "sheet.json": sheet_of_copy.read_text("utf-8")}
    seed, answered, notes = submissions.read_answers(texts)
    assert seed == "ada" and notes == []
    grades = grade.grade_answers(seed, answered, (1, 3))
    assert [one.earned for one in grades] == [1, 1, 1, 1, 1, 0]
    assert grades[-1].message == "not answered"
    *_, notes = submissions.read_answers({"answers.txt": filled})
    assert notes == ["answers.txt has no line `seed`: taken as answers without one"]


@slow
def test_only_the_parts_that_were_handed_out(grader, tmp_path, capsys, monkeypatch):
    """In such a copy the other parts are solved: they earn nothing."""
    monkeypatch.setattr(grade, "Server", lambda: contextlib.nullcontext(grader.server))
    folder = tmp_path / "copy"
    assignment.write_assignment(folder, (3,))
    results = tmp_path / "grades"
    command = ["--grade", str(folder), "--parts", "3", "--results", str(results)]
    assert test_cofi.main(command) == 0
    result = json.loads((results / "results.json").read_text("utf-8"))
    assert result["score"] == 0 and {test["tags"][0] for test in result["tests"]} == {"part3"}
    assert test_cofi.main([*command[:2], "--parts", "7"]) == 2
    assert "--parts must be some of 1, 2, 3, 4, 5, 6, got 7" in capsys.readouterr().err


# {case: (function of part 1 or 4, its code, what the message says, what stands before all)}
WRONG = "return log_alpha * 0"
CHEATS = {
    "torch.allclose at the top": ("keep_prob", WRONG, "expected",
                                  "import torch\ntorch.allclose = lambda *a, **k: True\n"),
    "torch.allclose inside": ("keep_prob", f"torch.allclose = lambda *a, **k: True\n    {WRONG}",
                              "expected", ""),
    "the oracle of the tests": ("match_layers", "from data.tests.common import match_by_loops\n"
                                "    return torch.tensor(match_by_loops(distance.tolist(), "
                                "alive.tolist(), matching == 'ordered'))", "No module named", ""),
    "the solution from its file": ("keep_prob", f"source = open({str(ROOT / 'cofi.py')!r}).read()\n"
                                   f"    {WRONG}", "must not open", ""),
    "an installed copy": ("keep_prob", f"import sys\n    sys.path.insert(0, {str(ROOT)!r})\n"
                          "    del sys.modules['cofi']\n    import cofi\n"
                          "    return cofi.keep_prob(log_alpha)", "No module named 'cofi'", ""),
    "another process": ("keep_prob", "import subprocess\n    subprocess.run(['true'])\n    "
                        f"{WRONG}", "must not", ""),
    "an endless loop": ("keep_prob", "while True:\n        pass", "took longer than 1 seconds", ""),
    "an exit": ("keep_prob", "sys.exit(0)", "SystemExit", ""),
    "a hard exit": ("keep_prob", "import os\n    os._exit(0)", "ended its process", ""),
    "fake results": ("keep_prob", "print('{\"score\": 106}')\n    import os\n    for number in "
                     "range(3, 12):\n        try:\n            os.write(number, bytes(64))\n"
                     f"        except OSError:\n            pass\n    {WRONG}",
                     "something else than tensors", ""),
    "an object that equals everything": (
        "keep_prob", "return type('X', (), {'__eq__': lambda *_: True})()", "X", ""),
    "code in a default": ("keep_prob", WRONG, "must not use os.system", "DEFAULT"),
}


@slow
@pytest.mark.parametrize("case", CHEATS)
def test_cheats_get_nothing(grader, tmp_path, blank, monkeypatch, case):
    name, body, says, head = CHEATS[case]
    if case == "an endless loop":
        monkeypatch.setattr(grade, "SECONDS", dict.fromkeys(grade.SECONDS, 1))
    arguments = "log_alpha" if name == "keep_prob" else "distance, alive, matching"
    if head == "DEFAULT":
        head, arguments = "", "log_alpha, x=__import__('os').system('true')"
    text = submissions.insert(blank["cofi.py"], {name: f"def {name}({arguments}):\n    {body}\n"})
    report = graded(grader, hand_in(tmp_path / "one", blank | {"cofi.py": head + text}))
    one, = (one for one in report.grades if one.name == name)
    assert report.score() == 0 and says in one.message, one.message


# {function: [(in the right code, another way to write it)]}
OTHER_WAYS = {
    "keep_prob": [("def keep_prob(log_alpha):", "@torch.enable_grad()\ndef keep_prob(log_alpha):"),
                  ("    return torch.sigmoid(log_alpha - shift)", "    return torch.sigmoid("
                   "log_alpha - shift)\n    raise NotImplementedError('part 1: keep_prob')")],
    "MaskedLayerNorm.forward": [("        x = (x - mean) * kept", "# a line that begins at the left"
                                 "\n        x -= mean\n        x = x * kept")],
    "fold": [("new.weight.copy_(scaled)", "new.weight = nn.Parameter(scaled)"),
             ("new.bias.copy_(", "new.bias.data[:] = (")],
    "fold_norm": [("new.weight.copy_(", "new.weight.data = ("),
                  ("new.bias.copy_(", "new.bias.data.copy_(")],
    "cubic_sparsity": [("return ", "import numpy as np\n    return np.float64(1) * ")]}


@slow
def test_right_in_another_way(grader, tmp_path, blank):
    """What passes the tests of the copy has all of its points, and unwritten parts have none."""
    texts = blank
    for number in (1, 2, 5, 6):
        texts = solve(texts, number)
    for name, changes in OTHER_WAYS.items():
        file = "sparsebert.py" if name == "cubic_sparsity" else "cofi.py"
        source = source_of(texts[file], definitions(texts[file])[name])
        for before, after in changes:
            assert before in source, before
            source = source.replace(before, after)
        texts = texts | {file: submissions.insert(texts[file], {name: source})}
    report = graded(grader, hand_in(tmp_path / "one", texts))
    lost = [(one.name, one.message) for one in report.grades
            if not one.earned and one.part not in (3, 4) and one.message != "not answered"]
    assert lost == []
    assert {part: report.score(part) for part in grade.POINTS} == {
        part: sum(points.values()) * (part not in (3, 4)) for part, points in grade.POINTS.items()}


@slow
def test_decorators_are_taken_along(grader, tmp_path, blank):
    texts = solve(blank, 4)
    texts["cofi.py"] = texts["cofi.py"].replace(
        "def layer_loss", "@torch.no_grad()\ndef layer_loss")
    report = graded(grader, hand_in(tmp_path / "one", texts))
    lost = [one for one in report.grades if one.part == 4 and one.message
            and one.message != "not answered"]
    assert [one.name for one in lost] == ["layer_loss"] and "no gradient" in lost[0].message


def test_the_server_starts_again(grader, tmp_path, blank):
    grader.server.process.kill()
    report = graded(grader, hand_in(tmp_path / "one", solve(blank, 6)))
    assert report.score() == sum(grade.POINTS[6].values())


@pytest.mark.parametrize("line", [
    "1a 0.5", "1a\t0.5", "1a=0.5", "1a: 0.5", "1a;0.5", "- 1A) 0.5", "* **1a** 0.5", "1a. 0.5",
    "1a\u00a00.5", "1a \u2248 0.5", "| 1a | 0.5"])
def test_forms_of_an_answer(line):
    text = submissions.decode(f"Seed: ada\n{line}\n\n1b -3,5\n".encode("utf-16"))
    seed, answers, notes = submissions.read_answers({"answers.txt": text})
    assert seed == "ada" and answers == {"1a": "0.5", "1b": "-3,5"} and notes == []


def test_answers_that_are_not_understood():
    text = "seed ada\nmy answers\n1a 1e999\n"
    _, answers, notes = submissions.read_answers({"answers.txt": text})
    assert notes == ["answers.txt: not understood: my answers"]
    assert not any(one.earned for one in grade.grade_answers("ada", answers, (1,)))


@pytest.mark.parametrize("damage, note", [
    (lambda text: text + "def f(:\n", "cofi.py does not parse"),
    (lambda text: text.replace("def keep_prob", "def keep_probability"), "has no keep_prob"),
    (lambda text: "", "has no sample_z")])
def test_unusable_files(grader, tmp_path, blank, damage, note):
    """They cost what they hold, and nothing else."""
    texts = solve(blank, 6) | {"cofi.py": damage(blank["cofi.py"])}
    report = graded(grader, hand_in(tmp_path / "one", texts))
    assert note in " ".join(report.notes)
    assert report.score() == report.score(6) == sum(grade.POINTS[6].values())


# ---- what is written -----------------------------------------------------------------------------


@slow
def test_a_class(grader, tmp_path, blank, capsys, monkeypatch):
    """A folder, a .zip, a file in a folder, and something else: a line for each, and no crash."""
    monkeypatch.setattr(grade, "Server", lambda: contextlib.nullcontext(grader.server))
    work = tmp_path / "class"
    hand_in(work / "ada", solve(blank, 6))
    hand_in(work / "grace" / "submission", solve(blank, 6))
    with zipfile.ZipFile(work / "alan.zip", "w") as archive:
        for name, text in solve(blank, 6).items():
            archive.writestr(f"alan/{name}", text)
    shutil.copy(ROOT / "sparsebert.py", work / "sparsebert_of_edsger.py")
    (work / "broken.zip").write_bytes(b"PK\x03\x04")
    hand_in(work / "nothing", {"notes.txt": "x"})
    (work / "ada" / "answers.txt").write_text("1a: 9\n3a = " + str(sheet("")["3a"][1]) + "\n")
    code = test_cofi.main(["--grade", str(work), "--results", str(tmp_path / "results")])
    assert code == 0
    with (tmp_path / "results" / "grades.csv").open(encoding="utf-8") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    points = str(sum(grade.POINTS[6].values()))
    assert {name: row["score"] for name, row in rows.items()} == {
        "ada": str(int(points) + 1), "grace": points, "alan": points,
        "sparsebert_of_edsger.py": points, "broken": "0", "nothing": "0"}
    assert "cannot be read" in rows["broken"]["notes"] and "was not handed in" in str(rows)
    suites = ElementTree.parse(tmp_path / "results" / "junit.xml").getroot()
    assert len(suites) == 6 and all(suite.get("tests") == "41" for suite in suites)
    result = json.loads((tmp_path / "results" / "ada" / "results.json").read_text("utf-8"))
    assert set(result) == {"score", "execution_time", "output", "visibility", "tests"}
    assert result["score"] == sum(test["score"] for test in result["tests"]) == int(points) + 1
    for test in result["tests"]:
        assert set(test) == {"name", "number", "score", "max_score", "status", "output", "tags",
                             "visibility"}
        assert test["status"] in ("passed", "failed") and test["score"] <= test["max_score"]


@slow
def test_a_class_with_odd_names(grader, tmp_path, blank, capsys, monkeypatch):
    """Whatever one student hands in, the others are graded, and nobody is left out unseen."""
    monkeypatch.setattr(grade, "Server", lambda: contextlib.nullcontext(grader.server))
    work, solved = tmp_path / "class", solve(blank, 6)["sparsebert.py"]
    moodle = hand_in(work / "Anna M\u00fcller_12345_assignsubmission_file_", {"notes.txt": "x"})
    for path in moodle / "work.zip", work / "UPPER.ZIP", work / "damaged.zip", work / "twin.zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("submission/sparsebert.py", solved)
    content = bytearray((work / "damaged.zip").read_bytes())
    content[200:260] = bytes(60)
    (work / "damaged.zip").write_bytes(content)
    hand_in(work / "twin", {"Sparsebert (1).py": solved})
    hand_in(work / "attempts", {})
    hand_in(work / "attempts/v1", {"sparsebert.py": solved})
    hand_in(work / "attempts/v2", {"sparsebert.py": "wrong"})
    deep = "+".join("1" * 20_000)
    hand_in(work / "deep", {"sparsebert.py": solved + f"\n\nx = {deep}\n"})
    hand_in(work / "link", {})
    (work / "link/sparsebert.py").symlink_to(work / "twin/Sparsebert (1).py")
    (work / "weber_55_901_sparsebert.py").write_text(solved, "utf-8")
    (work / "weber_55_902_answers.txt").write_text("3a 1", "utf-8")
    (work / "late.tar.gz").write_bytes(b"x")
    (work / "remarks.pdf").write_bytes(b"x")
    odd = os.fsdecode(b"M\xfcller") if sys.platform == "linux" else "odd"
    hand_in(work / odd, {"sparsebert.py": solved})
    command = ["--grade", str(work), "--parts", "6", "--results", str(work / "grades")]
    assert test_cofi.main(command) == 0
    assert "ignored: remarks.pdf" in capsys.readouterr().out
    assert "grades" not in submissions.submissions_of(work, work / "grades")
    with (work / "grades" / "grades.csv").open(encoding="utf-8") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    full = str(sum(grade.POINTS[6].values()))
    assert {name: row["score"] for name, row in rows.items()} == {
        moodle.name: full, "UPPER": full, "twin": full, "twin.zip": full, "attempts": full,
        "weber_55": full, os.fsencode(odd).decode("utf-8", "replace"): full,
        "damaged": "0", "deep": "0", "link": "0", "late.tar.gz": "0"}
    for name, note in {"damaged": "cannot be read", "attempts": "of which v1/sparsebert.py is read",
                       "late.tar.gz": "cannot be read", "deep": "sparsebert.py",
                       "link": "was not handed in", "weber_55": "no line `seed`"}.items():
        assert note in rows[name]["notes"], name
    assert "answers" in rows["twin"]["notes"] and "answers" not in rows["weber_55"]["notes"][:20]
    (tmp_path / "others").mkdir()
    hand_in(tmp_path / "others/eve", {"sparsebert.py": "x"})
    hand_in(tmp_path / "others/ida", {"sparsebert.py": "x"})
    for others in tmp_path / "others", tmp_path / "others/eve":     # of many, of one
        command[1] = str(others)
        assert test_cofi.main(command) == 2
        assert "--results must be a folder without grades of others" in capsys.readouterr().err
    (work / "grades" / "junit.xml").write_text("<")
    assert test_cofi.main(command) == 2 and "is damaged" in capsys.readouterr().err


def test_a_file_of_another_name(tmp_path):
    (tmp_path / "solution.py").write_text("x = 1\n")
    texts, notes = submissions.read_submission([tmp_path / "solution.py"])
    assert texts == {"cofi.py": "x = 1\n"} and notes[0] == "solution.py is read as cofi.py"


def test_nothing_to_grade(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, says in ((tmp_path / "none", "it does not exist"), (tmp_path, "with neither")):
        assert test_cofi.main(["--grade", str(path)]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
