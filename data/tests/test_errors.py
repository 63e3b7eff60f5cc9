"""Unusable input: one line that says what must hold, exit code 2, and nothing is written."""
import json
import pickle
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

import cofi
import sparsebert
from data.harness.cli import parse_settings
from data.harness.commands import COMMANDS
from data.tests.common import slow
from data.tests.helpers import (Malicious, command, make_tokenizer, patch_load_task, rewrite)


def check_refused(capsys, code, program, fragment):
    """Assert exit code 2, and one line of stderr that holds a fragment."""
    error = capsys.readouterr().err.strip()
    assert code == 2
    assert fragment in error and "\n" not in error and error.startswith(f"{program}: "), error


# ---- arguments and models ------------------------------------------------------------------------

ORDINARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##c"]


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


def with_file(content):
    """Return a function that saves something else than a dict of tensors."""
    return lambda folder: torch.save(content, folder / "pytorch_model.bin")


def with_vocab(words=ORDINARY, encoding="utf-8", **files):
    """Return a function that replaces tokenizer.json by a vocab.txt and other files."""
    def edit(folder):
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding=encoding)
        for name, content in files.items():
            (folder / f"{name}.json").write_text(
                content if isinstance(content, str) else json.dumps(content))

    return edit


def spoil(value):
    """Return a function that puts NaN or infinity into the weights."""
    def change(weights):
        weights["bert.encoder.layer.1.output.dense.weight"][3, 5] = value

    return with_weights(change)


ONE_TYPE = "bert.embeddings.token_type_embeddings.weight"
MANY_WORDS = [{"id": 500 + i, "content": f"w{i}", "single_word": False, "lstrip": False,
               "rstrip": False, "normalized": False, "special": False} for i in range(80)]

WITH_REGEX = json.loads(make_tokenizer().to_str()) | {"pre_tokenizer": {
    "type": "Split", "pattern": {"Regex": "(" * 5000}, "behavior": "Isolated", "invert": False}}
WITHOUT_SEP = json.loads(make_tokenizer().to_str()) | {"post_processor": None}
WITHOUT_CLS = {"model": {"type": "WordLevel", "vocab": {"<s>": 0, "</s>": 1, "[UNK]": 2},
                         "unk_token": "[UNK]"}, "added_tokens": []}

