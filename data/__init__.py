"""Data: tasks, tokens, batches and metrics, and models on disk and on the hub.

Nothing in this package imports cofi.py or sparsebert.py. Only the scripts in data/toy, data/course,
data/results and data/tests may. Import by module: `from data.tasks import load_task`.
"""
import signal
import sys
from pathlib import Path

# Ctrl-C in the seconds in which PyTorch is imported ends a program at once. run_cli takes over.
if (Path(sys.argv[0]).name in ("cofi.py", "sparsebert.py")
        and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
