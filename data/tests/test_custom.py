"""Your own data: what is read, what is understood, and what is refused before anything is trained.

Each case is a small input of a kind that people report when they fine-tune on their own files.
"""
import itertools
import json
import os

import datasets
import numpy as np
import pytest

import cofi
from data import custom
from data.errors import UserError
from data.hub import cached
from data.tasks import load_task, task_size
from data.tests.helpers import make_raw, make_tokenizer, write_custom

TSV = "text\tlabel\n"
PLAIN = TSV + "a b\tup\nc d\tdown\n"


def write_files(folder, **files):
    """Write files named train_csv and so on, text or bytes. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name.replace("_", ".")).write_bytes(data)
    return folder


def read(tmp_path, **files):
    """Return (text columns, class names, training labels) of a folder with these files."""
    if not any(name.startswith("validation") for name in files):
        kind = next(name for name in files if name.startswith("train")).split("_")[1]
        files |= {f"validation_{kind}": files[f"train_{kind}"]}
    _, texts, labels, names, _ = custom.read_folder(write_files(tmp_path / "d", **files))
    return texts, names, labels["train"].tolist()


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl"])
def test_custom_data(tmp_path, kind):
    task = load_task("custom", make_tokenizer(), 32, write_custom(tmp_path / "d", kind))
    raw, train = make_raw(), task.train
    assert task.names == ["down", "up"]
    assert task.metrics == ("accuracy",) and task.columns == ("text", "other")
    assert task.dev.labels.tolist() == [1 - label for label in raw["validation"]["label"]]
    for i, pair in enumerate([('a "b', "NA"), ("12", raw["train"][1]["sentence2"])]):
        ids = train.input_ids[train.offsets[i]:train.offsets[i + 1]]
        assert ids.tolist() == make_tokenizer().encode(*pair).ids


def test_custom_data_with_numbers_for_labels(tmp_path):
    for name, labels, names in [("value", ["0.5", "3.0", "2.0"], None),
                                ("class", ["10", "9", "10"], ["9", "10"])]:
        (tmp_path / name).mkdir()
        for split in ("train", "validation"):
            lines = [f"a b\t{label}\n" for label in labels]
            (tmp_path / name / f"{split}.tsv").write_text("words\tlabel\n" + "".join(lines))
        task = load_task("custom", make_tokenizer(), 32, tmp_path / name)
        assert task.names == names
        assert task.metrics == (("accuracy",) if names else ("pearson", "spearman"))
        assert task.train.labels.tolist() == ([1, 0, 1] if names else [0.5, 3.0, 2.0])


def test_rows_without_words_and_of_ten_thousand(folder, tmp_path):
    custom = write_custom(tmp_path / "d", "tsv")
    with (custom / "train.tsv").open("a") as file:
        file.write(f"71\t\t\tup\n72\t{'a ' * 10_000}\t\tdown\n")
    flags = ["--data", str(custom), "--model", str(folder), "--out", str(tmp_path / "out")]
    assert cofi.main([*flags, "--max_steps", "4"]) == 0
    train = load_task("custom", make_tokenizer(), 16, custom).train
    assert np.diff(train.offsets)[-2:].tolist() == [3, 16]          # [CLS] [SEP] [SEP]


# ---- What is understood --------------------------------------------------------------------------

# {labels of the training rows: (class names, None for a regression; labels)}
LABELS = {
    ("1", "1.0", "0", "2"): (["0", "1", "2"], [1, 1, 0, 2]),          # equal numbers are one class
    ("10", "9", "-1"): (["-1", "9", "10"], [2, 1, 0]),                # by value, not as text
    ("01", "1", "2"): (["1", "2"], [0, 0, 1]),
    (" up", "up ", "down"): (["down", "up"], [1, 1, 0]),
    ("b", "a", "1"): (["1", "a", "b"], [2, 1, 0]),
    ("none", "null", "NA"): (["NA", "none", "null"], [1, 2, 0]),      # words are classes
    ("0.5", "1e-05", "2.0"): (None, [0.5, 1e-05, 2.0]),               # one fraction: a regression
    ("1", "2", "2.5"): (None, [1.0, 2.0, 2.5]),
    ("1_1", "11", "2"): (["11", "1_1", "2"], [1, 0, 2]),              # Python's, not everybody's
    ("9007199254740993", "9007199254740992"): (["9007199254740992", "9007199254740993"], [1, 0]),
    ("caf\u00e9", "cafe\u0301", "bar"): (["bar", "caf\u00e9"], [1, 1, 0]),
    ("1.0", "3.0", "2.0"): (None, [1.0, 3.0, 2.0]),                   # all with a point
}


@pytest.mark.parametrize("labels", LABELS)
def test_classes_or_regression(tmp_path, labels):
    names, expected = LABELS[labels]
    text = TSV + "".join(f"a b\t{label}\n" for label in labels)
    _, got, encoded = read(tmp_path, train_tsv=text)
    assert got == names and encoded == pytest.approx(expected)


@pytest.mark.parametrize("rows, names, expected", [
    ([1, 0, 1], ["0", "1"], [1, 0, 1]),
    ([1.5, 2, 0], None, [1.5, 2.0, 0.0]),
    ([True, False, True], ["False", "True"], [1, 0, 1]),
    (["b", 1, "b"], ["1", "b"], [1, 0, 1]),
    (["b\nc", "a", " b  c "], ["a", "b c"], [1, 0, 1])])
def test_labels_of_jsonl(tmp_path, rows, names, expected):
    text = jsonl(*({"text": "a b", "label": label} for label in rows))
    assert read(tmp_path, train_jsonl=text)[1:] == (names, expected)


def test_names_of_parts(tmp_path):
    """Each is a line of the report; a row without one is in the part (none)."""
    text = 'text,label,part\na b,up,"x\n y "\nc d,down,\n'
    folder = write_files(tmp_path, train_csv=text, validation_csv=text)
    assert custom.read_folder(folder)[0]["train"]["part"][:] == ["x y", "(none)"]


# {header: (one row, the text columns)}
COLUMNS = {
    ",text,label": ("0,a b,up", ("text",)),                           # the index of pandas
    "Unnamed: 0,text,label": ("0,a b,up", ("text",)),
    "qid,first,second,label": ("q1,a b,c d,up", ("first", "second")),
    "id,idx,doc_id,guid,text,label": ("x,y,z,w,a b,up", ("text",)),
    "stars,text,length,label": ("5,a b,3.0,up", ("text",)),           # numbers are no text
    " text , label ": ("a b,up", ("text",)),
    "text,label,part": ("a b,up,seen", ("text",)),
    "acid,label": ("a b,up", ("acid",)),
    '"Review\ntext",label': ("a b,up", ("Review text",)),
    '"Review, in full";label': ("a b;up", ("Review, in full",)),
    "text,label,label_text": ("a b,up,very good", ("text",)),         # SetFit's layout
    "date,time,text,label": ("2024-01-31 12:30:00,12:30,a b,up", ("text",)),
    "iso,us,text,label": ("2024-01-31T12:30:00+00:00,1/31/2024 12:30 PM,a b,up", ("text",)),
    "tweeted,text,label": ("2015-02-24 11:35:52 -0800,a b,up", ("text",)),
    "text,label,labels": ("a b,up,1", ("text",)),
    "price,share,seen,text,label": ("$3.50,7 %,TRUE,a b,up", ("text",)),
    "reviewID,text,label": ("R7,a b,up", ("text",)),
    "USERID,text,label": ("u17,a b,up", ("text",)),
}
# {a column beside the text: whether it is read as a second text}
OTHER_VALUES = {
    ("12", "NA", "7"): False, ("1", "", "nan"): False, ("en", "en", "en"): False,
    ("yes", "no", "NA"): True, ("x y", "-", "null"): True, ("3 + 4", "5", "6"): True,
    ("5 a day", "1", "2"): True, ("u17", "A-2024-3", "img_1.png"): False,
    ("u17", "ann", "b2"): True, ("\u6211\u67093\u732b", "1", "2"): True,
}


@pytest.mark.parametrize("header", COLUMNS)
def test_text_columns(tmp_path, header):
    row, texts = COLUMNS[header]
    text = f"{header}\n{row}\n{row.replace('up', 'down')}\n"
    assert read(tmp_path, train_csv=text)[0] == texts


@pytest.mark.parametrize("values", OTHER_VALUES)
def test_what_is_no_text(tmp_path, values):
    lines = "".join(f"a b {i},{value},{i % 2}\n" for i, value in enumerate(values))
    texts, *_ = read(tmp_path, train_csv=f"text,other,label\n{lines}")
    assert texts == (("text", "other") if OTHER_VALUES[values] else ("text",))


@pytest.mark.parametrize("texts", [("12-5", "8/4"), ("2024-01-31", "2024-02-01"), ("none", "true")])
def test_figures_are_text_where_nothing_else_is(tmp_path, texts):
    lines = "".join(f"{text},{i}\n" for i, text in enumerate(texts))
    assert read(tmp_path, train_csv=f"text,label\n{lines}")[0] == ("text",)


def test_texts_of_a_trained_model(tmp_path):
    """They are read even where they would not be taken for texts."""
    text = "a,b,label\nx y,1,up\nz,2,down\n"
    folder = write_files(tmp_path / "d", train_csv=text, validation_csv=text)
    for trained, texts in ((), ("a",)), (("b", "a"), ("b", "a")), (("a", "c"), ("a",)):
        assert custom.read_folder(folder, trained)[1] == texts


def test_files_that_are_none(tmp_path):
    """A folder and a broken link beside the files do not matter."""
    write_files(tmp_path, train_tsv=PLAIN, validation_tsv=PLAIN)
    (tmp_path / "val.csv").mkdir()
    (tmp_path / "test.csv").symlink_to("nothing")
    assert set(custom.find_split_files(tmp_path)) == {"train", "validation"}


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_byte_order_mark(tmp_path, kind):
    """Excel writes one."""
    text = {"csv": "text,label\na b,up\nc d,down\n", "tsv": PLAIN,
            "jsonl": jsonl({"text": "a b", "label": "up"}, {"text": "c d", "label": "down"})}[kind]
    got = read(tmp_path, **{f"train_{kind}": b"\xef\xbb\xbf" + text.encode()})
    assert got == (("text",), ["down", "up"], [1, 0])


@pytest.mark.parametrize("text", [
    "text;label\na, b;up\nc d;down\n", "sep=;\ntext;label\na b;up\nc d;down\n",
    "text\tlabel\na b\tup\nc d\tdown\n", '"text, so long";label\na b;up\nc d;down\n',
    "text (1; 2; 3),label\na b,up\nc d,down\n", "Text, lang?;Label\na, b;up\nc d;down\n",
    'text, label\n"a, b", "up"\n"c d", down\n', "\n  \ntext,label\na b,up\nc d,down\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_separators_and_encodings_of_excel(tmp_path, text, encoding):
    assert read(tmp_path, train_csv=text.encode(encoding))[1:] == (["down", "up"], [1, 0])
    table = custom.read_table(write_files(tmp_path, test_csv="text\na, b;\n") / "test.csv")
    assert table == {"text": ["a, b;"]}


@pytest.mark.parametrize("name", ["validation.csv", "val.csv", "Dev.CSV", "valid.csv"])
def test_names_of_files_and_of_labels(tmp_path, name):
    for file, labels in ("Train.csv", "Label"), (name, "LABELS"):
        (tmp_path / file).write_text(f"text,{labels}\na b,up\nc d,down\n")
    assert custom.read_folder(tmp_path)[1:2] == (("text",),)


def test_long_and_many_lined_cells(tmp_path):
    """A cell of 200,000 characters, and lines inside of quotes: they count as one row."""
    lines = '"a\nb\nc",up\n' * 4_000
    text = f"text,label\n{'a ' * 100_000},down\n{lines}"
    folder = write_files(tmp_path / "d", train_csv=text, validation_csv=text)
    assert custom.count_rows(folder) == 4001
    assert task_size("custom", folder) == "small"           # 12,002 lines
    assert load_task("custom", make_tokenizer(), 16, folder).train.labels.sum() == 4000


def test_carriage_returns_and_blank_lines(tmp_path):
    assert read(tmp_path, train_tsv=PLAIN.replace("\n", "\r\n") + "   \r\n\r\n")[2] == [1, 0]


def test_folder_with_the_name_of_a_file(tmp_path):
    folder = write_files(tmp_path, train_csv="text,label\na,up\n")
    (folder / "dev.csv").mkdir()
    with pytest.raises(UserError, match="one is a folder or a broken link"):
        custom.find_split_files(folder)


@pytest.mark.parametrize("change", [
    ("up", "right"), (",x", ",y"), ("a b", "a c"), ("b,up", "b,down")])
def test_what_a_result_depends_on(tmp_path, change):
    """A run with other names of classes or parts is another run."""
    text = "text,label,part\na b,up,x\nc d,down,x\ne f,up,x\n"
    texts = {"before": text, "after": text.replace(*change)}
    folders = {name: write_files(tmp_path / name, train_csv=text, validation_csv=text)
               for name, text in texts.items()}
    before, after = (load_task("custom", make_tokenizer(), 16, folders[name]).digest
                     for name in ("before", "after"))
    assert before != after


def test_values_of_jsonl_as_text(tmp_path):
    """A number among texts is a text; lists in a column that is not read do not matter."""
    rows = [{"text": "a b", "tokens": ["a"], "label": "up"}, {"text": 12, "label": "down"}]
    assert read(tmp_path, train_jsonl=jsonl(*rows)) == (("text",), ["down", "up"], [1, 0])


@pytest.mark.parametrize("name", ["reviews[1]", "x::y", "a*b", "{c}", "ü ß", "hf://x"])
def test_the_folder_that_was_named(tmp_path, name):
    """No pattern, no protocol: exactly these files, and not those of a folder beside them."""
    write_files(tmp_path / "reviews1", train_tsv=PLAIN, validation_tsv=PLAIN)
    other = PLAIN.replace("up", "left")
    folder = write_files(tmp_path / name, train_tsv=other, validation_tsv=other)
    assert load_task("custom", make_tokenizer(), 16, folder).names == ["down", "left"]


def test_minus_one_may_be_a_class(tmp_path):
    """It is a secret label only where no training row has it."""
    text = TSV + "a b\t-1\nc d\t1\n"
    folder = write_files(tmp_path / "d", train_tsv=text, validation_tsv=text,
                         test_tsv=TSV + "a b\t-1\n")
    task = load_task("custom", make_tokenizer(), 16, folder)
    assert task.names == ["-1", "1"] and task.test.labels.tolist() == [0]


def test_a_file_replaced_within_its_time_stamp(tmp_path):
    folder = write_files(tmp_path / "d", train_tsv=PLAIN, validation_tsv=PLAIN)
    path = folder / "train.tsv"
    before = load_task("custom", make_tokenizer(), 16, folder)
    first, stamp = before.train.input_ids.tolist(), path.stat()
    path.write_text(PLAIN.replace("a b", "x y"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    after = load_task("custom", make_tokenizer(), 16, folder)
    assert after.train.input_ids.tolist() != first and after.digest != before.digest


def test_test_sets_with_and_without_labels(tmp_path):
    for content, is_known in ((PLAIN, True), ("text\na b\n", False), (TSV + "a b\t\n", False),
                              (TSV + "a b\t-1\na\t-1.0\n", False)):
        folder = write_files(tmp_path / "d", train_tsv=PLAIN, validation_tsv=PLAIN,
                             test_tsv=content)
        test = load_task("custom", make_tokenizer(), 16, folder).test
        assert (test is not None) == is_known


def test_class_order_does_not_depend_on_the_order_of_the_rows():
    """Nor on the hash seed: no order of a set is used."""
    labels = ["1", "1.0", "0", "0.0", "2"]
    for some in itertools.permutations(labels):
        assert custom.find_classes(some) == ["0", "1", "2"]
        assert custom.find_classes([*some, "a"]) == ["0", "0.0", "1", "1.0", "2", "a"]


def test_a_run_says_what_it_understood(folder, tmp_path, capsys):
    data = write_custom(tmp_path / "d", "csv")
    flags = ["--data", str(data), "--model", str(folder), "--out", str(tmp_path / "out")]
    assert cofi.main([*flags, "--max_steps", "2"]) == 0
    printed = capsys.readouterr().out.splitlines()[:5]
    raw = make_raw()
    down, up = (raw["train"]["label"].count(label) for label in (1, 0))
    majority = "down" if down >= up else "up"       # of the training set; scored on the dev set
    right = raw["validation"]["label"].count(1 if majority == "down" else 0)
    assert printed[1:5] == ["texts      text, other; not read: id",
                            f"labels     2 classes: down {down}, up {up}",
                            "rows       train 70, validation 35",
                            f"majority   always {majority}: accuracy {right / 35:.4f}"]


def test_description_of_a_regression_and_of_many_classes(tmp_path):
    for name, labels, expected in (
            ("r", ["0.5", "4"], "labels     regression, 2 different values from 0.5 to 4"),
            ("c", [str(i) for i in range(20)], "labels     20 classes: " + ", ".join(
                f"{i} 1" for i in range(8)) + ", ...")):
        text = TSV + "".join(f"a b\t{label}\n" for label in labels)
        folder = write_files(tmp_path / name, train_tsv=text, validation_tsv=text)
        assert load_task("custom", make_tokenizer(), 16, folder).describe()[1] == expected


# ---- What is refused -----------------------------------------------------------------------------

ROW = {"text": "a b", "label": "up"}
# {case: (files, fragment of the message)}; a validation set is added where there is none
REFUSED = {
    "an empty label": ({"train_csv": "text,label\nwarm soup,1\ncold soup,0\nsome soup,\n"
                                     "fresh bread,1\n"}, "train: 1 row without a label"),
    "labels of spaces": ({"train_tsv": PLAIN + "x\t \ny\t\n"}, "train: 2 rows without a label"),
    "nan in a regression": ({"train_tsv": TSV + "a\t0.5\nb\tnan\n"},
                            "train: 1 row without a label"),
    "nan in the dev set": ({"train_tsv": TSV + "a\t0.5\nb\t1.5\n",
                            "validation_tsv": TSV + "a\tNaN\n"},
                           "validation: 1 row without a label"),
    "NaN of JSON": ({"train_jsonl": '{"text": "a b", "label": NaN}\n' + jsonl(ROW)},
                    "train: 1 row without a label"),
    "null of JSON": ({"train_jsonl": jsonl(ROW, {"text": "a b", "label": None})},
                     "train: 1 row without a label"),
    "a label left out": ({"train_jsonl": jsonl(ROW, {"text": "a b"})},
                         "train: 1 row without a label"),
    "an infinite label": ({"train_tsv": TSV + "a\t0.5\nb\tinf\n"},
                          "every label must be a finite number, got 'inf'"),
    "a fraction among classes": ({"train_tsv": TSV + "a\t1\nb\t2\n",
                                  "validation_tsv": TSV + "a\t1.5\n"},
                                 "label must be one of 1, 2, got '1.5' in 1 row"),
    "a word in a regression": ({"train_tsv": TSV + "a\t1.5\nb\t2.5\n",
                                "validation_tsv": TSV + "a\thigh\nb\t1e39\n"},
                               "as in the training rows, got 'high' in 2 rows"),
    "a label that is a list": ({"train_jsonl": jsonl(ROW, {"text": "a b", "label": ["up"]})},
                               "label must be a text or a number, got ['up'] in row 2"),
    "a label that is an object": ({"train_jsonl": jsonl({"text": "a b", "label": {"a": 1}}, ROW)},
                                  "label must be a text or a number, got {'a': 1} in row 1"),
    "one name twice": ({"train_csv": "text,text,label\na,b,up\nc,d,down\n"},
                       "columns of different names, got 'text' twice"),
    "a text column too few": ({"train_tsv": "a\tb\tlabel\nx\ty\tup\nx\ty\tdown\n",
                               "validation_tsv": "a\tlabel\nx\tup\n"},
                              "there is no column 'b'; its columns are a, label"),
    "a text column too few in test": ({"train_tsv": PLAIN, "test_tsv": "words\na\n"},
                                      "test.tsv: there is no column 'text'"),
    "a list for a text": ({"train_jsonl": jsonl(ROW, ROW | {"label": "down"}),
                           "validation_jsonl": jsonl(ROW | {"text": ["a", "b"]})},
                          "text must be text, got ['a', 'b'] in row 1"),
    "null for a text": ({"train_jsonl": jsonl(ROW, {"text": None, "label": "down"})},
                        "1 row without text"),
    "half a surrogate pair": ({"train_jsonl": '{"text": "\\ud83d", "label": "up"}\n'},
                              "line 1 must be JSON of Unicode text"),
    "no JSON": ({"train_jsonl": "text: a\n"}, "line 1 must be JSON of Unicode text"),
    "a list of JSON": ({"train_jsonl": '["a", "up"]\n'}, "line 1 must be an object such as"),
    "one JSON file": ({"train_jsonl": json.dumps([ROW, ROW], indent=1)}, "line 1 must be JSON"),
    "commas in a .tsv": ({"train_tsv": "text,label\na b,up\n"},
                         "In a .tsv columns are separated by tabs. Try to name it .csv"),
    "no names": ({"train_csv": "a b,up\nc d,down\n"},
                 "the first line must be the names of the columns"),
    "another encoding": ({"train_csv": "text,label\nZoë,up\n".encode("latin-1")},
                         "train.csv must be UTF-8"),
    "UTF-16 without its mark": ({"train_tsv": PLAIN.encode("utf-16-le") + b"\xff"},
                                "train.tsv must be UTF-8"),
    "numbers with a comma": ({"train_csv": "text;label\na b;3,5\nc d;2\n"},
                             "labels that are numbers must be written as 3.5, got '3,5'"),
    "numbers with a comma and NA": ({"train_csv": "text;label\na b;3,5\nc d;2\ne f;NA\n"},
                                    "labels that are numbers must be written as 3.5, got '3,5'"),
    "a twofold ending": ({"train_csv": "x", "validation_csv": None, "validation_csv_csv": "x"},
                         "Try to rename validation.csv.csv as validation.csv"),
    "quotes in a .tsv": ({"train_tsv": TSV + '"a\nb"\tup\n'}, "Try to name it .csv"),
    "a class in other letters": ({"train_tsv": PLAIN, "validation_tsv": TSV + "a\tUP\n"},
                                 "got 'UP' in 1 row. Try to write it as up in all files"),
    "one value in the dev set": ({"train_tsv": TSV + "a\t1.5\nb\t2\n",
                                  "validation_tsv": TSV + "a\t1.5\nb\t1.5\n"},
                                 "a regression must have different values"),
    "a file of the hub": ({"train_csv": "x", "validation_csv": None,
                           "validation-00000-of-00001_parquet": "x"},
                          "Try to export validation-00000-of-00001.parquet as validation.csv"),
    "shards": ({"train_csv": None, "train-00000-of-00002_csv": "x",
                "train-00001-of-00002_csv": "x"}, "Try to join them into one train.csv"),
    "a shard that is left": ({"train_csv": "x", "train-00001-of-00002_csv": "x"},
                             "got train.csv and train-00001-of-00002.csv"),
    "rows in a .json": ({"train_json": jsonl(ROW)}, "as train.jsonl"),
    "a name twice in a row": ({"train_jsonl": '{"text": "a", "text": "b", "label": "up"}\n'},
                              "got the name 'text' twice"),
    "UTF-32": ({"train_tsv": PLAIN.encode("utf-32")}, "train.tsv must be UTF-8, got bytes of 0"),
    "an export of another kind": ({"train_csv": "x", "validation_csv": None,
                                   "validation_parquet": "x"},
                                  "Try to export validation.parquet as validation.csv"),
    "a quote that is not closed": ({"train_csv": 'text,label\n"a b,up\nc d,down\n'},
                                   "train.csv, line 3 cannot be read"),
    "only numbers": ({"train_tsv": TSV + "1\tup\n2\tdown\n"},
                     "one or two text columns beside label, got 0"),
    "columns that differ by a space": (
        {"train_jsonl": '{"text": "a b", "label": "up", "label ": "x"}\n'},
        "columns of different names, got 'label' twice"),
    "values that are not all in train": ({
        "train_tsv": TSV + "a\t1\nb\t2\n", "validation_tsv": TSV + "a\t57\n"},
        "For a regression write all labels with a point, such as 2.0"),
    "a column without a name": ({"train_csv": "text,label\n1,a b,up\n2,c d,down\n"},
                                "Try to name every column in the first line"),
    "another separator": ({"train_csv": "text|label\na|up\nb|down\n"},
                          "columns are separated by commas, semicolons or tabs"),
    "two columns of labels": ({"train_csv": "Label,labels,text\n1,2,a\n2,1,b\n"},
                              "must have one column label, got Label and labels"),
    "a hundred texts": ({"train_csv": ",".join(f"c{i}" for i in range(100)) + ",label\n"
                         + "a," * 100 + "up\n" + "b," * 100 + "down\n"},
                        "got 100 (c0, c1, c2, c3, c4, c5, c6, c7, ...). Identifiers"),
    "labels of pandas": ({"train_tsv": PLAIN + "x\tNaT\ny\t<NA>\n"},
                         "train: 2 rows without a label"),
    "one value": ({"train_tsv": TSV + "a\t1.5\nb\t1.5\n"},
                  "a regression must have different values, but every label is 1.5"),
    "a value beyond fp32": ({"train_tsv": TSV + "a\t1.5\nb\t1e39\n"},
                            "every label must be a number such as 2.5"),
    "many classes": ({"train_tsv": TSV + "".join(f"a\tc{i}\n" for i in range(500)),
                      "validation_tsv": TSV + "a\tother\n"}, ", ..., got 'other' in 1 row. Every"),
    "an Excel file": ({"train_csv": b"PK\x03\x04\xff\xfe"}, "got an Excel file or a .zip"),
    "quoted names in a .tsv": ({"train_tsv": '"text"\t"label"\na b\tup\n'},
                               "In a .tsv quotes are characters like others"),
    "other names": ({"a_tsv": PLAIN, "validation_tsv": PLAIN},
                    "There is: a.tsv, validation.tsv. Try to name it train.csv, or .tsv or .jsonl"),
    "no validation": ({"train_tsv": PLAIN, "validation_tsv": None},
                      "Try to move some of the training rows to validation.csv"),
    "two formats": ({"train_tsv": PLAIN, "train_csv": "x"},
                    "got train.csv and train.tsv in"),
    "two names": ({"train_tsv": PLAIN, "validation_tsv": PLAIN, "dev_tsv": PLAIN},
                  "got dev.tsv and validation.tsv in"),
    "no label": ({"train_tsv": "a\tb\nx\ty\n"}, "there is no column 'label'"),
    "no text": ({"train_tsv": "label\n1\n0\n"}, "one or two text columns beside label, got 0"),
    "three texts": ({"train_tsv": "a\tb\tc\tlabel\nx\ty\tz\tup\nx\ty\tz\tdown\n"},
                    "one or two text columns beside label, got 3 (a, b, c)"),
    "one class": ({"train_tsv": TSV + "x\tup\n"}, "every label is 'up'"),
    "another class": ({"train_tsv": PLAIN, "validation_tsv": TSV + "x\tleft\n"},
                      "got 'left' in 1 row"),
    "no rows": ({"train_tsv": PLAIN, "validation_tsv": TSV}, "there are no rows"),
    "an empty file": ({"train_tsv": PLAIN, "validation_tsv": ""}, "cannot be read"),
    "a ragged file": ({"train_tsv": TSV + "x\tup\t1\t2\n"},
                      "line 2 must have 2 columns as the first line, got 4"),
    "a part named as the score": ({"train_csv": "text,label,part\na b,up,x\nc d,down,accuracy\n"},
                                  "part must not have the name of a score, got 'accuracy'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(folder, tmp_path, capsys, case):
    files, fragment = REFUSED[case]
    kind = next(iter(files)).split("_")[1]
    files = {f"validation_{kind}": files.get(f"train_{kind}")} | files
    files = {name: content for name, content in files.items() if content is not None}
    data = write_files(tmp_path / "d", **files)
    code = cofi.main(["--data", str(data), "--model", str(folder), "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert code == 2 and fragment in error and error.count("\n") == 1, error
    assert not (tmp_path / "out").exists()


def test_no_such_folder(folder, tmp_path, capsys):
    code = cofi.main(["--data", str(tmp_path / "d"), "--model", str(folder)])
    assert code == 2 and "no such folder" in capsys.readouterr().err


def test_cache_that_cannot_be_written(folder, tmp_path, capsys, monkeypatch):
    """A full or read-only disk: the line names the cache."""
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets.Dataset, "map", full)
    data = write_files(tmp_path / "d", train_tsv=PLAIN, validation_tsv=PLAIN)
    code = cofi.main(["--data", str(data), "--model", str(folder), "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert code == 2 and error.count("\n") == 1
    assert "No space left" in error and "HF_HOME" in error and "The cache /" in error


def test_rows_without_text_and_unknown_words_are_noted(tmp_path):
    text = TSV + "a b\tup\n\tdown\n\u6c34 \u706b\tup\n"
    folder = write_files(tmp_path / "d", train_tsv=text, validation_tsv=text)
    *_, note = load_task("custom", make_tokenizer(), 16, folder).describe()
    assert note.startswith("note       dev rows without any text: 1; tokens that")
    folder = write_files(tmp_path / "e", train_tsv=PLAIN, validation_tsv=PLAIN)
    assert len(load_task("custom", make_tokenizer(), 16, folder).describe()) == 4


def test_likely_mistakes_are_noted(tmp_path):
    """A column that repeats its values, classes that differ in case, values of another scale."""
    rows = [(f"a b {i}", ("en", "de")[i % 2], ("Yes", "yes", "no")[i % 3]) for i in range(60)]
    text = "text,lang,label\n" + "".join(",".join(row) + "\n" for row in rows)
    folder = write_files(tmp_path / "d", train_csv=text, validation_csv=text)
    assert load_task("custom", make_tokenizer(), 16, folder).describe()[-2:] == [
        "note       the text column lang has 2 different values only. Remove it if it is no text",
        "note       these classes differ in upper and lower case only: Yes, yes"]
    text = TSV + "a b\t2.5\nc d\tNA\n"
    folder = write_files(tmp_path / "g", train_tsv=text, validation_tsv=text)
    *_, note = load_task("custom", make_tokenizer(), 16, folder).describe()
    assert note.endswith("some classes are numbers (2.5), others are not (NA). If labels are "
                         "missing remove their rows; for a regression write all as numbers")
    text = TSV + "a b\t1\nc d\t0\ne f\tNA\n"        # R writes NA for a missing label
    folder = write_files(tmp_path / "h", train_tsv=text, validation_tsv=text)
    *_, note = load_task("custom", make_tokenizer(), 16, folder).describe()
    assert "others are not (NA)" in note
    text = TSV + "a b\t350000\nc d\t100000.5\n"
    folder = write_files(tmp_path / "e", train_tsv=text, validation_tsv=text)
    *_, note = load_task("custom", make_tokenizer(), 16, folder).describe()
    assert "Scale the labels" in note
    text = TSV + "".join(f"a b\t{i}\n" for i in range(20))
    folder = write_files(tmp_path / "i", train_tsv=text, validation_tsv=text)
    *_, note = load_task("custom", make_tokenizer(), 16, folder).describe()
    assert "For a regression write all labels with a point, such as 0.0" in note
    text = TSV + '"She said ""a b"""\tup\nc "d" ""\tdown\n'
    folder = write_files(tmp_path / "j", train_tsv=text, validation_tsv=text)
    lines = load_task("custom", make_tokenizer(), 32, folder).describe()
    assert any("some texts of text have quotes as in a .csv" in line for line in lines)
    text = "text,label,part\n" + "".join(f"a b c d,{'up' * (i % 2 + 1)},p{i}\n" for i in range(60))
    folder = write_files(tmp_path / "k", train_csv=text, validation_csv=text)
    *_, train, dev, part = load_task("custom", make_tokenizer(), 6, folder).describe()
    assert train.startswith("note       100% of the training rows have 6 tokens or more and lose")
    assert "100% of the dev rows" in dev and "the dev set has 60 parts" in part
    text = TSV + "a b\t1.0\nc d\t0.0\n"
    folder = write_files(tmp_path / "f", train_tsv=text, validation_tsv=text)
    *_, note = load_task("custom", make_tokenizer(), 16, folder).describe()
    assert "For classes write them as 1, not as 1.0" in note


def test_data_that_is_a_file(tmp_path, capsys):
    folder = write_files(tmp_path / "d", train_tsv=PLAIN, validation_tsv=PLAIN)
    assert cofi.main(["--data", str(folder / "train.tsv")]) == 2
    assert "a file. Try its folder" in capsys.readouterr().err


def test_errors_of_the_cache_keep_their_message():
    def wrapped():
        raise RuntimeError("generation failed") from UserError("line 3 must be JSON")

    with pytest.raises(UserError, match="line 3"):
        cached(wrapped)