# {case: (arguments, what is done to the model first, fragment of the message)}
BAD_ARGUMENTS = {
    "unknown task": (["--task", "rtee"], None, "got rtee"),
    "unknown flag": (["--sparsty", "0.9"], None, "unrecognized arguments: --sparsty 0.9. Try "
                     "--sparsity"),
    "a dash in a flag": (["--batch-size", "8"], None, "Try --batch_size"),
    "a text like a flag": (["--predict", "m", "-good"], None, "or a space before a text"),
    "no whole number": (["--seed", "1e3"], None, "--seed must be a whole number, got 1e3"),
    "a comma for a point": (["--layer_weight", "0,5"], None,
                            "--layer_weight must be a number such as 0.5, got 0,5"),
    "a sparsity with a comma": (["--sparsity", "0,95"], None,
                                "--sparsity must be written with a point, got 0,95. Try 0.95"),
    "two with a comma": (["--sparsity", "0,6,0,8"], None, "got 0,6,0,8. Try 0.6,0.8"),
    "a large seed": (["--seed", "9999999999"], None, "must be between 0 and 2147483648, got 9"),
    "the first name of a model": (["--model", "bert-base-uncased"], None,
                                  "Try google-bert/bert-base-uncased"),
    "a file for a model": (["--model", __file__], None, f"Try its folder, {Path(__file__).parent}"),
    "not a number": (["--sparsity", "high"], None, "--sparsity must be a number such as 0.95, or "
                     "several separated by commas, got high"),
    "one of several is no number": (["--sparsity", "0.6,"], None, "by commas, got 0.6,"),
    "one of several is too large": (["--sparsity", "0.6,80"], None, "got 80 (did you mean 0.8?)"),
    "sparsities that fall": (["--sparsity", "0.8,0.6,0.8"], None, "--sparsity must rise from "
                             "one to the next, got 0.8,0.6,0.8. Try 0.6,0.8"),
    "sparsity 95": (["--sparsity", "95"], None,
                    "--sparsity must be between 0.01 and 0.99, got 95 (did you mean 0.95?)"),
    "negative rate": (["--prune_lr", "-1"], None, "--prune_lr must be between 1e-09 and 1, got -1"),
    "unknown mask": (["--masks", "head,layer"], None,
                     "--masks must be some of mha,head,ffn,int,hidn, separated by commas, got "
                     "head,layer"),
    "masks that cannot reach it": (["--masks", "head", "--sparsity", "0.9"], None,
                                   "--sparsity must be at most"),
    "masks that would leave nothing": (["--masks", "mha,ffn", "--sparsity", "0.95"], None,
                                       "--sparsity must be at most 0.857 with --masks mha,ffn"),
    "shares over 1": (["--mask_start", "0.6", "--sparsity_warmup", "0.6"], None,
                      "--mask_start plus --sparsity_warmup must be at most 1"),
    "unknown matching": (["--matching", "loose"], None,
                         "--matching must be one of free, ordered, fixed, got loose"),
    "no GPU": (["--device", "cuda"], None, "--device must be available here, got cuda"),
    "no such folder": (["--model", "no/such/model/here"], None, "neither a folder"),
    "no weights": ([], replace_file("pytorch_model.bin", None), "there is no pytorch_model.bin"),
    "no config": ([], replace_file("config.json", None), "there is no config.json"),
    "no tokenizer": ([], replace_file("tokenizer.json", None), "there is no vocab.txt"),
    "weights of NaN": ([], spoil(float("nan")), "layer.1.output.dense.weight must be finite"),
    "weights of infinity": ([], spoil(float("inf")), "must be finite, got NaN or infinity"),
    "a training checkpoint": ([], with_file({"epoch": 3, "model_state_dict": {}}),
                              "must hold tensors by name, got a int named 'epoch'"),
    "a list of tensors": ([], with_file([torch.ones(1)]), "must hold tensors by name, got a list"),
    "None for a tensor": ([], with_weights(lambda w: w | {"bert.pooler.dense.bias": None}),
                          "got a NoneType named 'bert.pooler.dense.bias'"),
    "a number for a name": ([], with_weights(lambda w: w | {5: torch.ones(1)}),
                            "got a Tensor named 5"),
    "a sparse tensor": ([], with_weights(lambda w: {n: x.to_sparse() for n, x in w.items()}),
                        "must be a dense tensor of real numbers, got torch.sparse_coo"),
    "complex weights": ([], with_weights(lambda w: {n: x.cfloat() for n, x in w.items()}),
                        "must be a dense tensor of real numbers, got torch.strided, torch.complex"),
    "a checkpoint of Lightning": ([], with_file({"epoch": 3, "state_dict": {"a": torch.ones(1)}}),
                                  "Try to save its 'state_dict' alone"),
    "tensors on meta": ([], with_weights(lambda w: {n: x.to("meta") for n, x in w.items()}),
                        "must be a dense tensor of real numbers"),
    "whole numbers for weights": ([], with_weights(lambda w: {n: x.int() for n, x in w.items()}),
                                  "must be one tensor of floating-point numbers, got torch.int32"),
    "two copies": ([], with_weights(lambda w: w | {f"module.{n}": x for n, x in w.items()}),
                   "must be one tensor of floating-point numbers, got two tensors"),
    "weights of zero": ([], with_weights(lambda w: {n: x * 0 for n, x in w.items()}),
                        "embeddings.word.weight must not be all zeros"),
    "weights in several files": (
        [], lambda folder: (folder / "pytorch_model.bin").rename(
            folder / "pytorch_model.bin.index.json"), "its weights are in several files"),
    "a decoder": ([], edit_json("config.json", is_decoder=True), "is_decoder must be False"),
    "two positions": ([], edit_json("config.json", max_position_embeddings=2),
                      "max_position_embeddings must be a whole number from 8"),
    "a tokenizer without [SEP] at the end": (
        [], replace_file("tokenizer.json", json.dumps(WITHOUT_SEP)),
        "must make [CLS] first text [SEP] second text [SEP], got a"),
    "do_lower_case as text": ([], with_vocab(tokenizer_config={"do_lower_case": "False"}),
                              "do_lower_case must be true or false, got 'False'"),
    "an id as text": ([], with_vocab(added_tokens={"new": "8"}), "every id must be a whole number"),
    "config is a list": ([], replace_file("config.json", "[]"), "must hold a JSON object, got []"),
    "a size as text": ([], edit_json("config.json", hidden_size="16"),
                       "hidden_size must be a whole number from 1 to 20000, got '16'"),
    "a size of null": ([], edit_json("config.json", vocab_size=None),
                       "vocab_size must be a whole number from 1 to 5000000, got 'None'"),
    "a size of 1e9": ([], edit_json("config.json", hidden_size=10**9),
                      "hidden_size must be a whole number from 1 to 20000"),
    "a billion layers": ([], edit_json("config.json", num_hidden_layers=10**9),
                         "num_hidden_layers must be a whole number from 1 to 200"),
    "a negative size": ([], edit_json("config.json", intermediate_size=-1),
                        "intermediate_size must be a whole number from 0"),
    "a size that is true": ([], edit_json("config.json", type_vocab_size=True),
                            "type_vocab_size must be a whole number from 1 to 1000"),
    "large, but not of these weights": ([], edit_json(
        "config.json", hidden_size=20_000, vocab_size=5_000_000, pooler_size=20_000),
        "in its weights, but"),
    "dropout of text": ([], edit_json("config.json", hidden_dropout_prob="0.1"),
                        "hidden_dropout_prob must be a number from 0 to 0.99, got '0.1'"),
    "class names out of order": ([], edit_json("config.json", id2label={"1": "a", "3": "b"}),
                                 "id2label must give a name to each of the classes 0, 1, ..."),
    "class names of null": ([], edit_json("config.json", id2label={"0": None, "1": "b"}),
                            "id2label must give a name to each of the classes"),
    "one token type for pairs": (
        [], lambda folder: (edit_json("config.json", type_vocab_size=1)(folder),
                            rewrite(folder, lambda w: w | {ONE_TYPE: w[ONE_TYPE][:1]})),
        "must have a type_vocab_size of 2 to read 2 texts, got 1"),
    "a vocabulary without [CLS]": ([], with_vocab(["<s>", "</s>", "a", "b"]),
                                   "got none for [PAD] [UNK] [CLS] [SEP] [MASK]"),
    "a tokenizer without [CLS]": ([], replace_file("tokenizer.json", json.dumps(WITHOUT_CLS)),
                                  "got none for [PAD] [CLS] [SEP] [MASK]"),
    "a tokenizer of another class": (
        [], with_vocab(tokenizer_config={"tokenizer_class": "BertJapaneseTokenizer"}),
        "tokenizer_class must be BertTokenizer, got BertJapaneseTokenizer"),
    "a vocabulary in latin-1": ([], with_vocab([*ORDINARY, "ë"], "latin-1"),
                                "vocab.txt must be UTF-8"),
    "a tokenizer_config that is no JSON": ([], with_vocab(tokenizer_config="{"), "is not JSON"),
    "a vocab.txt larger than the embeddings": (
        [], with_vocab([*ORDINARY, *map(str, range(200))]), "must have at most 100 words"),
    "an added token out of place": ([], with_vocab(added_tokens={"new": 70}),
                                    "'new' must have the id 8, the next after vocab.txt, got 70"),
    "a regex that cannot be compiled": (
        [], replace_file("tokenizer.json", json.dumps(WITH_REGEX)), "is not a tokenizer"),
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
    "a model without any MHA": (
        [], edit_json("config.json", heads_per_layer=[0, 0, 0]), "which is pruned already"),
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
    "a name that is empty": (["--evaluate", ""], None, "--evaluate must not be empty"),
    "no folder to compare": (["--compare", ""], None, "--compare must not be empty"),
    "more tokens than positions": (["--max_length", "65"], None,
                                   "--max_length must be at most 64, as many positions as"),
    "a setting that is empty": (["--data", ""], None, "--data must not be empty"),
    "a flag without effect": (["--predict", "m", "a", "--sparsity", "0.5"], None,
                              "--sparsity has no effect together with --predict"),
    "a device without effect": (["--predict", "m", "a", "--device", "cpu"], None,
                                "--device has no effect together with --predict"),
    "a mask twice": (["--masks", "head,head"], None, "--masks must be some of"),
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
    is_command = arguments and arguments[0][2:] in COMMANDS
    code = cofi.main(arguments if is_command else [*command(folder, tmp_path), *arguments])
    check_refused(capsys, code, "cofi", fragment)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change, fragment", [
    ({"problem_type": "multi_label_classification"}, "problem_type must be single_label"),
    ({"architectures": ["BertForTokenClassification"]}, "got BertForTokenClassification"),
    ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "id2label must name 2 classes")])
