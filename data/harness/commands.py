"""The command line of a program, and the commands on a finished model.

--evaluate, --predict, --submit and --export get `load`, a function from a folder or hub name to a
BERT: cofi.load_finetuned.
"""
import io
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

from data.checkpoint import align_labels
from data.errors import UserError
from data.files import is_folder, write_atomically
from data.harness.cli import RunConfig, make_parser, parse_settings
from data.harness.compare import compare
from data.harness.console import exit_code, one_line
from data.harness.device import pick_device, set_threads
from data.harness.evaluate import evaluate, predict_logits
from data.harness.runs import check_max_length, check_token_types, load_texts, settings_of
from data.squad import window_from_text
from data.tasks import TASKS, write_submission
from data.tokenized import tokenize_texts
from data.tokenizer import load_tokenizer

COMMANDS = {      # what to do instead of a run: {flag: (metavar, help)}
    "evaluate": ("MODEL", "Score a finished run, or another fine-tuned BERT, again"),
    "predict": (("MODEL", "TEXT"), "Predict: MODEL SENTENCE [SENTENCE], or MODEL QUESTION CONTEXT. "
                "Put a space before a text that begins with -"),
    "submit": ("MODEL", "Write predictions for the test set as GLUE's server takes them"),
    "export": ("FOLDER", "Write model.pt2, a program that needs PyTorch alone"),
    "compare": ("FOLDER", "Compare the finished runs of a folder, such as out, or of a .jsonl "
                "file: a table, and a chart of score over speed-up")}


def run_cli(name, doc, kind, run, arguments, load=None):
    """Run a program: run(settings), or one of COMMANDS if the program can load a model.

    name, doc: of the program; kind: its class of settings; arguments: words, None for those of the
    process. Returns the exit code: 0, 2 for a UserError, 130 if interrupted.
    """
    def start():
        commands = COMMANDS if load else {}
        flags = vars(make_parser(kind, doc, commands).parse_args(arguments))
        given = {flag: value for flag, value in flags.items() if value is not None}
        asked = {flag: given.pop(flag) for flag in commands if flag in given}       # at most one
        cfg = parse_settings(kind, given)
        if not asked:
            run(cfg)
        for flag, value in asked.items():
            run_command(flag, value, load, given, kind)

    return exit_code(name, start)


def run_command(name, value, load, given, kind):
    """Run one of COMMANDS. value: its words; given: the other flags, {name: value}; kind: the class
    of settings.
    """
    allowed = {
        "evaluate": {"task", "data", "max_length", "threads", "device"},
        "submit": {"task", "data", "max_length", "threads", "device"},
        "predict": {"threads"}, "export": {"threads"}, "compare": set()}
    for flag in given.keys() - allowed[name]:
        raise UserError(f"--{flag} has no effect together with --{name}. Try without it")
    if not value or value[0] == "":
        raise UserError(f"--{name} must not be empty. Try out, or the folder of a run in it")
    set_threads(given.get("threads", 0))
    device = pick_device(given.get("device", "auto"))
    if name == "evaluate":
        evaluate_model(value, load, given, device)
    elif name == "predict":
        predict(value[0], value[1:], load)
    elif name == "submit":
        submit(value, load, given, device)
    elif name == "export":
        export(value, load)
    elif name == "compare":
        compare(value, kind)


def load_model_and_task(model, load, given, device):
    """Return a fine-tuned model and its task: (BERT in eval mode, Dataset). Raises UserError.

    model: the folder of a run, which knows its task, or any other model, with --task.
    """
    bert = load(model).to(device).eval()
    known = {"task": bert.config.task} | settings_of(model)
    if "task" in given or "data" in given:
        known |= {"task": given.get("task", "custom"), "data": given.get("data", "")}
    task, folder = known["task"], known.get("data", "")
    if task not in TASKS:
        raise UserError(f"{model}: its config.json must name one of our tasks, got {task!r}. Try "
                        "--task")
    if folder and "data" not in given and not is_folder(folder):
        raise UserError(f"{model} was trained with --data {folder}, which is not here. Try --data "
                        "with the folder of these data")
    defaults = RunConfig.for_task(task, folder)
    check_max_length(given.get("max_length", 0), bert.config, model)
    max_length = given.get("max_length", known.get("max_length", defaults.max_length))
    max_length = min(max_length, bert.config.max_position_embeddings)
    tokenizer = load_tokenizer(model, bert.config.vocab_size)
    data = load_texts(task, tokenizer, max_length, folder, known, model)
    check_token_types(bert.config, data.columns, model)
    align_labels(bert, data.names, data.is_span, model)
    return bert, data


