"""Progress of one training stage: step counter, timer, running losses, when to log and to save."""
import math
import time

import torch

from data.errors import UserError
from data.harness.console import duration
from data.harness.device import product_speed
from data.harness.evaluate import training_batches

FINITE_CHECK_STEPS = 50     # on a GPU; ours: the check waits for the GPU to finish the step
ESTIMATE_STEPS = 20         # after so many steps a long run says how long it will take
LONG_RUN = 10 * 60.0        # in seconds
LONG_RUN_ON_CPU = 3 * 60 * 60.0
SLOWEST_CPU = 1e10          # operations per second; ours: what is short even at this speed is short
LAPTOP = "README.md has a command for a laptop"
STAGES = ("teacher", "prune", "finetune")       # of cofi.py, in order


class Progress:
    """The bookkeeping of a training loop. On creation the stage resumes from its checkpoint.

        progress = Progress(journal, "prune", num_steps, state, device)
        for step, (indices, batch) in progress.steps(dataset, cfg):
            ...                                       # forward, loss, backward
            progress.check_finite(loss, grad_norm)    # before the optimizer touches the weights
            ...                                       # optimizer step
            progress.add(losses)
            if progress.should_log:
                progress.log(("L_pred",), scores=...)

    state: {name: object with a state_dict, or None}; extra: values that are saved with a checkpoint
    and restored from it, to be read and changed as progress.extra; log_lines: lines of the log for
    the stage; progress.logged: the values of the last line, tensors as numbers or lists.
    """

    def __init__(self, journal, stage, num_steps, state, device, log_lines=10, **extra):
        self.journal, self.stage, self.num_steps = journal, stage, num_steps
        self.state, self.device = state, device
        self.start_step, saved = journal.restore(stage, state)
        if not 0 <= self.start_step <= num_steps:
            raise UserError(f"{journal.folder}: stage {stage} was saved at step {self.start_step} "
                            f"of {num_steps}. Use --overwrite to start over")
        self.extra = extra | saved.get("extra", {})
        self.logged = saved.get("logged", {})
        self.start_time = time.perf_counter() - saved.get("seconds", 0)
        self.loss_sums = torch.as_tensor(saved.get("loss_sums", 0.0), device=device)
        self.last_losses = torch.zeros(())
        self.first = self.last_line = self.start_step, self.seconds()
        self.log_every = max(1, num_steps // log_lines)
        self.step = self.start_step

    def steps(self, dataset, cfg):
        """Yield (step, (indices, batch)) of training_batches, counted from 1.

        After each step a checkpoint is written if it is due.
        """
        self.print_least_time(cfg, dataset)
        batches = training_batches(dataset, cfg.batch_size, cfg.seed, self.num_steps,
                                   self.start_step)
        for step, batch in self.journal.steps(batches, self.stage, self.num_steps, self.start_step):
            self.step = step
            is_last = step == self.num_steps
            self.should_log = is_last or step % self.log_every == 0
            self.should_save = is_last
            yield step, batch
            self.save_if_due()
            if step == self.start_step + 1:
                # the first step also fills the cache of the teacher's outputs: it does not count
                self.first = self.last_line = step, self.seconds()
            elif step == self.start_step + ESTIMATE_STEPS:
                self.print_estimate(cfg, len(dataset))

    def seconds_per_step(self, since):
        """Return the mean time of the steps since then, a pair (step, seconds)."""
        step, seconds = since
        return (self.seconds() - seconds) / max(self.step - step, 1)

    def later_stages(self, cfg):
        """Return the stages that follow this one, of those that cfg has."""
        later = STAGES[STAGES.index(self.stage) + 1:] if self.stage in STAGES else []
        return [stage for stage in later if hasattr(cfg, f"{stage}_epochs")]

    def print_least_time(self, cfg, dataset):
        """Say before the first step if a run of cofi.py will take hours on a CPU: the time of its
        matrix products alone, of what is open, at the speed of a large product.
        """
        later = self.later_stages(cfg)
        if self.device.type != "cpu" or "finetune" not in later or self.start_step:
            return
        steps = {stage: cfg.num_steps(stage, len(dataset)) for stage in [self.stage, *later]}
        # the mean of t over the pruning stage, as a share of its rise
        risen = 1 - cfg.mask_start - cfg.sparsity_warmup / 2
        if cfg.structure != "learned":
            risen = 1
        targets = cfg.sparsities()
        ramps = list(zip([0.0, *targets], targets))
        dense_steps = 0                     # as many steps of the whole network take as long
        if self.stage == "teacher":
            dense_steps = steps["teacher"]
        else:
            ramps = ramps[-1:]
        for before, last in ramps:
            dense_steps += steps["prune"] * (1 - before - (last - before) * risen)
            dense_steps += steps["finetune"] * (1 - last)
        weights = sum(p.numel() for p in self.state["bert"].layers.parameters() if p.dim() == 2)
        tokens = len(dataset.input_ids) / math.ceil(len(dataset) / cfg.batch_size)
        # forward, and twice that backward; a multiply-add is two operations
        operations = 2 * 3 * weights * tokens * dense_steps
        if operations < LONG_RUN_ON_CPU * SLOWEST_CPU:
            return
        least = operations / product_speed(self.device, cfg.bf16)
        if least > LONG_RUN_ON_CPU:
            self.journal.tell(f"{self.stage:9} at least {duration(least)} on this CPU, with "
                              f"{' and '.join(later)}. {LAPTOP}")

    def print_estimate(self, cfg, num_examples):
        """Say how long a long run will take, if all of its steps take as long as those so far."""
        per_step = self.seconds_per_step(self.first)
        left = per_step * (self.num_steps - self.step)
        text = f"about {duration(left)} left"
        later = self.later_stages(cfg)
        if later:
            runs = cfg.num_runs() if self.stage == "teacher" else 1
            left += runs * per_step * sum(cfg.num_steps(stage, num_examples) for stage in later)
            text += f", {duration(left)} with {' and '.join(later)}"
        if left > LONG_RUN_ON_CPU and self.device.type == "cpu":
            text += f". {LAPTOP}"
        if left > LONG_RUN:
            self.journal.tell(f"{self.stage:9} {per_step:.2f} seconds for a step: {text}")

    def seconds(self):
        return time.perf_counter() - self.start_time

    def check_finite(self, loss, grad_norm):
        """Raise UserError if the loss or the gradient of the weights is not finite.

        A GPU is asked only every 50 steps, before a line of the log and before a checkpoint: a
        checkpoint never holds spoilt weights. Therefore it is decided here, too, whether this step
        is saved.
        """
        self.should_save = self.should_save or self.journal.should_save()
        is_due = self.should_log or self.should_save or self.step % FINITE_CHECK_STEPS == 0
        if self.device.type != "cpu" and not is_due:
            return
        loss = loss.detach()
        if not (loss + grad_norm).isfinite():
            raise UserError(
                f"Non-finite loss at step {self.step} of {self.stage} (loss {loss.item():g}, "
                f"gradient norm {grad_norm.item():g}, losses of the step before "
                f"{self.last_losses.tolist()}). The last checkpoint is intact. Try a lower "
                "learning rate or --no-bf16")

    def add(self, losses):
        """Add the losses of this step, a detached tensor, to the running sums."""
        self.last_losses = losses
        self.loss_sums = self.loss_sums + losses

    def log(self, loss_names, **values):
        """Write a line of the log: the mean losses since the line above, and other values."""
        steps = self.step % self.log_every or self.log_every
        means = dict(zip(loss_names, (self.loss_sums / steps).tolist()))
        self.loss_sums = torch.zeros_like(self.loss_sums)
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                values[name] = value.tolist()
        self.logged = values
        per_step = self.seconds_per_step(self.last_line)
        self.last_line = self.step, self.seconds()
        self.journal.log({"stage": self.stage, "step": self.step, "of": self.num_steps, **means,
                          **values, "seconds": self.seconds(), "seconds_per_step": per_step,
                          "left": (self.num_steps - self.step) * per_step})

    def save_if_due(self):
        """Write a checkpoint at the end of the stage, every few minutes, and on Ctrl-C."""
        if self.should_save:
            self.journal.save(self.stage, self.step, self.state, {
                "extra": self.extra, "logged": self.logged, "loss_sums": self.loss_sums,
                "seconds": self.seconds()})
