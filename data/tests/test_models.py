"""Models on disk: what is written is read again, and what others have written is read as well."""
import json
import re
from dataclasses import asdict, replace

import pytest
import torch

import cofi
import sparsebert
from data.checkpoint import align_labels, read_mlm_head, write_checkpoint
from data.errors import UserError
from data.tokenizer import load_tokenizer
from data.tests.common import TINY, assert_close, make_batch, make_bert, make_masks
from data.tests.helpers import WORDS, make_tokenizer, rewrite

THREE = replace(TINY, id2label=["entailment", "neutral", "contradiction"], task="mnli")
SPAN = replace(TINY, id2label=None, is_span=True)


# ---- written and read again ----------------------------------------------------------------------


@pytest.mark.parametrize("dead", [[], ["z_mha"], ["z_mha", "z_ffn"]])
def test_save_and_load(tmp_path, dead):
    z = make_masks() | {group: torch.zeros(3) for group in dead}
    small, batch = cofi.prune_model(make_bert(), z), make_batch()
    write_checkpoint(tmp_path, asdict(small.config), small.state_dict(), make_tokenizer())
    again = cofi.load_finetuned(tmp_path).eval()
    assert again.config == small.config
    assert torch.equal(again(**batch).logits, small(**batch).logits)
    names = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    assert ("bert.encoder.layer.0.attention.self.query.weight" in names) == (not dead)
    assert "bert.pooler.dense.weight" in names and "classifier.weight" in names


# ---- pre-trained models --------------------------------------------------------------------------


def test_oldest_names_half_precision_and_pretraining_heads(folder):
    new, _ = cofi.load_pretrained(folder, TINY)

    def make_old(weights):
        greek = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        old = {re.sub("LayerNorm.(weight|bias)", lambda match: greek[match[0]], name): w.half()
               for name, w in weights.items()}
        return old | {"cls.predictions.bias": torch.zeros(100),
                      "bert.embeddings.position_ids": torch.arange(64)}

    rewrite(folder, make_old)
    old, notes = cofi.load_pretrained(folder, TINY)
    assert not notes
    for (name, a), b in zip(old.state_dict().items(), new.state_dict().values()):
        assert a.dtype == torch.float32
        if not name.startswith("classifier"):
            assert torch.equal(a, b.half().float()), name


@pytest.mark.parametrize("change, note", [
    (lambda w: {name: x for name, x in w.items() if "pooler" not in name},
     "pooler is absent, initializing a new one"),
    (lambda w: w | {"bert.pooler.dense.bias": torch.zeros(16)},
     "pooler was never trained, initializing a new one"),
    (lambda w: w | {"classifier.weight": torch.zeros(7, 16), "classifier.bias": torch.zeros(7)},
     "its classifier is replaced by a new one for this task")])
def test_parts_that_are_initialized(folder, change, note):
    rewrite(folder, change)
    bert, notes = cofi.load_pretrained(folder, TINY)
    assert len(notes) == 1 and notes[0] == f"{folder}: {note}"
    assert bert.classifier.weight.shape == (2, 16) and bert.classifier.weight.any()


