"""The log of a run, and the checkpoints from which it resumes after an interruption."""
import contextlib
import json
import os
import signal
import sys
import time

import torch
from tqdm import tqdm

from data.errors import UserError, is_out_of_memory, short_message
from data.files import read_json, read_tensors, read_text, write_tensors, write_text

# where things were; what they are is in the settings "weights", "tokens" and "teacher_weights"
LOCATIONS = {"model", "data", "teacher"}


def stop_signals():
    """Return the signals that ask a program to stop, without those it was started to ignore."""
    numbers = [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)]
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


class Interrupted(Exception):
    """Ctrl-C, SIGTERM or SIGHUP during training. Everything needed to resume has been saved."""


# settings that are a hash, and what it means that they differ
HASHES = {"tokens": "other texts, labels, parts or tokens", "weights": "other weights of --model",
          "teacher_weights": "other weights of --teacher"}


def diff_settings(before, now):
    """Describe where two settings differ: "lr: 0.1, now 0.2; ..."; "" where they agree."""
    before = before if isinstance(before, dict) else {}
    return "; ".join(HASHES.get(name) or f"{name}: {before.get(name)}, now {value}"
                     for name, value in now.items()
                     if before.get(name) != value and name not in LOCATIONS)


def random_generators():
    """Return {device: object that gets and sets its random state} of the devices in use."""
    generators = {"cpu": torch}
    if torch.cuda.is_initialized():
        generators["cuda"] = torch.cuda
    if torch.backends.mps.is_available():
        generators["mps"] = torch.mps
    return generators


