"""
The one loop that trains everything: base models, adapters, preferences.

    trainer = Trainer(model, rows, optimizer, schedule, config, stage, loss=next_token_loss)
    trainer.resume()
    for step, loss in trainer:
        if trainer.evaluates(step):
            trainer.observe(trainer.validate(val_batches))
        trainer.save_if_due()
    metrics = trainer.finish()

The loss of an optimizer step is loss_sum / weight over its global batch, where the weight is counted from ids
before the first forward pass. Micro-batch i contributes loss_sum_i x processes / weight to the gradient (the
factor undoes the mean that wrappers take), so any split of the same rows over micro-batches and processes
gives the same step.
"""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from utils.config.training import TrainingConfig
from utils.pipeline.errors import ConfigError, Stopped
from utils.pipeline.stage import Stage
from utils.training.agreement import Agreement
from utils.training.checkpoint import CheckpointStore, fatal_load, read_snapshot, write_lines
from utils.training.execution import Execution
from utils.training.gradients import GradientStep, SignalStep, total
from utils.training.late import StepClock
from utils.training.launched import LaunchedStep
from utils.training.loss import Batch, LossModel, Objective, mean_loss, next_token_loss, sum_losses
from utils.training.machine import Machine, after_step, kernels_of
from utils.training.overfitting import OverfittingWatch
from utils.training.progress import Progress
from utils.training.rng import capture_rng
from utils.training.rows import Rows, join_cursors
from utils.training.runstate import load, restore, take_snapshot
from utils.training.skips import Skips
from utils.training.speed import speed_of
from utils.training.state import frozen_digest, load_model_tensors, trainable_parameters
from utils.training.timing import Due, Schedule

__all__ = ["Trainer", "mean_loss", "next_token_loss"]

T = TypeVar("T")


