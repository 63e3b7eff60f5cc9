"""Checking an answer to a question of the course.

    python test_cofi.py --answer 3b 12.5

Five digits count. The copy for an assignment holds a sheet.json with a slow, salted hash of each
answer: an answer can be checked, but not read, and too many would have to be tried to guess it.
"""
import hashlib
import json
import math
import re
from pathlib import Path

from data.errors import UserError
from data.files import read_json

SHEET = Path(__file__).parent / "sheet.json"
DIGITS = 5
NUMBERS = tuple(f"{part}{letter}" for part in range(1, 7)
                for letter in ("ab" if part in (2, 4) else "abc"))


def digest(seed, question, number):
    """Return the hash of an answer, of which five digits count. It takes a tenth of a second."""
    text = f"{number:.{DIGITS}g}".encode()
    salt = f"{seed} {question}".encode()
    return hashlib.scrypt(text, salt=salt, n=2**14, r=8, p=2, maxmem=2**26, dklen=16).hex()


def readings(text):
    """Return the numbers that a text may stand for.

    Example:
    >>> readings("0,25"), readings("25 %"), readings("84,934,656"), readings("3,072"), readings("x")
    ([0.25], [0.25], [84934656.0], [3.072, 3072.0], [])
    """
    match = re.fullmatch(r"\s*([+-]?[\d.,_' ]*\d[\d.,_' ]*(?:[eE][+-]?\d+)?)\s*(%?)\s*", text)
    if not match:
        return []
    number = re.sub(r"[_' ]", "", match[1])
    candidates = [number.replace(",", ".")] if number.count(",") == 1 else []
    candidates.append(number.replace(",", ""))
    found = []
    for candidate in candidates:
        try:
            value = float(candidate) / (100 if match[2] else 1)
        except ValueError:
            continue
        is_thousands = re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?", number) is not None
        if candidate == number.replace(",", "") and "," in number and not is_thousands:
            continue
        found.append(value)
    return found


def same_as(answer):
    """Return a function that tells whether a number has the five digits of an answer."""
    return lambda number: f"{number:.{DIGITS}g}" == f"{answer:.{DIGITS}g}"


def is_right(text, matches):
    """Whether one of the readings of a text is right, the last of its five digits give or take one.

    matches(number): whether a number is the answer.
    """
    for value in filter(math.isfinite, readings(text)):     # 1e999 is not
        exponent = int(f"{value:.{DIGITS - 1}e}".split("e")[1])
        unit = 10.0 ** (exponent - DIGITS + 1)
        if any(matches(value + step * unit) for step in (0, 1, -1)):
            return True
    return False


def write_sheet(path, seed, answers):
    """Write sheet.json. answers: {question: number}."""
    digests = {question: digest(seed, question, number) for question, number in answers.items()}
    path.write_text(json.dumps({"seed": seed, "digests": digests}, indent=1) + "\n", "utf-8")


def check_answer(question, text):
    """Print whether an answer, given as text, is right. Returns the exit code: 0 or 1."""
    if question not in NUMBERS:
        raise UserError(f"--answer must be followed by one of {', '.join(NUMBERS)}, got {question}")
    if not readings(text):
        raise UserError(f"--answer {question} must be followed by a number such as 0.125, got "
                        f"{text}. Try it with five digits")
    if SHEET.exists():
        saved = read_json(SHEET)
        right = is_right(text, lambda number: digest(saved["seed"], question, number)
                         == saved["digests"][question])
    else:
        from data.course.sheet import sheet         # not in the copy for an assignment
        _, answer = sheet("")[question]
        right = is_right(text, same_as(answer))
    digits = len(re.sub(r"[^\d]", "", text.lower().split("e")[0]).lstrip("0"))
    hint = f", and this has {digits}" if digits < DIGITS and not right else ""
    print(f"{question}: {'right' if right else 'not yet'} (five digits count{hint})")
    return 0 if right else 1
