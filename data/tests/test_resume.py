"""Runs that are interrupted, that run out of space, or that meet another run; logs and charts."""
import math
import os
import pickle
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import cofi
import sparsebert
from data.errors import UserError
from data.harness import teacher as teacher_module
from data.harness.charts import chart, plot_run
from data.harness.journal import Journal
from data.harness.teacher import cache_teacher
from data.tests.common import ODD, assert_close, make_bert, slow
from data.tests.helpers import (Killed, Malicious, assert_same_files, command, kill_at, read_result,
                                read_log, run_in_child, write_custom)
from data.tokenized import TokenizedDataset, batches


def find(tmp_path, pattern):
    """Return the one file or folder of a pattern."""
    found, = tmp_path.glob(pattern)
    return found


# ---- interrupted runs ----------------------------------------------------------------------------


@slow
def test_interrupted_run_resumes_bit_for_bit(offline, folder, tmp_path, monkeypatch, capsys):
    """Killed in every stage, some steps after a checkpoint. (test_cofi.py: also before one.)"""
    flags = [*command(folder, tmp_path), "--max_steps", "12", "--sparsity", "0.5"]
    assert cofi.main([*flags, "--out", str(tmp_path / "whole")]) == 0
    kills = [("teacher", 9), ("prune", 6), ("prune", 11), ("finetune", 8)]
    left = kill_at(monkeypatch, (4, 5, 7), kills)
    flags += ["--out", str(tmp_path / "killed")]
    for _ in kills:
        with pytest.raises(Killed):
            cofi.main(flags)
    assert not left and cofi.main(flags) == 0
    assert "prune     resumes after step 7" in capsys.readouterr().out
    for kind in "teacher-mrpc", "mrpc-0.5":
        whole, killed = (find(tmp_path, f"{out}/{kind}*") for out in ("whole", "killed"))
        assert_same_files(whole, killed)
        assert not list(killed.glob("*.state")) + list(killed.glob("*.part"))
    before = (killed / "result.json").read_text()
    assert cofi.main(flags) == 0 and "finished earlier" in capsys.readouterr().out
    assert (killed / "result.json").read_text() == before
    assert cofi.main([*flags, "--overwrite"]) == 0
    assert "resumes after" not in capsys.readouterr().out
    assert_same_files(whole, killed)


@slow
def test_several_sparsities_resume_bit_for_bit(offline, folder, tmp_path, monkeypatch, capsys):
    """The first one is a run of its own. The second goes on from it, also in a new process."""
    flags = [*command(folder, tmp_path), "--max_steps", "8"]
    assert cofi.main([*flags, "--sparsity", "0.3", "--out", str(tmp_path / "whole")]) == 0
    flags += ["--sparsity", "0.3,0.5", "--out"]
    assert cofi.main([*flags, str(tmp_path / "whole")]) == 0
    kills = [("0.3", "finetune", 6), ("0.5", "prune", 1), ("0.5", "prune", 6)]
    left = kill_at(monkeypatch, (4, 5, 7), kills)
    for _ in kills:
        with pytest.raises(Killed):
            cofi.main([*flags, str(tmp_path / "killed")])
    whole, killed = (find(tmp_path, f"{out}/mrpc-0.3,0.5*") for out in ("whole", "killed"))
    written = (killed / "0.3/result.json").stat().st_mtime_ns
    assert not left and cofi.main([*flags, str(tmp_path / "killed")]) == 0
    # the first model was finished before the last kill: it is reported, not measured again
    assert (killed / "0.3/result.json").stat().st_mtime_ns == written
    for name in "0.3", "0.5":
        assert_same_files(whole / name, killed / name)
        assert not list(killed.glob("*/*.state")) + list(killed.glob("*/lock"))
    assert_same_files(find(tmp_path, "whole/mrpc-0.3-*"), whole / "0.3")
    second = [record for record in read_log(whole / "0.5") if record["stage"] == "prune"]
    targets = [record["t"] for record in second]
    assert targets == sorted(targets) and 0.3 < targets[0] < 0.4 and targets[-1] == 0.5
    before = [record for record in read_log(whole / "0.3") if record["stage"] == "prune"][-1]
    assert second[0]["s"] == pytest.approx(before["s"], abs=0.05)
    capsys.readouterr()
    assert cofi.main([*flags, str(tmp_path / "killed"), "--sparsity", ".3, 0.50"]) == 0
    printed = capsys.readouterr().out
    assert "finished earlier" in printed and printed.count("target 0.") == 2
    # --overwrite removes the second model before the first is made again
    left = kill_at(monkeypatch, (4, 5, 7), [("0.3", "prune", 6)])
    with pytest.raises(Killed):
        cofi.main([*flags, str(tmp_path / "killed"), "--overwrite"])
    assert not list(killed.glob("*/result.json"))
    assert cofi.main([*flags, str(tmp_path / "killed")]) == 0
    assert_same_files(whole / "0.5", killed / "0.5")
    capsys.readouterr()
    assert cofi.main(["--compare", str(tmp_path / "whole")]) == 0
    printed = capsys.readouterr().out
    for row in "CoFi | 0.3", "sparsity=0.3,0.5 | 0.3", "sparsity=0.3,0.5 | 0.5":
        assert f"\n| {row}" in printed         # and a little more: the sparsity that was reached


