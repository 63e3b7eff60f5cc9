"""The error that a user can fix, and short texts for the errors of libraries."""
import re


class UserError(Exception):
    """Input that cannot be used. The message is one line: what must hold, what was given, what to
    try. The command line prints it and exits with code 2.
    """


def short_message(error):
    """Return the first line of a library's error message, at most 120 characters of it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:120]


def is_out_of_memory(error):
    """Whether PyTorch or Python says so: on a CPU, on Windows, on a GPU."""
    said = re.search("allocate memory|not enough memory|out of memory", str(error))
    return isinstance(error, MemoryError) or bool(said)
