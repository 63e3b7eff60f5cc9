"""Your own data: a folder with train, validation and perhaps test, as .tsv, .csv or .jsonl files.

Every value is read as text, whatever the format, so that the same table means the same in all
three. What is a text column, and whether labels are classes or a regression, is decided here.
"""
import codecs
import csv
import hashlib
import json
import math
import os
import re
import unicodedata
from decimal import Decimal

import datasets
import numpy as np

from data.errors import UserError, short_message
from data.files import is_folder
from data.hub import cached

LABEL = ("label", "labels")     # in any case
KINDS = ("tsv", "csv", "jsonl")
SPLITS = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"),
          "test": ("test",)}
NESTED = (list, dict)
# not read as text: what identifies a row, also the index that pandas writes
ID_COLUMN = re.compile(r"labels?|label_.*|part|unnamed: \d+|index|idx|(q|u|gu|uu|pair|row|doc)?id|"
                       r".*[_ ]id|.*(?-i:[a-z]I[dD])", re.IGNORECASE)
SHARD = re.compile(r"-\d{5}-of-\d{5}\.")      # one of the files of a split, as the hub names them
# what float() takes beyond this, such as 1_000 or other scripts' digits, is text
NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|inf|infinity)\s*",
                    re.ASCII | re.IGNORECASE)
# an amount, a share, a date or a time: 3,500 or $3.50 or 7 % or 2024-01-31 12:30
FIGURES = re.compile(r"\s*[+-]?[$€£]?\d[\d.,:/-]*\s?[%$€£]?([ T]\d[\d:.]*)?(\s?[ap]\.?m\.?)?"
                     r"(\s?(Z|UTC|[+-]\d\d:?\d\d))?\s*", re.ASCII | re.IGNORECASE)
CODE = re.compile(r"\s*[!-~]*\d[!-~]*\s*", re.ASCII)    # one word with a digit: u17, a hash, a URL
OTHER_NUMBER = re.compile(r"[+-]?[$€£]?\d+(,\d{3})*([.,]\d+)?\s?[%$€£]?", re.ASCII)
MISSING = {"", "nan", "nat", "<na>"}    # as labels; the last two are written by pandas
NO_TEXT = MISSING | {"na", "n/a", "#n/a", "null", "none", "-", "true", "false"}    # in any case
MAX_SHOWN = 8                           # class names in a line
MAX_LABEL = 1e15                        # of a label: its square must be finite in fp32
TSV_QUOTES = "In a .tsv quotes are characters like others"
FORMAT = 5        # part of the cache's key: raise it when generate_rows changes what it yields


# ---- Files ---------------------------------------------------------------------------------------


def find_split_files(folder):
    """Return {split: file} of a folder: train, validation and perhaps test."""
    if not is_folder(folder):
        got = "a file. Try its folder" if os.path.isfile(folder) else "no such folder"
        raise UserError(f"--data must be a folder with train.tsv and validation.tsv (or .csv, or "
                        f".jsonl), got {folder}: {got}")
    there = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    found = {}
    for split, stems in SPLITS.items():
        named = [path for path in there if path.is_file()
                 and re.split("[._-]", path.name.lower())[0] in stems]
        files = [path for path in named if path.stem.lower() in stems and kind_of(path) in KINDS]
        files += [path for path in named if SHARD.search(path.name)] if files else []
        if len(files) == 1:
            found[split] = files[0]
        elif files or split != "test":
            got = " and ".join(path.name for path in files) or f"no {split}.tsv, .csv or .jsonl"
            names = ", ".join(path.name for path in there[:MAX_SHOWN]) or "nothing"
            hint = f"Try to name it {split}.csv, or .tsv or .jsonl"
            if files:
                hint = "Try to keep one"
            elif len(named) > 1:
                hint = f"Try to join them into one {split}.csv"
            elif any(path.stem.lower() in stems for path in there if not path.is_file()):
                hint = "Of these names one is a folder or a broken link. Try to put the file there"
            elif named and kind_of(named[0]) == "json":
                hint = f"Try to write one object on each line, as {split}.jsonl"
            elif named:
                verb = "rename" if kind_of(named[0]) in KINDS else "export"
                hint = f"Try to {verb} {named[0].name} as {split}.csv"
            elif split == "validation":
                hint = "Try to move some of the training rows to validation.csv"
            raise UserError(f"--data must have one file for each split, got {got} in {folder}. "
                            f"There is: {names}. {hint}")
    return found


