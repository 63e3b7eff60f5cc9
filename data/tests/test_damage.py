"""Files that are damaged, changed, moved or deleted behind a run's back."""
import json
import os
import shutil
from dataclasses import asdict

import pytest
import torch

import cofi
import sparsebert
from data.checkpoint import write_checkpoint
from data.harness.journal import Journal
from data.tests.common import TINY, make_bert
from data.tests.helpers import (Killed, command, kill_at, make_tokenizer, read_result, rewrite,
                                write_custom)


def find(tmp_path, pattern):
    """Return the one file or folder of a pattern."""
    found, = tmp_path.glob(pattern)
    return found


def check_refused(capsys, flags, fragment, main=cofi.main):
    """Assert exit code 2, and one line of stderr that holds a fragment."""
    capsys.readouterr()
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert fragment in error and error.count("\n") == 1, error


@pytest.fixture
def flags(offline, folder, tmp_path):
    return [*command(folder, tmp_path), "--max_steps", "4"]


# ---- results -------------------------------------------------------------------------------------

# {case: what is written to result.json, from the true one}
DAMAGED = {"truncated": lambda text: text[:50], "odd settings": lambda _: '{"settings": 5}',
           "odd values": lambda text: json.dumps(json.loads(text) | {
               "speedup": 5, "score": "high", "scores": None, "target_sparsity": {}})}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_result(flags, tmp_path, capsys, case):
    """Of this run: one line, and --overwrite mends it. Of a run beside this one: no matter."""
    assert cofi.main(flags) == 0
    path = find(tmp_path, "out/mrpc-*") / "result.json"
    path.write_text(DAMAGED[case](path.read_text()))
    check_refused(capsys, flags, "se --overwrite")
    assert cofi.main([*flags, "--sparsity", "0.6"]) == 0
    assert cofi.main([*flags, "--overwrite"]) == 0 and cofi.main(flags) == 0


def test_what_a_killed_run_has_left_is_removed(flags, tmp_path, monkeypatch):
    """Killed after result.json was written, before states and lock were deleted."""
    def killed(journal):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finish", killed)
        with pytest.raises(Killed):
            cofi.main(flags)
        with pytest.raises(Killed):
            cofi.main(flags)
    assert cofi.main(flags) == 0
    assert not [*tmp_path.glob("out/*/*.state"), *tmp_path.glob("out/*/lock")]


# ---- states --------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [
    lambda saved: saved.pop("optimizer"), lambda saved: saved | {"step": 10**6},
    lambda saved: saved | {"step": "three"}, lambda saved: saved | {"bert": {"x": torch.ones(1)}},
    lambda saved: [1, 2]])
def test_damaged_state(flags, tmp_path, monkeypatch, capsys, change):
    kill_at(monkeypatch, (2,), [("prune", 3)])
    with pytest.raises(Killed):
        cofi.main(flags)
    path = find(tmp_path, "out/mrpc-*/prune.state")
    saved = torch.load(path, weights_only=False)
    changed = change(saved)
    torch.save(changed if isinstance(changed, (dict, list)) and changed != saved else saved, path)
    check_refused(capsys, flags, "--overwrite to start over")
    assert cofi.main([*flags, "--overwrite"]) == 0


def test_out_of_memory_while_a_state_is_loaded(flags, monkeypatch, capsys):
    """The state is intact, and --overwrite would delete it."""
    kill_at(monkeypatch, (2,), [("prune", 3)])
    with pytest.raises(Killed):
        cofi.main(flags)

    def fail(*_):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "load_state_dict", fail)
        check_refused(capsys, flags, "Out of memory (CUDA out of memory")
    assert cofi.main(flags) == 0


# ---- models --------------------------------------------------------------------------------------


def test_changed_weights_behind_an_unchanged_name(flags, folder, tmp_path, capsys):
    """Neither a result nor a teacher of the old weights is taken for one of the new ones."""
    assert cofi.main(flags) == 0
    rewrite(folder, lambda weights: weights | {"bert.pooler.dense.bias": torch.ones(16)})
    other = "different settings (other weights of --model)"
    check_refused(capsys, flags, other)
    check_refused(capsys, [*flags, "--sparsity", "0.6"], other)


def test_moved_folders(folder, tmp_path, capsys):
    """The same data and weights in another place are the same run."""
    data = write_custom(tmp_path / "d", "tsv")
    flags = ["--data", str(data), "--model", str(folder), "--out", str(tmp_path / "out"),
             "--max_steps", "2"]
    assert cofi.main(flags) == 0
    (tmp_path / "elsewhere").mkdir()
    shutil.move(folder, tmp_path / "elsewhere" / "tiny")
    shutil.move(data, tmp_path / "elsewhere" / "d")
    capsys.readouterr()
    assert cofi.main(["--data", str(tmp_path / "elsewhere" / "d"), "--model",
                      str(tmp_path / "elsewhere" / "tiny"), *flags[4:]]) == 0
    assert "finished earlier" in capsys.readouterr().out


