"""Baselines (--structure), and training on the network that a sample of the masks leaves."""
import json
import re
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import cofi
from data.errors import UserError
from data.harness import compare
from data.harness.baselines import (STRUCTURES, choose_structure, fisher_scores, mean_squares,
                                    small_scores)
from data.harness.evaluate import training_batches
from data.tests.common import MINILM, ODD, TINY, assert_close, make_batch, make_bert, make_masks
from data.tests.helpers import command, read_log, read_result
from data.tokenized import TokenizedDataset

VALUE = replace(ODD, id2label=None)
SPAN = replace(TINY, id2label=None, is_span=True)


def make_dataset(config, n=64):
    """Return examples of 5 to 11 tokens with random labels."""
    lengths = np.random.default_rng(0).integers(5, 12, n)
    offsets = np.concatenate([[0], lengths.cumsum()])
    ids = np.random.default_rng(1).integers(config.vocab_size, size=offsets[-1])
    return TokenizedDataset(ids, offsets, lengths // 2, np.arange(n) % 2, np.zeros(0))


DATA = SimpleNamespace(train=make_dataset(ODD))


@pytest.mark.parametrize("config", [ODD, VALUE, SPAN])
@pytest.mark.parametrize("closed", [None, "z_mha", "z_head", "z_ffn", "z_int"])
def test_leaving_out_is_masking(config, closed):
    """The outputs, and the gradients of every weight and every mask, of the masked network."""
    bert, batch = make_bert(config), make_batch()
    z = {group: mask.requires_grad_() for group, mask in make_masks(config).items()}
    if closed:
        with torch.no_grad():
            z[closed][1] = 0
    W_layer = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
    kept = z["z_hidn"] > 0
    small = cofi.build_subnetwork(bert, z)
    losses = []
    for out, weight in ((bert(**batch, **z), W_layer.weight),
                        (small(**batch), W_layer.weight[:, kept])):
        mask = batch["attention_mask"]
        states = sum((H[mask] @ weight.T).cos().sum() for H in out.hidden_states)
        losses.append(states + out.logits.clamp(min=-100).sin().sum())
    assert_close(losses[1], losses[0], atol=1e-3)
    inputs = [*bert.named_parameters(), *z.items(), ("W_layer", W_layer.weight)]
    masked, pruned = (torch.autograd.grad(loss, [x for _, x in inputs], materialize_grads=True)
                      for loss in losses)
    for (name, x), expected, got in zip(inputs, masked, pruned):
        if name in z:
            # at 0 a sample has no gradient in log_alpha, whatever comes from the network
            expected, got = expected * (x > 0), got * (x > 0)
        assert_close(got, expected, f"gradient of {name}", 1e-4 * max(1, expected.abs().max()))


def test_training_on_what_is_left_is_training_with_masks(folder, tmp_path, offline, monkeypatch):
    """The same weights after 40 steps, in which whole sub-layers close. Without dropout, whose
    random numbers differ.
    """
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.0}))
    words = ["--sparsity", "0.7", "--prune_lr", "1e-3", "--prune_epochs", "100", "--no-bf16"]
    weights = []
    build_subnetwork, prune_model = cofi.build_subnetwork, cofi.prune_model

    def prune(bert, z):
        with monkeypatch.context() as patch:
            patch.setattr(cofi, "build_subnetwork", build_subnetwork)
            return prune_model(bert, z)

    def masked(bert, z):
        def run(**inputs):
            out = bert(**inputs, **z)
            return cofi.Output(out.logits, [H[..., z["z_hidn"] > 0] for H in out.hidden_states])
        return run

    for out in "left", "masked":
        arguments = command(folder, tmp_path, *words, "--out", str(tmp_path / out))
        arguments[arguments.index("--max_steps") + 1] = "40"
        assert cofi.main(arguments) == 0
        [run] = (tmp_path / out).glob("mrpc*")
        assert any(-1 in (r["m"] or []) for r in read_log(run))         # no candidate was left
        weights.append(torch.load(run / "pytorch_model.bin", weights_only=True))
        monkeypatch.setattr(cofi, "prune_model", prune)
        monkeypatch.setattr(cofi, "build_subnetwork", masked)
    assert weights[0].keys() == weights[1].keys()
    for name, expected in weights[1].items():
        # softmax does not see the bias of a key: its gradient is rounding error
        if not name.endswith("key.bias"):
            assert_close(weights[0][name], expected, name, atol=1e-3)


