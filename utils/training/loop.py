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
from typing import Protocol

import torch
from torch import nn

from kernels.linear_cross_entropy import LossSums, Signals
from utils.config.training import TrainingConfig
from utils.pipeline.errors import Stopped
from utils.pipeline.stage import Stage
from utils.training.checkpoint import STATE, CheckpointStore, Snapshot, fatal_load, read_snapshot, write_lines
from utils.training.gradients import SMALLEST_WEIGHT, GradientStep, SignalStep, Totals
from utils.training.loss import Batch, LossModel, Objective, mean_loss, next_token_loss, sum_losses
from utils.training.machine import Machine, after_step, kernels_of
from utils.training.progress import Progress, StepReport
from utils.training.rng import capture_rng, restore_rng
from utils.training.rows import Rows, micro_batch_rows
from utils.training.skips import Skips
from utils.training.speed import speed_of
from utils.training.state import (
    frozen_digest,
    load_model_tensors,
    load_optimizer_tensors,
    model_tensors,
    optimizer_tensors,
    trainable_parameters,
)

__all__ = ["Trainer", "mean_loss", "next_token_loss"]

AUTO_INTERVALS = 20


class Schedule(Protocol):
    """The number of optimizer steps, how many of them warm up, and the learning rate of each, from 0."""

    steps: int
    warmup_steps: int

    def __call__(self, step: int) -> float: ...


