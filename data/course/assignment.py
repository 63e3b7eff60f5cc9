"""The assignment: a copy of the project in which 25 functions are still to be written.

    python test_cofi.py --assignment FOLDER [--parts 1,3] [--seed STUDENT]

README.md beside this file describes the parts. Each can be written and tested without the others.
"""
import re
import shutil
import textwrap
from pathlib import Path
from typing import NamedTuple

from data.course.guide import ROOT
from data.course.points import POINTS
from data.course.questions import write_sheet
from data.course.sheet import sheet
from data.course.source import definitions
from data.errors import UserError

COURSE = ROOT / "data/course"


class Part(NamedTuple):
    file: str
    write: dict               # {function to write: hint}


PARTS = {
    1: Part("cofi.py", {
        "sample_z": "logit(u) is logistic noise. Add log_alpha, divide by BETA, take the sigmoid, "
                    "stretch it from [0, 1] to [STRETCH_LOW, STRETCH_HIGH], clamp it to [0, 1]. If "
                    "u is None, draw it from [EPS, 1 - EPS], where logit(u) is finite.",
        "keep_prob": "above which value of the sigmoid is the stretched one positive? Solve for "
                     "the noise: its distribution function is the sigmoid.",
        "final_z": "no noise: the sigmoid of (FINAL_SHARPNESS * log_alpha / BETA)."}),
    2: Part("cofi.py", {
        "MaskedLayerNorm.forward": "take sums over x * kept instead of means over x, and divide "
                                   "them by the number of dimensions that are kept.",
        "MHA.split_heads": "unflatten the last dimension, then swap it with T.",
        "MHA.scores": "split_heads(query) times split_heads(key) transposed, over the square root "
                      "of k.",
        "MHA.forward": "scores of -inf where a key is padding, softmax over the keys, dropout, "
                       "times split_heads(value); apply z_head here; put the "
                       "heads side by side again; out; z_mha and z_hidn; then dropout, residual "
                       "connection and norm.",
        "FFN.forward": "up, gelu, z_int, down, z_ffn, z_hidn; then dropout, residual connection "
                       "and norm.",
        "Layer.forward": "skip a sub-layer that is None. One that is not alive gives x: use "
                         "torch.where, so that no branch depends on the data."}),
    3: Part("cofi.py", {
        "Masks.sparsity": "1 minus the size with these masks over the size with masks of ones.",
        "expected_size": "torch.einsum: its letters are the subscripts of the sum.",
        "count_encoder_weights": "those parameters of bert.layers that have two dimensions.",
        "lagrangian": "a linear term in s - t, plus a quadratic one."}),
    4: Part("cofi.py", {
        "pred_loss": "F.kl_div takes log p of the student first, then p of the teacher; batchmean "
                     "divides by the number of rows only. With one logit: F.mse_loss.",
        "match_layers": "go through i from the last to the first; give layers that may not be "
                        "chosen an infinite distance; after a match only lower layers may be "
                        "chosen.",
        "layer_loss": "first distance (n, L) of the distilled teacher layers, without gradient; "
                      "then match_layers (fixed needs neither); then the same squared error again, "
                      "with gradient, for the matched layers."}),
    5: Part("cofi.py", {
        "deterministic_masks": "round the sum of p along each row; rank says who is among the "
                               "first.",
        "fold": "scale by diag(rows) and diag(columns), then keep the rows and columns above 0.",
        "fold_norm": "multiply by z_hidn, then keep what is open.",
        "fold_mha": "a head is k rows of query, key and value, and k columns of out.",
        "fold_ffn": "a unit is a row of up and a column of down."}),
    6: Part("sparsebert.py", {
        "magnitude_mask": "a score for each block, -1 where nothing is left of it; topk of all "
                          "scores; repeat the mask of a block for its weights.",
        "cubic_sparsity": "the share still to be pruned falls from 1 at t = 0 to 0 at t = 1, as a "
                          "cube.",
        "hidden_loss": "a mean over d, then over the tokens that are not padding.",
        "attention_loss": "a pair counts if neither of its tokens is padding."}),
}