def test_vocab_txt_of_the_oldest_models(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    assert load_tokenizer(folder).encode("A b", "c").ids == [2, 4, 5, 3, 6, 3]


def test_model_without_masked_lm_head(folder):
    with pytest.raises(UserError, match="no masked-LM head"):
        read_mlm_head(folder, "cpu")


def test_augmentation_asks_for_the_head_before_it_trains(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sparsebert, "load_data", lambda *_: pytest.fail("it went on"))
    flags = ["--model", str(folder), "--augment", "2", "--out", str(tmp_path / "out")]
    assert sparsebert.main(flags) == 2
    assert "no masked-LM head" in capsys.readouterr().err


# ---- fine-tuned models of others -----------------------------------------------------------------


def test_span_model_of_data_parallel(tmp_path):
    write_checkpoint(tmp_path, asdict(SPAN), make_bert(SPAN).state_dict(), make_tokenizer())
    rewrite(tmp_path, lambda w: {f"module.{name}": x for name, x in w.items()})
    assert cofi.load_finetuned(tmp_path).config.is_span


def test_labels_are_aligned_by_name():
    bert, batch = make_bert(THREE), make_batch()
    before = bert(**batch).logits
    align_labels(bert, ["Contradiction", "entailment", "neutral"], False, "a model")
    assert_close(bert(**batch).logits, before[:, [2, 0, 1]])
    assert bert.config.id2label == ["Contradiction", "entailment", "neutral"]
    bert = make_bert(replace(TINY, id2label=["us", "US"]))
    before = bert(**batch).logits
    align_labels(bert, ["US", "us"], False, "a model")      # case counts where it must
    assert_close(bert(**batch).logits, before[:, [1, 0]])


@pytest.mark.parametrize("config, names, is_span", [
    (THREE, ["yes", "no", "maybe"], False), (THREE, ["entailment", "neutral"], False),
    (THREE, None, False), (THREE, None, True), (SPAN, None, False), (SPAN, ["a", "b"], False),
    (replace(TINY, id2label=["LABEL_0", "LABEL_1"]), ["no", "yes"], False),
    (replace(TINY, id2label=["us", "US"]), ["Us", "uS"], False),
    (replace(TINY, id2label=None), ["no", "yes"], False)])
def test_other_labels_are_refused(config, names, is_span):
    with pytest.raises(UserError, match="a model: it predicts .* id2label"):
        align_labels(make_bert(config), names, is_span, "a model")


def write_authors_layout(folder, bert, z):
    """Write a pruned model as CoFi's authors release theirs. Returns (it, the LayerNorms left).

    config.json has the sizes from before pruning, and removed sub-layers have left their LayerNorms
    behind.
    """
    small, d = cofi.prune_model(bert, z), bert.config.hidden_size
    write_checkpoint(folder, asdict(small.config), small.state_dict(), make_tokenizer())
    config = json.loads((folder / "config.json").read_text())
    for name in ("attention_head_size", "heads_per_layer", "ffn_per_layer", "pooler_size"):
        del config[name]
    config |= {"hidden_size": d, "num_attention_heads": 4, "intermediate_size": 24}
    (folder / "config.json").write_text(json.dumps(config))
    left = {}
    for i, (h, f) in enumerate(zip(small.config.heads_per_layer, small.config.ffn_per_layer)):
        for name in ["attention.output"] * (not h) + ["output"] * (not f):
            for kind in ("weight", "bias"):
                left[f"bert.encoder.layer.{i}.{name}.LayerNorm.{kind}"] = torch.ones(d)
    rewrite(folder, lambda w: w | left)
    return small, left


@pytest.mark.parametrize("config", [THREE, SPAN])
def test_authors_layout(tmp_path, config):
    bert, z, batch = make_bert(config), make_masks(config), make_batch()
    z["z_mha"][1] = z["z_ffn"][2] = 0
    z["z_hidn"][:3] = 0
    small, left = write_authors_layout(tmp_path / "m", bert, z)
    assert len(left) >= 4
    loaded = cofi.load_finetuned(tmp_path / "m").eval()
    for name in ("heads_per_layer", "ffn_per_layer", "hidden_size"):
        assert getattr(loaded.config, name) == getattr(small.config, name)
    assert loaded.config.hidden_size < 16
    assert_close(loaded(**batch).logits, small(**batch).logits)
    rewrite(tmp_path / "m", lambda w: w | {"bert.embeddings.word_embeddings.weight":
                                           torch.ones(100, 17)})
    with pytest.raises(UserError, match="hidden_size is 16, but the weights have 17"):
        cofi.load_finetuned(tmp_path / "m")


def test_hub_model_without_label_names_and_in_safetensors(tmp_path):
    """transformers leaves default class names out, and saves safetensors."""
    bert = make_bert(replace(TINY, id2label=["a", "b", "c"]))
    config = asdict(replace(TINY, id2label=None))
    write_checkpoint(tmp_path, config, bert.state_dict(), make_tokenizer())
    weights = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    assert cofi.load_finetuned(tmp_path).config.id2label == ["LABEL_0", "LABEL_1", "LABEL_2"]
    header, content = {"__metadata__": {"format": "pt"}}, b""
    for name, w in weights.items():
        raw = w.numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(w.shape),
                        "data_offsets": [len(content), len(content) + len(raw)]}
        content += raw
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)
    (tmp_path / "pytorch_model.bin").unlink()
    again = cofi.load_finetuned(tmp_path).state_dict()
    assert all(torch.equal(w, again[name]) for name, w in bert.state_dict().items())
    path.write_bytes(b"\x00" * 20)
    with pytest.raises(UserError, match="not a file of tensors"):
        cofi.load_finetuned(tmp_path)