def kind_of(path):
    """Return the end of a file's name, without its point and in lower case."""
    return path.suffix[1:].lower()


def read_table(path):
    """Return {column: list of values} of a .tsv, .csv or .jsonl. Raises UserError.

    A value is text or None; in a .jsonl it may also be a list or dict.
    """
    with path.open("rb") as file:
        start = file.read(4)
    # Excel begins a file with a byte order mark, and its "Unicode text" is UTF-16
    is_utf_16 = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if start == codecs.BOM_UTF32_LE or b"\0" in start and not is_utf_16:
        raise UserError(f"{path} must be UTF-8, got bytes of 0: binary, UTF-32, or UTF-16 without "
                        "its mark. Try to save it as UTF-8")
    try:
        with path.open(newline="", encoding="utf-16" if is_utf_16 else "utf-8-sig") as file:
            table = read_jsonl(path, file) if kind_of(path) == "jsonl" else read_csv(path, file)
    except UnicodeDecodeError as error:
        if start.startswith(b"PK"):
            raise UserError(f"{path} must be text, got an Excel file or a .zip. Try to export it "
                            "as CSV in UTF-8") from error
        raise UserError(f"{path} must be UTF-8, got {short_message(error)}. Try to save it as "
                        "UTF-8") from error
    if not table or not next(iter(table.values())):
        raise UserError(f"{path} cannot be read: there are no rows. It must have a line of column "
                        "names, then one line for each row")
    return table


def find_delimiter(file):
    """Return what separates the columns of a .csv: what Excel names in its first line (sep=;), or
    what gives a column label, and the most columns.
    """
    first = next((line for line in iter(file.readline, "") if line.strip()), "")
    if re.fullmatch(r"sep=[,;\t]\s*", first, re.IGNORECASE):
        return first[4]
    columns = {}
    for delimiter in ",;\t":
        file.seek(0)
        lines = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
        columns[delimiter] = next((line for line in lines if any(map(str.strip, line))), [])
    file.seek(0)

    def quality(delimiter):
        names = columns[delimiter]
        return any(name.strip().lower() in LABEL for name in names), len(names)

    best = max(columns, key=quality)
    # of one column, separators are part of the text: \x1f is none
    return best if columns[best][1:] else "\x1f"


def read_csv(path, file):
    """Read a .csv, or a .tsv, in which quotes are characters like others."""
    csv.field_size_limit(2**31 - 1)
    is_tsv = kind_of(path) == "tsv"
    if is_tsv:
        lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        # "a", "b": the quotes after a space are quotes, too
        lines = csv.reader(file, delimiter=find_delimiter(file), strict=True, skipinitialspace=True)
    names, columns = [], []
    try:
        for line in lines:
            if not names:
                names = check_names(path, line) if any(map(str.strip, line)) else []
                columns = [[] for _ in names]
            elif line and (any(map(str.strip, line)) or len(line) == len(names)):
                if len(line) != len(names):
                    hint = "Try to put quotes around texts with a separator"
                    if len(line) == len(names) + 1 and lines.line_num == 2:
                        hint = "Try to name every column in the first line, also one of numbers"
                    if is_tsv:
                        hint = "Try to write tabs and line breaks of a text as spaces"
                    if is_tsv and any('"' in cell for cell in line):
                        hint = f"{TSV_QUOTES}. Try to name it .csv"
                    raise UserError(f"{path}, line {lines.line_num} must have {len(names)} columns "
                                    f"as the first line, got {len(line)}. {hint}")
                for column, value in zip(columns, line):
                    column.append(value)
    except csv.Error as error:
        raise UserError(f"{path}, line {lines.line_num} cannot be read ({short_message(error)}). "
                        'Try to write a text with quotes as "a ""word"" in quotes"') from error
    return {name: column for name, column in zip(names, columns) if name}


def check_names(path, names):
    """Return column names as short_name writes them, with Label or labels as label. Raises
    UserError if two are equal.
    """
    names = [short_name(name) for name in names]
    labels = [name for name in names if name.lower() in LABEL]
    if len(labels) == 1:
        names[names.index(labels[0])] = "label"
    elif labels and "label" not in names:
        raise UserError(f"{path} must have one column label, got {' and '.join(labels)}. Try to "
                        "rename one")
    for name in names:
        if name and names.count(name) > 1:
            raise UserError(f"{path} must have columns of different names, got {name!r} twice. Try "
                            "to rename one")
    return names


def short_name(text):
    """Return a text without spaces around it, and with one space for several or a line break."""
    return " ".join(text.split())


