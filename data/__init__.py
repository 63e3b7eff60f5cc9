"""Everything about data: which tasks there are, their tokens, their batches, their scores.

This package knows nothing of cofi.py; what cofi.py needs of it are the names below.
"""
from .checkpoint import read_config, read_mlm_head, read_model, read_weights, write_checkpoint
from .hub import BadInput, fetch
from .metrics import METRICS
from .rows import Rows, batches, rows_from_text
from .squad import windows_from_text
from .tasks import TASKS, TOY, Dataset, load_task, load_tokenizer, task_size

__all__ = ["TASKS", "TOY", "METRICS", "Dataset", "Rows", "BadInput", "batches", "fetch",
           "load_task", "load_tokenizer", "read_config", "read_mlm_head", "read_model",
           "read_weights", "rows_from_text", "task_size", "windows_from_text", "write_checkpoint"]
