"""Everything about data: which tasks there are, their tokens, their batches, their scores.

This package knows nothing of cofi.py; what cofi.py needs of it are the names below.
"""
from .glue import TASKS, TOY, Dataset, Rows, batches, load_task, load_tokenizer, rows_from_text
from .checkpoint import read_config, read_mlm_head, read_weights, write_checkpoint
from .hub import BadInput, fetch
from .metrics import METRICS

__all__ = ["TASKS", "TOY", "METRICS", "Dataset", "Rows", "BadInput", "batches", "fetch",
           "load_task", "load_tokenizer", "read_config", "read_mlm_head", "read_weights",
           "rows_from_text", "write_checkpoint"]