def test_a_flipped_byte(flags, tmp_path, capsys):
    """A run writes the hash of its weights into result.json, and loading compares it."""
    assert cofi.main(flags) == 0
    path = find(tmp_path, "out/mrpc-*/pytorch_model.bin")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    check_refused(capsys, ["--evaluate", str(path.parent)], "has changed since it was written")
    (path.parent / "config.json").unlink()
    check_refused(capsys, flags, "finished run without the config.json and pytorch_model.bin that")


def test_damaged_teacher(flags, tmp_path, capsys):
    assert cofi.main(flags) == 0
    path = find(tmp_path, "out/teacher-*/pytorch_model.bin")
    path.write_bytes(b"damaged")
    other = [*flags, "--sparsity", "0.6"]
    check_refused(capsys, other, "holds a damaged teacher")
    assert cofi.main([*other, "--overwrite"]) == 0


def test_teacher_of_another_vocabulary(flags, tmp_path, capsys):
    """It would read the student's tokens as other words."""
    words = make_tokenizer().get_vocab()
    words |= {"a": words["b"], "b": words["a"]}
    other = make_tokenizer()
    other.model = type(other.model)(words, unk_token="[UNK]")
    teacher = make_bert(TINY)
    teacher.config.id2label = ["not_equivalent", "equivalent"]
    for tokenizer, name in (other, "other"), (make_tokenizer(), "same"):
        write_checkpoint(tmp_path / name, asdict(teacher.config), teacher.state_dict(), tokenizer)
    check_refused(capsys, [*flags, "--teacher", str(tmp_path / "other")],
                  "--teacher must have the tokenizer of")
    assert cofi.main([*flags, "--teacher", str(tmp_path / "same")]) == 0
    assert "same, as given" in capsys.readouterr().out


def test_safetensors_before_pytorch_model(folder, tmp_path):
    """Where both are there, every library of the hub takes model.safetensors."""
    weights = torch.load(folder / "pytorch_model.bin")
    entries, content = {}, b""
    kinds = {"bert.embeddings.word_embeddings.weight": ("F64", torch.float64),
             "bert.embeddings.LayerNorm.bias": ("F16", torch.float16)}
    for name, w in weights.items():
        kind, dtype = kinds.get(name, ("F32", torch.float32))
        raw = (w + 1).to(dtype).numpy().tobytes()
        entries[name] = {"dtype": kind, "shape": list(w.shape),
                         "data_offsets": [len(content), len(content) + len(raw)]}
        content += raw
    header = json.dumps(entries).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + content)
    bert, _ = cofi.load_pretrained(folder, TINY)
    word = weights["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(bert.embeddings.word.weight, word + 1)


# ---- predictions ---------------------------------------------------------------------------------


def test_predict_is_the_model_that_was_scored(folder, tmp_path, capsys):
    """It reads as many tokens, and as many texts, as in training."""
    data = write_custom(tmp_path / "d", "tsv")
    assert cofi.main(["--data", str(data), "--model", str(folder), "--out", str(tmp_path / "out"),
                      "--max_steps", "8", "--max_length", "8", "--sparsity", "0.3"]) == 0
    run = find(tmp_path, "out/custom-0.3*")
    capsys.readouterr()
    assert cofi.main(["--predict", str(run), "a b c d e f", "b a"]) == 0
    cut = capsys.readouterr().out
    assert cofi.main(["--predict", str(run), "a b c d e f a a a a a a", "b a"]) == 0
    assert capsys.readouterr().out != ""
    bert = cofi.load_finetuned(run).eval()
    ids = torch.tensor([[2, 4, 5, 6, 3, 5, 4, 3]])          # [CLS] a b c [SEP] b a [SEP]
    types = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1]])
    p = bert(ids, types, ids >= 0).logits.softmax(-1)[0]
    assert f"{p.max():.4f}" in cut
    check_refused(capsys, ["--predict", str(run), "a b"],
                  "must be followed by 2 texts (text, other), got 1")


