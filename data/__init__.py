"""Data: tasks, tokens, batches and metrics, and models on disk and on the hub.

Nothing in this package imports cofi.py or sparsebert.py. Only the scripts in data/toy, data/course,
data/results and data/tests may. Import by module: `from data.tasks import load_task`.
"""
import os
import signal
import sys
from pathlib import Path

# Ctrl-C in the seconds in which PyTorch is imported ends a program at once. run_cli takes over.
if (Path(sys.argv[0]).name in ("cofi.py", "sparsebert.py")
        and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN):
    signal.signal(signal.SIGINT, signal.SIG_DFL)

# On a CPU oneDNN compiles a program for each new shape of a matrix product, and keeps the last
# 1,024, of about a megabyte each; PyTorch has a second cache of this kind. A network that is pruned
# while it is trained has new shapes in every step: 128 are enough. PyTorch reads both later.
for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(name, "128")