def blank(source, hints, what):
    """Return source with functions reduced to docstring and hint; calling one raises an error.

    hints: {function: hint}; what: the start of the error's message, such as "part 1".
    """
    nodes, lines = definitions(source), source.splitlines()
    # from the last to the first, so that the lines of the others stay where they are
    for name in sorted(hints, key=lambda name: -nodes[name].lineno):
        docstring = nodes[name].body[0]
        indent = " " * docstring.col_offset
        hint = textwrap.wrap(f"# Hint: {hints[name]}", 100, initial_indent=indent,
                             subsequent_indent=f"{indent}# ")
        lines[docstring.end_lineno:nodes[name].end_lineno] = [
            *hint, f'{indent}raise NotImplementedError("{what}: {name}")']
    return "\n".join(lines) + "\n"


def hide_derivation(source):
    """Leave out of a banner what part 1 asks to derive."""
    lines = [line for line in source.splitlines() if not line.startswith("#     P(z > 0) =")]
    return "\n".join(lines) + "\n"


def student_text(numbers, seed):
    """Return ASSIGNMENT.md for some parts, with the numbers of a student."""
    template = (COURSE / "ASSIGNMENT.md").read_text("utf-8")
    parts = (COURSE / "parts.md").read_text("utf-8")
    chosen = [text for text in re.split(r"^(?=## Part \d)", parts, flags=re.MULTILINE)
              if text[8:9].isdigit() and int(text[8]) in numbers]
    rows = ["| part | file | functions | points |", "|---|---|---|---|"]
    for number in numbers:
        names = ", ".join(f"`{name}` {points}" for name, points in POINTS[number].items())
        total = sum(POINTS[number].values())
        rows.append(f"| {number} | `{PARTS[number].file}` | {names} | {total} |")
    text = template.replace("<<summary>>", "\n".join(rows)).replace("<<parts>>", "".join(chosen))
    for question, (words, _) in sheet(seed).items():
        text = text.replace(f"<<{question}>>", words)
    return text.rstrip() + "\n"


def answer_form(numbers, seed):
    """Return answers.txt for some parts: whose questions these are, and a line for each."""
    questions = [question for question in sheet(seed) if int(question[0]) in numbers]
    return "\n".join([f"seed {seed}".strip(), *questions]) + "\n"


def check_parts(numbers):
    """Raise UserError for the number of a part that does not exist."""
    if not set(numbers) <= PARTS.keys() or not numbers:
        raise UserError(f"--parts must be some of {', '.join(map(str, PARTS))}, got "
                        f"{', '.join(map(str, numbers))}")


def write_assignment(folder, numbers=tuple(PARTS), seed=""):
    """Write a copy of the project in which the functions of some parts are still to be written.

    folder: a Path: new, empty, or with nothing but .git; seed: of the student's questions. Raises
    UserError otherwise.
    """
    if ROOT / "data" in (folder.resolve(), *folder.resolve().parents):
        raise UserError(f"--assignment must be outside of the project's data, got {folder}. Try "
                        "another folder")
    if folder.exists() and (not folder.is_dir() or any(x.name != ".git" for x in folder.iterdir())):
        raise UserError(f"--assignment must be a new or an empty folder, got {folder}")
    check_parts(numbers)
    seed = seed.strip()                 # answers.txt has no spaces at the end of a line
    shutil.copytree(ROOT / "data", folder / "data", ignore=left_out)
    for name in ("test_cofi.py", "requirements.txt", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / ".gitignore").write_text("__pycache__/\n.venv/\nout/\n*.part\n", "utf-8")
    (folder / "ASSIGNMENT.md").write_text(student_text(numbers, seed), "utf-8")
    (folder / "answers.txt").write_text(answer_form(numbers, seed), "utf-8")
    for file in ("cofi.py", "sparsebert.py"):
        source = (ROOT / file).read_text("utf-8")
        for number in numbers:
            if PARTS[number].file == file:
                source = blank(source, PARTS[number].write, f"part {number}")
        if file == "cofi.py" and 1 in numbers:
            source = hide_derivation(source)
        (folder / file).write_text(source, "utf-8")
    answers = {question: answer for question, (_, answer) in sheet(seed).items()}
    write_sheet(folder / "data/course/sheet.json", seed, answers)


def left_out(folder, names):
    """Return what the copy does not need, or must not hold: the tests of the project's upkeep, the
    grading, and the benchmark, which holds plain versions of some functions.
    """
    folder = Path(folder)
    if folder == ROOT / "data/tests":
        return [name for name in names if name not in ("__init__.py", "common.py")]
    if folder == COURSE:
        kept = ("__init__.py", "commands.py", "guide.py", "questions.py", "source.py")
        return [name for name in names if name not in kept]
    return [name for name in names if name in ("__pycache__", "results")
            or name.startswith("README")]
