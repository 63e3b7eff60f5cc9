"""Unusable input: one line that says what must hold, exit code 2, and nothing is written."""
import json
import pickle
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import cofi
import sparsebert
from data.harness.commands import COMMANDS
from data.tests.common import slow
from data.tests.helpers import Malicious, command, patch_load_task, rewrite, write_custom


def check_refused(capsys, code, program, fragment):
    """Assert exit code 2, and one line of stderr that holds a fragment."""
    error = capsys.readouterr().err.strip()
    assert code == 2
    assert fragment in error and "\n" not in error and error.startswith(f"{program}: "), error


# ---- arguments and models ------------------------------------------------------------------------


def edit_json(name, **changes):
    """Return a function that changes keys of a JSON file of a folder."""
    def edit(folder):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def replace_file(name, content):
    """Return a function that gives a file of a folder another content; None deletes it."""
    def edit(folder):
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_text(content)

    return edit


def truncate(folder):
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:3000])


def write_code(folder):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious(), 2))


def with_weights(change):
    return lambda folder: rewrite(folder, change)


MANY_WORDS = [{"id": 500 + i, "content": f"w{i}", "single_word": False, "lstrip": False,
               "rstrip": False, "normalized": False, "special": False} for i in range(80)]

# {case: (arguments, what is done to the model first, fragment of the message)}
BAD_ARGUMENTS = {
    "unknown task": (["--task", "rtee"], None, "got rtee"),
    "unknown flag": (["--sparsty", "0.9"], None, "unrecognized arguments: --sparsty"),
    "not a number": (["--sparsity", "high"], None, "invalid float value: 'high'"),
    "sparsity 95": (["--sparsity", "95"], None,
                    "--sparsity must be between 0 and 0.99, got 95 (did you mean 0.95?)"),
    "negative rate": (["--prune_lr", "-1"], None, "--prune_lr must be between 1e-09 and 1, got -1"),
    "unknown mask": (["--masks", "head,layer"], None,
                     "--masks must be some of mha,head,ffn,int,hidn, separated by commas, got "
                     "head,layer"),
    "masks that cannot reach it": (["--masks", "head", "--sparsity", "0.9"], None,
                                   "--sparsity must be at most"),
    "masks that would leave nothing": (["--masks", "mha,ffn", "--sparsity", "0.95"], None,
                                       "--sparsity must be at most"),
    "shares over 1": (["--mask_start", "0.6", "--sparsity_warmup", "0.6"], None,
                      "--mask_start plus --sparsity_warmup must be at most 1"),
    "unknown matching": (["--matching", "loose"], None,
                         "--matching must be one of free, ordered, fixed, got loose"),
    "no GPU": (["--device", "cuda"], None, "--device must be available here, got cuda"),
    "no such folder": (["--model", "no/such/model/here"], None, "neither a folder"),
    "no weights": ([], replace_file("pytorch_model.bin", None), "there is no pytorch_model.bin"),
    "no config": ([], replace_file("config.json", None), "there is no config.json"),
    "no tokenizer": ([], replace_file("tokenizer.json", None), "there is no vocab.txt"),
    "config is no JSON": ([], replace_file("config.json", "{"), "is not JSON"),
    "config of another kind": ([], replace_file("config.json", '{"model_type": "gpt2"}'),
                               "model_type must be 'bert', got 'gpt2'"),
    "config without a size": ([], replace_file("config.json", "{}"), "hidden_size is missing"),
    "truncated weights": ([], truncate, "is not a file of tensors"),
    "weights with code": ([], write_code, "is not a file of tensors"),
    "a weight of the wrong shape": (
        [], with_weights(lambda w: w | {"bert.pooler.dense.bias": torch.ones(25)}),
        "pooler.bias is (25,) in its weights, but (16,)"),
    "a weight too few": (
        [], with_weights(lambda w: {name: x for name, x in w.items()
                                    if name != "bert.embeddings.LayerNorm.bias"}),
        "embeddings.norm.bias is absent in its weights"),
    "a weight too many": (
        [], with_weights(lambda w: w | {"bert.extra": torch.zeros(1)}),
        "extra is (1,) in its weights, but absent"),
    "a model that is pruned already": (
        [], edit_json("config.json", heads_per_layer=[4, 0, 4]), "which is pruned already"),
    "heads that do not divide": (
        [], replace_file("config.json", json.dumps(
            {"hidden_size": 16, "num_attention_heads": 3, "num_hidden_layers": 3})),
        "hidden_size must be a multiple of num_attention_heads, got 16 and 3"),
    "more words than embeddings": ([], edit_json("tokenizer.json", added_tokens=MANY_WORDS),
                                   "must have at most 100 words, one for each embedding"),
    "another tokenizer's file": ([], replace_file("tokenizer.json", "{}"),
                                 "tokenizer.json is not a tokenizer"),
    "custom without data": (["--task", "custom"], None,
                            "got --task custom --data (nothing)"),
    "data of another task": (["--task", "rte", "--data", "x"], None, "got --task rte --data x"),
    "no such data": (["--task", "custom", "--data", "nowhere"], None,
                     "got nowhere: no such folder"),
    "export nothing": (["--export", "nothing"], None,
                       "--export must be the folder of a model, got nothing"),
    "export a name of the hub": (["--export", "some/bert"], None,
                                 "--export must be the folder of a model, got some/bert"),
    "two commands": (["--evaluate", "a", "--export", "b"], None, "not allowed with"),
    "a name that is empty": (["--evaluate", ""], None, "there is no config.json"),
    "submit nothing": (["--submit", "nothing"], None, "nothing: neither a folder"),
    "a path for a name": (["--model", "../../etc/passwd"], None, "neither a folder"),
    "teacher nothing": (["--teacher", "no/such/teacher"], None, "neither a folder"),
    "evaluate nothing": (["--evaluate", "nothing"], None, "nothing: neither a folder"),
    "predict nothing": (["--predict", "nothing", "a"], None, "nothing: neither a folder"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments(offline, folder, tmp_path, capsys, monkeypatch, case):
    arguments, damage, fragment = BAD_ARGUMENTS[case]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if damage:
        damage(folder)
    code = cofi.main([*command(folder, tmp_path), *arguments])
    check_refused(capsys, code, "cofi", fragment)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("main, arguments, fragment", [
    (cofi.main, ["--masks", "head", "--sparsity", "0.9"], "--sparsity must be at most"),
    (sparsebert.main, ["--block", "3"], "--block must divide")])
def test_impossible_settings_are_refused_before_data_are_loaded(folder, tmp_path, capsys,
                                                                monkeypatch, main, arguments,
                                                                fragment):
    patch_load_task(monkeypatch, lambda *_: pytest.fail("data were loaded"))
    code = main([*command(folder, tmp_path), *arguments])
    check_refused(capsys, code, main.__module__, fragment)


@pytest.mark.parametrize("module", [cofi, sparsebert])
def test_every_setting_out_of_its_range(module, capsys):
    """Too low, too high, not numeric, not among the choices: one line that names the flag."""
    tried = 0
    for f in fields(module.Settings):
        bad = []
        if "range" in f.metadata:
            low, high = f.metadata["range"]
            bad += [low - 1, high * 2 + 1, "x", "nan"]
        if "choices" in f.metadata:
            bad.append("nonsense")
        for value in bad:
            code = module.main([f"--{f.name}={value}"])
            check_refused(capsys, code, module.__name__, f"--{f.name}")
            tried += 1
    assert tried > 50


@slow
@pytest.mark.parametrize("module", [cofi, sparsebert])
def test_help_names_every_flag(module):
    done = subprocess.run([sys.executable, module.__file__, "--help"], capture_output=True,
                          text=True, check=True, timeout=60)
    names = [f.name for f in fields(module.Settings)]
    if module is cofi:
        names += COMMANDS
    text = done.stdout.replace("\n", " ")
    assert not [name for name in names if f"--{name} " not in text]
    assert Path(module.__file__).name in text


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_out_that_cannot_be_written(offline, folder, tmp_path, capsys, out):
    (tmp_path / "file").write_text("mine")
    code = cofi.main([*command(folder, tmp_path), "--out", str(tmp_path / out)])
    check_refused(capsys, code, "cofi", "cannot be written")
    assert (tmp_path / "file").read_text() == "mine"


# ---- custom data ---------------------------------------------------------------------------------

# {case: (other files, or None: no folder at all; fragment of the message)}; None deletes a file
BAD_DATA = {
    "no folder": (None, "no such folder"),
    "no validation": ({"validation.tsv": None}, "no validation.tsv"),
    "twice": ({"train.csv": "x"}, "got train.tsv and train.csv in"),
    "no label": ({"train.tsv": "a\tb\nx\ty\n"}, "there is no column 'label'"),
    "no text": ({"train.tsv": "label\n1\n0\n", "validation.tsv": "label\n1\n"},
                "one or two text columns beside label, got 0"),
    "three texts": ({"train.tsv": "a\tb\tc\tlabel\nx\ty\tz\t1\n"},
                    "one or two text columns beside label, got 3 (a, b, c)"),
    "one class": ({"train.tsv": "text\tother\tlabel\nx\ty\tup\n"}, "every label is 'up'"),
    "another class": ({"validation.tsv": "text\tother\tlabel\nx\ty\tleft\n"},
                      "got 'left' in 1 rows"),
    "no rows": ({"validation.tsv": "text\tother\tlabel\n"}, "no data"),
    "an empty file": ({"validation.tsv": ""}, "cannot be read"),
    "a ragged file": ({"train.tsv": "text\tother\tlabel\nx\ty\tup\t1\t2\nx\n"},
                      "line 2 must have 3 columns as the first line, got 5"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_custom_data(folder, tmp_path, capsys, case):
    files, fragment = BAD_DATA[case]
    custom = tmp_path / "d"
    if files:
        write_custom(custom, "tsv")
    for name, text in (files or {}).items():
        (custom / name).unlink(missing_ok=True)
        if text is not None:
            (custom / name).write_text(text)
    code = cofi.main(["--data", str(custom), "--model", str(folder), "--out",
                      str(tmp_path / "out")])
    check_refused(capsys, code, "cofi", fragment)
    assert not (tmp_path / "out").exists()


# ---- sparsebert.py -------------------------------------------------------------------------------

SPARSE_BAD = {
    "sparsity 95": (["--sparsity", "0.5,95"], "got 95 (did you mean 0.95?)"),
    "not numeric": (["--sparsity", "0.5,much"], "separated by commas, got 0.5,much"),
    "unknown strategy": (["--strategy", "distill"], "small_dense, separated by commas, got distill"),
    "blocks that do not fit": (["--block", "24"], "--block must divide a matrix of"),
    "blocks that are too large": (["--block", "32"], "--block must leave something of a matrix of"),
    "too small to be dense": (["--strategy", "small_dense", "--sparsity", "0.999"],
                              "--strategy small_dense must keep one head and one unit"),
    "unknown flag": (["--masks", "head"], "unrecognized arguments: --masks"),
}


@pytest.mark.parametrize("case", SPARSE_BAD)
def test_sparsebert_bad_arguments(tmp_path, capsys, case):
    arguments, fragment = SPARSE_BAD[case]
    code = sparsebert.main(["--out", str(tmp_path / "out"), "--max_steps", "1", *arguments])
    check_refused(capsys, code, "sparsebert", fragment)
    assert not (tmp_path / "out").exists()