def test_interrupted_comparison_resumes_bit_for_bit(offline, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sparsebert, "speedup_csr", lambda bert: {"1 x 8": 1.0})
    flags = [*command(folder, tmp_path), "--max_steps", "8", "--strategy", "finetune_first,distil",
             "--sparsity", "0.9"]
    assert sparsebert.main([*flags, "--out", str(tmp_path / "whole")]) == 0
    kills = [("finetune_first-0.9", 6), ("distil-0.9", 2), ("distil-0.9", 7)]
    left = kill_at(monkeypatch, (3, 5), kills)
    flags += ["--out", str(tmp_path / "killed")]
    for _ in kills:
        with pytest.raises(Killed):
            sparsebert.main(flags)
    assert not left and sparsebert.main(flags) == 0
    whole, killed = (find(tmp_path, f"{out}/sparsebert*") for out in ("whole", "killed"))
    for strategy in "finetune_first-0.9", "distil-0.9":
        assert_same_files(whole / strategy, killed / strategy)
    tables = [[row | {"seconds": 0} for row in read_result(run)["rows"]] for run in (whole, killed)]
    assert tables[0] == tables[1]
    capsys.readouterr()
    assert sparsebert.main(flags) == 0 and "(d) prune while distilling" in capsys.readouterr().out


@slow
@pytest.mark.parametrize("kills", [int(os.environ.get("KILLS", 4))])
def test_sigkill_at_any_moment(offline, folder, tmp_path, kills):
    """A checkpoint after every step, so that many a kill meets one; the result has the same bits.

    KILLS=20 python -m pytest -q -s -k sigkill kills more often, and prints how often.
    """
    flags = [*command(folder, tmp_path), "--max_steps", str(5 * kills), "--save_every", "0"]
    start_time = time.perf_counter()
    assert run_in_child([*flags, "--out", str(tmp_path / "whole")]) == (0, "")
    seconds, killed = time.perf_counter() - start_time, 0
    rng = np.random.default_rng(0)
    flags += ["--out", str(tmp_path / "killed")]
    for _ in range(kills):
        code, error = run_in_child(flags, after=rng.uniform(0, 2 * seconds / kills))
        assert code in (-signal.SIGKILL, 0) and not error, error
        killed += code != 0
    assert killed > kills / 2
    print(f"{killed} of {kills} were killed before the end")
    assert run_in_child(flags)[0] == 0
    for kind in "teacher-mrpc", "mrpc-0.95":
        assert_same_files(*(find(tmp_path, f"{out}/{kind}*") for out in ("whole", "killed")))


def test_ctrl_c(offline, folder, tmp_path):
    """The step is finished and saved, exit code 130; the same command resumes, minus --overwrite.
    """
    def wait_for_checkpoint():
        while not any(path.stat().st_mtime >= start_time
                      for path in (tmp_path / "out").glob("teacher-*/teacher.state")):
            time.sleep(0.05)

    flags = [*command(folder, tmp_path), "--max_steps", "0", "--teacher_epochs", "3000",
             "--save_every", "0"]
    start_time = time.time()
    code, error = run_in_child([*flags, "--overwrite"], wait_for_checkpoint, signal.SIGINT)
    assert code == 130 and "without --overwrite resumes from there" in error
    assert "Traceback" not in error
    step = int(re.search("after step (\\d+) of stage teacher", error)[1])
    state = find(tmp_path, "out/teacher-*/teacher.state")
    assert torch.load(state, weights_only=True)["step"] == step
    start_time = time.time()
    code, error = run_in_child(flags, wait_for_checkpoint, signal.SIGTERM)
    assert code == 130 and int(re.search("after step (\\d+)", error)[1]) > step


# ---- disks, other runs, other settings -----------------------------------------------------------