def test_other_heads_are_refused(finetuned, capsys, change, fragment):
    edit_json("config.json", **change)(finetuned)
    check_refused(capsys, cofi.main(["--predict", str(finetuned), "a", "b"]), "cofi", fragment)


def test_folder_around_models_is_refused(finetuned, capsys):
    """Of several sparsities each has a folder inside: the message names those that hold a model."""
    check_refused(capsys, cofi.main(["--evaluate", str(finetuned.parent)]), "cofi", str(finetuned))


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
    text = " ".join(done.stdout.split())
    assert not [name for name in names if f"--{name} " not in text]
    of_small_sets = {cofi: "20 (small 100, toy 7)", sparsebert: "5 (small 12, toy 4)"}
    assert f"default {of_small_sets[module]}]" in text      # of --prune_epochs
    assert Path(module.__file__).name in text


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_out_that_cannot_be_written(offline, folder, tmp_path, capsys, out):
    (tmp_path / "file").write_text("mine")
    code = cofi.main([*command(folder, tmp_path), "--out", str(tmp_path / out)])
    check_refused(capsys, code, "cofi", "cannot be written")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("given, understood", [
    ({"task": "SST-2"}, {"task": "sst2"}), ({"task": "Toy "}, {"task": "toy"}),
    ({"masks": "head, int"}, {"masks": "head,int"}), ({"matching": "Free"}, {"matching": "free"})])