def evaluate_model(model, load, given, device):
    """--evaluate: print the dev scores, and the test scores where those labels are known."""
    bert, data = load_model_and_task(model, load, given, device)
    for split, dataset in (("dev", data.dev), ("test", data.test)):
        if dataset:
            for name, value in evaluate(bert, dataset, data.metrics).items():
                print(f"{split:6}{name:11} {value:.4f}")


def submit(model, load, given, device):
    """--submit: write predictions for the test set of GLUE, in the files that its server scores."""
    bert, data = load_model_and_task(model, load, given, device)
    if not data.task.tests:
        possible = ", ".join(name for name, task in TASKS.items() if task.tests)
        raise UserError(f"--submit must name a model of a GLUE task ({possible}), got {model}")
    for split, file in data.task.tests.items():
        dataset = data.tokenized(split)
        folder = Path(model) if Path(model).is_dir() else Path(".")
        path = folder / f"{file}.tsv"
        write_submission(path, dataset.predictions(predict_logits(bert, dataset)), data.names)
        print(f"{len(dataset)} rows: {path}")


def predict(model, texts, load):
    """--predict: print class probabilities of a sentence or pair, a value, or a SQuAD answer."""
    bert = load(model).eval()
    config = bert.config
    tokenizer = load_tokenizer(model, config.vocab_size)
    settings = settings_of(model)
    task = TASKS.get(config.task)
    names = settings.get("texts") or (task.columns if task else ())
    if config.is_span:
        names = ("question", "context")
    expected = [len(names)] if names else [1, 2]
    if len(texts) not in expected:
        wanted = f"{len(names)} texts ({', '.join(names)})" if names else "1 or 2 texts"
        raise UserError(f"--predict {model} must be followed by {wanted}, got {len(texts)}")
    check_token_types(config, texts, model)
    if not all(map(is_unicode, texts)):
        raise UserError("--predict must be followed by text in UTF-8, got other bytes. Try a "
                        "terminal in UTF-8")
    for text in texts:
        if text == "-" or os.path.isfile(text):
            raise UserError(f"--predict must be followed by a text, got {text!r}: files and "
                            "standard input are not read. Try the text itself, or --evaluate with "
                            "--data")
    if not any(map(str.strip, texts)):
        raise UserError("--predict must be followed by a text, got an empty one. Try another text")
    # as many tokens as the model was trained and scored with
    trained = settings.get("max_length", 384 if config.is_span else config.max_position_embeddings)
    longest = min(trained, config.max_position_embeddings)
    if config.is_span:
        windows = window_from_text(*texts, tokenizer, longest)
        answer, _ = windows.predictions(predict_logits(bert, windows))[0]
        print(answer)
        return
    example = tokenize_texts([[text] for text in texts], np.zeros(1), tokenizer, longest)
    logits = torch.from_numpy(predict_logits(bert, example)[0])
    if not config.id2label:
        print(f"{logits[0]:.4f}")
        return
    probabilities = logits.softmax(-1).tolist()
    for p, label in sorted(zip(probabilities, config.id2label), reverse=True):
        print(f"{p:.4f}  {one_line(label)}")


def is_unicode(text):
    """Whether a text has no lone surrogates, which stand for bytes that are not UTF-8."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


class LogitsOnly(nn.Module):
    """The exported program: from input_ids, token_type_ids and attention_mask to logits."""

    def __init__(self, bert):
        super().__init__()
        self.bert = bert

    def forward(self, input_ids, token_type_ids, attention_mask):
        return self.bert(input_ids, token_type_ids, attention_mask).logits


def export(folder, load):
    """--export: write FOLDER/model.pt2, a program for PyTorch alone, for any batch and length."""
    if not is_folder(folder):
        raise UserError(f"--export must be the folder of a model, got {folder}. model.pt2 is "
                        "written there")
    bert = load(folder).eval()
    longest = bert.config.max_position_embeddings
    B, T = torch.export.Dim("B"), torch.export.Dim("T", max=longest)
    input_ids = torch.zeros(2, 8, dtype=torch.long)
    # A clone: the same tensor twice would be exported as one input.
    example = input_ids, input_ids.clone(), input_ids == 0
    program = torch.export.export(LogitsOnly(bert), example, dynamic_shapes=[{0: B, 1: T}] * 3)
    path = Path(folder) / "model.pt2"
    content = io.BytesIO()              # PyTorch's own writer aborts the process on a full disk
    torch.export.save(program, content)
    write_atomically(path, lambda file: file.write(content.getbuffer()))
    print(f"{path}: input_ids, token_type_ids, attention_mask (B, T) -> logits; T up to {longest}")