def test_texts_in_another_order(folder, tmp_path, capsys):
    """A model reads texts of the same names as in training, whatever the order of the columns."""
    data, swapped = write_custom(tmp_path / "d", "jsonl"), tmp_path / "swapped"
    swapped.mkdir()
    for path in data.iterdir():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [dict(reversed(row.items())) for row in rows]
        rows = [{name.title() if name == "other" else name: x for name, x in row.items()}
                for row in rows]
        (swapped / path.name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--model", str(folder), "--out", str(tmp_path / "out"), "--max_steps", "8"]
    assert cofi.main(["--data", str(data), *flags]) == 0
    for model in find(tmp_path, "out/teacher*"), find(tmp_path, "out/custom*"):
        capsys.readouterr()
        assert cofi.main(["--evaluate", str(model), "--data", str(data)]) == 0
        expected = capsys.readouterr().out
        assert cofi.main(["--evaluate", str(model), "--data", str(swapped)]) == 0
        assert capsys.readouterr().out == expected
    teacher = find(tmp_path, "out/teacher*")
    assert cofi.main(["--data", str(swapped), *flags, "--teacher", str(teacher)]) == 0
    assert "\ntexts      text, Other; not read: id\n" in capsys.readouterr().out
    for path in swapped.iterdir():
        path.write_text(path.read_text().replace('"text"', '"answer"'))
    assert cofi.main(["--evaluate", str(teacher), "--data", str(swapped)]) == 0
    assert "trained on the texts text, other. Now it reads Other, answer" in capsys.readouterr().out
    shutil.rmtree(data)
    check_refused(capsys, ["--evaluate", str(find(tmp_path, "out/custom-0.95-data=d*"))],
                  f"was trained with --data {data}, which is not here. Try --data with the folder")


def test_unfinished_run_as_a_model(tmp_path, capsys):
    (tmp_path / "prune.state").write_bytes(b"")
    check_refused(capsys, ["--export", str(tmp_path)], "Try the command of this run again")


# ---- folders -------------------------------------------------------------------------------------


def test_lock_and_folder_deleted_while_running(flags, tmp_path, monkeypatch, capsys):
    """Without its lock a run goes on; without its folder it ends with one line."""
    original = Journal.log

    def deleting(what):
        def log(journal, record):
            if what == "lock":
                (journal.folder / "lock").unlink(missing_ok=True)
            else:
                shutil.rmtree(tmp_path / "out", ignore_errors=True)
            original(journal, record)
        return log

    monkeypatch.setattr(Journal, "log", deleting("folder"))
    check_refused(capsys, flags, "log.jsonl")
    monkeypatch.setattr(Journal, "log", deleting("lock"))
    assert cofi.main(flags) == 0


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="this system follows every link")
def test_links_are_not_followed(flags, tmp_path, capsys):
    """A link named like a lock, or like the first part of a file, leads nowhere."""
    mine = tmp_path / "mine"
    mine.write_text("mine")
    assert cofi.main(flags) == 0
    run = find(tmp_path, "out/mrpc-*")
    (run / "result.json").unlink()
    (run / "result.json.part").symlink_to(mine)
    assert cofi.main(flags) == 0
    (run / "result.json").unlink()
    (run / "lock").symlink_to(mine)
    check_refused(capsys, flags, "cannot be written")
    assert mine.read_text() == "mine" and len(read_result(find(tmp_path, "out/teacher-*"))) > 1


def test_overwriting_keeps_what_is_not_ours(flags, tmp_path):
    """A copy of a run within a run's folder keeps its result."""
    assert cofi.main(flags) == 0
    run = find(tmp_path, "out/mrpc-*")
    shutil.copytree(run, run / "backup-1")
    assert cofi.main([*flags, "--overwrite"]) == 0
    assert (run / "backup-1" / "result.json").exists()


def test_result_of_another_run_that_may_not_be_read(flags, tmp_path):
    (tmp_path / "out" / "other" / "result.json").mkdir(parents=True)
    assert cofi.main(flags) == 0


def test_seeds_that_differ_in_the_seventh_digit(flags, tmp_path):
    for seed in "20240101", "20240102":
        assert cofi.main([*flags, "--seed", seed]) == 0
    assert len(list(tmp_path.glob("out/mrpc-*"))) == 2


def test_log_that_somebody_else_has_changed(flags, tmp_path, monkeypatch, capsys):
    """While a run goes on: one line, and the same command continues."""
    original = Journal.log

    def log(journal, record):
        original(journal, record)
        if record["stage"] == "prune":
            with journal.path.open("a") as file:
                file.write("note\n")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "log", log)
        check_refused(capsys, flags, "The same command restores it")
    assert cofi.main(flags) == 0


def test_sparsities_that_differ_in_the_seventh_digit(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(sparsebert, "speedup_csr", lambda bert: {"1 x 8": 1.0})
    more = ["--strategy", "distil", "--sparsity", "0.9,0.90000001"]
    assert sparsebert.main([*flags, *more]) == 0
    assert len(list(tmp_path.glob("out/sparsebert-*/distil-*"))) == 2
