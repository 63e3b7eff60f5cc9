"""Grading: which of the functions that were to be written are right, and how many points that is.

    python test_cofi.py --grade SUBMISSION [--results FOLDER] [--parts 1,3]

SUBMISSION is a file, a folder or a .zip of one student, or a folder of many of these. Only the
functions of data/course/assignment.py are taken from it. They run in a process of their own (see
worker.py); the tests of their part run here, and compare. A function gets its points if it passes
every test of its part that calls it, with all other functions being right.

Written to FOLDER: results.json (as Gradescope reads it), junit.xml; for many students a folder for
each, and grades.csv.
"""
import csv
import json
import operator
import time
from dataclasses import dataclass, field
from xml.etree import ElementTree

from data.course import quality as measure_quality
from data.course.assignment import PARTS, check_parts
from data.course.guide import ROOT
from data.course.points import POINT_OF_A_QUESTION, POINTS
from data.course.questions import is_right, same_as
from data.course.remote import RemoteError, Server, Submission, replaced
from data.course.runner import run_test, tests_of
from data.course.sheet import sheet
from data.course.submissions import (find_functions, insert, read_answers, read_submission,
                                     submissions_of)
from data.errors import UserError
from data.files import write_text

# seconds that the tests of a part may take
SECONDS = {1: 60, 2: 60, 3: 60, 4: 60, 5: 60, 6: 60}
QUALITY_PART = 7                # of --quality; its points are in quality.py


@dataclass
class Grade:
    """What one function got."""
    part: int
    name: str
    points: int
    earned: float = 0
    message: str = ""           # what the first test that failed says


@dataclass
class Report:
    """What one student got."""
    student: str
    seed: str = ""
    grades: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    seconds: float = 0.0

    def score(self, part=None):
        return sum(grade.earned for grade in self.grades if part in (None, grade.part))


# ---- Grading -------------------------------------------------------------------------------------


class Grader:
    """Grades submissions, one after the other.

    modules: {"cofi": module, ...}; tests: test_cofi; parts: the numbers of those that count.
    """

    def __init__(self, server, modules, tests, parts=tuple(PARTS)):
        self.server, self.modules, self.parts = server, modules, parts
        self.sources = {name: (ROOT / f"{name}.py").read_text("utf-8") for name in modules}
        self.tests = {number: tests_of(tests, number) for number in parts}
        self.callers = {number: self.find_callers(number) for number in parts}

    def find_callers(self, number):
        """Return {function: names of the tests of its part that call it}."""
        seen = set()

        class Recorder:
            """In the place of a Submission: it notes who is called, and calls the original."""
            def call(_, module, name, arguments):
                seen.add(name)
                return originals[name](*arguments[0], **arguments[1])

        names = self.qualified(number)
        originals = {name: operator.attrgetter(name)(self.modules[module])
                     for module, name in names}
        callers = {name: [] for _, name in names}
        with replaced(Recorder(), self.modules, names):
            for test_name, test in self.tests[number].items():
                seen.clear()
                failure = run_test(test)
                if failure:
                    raise RuntimeError(f"{test_name} fails without any submission: {failure}")
                for name in seen:
                    callers[name].append(test_name)
        return callers

    def qualified(self, number, names=None):
        module = PARTS[number].file.removesuffix(".py")
        return [(module, name) for name in names or PARTS[number].write]

    def run(self, number, functions, tests):
        """Run tests of a part with functions of a submission: what the first failure says, or None.

        functions: {name: source}; all others are the project's own.
        """
        module = PARTS[number].file.removesuffix(".py")
        try:
            sources = self.sources | {module: insert(self.sources[module], functions)}
            if module == "cofi":
                sources = {"cofi": sources["cofi"]}
            # what is not tested here, and is not replaced, must not be found there either
            submission = Submission(self.server, sources, SECONDS[number])
        except (RemoteError, SyntaxError) as error:
            return str(error)
        try:
            with replaced(submission, self.modules, self.qualified(number, functions)):
                for name in tests:
                    failure = run_test(self.tests[number][name])
                    if failure:
                        return f"{name.split('[')[0]}: {failure}"
        finally:
            submission.close()
        return None

    def grade(self, student, paths, quality=False):
        """Return the Report of one submission. quality: also run its cofi.py as a whole."""
        start = time.perf_counter()
        texts, notes = read_submission(paths)
        written, more = find_functions(texts, PARTS if quality else self.parts)
        seed, answers, about_answers = read_answers(texts)
        report = Report(student, seed, notes=notes + more + about_answers)
        for number in self.parts:
            points = POINTS[number]
            functions = {name: written[number, name] for name in points
                         if (number, name) in written}
            is_whole = len(functions) == len(points)
            # all at once is faster, and most often right
            passed = is_whole and self.run(number, functions, self.tests[number]) is None
            for name, value in points.items():
                grade = Grade(number, name, value)
                if passed:
                    grade.earned = value
                elif name not in functions:
                    grade.message = "not written"
                else:
                    failure = self.run(number, {name: functions[name]}, self.callers[number][name])
                    grade.earned = 0 if failure else value
                    grade.message = failure or ""
                report.grades.append(grade)
        report.grades += grade_answers(seed, answers, self.parts)
        if quality:
            report.grades.append(self.grade_quality(written))
        report.seconds = time.perf_counter() - start
        return report

    def grade_quality(self, written):
        """Return the Grade of the model that the functions of a submission prune."""
        result = Grade(QUALITY_PART, "quality", measure_quality.POINTS)
        functions = {name: written.get((number, name)) for number, part in PARTS.items()
                     for name in part.write if part.file == "cofi.py"}
        if None in functions.values():
            result.message = "needs all functions of cofi.py"
        else:
            try:
                source = insert(self.sources["cofi"], functions)
                result.earned, result.message = measure_quality.measure(source, ROOT)
            except SyntaxError as error:
                result.message = f"cofi.py does not parse: {error}"
        return result


