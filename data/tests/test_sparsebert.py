"""sparsebert.py: runs on the toy, augmentation, and what zeros are worth."""
import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import cofi
import sparsebert
from data.checkpoint import read_config, read_mlm_head
from data.harness.journal import Journal
from data.harness.knowledge import Knowledge
from data.sparse import load_sparse, save_sparse, to_csr
from data.tasks import TOY, load_task
from data.tokenizer import load_tokenizer
from data.tests.common import BERT_BASE, MINILM, assert_close, make_batch, make_bert, slow
from data.tests.helpers import read_result
from data.tokenized import tokenize_texts
from data.toy import prepare


def load_toy():
    """Return (tokenizer, pre-trained BERT) of the toy."""
    bert, _ = cofi.load_pretrained(TOY, cofi.Config(**read_config(TOY)))
    return load_tokenizer(TOY), bert.eval()


@slow
def test_momentum_does_not_revive_what_was_pruned(tmp_path, monkeypatch):
    """Every line of the log, the last included, finds exactly the zeros of its masks."""
    monkeypatch.setattr(sparsebert, "evaluate_dev", lambda *_: {})       # takes most of the time
    tokenizer, _ = load_toy()
    data = load_task("toy", tokenizer, 64)
    cfg = replace(sparsebert.Settings.for_task("toy"), max_steps=30, prune_until=0.5)
    config = cofi.Config(**read_config(TOY) | {"id2label": data.names})
    bert, _ = cofi.load_pretrained(TOY, config)
    masks, seen = sparsebert.init_masks(bert), []

    class CheckingJournal(Journal):
        def log(self, record):
            seen.append(record["s"])
            for name, w in sparsebert.prunable_weights(bert).items():
                expected = math.floor((1 - record["s"]) * w.numel() + 1e-6)
                assert int(masks[name].sum()) == expected
                assert not (w[~masks[name]] != 0).any()

    journal = CheckingJournal(tmp_path, {})
    sparsebert.train("finetune_first", bert, data, cfg, journal, masks, 0.9)
    assert len(seen) == 5 and abs(seen[-1] - 0.9) < 1e-9 and seen == sorted(seen)


def test_sparse_file_and_csr(tmp_path):
    """Written, read back and equal; at most 12 % of the bytes; the same logits through CSR."""
    bert = make_bert(MINILM)
    masks = sparsebert.init_masks(bert)
    sparsebert.prune(bert, masks, 0.95, 1)
    with torch.no_grad():           # sums of the size they have in a trained BERT
        for w in sparsebert.prunable_weights(bert).values():
            w *= 0.3
    sparse, dense = save_sparse(tmp_path / "sparse.bin", bert)
    assert sparse <= 0.12 * dense == 0.12 * 4 * 10_616_832
    others = sum(p.numel() for p in bert.parameters()) - 10_616_832
    assert (tmp_path / "sparse.bin").stat().st_size < sparse + 4 * others + 100_000
    read = load_sparse(tmp_path / "sparse.bin")
    assert read.keys() == bert.state_dict().keys()
    assert all(torch.equal(read[name], w) for name, w in bert.state_dict().items())
    batch = make_batch()
    with torch.no_grad():
        assert_close(to_csr(bert)(**batch).logits, bert(**batch).logits)


def test_augmentation():
    """Only words change, never special tokens; labels, lengths and token types stay."""
    tokenizer, bert = load_toy()
    dev, head = load_task("toy", tokenizer, 64).dev, read_mlm_head(TOY, "cpu")
    n, tokens = len(dev), len(dev.input_ids)
    more = sparsebert.augment(dev, bert, head, 4, [0, 1, 2, 3, 4], copies=2)
    assert len(more) == 3 * n
    assert more.labels.tolist() == dev.labels.tolist() * 3
    assert more.first_segment_length.tolist() == dev.first_segment_length.tolist() * 3
    assert np.array_equal(more.input_ids[:tokens], dev.input_ids)
    old, new = dev.input_ids, more.input_ids[tokens:2 * tokens]
    assert 0.03 < np.mean(old != new) < 0.2
    assert np.array_equal(old[old < 5], new[old < 5]) and not (new[old >= 5] < 5).any()
    last, last_of_dev = more.batch(np.array([3 * n - 1])), dev.batch(np.array([n - 1]))
    assert last["input_ids"].shape == last_of_dev["input_ids"].shape


def test_padding_is_no_word():
    """Also where [PAD] is not token 0, with which rows are padded."""
    tokenizer, bert = load_toy()
    knowledge = Knowledge(TOY, load_task("toy", tokenizer, 64), tokenizer, torch.device("cpu"))
    knowledge.text = knowledge.text.sample(100)
    expected = knowledge(bert)
    knowledge.special.remove(0)
    assert knowledge(bert) == expected > 0.5