def test_spelling_that_can_be_understood(given, understood):
    defaults = cofi.Settings.for_task(understood.get("task", "toy"))
    assert parse_settings(cofi.Settings, given) == replace(defaults, **understood)


def test_spelling_of_strategies():
    cfg = parse_settings(sparsebert.Settings, {"strategy": "Distil, prune-first"})
    assert cfg.strategy == "prune_first,distil"


# ---- sparsebert.py -------------------------------------------------------------------------------

SPARSE_BAD = {
    "sparsity 95": (["--sparsity", "0.5,95"], "got 95 (did you mean 0.95?)"),
    "not numeric": (["--sparsity", "0.5,much"], "separated by commas, got 0.5,much"),
    "unknown strategy": (["--strategy", "distill"],
                         "small_dense, separated by commas, got distill"),
    "blocks that do not fit": (["--block", "24"], "--block must divide a matrix of"),
    "blocks that are too large": (["--block", "32"], "--block must leave something of a matrix of"),
    "sparsities that fall": (["--sparsity", "0.9,0.5"], "--sparsity must rise from one to the "
                             "next, got 0.9,0.5. Try 0.5,0.9"),
    "too small to be dense": (["--strategy", "small_dense", "--sparsity", "0.999"],
                              "--strategy small_dense must keep one head and one unit"),
    "unknown flag": (["--masks", "head"], "unrecognized arguments: --masks"),
    "a command of cofi.py": (["--compare", "out"], "Try python cofi.py --compare"),
}


@pytest.mark.parametrize("case", SPARSE_BAD)
def test_sparsebert_bad_arguments(tmp_path, capsys, case):
    arguments, fragment = SPARSE_BAD[case]
    code = sparsebert.main(["--out", str(tmp_path / "out"), "--max_steps", "1", *arguments])
    check_refused(capsys, code, "sparsebert", fragment)
    assert not (tmp_path / "out").exists()
