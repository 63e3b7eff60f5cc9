"""Tasks, tokens, batches, metrics and SQuAD's windows."""
import doctest
import math

import datasets
import huggingface_hub
import numpy as np
import pytest

import cofi
from data import custom, metrics, squad, tokenized
from data.errors import UserError
from data.files import write_text
from data.harness import charts, drawing
from data.hub import fetch
from data.tasks import TASKS, build_dataset, load_task
from data.tests.common import slow
from data.tests.helpers import (ALPHABET, command, make_raw, make_squad, make_tokenizer,
                                patch_load_task, write_custom)
from data.tokenized import batches


@pytest.mark.parametrize("module", [custom, metrics, squad, charts, drawing])
def test_examples_in_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


# ---- tokens and batches --------------------------------------------------------------------------


def test_tokens_and_batches():
    raw = make_raw()
    train = build_dataset("mrpc", raw, make_tokenizer(), 12).train
    batch = train.batch(np.array([3, 5]))
    for i, index in enumerate((3, 5)):
        row, is_token = raw["train"][index], batch["attention_mask"][i]
        expected = make_tokenizer().encode(row["sentence1"], row["sentence2"])
        if len(expected.ids) <= 12:
            assert batch["input_ids"][i][is_token].tolist() == expected.ids
            assert batch["token_type_ids"][i][is_token].tolist() == expected.type_ids
        assert not batch["token_type_ids"][i][~is_token].any()
    for seed in (None, 0, (57, 3)):
        seen = list(batches(train, 8, seed))
        assert sorted(np.concatenate([indices for indices, _ in seen])) == list(range(70))
        again = [indices.tolist() for indices, _ in batches(train, 8, seed)]
        assert [indices.tolist() for indices, _ in seen] == again
        for _, batch in seen:
            longest = batch["attention_mask"].sum(1).max()
            assert batch["input_ids"].shape[1] == longest <= 12
    first = [next(batches(train, 8, seed))[0].tolist() for seed in ((0, 0), (0, 1))]
    assert first[0] != first[1]                             # every epoch has an order of its own


def test_tokens_are_cached_and_made_again(tmp_path, monkeypatch):
    """They are made again when the data, the length or the tokenizer change, and only then."""
    seen, tokenize_batch = [], tokenized.tokenize_batch

    def counting(batch, indices, columns, tokenizer):
        seen.append(len(indices))
        return tokenize_batch(batch, indices, columns, tokenizer)

    def load(max_length=32, tokenizer=make_tokenizer()):
        seen.clear()
        train = load_task("custom", tokenizer, max_length, tmp_path / "d").train
        return train, sum(seen)

    monkeypatch.setattr(tokenized, "tokenize_batch", counting)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_custom(tmp_path / "d", "tsv")
    first, n = load()
    assert n == 70
    again, n = load()
    assert n == 0 and again.input_ids.tolist() == first.input_ids.tolist()
    assert again.offsets.tolist() == first.offsets.tolist()
    assert load(max_length=8)[1] == 70
    other = make_tokenizer()
    other.add_tokens(["aa"])
    assert load(tokenizer=other)[1] == 70
    assert load()[1] == 0
    with (tmp_path / "d" / "train.tsv").open("a") as file:
        file.write("71\ta a\tb b\tup\n")
    assert load()[1] == 71


# ---- metrics -------------------------------------------------------------------------------------


def test_metrics_against_known_values():
    """Counts written out, numpy's correlation, and a textbook's Spearman."""
    a, b = np.array([1, 0, 1, 1, 0, 1, 0, 0]), np.array([1, 0, 0, 1, 0, 1, 1, 1])
    assert metrics.accuracy(a, b) == 0.625
    assert metrics.f1(a, b) == pytest.approx(2 * 3 / (4 + 5))
    tp, tn, fp, fn = 3, 2, 1, 2
    mcc = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert metrics.matthews(a, b) == pytest.approx(mcc)
    x, y = [106, 100, 86, 101, 99, 103, 97, 113, 112, 110], [7, 27, 2, 50, 28, 29, 20, 12, 6, 17]
    assert metrics.spearman(x, y) == pytest.approx(-29 / 165)           # a textbook example
    assert metrics.pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    tied = np.corrcoef([0, 1.5, 1.5, 3], [0, 2, 1, 3])[0, 1]
    assert metrics.spearman([1, 2, 2, 3], [1, 3, 2, 4]) == pytest.approx(tied)


