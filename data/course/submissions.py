"""Submissions: which students there are, the files of each, and what is taken from these.

Students hand in files, folders and .zip files with all kinds of names. Only the functions that were
to be written are taken, as text, and the answers. Nothing of a submission runs here.
"""
import ast
import codecs
import io
import json
import os
import re
import textwrap
import tokenize
import zipfile
import zlib
from functools import partial
from pathlib import Path

from data.course.assignment import PARTS
from data.course.source import definitions, source_of
from data.errors import UserError

FILES = ("sparsebert.py", "cofi.py", "answers.txt", "sheet.json")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".7z", ".rar")    # only .zip is read
MAX_BYTES = 10 * 2**20          # of a file of a submission


def submissions_of(path, results):
    """Return {student: [paths]}: the path itself, or what is in a folder of many, but the results.

    Loose files as Canvas names them, anna_55_901_cofi.py and anna_55_902_answers.txt, are one.
    """
    if not path.exists():
        raise UserError(f"--grade must be a file, a folder or a .zip, got {path}: it does not "
                        "exist")
    if not path.is_dir() or any(entry.name.lower() in FILES for entry in path.iterdir()):
        return {student_of(path): [path]}
    many, ignored = {}, []
    for entry in sorted(path.iterdir()):
        if entry.name.startswith((".", "__")) or entry.resolve() == results.resolve():
            continue
        canvas = re.match(r"(.+?_\d+)_\d+_", entry.name)
        student = canvas[1] if canvas else student_of(entry)
        if entry.is_dir() or entry.suffix.lower() in (".py", *ARCHIVES) or (
                canvas and known_name(entry)):
            if student in many and not canvas:          # ada/ and ada.zip
                student = shown(entry.name)
            many.setdefault(student, []).append(entry)
        else:
            ignored.append(entry.name)
    only = list(many.values())[0] if len(many) == 1 else []
    if len(only) == 1 and only[0].is_dir():             # a .zip unpacked into a folder
        return submissions_of(only[0], results)
    if not many:
        raise UserError(f"--grade must hold cofi.py, sparsebert.py or submissions, got {path} "
                        "with neither")
    if ignored:
        print(f"ignored: {shown(', '.join(ignored))}. A submission is a folder, a .zip or a .py "
              "file\n")
    return many


def student_of(path):
    return shown(path.stem if path.suffix.lower() == ".zip" else path.name)


def shown(name):
    """Return the name of a file as text that can be written, whatever its bytes are."""
    return os.fsencode(name).decode("utf-8", "replace")


def read_submission(paths):
    """Return {name: text} of those of FILES that are there, and notes on what is not.

    paths: of one student: .py files, .zip files, or folders; the files may be in a folder or a .zip
    within. Of several files one with the exact name is read, then the least nested one.
    """
    found, notes = {}, []
    for path in paths:
        if path.suffix.lower() in ARCHIVES[1:]:
            notes.append(f"{path.name} cannot be read. Of archives only .zip can")
        try:
            for inner, read in files_of(path):
                name = known_name(inner)
                if not name and inner == Path(path.name) and path.suffix == ".py":
                    name = "cofi.py"
                    notes.append(f"{path.name} is read as cofi.py")
                content = read() if name else None
                if content is not None:
                    found.setdefault(name, {})[inner] = content
        # what zipfile raises for a damaged file is not documented
        except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, ValueError,
                EOFError) as error:
            notes.append(f"{path.name} cannot be read ({error})")
    texts = {}
    for name, files in found.items():
        chosen = min(files, key=lambda inner: (inner.name.lower() != name, len(inner.parts), inner))
        if len(files) > 1:
            notes.append(f"{name}: {len(files)} files, of which {chosen} is read")
        try:
            texts[name] = decode(files[chosen])
        except (UnicodeDecodeError, SyntaxError):
            notes.append(f"{name} is not UTF-8")
    for name in FILES[:3]:
        if name not in found:
            notes.append(f"{name} was not handed in")
    return texts, notes


