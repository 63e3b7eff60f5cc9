"""The optional part of the grade: does what a student wrote prune the toy well?

    python test_cofi.py --grade SUBMISSION --quality

cofi.py runs with all functions of the submission, for about three minutes, in a copy of the project
and with a time limit. The model that it leaves is scored here, by the project's own code, on the
toy's test set.

    python quality.py ROOT ARGUMENTS        runs cofi.py of this folder, without reach to ROOT
"""
import importlib
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SPARSITY = 0.95
POINTS = 10
NOTHING_AT, ALL_AT = 0.75, 0.92         # accuracy; linear in between
SECONDS = 1200


def measure(source, root):
    """Return (points, message) of a cofi.py, given as text. root: the project's folder, a Path."""
    folder = Path(tempfile.mkdtemp(prefix="quality-"))
    try:
        shutil.copytree(root / "data", folder / "data", ignore=shutil.ignore_patterns(
            "__pycache__", "tests", "course", "results"))
        (folder / "cofi.py").write_text(source, "utf-8")
        shutil.copy(__file__, folder / "run.py")
        command = [sys.executable, "-I", "run.py", str(root), "--sparsity", str(SPARSITY),
                   "--out", "out", "--threads", "1", "--device", "cpu"]
        done = subprocess.run(command, cwd=folder, timeout=SECONDS, capture_output=True, text=True,
                              env=os.environ | {"HF_HOME": str(folder / "cache")}, check=False)
        models = [path.parent for path in folder.glob("out/toy-*/result.json")]
        if done.returncode or len(models) != 1:
            last = (done.stderr.strip().splitlines() or ["it left no result"])[-1]
            return 0.0, f"python cofi.py has not finished: {last[:200]}"
        return score_model(models[0])
    except subprocess.TimeoutExpired:
        return 0.0, f"python cofi.py took longer than {SECONDS} seconds"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def score_model(folder):
    """Return (points, message) of a model on disk: by its accuracy, if it is small enough."""
    # imported here, because this file is also the program that runs in the copy
    import cofi
    from data.checkpoint import read_config
    from data.errors import UserError
    from data.harness.evaluate import evaluate
    from data.tasks import TOY, load_task
    from data.tokenizer import load_tokenizer
    try:
        bert = cofi.load_finetuned(folder).eval()
    except UserError as error:
        return 0.0, f"its model cannot be read: {error}"
    dense, _ = cofi.load_pretrained(TOY, cofi.Config(**read_config(TOY)))
    sparsity = 1 - cofi.count_encoder_weights(bert) / cofi.count_encoder_weights(dense)
    if sparsity < SPARSITY:
        return 0.0, f"the sparsity must be {SPARSITY}, got {sparsity:.4f}"
    task = load_task("toy", load_tokenizer(TOY), bert.config.max_position_embeddings)
    score = evaluate(bert, task.test, task.metrics)["accuracy"]
    share = min(max((score - NOTHING_AT) / (ALL_AT - NOTHING_AT), 0), 1)
    return round(POINTS * share, 1), f"accuracy {score:.3f} on the test set"


def run_without(root, arguments):
    """Run cofi.py of the current folder. It may open no file of root and start no program."""
    def hook(event, values):
        if event == "open" and isinstance(values[0], (str, bytes)):
            if os.path.realpath(os.fsdecode(values[0])).startswith(root + os.sep):
                raise PermissionError("a submission must not open the project's files")
        if event.startswith(("subprocess.", "os.system", "os.exec", "os.posix_spawn", "ctypes.")):
            raise PermissionError(f"a submission must not use {event}")

    sys.path.insert(0, os.getcwd())
    sys.argv = ["cofi.py", *arguments]
    importlib.import_module("torch")        # it loads libraries with ctypes
    sys.addaudithook(hook)
    runpy.run_path("cofi.py", run_name="__main__")


if __name__ == "__main__":
    run_without(os.path.realpath(sys.argv[1]), sys.argv[2:])