def read_jsonl(path, file):
    """Read a .jsonl: an object on each line. A column that a line lacks is None there."""
    table = {}
    n = 0
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=unique_names)
            # half of a surrogate pair, such as \ud83d alone, is no character
            if "\\u" in line:
                json.dumps(row, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number} must be JSON of Unicode text, got "
                            f"{short_message(error)}. Try to save it again") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number} must be an object such as "
                            f'{{"text": "...", "label": "..."}}, got {line.strip()[:40]}')
        for name, value in zip(check_names(path, row), row.values()):
            column = table.setdefault(name, [])
            column += [None] * (n - len(column))
            column.append(json_text(value))
        n += 1
    for column in table.values():
        column += [None] * (n - len(column))
    table.pop("", None)
    return table


def unique_names(pairs):
    """Make an object of JSON. Raises ValueError for a name that comes twice."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {max(names, key=names.count)!r} twice")
    return row


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
    return float(text) if NUMBER.fullmatch(text) else None


def is_text(value):
    """Whether a value is a text, not a number, code, date, truth value, or a word for none."""
    return not (value is None or value.strip().lower() in NO_TEXT or NUMBER.fullmatch(value)
                or FIGURES.fullmatch(value) or CODE.fullmatch(value))


def find_text_columns(table, path):
    """Return the one or two text columns of the training rows. Raises UserError.

    They are not identifiers by their name, and have a text in some row. A column with one value in
    all rows is not read if others are left.
    """
    possible = [name for name, values in table.items() if not ID_COLUMN.fullmatch(name)
                and not any(isinstance(value, NESTED) for value in values)]
    texts = [name for name in possible if any(map(is_text, table[name]))]
    if not texts:       # arithmetic or dates may be all there is
        texts = [name for name in possible
                 if any(value and as_number(value) is None for value in table[name])]
    texts = [name for name in texts if len(set(table[name])) > 1] or texts
    if not 1 <= len(texts) <= 2:
        others = [name for name in table if name not in texts and name != "label"]
        raise UserError(f"{path} must have one or two text columns beside label, got {len(texts)} "
                        f"({few(texts)}). Identifiers and numbers are no text: "
                        f"{few(others) or 'none here'}. Try to remove or rename columns")
    return tuple(texts)


def check_table(table, path, texts, needs_label):
    """Raise UserError where a split lacks a column or a text, or holds what is not text."""
    needed = (*texts, "label") if needs_label else texts
    for name in needed:
        if name not in table:
            raise UserError(f"{path}: there is no column {name!r}; its columns are {few(table)} "
                            f"and must include {' and '.join(needed)}. {column_hint(path, table)}")
    for name in texts:
        for row, value in enumerate(table[name], start=1):
            if isinstance(value, NESTED):
                raise UserError(f"{path}: {name} must be text, got {str(value)[:40]} in row {row}")
        missing = sum(value is None for value in table[name])
        if missing:
            raise UserError(f"{path}: {rows(missing)} without {name}, but every row must have one")


def column_hint(path, table):
    """Return what is likely wrong where a column is missing."""
    if kind_of(path) == "tsv" and any('"' in name for name in table):
        return f"{TSV_QUOTES}. Try to save it as .csv"
    if kind_of(path) == "tsv" and re.fullmatch(".*[,;].*", "".join(table)):
        return "In a .tsv columns are separated by tabs. Try to name it .csv"
    if kind_of(path) == "jsonl":
        return "Try to rename one"
    if kind_of(path) == "csv" and len(table) == 1:
        return ("In a .csv columns are separated by commas, semicolons or tabs, and the first line "
                "is their names. Try to save it so")
    return "Try to rename one; the first line must be the names of the columns"


def rows(n):
    return f"{n:,} row" if n == 1 else f"{n:,} rows"


def few(names):
    """Return the first names as text, separated by commas."""
    more = ", ..." if len(names) > MAX_SHOWN else ""
    return ", ".join(list(names)[:MAX_SHOWN]) + more


# ---- Labels --------------------------------------------------------------------------------------


def clean_labels(table, path):
    """Return the labels of a split as short_name writes them. Raises UserError if one is missing:
    empty, null or NaN. Returns None if there are none at all, as in a test set.
    """
    labels = []
    for row, value in enumerate(table.get("label", ()), start=1):
        if isinstance(value, NESTED):
            raise UserError(f"{path}: label must be a text or a number, got {str(value)[:40]} in "
                            f"row {row}")
        # two ways to write an accent are one
        text = unicodedata.normalize("NFC", short_name(value or ""))
        labels.append("" if text.lower() in MISSING else text)
    missing = labels.count("")
    if path.stem.lower() == "test" and missing == len(labels):
        return None
    if missing:
        raise UserError(f"{path.stem}: {rows(missing)} without a label, the first is row "
                        f"{labels.index('') + 1}. Every row of {path} must have one. Try to remove "
                        "the others")
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
        words = [label for label, number in zip(seen, numbers)
                 if number is None and label.lower() not in NO_TEXT]
        if words and all(map(OTHER_NUMBER.fullmatch, words)):
            raise UserError(f"train: labels that are numbers must be written as 3.5, got "
                            f"{words[0]!r}. Try to write them so, or to give the classes names")
        return seen
    for label, number in zip(seen, numbers):
        if math.isinf(number):
            raise UserError(f"train: every label must be a finite number, got {label!r}")
    if all(number.is_integer() for number in numbers) and not all("." in label for label in seen):
        # Decimal, because a float is not exact above 2^53
        return [str(number) for number in sorted({int(Decimal(label)) for label in seen})]
    return None


def encode(labels, names, path):
    """Return labels as class numbers (n,) int64, or as values (n,) float32. Raises UserError."""
    numbers = [as_number(label) for label in labels]
    if names is None:
        wrong = [label for label, number in zip(labels, numbers)
                 if number is None or abs(number) > MAX_LABEL]
        if wrong:
            raise UserError(f"{path}: every label must be a number such as 2.5, up to "
                            f"{MAX_LABEL:g}, as in the training rows, got {wrong[0][:40]!r} in "
                            f"{rows(len(wrong))}. Try to remove them")
        if path.stem.lower() != "test" and len(set(numbers)) == 1:
            raise UserError(f"{path}: a regression must have different values, but every label is "
                            f"{labels[0]}. Try more rows")
        return np.array(numbers, dtype=np.float32)
    class_of = {name: i for i, name in enumerate(names)}
    if all(as_number(name) is not None for name in names):
        labels = [str(int(Decimal(label))) if number is not None and number.is_integer() else label
                  for label, number in zip(labels, numbers)]
    wrong = [label for label in labels if label not in class_of]
    if wrong:
        hint = ("Every class must be in the training rows. Try to remove these rows, or all labels "
                "of a test set")
        if all(as_number(name) is not None for name in (*names, wrong[0])):
            hint += ". For a regression write all labels with a point, such as 2.0"
        meant = [name for name in names if name.lower() == wrong[0].lower()]
        if meant:
            hint = f"Try to write it as {meant[0]} in all files"
        raise UserError(f"{path}: label must be one of {few(names)}, got {wrong[0][:40]!r} in "
                        f"{rows(len(wrong))}. {hint}")
    return np.array([class_of[label] for label in labels], dtype=np.int64)


# ---- A folder ------------------------------------------------------------------------------------


def generate_rows(path, columns, sha256, version):
    """Yield the rows of a file. sha256 and version are only there for the cache's key."""
    table = read_table(path)
    for values in zip(*(table[name] for name in columns)):
        row = {name: str(value or "") for name, value in zip(columns, values)}
        if "part" in row:
            row["part"] = short_name(row["part"]) or "(none)"
        yield row


def read_folder(folder, trained=()):
    """Read your own data: ({split: datasets.Dataset}, text columns, {split: labels}, class names,
    columns of the training rows that are not read).

    trained: the text columns that a model was trained on; if the folder has them, in any case, they
    are its texts. The class names are None for a regression. Raises UserError.
    """
    files = find_split_files(folder)
    tables = {split: read_table(path) for split, path in files.items()}
    check_table(tables["train"], files["train"], (), needs_label=True)
    in_lower_case = {name.lower(): name for name in tables["train"]}
    texts = tuple(in_lower_case.get(name.lower()) for name in trained)
    if not texts or None in texts:
        texts = find_text_columns(tables["train"], files["train"])
    found = {}
    for split, path in files.items():
        check_table(tables[split], path, texts, needs_label=split != "test")
        found[split] = clean_labels(tables[split], path)
    # GLUE writes -1 for a label that is secret
    numbers = {split: set(map(as_number, labels or ())) for split, labels in found.items()}
    if numbers.get("test") == {-1.0} and -1.0 not in numbers["train"]:
        found["test"] = None
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
    unread = [name for name in tables["train"] if name not in (*texts, "label", "part")]
    return raw, texts, labels, names, unread