class Trainer:
    """
    Iterates over optimizer steps: (finished steps, loss). Rank 0 alone writes.

    `loss` is a tensor without dimensions on the device. The loop itself reads the numbers of a step one step
    later, or when somebody looks at `records`, so it never waits for the device inside a step.
    `rows` gives the batches (only `loss` looks into them), `schedule` the number of steps and their learning
    rates.
    """

    def __init__(
        self,
        model: nn.Module,
        rows: Rows,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        config: TrainingConfig,
        stage: Stage,
        loss: Objective = next_token_loss,
    ) -> None:
        self.model, self.rows, self.optimizer, self.schedule = model, rows, optimizer, schedule
        self.config, self.stage, self.loss = config, stage, loss
        self.machine = Machine.of(config)
        self.step, self.tokens, self.best = 0, 0.0, {}
        self.unevaluated = False  # whether the evaluation of this step was left to the next process
        self._records: dict[str, list[dict]] = {"history": []}
        self._pending: LaunchedStep | None = None
        self._loss_model = LossModel(model, loss, self.machine.precision, config.document_attention)
        self.execution = Execution(self._loss_model, rows, config, self.machine, stage, schedule.steps)
        keeps_best = config.keep_best or config.publish == "best"
        self._store = CheckpointStore(stage, config.keep_last, keeps_best)
        self.skips = Skips(
            stage, config.max_consecutive_skips, self.machine.rank == 0, self._store.newest_name
        )
        self.scaler = self.machine.scaler()
        step_of = SignalStep if config.optimizer.kind == "velvet" else GradientStep
        self._gradients = step_of(
            self.machine.wrap(self._loss_model, optimizer),
            optimizer,
            trainable_parameters(model),
            self.scaler,
            self.machine,
            config.optimizer.max_gradient_norm,
            lambda: stage.stopping,
        )
        self.frozen = frozen_digest(model)  # sharded weights of a new model exist only once it is wrapped
        with self.machine.precision.autocast():  # which product of experts runs depends on the dtype
            self._kernels = (*self.machine.kernels, *kernels_of(model, config.kernels))
        for kernel in (each for each in self._kernels if each.fell_back):
            stage.log("warning", f"kernel {kernel.kernel}: torch instead of Triton ({kernel.reason})")
        self._due = Due.of(config, schedule.steps)
        self._progress = Progress(stage, config, self._due, loss.unit, rows.epochs, self.machine.device)
        self._agreement = Agreement(stage, self.machine, config.save_every_minutes)
        self.watch = OverfittingWatch(stage, config)

    def measure_speed(self, flops_per_token: float) -> None:
        """From here on report tokens/s as shares of what this machine can do; takes a third of a second."""
        self._progress.speed = speed_of(self.machine, flops_per_token)

    # the loop -----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        self.execution.settle()
        self._agreement.ask()
        self.model.train()
        newest: LaunchedStep | None = None
        if self.unevaluated:
            self.unevaluated = False
            loss = self.records["history"][-1]["loss"]
            yield self.step, self.machine.number(math.nan if loss is None else loss)
        while not self.is_over:
            before = self._position()
            with self.execution.memory_watched(self.step + 1):
                launched = None if self._agreement.stopping else self._launch(before[0])
            if launched is None:
                self._leave(before)
            self._settle()
            self._agreement.hear(newest)
            newest = self._pending = launched
            finished = time.perf_counter()
            yield self.step, launched.loss
            self._progress.pause(self.step, time.perf_counter() - finished)
        self._settle()

    def _launch(self, cursor: dict) -> LaunchedStep | None:
        """One optimizer step, or None when asked to stop in the middle: what was accumulated is discarded."""
        clock = StepClock(self.machine.device)
        batches = self.rows.next_step(self.machine.rank, self.machine.num_ranks, self.execution.micro_rows)
        local = self.machine.number(sum(self.loss.weigh(batch) for batch in batches))
        weight = self.machine.total(local)
        parts = self._gradients.accumulate(batches, weight)
        if parts is None:
            return None
        totals = total(parts, weight, self._agreement.wishes(), self.machine)
        learning_rate = self.schedule(self.step)
        update = self._gradients.update(totals, learning_rate, self.step < self.schedule.warmup_steps)
        after_step(self.model, update.skipped)
        self.step += 1
        clock.stop()
        return LaunchedStep.of(self.step, learning_rate, cursor, clock, weight, totals, update)

    def _settle(self) -> None:
        """Take note of the last launched step, which waits for its numbers."""
        if self._pending is None:
            return
        launched, self._pending = self._pending, None
        report = launched.report(self.tokens)
        self.tokens += report.weight
        self._records["history"].append({"step": report.step} | report.row)
        self.skips.count(report.row, self._records["history"], launched.cursor, self.rows.row_ids)
        self._progress.report(report)

    @property
    def records(self) -> dict[str, list[dict]]:
        """The lines of history.jsonl and its kind up to this step; waits for the device."""
        self._settle()
        return self._records

    @records.setter
    def records(self, records: dict[str, list[dict]]) -> None:
        self._records = records

    @property
    def is_over(self) -> bool:
        """Whether there is no further step: all are done, or evaluations have stopped getting better."""
        return self.step >= self.schedule.steps or self.watch.is_over

    # evaluation ---------------------------------------------------------------------------------------------

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation belongs after this step: every interval and after the last."""
        return self._due.evaluates(step)

    def validate(self, batches: Iterable[Batch]) -> float:
        """
        Mean loss over `batches`, which the processes share; the same on all of them. Documents are isolated
        whatever the config says of training. Leaves when asked to stop, also between two batches.
        """
        with self.whole_model():
            found = sum_losses(self.model, self._share(batches), self.loss, self.machine.precision)
        self.leave_if_asked()
        total, weight = self.machine.sum(list(found))
        return total / max(weight, 1.0)

    def _share(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Every num_ranks-th batch, until somebody wants to stop."""
        ranks, remaining = self.machine.num_ranks, iter(batches)
        for group in self.until_asked(iter(lambda: list(islice(remaining, ranks)), [])):
            yield from group[self.machine.rank : self.machine.rank + 1]

    def until_asked(self, items: Iterable[T]) -> Iterator[T]:
        """The items up to where somebody wants to stop; all processes must go through equally many."""
        for item in items:
            self._agreement.ask()
            if self._agreement.stopping:
                return
            yield item

    def leave_if_asked(self) -> None:
        """
        Before an evaluation is recorded: save and go if somebody wants to stop. The next process begins with
        that evaluation.
        """
        self._agreement.ask()
        if self._agreement.stopping:
            self.unevaluated = True
            self._leave(self._position())

    @contextmanager
    def whole_model(self) -> Iterator[None]:
        """The region in which a process may run the model without the others; all must enter it."""
        with self.execution.examination_watched(self.step), self.machine.whole(self._loss_model):
            yield

    def observe(self, val_loss: float, **numbers: float) -> None:
        """
        Record an evaluation; the lowest `val_loss` after a step makes that step the best. The weights before
        the first step are no candidate.
        """
        numbers = {"val_loss": val_loss, **numbers}
        lowest = self.best.get("val_loss", math.inf) if self.step else -math.inf
        is_best = math.isfinite(val_loss) and val_loss < lowest
        if is_best:
            self.best = {"step": self.step, "val_loss": val_loss}
            self._agreement.save_now |= self._store.keeps_best
        self.record("history", numbers)
        self._progress.report_evaluation(self.step, numbers, is_best)
        self.watch.look(self.records["history"], self.best)

    def record(self, name: str, row: dict) -> None:
        """
        One line of <name>.jsonl in checkpoints and artifact; a resumed run has each once. Nothing from a
        clock.
        """
        self.records.setdefault(name, []).append({"step": self.step} | row)

    # saving and resuming ------------------------------------------------------------------------------------

    def resume(self) -> bool:
        """
        Continue from the newest checkpoint; False when there is none, or only one from before the first
        evaluation. A checkpoint that does not load ends the run.
        """
        if self.machine.rank == 0:
            self._store.sweep()
        folder = self._store.newest()
        if folder is not None:
            fatal_load(folder, lambda: restore(self, read_snapshot(folder)))
            self.stage.log("resuming", f"from {folder.name}", step=self.step)
            self.watch.look(self.records["history"], self.best)
        if self.machine.rank == 0:
            self._store.discard_after(self.step)
            self._store.point_to_best(self.best)
            self.skips.cut_after(self.step)
            self._progress.open(self.step)
        self.execution.settle()
        begins = folder is None or (self.unevaluated and self.step == 0)
        self.unevaluated = self.unevaluated and not begins
        return not begins

    def adopt(self, folder: Path) -> None:
        """
        Start at step 0 from the weights, moments and place in the data of another run's checkpoint.
        ConfigError when they do not fit this run.
        """
        try:
            load(self, read_snapshot(folder))
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise ConfigError(f"{folder.name} does not fit this run: {error}") from error

    def save_if_due(self) -> None:
        """A checkpoint after a new best, every interval, some minutes, and after the last step."""
        if self._agreement.save_now or self.is_over or self._due.saves(self.step):
            self.save()

    def save(self) -> None:
        """Write a checkpoint of the current step."""
        self._write(self._position())

    def finish(self) -> dict:
        """
        Put the published weights into the model, write the records, and return what the manifest says of the
        run.
        """
        self.machine.together(self._store.wait)
        if self.config.publish == "best" and self.best.get("step", self.step) != self.step:
            folder = self._store.of_step(self.best["step"])
            fatal_load(folder, lambda: load_model_tensors(self.model, read_snapshot(folder).model))
        self.machine.make_whole(self.model)
        self.machine.together(self._write_records)
        losses = [row["loss"] for row in self.records["history"] if "loss" in row]
        best = {f"best_{name}": value for name, value in self.best.items()}
        counts = {"steps": self.step, "trained_tokens": int(self.tokens), **self.skips.figures()}
        resolved = {"precision": self.machine.precision.name, "published": self.config.publish}
        return counts | resolved | {"final_train_loss": losses[-1]} | best | self.watch.figures()

    def _write_records(self) -> None:
        if self.machine.rank:
            return
        for name, rows in self.records.items():
            write_lines(self.stage.partial / f"{name}.jsonl", rows)
        self.stage.run_info(kernels={each.kernel: each.record() for each in self._kernels})
        self.stage.run_info(execution=self.execution.record())
        self._progress.close()

    def _position(self) -> tuple[dict, dict]:
        """Data cursor and random state, as they are between two steps."""
        return self.rows.cursor(), capture_rng()

    def _write(self, position: tuple[dict, dict], seconds: float | None = None) -> None:
        """
        Hand the state to the writer, unless that is busy with the checkpoint before for so long. What ends
        the run here, skipped steps or a writer's error, ends it on all processes.
        """
        self._settle()
        cursors, ranks = zip(*self.machine.gather(position), strict=True)
        free = self.machine.together(lambda: self._store.wait(seconds)) and self.machine.rank == 0
        if free or self.machine.sharded:  # a tensor in parts is put together by all
            snapshot = take_snapshot(self, join_cursors(cursors), list(ranks))
        if free:
            self._store.write(snapshot)
        self._agreement.saved(self.step)

    # stopping -----------------------------------------------------------------------------------------------

    def _leave(self, position: tuple[dict, dict]) -> None:
        """Save, wait for the seal as long as there is time, and go; the last sealed checkpoint stands."""
        code, deadline = self._agreement.exit_code, self.config.preempt_deadline_seconds
        self._write(position, self._agreement.seconds_left(deadline))
        sealed = self.machine.together(lambda: self._store.wait(self._agreement.seconds_left(deadline)))
        late = f"was not sealed within {deadline:g} s; {self._store.newest_name()} stands"
        text = f"checkpoint of step {self.step} {'written' if sealed else late}"
        self.stage.log("stopping", text, step=self.step)
        raise Stopped(code)
