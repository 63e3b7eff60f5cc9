"""The grader's side: functions of cofi.py and sparsebert.py that run in another process.

The tests run here, with the project's own code, and only the functions of the submission are
replaced: a call sends its arguments to the process of the submission and gets the result back, with
gradients. So whatever a submission does to torch or to the tests, it does to itself.
"""
import contextlib
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from data.course.guide import ROOT
from data.course.runner import RemoteError
from data.course.wire import flatten, load_tensors, receive, send


def left_out(folder, names):
    """Return what the process of a submission does not need: of the course all but wire.py."""
    if Path(folder) == ROOT / "data/course":
        return set(names) - {"__init__.py", "wire.py"}
    return {"__pycache__", "tests", "toy", "results"} & set(names)


class Server:
    """Starts processes for submissions. Use it in a with statement."""

    def __enter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="grade-"))
        shutil.copytree(ROOT / "data", self.folder / "copy" / "data", ignore=left_out)
        self.path = str(self.folder / "socket")
        self.start()
        return self

    def start(self):
        """Start the process that makes others. Also again, if a submission has ended it."""
        program = str(ROOT / "data/course/worker.py")
        command = [sys.executable, program, str(self.folder / "copy"), self.path]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True,
                                        cwd=self.folder / "copy")
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError("the process for submissions has not started")

    def stop(self):
        self.process.kill()
        self.process.communicate()
        Path(self.path).unlink(missing_ok=True)

    def connect(self):
        """Return a connection to a process of its own."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(self.path)
        except OSError:
            self.stop()
            self.start()
            connection.connect(self.path)
        return connection

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class Submission:
    """A process that holds cofi.py and sparsebert.py with functions of a submission.

    sources: {"cofi": text, "sparsebert": text}; seconds: after which it is killed.
    """

    def __init__(self, server, sources, seconds):
        self.deadline = time.monotonic() + seconds
        self.seconds = seconds
        self.calls = 0
        self.connection = server.connect()
        self.pid = self.receive()["answer"]
        try:
            self.ask("load", sources)
        except RemoteError:
            self.close()
            raise

    def close(self):
        self.connection.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def receive(self):
        left = self.deadline - time.monotonic()
        try:
            self.connection.settimeout(max(left, 0.01))
            content = receive(self.connection)
        except TimeoutError as error:
            raise RemoteError(f"took longer than {self.seconds:g} seconds") from error
        except (OSError, ValueError) as error:
            raise RemoteError(f"its process failed ({error})") from error
        if content is None:
            raise RemoteError("ended its process")
        try:
            return load_tensors(content)
        except Exception as error:      # anything but tensors, numbers and texts
            raise RemoteError("returned something else than tensors and numbers") from error

    def ask(self, kind, request):
        try:
            self.connection.settimeout(max(self.deadline - time.monotonic(), 0.01))
            send(self.connection, pickle.dumps((kind, request)))
        except OSError as error:
            raise RemoteError(f"took longer than {self.seconds:g} seconds, or ended its process"
                              ) from error
        reply = self.receive()
        if not isinstance(reply, dict) or "error" in reply or "answer" not in reply:
            raise RemoteError(str(reply.get("error", reply) if isinstance(reply, dict) else reply))
        return reply

    def call(self, module, name, arguments):
        """Call a function of the submission. Its result has gradients, if it has them there."""
        inputs = [tensor for tensor in flatten(arguments) if tensor.requires_grad]
        request = (module, name, as_leaves(arguments), torch.is_grad_enabled(),
                   torch.get_rng_state())
        reply = self.ask("call", request)
        torch.set_rng_state(reply["random"])
        result, changed, has_grad = reply["answer"]
        tensors = flatten(arguments)
        with torch.no_grad():
            for i, value in changed.items():
                if value.shape != tensors[i].shape:
                    raise RemoteError(f"a weight must have the shape {tuple(tensors[i].shape)}, "
                                      f"got {tuple(value.shape)}")
                tensors[i].copy_(value)
        number = self.calls
        self.calls += 1
        outputs = flatten(result)
        if inputs and any(has_grad):
            outputs = RemoteFunction.apply(self, number, has_grad, outputs, *inputs)
        return replace_tensors(result, iter(outputs))


class RemoteFunction(torch.autograd.Function):
    """Gives the results of a call a gradient, which is computed where the call was made."""

    @staticmethod
    def forward(ctx, submission, number, has_grad, outputs, *inputs):
        ctx.submission, ctx.number = submission, number
        outputs = tuple(output.clone() for output in outputs)
        ctx.mark_non_differentiable(*(output for output, has in zip(outputs, has_grad) if not has))
        return outputs

    @staticmethod
    def backward(ctx, *grad_outputs):
        grads = ctx.submission.ask("gradients", (ctx.number, grad_outputs))["answer"]
        return None, None, None, None, *grads


def as_leaves(value):
    """Return a tree in which every tensor is a leaf of its own graph, and modules are kept."""
    if isinstance(value, nn.Module):
        return value
    if isinstance(value, torch.Tensor):
        return value.detach().requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {key: as_leaves(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(as_leaves(x) for x in value)
    return value


def replace_tensors(value, tensors):
    """Return a tree in which the tensors are replaced, in order."""
    if isinstance(value, torch.Tensor):
        return next(tensors)
    if isinstance(value, dict):
        return {key: replace_tensors(x, tensors) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(replace_tensors(x, tensors) for x in value)
    return value


@contextlib.contextmanager
def replaced(submission, modules, names):
    """Within this, functions of the project are those of a submission.

    modules: {"cofi": module, ...}; names: [("cofi", "MHA.forward"), ...].
    """
    before = []
    for module, name in names:
        owner = modules[module]
        *path, last = name.split(".")
        for part in path:
            owner = getattr(owner, part)
        before.append((owner, last, getattr(owner, last)))

        def call(*args, module=module, name=name, **kwargs):
            return submission.call(module, name, (args, kwargs))

        setattr(owner, last, call)
    try:
        yield
    finally:
        for owner, name, original in before:
            setattr(owner, name, original)