class Trainer:
    """
    Iterates over optimizer steps: (finished steps, loss). Rank 0 alone writes.

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
        self.records: dict[str, list[dict]] = {"history": []}
        self.micro_rows = micro_batch_rows(config.micro_batch_rows, rows.batch_rows, self.machine.num_ranks)
        keeps_best = config.keep_best or config.publish == "best"
        self._store = CheckpointStore(stage, config.keep_last, keeps_best)
        self.skips = Skips(
            stage, config.max_consecutive_skips, self.machine.rank == 0, self._store.newest_name
        )
        self._frozen = frozen_digest(model)
        wrapped = self.machine.wrap(LossModel(model, loss, self.machine.precision))
        step_of = SignalStep if config.optimizer.kind == "velvet" else GradientStep
        self._gradients = step_of(
            wrapped,
            optimizer,
            trainable_parameters(model),
            self.machine,
            config.optimizer.max_gradient_norm,
            lambda: stage.stopping,
        )
        self._kernels = (*self.machine.kernels, *kernels_of(model, config.kernels))
        for kernel in (each for each in self._kernels if each.fell_back):
            stage.log("warning", f"kernel {kernel.kernel}: torch instead of Triton ({kernel.reason})")
        self._progress = Progress(stage, config, schedule.steps, loss.unit)
        self._eval_every = _interval(config.eval_every_steps, schedule.steps)
        self._save_every = _interval(config.save_every_steps, schedule.steps)
        self._saved_at, self._save_now, self._stop_code = time.monotonic(), False, 0

    def measure_speed(self, flops_per_token: float) -> None:
        """From here on report tokens/s as shares of what this machine can do; takes a third of a second."""
        self._progress.speed = speed_of(self.machine, flops_per_token)

    # the loop -----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[tuple[int, float]]:
        self._progress.start(self.step)
        self.model.train()
        while self.step < self.schedule.steps:
            before = self._position()
            report = None if self._asked_to_stop() else self._take_step()
            if report is None:
                self._leave(before)
            self.skips.count(self.step, report.row["skipped"], before[0], self.records["history"])
            self._progress.report(report)
            yield self.step, report.loss

    def _take_step(self) -> StepReport | None:
        """One optimizer step, or None when asked to stop in the middle: what was accumulated is discarded."""
        started = time.perf_counter()
        batches = self.rows.next_step(self.machine.rank, self.machine.num_ranks, self.micro_rows)
        (weight,) = self.machine.sum([sum(self.loss.weigh(batch) for batch in batches)])
        parts = self._gradients.accumulate(batches, weight)
        if parts is None:
            return None
        totals = self._totals(parts, weight)
        learning_rate = self.schedule(self.step)
        update = self._gradients.update(totals, learning_rate, self.step < self.schedule.warmup_steps)
        after_step(self.model)
        self.step, self.tokens = self.step + 1, self.tokens + weight
        row = {"loss": totals.loss, "lr": learning_rate, "grad_norm": update.norm}
        row |= {"tokens": int(self.tokens), "skipped": not math.isfinite(update.norm)}
        row |= update.numbers | totals.extras
        row = {name: value if math.isfinite(value) else None for name, value in row.items()}
        self.records["history"].append({"step": self.step} | row)
        return StepReport(self.step, totals.loss, row, weight, time.perf_counter() - started)

    def _totals(self, parts: list[LossSums], weight: float) -> Totals:
        """
        Loss, extras and signals over all processes; the same exchange carries who wants to stop and who wants
        to save.
        """
        names = sorted(parts[0].extras)
        local = [sum(float(part.loss_sum.detach()) for part in parts)]
        local += [sum(float(part.extras[name]) for part in parts) for name in names]
        followed = [part.signals or Signals(math.nan, math.nan, math.nan) for part in parts]
        local += [sum(map(float, column)) for column in zip(*followed, strict=True)]
        wishes = [float(self.stage.stop_request.exit_code == code) for code in (75, 130)]
        overdue = time.monotonic() - self._saved_at > 60 * self.config.save_every_minutes
        loss, *rest = self.machine.sum([*local, *wishes, float(overdue and self.machine.rank == 0)])
        *extras, nats, entropy, targets, terminated, interrupted, save = rest
        if self.machine.num_ranks > 1:
            self._stop_code = 130 if interrupted else 75 if terminated else 0
        self._save_now = self._save_now or bool(save)
        weight = max(weight, SMALLEST_WEIGHT)
        means = {name: value / weight for name, value in zip(names, extras, strict=True)}
        return Totals(loss / weight, means, Signals(nats, entropy, targets))

    # evaluation ---------------------------------------------------------------------------------------------

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation belongs after this step: every interval and after the last."""
        return step % self._eval_every == 0 or step == self.schedule.steps

    def validate(self, batches: Iterable[Batch]) -> float:
        """Mean loss over `batches`, which the processes share; the same on all of them."""
        mine = (batch for i, batch in enumerate(batches) if i % self.machine.num_ranks == self.machine.rank)
        total, weight = self.machine.sum(
            list(sum_losses(self.model, mine, self.loss, self.machine.precision))
        )
        return total / max(weight, 1.0)

    def observe(self, val_loss: float, **numbers: float) -> None:
        """Record an evaluation; the lowest `val_loss` so far makes this step the best."""
        numbers = {"val_loss": val_loss, **numbers}
        is_best = math.isfinite(val_loss) and val_loss < self.best.get("val_loss", math.inf)
        if is_best:
            self.best = {"step": self.step, "val_loss": val_loss}
            self._save_now = self._save_now or (self._store.keeps_best and self.step > 0)
        self.record("history", numbers)
        self._progress.report_evaluation(self.step, numbers, is_best)

    def record(self, name: str, row: dict) -> None:
        """
        One line of <name>.jsonl in checkpoints and artifact; a resumed run has each once. Nothing from a
        clock.
        """
        self.records.setdefault(name, []).append({"step": self.step} | row)

    # saving and resuming ------------------------------------------------------------------------------------

    def resume(self) -> bool:
        """
        Continue from the newest checkpoint; False when there is none. A checkpoint that does not load ends
        the run.
        """
        if self.machine.rank == 0:
            self._store.sweep()
        folder = self._store.newest()
        if folder is not None:
            fatal_load(folder, lambda: self._restore(read_snapshot(folder)))
            self.stage.log("resuming", f"from {folder.name}", step=self.step)
        if self.machine.rank == 0:
            self._store.discard_after(self.step)
            self._progress.open(self.step)
        return folder is not None

    def save_if_due(self) -> None:
        """
        A checkpoint after a new best, every interval, after the minutes of the config, and after the last
        step.
        """
        last = self.step == self.schedule.steps
        if self._save_now or last or self.step % self._save_every == 0:
            self.save()

    def save(self) -> None:
        """Write a checkpoint of the current step."""
        self._write(self._position())

    def finish(self) -> dict:
        """
        Put the published weights into the model, write the records, and return what the manifest says of the
        run.
        """
        if self.config.publish == "best" and self.best.get("step", self.step) != self.step:
            folder = self._store.of_step(self.best["step"])
            fatal_load(folder, lambda: load_model_tensors(self.model, read_snapshot(folder).model))
        if self.machine.rank == 0:
            for name, rows in self.records.items():
                write_lines(self.stage.partial / f"{name}.jsonl", rows)
            self.stage.run_info(kernels={each.kernel: each.record() for each in self._kernels})
            self._progress.close()
        self.machine.barrier()
        losses = [row["loss"] for row in self.records["history"] if "loss" in row]
        best = {f"best_{name}": value for name, value in self.best.items()}
        counts = {"steps": self.step, "trained_tokens": int(self.tokens), "skipped_steps": self.skips.total}
        resolved = {"precision": self.machine.precision.name, "published": self.config.publish}
        return counts | resolved | {"final_train_loss": losses[-1]} | best

    def _position(self) -> tuple[dict, dict]:
        """Data cursor and random state, as they are between two steps."""
        return self.rows.cursor(), capture_rng()

    def _write(self, position: tuple[dict, dict]) -> None:
        cursor, rng = position
        ranks = self.machine.gather(rng)
        if self.machine.rank == 0:
            weights, moments = model_tensors(self.model), optimizer_tensors(self.optimizer, self.model)
            chain = {"cursor": cursor, "best": self.best, "state": self._state(), "records": self.records}
            self._store.write(Snapshot(self.step, int(self.tokens), weights, moments, ranks, **chain))
        self.machine.barrier()
        self._saved_at, self._save_now = time.monotonic(), False

    def _state(self) -> dict:
        return self.skips.state() | {
            "micro_rows": self.micro_rows,
            "frozen": self._frozen,
            "precision": self.machine.precision.name,
            "ranks": self.machine.num_ranks,
        }

    def _restore(self, snapshot: Snapshot) -> None:
        state = snapshot.state
        for name, ours in (("frozen", self._frozen), ("precision", self.machine.precision.name)):
            if state[name] != ours:
                raise ValueError(f"{STATE}: {name} was {state[name][:12]}, this run has {ours[:12]}")
        load_model_tensors(self.model, snapshot.model)
        load_optimizer_tensors(self.optimizer, self.model, snapshot.optimizer)
        self.rows.restore(snapshot.cursor)
        self.step, self.tokens = snapshot.step, float(snapshot.tokens)
        self.best, self.records = snapshot.best, snapshot.records
        self.skips.restore(state)
        if self.config.micro_batch_rows == "auto" and state["ranks"] == self.machine.num_ranks:
            self.micro_rows = state["micro_rows"]
        if self.machine.rank < len(snapshot.rng):
            restore_rng(snapshot.rng[self.machine.rank])

    # stopping -----------------------------------------------------------------------------------------------

    def _asked_to_stop(self) -> bool:
        """One process asks its own signals, several what they agreed on in the last step."""
        return self.stage.stopping if self.machine.num_ranks == 1 else bool(self._stop_code)

    def _leave(self, position: tuple[dict, dict]) -> None:
        self._write(position)
        self.stage.log("stopping", f"checkpoint of step {self.step} written", step=self.step)
        raise Stopped(self._stop_code or self.stage.stop_request.exit_code)


def _interval(asked: int | str, steps: int) -> int:
    return max(1, round(steps / AUTO_INTERVALS)) if asked == "auto" else asked