@pytest.mark.parametrize("predicted, accepted, exact, f1", [
    ("the cat", ["cat"], 1, 1),                                     # an article
    ("A cat!", ["the cat."], 1, 1),                                 # punctuation, case
    ("theatre", ["the atre"], 0, 0),                                # no article inside a word
    ("U.S.", ["us"], 1, 1),                                         # a point leaves no space
    ("twenty-one", ["twenty one"], 0, 0),                           # nor does a hyphen
    ("big cat", ["cat", "small dog"], 0, 2 * 1 / (2 + 1)),          # the best of several answers
    ("small dog", ["cat", "small  dog"], 1, 1),
    ("cat cat", ["cat"], 0, 2 * 1 / (2 + 1)),                       # repeated words count
    ("Zürich", ["zürich"], 1, 1),                                   # unicode
    ("Café", ["Cafe"], 0, 0),                                       # an accent is not dropped
    ("“cat”", ["cat"], 0, 0),                                       # only ASCII punctuation is
    ("", ["cat"], 0, 0),                                            # nothing found
    ("the", ["a"], 1, 1),                                           # no word left on either side
    ("", ["the", "cat"], 1, 1)])
def test_squad_metric(predicted, accepted, exact, f1):
    """Scores written out, as the official script scores them."""
    assert metrics.exact_match([predicted], [accepted]) == exact
    assert metrics.squad_f1([predicted], [accepted]) == pytest.approx(f1)


# ---- tasks ---------------------------------------------------------------------------------------


def test_tasks_are_those_of_the_papers():
    """Metrics of the papers; the names of the files that GLUE's server takes."""
    expected = {
        "toy": ["accuracy"], "cola": ["matthews"], "sst2": ["accuracy"],
        "mrpc": ["accuracy", "f1"], "stsb": ["pearson", "spearman"], "qqp": ["accuracy", "f1"],
        "mnli": ["accuracy"], "qnli": ["accuracy"], "rte": ["accuracy"],
        "squad": ["squad_f1", "exact_match"], "custom": ["accuracy"]}
    assert {name: list(task.metrics) for name, task in TASKS.items()} == expected
    files = [file for task in TASKS.values() for file in task.tests.values()]
    assert sorted(files) == sorted(["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm",
                                    "QNLI", "RTE"])


def test_mnli_reports_matched_and_mismatched():
    raw = {"train": make_raw(9)["train"], "validation_matched": make_raw(20)["train"],
           "validation_mismatched": make_raw(40)["validation"]}
    names = {"sentence1": "premise", "sentence2": "hypothesis"}
    raw = {split: rows.rename_columns(names) for split, rows in raw.items()}
    mnli = build_dataset("mnli", raw, make_tokenizer(), 12)
    logits = [np.array([1.0, 0.0])] * 40                            # predicts class 0 everywhere
    right = [1 - np.mean(raw[split]["label"]) for split in raw if split != "train"]
    assert mnli.dev.score(logits, mnli.metrics) == pytest.approx(
        {"accuracy": np.mean(right), "matched": right[0], "mismatched": right[1]})


@pytest.mark.parametrize("change, message", [
    ({"sentence2": None}, "no column 'sentence2'"),
    ({"n": 0}, "there are no rows"),
    ({"label": -1}, "got -1 in 70 rows")])
def test_bad_data(change, message):
    with pytest.raises(UserError, match=message):
        build_dataset("mrpc", make_raw(**change), make_tokenizer(), 128)


def test_hub_out_of_reach(monkeypatch, tmp_path):
    def down(*_):
        raise ConnectionError("no route to host\nand much more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", down)
    with pytest.raises(UserError, match="download config.json of the model some/bert") as error:
        fetch("some/bert", "config.json")
    assert "no route to host" in str(error.value) and "\n" not in str(error.value)
    # the cache knows that a model does not have a file
    cache = tmp_path / "models--some--bert"
    write_text(cache / "refs" / "main", "abc")
    write_text(cache / ".no_exist" / "abc" / "result.json", "")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert fetch("some/bert", "result.json", optional=True) is None
    with pytest.raises(UserError, match="download vocab.txt"):
        fetch("some/bert", "vocab.txt", optional=True)
    monkeypatch.setattr(datasets, "load_dataset", down)
    with pytest.raises(UserError, match="Could not download the dataset .*mrpc") as error:
        load_task("mrpc", make_tokenizer(), 128)
    assert "\n" not in str(error.value)