@pytest.fixture
def limit_file_size():
    """Return a function that limits the size of files, as a full disk does. None: as before."""
    resource = pytest.importorskip("resource")      # Windows has none
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))

    yield limit
    limit(None)


def stop_while_pruning(flags):
    """Run cofi.py until step 3 of pruning; the checkpoint is of step 2."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, (2,), [("prune", 3)])
        cofi.main(flags)


def test_full_disk(offline, folder, tmp_path, capsys, limit_file_size):
    """One line; what was saved before can still be read."""
    flags = [*command(folder, tmp_path), "--max_steps", "4", "--save_every", "0"]
    stop_while_pruning(flags)
    state = find(tmp_path, "out/mrpc*/prune.state")
    before = state.read_bytes()
    limit_file_size(len(before) // 2)
    assert cofi.main(flags) == 2
    limit_file_size(None)
    error = capsys.readouterr().err.strip()
    assert "cannot be written" in error and "\n" not in error
    assert state.read_bytes() == before and not list(state.parent.glob("*.part"))
    assert cofi.main(flags) == 0


def test_log(tmp_path, limit_file_size):
    """A stage killed before its first checkpoint has left lines, which are removed. A line for
    which there is no space costs none of those before.
    """
    journal = Journal(tmp_path, {})
    for stage in ("one", "two"):
        journal.log({"stage": stage, "step": 1})
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "result.json").write_text("{}")
    journal.lock_file.close()
    again = Journal(tmp_path, {})
    assert again.restore("two", {}) == (0, {})
    assert again.records() == [{"stage": "one", "step": 1}]
    limit_file_size(40)
    with pytest.raises(UserError, match="log.jsonl cannot be written"):
        again.log({"stage": "two", "step": 1})
    limit_file_size(None)
    assert again.records() == [{"stage": "one", "step": 1}]


def test_open_files_cannot_be_deleted_on_windows(tmp_path, monkeypatch):
    journal, unlink = Journal(tmp_path, {}), Path.unlink

    def windows(path, missing_ok=False):
        if path.name == "lock" and not journal.lock_file.closed:
            raise PermissionError(13, "the file is being used by another process", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", windows)
    journal.finish()
    assert not list(tmp_path.glob("lock"))


def test_other_settings_are_refused_by_name(folder, tmp_path, capsys):
    """Data that has changed under its name: for a checkpoint, a teacher and a result."""
    custom = write_custom(tmp_path / "d", "tsv")
    flags = ["--data", str(custom), "--model", str(folder), "--out", str(tmp_path / "out"),
             "--max_steps", "4"]
    stop_while_pruning(flags)
    text = (custom / "train.tsv").read_text()
    (custom / "train.tsv").write_text(text + "71\ta\tb\tup\n")
    capsys.readouterr()
    assert cofi.main(flags) == 2
    error = capsys.readouterr().err
    assert "(other texts, labels, parts or tokens)" in error and "--overwrite" in error
    (custom / "train.tsv").write_text(text)
    assert cofi.main(flags) == 0
    (custom / "train.tsv").write_text(text + "71\ta\tb\tup\n")
    assert cofi.main(flags) == 2
    assert "holds a run with different settings (other texts, labels, " in capsys.readouterr().err
    assert cofi.main([*flags, "--overwrite"]) == 0


def test_checkpoint_of_other_settings(tmp_path):
    """A Journal names the settings that differ: what they were, and what they are now."""
    journal = Journal(tmp_path, {"lr": 0.1, "seed": 1})
    journal.save("prune", 3, {}, {})
    journal.lock_file.close()
    other = Journal(tmp_path, {"lr": 0.2, "seed": 1})
    with pytest.raises(UserError, match=r"prune.state was saved with .* \(lr: 0.1, now 0.2\)"):
        other.restore("prune", {})


def test_two_runs_at_once(offline, folder, tmp_path):
    flags = command(folder, tmp_path)
    assert cofi.main(flags) == 0
    run = find(tmp_path, "out/mrpc*")
    other = Journal(run, {})
    assert run_in_child([*flags, "--overwrite"]) == (
        2, f"cofi: {run}: another run is using this folder. Wait for it, or try another --out\n")
    other.lock_file.close()
    assert cofi.main([*flags, "--overwrite"]) == 0


def test_checkpoint_with_code_is_refused(offline, folder, tmp_path, capsys):
    stop_while_pruning(command(folder, tmp_path))
    find(tmp_path, "out/mrpc*/prune.state").write_bytes(pickle.dumps(Malicious(), 2))
    assert cofi.main(command(folder, tmp_path)) == 2
    assert "not a file of tensors" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_non_finite_loss(offline, folder, tmp_path, capsys, monkeypatch, what):
    """The stage, the step and the last finite losses; the weights of the step before are kept."""
    original, calls = cofi.distillation_loss, []

    def distillation_loss(*arguments):
        loss, losses, m = original(*arguments)
        calls.append(loss)
        if len(calls) == 9:         # 6 steps of the teacher, then the third of pruning
            # the root of 0 has an infinite gradient
            loss = loss * torch.nan if what == "loss" else loss * torch.sqrt(loss * 0)
        return loss, losses, m

    monkeypatch.setattr(cofi, "distillation_loss", distillation_loss)
    flags = [*command(folder, tmp_path), "--save_every", "0"]
    assert cofi.main(flags) == 2
    error = capsys.readouterr().err.strip()
    assert "Non-finite loss at step 3 of prune (loss " in error and "nan" in error
    assert "\n" not in error
    last = re.search(r"losses of the step before \[([\d.]+), ([\d.]+)\]", error)
    assert all(math.isfinite(float(x)) for x in last.groups())
    saved = torch.load(find(tmp_path, "out/mrpc*/prune.state"), weights_only=True)
    assert saved["step"] == 2 and all(w.isfinite().all() for w in saved["bert"].values())


# ---- the cached teacher --------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["cached", "no states", "too large", "one epoch", "spans"])
def test_cached_teacher(monkeypatch, case):
    """The cache holds what the teacher says each time, whatever the batch and its padding."""
    length = np.random.default_rng(0).integers(3, 12, 50)
    ids = np.random.default_rng(1).integers(100, size=length.sum()).astype(np.uint16)
    offsets = np.concatenate([[0], np.cumsum(length)])
    dataset = TokenizedDataset(ids, offsets, length // 2, length % 2, np.array([]))
    config = replace(ODD, is_span=True, id2label=None) if case == "spans" else ODD
    max_bytes = 1000 if case == "too large" else 2**31
    monkeypatch.setattr(teacher_module, "MAX_TEACHER_CACHE_BYTES", max_bytes)
    distilled = cofi.distilled_layers(5)
    # 8 steps are an epoch; 7 + 7 steps see 98 examples, 8 + 7 see 105: twice 50 are needed
    cfg = replace(cofi.Settings.for_task("rte"), batch_size=7, finetune_epochs=7 / 8,
                  prune_epochs=7 / 8 if case == "one epoch" else 1.0,
                  layer_weight=0.0 if case == "no states" else 0.5)
    bert, calls = make_bert(config), []
    teacher = cache_teacher(bert, dataset, distilled, cfg)
    assert teacher.is_cached == (case in ("cached", "no states"))
    bert.register_forward_hook(lambda *_: calls.append(1))
    for indices, batch in batches(dataset, 7, seed=3):
        inputs = {name: x for name, x in batch.items() if name != "labels"}
        teacher(indices, inputs)            # the first call fills the cache
        calls.clear()
        got = teacher(indices, inputs)
        assert len(calls) == (not teacher.is_cached)
        expected = bert(**inputs)
        assert_close(got.logits, expected.logits)
        if case == "no states":
            assert got.hidden_states == [None] * 6
        for i in distilled if case != "no states" else []:
            states, cached = (out.hidden_states[i + 1][inputs["attention_mask"]].float()
                              for out in (expected, got))
            assert torch.allclose(cached, states, rtol=2**-8, atol=1e-5)    # bfloat16: 8 bits
    nothing = replace(cfg, pred_weight=0.0, layer_weight=0.0)
    assert cache_teacher(bert, dataset, distilled, nothing) is None


# ---- charts --------------------------------------------------------------------------------------


def test_curves_show_every_run():
    """A dot for each of 12 runs, and one for the teacher: no colour runs out, no seed is lost."""
    results = [{"target_sparsity": s, "speedup": {"32": 2.0 + i}, "score": 0.5,
                "teacher_score": 0.9, "metric": "accuracy"}
               for s in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8) for i in range(2)]
    picture = ElementTree.fromstring(plot_run([], [1, 2], results))
    assert len(picture.findall(".//{*}circle")) == 13


def test_names_in_a_chart_find_a_place():
    """However many lines end at one point, at any height."""
    for y in np.linspace(0, 1, 11):
        lines = {"low": [(0, 0)], "high": [(0, 1)]} | {f"{i}": [(1, y)] for i in range(12)}
        texts = ElementTree.fromstring(chart([("a", "b", lines)])).findall(".//{*}text")
        places = [(text.get("x"), text.get("y")) for text in texts if text.get("fill")]
        assert len(set(places)) == len(places) == 14