def test_pruned_model_is_a_network_of_its_own():
    """Nothing is shared with the network it comes from, and all of it can be trained."""
    bert, z = make_bert(), make_masks()
    before = {name: w.clone() for name, w in bert.state_dict().items()}
    small = cofi.prune_model(bert, z)
    assert all(p.is_leaf and p.requires_grad for p in small.parameters())
    with torch.no_grad():
        for p in small.parameters():
            p.add_(1)
    assert all(torch.equal(before[name], w) for name, w in bert.state_dict().items())


# ---- scores, against loops -----------------------------------------------------------------------


def ones(masks):
    return {group: torch.ones_like(a, requires_grad=True)
            for group, a in masks.log_alpha().items()}


def weights_behind(bert, group, index):
    """Return all weights of the encoder that one mask removes, as one vector."""
    k, found = bert.config.attention_head_size, []
    for l, layer in enumerate(bert.layers):
        mha, ffn = layer.mha, layer.ffn
        reading = mha.query.weight, mha.key.weight, mha.value.weight
        if group == "z_hidn":
            found += [w[:, index[0]] for w in (*reading, ffn.up.weight)]
            found += [w[index[0]] for w in (mha.out.weight, ffn.down.weight)]
        elif l == index[0]:
            rows = slice(index[-1] * k, (index[-1] + 1) * k) if group == "z_head" else slice(None)
            unit = slice(index[-1], index[-1] + 1) if group == "z_int" else slice(None)
            if group in ("z_mha", "z_head"):
                found += [w[rows] for w in reading] + [mha.out.weight[:, rows]]
            else:
                found += [ffn.up.weight[unit], ffn.down.weight[:, unit]]
    return torch.cat([w.flatten() for w in found])


def test_magnitude():
    """Mean square of the weights behind a mask; the constant of the encoder's size is dropped."""
    bert, masks = make_bert(ODD), cofi.Masks(ODD)
    scores = mean_squares(bert, masks, ones(masks))
    total = cofi.count_encoder_weights(bert)
    for group, row in scores.items():
        for index in np.ndindex(*row.shape):
            expected = weights_behind(bert, group, index).square().mean() * total
            assert_close(row[index], expected, f"{group} {index}", atol=1e-4)


def test_fisher():
    """Squared differences of the loss when one mask moves, batch by batch, for each weight."""
    bert, masks, dataset = make_bert(ODD), cofi.Masks(ODD), make_dataset(ODD)
    cfg = cofi.Settings(batch_size=32, bf16=False)
    # the order of the batches does not matter, but what is in them does
    all_batches = [batch for _, batch in training_batches(dataset, 32, cfg.seed, 2)]
    scores = fisher_scores(bert, masks, ones(masks), dataset, cfg, cofi.label_loss)
    total = cofi.count_encoder_weights(bert)

    @torch.no_grad()
    def loss(batch, group, index, step):
        z = {name: torch.ones_like(a) for name, a in masks.log_alpha().items()}
        z[group][index] += step
        inputs = {name: x for name, x in batch.items() if name != "labels"}
        return cofi.label_loss(bert(**inputs, **z).logits, batch["labels"]).item()

    for group, index in (("z_mha", (1,)), ("z_head", (2, 1)), ("z_ffn", (0,)), ("z_int", (4, 16)),
                         ("z_hidn", (12,))):
        slopes = [(loss(batch, group, index, 1e-2) - loss(batch, group, index, -1e-2)) / 2e-2
                  for batch in all_batches]
        share = weights_behind(bert, group, index).numel() / total
        assert scores[group][index].item() == pytest.approx(np.square(slopes).sum() / share,
                                                            rel=1e-2)


@pytest.mark.parametrize("t, num_layers", [(0.6, 3), (0.95, 2)])
def test_small(t, num_layers):
    """Evenly spaced layers, each with the same share of its heads and units, the largest ones."""
    bert, masks = make_bert(MINILM), cofi.Masks(MINILM)
    magnitudes = mean_squares(bert, masks, ones(masks))
    cfg = cofi.Settings(structure="small", sparsity=t)
    choose_structure(bert, bert, masks, DATA, cfg, cofi.label_loss)
    z = cofi.final_masks(masks, t)
    kept = [i for i in range(6) if z["z_mha"][i] > 0]
    assert kept == ([1, 3, 5] if num_layers == 3 else [2, 5])
    assert [i for i in range(6) if z["z_ffn"][i] > 0] == kept and z["z_hidn"].all()
    heads, units = z["z_head"][kept].sum(1), z["z_int"][kept].sum(1)
    assert heads.max() - heads.min() <= 1 and units.max() - units.min() <= 1
    for group in ("z_head", "z_int"):
        for i in kept:
            is_open = z[group][i] > 0
            assert magnitudes[group][i][is_open].min() > magnitudes[group][i][~is_open].max()
    assert set(small_scores(magnitudes, 0.99)) == set(z)