def files_of(path):
    """Yield (path, function that reads it) of a file, or of all files of a folder or a .zip.

    The function returns None if the file is too large. A link to a place outside is not followed.
    """
    if path.is_dir():
        for file in path.rglob("*"):
            is_inside = file.resolve().is_relative_to(path.resolve())
            if file.is_file() and is_inside:
                for inner, read in files_of(file):
                    yield file.relative_to(path).parent / inner, read
    elif path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                yield Path(info.filename), partial(read_small, info.file_size, archive.read, info)
    else:
        yield Path(path.name), partial(read_small, path.stat().st_size, path.read_bytes)


def read_small(size, read, *arguments):
    return read(*arguments) if size <= MAX_BYTES else None


def known_name(path):
    """Return which of FILES a file is, or "". Additions are ignored: "Cofi (1).py" is cofi.py."""
    name = path.name.lower()
    hidden = any(part.startswith((".", "__")) for part in path.parts)
    if hidden or name.startswith("test_"):
        return ""
    for known in FILES:
        stem, suffix = known.split(".")
        if stem in name and name.endswith(f".{suffix}"):
            return known
    return ""


def decode(content):
    """Return bytes as a text: UTF-8, or what a line such as `# coding: latin-1` says; or UTF-16."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):      # of Windows
        return content.decode("utf-16")
    encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    return content.decode(encoding)


def find_functions(texts, parts):
    """Return ({(part, name): source of the function}, notes) of some parts of a submission."""
    written, notes = {}, []
    for number in parts:
        part = PARTS[number]
        text = texts.get(part.file)
        if text is None:
            continue
        try:
            nodes = definitions(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            note = f"{part.file} does not parse: {error}"
            notes += [note] if note not in notes else []
            continue
        for name in part.write:
            if name not in nodes:
                notes.append(f"{part.file} has no {name}")
            elif not is_blank(nodes[name], f"part {number}: {name}"):
                written[number, name] = source_of(text, nodes[name])
    return written, notes


def read_answers(texts):
    """Return (seed, {question: text}, notes) of answers.txt.

    Its line `seed` says whose questions these are. If it is missing, sheet.json of the student's
    copy does.
    """
    answers, notes = {}, []
    seed = None
    for line in texts.get("answers.txt", "").splitlines():
        words = line.split(maxsplit=1)
        match = re.fullmatch(r"\W*(\d[a-z])\b(?:[\s:;=≈~|)*]|\.(?!\d))*(.*?)\s*", line.lower())
        if words and words[0].lower().rstrip(":=") == "seed":
            seed = "".join(words[1:]).strip()
        elif match:
            answers[match[1]] = match[2]
        elif words:
            notes.append(f"answers.txt: not understood: {line.strip()[:40]}")
    if seed is None:
        try:
            seed = str(json.loads(texts.get("sheet.json", "{}")).get("seed", ""))
        except (ValueError, AttributeError):
            seed = ""
        if answers and not seed:
            notes.append("answers.txt has no line `seed`: taken as answers without one")
    return seed, {question: text for question, text in answers.items() if text}, notes


def is_blank(node, message):
    """Whether a function is still what the assignment holds: a docstring, and its error."""
    is_docstring = isinstance(node.body[0], ast.Expr)
    first = node.body[1 if is_docstring and len(node.body) > 1 else 0]
    arguments = getattr(getattr(first, "exc", None), "args", [])
    return any(getattr(argument, "value", None) == message for argument in arguments)


def insert(source, functions):
    """Return a source in which functions are replaced. functions: {name: source}."""
    nodes, lines = definitions(source), source.splitlines()
    for name in sorted(functions, key=lambda name: -nodes[name].lineno):
        node = nodes[name]
        text, indent = functions[name], " " * node.col_offset
        if not re.match(rf"{indent}\S", text):          # a tab, or two spaces
            text = textwrap.indent(textwrap.dedent(text), indent)
        lines[node.lineno - 1:node.end_lineno] = text.split("\n")
    return "\n".join(lines) + "\n"