def grade_answers(seed, answers, parts):
    """Return a Grade for each question of some parts. answers: {question: text}."""
    grades = []
    for question, (_, right) in sheet(seed).items():
        if int(question[0]) not in parts:
            continue
        grade = Grade(int(question[0]), f"question {question}", POINT_OF_A_QUESTION)
        if question not in answers:
            grade.message = "not answered"
        elif is_right(answers[question], same_as(right)):
            grade.earned = POINT_OF_A_QUESTION
        else:
            grade.message = f"not right: {answers[question][:40]}"
        grades.append(grade)
    return grades


# ---- What is written -----------------------------------------------------------------------------


def gradescope(report):
    """Return results.json of one student, as a dict of Gradescope's published fields."""
    tests = []
    for i, grade in enumerate(report.grades, start=1):
        tests.append({
            "name": grade.name, "number": f"{grade.part}.{i}", "score": grade.earned,
            "max_score": grade.points, "status": "passed" if grade.earned else "failed",
            "output": grade.message, "tags": [f"part{grade.part}"], "visibility": "visible"})
    return {"score": report.score(), "execution_time": round(report.seconds, 1),
            "output": "\n".join(report.notes), "visibility": "visible", "tests": tests}


def junit(reports):
    """Return the text of a JUnit XML file: a suite for each student."""
    root = ElementTree.Element("testsuites")
    for report in reports:
        failed = [grade for grade in report.grades if not grade.earned]
        suite = ElementTree.SubElement(
            root, "testsuite", name=report.student, tests=str(len(report.grades)),
            failures=str(len(failed)), errors="0", time=f"{report.seconds:.1f}")
        for grade in report.grades:
            case = ElementTree.SubElement(suite, "testcase", classname=f"part{grade.part}",
                                          name=grade.name, time="0")
            if not grade.earned:
                ElementTree.SubElement(case, "failure", message=printable(grade.message))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def printable(text):
    """Return a text without control characters, which XML does not know."""
    return "".join(c for c in text if c.isprintable() or c in "\n\t")


def print_report(report):
    print(f"{report.student}")
    for note in report.notes:
        print(f"  note: {printable(note)}")
    for number in sorted({grade.part for grade in report.grades}):
        grades = [grade for grade in report.grades if grade.part == number]
        print(f"  part {number}    {report.score(number):g} of {sum(g.points for g in grades)}")
        for grade in grades:
            if grade.message not in ("", "not answered"):
                message = " ".join(printable(grade.message).split())
                print(f"    {grade.name:26}{message[:160]}")
    total = sum(grade.points for grade in report.grades)
    print(f"  total     {report.score():g} of {total}   ({report.seconds:.1f} s)\n", flush=True)


def write_grades(path, reports):
    """Write grades.csv: a line for each student, with the points of every part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        parts = sorted({grade.part for report in reports for grade in report.grades})
        writer.writerow(["student", "seed", "score", *(f"part{number}" for number in parts),
                         "notes"])
        for report in reports:
            writer.writerow([report.student, report.seed, f"{report.score():g}",
                             *(f"{report.score(number):g}" for number in parts),
                             "; ".join(report.notes)])


def check_results(results, students):
    """Raise UserError if a folder holds grades of other students, which would be overwritten."""
    path = results / "junit.xml"
    if path.exists():
        try:
            suites = ElementTree.parse(path).iter("testsuite")
        except ElementTree.ParseError as error:
            raise UserError(f"{path} is damaged: {error}. Try another --results") from error
        others = {suite.get("name", "") for suite in suites} - set(students)
        if others:
            raise UserError(f"--results must be a folder without grades of others, got {results} "
                            f"with those of {', '.join(sorted(others)[:3])}. Try another folder")


def grade(path, results, modules, tests, quality=False, parts=tuple(PARTS)):
    """Grade some parts of the submissions in a path, print the points, and write the results into a
    folder. Returns the Reports.
    """
    check_parts(parts)
    if results.exists() and not results.is_dir():
        raise UserError(f"--results must be a folder, got the file {results}. Try another name")
    submissions = submissions_of(path, results)
    is_class = len(submissions) > 1
    check_results(results, submissions)
    results.mkdir(parents=True, exist_ok=True)      # or say before all the work that it cannot be
    reports = []
    with Server() as server:
        grader = Grader(server, modules, tests, parts)
        for student, paths in submissions.items():
            try:
                report = grader.grade(student, paths, quality)
            except Exception as error:      # no submission may stop the grading of the others
                note = f"could not be graded ({type(error).__name__}: {error}): grade it by hand"
                report = Report(student, notes=[note])
            reports.append(report)
            print_report(report)
            folder = results / report.student if is_class else results
            write_text(folder / "results.json", json.dumps(gradescope(report), indent=2) + "\n")
            write_text(folder / "junit.xml", junit([report]))
            if is_class:                    # after each one: nothing is lost if it is interrupted
                write_grades(results / "grades.csv", reports)
                write_text(results / "junit.xml", junit(reports))
    return reports
