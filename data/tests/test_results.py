"""data/results: its tables, and the benchmark: its plain step, its thin network, a short run."""
import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cofi
from data.results.benchmark import naive_loss, thin_masks
from data.tests.common import BERT_BASE, ODD, assert_close, make_batch, make_bert, make_masks
from test_cofi import main

RESULTS = Path(cofi.__file__).parent / "data/results"


@pytest.mark.parametrize("matching", ["free", "ordered"])
def test_naive_step_has_our_loss(matching):
    """And our gradient, whatever the padding: this makes it fair to compare their times."""
    student, teacher, z = make_bert(ODD), make_bert(ODD), make_masks(ODD)
    W_layer, batch = nn.Linear(13, 13, bias=False), make_batch()
    cfg = cofi.Settings(matching=matching)
    longer = {name: F.pad(x, (0, 7)) for name, x in batch.items()}
    with torch.no_grad():
        out_t = teacher(**batch)
    ours, _, _ = cofi.distillation_loss(student(**batch, **z), out_t, torch.zeros(5).long(),
                                        batch["attention_mask"], cfg, W_layer)
    naive, weights = naive_loss(student, teacher, W_layer, longer, z, cfg), [*student.parameters()]
    assert_close(naive, ours)
    gradients = (torch.autograd.grad(loss, weights, materialize_grads=True)
                 for loss in (naive, ours))
    for got, expected in zip(*gradients):
        assert_close(got, expected, atol=1e-4)


def test_thin_masks_of_bert_base():
    """The counts that data/results/README.md gives for BERT-base: 95.0 %, and never below it."""
    z = thin_masks(BERT_BASE, 0.95)
    assert [int(z[name].sum()) for name in ("z_hidn", "z_head", "z_int")] == [760, 10, 12 * 126]
    assert 0.95 <= cofi.Masks(BERT_BASE).sparsity(z) < 0.9501


def test_benchmark_runs(offline, folder, capsys):
    assert main(["--benchmark", "--turns", "1", "--task", "mrpc", "--model", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"naively.*( +\d+\.\d+){4} to \d+\.\d+\n", printed)
    assert re.search(r"memory: \d\.\d\d GB before, \d\.\d\d GB after 1 pruning steps\n", printed)
    assert "% of the speed of a large product" in printed and "at batch 128" in printed


def test_benchmark_of_a_task_without_classes(monkeypatch, capsys, offline, folder):
    assert main(["--benchmark", "--task", "stsb", "--model", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "--task must have classes for the benchmark, got stsb" in error


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_tables_come_from_results(path, tmp_path, capsys):
    """Every row that --compare prints for a committed file is in README.md, and its chart is there.
    """
    copy = shutil.copy(path, tmp_path)
    assert cofi.main(["--compare", str(copy)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    text = (RESULTS / "README.md").read_text("utf-8")
    assert len(rows) > 2 and not [row for row in rows if row not in text]
    chart = f"{path.stem}-curves.svg"
    assert (tmp_path / chart).read_text() == (RESULTS / chart).read_text() and f"({chart})" in text
