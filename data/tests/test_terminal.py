"""Terminals, pipes, signals and paths: a run goes on without a reader, or ends with one line."""
import errno
import os
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest
import torch

import cofi
import sparsebert
import test_cofi
from data.course.guide import ROOT
from data.harness import commands
from data.harness.cli import make_parser
from data.harness.console import SafeOutput
from data.harness.drawing import for_encoding
from data.tests.common import slow
from data.tests.helpers import write_custom
from data.toy import prepare

# cofi.py, with a short measurement of the speed-up
PROGRAM = """if True:
    import functools, sys
    from data.harness import report
    report.measure_speedup = functools.partial(report.measure_speedup, length=16, seconds=0.0)
    import cofi
    sys.exit(cofi.main(sys.argv[1:]))"""


@pytest.fixture
def words(folder, tmp_path):
    """The words of a short run that needs no network."""
    data = write_custom(tmp_path / "d", "tsv")
    return [sys.executable, "-c", PROGRAM, "--data", str(data), "--model", str(folder), "--out",
            str(tmp_path / "out"), "--max_steps", "2", "--threads", "1"]


def assert_finished(tmp_path, code, error):
    assert code == 0 and not error.strip(), error
    result, = (tmp_path / "out").glob("custom-*/result.json")
    assert "████" in (result.parent / "network.txt").read_text(encoding="utf-8")


# ---- A terminal that goes away -------------------------------------------------------------------


@slow
def test_closed_pipe(words, tmp_path):
    """python cofi.py | head -1: the run goes on, silently."""
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as program:
        assert program.stdout.readline().startswith("run ")
        program.stdout.close()
        error = program.stderr.read()
    assert_finished(tmp_path, program.returncode, error)


@slow
@pytest.mark.parametrize("environment", [
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}])
def test_terminal_without_blocks(words, tmp_path, environment):
    """The drawing is shown in ASCII; its file stays in UTF-8."""
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False,
                          encoding="latin-1", env=os.environ | environment)
    assert_finished(tmp_path, done.returncode, done.stderr)
    assert "####" in done.stdout and ". . . ." in done.stdout


def test_marks_of_a_terminal():
    picture = "1  ■ · ■  ██▌ 18"
    assert for_encoding(picture, "utf-8") == picture
    assert for_encoding(picture, "cp1252") == for_encoding(picture, None) == "1  # . #  ### 18"


# ---- Signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_outside_of_training(monkeypatch, capsys, number):
    monkeypatch.setattr(commands, "parse_settings", lambda *_: os.kill(os.getpid(), number))
    assert cofi.main([]) == 130
    assert capsys.readouterr().err == "cofi: stopped; the same command continues\n"


