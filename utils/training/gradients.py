"""
The inside of an optimizer step: gradients of a global batch in pieces, clipped, applied or refused as a
whole.

    gradients = GradientStep(wrapped, optimizer, parameters, machine, 1.0, lambda: stage.stopping)
    parts = gradients.accumulate(batches, weight)        # None: asked to stop, nothing was applied
    update = gradients.update(totals, learning_rate, warming=False)     # norm not finite: nothing was applied

`SignalStep` is the same for an optimizer that clips, refuses and follows the predictions by itself.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from kernels.linear_cross_entropy import LossSums, Signals
from utils.pipeline.errors import StageError
from utils.training.loss import Batch
from utils.training.machine import Machine

SMALLEST_WEIGHT = 1e-9  # a batch without targets has loss 0, not 0 / 0


class Totals(NamedTuple):
    """Over all processes and micro-batches of a step: mean loss, means to log, sums to follow."""

    loss: float
    extras: dict[str, float]
    signals: Signals


class Update(NamedTuple):
    """What became of a step: the norm before clipping, NaN where nothing was applied, and numbers to log."""

    norm: float
    numbers: dict[str, float]


class GradientStep:
    """
    Backward over micro-batches and one update.

    `wrapped` is the LossModel that averages gradients over the processes; `parameters` are those that train.
    """

    def __init__(
        self,
        wrapped: nn.Module,
        optimizer: torch.optim.Optimizer,
        parameters: dict[str, nn.Parameter],
        machine: Machine,
        max_norm: float,
        stopping: Callable[[], bool],
    ) -> None:
        self.optimizer, self.parameters = optimizer, parameters
        self._wrapped, self._machine, self._max_norm, self._stopping = wrapped, machine, max_norm, stopping

    def accumulate(self, batches: list[Batch], weight: float) -> list[LossSums] | None:
        """
        Backward through every micro-batch; gradients are exchanged in the last one only.

        None when a single process was asked to stop between two of them: what was accumulated is discarded.
        """
        parts, scale = [], self._machine.num_ranks / max(weight, SMALLEST_WEIGHT)
        for batch in batches[:-1]:
            with self._machine.without_sync(self._wrapped):
                parts.append(self.backward(batch, scale))
            if self._machine.num_ranks == 1 and self._stopping():
                self.optimizer.zero_grad()
                return None
        return [*parts, self.backward(batches[-1], scale)]

    def backward(self, batch: Batch, scale: float) -> LossSums:
        """
        Add the gradient of one micro-batch. The factor in `scale` undoes the wrapper's mean over processes.
        """
        sums = self._wrapped(batch)
        objective = sums.loss_sum if sums.auxiliary is None else sums.loss_sum + sums.auxiliary
        (objective * scale).backward()
        return sums

    def update(self, totals: Totals, learning_rate: float, warming: bool) -> Update:
        """Clip and step; a gradient or loss that is not finite changes nothing."""
        self._check()
        norm = torch.nn.utils.get_total_norm([each.grad for each in self.parameters.values()])
        value = float(norm) if math.isfinite(totals.loss) else math.nan
        if math.isfinite(value):
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self._max_norm, norm)
            self._set(learning_rate)
            self.optimizer.step()
        self.optimizer.zero_grad()
        return Update(value, {})

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
        signals = totals.signals if math.isfinite(totals.loss) else Signals(math.nan, math.nan, math.nan)
        self.optimizer.step(signals, warming=warming)
        self.optimizer.zero_grad()
        numbers = self.optimizer.report()
        norm, skipped = numbers.pop("grad_norm"), numbers.pop("skipped")
        return Update(math.nan if skipped else norm, numbers)