# ---- structures and runs -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STRUCTURES[1:])
@pytest.mark.parametrize("groups", [cofi.Masks.GROUPS, ("z_head", "z_int")])
@pytest.mark.parametrize("t, max_steps", [(0.3, 0), (0.9, 7)])
def test_structure_has_the_target_size(kind, groups, t, max_steps):
    """As many weights as CoFi's: the target, above it by less than a unit; masks are 0 or 1."""
    bert, masks = make_bert(ODD), cofi.Masks(ODD, groups)
    cfg = cofi.Settings(structure=kind, sparsity=t, batch_size=16, max_steps=max_steps)
    longer, seconds = choose_structure(bert, bert, masks, DATA, cfg, cofi.label_loss)
    assert longer.num_steps("finetune", 64) == sum(
        cfg.num_steps(stage, 64) for stage in ("prune", "finetune")) and seconds > 0
    z = cofi.final_masks(masks, t)
    assert all(((mask == 0) | (mask == 1)).all() for mask in z.values())
    assert t <= masks.sparsity(z) < t + 2 * 13 / cofi.count_encoder_weights(bert) + 1e-6
    for group in set(z) - set(groups):
        alive = z[group] if group == "z_hidn" else 1
        assert np.all(np.asarray(alive) == 1)


def test_random_structure_depends_on_the_seed():
    def structure(seed):
        bert, masks = make_bert(ODD), cofi.Masks(ODD)
        cfg = cofi.Settings(structure="random", seed=seed)
        choose_structure(bert, bert, masks, DATA, cfg, cofi.label_loss)
        return cofi.final_masks(masks, 0.5)["z_int"]

    assert torch.equal(structure(1), structure(1)) and not torch.equal(structure(1), structure(2))


def test_another_teacher():
    student, other = make_bert(TINY), make_bert(replace(TINY, ffn_per_layer=[24, 24, 20]))
    cfg = cofi.Settings(structure="magnitude")
    with pytest.raises(UserError, match=r"--structure magnitude prunes the teacher, which must have"
                                        r" the ffn_per_layer of .*, got \[24, 24, 20\]. Try"):
        choose_structure(student, other, cofi.Masks(TINY), DATA, cfg, cofi.label_loss)


@pytest.mark.parametrize("kind", ["random", "fisher"])
def test_run_of_a_baseline(kind, folder, tmp_path, offline, capsys):
    """The steps of both stages come after pruning, and the score is that of a pruned teacher."""
    words = [*command(folder, tmp_path), "--sparsity", "0.5", "--structure", kind,
             "--batch_size", "32", "--prune_epochs", "1", "--finetune_epochs", "1"]
    words[words.index("--max_steps") + 1] = "100"
    assert cofi.main(words) == 0
    [run] = (tmp_path / "out").glob(f"*structure={kind}*")
    records = read_log(run)
    assert {r["stage"] for r in records} == {"finetune"} and records[-1]["of"] == 6
    result = read_result(run)
    assert result["settings"]["structure"] == kind and 0.5 <= result["sparsity"] < 0.51
    assert cofi.main(words) == 0 and "finished earlier" in capsys.readouterr().out


# ---- --compare -----------------------------------------------------------------------------------


def write_result(folder, name, score, device="cpu", reached=None, speedup=2.0, **changes):
    """Write a result.json as a run does. reached: its sparsity; speedup: for a single sentence;
    changes: of its settings.
    """
    settings = asdict(cofi.Settings.for_task("mrpc")) | {"tokens": "a", "weights": "b"} | changes
    result = {name: 1.0 for name in compare.KEPT} | {
        "task": settings["task"], "metric": "accuracy", "score": score, "seed": settings["seed"],
        "target_sparsity": settings["sparsity"], "sparsity": reached or settings["sparsity"],
        "speedup": {"1": speedup, "32": 1 / (1 - settings["sparsity"]), "128": 4.0},
        "device": device,
        "seconds": {"teacher": 60.0, "prune": 90.0, "finetune": 30.0}, "settings": settings}
    (folder / name).mkdir()
    (folder / name / "result.json").write_text(json.dumps(result))


