"""Your own data: a folder with train, validation and perhaps test, as .tsv, .csv or .jsonl files.

Every value is read as text, whatever the format, so that the same table means the same in all
three. What is a text column, and whether labels are classes or a regression, is decided here.
"""
import csv
import hashlib
import json
import math
import re

import datasets
import numpy as np

from data.errors import UserError, short_message
from data.files import is_folder
from data.hub import cached

KINDS = ("tsv", "csv", "jsonl")
NESTED = (list, dict)
# not read as text: what identifies a row, also the index that pandas writes
ID_COLUMN = re.compile(r"label|part|unnamed: \d+|index|idx|(q|u|gu|uu|pair|row|doc)?id|.*[_ ]id",
                       re.IGNORECASE)
FORMAT = 1        # part of the cache's key: raise it when read_table changes what it returns


# ---- Files ---------------------------------------------------------------------------------------


def find_split_files(folder):
    """Return {split: file} of a folder: train, validation and perhaps test."""
    if not is_folder(folder):
        raise UserError(f"--data must be a folder with train.tsv and validation.tsv (or .csv, or "
                        f".jsonl), got {folder}: no such folder")
    found = {}
    for split in ("train", "validation", "test"):
        files = [folder / f"{split}.{kind}" for kind in KINDS]
        files = [path for path in files if path.exists()]
        if len(files) == 1:
            found[split] = files[0]
        elif files or split != "test":
            got = " and ".join(path.name for path in files) or f"no {split}.tsv, .csv or .jsonl"
            raise UserError(f"--data must have one file for each split, got {got} in {folder}")
    return found


def read_table(path):
    """Return {column: list of values} of a .tsv, .csv or .jsonl in UTF-8. Raises UserError.

    A value is text or None; in a .jsonl it may also be a list or dict.
    """
    try:
        # utf-8-sig: Excel begins a file with a byte order mark
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = read_jsonl(path, file) if path.suffix == ".jsonl" else read_csv(path, file)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} must be UTF-8, got {short_message(error)}. Try to save it as "
                        "UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{path} cannot be read ({short_message(error)}). Try to save it again as "
                        "a table of text") from error
    if not table or not next(iter(table.values())):
        raise UserError(f"{path} cannot be read: there are no rows. It must have a line of column "
                        "names, then one line for each row")
    return table


def read_csv(path, file):
    """Read a .csv, or a .tsv, in which quotes are characters like others."""
    csv.field_size_limit(2**31 - 1)
    if path.suffix == ".tsv":
        lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        lines = csv.reader(file, strict=True)
    names = [name.strip() for name in next(lines, [])]
    for name in names:
        if name and names.count(name) > 1:
            raise UserError(f"{path} must have columns of different names, got {name!r} twice. Try "
                            "to rename one")
    columns = [[] for _ in names]
    for line in lines:
        if not line:
            continue
        if len(line) != len(names):
            raise UserError(f"{path}, line {lines.line_num} must have {len(names)} columns as "
                            f"the first line, got {len(line)}")
        for column, value in zip(columns, line):
            column.append(value)
    return {name: column for name, column in zip(names, columns) if name}


def read_jsonl(path, file):
    """Read a .jsonl: an object on each line. A column that a line lacks is None there."""
    table = {}
    n = 0
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            # half of a surrogate pair, such as \ud83d alone, is no character
            if "\\u" in line:
                json.dumps(row, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number} must be JSON of Unicode text, got "
                            f"{short_message(error)}. Try to save it again") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number} must be an object such as "
                            f'{{"text": "...", "label": "..."}}, got {line.strip()[:40]}')
        for name, value in row.items():
            column = table.setdefault(name.strip(), [])
            column += [None] * (n - len(column))
            column.append(json_text(value))
        n += 1
    for column in table.values():
        column += [None] * (n - len(column))
    return table


def json_text(value):
    """Return a value of JSON as the text that a .csv would hold; null and NaN are None."""
    if value is None or isinstance(value, (str, *NESTED)):
        return value
    return None if value != value else str(value)


def count_rows(folder):
    """Return the number of training rows of a folder."""
    return len(next(iter(read_table(find_split_files(folder)["train"]).values())))


# ---- Columns -------------------------------------------------------------------------------------


def as_number(text):
    """Return a text as a float, or None if it is not a number."""
    try:
        return float(text)
    except ValueError:
        return None


def is_text_column(name, values):
    """Whether a column is text: not an identifier by its name, and not made of numbers alone."""
    if ID_COLUMN.fullmatch(name) or any(isinstance(value, NESTED) for value in values):
        return False
    return any(value and as_number(value) is None for value in values)


def find_text_columns(table, path):
    """Return the one or two text columns of the training rows. Raises UserError."""
    texts = tuple(name for name, values in table.items() if is_text_column(name, values))
    if not 1 <= len(texts) <= 2:
        raise UserError(f"{path} must have one or two text columns beside label, got {len(texts)} "
                        f"({', '.join(texts)}). Identifiers, numbers and part are not text. Try "
                        "to remove other columns")
    return texts


