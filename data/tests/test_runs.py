"""Whole runs of cofi.py, on made-up data: what they leave, and that it can be used."""
import json
import math
import subprocess
import sys
from dataclasses import asdict, replace
from unittest import mock
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import cofi
import sparsebert
from data.checkpoint import write_checkpoint
from data.harness import progress
from data.harness.device import has_bf16, product_speed
from data.harness.journal import Journal
from data.harness.runs import run_dir
from data.tasks import build_dataset
from data.tokenized import tokenize_texts
from data.tests.common import TINY, assert_close, make_batch, make_bert, slow
from data.tests.helpers import (ALPHABET, command, make_squad, make_tokenizer, patch_load_task,
                                read_log, read_result, write_custom)

RESULT = """task model seed metric teacher_score pruned_score score target_sparsity sparsity
encoder_parameters dense_encoder_parameters total_parameters speedup length seconds settings
peak_memory device versions""".split()
UNIT = 2 * 16 / 5376          # of TINY's weights: an FFN unit


@pytest.mark.parametrize("task", ["mrpc", "stsb"])
def test_what_a_run_leaves(offline, folder, tmp_path, capsys, task):
    assert cofi.main([*command(folder, tmp_path), "--task", task, "--sparsity", "0.6"]) == 0
    printed = capsys.readouterr().out
    for word in ("teacher", "prune", "finetune", "■", "█", "speed-up", "GB at most",
                 "caching teacher outputs for 70 examples"):
        assert word in printed
    run, = (tmp_path / "out").glob(f"{task}-0.6*")
    assert sorted(path.name for path in run.iterdir()) == [
        "config.json", "curves.svg", "log.jsonl", "network.txt", "pytorch_model.bin", "result.json",
        "tokenizer.json"]
    picture = ElementTree.parse(run / "curves.svg").getroot()       # well-formed and complete
    words = {text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {"s", "t", "lambda1", "lambda2", "from 3", "0.6", "teacher"} <= words
    result = read_result(run)
    assert set(RESULT) <= set(result)
    assert 0.6 <= result["sparsity"] <= 0.6 + UNIT
    assert list(result["speedup"]) == ["1", "32", "128"]
    steps = [record["step"] for record in read_log(run) if record["stage"] == "prune"]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert cofi.main(["--evaluate", str(run)]) == 0
    assert f"{result['score']:.4f}" in capsys.readouterr().out
    assert cofi.main(["--predict", str(run), "a b", "c d"]) == 0
    answer = capsys.readouterr().out
    assert "equivalent" in answer if task == "mrpc" else math.isfinite(float(answer))


def test_same_seed_same_bits(offline, folder, tmp_path, capsys):
    """Also when the teacher of an earlier run is used again."""
    weights = []
    for out in ("one", "two", "two"):
        flags = [*command(folder, tmp_path), "--out", str(tmp_path / out), "--overwrite"]
        assert cofi.main(flags) == 0
        run, = (tmp_path / out).glob("mrpc-*")
        weights.append(torch.load(run / "pytorch_model.bin", weights_only=True))
    assert "trained earlier" in capsys.readouterr().out
    for other in weights[1:]:
        assert all(torch.equal(w, other[name]) for name, w in weights[0].items())


@pytest.mark.parametrize("more", [
    ["--layer_weight", "0"], ["--pred_weight", "0"], ["--layer_weight", "0", "--pred_weight", "0"],
    ["--masks", "head", "--sparsity", "0.2"], ["--masks", "mha,ffn", "--sparsity", "0.5"],
    ["--masks", "int", "--sparsity", "0.4"], ["--masks", "mha,head,ffn,int"],
    ["--masks", "head,int,hidn"],
    ["--matching", "fixed"], ["--matching", "free"], ["--no-bf16"]])
def test_every_ablation_runs(offline, folder, tmp_path, capsys, more):
    """Without both losses of distillation there is no cache of the teacher either."""
    assert cofi.main([*command(folder, tmp_path), "--max_steps", "3", *more]) == 0
    is_cached = "caching teacher outputs" in capsys.readouterr().out
    assert is_cached == ("--layer_weight" not in more or "--pred_weight" not in more)


@slow
def test_training_meets_the_target(offline, folder, tmp_path):
    """The multipliers bring the expected sparsity to t within a hundred and fifty steps."""
    more = ["--max_steps", "150", "--prune_epochs", "100", "--sparsity", "0.5",
            "--finetune_epochs", "1", "--prune_lr", "1e-3", "--teacher_lr", "3e-3"]
    assert cofi.main([*command(folder, tmp_path), *more]) == 0
    run, = (tmp_path / "out").glob("mrpc-0.5*")
    last = [record for record in read_log(run) if record["stage"] == "prune"][-1]
    assert last["s"] == pytest.approx(0.5, abs=0.02)


def test_steps_of_a_fraction_of_an_epoch():
    """In floating point 1.1 * 180 is more than 198, and .7 * 10 is less than 7."""
    for epochs, num_examples, steps in ((1.1, 180, 198), (0.7, 10, 7), (0.5, 5, 3), (0.001, 1, 1)):
        cfg = cofi.Settings(prune_epochs=epochs, batch_size=1)
        assert cfg.num_steps("prune", num_examples) == steps


def test_given_teacher_of_another_task_is_refused(offline, folder, tmp_path, capsys):
    config = replace(TINY, id2label=["up", "down"])
    weights = make_bert(config).state_dict()
    write_checkpoint(tmp_path / "t", asdict(config), weights, make_tokenizer())
    assert cofi.main([*command(folder, tmp_path), "--teacher", str(tmp_path / "t")]) == 2
    error = capsys.readouterr().err
    assert f"--teacher {tmp_path / 't'}: it predicts classes ['up', 'down']" in error


LOAD_PROGRAM = """if True:
    import sys, torch
    program = torch.export.load(sys.argv[1])
    assert "device" not in str(program.graph)       # it may be moved to a GPU
    program = program.module()
    logits = [program(b["input_ids"], b["token_type_ids"], b["attention_mask"])
              for b in torch.load(sys.argv[2])]
    torch.save(logits, sys.argv[3])
    assert "cofi" not in sys.modules
    """


def load_one_question(name, tokenizer, max_length, folder="", trained=()):
    """Stand in for load_task: SQuAD with one question."""
    raw = make_squad(("q", ALPHABET, "a b", None))
    return build_dataset("squad", {"train": raw, "validation": raw}, tokenizer, max_length)


@slow
def test_custom_data_end_to_end(folder, tmp_path, capsys):
    """Trained, scored again, asked, exported: in a new process the program equals the model."""
    custom = write_custom(tmp_path / "d", "jsonl")
    flags = ["--model", str(folder), "--out", str(tmp_path / "out"), "--max_steps", "3"]
    assert cofi.main(["--data", str(custom), "--sparsity", "0.6", *flags]) == 0
    run, = (tmp_path / "out").glob("custom-0.6*")
    assert "data=d" in run.name
    score = read_result(run)["score"]
    capsys.readouterr()
    assert cofi.main(["--evaluate", str(run)]) == 0
    assert f"{score:.4f}" in capsys.readouterr().out
    assert cofi.main(["--predict", str(run), "a b", "c"]) == 0
    assert {"up", "down"} <= set(capsys.readouterr().out.split())
    assert cofi.main(["--submit", str(run)]) == 2
    assert "--submit must name a model of a GLUE task" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch_load_task(patch, load_one_question)
        assert cofi.main(["--evaluate", str(run), "--task", "squad"]) == 2
    assert "it predicts classes ['down', 'up'], the task asks for spans" in capsys.readouterr().err
    assert cofi.main(["--export", str(run)]) == 0
    batches = [make_batch(B, T) for B, T in ((1, 3), (5, 11), (3, 64))]
    torch.save(batches, tmp_path / "batches")
    subprocess.run([sys.executable, "-c", LOAD_PROGRAM, run / "model.pt2", tmp_path / "batches",
                    tmp_path / "logits"], check=True, cwd=tmp_path)
    bert = cofi.load_finetuned(run).eval()
    for batch, logits in zip(batches, torch.load(tmp_path / "logits")):
        assert_close(logits, bert(**batch).logits)


@slow
def test_squad_end_to_end(squad, folder, tmp_path, capsys, monkeypatch):
    flags = ["--task", "squad", "--model", str(folder), "--out", str(tmp_path / "out"),
             "--max_steps", "4", "--max_length", "16"]
    assert cofi.main([*flags, "--sparsity", "0.6"]) == 0
    run, = (tmp_path / "out").glob("squad-0.6*")
    assert "qa_outputs.weight" in torch.load(run / "pytorch_model.bin", weights_only=True)
    result = read_result(run)
    assert list(result["scores"]) == ["squad_f1", "exact_match"]
    assert 0.6 <= result["sparsity"] <= 0.6 + UNIT
    capsys.readouterr()
    assert cofi.main(["--evaluate", str(run)]) == 0
    assert f"{result['score']:.4f}" in capsys.readouterr().out
    assert cofi.main(["--predict", str(run), "a", ALPHABET]) == 0
    assert capsys.readouterr().out.strip() in ALPHABET
    assert cofi.main(["--export", str(run)]) == 0
    assert cofi.main(["--predict", str(run), "a"]) == 2
    assert "must be followed by 2 texts (question, context), got 1" in capsys.readouterr().err
    monkeypatch.setattr(sparsebert, "speedup_csr", lambda bert: {"1 x 8": 1.0})
    strategies = ["--strategy", "distil,small_dense", "--sparsity", "0.5"]
    assert sparsebert.main([*flags, *strategies]) == 0


@pytest.mark.parametrize("features, expected", [
    ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": True}, True),
    ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_bf16": False}, False),
    ({"cpu_name": "AMD EPYC", "avx512_bf16": True}, True),
    ({"cpu_name": "AMD EPYC"}, False),
    ({}, False)])
def test_bf16_where_it_is_faster(features, expected, monkeypatch):
    """AVX512-BF16 is slower than fp32 on Intel."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert has_bf16(torch.device("cpu")) == expected


class Steps(Journal):
    """A Journal whose steps take an hour each, on a clock of its own."""

    def steps(self, batches, stage, total, start_step):
        for step, batch in super().steps(batches, stage, total, start_step):
            self.clock[0] += 3600
            yield step, batch


def test_time_that_is_left(tmp_path, monkeypatch, capsys):
    """After 20 steps a long run says how long it takes, and every line of the log what is left."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(progress, "training_batches", lambda *_: [(None, {})] * 40)
    cfg = cofi.Settings(prune_epochs=20, finetune_epochs=30, batch_size=32)
    journal = Steps(tmp_path / "run", {}, lambda record: f"left {record['left'] / 3600:g}")
    journal.clock = clock
    state = {"bert": make_bert(TINY)}
    stage = progress.Progress(journal, "prune", 40, state, torch.device("cpu"))
    dataset = tokenize_texts([["a b"] * 64], np.zeros(64), make_tokenizer(), 8)
    for step, _ in stage.steps(dataset, cfg):
        stage.add(torch.zeros(2))
        if stage.should_log:
            stage.log(("a", "b"))
    printed = capsys.readouterr().out
    assert "left 36\n" in printed and printed.endswith("left 0\n")
    assert ("prune     3600.00 seconds for a step: about 20h00 left, 80h00 with finetune. "
            "README.md has a command for a laptop\n") in printed


@pytest.mark.parametrize("stage, cfg, steps", [
    # 2 batches in an epoch; t = .5 from a tenth of pruning on, or a ramp over the rest
    ("teacher", dict(), 2 * (5 + 10 * 0.55 + 10 * 0.5)),
    ("prune", dict(), 2 * (10 * 0.55 + 10 * 0.5)),
    ("prune", dict(mask_start=0.2, sparsity_warmup=0.8), 2 * (10 * 0.8 + 10 * 0.5)),
    ("teacher", dict(structure="small"), 2 * (5 + 10 * 0.5 + 10 * 0.5)),
    ("teacher", dict(sparsity="0.5,0.9"), 2 * (5 + 5.5 + 5 + 10 * (0.5 - 0.4 * 0.9) + 1)),
    ("prune", dict(sparsity="0.5,0.9"), 2 * (10 * (0.5 - 0.4 * 0.9) + 1)),
    ("finetune", dict(), None)])
def test_long_run_is_announced_before_its_first_step(tmp_path, monkeypatch, capsys, stage, cfg,
                                                     steps):
    """As long as the matrix products of the rows take at the speed of a large product."""
    bert = make_bert(TINY)
    weights = cofi.count_encoder_weights(bert)
    dataset = tokenize_texts([["a b"] * 40], np.zeros(40), make_tokenizer(), 8)
    cfg = cofi.Settings(**dict(sparsity=0.5, teacher_epochs=5, prune_epochs=10, finetune_epochs=10,
                               mask_start=0.1, sparsity_warmup=0.0) | cfg)
    operations = 6 * weights * len(dataset.input_ids) / 2 * (steps or 40)
    monkeypatch.setattr(progress, "SLOWEST_CPU", 0)
    monkeypatch.setattr(progress, "training_batches", lambda *_: [])
    printed = []
    for hours in (2.9, 30.0):
        monkeypatch.setattr(progress, "product_speed", lambda *_: operations / hours / 3600)
        journal = Journal(tmp_path / f"{hours}", {})
        state = {"bert": bert}
        list(progress.Progress(journal, stage, 5, state, torch.device("cpu")).steps(dataset, cfg))
        printed.append(capsys.readouterr().out)
    later = "prune and finetune" if stage == "teacher" else "finetune"
    announced = (f"{stage:9} at least 30h00 on this CPU, with {later}. README.md has a command for "
                 "a laptop\n")
    assert printed == ["", announced if steps else ""]


def test_measuring_the_machine_leaves_the_random_numbers_alone():
    before = torch.get_rng_state()
    assert product_speed(torch.device("cpu"), True) > 0
    assert torch.equal(before, torch.get_rng_state())


def test_settings_are_the_papers_by_size_of_the_task():
    """The paper's table of hyper-parameters: small sets, large sets, SQuAD."""
    names = ("batch_size", "max_length", "prune_lr", "matching", "prune_epochs", "finetune_epochs")
    table = {"rte": (32, 128, 2e-5, "ordered", 100, 20), "mnli": (32, 128, 2e-5, "free", 20, 20),
             "squad": (16, 384, 3e-5, "free", 20, 20)}
    table |= dict.fromkeys(["mrpc", "cola", "stsb"], table["rte"])
    table |= dict.fromkeys(["sst2", "qnli", "qqp"], table["mnli"])
    for task, row in table.items():
        cfg = cofi.Settings.for_task(task)
        assert tuple(getattr(cfg, name) for name in names) == row, task
        epochs = cfg.mask_start * cfg.prune_epochs, cfg.sparsity_warmup * cfg.prune_epochs
        assert epochs == pytest.approx((4, 20) if row[3] == "ordered" else (1, 2)), task


@slow
def test_toy_is_the_task_of_a_run_without_arguments(tmp_path, capsys):
    """A whole run in two steps a stage. --evaluate gives the scores of its result.json again."""
    assert cofi.main(["--max_steps", "2", "--out", str(tmp_path)]) == 0
    folder, = tmp_path.glob("toy-0.9*")
    result = json.loads((folder / "result.json").read_text("utf-8"))
    assert list(result["scores"]) == ["accuracy", "seen", "unseen"]
    assert result["score"] == (result["scores"]["seen"] + result["scores"]["unseen"]) / 2
    assert 0.9 <= result["sparsity"] < 0.9005
    assert {"task", "seed", "teacher_score", "pruned_score", "target_sparsity", "seconds",
            "encoder_parameters", "speedup", "settings", "device", "versions"} <= set(result)
    capsys.readouterr()
    assert cofi.main(["--evaluate", str(folder)]) == 0
    printed = capsys.readouterr().out.split()
    assert printed.count("dev") == printed.count("test") == 3
    assert f"{result['scores']['unseen']:.4f}" in printed


def test_names_of_folders():
    """A file system allows 255 bytes, not characters."""
    for name in "感情分析" * 30, "a" * 300:
        cfg = cofi.Settings(task="custom", data=name)
        with mock.patch("data.custom.count_rows", lambda _: 1):
            assert len(run_dir(cfg, ["teacher", "custom"]).name.encode()) <= 200
