"""The process in which the code of a submission runs. It never sees a test or a solution.

    python worker.py FOLDER SOCKET

FOLDER holds the package data/ without its course, tests and toy; cofi.py and sparsebert.py come
over the socket, with one function or part of them from the submission. Each connection is served by
a process of its own, in which files, programs and the network are out of reach. See remote.py for
what is sent.
"""
import contextlib
import importlib
import operator
import os
import pickle
import pkgutil
import resource
import signal
import socket
import sys
import types

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])

import numpy as np
import torch

from data.course.wire import flatten, receive, send_tensors

MAX_FILE_BYTES = 0
MAX_MEMORY_BYTES = 8 * 2**30        # of addresses, most of which PyTorch only reserves
NAMES_OUTSIDE = "helper functions and imports must be inside of the function"
# what a function of the course has no use for; the names are those of Python's audit events
FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
             "os.forkpty", "os.kill", "os.killpg", "os.listdir", "os.scandir", "os.remove",
             "os.rename", "os.truncate", "os.chmod", "os.link", "os.symlink", "os.putenv",
             "socket.", "ctypes.", "shutil.", "tempfile.", "glob.", "pathlib.", "webbrowser.",
             "ftplib.", "http.", "urllib.", "smtplib.", "pty.", "gc.", "code.", "mmap.")


def forbid():
    """Let this process read Python's own libraries and nothing else. It cannot be undone."""
    libraries = [os.path.dirname(os.path.abspath(module.__file__)) + os.sep
                 for module in (os, torch, np)]
    site = os.path.join(os.path.dirname(os.path.abspath(os.__file__)), "site-packages") + os.sep

    def hook(event, arguments):
        if event.startswith(FORBIDDEN):
            raise PermissionError(f"a submission must not use {event}")
        if event == "open":
            path = os.path.abspath(os.fsdecode(arguments[0])) if isinstance(
                arguments[0], (str, bytes)) else ""
            is_library = any(path.startswith(folder) for folder in libraries)
            in_site = path.startswith(site) and not any(
                path.startswith(folder) for folder in libraries[1:])
            if arguments[1] not in ("r", "rb", None) or not is_library or in_site:
                raise PermissionError(f"a submission must not open {path or 'a file'}")

    sys.addaudithook(hook)
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (MAX_FILE_BYTES, MAX_FILE_BYTES))
    with contextlib.suppress(ValueError, OSError):      # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))


def load(sources):
    """Make modules of {name: source}, in an order in which they can import each other."""
    for name, source in sources.items():
        module = types.ModuleType(name)
        module.__file__ = f"{name}.py"
        sys.modules[name] = module
        exec(compile(source, module.__file__, "exec"), vars(module))


def call(request, kept):
    """Call a function: (result, tensors that it changed in place, {position: tensor})."""
    module, name, arguments, grad_enabled, random_state = request
    function = operator.attrgetter(name)(sys.modules[module])
    inputs = [tensor for tensor in flatten(arguments) if tensor.requires_grad]
    before = [tensor.detach().clone() for tensor in flatten(arguments)]
    torch.set_rng_state(random_state)
    with torch.set_grad_enabled(grad_enabled):
        arguments = without_leaves(arguments)
        result = function(*arguments[0], **arguments[1])
    # by value, because there are many ways to set a weight, .data and a new Parameter among them
    changed = {i: after.detach().clone() for i, after in enumerate(flatten(arguments))
               if not torch.equal(after, before[i])}
    outputs = flatten(result)
    kept.append((outputs, inputs))
    return result, changed, [tensor.requires_grad for tensor in outputs]


def without_leaves(value):
    """Return a tree in which tensors that need a gradient are results: `x += 1` is allowed."""
    if isinstance(value, torch.Tensor):
        return value.clone() if value.requires_grad else value
    if isinstance(value, (list, tuple)):
        return type(value)(without_leaves(x) for x in value)
    if isinstance(value, dict):
        return {key: without_leaves(x) for key, x in value.items()}
    return value


def gradients(request, kept):
    """Return the gradients of an earlier call: one for each argument that needs it, or None."""
    number, grad_outputs = request
    outputs, inputs = kept[number]
    pairs = [(out, grad) for out, grad in zip(outputs, grad_outputs)
             if out.requires_grad and grad is not None]
    if not pairs:
        return [None] * len(inputs)
    outputs, grad_outputs = zip(*pairs)
    return list(torch.autograd.grad(outputs, inputs, grad_outputs, retain_graph=True,
                                    allow_unused=True))


def serve(connection):
    """Answer the requests of one connection until it is closed."""
    kept = []
    forbid()
    while True:
        content = receive(connection)
        if content is None:
            return
        kind, request = pickle.loads(content)           # from the grader, which is trusted
        try:
            if kind == "load":
                answer = load(request)
            elif kind == "call":
                answer = call(request, kept)
            else:
                answer = gradients(request, kept)
            send_tensors(connection, {"answer": answer, "random": torch.get_rng_state()})
        except BaseException as error:                  # also SystemExit
            text = " ".join(str(error).split())
            if type(error) is NameError:
                text += f" ({NAMES_OUTSIDE})"
            send_tensors(connection, {"error": f"{type(error).__name__}: {text}"[:500]})


def main():
    """Fork a process for every connection."""
    torch.set_num_threads(1)
    # what is imported when it is first used, must be imported before files are out of reach
    x = torch.ones(2, requires_grad=True)
    torch.autograd.grad([torch.einsum("i,i->", x, x)], [x], [torch.tensor(1.0)], allow_unused=True)
    for module in pkgutil.walk_packages([os.path.join(sys.argv[1], "data")], "data."):
        if not module.name.startswith("data.course"):
            importlib.import_module(module.name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)       # children are not waited for
    signal.signal(signal.SIGINT, signal.SIG_IGN)        # Ctrl-C is for the grader, which ends this
    torch.from_file = torch.UntypedStorage.from_file = None     # they open files without an event
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[2])
    sys.argv = [""]                                     # it says where the project is
    listener.listen(64)
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            null = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):                    # what it prints does not matter
                os.dup2(null, number)
            try:
                send_tensors(connection, {"answer": os.getpid()})
                serve(connection)
            finally:
                os._exit(0)
        connection.close()


if __name__ == "__main__":
    main()