def check_table(table, path, texts, needs_label):
    """Raise UserError where a split lacks a column or a text, or holds what is not text."""
    for name in (*texts, "label") if needs_label else texts:
        if name not in table:
            hint = " Columns are separated by commas" if path.suffix == ".csv" else ""
            raise UserError(f"{path}: there is no column {name!r}; its columns are "
                            f"{', '.join(table)} and must include {', '.join(texts)}"
                            f"{' and ' if texts else ''}label.{hint}")
    for name in texts:
        for row, value in enumerate(table[name], start=1):
            if isinstance(value, NESTED):
                raise UserError(f"{path}: {name} must be text, got {str(value)[:40]} in row {row}")
        missing = sum(value is None for value in table[name])
        if missing:
            raise UserError(f"{path}: {rows(missing)} without {name}, but every row must have one")


def rows(n):
    return f"{n:,} row" if n == 1 else f"{n:,} rows"


# ---- Labels --------------------------------------------------------------------------------------


def clean_labels(table, path):
    """Return the labels of a split as text without spaces around it. Raises UserError if one is
    missing: empty, null or NaN. Returns None if there are none at all, as in a test set.
    """
    labels = []
    for row, value in enumerate(table.get("label", ()), start=1):
        if isinstance(value, NESTED):
            raise UserError(f"{path}: label must be a text or a number, got {str(value)[:40]} in "
                            f"row {row}")
        text = (value or "").strip()
        labels.append("" if text.lower() == "nan" else text)
    missing = labels.count("")
    if missing == len(labels) and path.stem == "test":
        return None
    if missing:
        raise UserError(f"{path.stem}: {rows(missing)} without a label. Every row of {path} must "
                        "have one. Try to remove the others")
    return labels


def find_classes(labels):
    """Return the class names in order, or None for a regression.

    Labels that are all numbers are a regression if one is not whole, or if all are written with a
    point (1.0). Otherwise equal numbers (1 and 1.0) are one class.

    Example:
    >>> find_classes(["b", "a", "b"]), find_classes(["10", "2", "2.0"]), find_classes(["1", "1e-5"])
    (['a', 'b'], ['2', '10'], None)
    """
    seen = sorted(set(labels))
    numbers = [as_number(label) for label in seen]
    if None in numbers:
        return seen
    for label, number in zip(seen, numbers):
        if math.isinf(number):
            raise UserError(f"train: every label must be a finite number, got {label!r}")
    if all(number.is_integer() for number in numbers) and not all("." in label for label in seen):
        return [str(int(number)) for number in sorted(set(numbers))]
    return None


def encode(labels, names, path):
    """Return labels as class numbers (n,) int64, or as values (n,) float32. Raises UserError."""
    numbers = [as_number(label) for label in labels]
    if names is None:
        for label, number in zip(labels, numbers):
            if number is None or math.isinf(number):
                raise UserError(f"{path}: every label must be a number such as 2.5, as in the "
                                f"training rows, got {label!r}")
        return np.array(numbers, dtype=np.float32)
    class_of = {name: i for i, name in enumerate(names)}
    if all(as_number(name) is not None for name in names):
        labels = [str(int(number)) if number is not None and number.is_integer() else label
                  for label, number in zip(labels, numbers)]
    wrong = [label for label in labels if label not in class_of]
    if wrong:
        raise UserError(f"{path}: label must be one of {', '.join(names)}, got {wrong[0]!r} in "
                        f"{rows(len(wrong))}")
    return np.array([class_of[label] for label in labels], dtype=np.int64)


# ---- A folder ------------------------------------------------------------------------------------


def generate_rows(path, columns, sha256, version):
    """Yield the rows of a file. sha256 and version are only there for the cache's key."""
    table = read_table(path)
    for values in zip(*(table[name] for name in columns)):
        yield dict(zip(columns, (value or "" for value in values)))


def read_folder(folder):
    """Read your own data: ({split: datasets.Dataset}, text columns, {split: labels}, class names).

    The class names are None for a regression. Raises UserError.
    """
    files = find_split_files(folder)
    tables = {split: read_table(path) for split, path in files.items()}
    check_table(tables["train"], files["train"], (), needs_label=True)
    texts = find_text_columns(tables["train"], files["train"])
    found = {}
    for split, path in files.items():
        check_table(tables[split], path, texts, needs_label=split != "test")
        found[split] = clean_labels(tables[split], path)
    names = find_classes(found["train"])
    if names and len(names) < 2:
        raise UserError(f"{files['train']}: there must be at least two classes, but every label is "
                        f"{names[0]!r}")
    labels = {split: encode(values, names, files[split])
              for split, values in found.items() if values is not None}
    raw = {}
    for split, path in files.items():
        # a tuple: datasets would take a list for shards
        columns = tuple(name for name in (*texts, "part") if name in tables[split])
        key = {"path": path, "columns": columns, "version": FORMAT,
               "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        features = datasets.Features({name: datasets.Value("string") for name in columns})
        raw[split] = cached(datasets.Dataset.from_generator, generate_rows, gen_kwargs=key,
                            features=features)
    return raw, texts, labels, names