def test_augmentation_finds_words_of_the_same_kind():
    """A masked noun of the toy becomes a noun: the head is read and used rightly."""
    tokenizer, bert = load_toy()
    example = tokenize_texts([["a dog sprints"], ["the dog runs"]], np.zeros(1), tokenizer, 64)
    head, words = read_mlm_head(TOY, "cpu"), set()
    for _ in range(20):
        new = sparsebert.augment(example, bert, head, 4, [0, 1, 2, 3, 4], 1, share=0.2,
                                 candidates=3)
        words.add(tokenizer.id_to_token(int(new.input_ids[len(example.input_ids) + 2])))
    assert words & set(prepare.TREES["noun"].chain)
    assert not words & set(prepare.TREES["verb"].chain)


@slow
def test_sparsebert_on_the_toy(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sparsebert, "speedup_csr",
                        functools.partial(sparsebert.speedup_csr, lengths=(8,), seconds=0.0))
    for split in "train", "validation":
        lines = (TOY / f"{split}.tsv").read_text("utf-8").splitlines(keepends=True)
        (tmp_path / f"{split}.tsv").write_text("".join(lines[:65]), "utf-8")
    more = ["--data", str(tmp_path), "--model", str(TOY), "--threads", "1",
            "--max_steps", "2", "--sparsity", "0.9", "--augment", "1",
            "--strategy", "prune_first,finetune_first,distil,small_dense"]
    assert sparsebert.main(["--out", str(tmp_path), *more]) == 0
    printed = capsys.readouterr().out
    assert printed.count("(d) prune while distilling") == 1 and "unseen" in printed
    run, = tmp_path.glob("sparsebert-custom-*")
    rows = {(row["strategy"], row["sparsity"]): row for row in read_result(run)["rows"]}
    assert len(rows) == 6 and printed.count("  general  ") == 1
    for (strategy, sparsity), row in rows.items():
        if strategy not in ("pre-trained", "teacher", "small_dense"):
            weights = torch.load(run / f"{strategy}-{sparsity:g}" / "pytorch_model.bin",
                                 weights_only=True)
            for name, w in weights.items():
                if ".layer." in name and w.dim() == 2:
                    assert int((w != 0).sum()) == math.floor((1 - sparsity) * w.numel() + 1e-6)
    assert cofi.main(["--evaluate", str(run / "distil-0.9")]) == 0
    assert f"{rows['distil', 0.9]['scores']['unseen']:.4f}" in capsys.readouterr().out
    assert cofi.main(["--evaluate", str(run / "small_dense-0.9")]) == 0

    # the same run, written in another way: its whole report, and nothing is trained
    report = printed[printed.index("sparsity  "):].strip()
    more[more.index("0.9")] = ".90"
    capsys.readouterr()
    assert sparsebert.main(["--out", str(tmp_path), *more]) == 0
    again = capsys.readouterr().out
    assert "finished earlier" in again and again.strip().endswith(report)
    assert "What the zeros of distil-0.9 are worth" in report

    # a result that is damaged is made again
    (run / "distil-0.9" / "result.json").write_text("{")
    assert sparsebert.main(["--out", str(tmp_path), *more, "--overwrite"]) == 0
    assert read_result(run / "distil-0.9")["scores"] == rows["distil", 0.9]["scores"]


@pytest.mark.parametrize("f", [1536, 384])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.6, 0.8, 0.95])
def test_small_dense_has_the_weights_a_sparse_one_keeps(sparsity, f):
    """A third of the layers, or as many as needed; within one FFN unit a layer of the target."""
    bert = make_bert(replace(MINILM, ffn_per_layer=[f] * 6))
    small, heads = sparsebert.small_dense(bert, sparsity)
    kept = sparsebert.num_kept(cofi.count_encoder_weights(bert), sparsity)
    size = cofi.count_encoder_weights(small)
    assert kept - len(heads) * 2 * 384 < size <= kept
    assert max(heads) == 5 and (len(heads) == 2 or sparsity < 0.66)
    for i, indices in heads.items():        # its heads are those of the large network
        x = torch.randn(2, 5, 384)
        assert_close(small.layers[i].mha.scores(x), bert.layers[i].mha.scores(x)[:, indices],
                     atol=1e-3)


def test_counts_of_bert_base():
    """72 matrices of 84,934,656 weights; 4,246,704 of them are left at 95 %."""
    with torch.device("meta"):
        bert = cofi.BERT(BERT_BASE)
    sizes = [w.numel() for w in sparsebert.prunable_weights(bert).values()]
    assert len(sizes) == 72 and sum(sizes) == cofi.count_encoder_weights(bert) == 84_934_656
    assert sum(sparsebert.num_kept(n, 0.95) for n in sizes) == 4_246_704
    assert cofi.Masks(BERT_BASE).sparsity() < 0.04         # the masks start nearly open
    bert = make_bert()
    sparsebert.prune(bert, sparsebert.init_masks(bert), 0.75, 1)
    counts = sparsebert.count_weights(bert)
    length = min(128, bert.config.max_position_embeddings)
    dense, attention = 3 * (4 * 16 * 16 + 2 * 16 * 24), 3 * 2 * length * 16
    assert counts["matrices"] == (dense, dense // 4)
    assert counts["multiply-adds"] == (dense + attention, dense // 4 + attention)
    parameters = sum(p.numel() for p in bert.parameters())
    assert counts["model"] == (parameters, parameters - dense * 3 // 4)
