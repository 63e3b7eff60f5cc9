"""Fixtures of the tests in data/tests."""
import functools
import os
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from data.checkpoint import write_checkpoint
from data.course import questions
from data.harness import report
from data.tasks import build_dataset
from data.tests.common import TINY, make_bert
from data.tests.helpers import ALPHABET, make_raw, make_squad, make_tokenizer, patch_load_task


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def fast_digest(monkeypatch, request):
    """The hash of an answer is slow on purpose: 16 of them in every copy of the assignment."""
    if request.node.name != "test_questions_of_a_student":
        monkeypatch.setattr(questions, "digest", lambda *values: str(values))


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch):
    """To write through to the disk matters when the power fails only; it takes milliseconds."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def folder(tmp_path):
    """A pre-trained model on disk: a tiny BERT without a classifier."""
    bert = make_bert(replace(TINY, id2label=None))
    weights = {name: w for name, w in bert.state_dict().items()
               if not name.startswith("classifier")}
    write_checkpoint(tmp_path / "tiny", asdict(bert.config), weights, make_tokenizer())
    return tmp_path / "tiny"


@pytest.fixture
def finetuned(tmp_path):
    """A fine-tuned model on disk: a tiny BERT with a classifier."""
    bert = make_bert(TINY)
    write_checkpoint(tmp_path / "finetuned", asdict(bert.config), bert.state_dict(),
                     make_tokenizer())
    return tmp_path / "finetuned"


@pytest.fixture(autouse=True)
def fast_speedup(monkeypatch):
    """Measure the speed-up on short sequences, a few times."""
    monkeypatch.setattr(report, "measure_speedup", functools.partial(
        report.measure_speedup, length=16, seconds=0.0))


@pytest.fixture
def offline(monkeypatch):
    """load_task gives a made-up task under the name of a real one; nothing touches a network."""
    def load_task(name, tokenizer, max_length, folder="", trained=()):
        raw = make_raw(labels=None if name == "stsb" else ("not_equivalent", "equivalent"))
        return build_dataset(name, raw, tokenizer, max_length)

    patch_load_task(monkeypatch, load_task)


@pytest.fixture
def squad(monkeypatch):
    """A made-up SQuAD: the question is the letter before the answer. Nothing touches a network."""
    def rows(n):
        rng, made = np.random.default_rng(n), []
        for _ in range(n):
            letters = rng.permutation(ALPHABET.split())
            i = int(rng.integers(25))
            made.append((letters[i], " ".join(letters), letters[i + 1], 2 * i + 2))
        return make_squad(*made)

    def load_task(name, tokenizer, max_length, folder="", trained=()):
        assert name == "squad"
        return build_dataset(name, {"train": rows(40), "validation": rows(8)}, tokenizer,
                             max_length)

    patch_load_task(monkeypatch, load_task)
