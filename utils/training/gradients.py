"""
The inside of an optimizer step: gradients of a global batch in pieces, clipped, applied or refused as a
whole.

    scaler = precision.scaler()
    gradients = GradientStep(wrapped, optimizer, parameters, scaler, machine, 1.0, lambda: stage.stopping)
    parts = gradients.accumulate(batches, weight)        # None: asked to stop, nothing was applied
    totals = total(parts, weight, wishes, machine)
    update = gradients.update(totals, learning_rate, warming=False)     # norm not finite: nothing was applied

`SignalStep` is the same for an optimizer that clips, refuses and follows the predictions by itself.
Everything here is a tensor on the device; whether a step is skipped is a flag that the update reads there.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kernels.linear_cross_entropy import LossSums, Signals
from utils.pipeline.errors import StageError
from utils.training.dtensor import undivided
from utils.training.loss import Batch
from utils.training.machine import Machine

LOSS_SCALE = "loss_scale"
SMALLEST_WEIGHT = 1e-9  # a batch without targets has loss 0, not 0 / 0
UNKNOWN = Signals(float("nan"), float("nan"), float("nan"))


class Totals(NamedTuple):
    """Over processes and micro-batches of a step, fp64: mean loss, means to log, sums to follow, wishes."""

    loss: Tensor
    extras: dict[str, Tensor]
    signals: Signals
    wishes: list[Tensor]


class Update(NamedTuple):
    """What became of a step: the norm before clipping, whether nothing was applied, and numbers to log."""

    norm: Tensor
    skipped: Tensor
    numbers: dict[str, Tensor]


def total(parts: list[LossSums], weight: Tensor, wishes: Sequence[float], machine: Machine) -> Totals:
    """Sum the parts over micro-batches and processes; one exchange carries the wishes of all as well."""
    names = sorted(parts[0].extras)
    columns = [[part.loss_sum for part in parts], *([part.extras[name] for part in parts] for name in names)]
    columns += zip(*(part.signals or UNKNOWN for part in parts), strict=True)
    columns += [[wish] for wish in wishes]
    local = torch.stack([sum(machine.number(value) for value in column) for column in columns])
    loss, *rest = machine.total(local).unbind()
    extras, signals, agreed = rest[: len(names)], rest[len(names) : len(names) + 3], rest[len(names) + 3 :]
    weight = weight.clamp(min=SMALLEST_WEIGHT)
    means = {name: value / weight for name, value in zip(names, extras, strict=True)}
    return Totals(loss / weight, means, Signals(*signals), agreed)


class GradientStep:
    """
    Backward over micro-batches and one update.

    `wrapped` is the LossModel that averages gradients over the processes; `parameters` are those that train;
    `scaler` keeps fp16 gradients away from zero and does nothing in other precisions.
    """

    def __init__(
        self,
        wrapped: nn.Module,
        optimizer: torch.optim.Optimizer,
        parameters: dict[str, nn.Parameter],
        scaler: torch.amp.GradScaler,
        machine: Machine,
        max_norm: float,
        stopping: Callable[[], bool],
    ) -> None:
        self.optimizer, self.parameters, self.scaler = optimizer, parameters, scaler
        self._wrapped, self._machine, self._max_norm, self._stopping = wrapped, machine, max_norm, stopping

    def accumulate(self, batches: list[Batch], weight: Tensor) -> list[LossSums] | None:
        """
        Backward through every micro-batch; gradients are exchanged in the last one only.

        None when a single process was asked to stop between two of them: what was accumulated is discarded.
        """
        parts, scale = [], self._machine.num_ranks / weight.clamp(min=SMALLEST_WEIGHT)
        for batch in batches[:-1]:
            with self._machine.without_sync(self._wrapped):
                parts.append(self.backward(batch, scale))
            if self._machine.num_ranks == 1 and self._stopping():
                self.optimizer.zero_grad()
                return None
        return [*parts, self.backward(batches[-1], scale)]

    def backward(self, batch: Batch, scale: Tensor) -> LossSums:
        """
        Add the gradient of one micro-batch. The factor in `scale` undoes the wrapper's mean over processes.
        """
        sums = self._wrapped(batch)
        objective = sums.loss_sum if sums.auxiliary is None else sums.loss_sum + sums.auxiliary
        self.scaler.scale(objective * scale.to(objective.dtype)).backward()
        return sums

    def update(self, totals: Totals, learning_rate: float, warming: bool) -> Update:
        """Clip and step; a gradient or loss that is not finite changes nothing."""
        self._check()
        numbers = self._loss_scale()
        self.scaler.unscale_(self.optimizer)
        norm = undivided(torch.nn.utils.get_total_norm([each.grad for each in self.parameters.values()]))
        skipped = ~(norm.isfinite() & totals.loss.isfinite())
        torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self._max_norm, norm)
        self._set(learning_rate)
        self._step_unless(skipped)
        self.scaler.update()
        self.optimizer.zero_grad()
        return Update(norm, skipped, numbers)

    def _loss_scale(self) -> dict[str, Tensor]:
        """The factor on the loss of this step, where there is one."""
        enabled = self.scaler.is_enabled()
        return {LOSS_SCALE: self.scaler.scale(torch.ones((), device=self._machine.device))} if enabled else {}

    def _step_unless(self, skipped: Tensor) -> None:
        """An optimizer that reads no flag on the device (torch's outside its fused kernels) waits for it."""
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):
            self.optimizer.found_inf = skipped.float()
            self.optimizer.step()
        elif not skipped:
            self.optimizer.step()

    def _set(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    def _check(self) -> None:
        """A parameter without a gradient is a branch cut off from the loss."""
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                raise StageError(f"{name} gets no gradient: it is cut off from the loss")


class SignalStep(GradientStep):
    """The update of Velvet (utils/optim/velvet.py)."""

    def update(self, totals: Totals, learning_rate: float, warming: bool) -> Update:
        """Step with the signals of this step; a loss that is not finite is one that says nothing."""
        self._set(learning_rate)
        finite = totals.loss.isfinite()
        known = Signals(*(each.where(finite, torch.nan) for each in totals.signals))
        numbers = self._loss_scale()
        self.scaler.step(self.optimizer, known, warming=warming)
        self.scaler.update()
        self.optimizer.zero_grad()
        numbers |= self.optimizer.measured()
        return Update(numbers.pop("grad_norm"), numbers.pop("skipped") != 0, numbers)
