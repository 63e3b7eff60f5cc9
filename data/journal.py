"""The log of a run, and the state from which it goes on when it was interrupted."""
import contextlib
import json
import signal
import sys
import time

from tqdm import tqdm

from .files import read_tensors, write_tensors, write_text
from .hub import BadInput, reason


class Interrupted(Exception):
    """Ctrl-C, or a request to end; all that is needed to go on has been saved."""


def differing(before, now):
    """"lr 0.1, not 0.2; ...": where two settings differ; "" where they do not."""
    return "; ".join(f"{name} {before.get(name)}, not {value}" for name, value in now.items()
                     if before.get(name) != value)


def generators():
    """{device: what gets and sets the state of its random numbers}, of the devices in use."""
    import torch
    cuda, mps = torch.cuda.is_initialized(), torch.backends.mps.is_available()
    return {"cpu": torch} | ({"cuda": torch.cuda} if cuda else {}) | (
        {"mps": torch.mps} if mps else {})


class Journal:
    """One folder, one run at a time: log.jsonl, and a state for each stage until all are done.

    settings: what has to be the same for going on, as a dict that JSON can hold; minutes: between
    two states; fresh: start over. A stage that is done keeps its last state, so a run that goes on
    walks through the stages again, at no cost, to where it was.
    """

    def __init__(self, folder, settings, minutes=5.0, fresh=False):
        self.folder, self.settings, self.minutes, self.fresh = folder, settings, minutes, fresh
        self.path, self.asked, self.last = folder / "log.jsonl", False, time.monotonic()
        self.lock()
        if fresh:
            for path in [*folder.glob("*.state"), *folder.rglob("result.json")]:
                path.unlink()
        if not [*folder.glob("*.state"), *folder.glob("*/result.json")] or not self.path.exists():
            write_text(self.path, "")

    def lock(self):
        """Holds the folder until the program ends, however it ends. Raises BadInput."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.held = (self.folder / "lock").open("w")
        except OSError as error:
            raise BadInput(f"{self.folder}: cannot be written ({reason(error)}); want another "
                           "--out") from error
        with contextlib.suppress(ImportError):      # not on Windows
            import fcntl
            try:
                fcntl.flock(self.held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise BadInput(f"{self.folder}: another run is at work there; wait for it, or want "
                               "another --out") from error

    def __call__(self, record):
        """Keeps a record, which names its stage, as a line of JSON; prints it as one of the log."""
        self.rewrite([*self.records(), record])
        tqdm.write(self.line(record).rstrip(), file=sys.stdout)
        sys.stdout.flush()

    def line(self, record):
        return json.dumps(record)

    def records(self):
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def rewrite(self, records):
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in records))

    def begin(self, stage, things):
        """(steps that are done, what else was saved). things: {name: has a state_dict, or None}.

        Where there is a state, things are set to it, and so are the random generator and the log.
        """
        self.last, path = time.monotonic(), self.folder / f"{stage}.state"
        if not path.is_file():      # killed before it had one, it has left records at most
            self.rewrite([record for record in self.records() if record.get("stage") != stage])
            return 0, {}
        saved = read_tensors(path, "--fresh starts over")
        if other := differing(saved["settings"], self.settings):
            raise BadInput(f"{path}: was saved with {other}; want those settings again, or --fresh "
                           "to start over")
        if not isinstance(saved["random"], dict):
            raise BadInput(f"{path}: was saved by an older version; --fresh starts over")
        for name, thing in things.items():
            if thing is not None:
                thing.load_state_dict(saved[name])
        for name, generator in generators().items():
            if name in saved["random"]:
                generator.set_rng_state(saved["random"][name])
        write_text(self.path, saved["log"])
        tqdm.write(f"{stage:9} goes on after step {saved['step']}", file=sys.stdout)
        return saved["step"], saved["rest"]

    def steps(self, batches, stage, total, done):
        """(step, batch) from step done + 1, with a bar. On the way Ctrl-C and SIGTERM wait for the
        end of the step; see due().
        """
        def ask(number, frame):
            self.asked = True
            for n, handler in before.items():       # the second time they do not wait
                signal.signal(n, handler)

        before = {}
        with contextlib.suppress(ValueError):       # not the main thread: nobody can interrupt it
            for n in (signal.SIGINT, signal.SIGTERM):
                before[n] = signal.signal(n, ask)
        bar = tqdm(batches, stage, total, initial=done, leave=False, disable=None)
        try:
            yield from enumerate(bar, start=done + 1)
        finally:
            for n, handler in before.items():
                signal.signal(n, handler)

    def due(self):
        """Whether a state should be saved now."""
        return self.asked or time.monotonic() - self.last >= 60 * self.minutes

    def save(self, stage, step, things, **rest):
        """The state after a step, in place of the one before. Raises Interrupted if asked to."""
        write_tensors(self.folder / f"{stage}.state", {
            "settings": self.settings, "step": step, "log": self.path.read_text(), "rest": rest,
            "random": {name: generator.get_rng_state() for name, generator in generators().items()},
            **{name: None if thing is None else thing.state_dict()
               for name, thing in things.items()}})
        self.last = time.monotonic()
        if self.asked:
            raise Interrupted(f"stopped after step {step} of stage {stage}; the same command"
                              f"{' without --fresh' * self.fresh} goes on from there")

    def forget(self, stage):
        """What the stage made is saved elsewhere: its state is not needed any more."""
        (self.folder / f"{stage}.state").unlink(missing_ok=True)

    def done(self):
        """The same for all stages, and nobody works here any more."""
        for path in [*self.folder.glob("*.state"), self.folder / "lock"]:
            path.unlink()
