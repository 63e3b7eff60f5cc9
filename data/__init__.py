"""Everything about data: which tasks there are, their tokens, their batches, their scores; models
on disk and on the hub; flags.

This package knows nothing of cofi.py; what cofi.py needs of it are the names below.
"""
from .checkpoint import read_config, read_mlm_head, read_model, read_weights, write_checkpoint
from .flags import check_range, guarded, make_parser, setting, settings
from .hub import BadInput, fetch
from .journal import Journal, differing, write, write_json, write_text
from .metrics import METRICS
from .rows import Rows, batches, joined, rows_from_text
from .squad import windows_from_text
from .svg import chart
from .tasks import TASKS, TOY, Dataset, load_task, load_tokenizer, task_size, write_submission

__all__ = ["BadInput", "Dataset", "Journal", "METRICS", "Rows", "TASKS", "TOY", "batches", "chart",
           "check_range", "differing", "fetch", "guarded", "joined", "load_task", "load_tokenizer",
           "make_parser", "read_config", "read_mlm_head", "read_model", "read_weights",
           "rows_from_text", "setting", "settings", "task_size", "windows_from_text", "write",
           "write_checkpoint", "write_json", "write_submission", "write_text"]