@slow
def test_submission(offline, folder, tmp_path, capsys, monkeypatch):
    """A line for each row, in order: entailment by name, other classes by number."""
    for task, file, labels, words in (("rte", "RTE", ("entailment", "not_entailment"), None),
                                      ("mrpc", "MRPC", ("not_equivalent", "equivalent"), "01"),
                                      ("stsb", "STS-B", None, None)):
        def load_task(name, tokenizer, max_length, folder="", trained=()):
            raw = make_raw(labels=labels)
            secret = make_raw(30, labels=labels, label=-1)["train"]
            return build_dataset(name, raw | {"test": secret}, tokenizer, max_length)

        patch_load_task(monkeypatch, load_task)
        assert cofi.main([*command(folder, tmp_path), "--task", task, "--max_steps", "1"]) == 0
        run, = (tmp_path / "out").glob(f"{task}-*")
        capsys.readouterr()
        assert cofi.main(["--submit", str(run)]) == 0
        path = run / f"{file}.tsv"
        assert str(path) in capsys.readouterr().out
        lines = [line.split("\t") for line in path.read_text().splitlines()]
        assert lines[0] == ["index", "prediction"]
        assert [index for index, _ in lines[1:]] == [str(i) for i in range(30)]
        if labels:
            assert {text for _, text in lines[1:]} <= set(words or labels)
        else:
            assert all(0 <= float(text) <= 5 for _, text in lines[1:])
        assert cofi.main(["--evaluate", str(run)]) == 0
        assert "test" not in capsys.readouterr().out                # its labels are not known


# ---- SQuAD ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer, inside", [
    ("a b", [0]),               # in the first window alone
    ("e f", [0, 1]),            # in two of them
    ("i j", [1, 2]),
    ("z", [5]),                 # at the very end
    ("g h i", [1]),             # past the end of the first window
    ("a b c d e f g h i", [])]) # longer than any window
def test_windows(answer, inside, monkeypatch):
    """max_length 12, a question of 1 token: 8 tokens of the context, a new window every 4."""
    monkeypatch.setattr(squad, "DOC_STRIDE", 4)
    raw = make_squad(("q", ALPHABET, answer, None), ("q", "a b", "b", None))
    tokenizer = make_tokenizer()
    windows = squad.tokenize_squad(raw, tokenizer, 12)
    assert windows.question_index.tolist() == [0, 0, 0, 0, 0, 0, 1]     # 26 letters, then 2
    seen = set()
    for i in range(7):
        ids = windows.input_ids[windows.offsets[i]:windows.offsets[i + 1]]
        words = [tokenizer.id_to_token(int(x)) for x in ids]
        assert words[:3] == ["[CLS]", "q", "[SEP]"] and words[-1] == "[SEP]" and len(ids) <= 12
        assert windows.first_segment_length[i] == 3
        if i < 6:
            assert " ".join(words[3:-1]) == ALPHABET[8 * i:8 * i + 15]
            seen |= set(words[3:-1])
            first, last = windows.labels[i]
            assert ((first, last) != (0, 0)) == (i in inside)
            assert not first or " ".join(words[first:last + 1]) == answer
    assert seen == set(ALPHABET.split())
    assert windows.labels[6].tolist() == [4, 4]


def test_answer_from_windows(monkeypatch):
    """The best start and end of all windows, in order, near each other, and of the context."""
    monkeypatch.setattr(squad, "DOC_STRIDE", 4)
    raw = make_squad(("q", ALPHABET.replace("j", "jé"), "jé k", None), ("q", "a b", "a b", None))
    windows = squad.tokenize_squad(raw, make_tokenizer(), 12)
    logits = [np.zeros((2, 12)) for _ in range(7)]
    logits[2][0, 4], logits[2][1, 5] = 5, 5                         # window 2 begins with i
    logits[1][0, 0] = logits[1][1, 0] = 9                           # [CLS], the question and [SEP]
    logits[3][0, 1] = logits[3][1, 11] = 9                          # are no answers
    logits[4][0, 9], logits[4][1, 4] = 6, 6                         # the end before the start
    logits[6] = np.zeros((2, 6))
    logits[6][0, 4], logits[6][1, 3] = 1, 1
    assert windows.predictions(logits)[0] == ("jé k", 10)
    assert windows.predictions(logits)[1][0] == "a"                 # 1 for a alone, b alone, a b
    assert windows.score(logits, ("exact_match", "squad_f1")) == pytest.approx(
        {"exact_match": 0.5, "squad_f1": (1 + 0) / 2})              # a is an article: no word left
    few = windows.sample(1)                                         # of the first question all
    assert len(few) == 6 and few.score(logits[:6], ("exact_match",)) == {"exact_match": 1}