class Journal:
    """The folder of one run: log.jsonl, and a checkpoint for each stage until the run is finished.

    A finished stage keeps its last checkpoint, so a resumed run walks through the stages again, at
    no cost, to where it was.

    settings: what must agree for resuming, as JSON; format_line(record): a line of the printed log;
    minutes: between two checkpoints; overwrite: start over.
    """

    def __init__(self, folder, settings, format_line=json.dumps, minutes=5.0, overwrite=False):
        self.folder, self.settings, self.format_line = folder, settings, format_line
        self.minutes, self.overwrite = minutes, overwrite
        self.path = folder / "log.jsonl"
        self.stop_requested = False
        self.last_save = time.monotonic()
        self.lock()
        if overwrite:
            for path in [*folder.glob("*.state"), folder / "result.json", *self.row_files()]:
                path.unlink(missing_ok=True)
        has_progress = [*folder.glob("*.state"), *folder.glob("*/result.json")]
        if not has_progress or not self.path.exists():
            write_text(self.path, "")

    def row_files(self):
        """Return the result.json (paths) of the strategies of sparsebert.py kept in this folder."""
        found = []
        for path in self.folder.glob("*/result.json"):
            with contextlib.suppress(UserError, OSError):
                if "strategy" in read_json(path):
                    found.append(path)
        return found

    def lock(self):
        """Hold the folder until the process ends, however it ends. Raises UserError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # a link is not followed
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            self.lock_file = os.fdopen(os.open(self.folder / "lock", flags, 0o666), "w")
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written ({short_message(error)}). Try "
                            "another --out") from error
        with contextlib.suppress(ImportError):      # Windows has no fcntl
            import fcntl
            try:
                fcntl.flock(self.lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"{self.folder}: another run is using this folder. Wait for it, or "
                                "try another --out") from error

    # ---- the log ----

    def log(self, record):
        """Append a record, a dict that names its stage, to log.jsonl and print it as a line."""
        self.write_records([*self.records(), record])
        self.tell(self.format_line(record).rstrip())

    def tell(self, line):
        """Print a line above the progress bar."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def records(self):
        try:
            records = [json.loads(line) for line in read_text(self.path).splitlines()]
            return [record for record in records if isinstance(record, dict)]
        except ValueError as error:
            raise UserError(f"{self.path} has been changed by somebody else "
                            f"({short_message(error)}). The same command restores it and goes on "
                            "from the last checkpoint") from error

    def write_records(self, records):
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in records))

    # ---- checkpoints ----

    def restore(self, stage, state):
        """Load the checkpoint of a stage, if there is one, with the random state and the log.

        state: {name: object with a state_dict, or None}, restored in place. Returns the number of
        finished steps and the extra values that were saved.
        """
        self.last_save = time.monotonic()
        path = self.folder / f"{stage}.state"
        if not path.is_file():
            # A process that was killed before its first checkpoint has left records at most.
            try:
                records = self.records()
            except UserError:
                records = []
            self.write_records([r for r in records if r.get("stage") != stage])
            return 0, {}
        saved = read_tensors(path, "Use --overwrite to start over")
        try:
            return self.restore_from(path, saved, stage, state)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            if is_out_of_memory(error):
                raise
            raise UserError(f"{path} is damaged ({type(error).__name__}: {short_message(error)}). "
                            "Use --overwrite to start over") from error

    def restore_from(self, path, saved, stage, state):
        changed = diff_settings(saved["settings"], self.settings)
        if changed:
            raise UserError(f"{path} was saved with different settings ({changed}). Try the "
                            "earlier settings, or --overwrite to start over")
        if "extra" not in saved:
            raise UserError(f"{path} was saved by an older version. Use --overwrite to start over")
        if not isinstance(saved["step"], int):
            raise TypeError(f"step is {saved['step']!r}")
        for name, thing in state.items():
            if thing is not None:
                thing.load_state_dict(saved[name])
        for name, generator in random_generators().items():
            if name in saved["random"]:
                generator.set_rng_state(saved["random"][name])
        write_text(self.path, saved["log"])
        self.tell(f"{stage:9} resumes after step {saved['step']}")
        return saved["step"], saved["extra"]

    def should_save(self):
        """Whether a checkpoint is due: by time, or because the user asked to stop."""
        return self.stop_requested or time.monotonic() - self.last_save >= 60 * self.minutes

    def save(self, stage, step, state, extra):
        """Replace the checkpoint of a stage. Raises Interrupted if the user asked to stop."""
        saved = {name: None if thing is None else thing.state_dict()
                 for name, thing in state.items()}
        random = {name: generator.get_rng_state()
                  for name, generator in random_generators().items()}
        write_tensors(self.folder / f"{stage}.state", saved | {
            "settings": self.settings, "step": step, "log": read_text(self.path),
            "random": random, "extra": extra})
        self.last_save = time.monotonic()
        if self.stop_requested:
            without = " without --overwrite" if self.overwrite else ""
            raise Interrupted(f"stopped after step {step} of stage {stage}; the same command"
                              f"{without} resumes from there")

    def discard(self, stage):
        """Delete the checkpoint of a stage whose result is saved elsewhere."""
        (self.folder / f"{stage}.state").unlink(missing_ok=True)

    def finish(self):
        """Delete the checkpoints of all stages and release the folder."""
        for path in self.folder.glob("*.state"):
            path.unlink(missing_ok=True)
        lock = self.folder / "lock"
        try:
            lock.unlink(missing_ok=True)
        except PermissionError:         # Windows does not delete an open file
            self.lock_file.close()
            lock.unlink(missing_ok=True)

    # ---- steps ----

    def steps(self, batches, stage, total, start_step):
        """Yield (step, batch) from step start_step + 1 on, with a progress bar.

        Meanwhile the first Ctrl-C, SIGTERM or SIGHUP waits for a checkpoint: see should_save. The
        second one does not wait.
        """
        handlers = {}

        def request_stop(number, frame):
            self.stop_requested = True
            restore_handlers()

        def restore_handlers():
            for number, handler in handlers.items():
                signal.signal(number, handler)

        with contextlib.suppress(ValueError):       # signals reach the main thread only
            for number in stop_signals():
                handlers[number] = signal.signal(number, request_stop)
        bar = tqdm(batches, stage, total, initial=start_step, leave=False, disable=None)
        try:
            yield from enumerate(bar, start=start_step + 1)
        finally:
            restore_handlers()