def test_compare(tmp_path, capsys):
    """Means and spread over seeds, of speed-ups the median; sparsity as it was reached; names are
    the settings that are not the default.
    """
    write_result(tmp_path, "one", 0.80, model="/some/where/bert")
    write_result(tmp_path, "two", 0.84, model="/else/where/bert", seed=1)
    write_result(tmp_path, "disturbed", 0.82, model="bert", seed=2, speedup=9.0)
    write_result(tmp_path, "three", 0.7, reached=2 / 3, model="bert", structure="random",
                 sparsity=0.6)
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "result.json").write_text('{"scores": {}}')
    assert cofi.main(["--compare", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "\nmrpc bert, accuracy, cpu\n" in printed and printed.count("\n| ") == 3
    for row in ("| CoFi | 0.95 | 1.000 ± .000 | 1.000 ± .000 | .820 ± .020 | 2.0 / 20.0 / 4.0 | "
                "2.0 | 1, 2, 57 |",
                "| random | 0.667 | 1.000 | 1.000 | .700 | 2.0 / 2.5 / 4.0 | 2.0 | 57 |"):
        assert row in printed
    drawn = (tmp_path / "curves.svg").read_text()
    assert ">random<" in drawn and ">CoFi<" in drawn

    lines = (tmp_path / "results.jsonl").read_text()
    assert "where" not in lines and len(lines.splitlines()) == 4
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "glue.jsonl").write_text(lines)
    assert cofi.main(["--compare", str(tmp_path / "copy" / "glue.jsonl")]) == 0
    table = printed.split("chart")[0]
    assert capsys.readouterr().out.startswith(table)
    assert (tmp_path / "copy" / "glue-curves.svg").read_text() == drawn


@pytest.mark.parametrize("changes, title, names", [
    ([{"structure": "random"}, {"structure": "random", "seed": 1}], ", structure=random",
     ["random"]),
    ([{"prune_lr": 1e-4}, {"prune_lr": 1e-4, "masks": "head"}], ", prune_lr=0.0001",
     ["CoFi", "masks=head"]),
    ([{"task": "custom", "data": "/a/mine"},
      {"task": "custom", "data": "/a/mine", "structure": "fisher"}], "", ["CoFi", "fisher"]),
    ([{}, {"device": "a GPU"}], "", ["CoFi", "CoFi"]),
    ([{}, {"weights": "c"}], "", ["CoFi", "CoFi"]),
    ([{"teacher": "/a/bert"}, {}], "", ["CoFi", "CoFi"])])
def test_compare_only_what_is_alike(changes, title, names, tmp_path, capsys):
    """Other hardware, data or weights are another table; own data has the defaults of its size."""
    for i, change in enumerate(changes):
        write_result(tmp_path, str(i), 0.8, **change)
    assert cofi.main(["--compare", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    rows = re.findall(r"^\| ([^|]*) \| 0.95", printed, re.M)
    assert rows == names and f"cpu{title}\n" in printed
    has_teacher = "\nmrpc bert-base-uncased, teacher bert, accuracy" in printed
    assert has_teacher == ("teacher" in changes[0])


@pytest.mark.parametrize("content, error", [
    (None, "must hold finished runs of cofi.py, got none"),
    ('{"target_sparsity": 1}', "is no result of cofi.py, or damaged (KeyError: 'task')"),
    ("{", "result.json is not JSON")])
def test_compare_of_what_is_no_run(content, error, tmp_path, capsys):
    if content:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "result.json").write_text(content)
    assert cofi.main(["--compare", str(tmp_path)]) == 2
    assert error in capsys.readouterr().err
    assert not (tmp_path / "curves.svg").exists()


def test_compare_of_other_files(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("my notes\n")
    assert cofi.main(["--compare", str(tmp_path / "notes.txt")]) == 2
    assert "line 1 must be a result.json in one line, got 'my notes'" in capsys.readouterr().err
    assert cofi.main(["--compare", str(tmp_path / "nothing")]) == 2
    assert "must be a folder of runs or a file of results, got" in capsys.readouterr().err
    for number, changes in enumerate([{"device": None}, {"task": "x"}, {"seed": "1"}]):
        (tmp_path / str(number)).mkdir()
        write_result(tmp_path / str(number), "run", 0.8, **changes)
        assert cofi.main(["--compare", str(tmp_path / str(number))]) == 2
        assert "is no result of cofi.py, or damaged (ValueError: task" in capsys.readouterr().err
