"""What the tests of data/ share: a made-up task, models on disk, and runs that are interrupted."""
import csv
import json
import os
import signal
import sys
import time

import datasets
import numpy as np
import pytest
import tokenizers
import torch

import cofi
from data.harness import runs
from data.harness.journal import Journal

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz", "[MASK]"]
ALPHABET = " ".join("abcdefghijklmnopqrstuvwxyz")


# ---- data ----------------------------------------------------------------------------------------


def make_tokenizer():
    """Return a tokenizer in which every letter is a token."""
    vocab = {word: i for i, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return tokenizer


def make_raw(n=70, labels=("no", "yes"), **columns):
    """Return splits with the columns of MRPC. Label 1: both sentences begin with the same letter.

    n: number of training examples; labels: class names, None for a regression; columns: {name: one
    value for all rows of this column, or None to leave it out}.
    """
    rng, splits = np.random.default_rng(0), {}

    def sentence():
        return " ".join(rng.choice(list("abcdef"), rng.integers(1, 9)))

    for split, rows in (("train", n), ("validation", n // 2)):
        pairs = [(sentence(), sentence()) for _ in range(rows)]
        table = {"sentence1": [first for first, _ in pairs],
                 "sentence2": [second for _, second in pairs],
                 "label": [int(first[0] == second[0]) for first, second in pairs]}
        for name, value in columns.items():
            if value is None:
                del table[name]
            else:
                table[name] = [value] * rows
        features = {name: datasets.Value("string") for name in table}
        features["label"] = datasets.Value("float32")
        if labels:
            features["label"] = datasets.ClassLabel(names=list(labels))
        splits[split] = datasets.Dataset.from_dict(table, features=datasets.Features(features))
    return splits


def make_squad(*rows):
    """Return a dataset of (question, context, answer, its first character or None: to be found)."""
    return datasets.Dataset.from_list([
        {"question": question, "context": context, "answers": {
            "text": [answer], "answer_start": [context.index(answer) if at is None else at]}}
        for question, context, answer, at in rows])


def write_custom(folder, kind, n=70):
    """Write the made-up task as a folder of files: .tsv, .csv or .jsonl. Returns the folder.

    It has an identifier, a text with a quote, one that looks like a number, and one like a missing
    value.
    """
    folder.mkdir()
    for split, raw in make_raw(n).items():
        rows = [{"id": i, "text": row["sentence1"], "other": row["sentence2"],
                 "label": ("up", "down")[row["label"]]} for i, row in enumerate(raw)]
        rows[0] |= {"text": 'a "b', "other": "NA"}
        rows[1] |= {"text": "12"}
        with (folder / f"{split}.{kind}").open("w", newline="") as file:
            if kind == "jsonl":
                file.writelines(json.dumps(row) + "\n" for row in rows)
            elif kind == "tsv":
                lines = [rows[0].keys(), *(row.values() for row in rows)]
                file.writelines("\t".join(map(str, line)) + "\n" for line in lines)
            else:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
    return folder


def patch_load_task(monkeypatch, load_task):
    """Replace load_task where the programs call it."""
    monkeypatch.setattr(runs, "load_task", load_task)


# ---- models and runs -----------------------------------------------------------------------------


def rewrite(folder, change):
    """Change the weights of a folder: change(weights) returns other ones, or None and edits them.
    """
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    changed = change(weights)
    torch.save(weights if changed is None else changed, folder / "pytorch_model.bin")


def command(folder, tmp_path, *more):
    """Return the words of a short run on the made-up task."""
    return ["--task", "mrpc", "--model", str(folder), "--out", str(tmp_path / "out"),
            "--max_steps", "6", "--device", "cpu", *more]


def read_result(folder):
    return json.loads((folder / "result.json").read_text("utf-8"))


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]


def assert_same_files(one, two):
    """Assert that the weights of two folders are equal to the last bit, and so are their logs."""
    a, b = (torch.load(folder / "pytorch_model.bin", weights_only=True) for folder in (one, two))
    assert list(a) == list(b) and all(torch.equal(w, b[name]) for name, w in a.items())
    if (one / "log.jsonl").exists():
        logs = [[record | {"seconds": 0, "seconds_per_step": 0, "left": 0}
                 for record in read_log(folder)] for folder in (one, two)]
        assert logs[0] == logs[1]


class Malicious:
    """An object that runs code when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a checkpoint ran its code",))


# ---- interruptions -------------------------------------------------------------------------------


class Killed(BaseException):
    """What kill_at raises. Not an Exception, so that nothing handles it."""


def kill_at(monkeypatch, saves, kills):
    """Save checkpoints after these steps of each stage, and end the program at others.

    saves: steps; kills: (stage, step), or (name of the folder, stage, step), once each. Returns the
    kills that are still to come.
    """
    original, left = Journal.steps, list(kills)

    def steps(journal, batches, stage, total, start_step):
        for step, batch in original(journal, batches, stage, total, start_step):
            for kill in (stage, step), (journal.folder.name, stage, step):
                if kill in left:
                    left.remove(kill)
                    raise Killed
            journal.is_save_step = step in saves
            yield step, batch

    monkeypatch.setattr(Journal, "steps", steps)
    monkeypatch.setattr(Journal, "should_save", lambda journal: journal.is_save_step)
    return left


def run_in_child(arguments, after=None, number=signal.SIGKILL):
    """Run cofi.main in a process of its own, which gets a signal. Returns (exit code, stderr).

    after: seconds until the signal, or a function that returns when it is time; None: no signal.
    """
    read, write = os.pipe()
    child = os.fork()
    if not child:
        for handled in (signal.SIGINT, signal.SIGTERM):
            signal.signal(handled, signal.default_int_handler)
        os.dup2(write, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        os._exit(cofi.main(arguments))
    os.close(write)
    if after is not None:
        if callable(after):
            after()
        else:
            time.sleep(after)
        os.kill(child, number)
    with os.fdopen(read) as file:
        error = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), error
