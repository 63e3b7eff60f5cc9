"""The terminal, and the printed log of both programs: its head and its lines."""
import contextlib
import os
import re
import signal
import sys

from data.errors import UserError, is_out_of_memory, short_message
from data.harness.journal import Interrupted, stop_signals

COFI_COLUMNS = ("stage       step   L_pred  L_layer       s       t  lambda1  lambda2   score"
                "  s/step    left  m")
COFI_HEADER = f"""\
L_pred   mean since the line above         s        expected sparsity      score  on the dev set
         (loss on the labels without a     t        target sparsity        s/step seconds
         teacher or with pred_weight 0)    lambda1  linear multiplier      left   in this stage
L_layer  mean since the line above         lambda2  quadratic multiplier   m      matched student
                                                                                  layers

{COFI_COLUMNS}"""

SPARSEBERT_LEGEND = """\
L_hidden, L_att, L_pred   means since the line above, before their weights. L_pred is the loss on
                          the labels without distillation, with pred_weight 0, or for a regression
s                         share of zeros;   dev: score on the dev set

"""
SPARSEBERT_HEADER = "strategy, target         step  L_hidden     L_att    L_pred       s     dev"


def print_header(folder, data, notes, columns):
    """Print what a run begins with: its folder, what was understood of its data, notes for the
    user, and the head of the log.
    """
    print(f"run        {folder}")
    for line in data.describe():
        print(one_line(line))
    for note in notes:
        print(f"note       {note}")
    print(f"\n{columns}")


def duration(seconds):
    """Format seconds as 5:04, minutes and seconds, or from an hour on as 2h05.

    Example:
    >>> duration(304), duration(7512)
    ('5:04', '2h05')
    """
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}h{minutes % 60:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"


def cofi_line(record):
    """Format a record of cofi.py's log. The first layer is printed as 1, no match as a dot."""
    score = next(iter(record["scores"].values()))
    line = "{stage:9}{step:7}{L_pred:9.4f}{L_layer:9.4f}".format(**record)
    if "s" in record:
        line += "{s:8.4f}{t:8.4f}{lambda1:9.2f}{lambda2:9.2f}".format(**record)
    else:
        line += f"{'-':>8}{'-':>8}{'-':>9}{'-':>9}"
    matched = " ".join("." if layer < 0 else str(layer + 1) for layer in record["m"] or [])
    line += "{:8.4f}{seconds_per_step:8.3f}".format(score, **record)
    return f"{line}{duration(record['left']):>8}  {matched}"


def sparsebert_line(record):
    """Format a record of sparsebert.py's log."""
    dev = next(iter(record["scores"].values()))
    line = f"{record['strategy']} {record['target']:g}".ljust(21)
    line += "{step:8}{L_hidden:10.4f}{L_att:10.4f}{L_pred:10.4f}{s:8.4f}".format(**record)
    return f"{line}{dev:8.4f}"


# ---- the terminal --------------------------------------------------------------------------------


class SafeOutput:
    """A terminal or pipe that may go away, or not know a character: the run goes on without it.

    `python cofi.py | head` closes the pipe after ten lines; a log may be on a full disk.
    """

    def __init__(self, stream):
        self.stream = stream
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="replace")

    def write(self, text):
        try:
            self.stream.write(text)
        except (AttributeError, OSError, ValueError):       # None, a closed pipe, a closed file
            self.detach()
        return len(text)

    def flush(self):
        try:
            self.stream.flush()
        except (AttributeError, OSError, ValueError):
            self.detach()

    def detach(self):
        """Send what follows nowhere, also what Python flushes at its end."""
        with contextlib.suppress(AttributeError, OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        self.stream = open(os.devnull, "w", encoding="utf-8")

    def __getattr__(self, name):
        return getattr(self.stream, name)


def one_line(error):
    """Return a message without line breaks and control characters, at most 1,000 characters."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(error)[:1000])


def exit_code(name, start):
    """Call start(), the whole of a program, and return its exit code; an error is one line.

    0, or what start returns; 2 for unusable input; 130 if interrupted. name: of the program.
    """
    stdout, stderr = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = SafeOutput(stdout), SafeOutput(stderr)
    before = {}
    code = 2
    try:
        with contextlib.suppress(ValueError):       # signals reach the main thread only
            for number in stop_signals():
                before[number] = signal.signal(number, signal.default_int_handler)
        return start() or 0
    except UserError as error:
        message = str(error)
    except FileNotFoundError as error:
        message = (f"{error.filename} must exist, got {error.strerror}. Try another path, or the "
                   "same command again")
    except OSError as error:            # files and folders that may not be read or written
        message = (f"{error.filename or 'a file'} must be readable and writable, got "
                   f"{error.strerror or error}. Try another path")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, NotImplementedError) and re.match("part \\d", str(error)):
            error = UserError(f"{error} is still to be written")        # in an assignment
        elif not is_out_of_memory(error):
            raise
        else:
            error = UserError(f"Out of memory ({short_message(error)}). Try a smaller --batch_size")
        message = str(error)
    except Interrupted as stop:
        code, message = 130, str(stop)
    except KeyboardInterrupt:           # outside of training
        code, message = 130, "stopped; the same command " + (
            "starts again" if name == "test_cofi" else "continues")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.stdout.flush()
        sys.stdout, sys.stderr = stdout, stderr
    print(f"{name}: {one_line(message)}", file=SafeOutput(stderr))
    return code