@slow
@pytest.mark.parametrize("module", [cofi, sparsebert])
def test_ctrl_c_while_pytorch_is_imported(module):
    with subprocess.Popen([sys.executable, module.__file__, "--help"], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as program:
        time.sleep(0.5)
        program.send_signal(signal.SIGINT)
        _, error = program.communicate()
    assert program.returncode in (-signal.SIGINT, 130) and error.count("\n") <= 1, error


def test_gpu_that_this_build_cannot_use(monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", fail)
    assert cofi.main(["--max_steps", "1"]) == 2
    assert "got cuda (CUDA error: no kernel image" in capsys.readouterr().err


# ---- Paths and values ----------------------------------------------------------------------------

LONG = "a long sentence " * 40
BAD_PATHS = {
    "a text for a model": (["--predict", LONG, "x"], "neither a folder here nor a hub name"),
    "a long model": (["--model", "m/" * 600], "neither a folder here nor a hub name"),
    "a long teacher": (["--teacher", "t" * 300], "neither a folder here nor a hub name"),
    "long data": (["--data", "d" * 300], "no such folder"),
    "a long run": (["--evaluate", "e" * 300], "neither a folder here nor a hub name"),
    "a line break": (["--task", "rte\nmrpc"], "got rte\\nmrpc"),
    "an escape": (["--model", "a\x1b[31mb"], "a\\x1b[31mb"),
    "latin-1": (["--predict", "TINY", "caf\udce9", "b"], "must be followed by text in UTF-8"),
    "a file for a text": (["--predict", "TINY", __file__, "b"], "files and standard input"),
    "standard input": (["--predict", "TINY", "-", "b"], "files and standard input"),
    "empty texts": (["--predict", "TINY", "", " "], "got an empty one"),
    "a file for a model": (["--model", __file__], "Try its folder"),
    "a zero byte": (["--model", "a\0b"], "a\\x00b"),
    "400 digits": (["--batch_size", "9" * 400], "--batch_size must be between 1 and 65536, got 99"),
    "5,000 digits": (["--seed", "9" * 5000], "--seed"),
}


@pytest.mark.parametrize("case", BAD_PATHS)
def test_bad_paths_and_values(folder, finetuned, tmp_path, capsys, case):
    arguments, fragment = BAD_PATHS[case]
    if arguments[:2] == ["--predict", "TINY"]:
        arguments = ["--predict", str(finetuned), *arguments[2:]]
    if arguments[0] not in ("--predict", "--evaluate"):
        arguments = ["--model", str(folder), "--out", str(tmp_path / "out"), *arguments]
    code = cofi.main(arguments)
    error = capsys.readouterr().err
    assert code == 2 and fragment in error and error.count("\n") == 1, error
    assert "\x1b" not in error and len(error) < 1500


def test_out_of_memory(monkeypatch, capsys):
    """What PyTorch says of it, on a CPU and on a GPU, ends in one line."""
    for error in MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"):
        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(commands, "parse_settings", fail)
        assert cofi.main([]) == 2
        printed = capsys.readouterr().err
        assert "Try a smaller --batch_size" in printed and printed.count("\n") == 1
    for bug in AttributeError(), RuntimeError("CUDA error: an illegal memory access"):
        monkeypatch.setattr(commands, "parse_settings", mock.Mock(side_effect=bug))
        with pytest.raises(type(bug)):          # a bug stays one
            cofi.main([])


@pytest.mark.parametrize("number, is_ignored", [(signal.SIGHUP, False), (signal.SIGHUP, True)])
def test_closed_window_and_nohup(monkeypatch, capsys, number, is_ignored):
    """SIGHUP stops a run as SIGTERM does, unless it was started with nohup."""
    before = signal.signal(number, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
    try:
        monkeypatch.setattr(commands, "parse_settings", lambda *_: os.kill(os.getpid(), number))
        monkeypatch.setattr(cofi, "run", lambda _: None)
        assert cofi.main([]) == (0 if is_ignored else 130)
    finally:
        signal.signal(number, before)


def test_score_on_a_full_disk(finetuned):
    """Nothing is printed twice, and no traceback at the end of the interpreter."""
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    words = [sys.executable, "cofi.py", "--predict", str(finetuned), "a", "b"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    done = subprocess.run(["sh", "-c", 'exec "$@" > /dev/full', "sh", *words], cwd=ROOT,
                          stderr=subprocess.PIPE, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("error, fragment", [
    (PermissionError(errno.EACCES, "Permission denied", "/data/train.tsv"),
     "/data/train.tsv must be readable and writable, got Permission denied"),
    (OSError(errno.ENAMETOOLONG, "File name too long", "xx"), "got File name too long"),
    (OSError("no strerror"), "got no strerror")])
def test_files_that_may_not_be_read(monkeypatch, capsys, error, fragment):
    """Wherever it happens: one line, and exit code 2."""
    def fail(*_):
        raise error

    for module in (cofi, sparsebert):
        monkeypatch.setattr(commands, "parse_settings", fail)
        assert module.main([]) == 2
        printed = capsys.readouterr().err
        assert fragment in printed and printed.count("\n") == 1


TOOLS = {
    "--assignment": "test_cofi: argument --assignment: expected one argument",
    "--assignment /proc/x": "test_cofi: /proc/x must exist, got No such file",
    "--answer 1a": "test_cofi: argument --answer: expected 2 arguments",
    "--answer zz 5": "test_cofi: --answer must be followed by one of 1a,",
    "--benchmark --turns 0": "test_cofi: --turns must be between 1 and 10000, got 0",
    "--benchmark --device nope": "test_cofi: argument --device: invalid choice: 'nope'",
    "--benchmark --model nowhere": "test_cofi: nowhere: neither a folder here nor a hub name",
    "prepare --steps -1": "prepare: --steps must be between 0 and",
    "prepare --only_splits --out /proc/x": "prepare: /proc/x must exist, got No such file",
    "prepare --nope": "prepare: unrecognized arguments: --nope"}


@pytest.mark.parametrize("words", TOOLS)
def test_tools_with_bad_arguments(capsys, words):
    main, arguments = test_cofi.main, words.split()
    if arguments[0] == "prepare":
        main, arguments = prepare.main, arguments[1:]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(TOOLS[words]) and error.count("\n") == 1, error


def test_without_docstrings():
    """python -OO removes the docstring that --help shows."""
    assert "--sparsity FLOAT" in make_parser(cofi.Settings, None).format_help()


def test_no_terminal_at_all():
    """Started with its output closed, Python has no stdout."""
    out = SafeOutput(None)
    print("text", file=out)
    out.flush()
