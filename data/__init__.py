"""Everything about data: which tasks there are, their tokens, their batches, their scores; models
on disk and on the hub; flags.

This package knows nothing of cofi.py; what cofi.py needs of it are the names below. Slow to load,
torch and datasets are imported by the functions that need them: --help does not.
"""
from .checkpoint import read_config, read_mlm_head, read_model, read_weights, write_checkpoint
from .files import write, write_json, write_text
from .flags import Run, guarded, make_parser, setting, settings
from .hub import BadInput, fetch
from .journal import Journal, differing
from .metrics import METRICS
from .rows import Rows, batches, joined, rows_from_text
from .squad import windows_from_text
from .svg import chart
from .tasks import TASKS, TOY, Dataset, load_task, load_tokenizer, write_submission

__all__ = ["BadInput", "Dataset", "Journal", "METRICS", "Rows", "Run", "TASKS", "TOY", "batches",
           "chart", "differing", "fetch", "guarded", "joined", "load_task", "load_tokenizer",
           "make_parser", "read_config", "read_mlm_head", "read_model", "read_weights",
           "rows_from_text", "setting", "settings", "windows_from_text", "write",
           "write_checkpoint", "write_json", "write_submission", "write_text"]
